//! Frequencies of drawn tokens against their probabilities.

use crate::references::Fixtures;
use crate::setup::{answers, greedy, load, prompts, sampling};
use crate::support::{shared, tiny_model};
use medft_dsl::plan::Decode;
use medft_engine::backend::cpu::sampler::{Sampler, softmax};
use medft_engine::backend::{Sampling, Stream};
use medft_engine::generate::score::score;
use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Pearson's test of counts against probabilities; cells that expect fewer than 5 draws are one.
fn p_value(counts: &[u64], probabilities: &[f64]) -> f64 {
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut statistic, mut cells, mut rare) = (0.0, 0u32, (0.0, 0.0));
    for (count, p) in counts.iter().zip(probabilities) {
        let (got, want) = (*count as f64, p * draws);
        assert!(*p > 0.0 || *count == 0, "a removed token was drawn");
        if want < 5.0 {
            rare = (rare.0 + got, rare.1 + want);
        } else {
            statistic += (got - want).powi(2) / want;
            cells += 1;
        }
    }
    if rare.1 >= 1.0 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1;
    }
    if cells < 2 {
        return 1.0;
    }
    1.0 - ChiSquared::new(f64::from(cells - 1))
        .unwrap()
        .cdf(statistic)
}

/// Below this the hypothesis that frequencies follow the probabilities is given up. Seeds are fixed: no chance is left in the test.
const LEVEL: f64 = 1e-3;

#[test]
fn draws_follow_the_golden_probabilities() {
    let Some(dir) = shared("golden") else {
        return;
    };
    let fixtures = Fixtures::read(&dir.join("sampling.safetensors"));
    let text = std::fs::read_to_string(dir.join("sampling.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (logits, contexts) = (
        fixtures.f32_rows("logits"),
        fixtures.i64_rows("context_ids"),
    );
    for (name, case) in cases["cases"].as_object().unwrap() {
        let number = |field: &str, default| case[field].as_f64().unwrap_or(default);
        let settings = Decode {
            sample: true,
            temperature: number("temperature", 1.0),
            top_p: number("top_p", 1.0),
            top_k: case["top_k"].as_u64().unwrap_or(0),
            repetition_penalty: number("repetition_penalty", 1.0),
            seed: 7,
            ..greedy(1)
        };
        let mut sampler = Sampler::new(&Sampling::from(&settings));
        for (row, probs) in fixtures
            .f32_rows(&format!("{name}.probs"))
            .iter()
            .enumerate()
        {
            let seen: Vec<u32> = contexts[row]
                .iter()
                .map(|i| u32::try_from(*i).unwrap())
                .collect();
            let mut counts = vec![0; probs.len()];
            for draw in 0..20_000 {
                let stream = Stream {
                    row: draw,
                    position: 3,
                };
                let token = sampler
                    .choose(&mut logits[row].clone(), &seen, stream)
                    .unwrap();
                counts[token as usize] += 1;
            }
            let probs: Vec<f64> = probs.iter().map(|p| f64::from(*p)).collect();
            let p = p_value(&counts, &probs);
            assert!(p > LEVEL, "{name}, row {row}: p = {p:e}");
        }
    }
}

#[test]
fn rows_of_a_batch_are_drawn_from_the_models_own_distribution() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    // No penalty: it would tell logits from log-probabilities, which differ by a constant.
    let settings = Decode {
        repetition_penalty: 1.0,
        max_new: 2,
        ..sampling()
    };
    let distribution = |seen: &[u32]| -> Vec<f64> {
        let next: Vec<Vec<u32>> = (0..37).map(|id| [seen, &[id]].concat()).collect();
        let scores = score(&decoder, None, &next).unwrap();
        let mut logits: Vec<f32> = scores.iter().map(|s| *s.logprobs.last().unwrap()).collect();
        Sampler::new(&Sampling::from(&settings)).filter(&mut logits, seen);
        softmax(&mut logits);
        logits.into_iter().map(f64::from).collect()
    };
    let prompt = prompts(1, 9).remove(0);
    let rows = answers(&decoder, None, &settings, &[], &vec![prompt.clone(); 4000]);
    let count = |tokens: &mut dyn Iterator<Item = u32>| {
        let mut counts = [0; 37];
        tokens.for_each(|id| counts[id as usize] += 1);
        counts
    };
    let firsts = count(&mut rows.iter().map(|a| a.ids[0]));
    let p = p_value(&firsts, &distribution(&prompt));
    assert!(p > LEVEL, "first tokens: p = {p:e}");

    let commonest = (0..37).max_by_key(|id| firsts[*id as usize]).unwrap();
    let after = rows.iter().filter(|a| a.ids[0] == commonest);
    let seconds = count(&mut after.map(|a| a.ids[1]));
    let p = p_value(&seconds, &distribution(&[prompt, vec![commonest]].concat()));
    assert!(p > LEVEL, "second tokens: p = {p:e}");
}
