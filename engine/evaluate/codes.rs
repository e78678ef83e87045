//! What evaluation needs to know of a code system.
//!
//! Holds the trait and the two questions that gold codes and answers are asked alike: the label at a level and the path to the
//! root. It refuses to read sentences (see `answer`). Invariant: gold and answer go through the same functions, so that
//! one code never gets two labels.

use crate::data::icd10::is_code_shaped;
use medft_dsl::plan::Level;

/// A tree of codes. Ids are the tree's own and mean nothing outside it.
pub trait Codes {
    /// The row that `written` names, dotted or not, in any case.
    fn parse(&self, written: &str) -> Option<u32>;
    /// The row that `written` names or, for a code that is not in the tree, its closest ancestor.
    fn nearest(&self, written: &str) -> Option<u32>;
    /// The row or its ancestor at `level`; `None` if the row is above that level.
    fn at_level(&self, id: u32, level: Level) -> Option<u32>;
    /// The row above.
    fn parent(&self, id: u32) -> Option<u32>;
    /// The code with its dot (`E11.65`), block (`E08-E13`) or chapter (`CH04`).
    fn label(&self, id: u32) -> &str;
    /// The official title.
    fn title(&self, id: u32) -> &str;
    /// Whether the code is valid for a claim.
    fn billable(&self, id: u32) -> bool;
    /// The last fiscal year in which the code was billable, if it no longer is.
    fn expired(&self, _written: &str) -> Option<u16> {
        None
    }
}

/// Capitals, with the dot after the third character. What does not look like a code is only trimmed and set in capitals.
pub fn normal(written: &str) -> String {
    let plain = written.trim().to_uppercase();
    let Some((category, rest)) = plain.split_at_checked(3) else {
        return plain;
    };
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    if !is_code_shaped(&format!("{category}{rest}")) {
        return plain;
    }
    if rest.is_empty() {
        category.to_owned()
    } else {
        format!("{category}.{rest}")
    }
}

/// The label of a written code at `level`. A code that is not in the tree (retired, misspelt) is its own label at
/// [`Level::Code`] and that of its closest ancestor above. `None` if it is too short for the level.
pub fn label(codes: &impl Codes, written: &str, level: Level) -> Option<String> {
    if level == Level::Code && codes.parse(written).is_none() {
        return Some(normal(written));
    }
    let id = codes.at_level(codes.nearest(written)?, level)?;
    Some(codes.label(id).to_owned())
}

/// A code at `level` with everything above it, for hierarchical measures. A code above `level` gives its own path.
pub(super) fn path(codes: &impl Codes, written: &str, level: Level) -> Vec<String> {
    let mut path = Vec::new();
    let nearest = codes.nearest(written);
    if level == Level::Code && codes.parse(written).is_none() {
        path.push(normal(written));
    }
    let start = nearest.map(|id| codes.at_level(id, level).unwrap_or(id));
    path.extend(
        std::iter::successors(start, |&id| codes.parent(id)).map(|id| codes.label(id).to_owned()),
    );
    path
}

#[cfg(test)]
pub(crate) mod small_tree {
    use super::*;

    /// A few rows of the real tree: (code, parent).
    pub(crate) struct SmallTree;

    #[rustfmt::skip]
    const ROWS: [(&str, &str); 28] = [
        ("CH04", ""), ("E08-E13", "CH04"), ("E11", "E08-E13"), ("E11.6", "E11"), ("E11.65", "E11.6"), ("E11.69", "E11.6"),
        ("E11.9", "E11"), ("E10", "E08-E13"), ("E10.9", "E10"), ("CH05", ""), ("F30-F39", "CH05"), ("F32", "F30-F39"),
        ("F32.A", "F32"), ("F32.9", "F32"), ("CH09", ""), ("I10-I1A", "CH09"), ("I10", "I10-I1A"), ("CH19", ""),
        ("S80-S89", "CH19"), ("S83", "S80-S89"), ("S83.5", "S83"), ("S83.512A", "S83.5"), ("H40.11", ""), ("CH10", ""),
        ("J85-J86", "CH10"), ("N95", "CH10"), ("N95.1", "N95"), ("C4A", "CH05"),
    ];

