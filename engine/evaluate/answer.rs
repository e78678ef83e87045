//! A model's answer to a code.
//!
//! Holds the reading of free text: `E11.65`, `f32a`, `**ICD-10: E11.65** (Type 2 ...)`. It refuses to know what is right (see
//! `metrics`) and to repair: `E11` is never read as `E11.9`. Invariant: reading depends on the answer, the
//! level and the tree alone, so stored answers can be read again at any time.

use super::codes::{Codes, normal};
use crate::data::icd10::is_code_shaped;
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What an answer says. Spans are bytes of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// A row of the tree.
    Code {
        /// As the tree writes it, at the level of the answer (`E11.65` also when a category was asked for).
        code: String,
        /// Where it stands.
        span: Range<usize>,
    },
    /// Shaped like a code, and not in the tree.
    Invalid {
        /// In capitals, with its dot.
        code: String,
        /// Where it stands.
        span: Range<usize>,
    },
    /// Nothing in the answer looks like a code.
    Unparsed,
}

impl Outcome {
    /// The code, in the tree or not.
    pub fn code(&self) -> Option<&str> {
        match self {
            Outcome::Code { code, .. } | Outcome::Invalid { code, .. } => Some(code),
            Outcome::Unparsed => None,
        }
    }
}

/// How far a candidate is to be trusted; the smallest wins, and of equals the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    /// In the tree and as fine as was asked for.
    Sure,
    /// The same, but neither dotted nor billable, where a whole code was asked for: a heading (`E11`) or something else (`N95`
    /// mask, `S100` stain).
    Doubtful,
    /// In the tree, too short for the asked level.
    TooShort,
    /// Not in the tree.
    Invalid,
}

/// Reads the code out of an answer to a question at `level`.
///
/// Candidates are runs of letters and digits with the shape of a code, with or without the dot. The first one in the tree that
/// reaches `level` counts, a dotted or billable one before an undotted heading (`E11` beside `E11.65` when whole codes are
/// asked for), then one that is too short, then one that is not in the tree. Two characters (`T3`) are never a code, nor is an
/// undotted word without a category in the tree (`B12`, `A1c`), unless it is all of the answer.
pub fn read(answer: &str, level: Level, codes: &impl Codes) -> Outcome {
    let whole = answer.trim_matches(|c: char| !c.is_alphanumeric());
    let mut best: Option<(Trust, Outcome)> = None;
    let mut resume = 0;
    for word in words(answer) {
        if word.start < resume {
            continue;
        }
        let Some(span) = candidate(answer, word, codes) else {
            continue;
        };
        resume = span.end;
        let Some(written) = answer.get(span.clone()) else {
            continue;
        };
        let Some(found) = judge(written, written == whole, span, level, codes) else {
            continue;
        };
        if best.as_ref().is_none_or(|(trust, _)| found.0 < *trust) {
            best = Some(found);
        }
    }
    best.map_or(Outcome::Unparsed, |(_, outcome)| outcome)
}

fn judge(
    written: &str,
    alone: bool,
    span: Range<usize>,
    level: Level,
    codes: &impl Codes,
) -> Option<(Trust, Outcome)> {
    let dotted = written.contains('.');
    let Some(id) = codes.parse(written) else {
        let bare = normal(written).replace('.', "");
        let believable = alone
            || dotted
            || bare
                .get(..3)
                .is_some_and(|category| codes.parse(category).is_some());
        let code = normal(written);
        return (believable && is_code_shaped(&bare))
            .then_some((Trust::Invalid, Outcome::Invalid { code, span }));
    };
    let trust = match codes.at_level(id, level) {
        None => Trust::TooShort,
        Some(_) if dotted || level != Level::Code || codes.billable(id) => Trust::Sure,
        Some(_) => Trust::Doubtful,
    };
    let code = codes.label(id).to_owned();
    Some((trust, Outcome::Code { code, span }))
}

/// The code that begins at `word`, if any: a range (`E08-E13`), a chapter (`CH04`), a dotted or a plain code.
fn candidate(answer: &str, word: Range<usize>, codes: &impl Codes) -> Option<Range<usize>> {
    let text = answer.get(word.clone())?;
    if text.len() > 7 || !text.is_ascii() {
        return None;
    }
    let shaped = is_code_shaped(&text.to_ascii_uppercase());
    let chapter = text.len() == 4
        && text
            .get(..2)
            .is_some_and(|ch| ch.eq_ignore_ascii_case("ch"));
    if chapter && codes.parse(text).is_some() {
        return Some(word);
    }
    if !shaped {
        return None;
    }
    let rest = answer.get(word.end..).unwrap_or_default();
    if text.len() == 3 {
        if let Some(tail) = rest.strip_prefix('-') {
            let range = word.start..word.end + 1 + run(tail);
            if answer
                .get(range.clone())
                .is_some_and(|r| r.len() == 7 && codes.parse(r).is_some())
            {
                return Some(range);
            }
        }
        if let Some(tail) = rest.strip_prefix('.') {
            return dotted(answer, word, run(tail), codes);
        }
    }
    Some(word)
}

