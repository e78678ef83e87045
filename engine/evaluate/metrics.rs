//! How right a system is, at each level of the tree.
//!
//! Holds accuracy, precision, recall and F1 with intervals. It refuses to compare systems (see `statistics`). Invariant: every
//! number is a function of row weights, so that intervals come from the very code that computed the value.
//!
//! Rules, the same at every level:
//! - A row is right if the answer's label equals the gold label. An answer above the level (`E11` where `E11.65` is asked)
//!   has no label there, and is wrong; at its own level and above it counts as any other.
//! - Classes are the labels present in gold or prediction (scikit-learn's `labels = None`), and a ratio without denominator is
//!   0 (`zero_division = 0`). "No label" is an error of its row, not a class.
//! - Macro is the plain mean over classes, weighted the mean by gold rows, micro pools the counts.
//! - Intervals of macro and weighted averages are recentred, see [`Resampled::recentred`]; the others are plain percentiles.
//! - Hierarchical precision and recall (Kosmopoulos et al. 2015, section 3.3.1; HiClass): answer and gold are extended by all their
//!   ancestors below the root, and the overlap is pooled over rows.

use super::answer::Outcome;
use super::codes::{Codes, label, normal, path};
use super::errors::{self, ErrorKind, KINDS, Validity};
use super::resample::{Estimate, Resampled, Resampler};
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};

/// The levels, finest first.
pub const LEVELS: [Level; 4] = [Level::Code, Level::Category, Level::Block, Level::Chapter];

/// Gold and answer of one row, as labels of each level.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    gold: [String; 4],
    predicted: [Option<String>; 4],
    /// Ancestors and self: in the answer, in gold, in both.
    overlap: [f64; 3],
    /// Whether the answer is a valid code.
    pub validity: Validity,
    /// How it misses the gold code at the asked level, if it does.
    pub error: Option<ErrorKind>,
}

/// Judges an answer to a question at level `asked`; what is finer than that is ignored on both sides.
pub fn judge(codes: &impl Codes, gold: &str, outcome: &Outcome, asked: Level) -> Judged {
    let answer_path = outcome
        .code()
        .map_or_else(Vec::new, |code| path(codes, code, asked));
    let gold_path: HashSet<String> = path(codes, gold, asked).into_iter().collect();
    let both = answer_path
        .iter()
        .filter(|code| gold_path.contains(*code))
        .count();
    Judged {
        gold: LEVELS.map(|level| label(codes, gold, level).unwrap_or_else(|| normal(gold))),
        predicted: LEVELS.map(|level| label(codes, outcome.code()?, level)),
        overlap: [answer_path.len(), gold_path.len(), both].map(|n| n as f64),
        validity: errors::validity(codes, gold, outcome, asked),
        error: errors::kind(codes, gold, outcome, asked),
    }
}

impl Judged {
    /// The gold label.
    pub fn gold(&self, level: Level) -> &str {
        &self.gold[place(level)]
    }

    /// The answer's label, if it reaches the level.
    pub fn predicted(&self, level: Level) -> Option<&str> {
        self.predicted[place(level)].as_deref()
    }

    /// Whether the labels agree.
    pub fn right(&self, level: Level) -> bool {
        self.predicted(level) == Some(self.gold(level))
    }
}

fn place(level: Level) -> usize {
    match level {
        Level::Code => 0,
        Level::Category => 1,
        Level::Block => 2,
        Level::Chapter => 3,
    }
}

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Averages {
    /// Share of predictions that are right.
    pub precision: Estimate,
    /// Share of gold labels that were found.
    pub recall: Estimate,
    /// F1; macro and weighted ones average the classes' F1.
    pub f1: Estimate,
}

/// Measures at one level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelMetrics {
    /// The level.
    pub level: Level,
    /// Labels in gold or prediction.
    pub classes: u64,
    /// Share of rows that are right.
    pub accuracy: Estimate,
    /// Plain mean over classes.
    #[serde(rename = "macro")]
    pub macro_average: Averages,
    /// Counts pooled over classes.
    pub micro: Averages,
    /// Mean over classes by gold rows.
    pub weighted: Averages,
}

/// Measures of one system.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Rows.
    pub rows: u64,
    /// Rows without anything like a code.
    pub unparsed: u64,
    /// Rows whose answer never was a code.
    pub invalid: u64,
    /// Rows whose answer is no longer valid in the code table's fiscal year.
    pub expired: u64,
    /// Of these, rows whose gold code is a successor of the answer, or the reverse.
    pub expired_near: u64,
    /// Rows whose answer is a heading, where whole codes were asked for.
    pub non_billable: u64,
    /// Wrong rows by kind, all kinds in order.
    pub errors: Vec<Errors>,
    /// The asked level and those above.
    pub levels: Vec<LevelMetrics>,
    /// Over ancestor sets.
    pub hierarchical: Averages,
}

/// Wrong rows of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// The kind.
    pub kind: ErrorKind,
    /// Rows.
    pub rows: u64,
}

