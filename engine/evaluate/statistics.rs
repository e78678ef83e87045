//! Whether two systems differ.
//!
//! Holds paired comparisons on the same rows: the difference in accuracy with its bootstrap interval, McNemar's exact test, Holm's
//! correction, and the sentence that follows from them. It refuses unpaired comparisons. Invariant: a sentence
//! claims a difference only if the corrected test and the interval agree on it.

use super::resample::{Estimate, Resampler};
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

/// Error rate of all comparisons of a report together.
pub const ALPHA: f64 = 0.05;

/// A system's rows, right or wrong, in the order that all systems share.
#[derive(Debug, Clone, Copy)]
pub struct Graded<'a> {
    /// The system.
    pub name: &'a str,
    /// Right at the compared level, row by row.
    pub right: &'a [bool],
}

/// Two systems on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The system in question.
    pub system: String,
    /// What it is compared with.
    pub baseline: String,
    /// The level at which answers are judged.
    pub level: Level,
    /// Rows.
    pub rows: u64,
    /// Accuracy of the system.
    pub system_accuracy: f64,
    /// Accuracy of the baseline.
    pub baseline_accuracy: f64,
    /// System minus baseline.
    pub difference: Estimate,
    /// Rows that only the system has right.
    pub only_system: u64,
    /// Rows that only the baseline has right.
    pub only_baseline: u64,
    /// McNemar's exact test, two-sided.
    pub p: f64,
    /// The same after Holm's correction over all pairs that were compared together.
    pub p_holm: f64,
}

/// What a comparison shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The system is better.
    Better,
    /// The system is worse.
    Worse,
    /// Nothing; which is not to say that they are equal.
    NoDifferenceShown,
}

/// Compares systems pair by pair, each (system, baseline). `resampler` draws from the same rows.
pub fn compare(pairs: &[(Graded, Graded)], level: Level, resampler: &Resampler) -> Vec<Pair> {
    let mut compared: Vec<Pair> = pairs
        .iter()
        .map(|(system, baseline)| compare_two(system, baseline, level, resampler))
        .collect();
    let corrected = holm(&compared.iter().map(|pair| pair.p).collect::<Vec<_>>());
    for (pair, p) in compared.iter_mut().zip(corrected) {
        pair.p_holm = p;
    }
    compared
}

fn compare_two(system: &Graded, baseline: &Graded, level: Level, resampler: &Resampler) -> Pair {
    let rows: Vec<(bool, bool)> = system
        .right
        .iter()
        .copied()
        .zip(baseline.right.iter().copied())
        .collect();
    let count =
        |wanted: fn(&(bool, bool)) -> bool| rows.iter().filter(|row| wanted(row)).count() as u64;
    let share = |n: u64| n as f64 / rows.len().max(1) as f64;
    let difference = resampler.resample(|weights| {
        let (mut drawn, mut sum) = (0.0, 0.0);
        for (&(a, b), &weight) in rows.iter().zip(weights) {
            drawn += f64::from(weight);
            sum += f64::from(weight) * (f64::from(u8::from(a)) - f64::from(u8::from(b)));
        }
        vec![if drawn > 0.0 { sum / drawn } else { 0.0 }]
    });
    let (only_system, only_baseline) = (count(|r| r.0 && !r.1), count(|r| !r.0 && r.1));
    let p = mcnemar(only_system, only_baseline);
    Pair {
        system: system.name.to_owned(),
        baseline: baseline.name.to_owned(),
        level,
        rows: rows.len() as u64,
        system_accuracy: share(count(|r| r.0)),
        baseline_accuracy: share(count(|r| r.1)),
        difference: difference.first().copied().unwrap_or_default().percentile(),
        only_system,
        only_baseline,
        p,
        p_holm: p,
    }
}

/// McNemar's exact test: the two-sided p-value of a fair coin for the rows on which two systems differ.
pub fn mcnemar(only_a: u64, only_b: u64) -> f64 {
    match Binomial::new(0.5, only_a + only_b) {
        Ok(coin) => (2.0 * coin.cdf(only_a.min(only_b))).min(1.0),
        Err(_) => 1.0, // 0.5 is a probability: never taken
    }
}

/// Holm's step-down correction (1979), in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = p.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut corrected = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, (at, p)) in order.into_iter().enumerate() {
        largest = largest.max((p * (corrected.len() - rank) as f64).min(1.0));
        corrected[at] = largest;
    }
    corrected
}

/// The smallest difference in accuracy that a comparison of `rows` rows shows in 80 % of studies at a 5 % level, if the systems
/// disagree on a share `disagreement` of them (normal approximation of McNemar's test; never below the six rows
/// that the exact test needs).
pub fn smallest_difference(rows: u64, disagreement: f64) -> f64 {
    let rows = rows.max(1) as f64;
    let z = 1.959_964 + 0.841_621; // normal quantiles of 97.5 % and 80 %
    (z * (disagreement / rows).sqrt()).max(6.0 / rows).min(1.0)
}

impl Pair {
    /// What the comparison shows.
    pub fn verdict(&self) -> Verdict {
        match self.difference {
            d if self.p_holm < ALPHA && d.low > 0.0 => Verdict::Better,
            d if self.p_holm < ALPHA && d.high < 0.0 => Verdict::Worse,
            _ => Verdict::NoDifferenceShown,
        }
    }

