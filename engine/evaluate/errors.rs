//! What is wrong with an answer.
//!
//! Holds two partitions: of answers by whether a claim with them would be valid ([`Validity`]), and of rows by how far the answer is
//! from the gold code ([`ErrorKind`]). It refuses to count. Invariant: every answer has exactly one of each, decided in the order of the
//! variants.

use super::answer::Outcome;
use super::codes::{Codes, label, normal};
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};

/// Whether an answer is a code that a claim may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Validity {
    /// Nothing like a code.
    Unparsed,
    /// Shaped like a code that never was one.
    Invalid,
    /// Valid once, until a fiscal year before that of the code table.
    Expired {
        /// The gold code is one of those that replaced it, or the reverse: where a code was divided, those below it.
        successor: bool,
    },
    /// A heading where a whole code was asked for.
    NonBillable,
    /// Valid.
    Valid,
}

/// How an answer misses the gold code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Nothing like a code.
    Unparsed,
    /// Shaped like a code that never was one.
    Invalid,
    /// Above the gold code (`E11` for `E11.65`).
    TooBroad,
    /// Below the gold code.
    TooSpecific,
    /// Only the seventh character differs: the encounter.
    SeventhCharacter,
    /// In the same category, and the titles differ only in the side of the body.
    Laterality,
    /// Directly below the same heading.
    Sibling,
    /// Elsewhere in the same category.
    SameCategory,
    /// Another category of the same block.
    SameBlock,
    /// Another block of the same chapter.
    OtherBlock,
    /// Another chapter.
    OtherChapter,
}

/// All kinds, in their order.
pub const KINDS: [ErrorKind; 11] = [
    ErrorKind::Unparsed,
    ErrorKind::Invalid,
    ErrorKind::TooBroad,
    ErrorKind::TooSpecific,
    ErrorKind::SeventhCharacter,
    ErrorKind::Laterality,
    ErrorKind::Sibling,
    ErrorKind::SameCategory,
    ErrorKind::SameBlock,
    ErrorKind::OtherBlock,
    ErrorKind::OtherChapter,
];

/// Words of official titles that name a side of the body.
const SIDES: [&str; 4] = ["right", "left", "bilateral", "unilateral"];

/// Whether a claim may carry the answer to a question at level `asked`.
pub fn validity(codes: &impl Codes, gold: &str, outcome: &Outcome, asked: Level) -> Validity {
    let Some(code) = outcome.code() else {
        return Validity::Unparsed;
    };
    let found = codes.parse(code);
    if codes.expired(code).is_some() && (asked == Level::Code || found.is_none()) {
        let (answer, gold) = (Place::of(codes, code, asked), Place::of(codes, gold, asked));
        let successor = answer.holds(codes, &gold) || gold.holds(codes, &answer);
        return Validity::Expired { successor };
    }
    match found {
        None => Validity::Invalid,
        Some(id) if asked == Level::Code && !codes.billable(id) => Validity::NonBillable,
        Some(_) => Validity::Valid,
    }
}

/// How an answer to a question at level `asked` misses `gold`; `None` if it is right there.
pub fn kind(codes: &impl Codes, gold: &str, outcome: &Outcome, asked: Level) -> Option<ErrorKind> {
    let Some(code) = outcome.code() else {
        return Some(ErrorKind::Unparsed);
    };
    let gold_label = label(codes, gold, asked).unwrap_or_else(|| normal(gold));
    if label(codes, code, asked).is_some_and(|answer| answer == gold_label) {
        return None;
    }
    if codes.parse(code).is_none() && codes.expired(code).is_none() {
        return Some(ErrorKind::Invalid);
    }
    let (answer, gold) = (Place::of(codes, code, asked), Place::of(codes, gold, asked));
    let same = |level| {
        let at = |place: &Place| codes.at_level(place.nearest?, level);
        at(&answer).is_some() && at(&answer) == at(&gold)
    };
    let kind = if answer.holds(codes, &gold) {
        ErrorKind::TooBroad
    } else if gold.holds(codes, &answer) {
        ErrorKind::TooSpecific
    } else if only_the_seventh_differs(&answer.code, &gold.code) {
        ErrorKind::SeventhCharacter
    } else if same(Level::Category) && only_the_side_differs(codes, &answer, &gold) {
        ErrorKind::Laterality
    } else if answer.parent.is_some() && answer.parent == gold.parent {
        ErrorKind::Sibling
    } else if same(Level::Category) {
        ErrorKind::SameCategory
    } else if same(Level::Block) {
        ErrorKind::SameBlock
    } else if same(Level::Chapter) {
        ErrorKind::OtherBlock
    } else {
        ErrorKind::OtherChapter
    };
    Some(kind)
}

/// A written code's place in the tree. One that is gone hangs below its closest ancestor, with nothing below itself.
struct Place {
    /// At the asked level, in capitals with its dot.
    code: String,
    /// Its row, if it is in the tree.
    row: Option<u32>,
    /// Its row or that of its closest ancestor.
    nearest: Option<u32>,
    parent: Option<u32>,
}

