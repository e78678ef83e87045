//! Accuracy by group of rows: chapter, how often training saw the code, seen against unseen.
//!
//! Holds the grouping and Wilson's interval, which unlike the bootstrap says something of a group of three rows. Invariant: every
//! row is in exactly one group of each division.

use super::metrics::Judged;
use super::resample::Estimate;
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Lower ends of the classes of frequency: training rows with the gold label.
const FREQUENCIES: [(u64, &str); 6] = [
    (0, "0"),
    (1, "1"),
    (2, "2–4"),
    (5, "5–9"),
    (10, "10–99"),
    (100, "100 or more"),
];

/// What rows are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Division {
    /// The gold code's chapter.
    Chapter,
    /// Training rows with the gold label at the asked level.
    Frequency,
    /// Whether there is at least one.
    Seen,
}

/// A system's accuracy in one group, at the asked level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What divides.
    pub by: Division,
    /// Chapter, training rows, `seen` or `unseen`.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Share of right rows with Wilson's 95 % interval.
    pub accuracy: Estimate,
}

/// All groups that have rows. `trained` are the training rows with each row's gold label.
pub fn groups(rows: &[Judged], asked: Level, trained: &[u64]) -> Vec<Group> {
    // Sorted by place; chapters and classes of frequency come in their own order.
    let mut counts: BTreeMap<(usize, usize, &str), (u64, u64)> = BTreeMap::new();
    for (row, &trained) in rows.iter().zip(trained) {
        let class = FREQUENCIES
            .iter()
            .rposition(|&(least, _)| trained >= least)
            .unwrap_or(0);
        let seen = usize::from(trained == 0);
        for key in [
            (0, 0, row.gold(Level::Chapter)),
            (1, class, FREQUENCIES[class].1),
            (2, seen, ["seen", "unseen"][seen]),
        ] {
            let count = counts.entry(key).or_default();
            count.0 += u64::from(row.right(asked));
            count.1 += 1;
        }
    }
    let divisions = [Division::Chapter, Division::Frequency, Division::Seen];
    let group = |((by, _, name), (right, rows)): ((usize, usize, &str), (u64, u64))| Group {
        by: divisions[by],
        name: name.to_owned(),
        rows,
        accuracy: wilson(right, rows),
    };
    counts.into_iter().map(group).collect()
}

/// A share with Wilson's (1927) 95 % interval.
pub fn wilson(right: u64, rows: u64) -> Estimate {
    if rows == 0 {
        return Estimate::default();
    }
    let (n, share) = (rows as f64, right as f64 / rows as f64);
    let z = 1.959_963_984_540_054; // normal quantile of 97.5 %
    let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    Estimate {
        value: share,
        low: (centre - half).max(0.0),
        high: (centre + half).min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::super::codes::small_tree::SmallTree;
    use super::super::metrics::judge;
    use super::*;

    #[test]
    fn every_row_is_once_in_each_division() {
        let rows: Vec<Judged> = [("E11.65", "E11.65"), ("E11.9", "none"), ("F32.A", "F32.A")]
            .map(|(gold, text)| {
                let outcome = answer::read(text, Level::Code, &SmallTree);
                judge(&SmallTree, gold, &outcome, Level::Code)
            })
            .into();
        let found = groups(&rows, Level::Code, &[0, 4, 250]);
        let found: Vec<(&str, u64, f64)> = found
            .iter()
            .map(|g| (g.name.as_str(), g.rows, g.accuracy.value))
            .collect();
        let expected = [
            ("CH04", 2, 0.5),
            ("CH05", 1, 1.0),
            ("0", 1, 1.0),
            ("2–4", 1, 0.0),
            ("100 or more", 1, 1.0),
            ("seen", 2, 0.5),
            ("unseen", 1, 1.0),
        ];
        assert_eq!(found, expected);
        assert!(groups(&[], Level::Code, &[]).is_empty());
    }
}