/// Measures, and what paired comparisons go on with.
pub struct Measured {
    /// The measures.
    pub metrics: Metrics,
    /// Accuracy at the asked level with its resamples.
    pub accuracy: Resampled,
}

/// Measures a system on rows that are all asked at level `asked`. `resampler` draws from the same rows.
pub fn measure(rows: &[Judged], asked: Level, resampler: &Resampler) -> Measured {
    let levels: Vec<Level> = LEVELS.into_iter().filter(|&level| level >= asked).collect();
    let indexed: Vec<Indexed> = levels
        .iter()
        .map(|&level| Indexed::new(rows, level))
        .collect();
    let numbers = |weights: &[u32]| {
        let mut numbers: Vec<f64> = indexed
            .iter()
            .flat_map(|level| level.numbers(weights))
            .collect();
        numbers.extend(hierarchical(rows, weights));
        numbers
    };
    let resampled = resampler.resample(numbers);
    let accuracy = resampled.first().cloned().unwrap_or_default();
    let mut next = resampled.iter();
    let levels = levels
        .iter()
        .zip(&indexed)
        .map(|(&level, index)| LevelMetrics {
            level,
            classes: index.classes as u64,
            accuracy: next.next().map(Resampled::percentile).unwrap_or_default(),
            macro_average: averages(&mut next, Resampled::recentred),
            micro: averages(&mut next, Resampled::percentile),
            weighted: averages(&mut next, Resampled::recentred),
        });
    let levels = levels.collect();
    let count =
        |wanted: &dyn Fn(&Judged) -> bool| rows.iter().filter(|row| wanted(row)).count() as u64;
    let validity = |wanted: fn(&Validity) -> bool| count(&|row| wanted(&row.validity));
    let metrics = Metrics {
        rows: rows.len() as u64,
        unparsed: validity(|v| matches!(v, Validity::Unparsed)),
        invalid: validity(|v| matches!(v, Validity::Invalid)),
        expired: validity(|v| matches!(v, Validity::Expired { .. })),
        expired_near: validity(|v| matches!(v, Validity::Expired { successor: true })),
        non_billable: validity(|v| matches!(v, Validity::NonBillable)),
        errors: KINDS
            .map(|kind| Errors {
                kind,
                rows: count(&|row| row.error == Some(kind)),
            })
            .to_vec(),
        levels,
        hierarchical: averages(&mut next, Resampled::percentile),
    };
    Measured { metrics, accuracy }
}

fn averages<'a>(
    next: &mut impl Iterator<Item = &'a Resampled>,
    interval: fn(&Resampled) -> Estimate,
) -> Averages {
    let mut estimate = || next.next().map(interval).unwrap_or_default();
    Averages {
        precision: estimate(),
        recall: estimate(),
        f1: estimate(),
    }
}

/// The labels of one level as class numbers.
struct Indexed {
    gold: Vec<usize>,
    predicted: Vec<Option<usize>>,
    classes: usize,
}

impl Indexed {
    fn new(rows: &[Judged], level: Level) -> Self {
        let mut numbers = BTreeMap::new();
        let mut number = |label: &str| {
            let next = numbers.len();
            *numbers.entry(label.to_owned()).or_insert(next)
        };
        let gold = rows.iter().map(|row| number(row.gold(level))).collect();
        let predicted = rows
            .iter()
            .map(|row| row.predicted(level).map(&mut number))
            .collect();
        Indexed {
            gold,
            predicted,
            classes: numbers.len(),
        }
    }

    /// Accuracy, then precision, recall and F1 of macro, micro and weighted averages.
    fn numbers(&self, weights: &[u32]) -> [f64; 10] {
        let (mut gold, mut predicted, mut right) = (
            vec![0_u32; self.classes],
            vec![0_u32; self.classes],
            vec![0_u32; self.classes],
        );
        for ((&g, p), &weight) in self.gold.iter().zip(&self.predicted).zip(weights) {
            gold[g] += weight;
            if let Some(p) = *p {
                predicted[p] += weight;
                right[g] += if p == g { weight } else { 0 };
            }
        }
        let mut macro_sums = [0.0; 3];
        let mut weighted_sums = [0.0; 3];
        let mut present = 0;
        for class in 0..self.classes {
            let (g, p, r) = (
                f64::from(gold[class]),
                f64::from(predicted[class]),
                f64::from(right[class]),
            );
            present += usize::from(g + p > 0.0);
            for (at, score) in scores(p, g, r).into_iter().enumerate() {
                macro_sums[at] += score;
                weighted_sums[at] += score * g;
            }
        }
        let sum = |counts: &[u32]| counts.iter().map(|&n| f64::from(n)).sum::<f64>();
        let (rows, all_right) = (sum(&gold), sum(&right));
        let [mp, mr, mf] = macro_sums.map(|s| ratio(s, present as f64));
        let [ip, ir, i_f] = scores(sum(&predicted), rows, all_right);
        let [wp, wr, wf] = weighted_sums.map(|s| ratio(s, rows));
        [ratio(all_right, rows), mp, mr, mf, ip, ir, i_f, wp, wr, wf]
    }
}

