//! Measures and tests against scikit-learn, SciPy, statsmodels and HiClass on 200 random label sets (`fixtures/evaluation.py`).
#![allow(clippy::unwrap_used)]

use medft_dsl::plan::Level;
use medft_engine::data::icd10::CodeTree;
use medft_engine::evaluate::answer;
use medft_engine::evaluate::calibration::{
    self, Ranked, calibration_error, mrr, reliability, risk_area, risk_coverage, temperature, top,
};
use medft_engine::evaluate::groups::wilson;
use medft_engine::evaluate::metrics::{Averages, Judged, judge, measure};
use medft_engine::evaluate::paired::{effect, holm, leads, power, test};
use medft_engine::evaluate::resample::Resampler;
use serde::Deserialize;

const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Fixture {
    codes: Vec<String>,
    sets: Vec<Set>,
    /// Corrected p-values of ten sets each.
    holm: Vec<Vec<f64>>,
    /// Rows, disagreement, difference, alpha, power.
    power: Vec<(u64, f64, f64, f64, f64)>,
}

#[derive(Deserialize)]
struct Set {
    gold: Vec<usize>,
    /// Of two systems.
    answers: [Vec<Option<usize>>; 2],
    numbers: Vec<f64>,
    wilson: [f64; 2],
    test: [f64; 2],
    effect: (f64, Option<f64>, Option<f64>, Option<f64>),
    leads: Vec<i64>,
    leads_test: [f64; 2],
    weights: Vec<Vec<f64>>,
    classes: Vec<usize>,
    ranked: Vec<f64>,
    bins: [Vec<f64>; 2],
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/evaluation.json")).unwrap()
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = TOLERANCE * expected.abs().max(1.0);
        assert!(
            (found - expected).abs() <= bound,
            "{what}, number {at}: {found} is not {expected}"
        );
    }
}

impl Fixture {
    fn judged(&self, set: &Set, system: usize) -> Vec<Judged> {
        let tree = CodeTree::shipped();
        let rows = set.gold.iter().zip(&set.answers[system]);
        rows.map(|(gold, answered)| {
            let written = answered.map_or("I do not know", |code| &self.codes[code]);
            let outcome = answer::read(written, Level::Code, tree);
            judge(tree, &self.codes[*gold], &outcome, Level::Code)
        })
        .collect()
    }

    fn right(&self, set: &Set, system: usize) -> Vec<bool> {
        let judged = self.judged(set, system);
        judged.iter().map(|row| row.right(Level::Code)).collect()
    }
}

#[test]
fn measures_equal_scikit_learn_and_hiclass() {
    let fixture = fixture();
    assert_eq!(fixture.sets.len(), 200);
    for (at, set) in fixture.sets.iter().enumerate() {
        let rows = fixture.judged(set, 0);
        let clusters: Vec<u32> = (0..rows.len() as u32).collect();
        let found = measure(&rows, Level::Code, &Resampler::new(&clusters, 1, 0)).metrics;
        let values = |of: &Averages| [of.precision, of.recall, of.f1].map(|e| e.value);
        let mut numbers = Vec::new();
        for level in &found.levels {
            numbers.push(level.accuracy.value);
            for average in [&level.macro_average, &level.micro, &level.weighted] {
                numbers.extend(values(average));
            }
        }
        numbers.extend(values(&found.hierarchical));
        near(&numbers, &set.numbers, &format!("set {at}"));
        let wrong: u64 = found.errors.iter().map(|e| e.rows).sum();
        let right = rows.iter().filter(|row| row.right(Level::Code)).count() as u64;
        assert_eq!(wrong + right, found.rows, "every error has one kind");
        let interval = wilson(right, found.rows);
        near(
            &[interval.low, interval.high],
            &set.wilson,
            &format!("Wilson, set {at}"),
        );
    }
}

#[test]
fn paired_tests_and_effects_equal_statsmodels_and_scipy() {
    let fixture = fixture();
    let mut p = Vec::new();
    for (at, set) in fixture.sets.iter().enumerate() {
        let (a, b) = (fixture.right(set, 0), fixture.right(set, 1));
        let clusters: Vec<u32> = (0..a.len() as u32).collect();
        let found = test(leads(&a, &b, &clusters));
        near(
            &[found.p, found.mid_p],
            &set.test,
            &format!("McNemar, set {at}"),
        );
        p.push(found.p);
        let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count();
        let found = effect(only(&a, &b) as u64, only(&b, &a) as u64);
        let (g, odds, low, high) = set.effect;
        near(&[found.cohens_g], &[g], &format!("Cohen's g, set {at}"));
        for (found, expected) in [
            (found.odds_ratio, odds),
            (found.odds_low, low),
            (found.odds_high, high),
        ] {
            assert_eq!(found.is_some(), expected.is_some(), "odds of set {at}");
            let (found, expected) = (found.unwrap_or(0.0), expected.unwrap_or(0.0));
            near(&[found], &[expected], &format!("odds, set {at}"));
        }
        let found = test(set.leads.iter().copied());
        let what = format!("test by groups, set {at}: {:?}", set.leads);
        near(&[found.p, found.mid_p], &set.leads_test, &what);
    }
    for (p, expected) in p.chunks(10).zip(&fixture.holm) {
        near(&holm(p), expected, "Holm");
    }
}

#[test]
fn power_is_that_of_the_exact_test() {
    for (rows, disagreement, difference, alpha, expected) in fixture().power {
        let what = format!("{rows} rows, {disagreement}, {difference}");
        near(
            &[power(rows, disagreement, difference, alpha)],
            &[expected],
            &what,
        );
    }
}

#[test]
fn probabilities_are_judged_as_scikit_learn_does() {
    for (at, set) in fixture().sets.iter().enumerate() {
        let row = |(weights, gold): (&Vec<f64>, &usize)| {
            let whole: f64 = weights.iter().sum();
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            Ranked {
                probabilities: order.iter().map(|class| weights[*class] / whole).collect(),
                gold: order.iter().position(|class| class == gold),
            }
        };
        let rows: Vec<Ranked> = set.weights.iter().zip(&set.classes).map(row).collect();
        let bins = reliability(&rows);
        let mut found = [1, 3, 5].map(|k| top(&rows, k)).to_vec();
        found.extend([mrr(&rows), calibration_error(&bins)]);
        found.extend([
            risk_area(&risk_coverage(&rows)),
            temperature(&rows).unwrap(),
        ]);
        near(&found, &set.ranked, &format!("set {at}"));
        let column = |of: fn(&calibration::Bin) -> f64| bins.iter().map(of).collect::<Vec<_>>();
        near(
            &column(|b| b.accuracy),
            &set.bins[0],
            &format!("reliability, set {at}"),
        );
        near(
            &column(|b| b.confidence),
            &set.bins[1],
            &format!("reliability, set {at}"),
        );
    }
}
