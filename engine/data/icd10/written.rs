//! Codes as people and models write them: `F32.A`, `f32a`, ` S83.512A `, `H40.11X1`.
//!
//! Holds the normal form and what the tree knows about it. It refuses to search in sentences (see
//! `mentions`). Invariant: a code's normal form has no dot, so that every spelling of one code has
//! one [`Key`].

use super::{CodeId, CodeTree, Retired};
use medft_dsl::plan::Level;

/// A code without its dot, in capitals, padded with zeros: the longest has 7 characters
/// (`S72001A`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key([u8; 8]);

impl Key {
    /// The key of a code, block (`E08-E13`) or chapter (`CH04`) in any spelling. White space around
    /// it is ignored; a dot may stand after the third character only.
    pub(crate) fn of(written: &str) -> Option<Key> {
        let mut key = [0; 8];
        let mut len = 0;
        for (at, byte) in written.trim().bytes().enumerate() {
            match byte {
                b'.' if at == 3 => {}
                b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                    *key.get_mut(len)? = byte.to_ascii_uppercase();
                    len += 1;
                }
                _ => return None,
            }
        }
        (len >= 3).then_some(Key(key))
    }

    /// The characters of the code.
    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.0.split(|&byte| byte == 0).next().unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Whether it has the shape of a category or code.
    pub(crate) fn is_code_shaped(&self) -> bool {
        is_code_shaped(self.as_str())
    }

    /// The first `len` characters.
    pub(super) fn prefix(&self, len: usize) -> Key {
        let mut key = self.0;
        key.iter_mut().skip(len).for_each(|byte| *byte = 0);
        Key(key)
    }
}

/// Whether capitals without a dot have the shape of a category or code: a letter; a digit and a letter or digit, or `A` and a digit
/// (`QA0`, since April 2026); at most four letters or digits more.
pub(crate) fn is_code_shaped(bare: &str) -> bool {
    let begins = matches!(
        bare.as_bytes(),
        [b'A'..=b'Z', b'0'..=b'9', ..] | [b'A'..=b'Z', b'A', b'0'..=b'9', ..]
    );
    let letters_and_digits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    begins && (3..=7).contains(&bare.len()) && bare.bytes().all(letters_and_digits)
}

/// What the release knows about a written code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeStatus {
    /// Valid for a claim.
    Billable,
    /// In the tree, but not valid for a claim.
    Parent {
        /// Rows directly below.
        children: usize,
        /// The last fiscal year in which it was valid, if it was in one since 2019.
        billable_until: Option<u16>,
    },
    /// No longer in the tree.
    Retired {
        /// The last fiscal year in which it was valid.
        last_fiscal_year: u16,
    },
    /// Never seen.
    Unknown,
}

/// The code in capitals with its dot (`s83512a` becomes `S83.512A`), whether it exists or not;
/// `None` if it does not have the shape of a code.
pub fn dotted(written: &str) -> Option<String> {
    let key = Key::of(written).filter(Key::is_code_shaped)?;
    let (category, rest) = key.as_str().split_at(3);
    Some(if rest.is_empty() {
        category.to_owned()
    } else {
        format!("{category}.{rest}")
    })
}

impl CodeTree {
    /// The row that `written` names in any spelling, with or without the dot.
    pub fn parse(&self, written: &str) -> Option<CodeId> {
        self.find(Key::of(written)?)
    }

    /// The row that `written` names or, for a code that is not in the tree, its closest ancestor
    /// (`H40.11X1` gives `H40.11`), so that retired and misspelt codes can still be counted by
    /// category, block and chapter.
    pub fn nearest(&self, written: &str) -> Option<CodeId> {
        let key = Key::of(written)?;
        self.find(key).or_else(|| {
            let key = Some(key).filter(Key::is_code_shaped)?;
            (3..key.as_str().len())
                .rev()
                .find_map(|len| self.find(key.prefix(len)))
        })
    }

    /// The label of a gold code at `level`: the code with its dot, or its category, block or
    /// chapter, also for a code that is no longer in the tree. What is no code is its own label at
    /// every level.
    pub fn label(&self, written: &str, level: Level) -> String {
        let row = if level == Level::Code {
            self.parse(written)
        } else {
            self.nearest(written)
        };
        match row.and_then(|id| self.at_level(id, level)) {
            Some(id) => self.code(id).to_owned(),
            None => dotted(written).unwrap_or_else(|| written.trim().to_uppercase()),
        }
    }

    /// Billable, a parent, retired or unknown.
    pub fn status(&self, written: &str) -> CodeStatus {
        let retired = Key::of(written).and_then(|key| self.find_retired(key));
        let last_fiscal_year = retired.map(|retired| retired.last_fiscal_year);
        match (self.parse(written), last_fiscal_year) {
            (Some(id), _) if self.billable(id) => CodeStatus::Billable,
            (Some(id), billable_until) => CodeStatus::Parent {
                children: self.children(id).count(),
                billable_until,
            },
            (None, Some(last_fiscal_year)) => CodeStatus::Retired { last_fiscal_year },
            (None, None) => CodeStatus::Unknown,
        }
    }

