//! Words of a text, the unit in which titles, leaks and near-duplicates are compared.
//!
//! A word is a run of letters and digits in any alphabet, in lower case; everything else only
//! separates. It refuses stemming, synonyms and stop words: two wordings are the same here or they
//! are not. Ranges are byte ranges of the original text, so that what was found can be cut out of
//! it.

use std::ops::Range;

/// Byte ranges of the words of `text`, left to right.
pub(crate) fn word_ranges(text: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut rest = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let start = loop {
            let (at, c) = rest.next()?;
            if c.is_alphanumeric() {
                break at;
            }
        };
        while rest.next_if(|(_, c)| c.is_alphanumeric()).is_some() {}
        let end = rest.peek().map_or(text.len(), |(at, _)| *at);
        Some(start..end)
    })
}

/// The words of `text` in lower case.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    word_ranges(text).map(|range| text[range].to_lowercase())
}

/// The words of `text` in lower case, one space between them: equal for texts that differ only in
/// case, punctuation, markup and white space.
pub(crate) fn wording(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    for word in words(text) {
        if !joined.is_empty() {
            joined.push(' ');
        }
        joined.push_str(&word);
    }
    joined
}

/// Whether the words of `phrase` stand in `wording` one after the other, both as [`wording`]
/// returns them.
pub(crate) fn stands_in(phrase: &str, wording: &str) -> bool {
    let bytes = wording.as_bytes();
    !phrase.is_empty()
        && wording.match_indices(phrase).any(|(at, found)| {
            let ends = bytes.get(at + found.len()).is_none_or(|&b| b == b' ');
            ends && (at == 0 || bytes.get(at - 1) == Some(&b' '))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording_forgets_case_markup_and_line_breaks() {
        assert_eq!(
            wording("**Crohn’s  Disease:**\n- 2 Ulcers"),
            "crohn s disease 2 ulcers"
        );
        assert_eq!(wording("–"), "");
    }

    #[test]
    fn ranges_cut_words_out_of_the_original() {
        let text = "Ménière's, L5";
        let cut: Vec<_> = word_ranges(text).map(|r| &text[r]).collect();
        assert_eq!(cut, ["Ménière", "s", "L5"]);
    }

    #[test]
    fn a_phrase_is_whole_words() {
        assert!(stands_in("viral infection", "a viral infection today"));
        assert!(stands_in("a", "a"));
        assert!(!stands_in("viral infection", "viral infections"));
        assert!(!stands_in("oral", "pectoral x"));
        assert!(!stands_in("", "anything"));
    }
}