fn hierarchical(rows: &[Judged], weights: &[u32]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for (row, &weight) in rows.iter().zip(weights) {
        for (sum, part) in sums.iter_mut().zip(row.overlap) {
            *sum += f64::from(weight) * part;
        }
    }
    scores(sums[0], sums[1], sums[2])
}

/// Precision, recall and F1 of `right` among `predicted` and `gold`.
fn scores(predicted: f64, gold: f64, right: f64) -> [f64; 3] {
    [
        ratio(right, predicted),
        ratio(right, gold),
        ratio(2.0 * right, predicted + gold),
    ]
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::super::codes::small_tree::SmallTree;
    use super::*;

    const GOLD: [&str; 10] = [
        "E11.65", "E1165", "E11.69", "e11.9", "E10.9", "F32.A", "F32.9", "I10", "I10", "I10",
    ];
    const ANSWERS: [&str; 10] = [
        "E11.65", "E11.69", "E11.69", "E10.9", "E10.9", "F32.9", "F32.9", "I10", "F32.A", "E11.65",
    ];

    fn measured(answers: &[&str], asked: Level) -> Metrics {
        let rows = judged(answers, asked);
        measure(
            &rows,
            asked,
            &Resampler::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 1, 200),
        )
        .metrics
    }

    fn judged(answers: &[&str], asked: Level) -> Vec<Judged> {
        let rows = GOLD.iter().zip(answers);
        rows.map(|(gold, text)| {
            judge(
                &SmallTree,
                gold,
                &answer::read(text, asked, &SmallTree),
                asked,
            )
        })
        .collect()
    }

    #[track_caller]
    fn close(found: Averages, expected: [f64; 3]) {
        for (found, expected) in [found.precision, found.recall, found.f1]
            .into_iter()
            .zip(expected)
        {
            assert!(
                (found.value - expected).abs() < 1e-12,
                "{found:?} is not {expected}"
            );
            assert!(
                found.low <= found.value && found.value <= found.high,
                "{found:?}"
            );
        }
    }

    /// Numbers of scikit-learn 1.9 `precision_recall_fscore_support(gold, answers, zero_division=0)` and HiClass 5.
    #[test]
    fn agrees_with_scikit_learn_and_hiclass() {
        let found = measured(&ANSWERS, Level::Code);
        assert_eq!((found.rows, found.unparsed, found.invalid), (10, 0, 0));
        let code = &found.levels[0];
        assert_eq!((code.accuracy.value, code.classes), (0.5, 7));
        close(
            code.macro_average,
            [0.42857142857142855, 0.5476190476190477, 0.4285714285714285],
        );
        close(code.micro, [0.5, 0.5, 0.5]);
        close(code.weighted, [0.55, 0.5, 0.45]);
        close(
            found.hierarchical,
            [0.6976744186046512, 0.75, 0.7228915662650603],
        );
    }

    /// The same with `labels` = the seven codes, the last two answers being nothing and a block.
    #[test]
    fn answers_without_a_label_are_errors_but_no_class() {
        let mut answers = ANSWERS;
        answers[8] = "I do not know";
        answers[9] = "B12";
        let rows = judged(&answers, Level::Code);
        assert_eq!(rows[8].predicted(Level::Chapter), None);
        assert_eq!(rows[9].predicted(Level::Code), Some("B12"));
        answers[9] = "E08-E13";
        let found = measured(&answers, Level::Code);
        assert_eq!((found.unparsed, found.invalid), (1, 0));
        let code = &found.levels[0];
        close(
            code.macro_average,
            [0.5, 0.5476190476190477, 0.4523809523809524],
        );
        close(code.micro, [0.625, 0.5, 0.5555555555555556]);
        close(code.weighted, [0.65, 0.5, 0.4833333333333333]);
        close(
            found.hierarchical,
            [0.8333333333333334, 0.75, 0.7894736842105262],
        );
    }

    #[test]
    fn a_coarse_answer_is_right_only_from_its_level_up() {
        let row = judge(
            &SmallTree,
            "E11.65",
            &answer::read("E11", Level::Code, &SmallTree),
            Level::Code,
        );
        let right = LEVELS.map(|level| row.right(level));
        assert_eq!(right, [false, true, true, true]);
    }

    #[test]
    fn a_code_that_is_gone_can_still_be_right() {
        let row = judge(
            &SmallTree,
            "H4011X1",
            &answer::read("H40.11X1", Level::Code, &SmallTree),
            Level::Code,
        );
        assert!(row.right(Level::Code) && row.error.is_none());
        assert_eq!(row.validity, Validity::Invalid);
    }

    #[test]
    fn finer_than_asked_is_not_measured() {
        let found = measured(&ANSWERS, Level::Category);
        assert_eq!(found.levels.first().map(|l| l.level), Some(Level::Category));
        assert_eq!(found.levels[0].accuracy.value, 0.7);
    }

    #[test]
    fn no_rows_give_zeros() {
        let found = measure(&[], Level::Code, &Resampler::new(&[], 1, 10)).metrics;
        assert_eq!(found.levels.len(), 4);
        assert_eq!(found.levels[0].accuracy, Estimate::default());
    }
}
