//! Official titles in running text: the look-up that needs no learning.
//!
//! Holds the word trie behind three uses: a baseline ([`TitleLookup::predict`]), redaction
//! ([`TitleLookup::spans`]) and the leak audit. It refuses synonyms and misspellings: a title
//! stands in a text word for word or not at all. Invariant: a match is whole words, compared as
//! `words` defines them.

use super::icd10::{CodeId, CodeTree, Kind};
use super::words::{word_ranges, words};
use std::collections::HashMap;
use std::ops::Range;

/// Finds titles in texts. Time is linear in the text, whatever the number of titles.
pub struct TitleLookup {
    /// Words of titles; a word of a text that is not here ends every match.
    vocabulary: HashMap<String, u32>,
    /// (node, word) to node; node 0 is the root.
    edges: HashMap<(u32, u32), u32>,
    /// The code whose title ends at a node.
    codes: Vec<Option<CodeId>>,
}

/// The longest title that begins at some word.
struct Match {
    range: Range<usize>,
    words: usize,
    chars: usize,
    code: CodeId,
}

impl TitleLookup {
    /// The titles of all billable codes: what a coder without training could look up.
    pub fn billable(tree: &CodeTree) -> TitleLookup {
        TitleLookup::of(tree, tree.ids().filter(|&id| tree.billable(id)))
    }

    /// The titles of all categories and codes, billable or not.
    pub fn all(tree: &CodeTree) -> TitleLookup {
        TitleLookup::of(
            tree,
            tree.ids().filter(|&id| tree.kind(id) >= Kind::Category),
        )
    }

    /// The official titles of these codes, for a look-up that knows the labels of a data set.
    pub fn of(tree: &CodeTree, codes: impl IntoIterator<Item = CodeId>) -> TitleLookup {
        TitleLookup::from_titles(codes.into_iter().map(|id| (id, tree.title(id))))
    }

    /// Any titles. Of several codes with one title the first counts.
    pub fn from_titles<'t>(titles: impl IntoIterator<Item = (CodeId, &'t str)>) -> TitleLookup {
        let mut lookup = TitleLookup {
            vocabulary: HashMap::new(),
            edges: HashMap::new(),
            codes: vec![None],
        };
        for (code, title) in titles {
            let mut node = 0;
            for word in words(title) {
                let next = lookup.vocabulary.len() as u32; // below 2^32: every word is in memory
                let word = *lookup.vocabulary.entry(word).or_insert(next);
                let next = lookup.codes.len() as u32;
                node = *lookup.edges.entry((node, word)).or_insert(next);
                if node == next {
                    lookup.codes.push(None);
                }
            }
            if let Some(free @ None) = lookup.codes.get_mut(node as usize).filter(|_| node > 0) {
                *free = Some(code);
            }
        }
        lookup
    }

    /// The code whose title in `text` is longest, by words and then by characters; of equals the
    /// last, since a note ends with its assessment. `None` if no title stands in it.
    pub fn predict(&self, text: &str) -> Option<CodeId> {
        let longest = self
            .matches(text)
            .into_iter()
            .max_by_key(|found| (found.words, found.chars));
        longest.map(|found| found.code)
    }

    /// The bytes of every title in `text`: the longest at the leftmost place, then onwards from its
    /// end.
    pub fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for found in self.matches(text) {
            if spans
                .last()
                .is_none_or(|last| found.range.start >= last.end)
            {
                spans.push(found.range);
            }
        }
        spans
    }

    /// The longest title from each word at which one begins, left to right.
    fn matches(&self, text: &str) -> Vec<Match> {
        let ranges: Vec<Range<usize>> = word_ranges(text).collect();
        let known: Vec<Option<u32>> = ranges
            .iter()
            .map(|range| {
                self.vocabulary
                    .get(&text[range.clone()].to_lowercase())
                    .copied()
            })
            .collect();
        let mut found = Vec::new();
        for (first, start) in ranges.iter().enumerate() {
            let mut node = 0;
            let mut longest = None;
            for (word, range) in known[first..].iter().zip(&ranges[first..]) {
                let Some(next) = word.and_then(|word| self.edges.get(&(node, word))) else {
                    break;
                };
                node = *next;
                if let Some(code) = self.codes.get(node as usize).copied().flatten() {
                    longest = Some((range.end, code));
                }
            }
            if let Some((end, code)) = longest {
                let inside = ranges[first..].iter().take_while(|range| range.end <= end);
                let (words, chars) = inside.fold((0, 0), |(words, chars), range| {
                    (words + 1, chars + range.len())
                });
                found.push(Match {
                    range: start.start..end,
                    words,
                    chars,
                    code,
                });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(written: &[&str]) -> Vec<CodeId> {
        written
            .iter()
            .filter_map(|code| CodeTree::shipped().parse(code))
            .collect()
    }

    #[test]
    fn the_longest_title_wins_then_the_last() {
        let tree = CodeTree::shipped();
        let lookup = TitleLookup::billable(tree);
        let predict = |text| lookup.predict(text).map(|id| tree.code(id));
        let note = "Cough. Essential (primary) hypertension; later: TYPE 2 DIABETES MELLITUS WITH HYPERGLYCEMIA.";
        assert_eq!(predict(note), Some("E11.65"));
        assert_eq!(
            predict("Type 2 diabetes mellitus with hyper- tension"),
            None
        );
        assert_eq!(
            predict("Typhoid meningitis, then typhoid arthritis"),
            Some("A01.01")
        );
        assert_eq!(
            predict("Typhoid pneumonia is no typhoid arthritis"),
            Some("A01.04")
        );
        assert_eq!(predict(""), None);
    }

    #[test]
    fn of_equal_titles_the_first_code_counts_and_of_equal_matches_the_last() {
        let ids = codes(&["E78.4", "E78.49", "A00", "B20"]);
        let [first, second, a, b] = ids[..] else {
            panic!("four codes")
        };
        let lookup = TitleLookup::from_titles([
            (first, "One two"),
            (second, "one TWO"),
            (a, "ab"),
            (b, "cd"),
        ]);
        assert_eq!(lookup.predict("one-two"), Some(first));
        assert_eq!(lookup.predict("ab cd"), Some(b));
        assert_eq!(lookup.predict("cd ab"), Some(a));
    }

    #[test]
    fn an_empty_title_is_never_found() {
        let lookup = TitleLookup::from_titles([(codes(&["I10"])[0], "–")]);
        assert_eq!(lookup.predict("anything – at all"), None);
    }

    #[test]
    fn spans_are_the_longest_titles_and_do_not_overlap() {
        let lookup = TitleLookup::all(CodeTree::shipped());
        let text = "**Depression, unspecified**; Cholera due to Vibrio cholerae 01, biovar eltor.";
        let cut: Vec<_> = lookup
            .spans(text)
            .into_iter()
            .map(|span| &text[span])
            .collect();
        assert_eq!(
            cut,
            [
                "Depression, unspecified",
                "Cholera due to Vibrio cholerae 01, biovar eltor"
            ]
        );
    }
}
