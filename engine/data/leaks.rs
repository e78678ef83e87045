//! The leak audit: how much of the answer stands in the question.
//!
//! A note that names its own diagnosis can be coded by a string look-up, and a model fine-tuned on
//! such notes learns to copy. The audit counts that before anything is trained. It refuses to say
//! what is too much: see `explore`. Invariant: every number is a count of rows out of `rows`.

use super::icd10::{CodeTree, Key};
use super::rows::Row;
use super::titles::TitleLookup;
use super::words::{stands_in, wording, words};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Words of titles that say nothing about the disease: small words, then the classification's own
/// filler.
#[rustfmt::skip]
const FILLER: [&str; 25] = [
    "a", "an", "and", "as", "at", "by", "due", "for", "from", "in", "of", "on", "or", "the", "to", "with",
    "classified", "elsewhere", "not", "other", "specified", "unspecified", "without", "so", "stated",
];

/// Counts of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeakAudit {
    /// Rows looked at.
    pub rows: u64,
    /// The gold code stands in the text, with or without its dot.
    pub gold_code: u64,
    /// Some ICD-10-CM code stands in the text.
    pub any_code: u64,
    /// The gold code's title stands in the text word for word.
    pub gold_title: u64,
    /// All content words of the gold code's title stand in the text, in any order.
    pub title_words: u64,
    /// The look-up among the titles of all billable codes finds the gold code.
    pub lookup: u64,
    /// The same look-up among the titles of the labels that occur in the data.
    pub lookup_labels: u64,
}

/// Audits `rows`, whose texts are as the model reads them.
pub fn audit(rows: &[Row], tree: &CodeTree) -> LeakAudit {
    let billable = TitleLookup::billable(tree);
    let codes: HashSet<_> = rows
        .iter()
        .filter_map(|row| tree.parse(&row.code))
        .collect();
    let mut codes: Vec<_> = codes.into_iter().collect();
    codes.sort_unstable();
    let labels = TitleLookup::of(tree, codes);
    rows.par_iter()
        .map(|row| audit_row(row, tree, &billable, &labels))
        .reduce(LeakAudit::default, add)
}

fn audit_row(
    row: &Row,
    tree: &CodeTree,
    billable: &TitleLookup,
    labels: &TitleLookup,
) -> LeakAudit {
    let text = wording(&row.text);
    let gold = tree.parse(&row.code);
    let gold_code = Key::of(&row.code).is_some_and(|key| tree.holds_code(&row.text, key));
    let finds = |lookup: &TitleLookup| gold.is_some() && lookup.predict(&row.text) == gold;
    LeakAudit {
        rows: 1,
        gold_code: gold_code.into(),
        any_code: (gold_code || !tree.mentions(&row.text).is_empty()).into(),
        gold_title: stands_in(&wording(&row.title), &text).into(),
        title_words: holds_content(&row.title, &text).into(),
        lookup: finds(billable).into(),
        lookup_labels: finds(labels).into(),
    }
}

fn holds_content(title: &str, text: &str) -> bool {
    let text: HashSet<&str> = text.split(' ').collect();
    let mut content = words(title)
        .filter(|word| !FILLER.contains(&word.as_str()))
        .peekable();
    content.peek().is_some() && content.all(|word| text.contains(word.as_str()))
}

fn add(a: LeakAudit, b: LeakAudit) -> LeakAudit {
    LeakAudit {
        rows: a.rows + b.rows,
        gold_code: a.gold_code + b.gold_code,
        any_code: a.any_code + b.any_code,
        gold_title: a.gold_title + b.gold_title,
        title_words: a.title_words + b.title_words,
        lookup: a.lookup + b.lookup,
        lookup_labels: a.lookup_labels + b.lookup_labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, code: &str) -> [u64; 6] {
        let tree = CodeTree::shipped();
        let found = audit(&[Row::new(0, text.into(), code.into(), tree)], tree);
        [
            found.gold_code,
            found.any_code,
            found.gold_title,
            found.title_words,
            found.lookup,
            found.lookup_labels,
        ]
    }

    #[test]
    fn each_kind_of_leak_is_told_apart() {
        assert_eq!(one("seen for F32A today", "F32.A"), [1, 1, 0, 0, 0, 0]);
        assert_eq!(one("seen for E11.65 today", "F32.A"), [0, 1, 0, 0, 0, 0]);
        assert_eq!(
            one("**Depression, Unspecified**", "F32A"),
            [0, 0, 1, 1, 1, 1]
        );
        assert_eq!(
            one("depression, not further specified", "F32A"),
            [0, 0, 0, 1, 0, 0]
        );
        assert_eq!(
            one("primary hypertension, essential", "I10"),
            [0, 0, 0, 1, 0, 0]
        );
        // A longer title beside the gold one misleads the look-up among all codes only.
        let two = "Depression, unspecified. Essential (primary) hypertension of long standing";
        assert_eq!(one(two, "F32A"), [0, 0, 1, 1, 0, 1]);
        assert_eq!(one("nothing to see", "no code"), [0; 6]);
    }
}
