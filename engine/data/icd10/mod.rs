//! The ICD-10-CM tree: chapters, blocks, categories and codes, as released for one fiscal year.
//!
//! Holds navigation and titles. Reading written codes is in `written`, finding them in running text
//! in `mentions`, decoding the shipped table in `table`. It refuses anything about data sets or
//! models. Invariant: a [`CodeId`] is a row number in tree order (parents first), and belongs to
//! the tree that gave it.

mod chapters;
mod mentions;
mod table;
mod written;

pub use chapters::Chapter;
pub use mentions::Mention;
pub use table::TableError;
pub use written::{CodeStatus, dotted};
pub(crate) use written::{Key, is_code_shaped};

use medft_dsl::plan::Level;
use std::iter::successors;
use std::sync::OnceLock;
use table::Strings;

/// A chapter, block, category or code of a [`CodeTree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeId(u32);

impl CodeId {
    /// The row number in tree order.
    pub fn number(self) -> u32 {
        self.0
    }

    fn at(self) -> usize {
        self.0 as usize
    }
}

/// What a row of the tree is. Subcategories and full codes are both [`Kind::Code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `CH04`.
    Chapter,
    /// `E08-E13`.
    Block,
    /// `E11`.
    Category,
    /// `E11.6`, `E11.65`.
    Code,
}

/// A code that was billable once.
#[derive(Debug)]
struct Retired {
    last_fiscal_year: u16,
    title: String,
}

/// The tree of one release. [`CodeTree::shipped`] is the one that comes with the engine.
#[derive(Default)]
pub struct CodeTree {
    release: String,
    codes: Strings,
    titles: Strings,
    kinds: Vec<Kind>,
    parents: Vec<Option<CodeId>>,
    /// One past the last descendant.
    ends: Vec<u32>,
    by_key: Vec<(Key, CodeId)>,
    retired: Vec<(Key, Retired)>,
}