    fn row(id: u32) -> (&'static str, &'static str) {
        ROWS[id as usize]
    }

    impl Codes for SmallTree {
        fn parse(&self, written: &str) -> Option<u32> {
            let code = normal(written);
            ROWS.iter().position(|r| r.0 == code).map(|at| at as u32)
        }
        fn nearest(&self, written: &str) -> Option<u32> {
            let mut code = normal(written);
            loop {
                if let Some(id) = self.parse(&code) {
                    return Some(id);
                }
                code.pop()?;
            }
        }
        fn at_level(&self, id: u32, level: Level) -> Option<u32> {
            let kind = |id: u32| match row(id).0 {
                code if code.starts_with("CH") => Level::Chapter,
                code if code.contains('-') => Level::Block,
                code if code.len() == 3 => Level::Category,
                _ => Level::Code,
            };
            std::iter::successors(Some(id), |&id| self.parent(id)).find(|&id| {
                kind(id) == level || level == Level::Code && kind(id) == Level::Category
            })
        }
        fn parent(&self, id: u32) -> Option<u32> {
            self.parse(row(id).1)
        }
        fn label(&self, id: u32) -> &str {
            row(id).0
        }
        fn title(&self, _: u32) -> &str {
            "a title"
        }
        fn billable(&self, id: u32) -> bool {
            row(id).0.len() >= 3
                && !row(id).0.contains('-')
                && !ROWS.iter().any(|r| r.1 == row(id).0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{small_tree::SmallTree, *};

    #[test]
    fn a_code_has_one_label_however_it_is_written() {
        for written in ["E11.65", "e1165", " E1165\n"] {
            assert_eq!(
                label(&SmallTree, written, Level::Code).as_deref(),
                Some("E11.65")
            );
            assert_eq!(
                label(&SmallTree, written, Level::Category).as_deref(),
                Some("E11")
            );
            assert_eq!(
                label(&SmallTree, written, Level::Block).as_deref(),
                Some("E08-E13")
            );
            assert_eq!(
                label(&SmallTree, written, Level::Chapter).as_deref(),
                Some("CH04")
            );
        }
    }

    #[test]
    fn only_what_looks_like_a_code_gets_a_dot() {
        let written = [
            "s83512a", "I10.", "e1.165", "E11..65", "cough", "Ä11", "E08-E13",
        ];
        let expected = [
            "S83.512A", "I10", "E1.165", "E11..65", "COUGH", "Ä11", "E08-E13",
        ];
        assert_eq!(written.map(normal), expected);
    }

    #[test]
    fn a_code_that_is_gone_is_its_own_label_and_has_a_category() {
        assert_eq!(
            label(&SmallTree, "e11.x1", Level::Code).as_deref(),
            Some("E11.X1")
        );
        assert_eq!(
            label(&SmallTree, "E11X1", Level::Category).as_deref(),
            Some("E11")
        );
        assert_eq!(
            path(&SmallTree, "E11X1", Level::Code),
            ["E11.X1", "E11", "E08-E13", "CH04"]
        );
    }

    #[test]
    fn a_short_code_has_no_finer_label() {
        assert_eq!(label(&SmallTree, "E08-E13", Level::Category), None);
        assert_eq!(label(&SmallTree, "CH04", Level::Block), None);
        assert_eq!(
            label(&SmallTree, "E11", Level::Code).as_deref(),
            Some("E11")
        );
        assert_eq!(
            path(&SmallTree, "E08-E13", Level::Code),
            ["E08-E13", "CH04"]
        );
        assert_eq!(
            path(&SmallTree, "E11.65", Level::Category),
            ["E11", "E08-E13", "CH04"]
        );
    }
}
