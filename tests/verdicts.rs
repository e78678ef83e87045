//! Verdicts on simulated studies: how often they claim what is not so, and how often they show what is.
#![allow(clippy::unwrap_used)]

use medft_dsl::plan::Level;
use medft_engine::evaluate::paired::power;
use medft_engine::evaluate::resample::{Resampled, Resampler};
use medft_engine::evaluate::statistics::{Graded, Pair, Verdict, compare};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

const SIMULATIONS: u64 = 2000;
const ROWS: usize = 200;
/// A study uses 10,000. Fewer leave the test's level as it is: a claim needs the exact test as well.
const RESAMPLES: u64 = 200;

/// All pairs of systems that answered the same rows.
fn study(right: &[Vec<bool>], clusters: &[u32], seed: u64) -> Vec<Pair> {
    let resampler = Resampler::new(clusters, seed, RESAMPLES);
    let drawn: Vec<Resampled> = right.iter().map(|right| resampler.share(right)).collect();
    let names = ["a", "b", "c", "d"];
    let systems: Vec<Graded> = right
        .iter()
        .zip(&drawn)
        .zip(names)
        .map(|((right, accuracy), name)| Graded {
            name,
            right,
            accuracy,
        })
        .collect();
    compare(&systems, &[], Level::Code, clusters)
}

/// How many of the simulated studies hold a claim.
fn claims(simulate: impl Fn(&mut ChaCha8Rng) -> Vec<Pair> + Sync, claim: fn(&Pair) -> bool) -> u64 {
    (0..SIMULATIONS)
        .into_par_iter()
        .filter(|&seed| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            simulate(&mut random).iter().any(claim)
        })
        .count() as u64
}

fn any(pair: &Pair) -> bool {
    pair.verdict() != Verdict::NoDifferenceShown
}

/// Each row has its difficulty, which all systems share; each group of four copies has one, too.
fn rows(random: &mut ChaCha8Rng, copies: usize, chances: &[f64]) -> Vec<Vec<bool>> {
    let mut right = vec![Vec::new(); chances.len()];
    for _ in 0..ROWS / copies {
        let easy: f64 = random.random_range(-0.3..0.3);
        for (system, chance) in right.iter_mut().zip(chances) {
            let answer = random.random_bool((chance + easy).clamp(0.0, 1.0));
            system.extend(std::iter::repeat_n(answer, copies));
        }
    }
    right
}

/// At most 5 %: with 2,000 simulations of a test at exactly its level, more than 120 would come up once in a hundred times; ours is below it.
#[test]
fn equal_systems_are_told_apart_in_at_most_one_study_of_twenty() {
    let each: Vec<u32> = (0..ROWS as u32).collect();
    let fours: Vec<u32> = (0..ROWS as u32).map(|row| row / 4).collect();
    for (what, copies, clusters, chances) in [
        ("two systems", 1, &each, &[0.4, 0.4][..]),
        ("four systems, six pairs", 1, &each, &[0.4; 4][..]),
        ("rare successes", 1, &each, &[0.02, 0.02][..]),
        ("copied rows", 4, &fours, &[0.4, 0.4][..]),
    ] {
        let found = claims(
            |random| study(&rows(random, copies, chances), clusters, random.random()),
            any,
        );
        assert!(found <= SIMULATIONS / 20, "{what}: {found} false claims");
    }
}

/// Why groups matter: the same copies, taken for single rows, fool the test far too often.
#[test]
fn copies_taken_for_rows_would_fool_the_test() {
    let each: Vec<u32> = (0..ROWS as u32).collect();
    let found = claims(
        |random| study(&rows(random, 4, &[0.4, 0.4]), &each, random.random()),
        any,
    );
    assert!(found > SIMULATIONS / 10, "{found}");
}

/// The share of studies that show a true difference is the computed power, in both directions.
#[test]
fn power_is_as_computed() {
    let clusters: Vec<u32> = (0..ROWS as u32).collect();
    let disagreement = 0.3;
    for difference in [0.08, 0.12, 0.16] {
        let chance = power(ROWS as u64, disagreement, difference, 0.05);
        for better in [true, false] {
            let simulate = |random: &mut ChaCha8Rng| {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                for _ in 0..ROWS {
                    let drawn: f64 = random.random();
                    let won = drawn < 0.5 * (disagreement + difference);
                    let lost = !won && drawn < disagreement;
                    let both = random.random_bool(0.4);
                    a.push(won || !lost && both);
                    b.push(lost || !won && both);
                }
                let seed = random.random();
                study(&if better { [a, b] } else { [b, a] }, &clusters, seed)
            };
            let wanted: fn(&Pair) -> bool = if better {
                |pair| pair.verdict() == Verdict::Better
            } else {
                |pair| pair.verdict() == Verdict::Worse
            };
            let share = claims(simulate, wanted) as f64 / SIMULATIONS as f64;
            // Four standard errors of 2,000 simulations.
            let bound = 4.0 * (chance * (1.0 - chance) / SIMULATIONS as f64).sqrt();
            assert!(
                (share - chance).abs() < bound,
                "{difference}: {share} of the studies show it, computed {chance}"
            );
        }
    }
}