    /// The official title of a written code; that of its last year for a retired one.
    pub fn title_of(&self, written: &str) -> Option<&str> {
        let key = Key::of(written)?;
        let title = self.find(key).map(|id| self.title(id));
        title.or_else(|| self.find_retired(key).map(|retired| retired.title.as_str()))
    }

    pub(super) fn find(&self, key: Key) -> Option<CodeId> {
        let at = self
            .by_key
            .binary_search_by_key(&key, |(key, _)| *key)
            .ok()?;
        self.by_key.get(at).map(|(_, id)| *id)
    }

    pub(super) fn find_retired(&self, key: Key) -> Option<&Retired> {
        let at = self
            .retired
            .binary_search_by_key(&key, |(key, _)| *key)
            .ok()?;
        self.retired.get(at).map(|(_, retired)| retired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_names_one_code() {
        let tree = CodeTree::shipped();
        let code = |written: &str| tree.parse(written).map(|id| tree.code(id));
        for written in ["F32A", "f32.a", " F32.A\n", "F32.a"] {
            assert_eq!(code(written), Some("F32.A"), "{written:?}");
        }
        assert_eq!(code(" S83.512A "), Some("S83.512A"));
        assert_eq!(code("qa0.0101"), Some("QA0.0101"));
        assert_eq!(code("s83512a"), Some("S83.512A"));
        assert_eq!(code("I10."), Some("I10"));
        assert_eq!(code("ch04"), Some("CH04"));
        assert_eq!(code("e08-e13"), Some("E08-E13"));
        for written in [
            "",
            ".",
            "E1",
            "E1.165",
            "E11..65",
            "E11,65",
            "E11.65000",
            "Ä11",
            "E11 65",
        ] {
            assert_eq!(code(written), None, "{written:?}");
        }
    }

    #[test]
    fn dots_are_put_where_they_belong() {
        assert_eq!(dotted("s83512a").as_deref(), Some("S83.512A"));
        assert_eq!(dotted("I10").as_deref(), Some("I10"));
        assert_eq!(dotted("qa00101").as_deref(), Some("QA0.0101"));
        assert_eq!(dotted("h4011x1").as_deref(), Some("H40.11X1"));
        for written in ["E08-E13", "CH04", "cough", "B1"] {
            assert_eq!(dotted(written), None, "{written:?}");
        }
    }

    #[test]
    fn status_tells_billable_parent_retired_and_unknown_apart() {
        let tree = CodeTree::shipped();
        assert_eq!(tree.status("F32A"), CodeStatus::Billable);
        assert_eq!(
            tree.status("F32"),
            CodeStatus::Parent {
                children: 9,
                billable_until: None
            }
        );
        assert_eq!(
            tree.status("B37.3"),
            CodeStatus::Parent {
                children: 2,
                billable_until: Some(2022)
            }
        );
        assert_eq!(tree.status("H40.11X1"), CodeStatus::Unknown);
        assert_eq!(tree.status("no code"), CodeStatus::Unknown);
        let gone = tree
            .retired
            .iter()
            .find(|(key, _)| tree.find(*key).is_none())
            .expect("310 are gone");
        let status = tree.status(gone.0.as_str());
        assert_eq!(
            status,
            CodeStatus::Retired {
                last_fiscal_year: gone.1.last_fiscal_year
            }
        );
        assert_eq!(tree.title_of(gone.0.as_str()), Some(gone.1.title.as_str()));
    }

    #[test]
    fn a_code_that_is_gone_still_has_a_category() {
        let tree = CodeTree::shipped();
        let nearest = |written: &str| tree.nearest(written).map(|id| tree.code(id));
        assert_eq!(nearest("H40.11X1"), Some("H40.11"));
        assert_eq!(nearest("T814XXA"), Some("T81.4"));
        assert_eq!(nearest("CH99"), None);
        assert_eq!(nearest("A0x"), None);
        assert_eq!(tree.label("H4011X1", Level::Code), "H40.11X1");
        assert_eq!(tree.label("H4011X1", Level::Category), "H40");
        assert_eq!(tree.label("f32a", Level::Code), "F32.A");
        assert_eq!(tree.label(" cough ", Level::Chapter), "COUGH");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(written in ".{0,12}") {
            let tree = CodeTree::shipped();
            let _ = (tree.nearest(&written), tree.status(&written), dotted(&written));
        }

        #[test]
        fn a_code_survives_every_spelling(number in 0_u32..98_505, lower: bool, dot: bool, pad in " {0,2}") {
            let tree = CodeTree::shipped();
            let id = tree.id(number).expect("in range");
            let mut written = tree.code(id).to_owned();
            if lower { written = written.to_lowercase(); }
            if !dot { written = written.replace('.', ""); }
            prop_assert_eq!(tree.parse(&format!("{pad}{written}{pad}")), Some(id));
        }
    }
}
