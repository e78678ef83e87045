//! Whether two systems differ, in words.
//!
//! Holds comparisons of every pair of systems on the same rows: the difference in accuracy with its bootstrap interval, the exact paired
//! test with Holm's correction, effect sizes, and the sentence that follows from them. It refuses unpaired comparisons.
//! Invariant: a sentence claims a difference only if the corrected test and the interval agree on it.

use super::paired::{self, Effect, holm};
use super::resample::{Estimate, Resampled};
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Error rate of all comparisons of an evaluation together.
pub const ALPHA: f64 = 0.05;

/// A system's rows, right or wrong, in the order that all systems share.
#[derive(Debug, Clone, Copy)]
pub struct Graded<'a> {
    /// The system.
    pub name: &'a str,
    /// Right at the compared level, row by row.
    pub right: &'a [bool],
    /// Its accuracy on these rows and on the resamples that all systems share.
    pub accuracy: &'a Resampled,
}

/// Two systems on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The system in question.
    pub system: String,
    /// What it is compared with.
    pub baseline: String,
    /// Whether the study asks for this comparison; the others are there because all are corrected together.
    pub asked: bool,
    /// The level at which answers are judged.
    pub level: Level,
    /// Rows.
    pub rows: u64,
    /// Groups of near-duplicates among them: what counts as independent.
    pub groups: u64,
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
    /// McNemar's exact test by groups, two-sided.
    pub p: f64,
    /// Its mid-p variant, for readers; no verdict is taken from it.
    pub mid_p: f64,
    /// `p` after Holm's correction over all pairs that were compared together.
    pub p_holm: f64,
    /// Effect sizes.
    pub effect: Effect,
    /// The smallest true difference that so many groups show in four studies of five, at the strictest level of the correction; `None` if
    /// none.
    pub smallest: Option<f64>,
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

/// Compares every two systems once. `asked` names the (system, baseline) that the study asks for, which come first and in that direction;
/// `clusters` the group of each row.
pub fn compare(
    systems: &[Graded],
    asked: &[(&str, &str)],
    level: Level,
    clusters: &[u32],
) -> Vec<Pair> {
    let find = |name: &str| systems.iter().find(|system| system.name == name);
    let asked = asked
        .iter()
        .filter_map(|(system, baseline)| Some((find(system)?, find(baseline)?, true)));
    let all = systems.iter().enumerate().flat_map(|(at, system)| {
        systems[at + 1..]
            .iter()
            .map(move |other| (system, other, false))
    });
    let mut seen = BTreeSet::new();
    let new = |(a, b, _): &(&Graded, &Graded, bool)| {
        a.name != b.name
            && seen.insert((a.name.min(b.name).to_owned(), a.name.max(b.name).to_owned()))
    };
    let pairs: Vec<_> = asked.chain(all).filter(new).collect();
    let strictest = ALPHA / pairs.len().max(1) as f64;
    let mut compared: Vec<Pair> = pairs
        .into_iter()
        .map(|(system, baseline, asked)| Pair {
            asked,
            ..compare_two(system, baseline, level, clusters, strictest)
        })
        .collect();
    let corrected = holm(&compared.iter().map(|pair| pair.p).collect::<Vec<_>>());
    for (pair, p) in compared.iter_mut().zip(corrected) {
        pair.p_holm = p;
    }
    compared
}

fn compare_two(
    system: &Graded,
    baseline: &Graded,
    level: Level,
    clusters: &[u32],
    alpha: f64,
) -> Pair {
    let count = |wanted: fn(bool, bool) -> bool| {
        let rows = system.right.iter().zip(baseline.right);
        rows.filter(|&(&a, &b)| wanted(a, b)).count() as u64
    };
    let rows = system.right.len() as u64;
    let share = |n: u64| n as f64 / rows.max(1) as f64;
    let (only_system, only_baseline) = (count(|a, b| a && !b), count(|a, b| !a && b));
    let leads = paired::leads(system.right, baseline.right, clusters);
    let groups = leads.len() as u64;
    let test = paired::test(leads);
    Pair {
        system: system.name.to_owned(),
        baseline: baseline.name.to_owned(),
        asked: false,
        level,
        rows,
        groups,
        system_accuracy: share(count(|a, _| a)),
        baseline_accuracy: share(count(|_, b| b)),
        difference: system.accuracy.minus(baseline.accuracy).percentile(),
        only_system,
        only_baseline,
        p: test.p,
        mid_p: test.mid_p,
        p_holm: test.p,
        effect: paired::effect(only_system, only_baseline),
        smallest: paired::smallest_difference(groups, share(only_system + only_baseline), alpha),
    }
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
                let missed = self.smallest.map_or(
                    "no difference, however large, could have been shown".to_owned(),
                    |smallest| {
                        format!(
                            "a true difference below about {:.1} points would probably be missed",
                            points(smallest)
                        )
                    },
                );
                format!(
                    "No difference shown between {system} and {baseline}: {numbers}. With so many rows, {missed}."
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
    use super::super::resample::Resampler;
    use super::*;

    fn pair(only_system: usize, only_baseline: usize, both: usize, neither: usize) -> Pair {
        let rows = |a: bool, b: bool, n: usize| std::iter::repeat_n((a, b), n);
        let (system, baseline): (Vec<bool>, Vec<bool>) = rows(true, false, only_system)
            .chain(rows(false, true, only_baseline))
            .chain(rows(true, true, both))
            .chain(rows(false, false, neither))
            .unzip();
        let clusters: Vec<u32> = (0..system.len() as u32).collect();
        let resampler = Resampler::new(&clusters, 42, 2000);
        let drawn = [&system, &baseline].map(|right| resampler.share(right));
        let graded = [
            ("tuned", &system, &drawn[0]),
            ("base", &baseline, &drawn[1]),
        ]
        .map(|(name, right, accuracy)| Graded {
            name,
            right,
            accuracy,
        });
        compare(&graded, &[("tuned", "base")], Level::Code, &clusters).remove(0)
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
            text.ends_with("below about 6.1 points would probably be missed."),
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

    #[test]
    fn every_pair_is_compared_once_and_the_asked_ones_first() {
        let right = [
            [true, false, true],
            [false, false, true],
            [true, true, true],
        ];
        let resampler = Resampler::new(&[0, 1, 2], 1, 50);
        let drawn = right.map(|right| resampler.share(&right));
        let systems: Vec<Graded> = ["a", "b", "c"]
            .into_iter()
            .enumerate()
            .map(|(at, name)| Graded {
                name,
                right: &right[at],
                accuracy: &drawn[at],
            })
            .collect();
        let asked = [("c", "a"), ("a", "c"), ("c", "nobody")];
        let found = compare(&systems, &asked, Level::Code, &[0, 1, 2]);
        let names: Vec<(&str, &str, bool)> = found
            .iter()
            .map(|p| (p.system.as_str(), p.baseline.as_str(), p.asked))
            .collect();
        assert_eq!(
            names,
            [("c", "a", true), ("a", "b", false), ("b", "c", false)]
        );
    }
}