impl CodeTree {
    /// The tree that ships with the engine, decoded at the first call (about 30 ms).
    pub fn shipped() -> &'static CodeTree {
        static TREE: OnceLock<CodeTree> = OnceLock::new();
        // The bytes are part of the program and a test decodes them: failing here is a broken
        // build.
        TREE.get_or_init(|| table::shipped().unwrap_or_else(|error| unreachable!("{error}")))
    }

    /// The name of the release, for reports.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Every row, parents first.
    pub fn ids(&self) -> impl Iterator<Item = CodeId> + '_ {
        (0..).zip(&self.kinds).map(|(number, _)| CodeId(number))
    }

    /// The row with this number, as [`CodeId::number`] gave it.
    pub fn id(&self, number: u32) -> Option<CodeId> {
        (CodeId(number).at() < self.kinds.len()).then_some(CodeId(number))
    }

    /// The code with its dot (`S72.001A`), a block as its range (`E08-E13`), a chapter as `CH04`.
    pub fn code(&self, id: CodeId) -> &str {
        self.codes.get(id.at())
    }

    /// The official title.
    pub fn title(&self, id: CodeId) -> &str {
        self.titles.get(id.at())
    }

    /// What the row is.
    pub fn kind(&self, id: CodeId) -> Kind {
        self.kinds[id.at()]
    }

    /// The row above; `None` for a chapter.
    pub fn parent(&self, id: CodeId) -> Option<CodeId> {
        self.parents[id.at()]
    }

    /// The rows directly below.
    pub fn children(&self, id: CodeId) -> impl Iterator<Item = CodeId> + '_ {
        let end = self.ends[id.at()];
        let within = move |number: u32| (number < end).then_some(CodeId(number));
        successors(within(id.0 + 1), move |child| within(self.ends[child.at()]))
    }

    /// The rows above, nearest first; `id` itself is not among them.
    pub fn ancestors(&self, id: CodeId) -> impl Iterator<Item = CodeId> + '_ {
        successors(self.parent(id), |&id| self.parent(id))
    }

    /// Whether `above` is an ancestor of `below`.
    pub fn is_ancestor(&self, above: CodeId, below: CodeId) -> bool {
        above < below && below.0 < self.ends[above.at()]
    }

    /// The row or its ancestor at `level`. A category is its own code at [`Level::Code`]; a block
    /// has no category and a chapter no block.
    pub fn at_level(&self, id: CodeId, level: Level) -> Option<CodeId> {
        let fits = |kind| match level {
            Level::Code => kind >= Kind::Category,
            Level::Category => kind == Kind::Category,
            Level::Block => kind == Kind::Block,
            Level::Chapter => kind == Kind::Chapter,
        };
        std::iter::once(id)
            .chain(self.ancestors(id))
            .find(|&id| fits(self.kind(id)))
    }

    /// Whether the code is valid for a claim in this release: a category or code with nothing below
    /// it.
    pub fn billable(&self, id: CodeId) -> bool {
        self.kind(id) >= Kind::Category && self.ends[id.at()] == id.0 + 1
    }

    /// The chapter that the row is in, with its names.
    pub fn chapter(&self, id: CodeId) -> Option<Chapter> {
        let chapter = self.at_level(id, Level::Chapter)?;
        Chapter::new(self.code(chapter), self.title(chapter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(written: &str) -> CodeId {
        CodeTree::shipped()
            .parse(written)
            .unwrap_or_else(|| panic!("{written} is in the tree"))
    }

    #[test]
    fn the_shipped_table_is_whole_and_says_so() {
        let tree = CodeTree::shipped();
        assert_eq!(
            tree.release(),
            "ICD-10-CM fiscal year 2026, release of April 1, 2026"
        );
        assert_eq!(tree.ids().count(), 98_505);
        assert_eq!(tree.ids().filter(|&id| tree.billable(id)).count(), 74_719);
        assert_eq!(tree.retired.len(), 496);
        for (kind, rows) in [
            (Kind::Chapter, 22),
            (Kind::Block, 297),
            (Kind::Category, 1_918),
        ] {
            assert_eq!(
                tree.ids().filter(|&id| tree.kind(id) == kind).count(),
                rows,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn every_row_is_among_the_children_of_its_parent() {
        let tree = CodeTree::shipped();
        let mut below = 0;
        for id in tree.ids() {
            for child in tree.children(id) {
                assert_eq!(tree.parent(child), Some(id));
                assert!(tree.is_ancestor(id, child) && !tree.is_ancestor(child, id));
                below += 1;
            }
        }
        assert_eq!(below, 98_505 - 22);
    }

    #[test]
    fn a_code_has_a_category_a_block_and_a_chapter() {
        let tree = CodeTree::shipped();
        let at = |written, level| tree.at_level(id(written), level).map(|id| tree.code(id));
        assert_eq!(at("S83512A", Level::Code), Some("S83.512A"));
        assert_eq!(at("S83512A", Level::Category), Some("S83"));
        assert_eq!(at("S83512A", Level::Block), Some("S80-S89"));
        assert_eq!(at("S83512A", Level::Chapter), Some("CH19"));
        assert_eq!(at("I10", Level::Code), Some("I10"));
        assert_eq!(at("B20-B20", Level::Category), None);
        assert_eq!(at("B20-B20", Level::Code), None);
        assert_eq!(at("CH02", Level::Block), None);
        let above: Vec<_> = tree
            .ancestors(id("E1165"))
            .map(|id| tree.code(id))
            .collect();
        assert_eq!(above, ["E11.6", "E11", "E08-E13", "CH04"]);
    }

    #[test]
    fn titles_billable_and_numbers() {
        let tree = CodeTree::shipped();
        assert_eq!(tree.title(id("F32.A")), "Depression, unspecified");
        assert!(tree.billable(id("F32A")) && !tree.billable(id("F32")) && tree.billable(id("I10")));
        // A block without categories below it has no child either.
        assert!(!tree.billable(id("C00-C96")));
        assert_eq!(tree.id(id("I10").number()), Some(id("I10")));
        assert_eq!(tree.id(98_505), None);
        let chapter = tree.chapter(id("E11.65")).unwrap();
        assert_eq!(
            (
                chapter.label.as_str(),
                chapter.roman,
                chapter.range.as_str()
            ),
            ("CH04", "IV", "E00-E89")
        );
    }
}
