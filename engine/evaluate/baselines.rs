//! Baselines that cost nothing.
//!
//! Holds the majority code and the turning of any rule into predictions, such as the look-up of official titles. A model's own
//! zero-shot run is no baseline of this file but a system like any other. Invariant: a baseline's answers are
//! read and judged by the same code as a model's.

use super::answer;
use super::codes::Codes;
use super::prediction::{Finish, Prediction};
use medft_dsl::plan::Level;
use std::collections::BTreeMap;
use std::time::Instant;

/// The most frequent label of the training rows; of equals the first in the alphabet. `None` without rows.
pub fn majority<'a>(labels: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|&(_, count)| count == most)
        .map(|(label, _)| label)
}

/// Predictions of a rule that gives the code for a text, or nothing. `rows` are (row id, text).
pub fn predict<'a>(
    name: &str,
    rows: impl IntoIterator<Item = (&'a str, &'a str)>,
    level: Level,
    codes: &impl Codes,
    mut rule: impl FnMut(&str) -> Option<String>,
) -> Vec<Prediction> {
    let predict = |(row, text): (&str, &str)| {
        let start = Instant::now();
        let answer = rule(text).unwrap_or_default();
        Prediction {
            row: row.to_owned(),
            scope: name.to_owned(),
            prompt: blake3::hash(text.as_bytes()).to_hex().to_string(),
            outcome: answer::read(&answer, level, codes),
            answer,
            tokens: 0,
            finish: Finish::Stop,
            seconds: start.elapsed().as_secs_f64(),
        }
    };
    rows.into_iter().map(predict).collect()
}

#[cfg(test)]
mod tests {
    use super::super::codes::small_tree::SmallTree;
    use super::*;

    #[test]
    fn majority_breaks_ties_by_the_alphabet() {
        assert_eq!(
            majority(["I10", "E11.9", "I10", "E11.9", "F32.A"]),
            Some("E11.9")
        );
        assert_eq!(majority(["I10"]), Some("I10"));
        assert_eq!(majority([]), None);
    }

    #[test]
    fn a_rule_is_read_like_a_model() {
        let rows = [("a", "depression"), ("b", "a cold")];
        let found = predict("look-up", rows, Level::Code, &SmallTree, |text| {
            text.contains("depression").then(|| "F32A".to_owned())
        });
        let codes: Vec<Option<&str>> = found.iter().map(|p| p.outcome.code()).collect();
        assert_eq!(codes, [Some("F32.A"), None]);
        assert_ne!(found[0].prompt, found[1].prompt);
    }
}