    /// The verdict in words.
    pub fn sentence(&self) -> String {
        let Pair {
            system,
            baseline,
            rows,
            ..
        } = self;
        if *rows == 0 {
            return format!("{system} and {baseline} cannot be compared: there are no rows.");
        }
        let judged = match self.level {
            Level::Code => "whole codes",
            Level::Category => "categories",
            Level::Block => "blocks",
            Level::Chapter => "chapters",
        };
        let points = |share: f64| 100.0 * share;
        let numbers = format!(
            "{:.1} % against {:.1} % of {judged} right on the same {rows} rows, a difference of {} points \
             (95 % interval {} to {}; McNemar's exact test with Holm's correction, {})",
            points(self.system_accuracy),
            points(self.baseline_accuracy),
            signed_points(self.difference.value),
            signed_points(self.difference.low),
            signed_points(self.difference.high),
            p_value(self.p_holm),
        );
        match self.verdict() {
            Verdict::Better => format!("{system} is better than {baseline}: {numbers}."),
            Verdict::Worse => format!("{system} is worse than {baseline}: {numbers}."),
            Verdict::NoDifferenceShown => {
                let disagreement = (self.only_system + self.only_baseline) as f64 / *rows as f64;
                format!(
                    "No difference shown between {system} and {baseline}: {numbers}. With so many rows, a true difference \
                     below about {:.1} points would probably be missed.",
                    points(smallest_difference(*rows, disagreement))
                )
            }
        }
    }
}

/// A difference of shares in percentage points: `+8.2`, `−0.4`.
pub fn signed_points(difference: f64) -> String {
    format!("{:+.1}", 100.0 * difference).replace('-', "−")
}

/// `p = 0.012`, `p < 0.001`.
pub fn p_value(p: f64) -> String {
    if p < 0.001 {
        "p < 0.001".to_owned()
    } else {
        format!("p = {p:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(only_system: usize, only_baseline: usize, both: usize, neither: usize) -> Pair {
        let rows = |a: bool, b: bool, n: usize| std::iter::repeat_n((a, b), n);
        let (system, baseline): (Vec<bool>, Vec<bool>) = rows(true, false, only_system)
            .chain(rows(false, true, only_baseline))
            .chain(rows(true, true, both))
            .chain(rows(false, false, neither))
            .unzip();
        let clusters: Vec<u32> = (0..system.len() as u32).collect();
        let graded = (
            Graded {
                name: "tuned",
                right: &system,
            },
            Graded {
                name: "base",
                right: &baseline,
            },
        );
        compare(&[graded], Level::Code, &Resampler::new(&clusters, 42, 2000)).remove(0)
    }

    /// `scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue`
    #[test]
    fn mcnemar_agrees_with_scipy() {
        let expected = [
            (5, 15, 0.04138946533203125),
            (6, 0, 0.03125),
            (10, 12, 0.8318119049072266),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ];
        for (b, c, p) in expected {
            assert!(
                (mcnemar(b, c) - p).abs() < 1e-12,
                "{b} {c}: {}",
                mcnemar(b, c)
            );
        }
    }

    /// `statsmodels.stats.multitest.multipletests(p, method="holm")`
    #[test]
    fn holm_agrees_with_statsmodels() {
        let found = holm(&[0.01, 0.04, 0.03, 0.005, 0.9]);
        for (found, expected) in found.into_iter().zip([0.04, 0.09, 0.09, 0.025, 0.9]) {
            assert!((found - expected).abs() < 1e-12);
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn the_verdict_goes_both_ways() {
        let better = pair(60, 20, 100, 120);
        assert_eq!(better.verdict(), Verdict::Better);
        let text = better.sentence();
        assert!(text.starts_with("tuned is better than base: 53.3 % against 40.0 % of whole codes right on the same 300 rows"), "{text}");
        let worse = pair(20, 60, 100, 120);
        assert_eq!(worse.verdict(), Verdict::Worse);
        assert!((worse.difference.value + better.difference.value).abs() < 1e-12);
        assert!(
            worse
                .sentence()
                .starts_with("tuned is worse than base: 40.0 % against 53.3 %")
        );
    }

    #[test]
    fn no_difference_is_not_equality() {
        let text = pair(10, 12, 100, 100).sentence();
        assert!(
            text.starts_with("No difference shown between tuned and base:"),
            "{text}"
        );
        assert!(
            text.ends_with("below about 5.9 points would probably be missed."),
            "{text}"
        );
        let five = pair(5, 0, 0, 0);
        assert_eq!(
            five.verdict(),
            Verdict::NoDifferenceShown,
            "five rows never suffice: {five:?}"
        );
        assert!(pair(0, 0, 0, 0).sentence().contains("cannot be compared"));
        assert_eq!(pair(0, 0, 7, 3).p, 1.0);
    }

    proptest! {
        #[test]
        fn corrected_values_are_no_smaller_and_keep_their_order(p in prop::collection::vec(0.0_f64..1.0, 0..12)) {
            let corrected = holm(&p);
            for i in 0..p.len() {
                prop_assert!(corrected[i] >= p[i] && corrected[i] <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || corrected[i] <= corrected[j]);
                }
            }
        }

        #[test]
        fn mcnemar_is_symmetric_and_a_probability(b in 0_u64..3000, c in 0_u64..3000) {
            let p = mcnemar(b, c);
            prop_assert!((0.0..=1.0).contains(&p) && p == mcnemar(c, b));
        }
    }
}