/// A category followed by a dot and `after` bytes of letters and digits: the dot of `F32.A` is the code's, that of `I10.The` ends
/// a sentence. `E11.65Type` is no code, and not the category `E11` either.
fn dotted(
    answer: &str,
    category: Range<usize>,
    after: usize,
    codes: &impl Codes,
) -> Option<Range<usize>> {
    let range = category.start..category.end + 1 + after;
    let tail = answer.get(category.end + 1..range.end)?;
    let has_digit = tail.bytes().any(|b| b.is_ascii_digit());
    let shaped = (1..=4).contains(&tail.len()) && tail.is_ascii();
    if shaped && (has_digit || codes.parse(answer.get(range.clone())?).is_some()) {
        return Some(range);
    }
    (!has_digit).then_some(category)
}

/// Runs of letters and digits, left to right.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text.get(at..)?.find(char::is_alphanumeric)?;
        at = start + run(text.get(start..)?);
        Some(start..at)
    })
}

/// Bytes of letters and digits at the beginning.
fn run(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric())
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::super::codes::small_tree::SmallTree;
    use super::*;
    use proptest::prelude::*;

    fn read_at(answer: &str, level: Level) -> String {
        match read(answer, level, &SmallTree) {
            Outcome::Code { code, span } => {
                assert_eq!(normal(&answer[span]), code);
                code
            }
            Outcome::Invalid { code, span } => {
                assert_eq!(normal(&answer[span]), code);
                format!("invalid {code}")
            }
            Outcome::Unparsed => "unparsed".into(),
        }
    }

    #[track_caller]
    fn reads(answer: &str, expected: &str) {
        assert_eq!(read_at(answer, Level::Code), expected, "{answer:?}");
    }

    #[test]
    fn every_spelling_of_a_code() {
        for answer in [
            "E11.65",
            "e11.65",
            "E1165",
            "e1165",
            " E11.65.\n",
            "**E11.65**",
            "`E11.65`",
            "_E11.65_",
            "ICD-10: E11.65",
            "ICD-10-CM:E11.65 (Type 2 diabetes mellitus with hyperglycemia)",
            "The code is E11.65, because ...",
            "{\"code\": \"E11.65\"}",
            "[E11.65](https://icd10data.com)",
            "Diabète: E11.65–hyperglycémie",
        ] {
            reads(answer, "E11.65");
        }
        reads("F32.A", "F32.A");
        reads("f32a", "F32.A");
        reads("S83.512A", "S83.512A");
        reads("s83512a is it", "S83.512A");
        reads("C4A", "C4A");
        reads("I10.", "I10");
        reads("I10.The patient has hypertension", "I10");
    }

    #[test]
    fn the_first_code_of_the_tree_wins() {
        reads("I10, E11.65", "I10");
        reads("E11.65 or E11.69", "E11.65");
        reads("E11.77, then E11.65", "E11.65");
        reads("H40.11X1", "invalid H40.11X1");
        reads("E11.77 or E11.78", "invalid E11.77");
    }

    #[test]
    fn look_alikes_give_way_to_codes() {
        reads("free T3 low, B12 low, HbA1c and A1C high: E11.9", "E11.9");
        reads("wore an N95 mask; I10", "I10");
        reads("N95", "N95");
        reads("T3 and B12", "unparsed");
        reads("B12", "invalid B12");
        reads("H1N1 influenza, COVID-19, L4-L5", "unparsed");
        reads("", "unparsed");
        reads("Type 2 diabetes mellitus", "unparsed");
    }

    #[test]
    fn a_short_answer_stays_short() {
        reads("E11", "E11");
        reads("E11, more exactly E11.65", "E11.65");
        reads("E08-E13", "E08-E13");
        reads("CH04: E08-E13", "CH04");
        reads("E11.65Type 2", "unparsed");
        reads("E11.-", "E11");
    }

    #[test]
    fn coarser_levels_take_what_reaches_them() {
        assert_eq!(read_at("E11, J06.9", Level::Category), "E11");
        assert_eq!(read_at("E11.65", Level::Category), "E11.65");
        assert_eq!(read_at("CH04, category E11", Level::Category), "E11");
        assert_eq!(read_at("e08-e13", Level::Block), "E08-E13");
        assert_eq!(read_at("chapter CH04", Level::Chapter), "CH04");
    }

    /// FY2026 has categories whose second character is a letter; a word such as CA125 still is no code.
    #[test]
    fn codes_with_two_letters_in_front() {
        use crate::data::icd10::CodeTree;
        let found = |answer| read(answer, Level::Code, CodeTree::shipped());
        assert_eq!(found("**QA0.0101**").code(), Some("QA0.0101"));
        assert_eq!(found("code qa00101").code(), Some("QA0.0101"));
        assert_eq!(found("CA125 and BA4 are high"), Outcome::Unparsed);
    }

    #[test]
    fn outcomes_survive_json() {
        for answer in ["E11.65", "E11.77", "none"] {
            let outcome = read(answer, Level::Code, &SmallTree);
            let json = serde_json::to_string(&outcome).expect("serialises");
            assert_eq!(
                serde_json::from_str::<Outcome>(&json).expect("reads"),
                outcome
            );
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read(answer in ".{0,60}") {
            if let Outcome::Code { code, span } = read(&answer, Level::Code, &SmallTree) {
                prop_assert_eq!(normal(&answer[span]), code);
            }
        }

        #[test]
        fn a_code_is_found_in_any_dress(before in "[ (:*`\"\\[]{0,4}", after in "[ ):*`\",;\\]]{0,4}", lower: bool) {
            let code = if lower { "s83.512a" } else { "S83.512A" };
            let found = read(&format!("{before}{code}{after}"), Level::Code, &SmallTree);
            prop_assert_eq!(found.code(), Some("S83.512A"));
        }
    }
}
