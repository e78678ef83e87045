//! A whole evaluation of 10,000 rows and six models with two rules: reading, measures with 10,000 resamples, all pairs, groups.
//! At most 60 s on two cores: `cargo bench --bench evaluate`. Prints seconds and the most memory in use.
#![allow(clippy::print_stdout, missing_docs)]

use medft_dsl::plan::Level;
use medft_engine::data::icd10::{CodeId, CodeTree};
use medft_engine::evaluate::answer;
use medft_engine::evaluate::confusion::Confusion;
use medft_engine::evaluate::groups::groups;
use medft_engine::evaluate::metrics::{Judged, Measured, judge, measure};
use medft_engine::evaluate::resample::{RESAMPLES, Resampler};
use medft_engine::evaluate::statistics::{Graded, compare};
use medft_engine::machine;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Instant;

const ROWS: u32 = 10_000;
const SYSTEMS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "majority", "look-up"];

fn main() {
    let tree = CodeTree::shipped();
    let billable: Vec<CodeId> = tree.ids().filter(|&id| tree.billable(id)).collect();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    // MedSynth has about 2,000 codes.
    let pool: Vec<&str> = (0..2000)
        .map(|_| tree.code(billable[random.random_range(0..billable.len())]))
        .collect();
    let any = |random: &mut ChaCha8Rng| pool[random.random_range(0..pool.len())];
    let gold: Vec<&str> = (0..ROWS).map(|_| any(&mut random)).collect();
    let began = Instant::now();
    // A twentieth of the rows have a near-duplicate.
    let clusters: Vec<u32> = (0..ROWS)
        .map(|row| if row % 20 == 1 { row - 1 } else { row })
        .collect();
    let resampler = Resampler::new(&clusters, 42, RESAMPLES);
    let systems: Vec<(Vec<Judged>, Measured)> = (0..SYSTEMS.len())
        .map(|at| {
            let judged: Vec<Judged> = gold
                .iter()
                .map(|gold| {
                    let right = random.random_bool(0.2 + 0.02 * at as f64);
                    let answer = if right { gold } else { any(&mut random) };
                    let outcome = answer::read(&format!("ICD-10-CM: {answer}."), Level::Code, tree);
                    judge(tree, gold, &outcome, Level::Code)
                })
                .collect();
            let measured = measure(&judged, Level::Code, &resampler);
            let _ = (
                groups(&judged, Level::Code, &vec![3; judged.len()]),
                Confusion::of(&judged, Level::Chapter),
            );
            (judged, measured)
        })
        .collect();
    println!("measures: {:.1} s", began.elapsed().as_secs_f64());
    let right: Vec<Vec<bool>> = systems
        .iter()
        .map(|(judged, _)| judged.iter().map(|row| row.right(Level::Code)).collect())
        .collect();
    let graded: Vec<Graded> = SYSTEMS
        .iter()
        .zip(right.iter().zip(&systems))
        .map(|(name, (right, (_, measured)))| Graded {
            name,
            right,
            accuracy: &measured.accuracy,
        })
        .collect();
    let pairs = compare(&graded, &[], Level::Code, &clusters);
    println!(
        "{} pairs; in all {:.1} s, {} MiB at most",
        pairs.len(),
        began.elapsed().as_secs_f64(),
        machine::peak_memory().unwrap_or(0) >> 20
    );
}