impl Place {
    fn of(codes: &impl Codes, written: &str, asked: Level) -> Self {
        let at = |id| codes.at_level(id, asked).unwrap_or(id);
        let nearest = codes.nearest(written).map(at);
        let gone = asked == Level::Code && codes.parse(written).is_none();
        let row = nearest.filter(|_| !gone);
        Place {
            code: row.map_or_else(|| normal(written), |id| codes.label(id).to_owned()),
            row,
            nearest,
            parent: if gone {
                nearest
            } else {
                row.and_then(|id| codes.parent(id))
            },
        }
    }

    /// Whether `below` is a descendant.
    fn holds(&self, codes: &impl Codes, below: &Place) -> bool {
        let above = std::iter::successors(below.parent, |&id| codes.parent(id));
        self.row
            .is_some_and(|row| above.into_iter().any(|id| id == row))
    }
}

/// `S72.001A` and `S72.001D`.
fn only_the_seventh_differs(a: &str, b: &str) -> bool {
    let seven = |code: &str| code.len() == 8 && code.is_ascii();
    seven(a) && seven(b) && a.get(..7) == b.get(..7)
}

/// The titles agree but for the words that name a side, and at least one of them names one. "Unspecified" is such a word, too: it is how
/// titles say that the side is not known.
fn only_the_side_differs(codes: &impl Codes, a: &Place, b: &Place) -> bool {
    let (Some(a), Some(b)) = (a.row, b.row) else {
        return false;
    };
    let split = |id| {
        let title = codes.title(id).to_lowercase();
        let words = title
            .split(|c: char| !c.is_alphanumeric())
            .map(str::to_owned);
        let (sides, rest): (Vec<String>, Vec<String>) = words
            .filter(|word| !word.is_empty())
            .partition(|word| word == "unspecified" || SIDES.contains(&word.as_str()));
        (sides, rest)
    };
    let ((a_sides, a_rest), (b_sides, b_rest)) = (split(a), split(b));
    let named = |sides: &[String]| sides.iter().any(|word| word != "unspecified");
    a_rest == b_rest && a_sides != b_sides && (named(&a_sides) || named(&b_sides))
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::*;
    use crate::data::icd10::CodeTree;

    fn of(gold: &str, answered: &str, asked: Level) -> (Option<ErrorKind>, Validity) {
        let tree = CodeTree::shipped();
        let outcome = answer::read(answered, asked, tree);
        (
            kind(tree, gold, &outcome, asked),
            validity(tree, gold, &outcome, asked),
        )
    }

    #[test]
    fn each_kind_of_error_has_its_name() {
        for (gold, answered, expected) in [
            ("E11.65", "e1165", None),
            ("E11.65", "none", Some(ErrorKind::Unparsed)),
            ("E11.65", "E11.77", Some(ErrorKind::Invalid)),
            ("E11.65", "E11", Some(ErrorKind::TooBroad)),
            ("E11.65", "CH04", Some(ErrorKind::TooBroad)),
            ("E11", "E11.65", Some(ErrorKind::TooSpecific)),
            ("S83.511A", "S83.511D", Some(ErrorKind::SeventhCharacter)),
            ("S83.511A", "S83.512A", Some(ErrorKind::Laterality)),
            ("M17.11", "M17.12", Some(ErrorKind::Laterality)),
            ("M25.561", "M25.569", Some(ErrorKind::Laterality)),
            ("H40.1131", "H40.1132", Some(ErrorKind::SeventhCharacter)),
            ("E11.65", "E11.69", Some(ErrorKind::Sibling)),
            ("I10", "I11.9", Some(ErrorKind::SameBlock)),
            ("E11.65", "E11.9", Some(ErrorKind::SameCategory)),
            ("E11.65", "E10.65", Some(ErrorKind::SameBlock)),
            ("E11.65", "E03.9", Some(ErrorKind::OtherBlock)),
            ("E11.65", "F32.A", Some(ErrorKind::OtherChapter)),
            ("H40.11X1", "H40.11", Some(ErrorKind::TooBroad)),
            ("H40.11X1", "H40.11X1", None),
        ] {
            assert_eq!(
                of(gold, answered, Level::Code).0,
                expected,
                "{gold} {answered}"
            );
        }
        assert_eq!(of("E11.65", "E11.9", Level::Category).0, None);
        assert_eq!(
            of("E11.65", "E10.9", Level::Category).0,
            Some(ErrorKind::Sibling)
        );
        assert_eq!(
            of("E11.65", "F32", Level::Chapter).0,
            Some(ErrorKind::OtherChapter)
        );
    }

    #[test]
    fn validity_follows_the_fiscal_year() {
        let expired = |successor| Validity::Expired { successor };
        for (gold, answered, expected) in [
            ("E11.65", "E11.65", Validity::Valid),
            ("E11.65", "none", Validity::Unparsed),
            ("E11.65", "E11.77", Validity::Invalid),
            ("E11.65", "E11", Validity::NonBillable),
            // B37.3 was divided into B37.31 and B37.32 in 2023.
            ("B37.31", "B37.3", expired(true)),
            ("B37.3", "B37.3", expired(false)),
            ("E11.65", "B37.3", expired(false)),
            ("B37.3", "B37.31", Validity::Valid),
        ] {
            assert_eq!(
                of(gold, answered, Level::Code).1,
                expected,
                "{gold} {answered}"
            );
        }
        assert_eq!(of("B37.31", "B37.3", Level::Category).1, Validity::Valid);
    }
}
