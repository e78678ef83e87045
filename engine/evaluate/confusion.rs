//! Which labels are taken for which.
//!
//! Holds a table of counts. It refuses to normalise. Invariant: the counts of a row of the table add up to the gold rows of its label.

use super::metrics::Judged;
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Gold labels against answers at one level.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confusion {
    /// Labels present in gold or prediction, sorted.
    pub labels: Vec<String>,
    /// `counts[gold][predicted]`; the last column holds answers without a label.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Counts rows.
    pub fn of(rows: &[Judged], level: Level) -> Self {
        let labels: BTreeSet<&str> = rows
            .iter()
            .flat_map(|row| [Some(row.gold(level)), row.predicted(level)])
            .flatten()
            .collect();
        let labels: Vec<&str> = labels.into_iter().collect();
        let mut counts = vec![vec![0; labels.len() + 1]; labels.len()];
        for row in rows {
            let gold = labels.binary_search(&row.gold(level));
            let predicted = row
                .predicted(level)
                .and_then(|label| labels.binary_search(&label).ok());
            let count = gold.ok().and_then(|gold| {
                counts
                    .get_mut(gold)?
                    .get_mut(predicted.unwrap_or(labels.len()))
            });
            if let Some(count) = count {
                *count += 1;
            }
        }
        Confusion {
            labels: labels.into_iter().map(str::to_owned).collect(),
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::super::codes::small_tree::SmallTree;
    use super::super::metrics::judge;
    use super::*;

    #[test]
    fn counts_gold_against_answers() {
        let rows: Vec<Judged> = [
            ("E11.65", "E11.9"),
            ("E11.65", "F32.A"),
            ("E11.9", "none"),
            ("F32.9", "F32.A"),
        ]
        .map(|(gold, text)| {
            judge(
                &SmallTree,
                gold,
                &answer::read(text, Level::Code, &SmallTree),
                Level::Code,
            )
        })
        .into();
        let found = Confusion::of(&rows, Level::Chapter);
        assert_eq!(found.labels, ["CH04", "CH05"]);
        assert_eq!(found.counts, [[1, 1, 1], [0, 1, 0]]);
        assert_eq!(Confusion::of(&[], Level::Chapter), Confusion::default());
    }
}
