//! ICD-10-CM codes in running text, for redaction and for the leak audit.
//!
//! Clinical text is full of things shaped like codes (`T3`, vitamin `B12`, `A1C`, HLA-`B27`, an
//! `N95` mask), so a mention must be believable: see [`CodeTree::mentions`]. It refuses to read
//! answers of models, which `evaluate` does with other rules. Invariant: mentions do not overlap
//! and come left to right.

use super::{CodeTree, Key};
use crate::data::words::word_ranges;
use std::ops::Range;

/// Undotted strings that are codes by shape and in the tree, but name something else in clinical
/// text: the CFTR deletion, the iodine isotope, the tumour-suppressor gene and the immunostain.
const LOOK_ALIKES: [&str; 4] = ["F508", "I131", "P53", "S100"];

/// A bare category is believed this many bytes after a word such as "ICD" or "code".
const CUE_REACH: usize = 24;

/// A code found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// Bytes of the text.
    pub range: Range<usize>,
    pub(crate) key: Key,
}

impl CodeTree {
    /// The codes that stand in `text`.
    ///
    /// - With a dot (`E11.65`, `f32.a`): every row of the tree, every retired code, and what merely
    ///   begins like one (`F05.8` of the WHO's edition: its category exists). `T36.6` to `T42.9`
    ///   are temperatures unless "ICD" or "code" stands before them.
    /// - Without (`E1165`): capitals only, and in the tree or retired. Three characters alone
    ///   (`I10`) must also be billable or retired, or follow "ICD" or "code" closely: `N95`, `B27`
    ///   and `Q10` are categories as well as a mask, an antigen and a coenzyme.
    ///
    /// Two characters are never a code (`T3`), nor is what is not in the tree (`B12`).
    pub fn mentions(&self, text: &str) -> Vec<Mention> {
        let mut found = self.candidates(text);
        found.retain(|mention| self.believable(text, mention));
        found
    }

    /// Whether this very code stands in `text`, with or without its dot. The code need not exist.
    pub(crate) fn holds_code(&self, text: &str, key: Key) -> bool {
        self.candidates(text)
            .iter()
            .any(|mention| mention.key == key)
    }

    fn believable(&self, text: &str, Mention { range, key }: &Mention) -> bool {
        let code = key.as_str();
        let cued = || has_cue(&text[..range.start]);
        if range.len() > code.len() {
            let temperature = code.len() == 4 && ("T36".."T43").contains(&code);
            return self.find(key.prefix(3)).is_some() && (!temperature || cued());
        }
        if LOOK_ALIKES.contains(&code) {
            return false;
        }
        let retired = self.find_retired(*key).is_some();
        retired
            || self
                .find(*key)
                .is_some_and(|row| code.len() > 3 || self.billable(row) || cued())
    }

    /// Everything shaped like a code.
    fn candidates(&self, text: &str) -> Vec<Mention> {
        let mut found = Vec::new();
        let mut resume = 0;
        for word in word_ranges(text) {
            if word.start < resume {
                continue;
            }
            let dotted = self.with_dot(text, &word);
            if dotted.is_none()
                && text[word.clone()]
                    .bytes()
                    .any(|byte| byte.is_ascii_lowercase())
            {
                continue;
            }
            let range = dotted.unwrap_or(word);
            if let Some(key) = Key::of(&text[range.clone()]).filter(Key::is_code_shaped) {
                resume = range.end;
                found.push(Mention { range, key });
            }
        }
        found
    }

    /// The word and what follows its dot, if that can be one code: the dot of `F05.8` belongs to
    /// the code, that of `I10.The` ends a sentence.
    fn with_dot(&self, text: &str, word: &Range<usize>) -> Option<Range<usize>> {
        let rest = text[word.end..]
            .strip_prefix('.')
            .filter(|_| word.len() == 3)?;
        let part = rest
            .split(|c: char| !c.is_alphanumeric())
            .next()
            .filter(|part| !part.is_empty())?;
        let range = word.start..word.end + 1 + part.len();
        let key = Key::of(&text[range.clone()]).filter(Key::is_code_shaped)?;
        let known = || self.find(key).is_some() || self.find_retired(key).is_some();
        (part.starts_with(|c: char| c.is_ascii_digit()) || known()).then_some(range)
    }
}

fn has_cue(before: &str) -> bool {
    let from = before.len().saturating_sub(CUE_REACH);
    let tail = before
        .as_bytes()
        .get(from..)
        .unwrap_or_default()
        .to_ascii_lowercase();
    tail.windows(3).any(|three| three == b"icd") || tail.windows(4).any(|four| four == b"code")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<&str> {
        CodeTree::shipped()
            .mentions(text)
            .into_iter()
            .map(|mention| &text[mention.range])
            .collect()
    }

    #[test]
    fn codes_are_found_in_every_surrounding() {
        let text = "**E11.65**, (F43.25)Seconda ICD-10:S72.001A, f32.a; A047 and I10.The patient, H4011X1? F05.8";
        let expected = [
            "E11.65", "F43.25", "S72.001A", "f32.a", "A047", "I10", "F05.8",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_only_looks_like_a_code_is_left_alone() {
        for text in [
            "T3 and T4, vitamin B12, A1C 6.5, HbA1c, T2DM, COVID19, T36.6 °C, L4-L5, T12",
            "HLA-B27, an N95 mask, coenzyme Q10, p53, P53 mutation, I131, S100 positive, F508 deletion",
            "e1165 in small letters, 1E11.65, E11.65abcde, XE11.65, q12h, ΔF508",
        ] {
            assert_eq!(found(text), Vec::<&str>::new(), "{text}");
        }
    }

    #[test]
    fn a_cue_makes_a_category_a_code() {
        assert_eq!(found("ICD-10 code: N95"), ["N95"]);
        assert_eq!(found("ICD-10-CM Code: T36.6"), ["T36.6"]);
        assert_eq!(
            found("code. Some thirty letters later N95"),
            Vec::<&str>::new()
        );
    }

    #[test]
    fn a_longer_code_does_not_hold_the_shorter_one() {
        let tree = CodeTree::shipped();
        let holds = |text, code| tree.holds_code(text, Key::of(code).expect("a code"));
        assert!(
            holds("Delirium (F05)", "F05")
                && holds("see T81.4XXA", "T814XXA")
                && holds("A64.", "A64")
        );
        assert!(!holds("Delirium (F05.8)", "F05") && !holds("F051", "F05") && !holds("f05", "F05"));
    }

    proptest! {
        #[test]
        fn mentions_lie_in_the_text_and_do_not_overlap(text in "([A-Z][0-9]{2}|[.]|[A-Z0-9]|[aé ]){0,20}") {
            let mut end = 0;
            for mention in CodeTree::shipped().mentions(&text) {
                prop_assert!(mention.range.start >= end && text.get(mention.range.clone()).is_some());
                end = mention.range.end;
            }
        }
    }
}
