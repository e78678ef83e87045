//! Decoding and scoring against Transformers (../shared/golden, tests/fixtures), and one row against many.
#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod references;
mod support;

use medft_dsl::plan::{Decode, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::generate::GenerateError;
use medft_engine::generate::engine::{Answer, Finish, Generator, Request};
use medft_engine::generate::sampler::{Sampler, Stream, softmax};
use medft_engine::generate::score::score;
use medft_engine::model::adapter;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained};
use medft_engine::text::tokenizer::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use references::{Fixtures, families};
use statrs::distribution::{ChiSquared, ContinuousCDF};
use std::collections::BTreeSet;
use std::path::Path;
use support::tiny_model;

fn greedy(max_new: u64) -> Decode {
    Decode {
        sample: false,
        max_new,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        seed: 42,
    }
}

fn load(dir: &Path) -> Decoder<Cpu> {
    Decoder::load(Cpu, dir, Precision::F32, true).unwrap()
}

/// Answers prompts that are rows 0, 1, 2 ... together.
fn answers(
    decoder: &Decoder<Cpu>,
    trained: Option<&Trained<Cpu>>,
    settings: &Decode,
    ends: &[u32],
    prompts: &[Vec<u32>],
) -> Vec<Answer> {
    let end_ids: BTreeSet<u32> = ends.iter().copied().collect();
    let generator = Generator {
        decoder,
        trained,
        settings,
        end_ids: &end_ids,
    };
    let requests: Vec<Request> = (0..)
        .zip(prompts)
        .map(|(row, prompt)| Request { row, prompt })
        .collect();
    generator.answer(&requests).unwrap()
}

fn ids(answers: &[Answer]) -> Vec<&[u32]> {
    answers.iter().map(|a| a.ids.as_slice()).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0
}

#[test]
fn greedy_decoding_of_every_family_equals_transformers_alone_and_in_a_batch() {
    for (family, dir) in families() {
        let fixtures = Fixtures::read(&dir.join("fixtures.safetensors"));
        let decoder = load(&dir);
        let row = |name: &str| -> Vec<u32> {
            let ids = fixtures.i64_rows(name).concat();
            ids.into_iter().map(|i| u32::try_from(i).unwrap()).collect()
        };
        let (prompt, want) = (row("greedy.prompt_ids"), row("greedy.output_ids"));
        // The output may repeat its prompt, as `generate` returns it.
        let want = want.strip_prefix(prompt.as_slice()).unwrap_or(&want);
        let settings = greedy(want.len() as u64);
        let alone = answers(&decoder, None, &settings, &[], &[prompt.clone()]);
        assert_eq!(alone[0].ids, want, "{family}");
        assert_eq!(alone[0].finish, Finish::Length);

        let mut prompts = fixtures.sequences("left.input_ids", "left.attention_mask");
        let masks = fixtures.i64_rows("attention_mask");
        let logits = fixtures.f32_rows("base.logits");
        let firsts: Vec<u32> = prompts
            .iter()
            .zip(0..)
            .map(|(ids, b)| argmax(&logits[b * masks[0].len() + ids.len() - 1]))
            .collect();
        prompts.insert(1, prompt);
        let batch = answers(&decoder, None, &settings, &[], &prompts);
        assert_eq!(batch[1].ids, want, "{family} in a batch");
        assert_eq!([batch[0].ids[0], batch[2].ids[0]], firsts[..], "{family}");
    }
}

#[test]
fn scores_equal_the_log_softmax_of_the_golden_logits() {
    for (family, dir) in families() {
        let fixtures = Fixtures::read(&dir.join("fixtures.safetensors"));
        let decoder = load(&dir);
        let adapter = adapter::read(&Cpu, &decoder.config, &dir.join("adapter")).unwrap();
        let sequences = fixtures.sequences("input_ids", "attention_mask");
        let width = fixtures.i64_rows("input_ids")[0].len();
        for (which, trained) in [("base", None), ("lora", Some(&adapter))] {
            let logits = fixtures.f32_rows(&format!("{which}.logits"));
            let scores = score(&decoder, trained, &sequences).unwrap();
            let mut worst = 0.0f64;
            for (b, scored) in scores.iter().enumerate() {
                assert_eq!(scored.ids, sequences[b]);
                assert_eq!(scored.logprobs.len(), scored.ids.len() - 1);
                for (t, got) in scored.logprobs.iter().enumerate() {
                    let row = &logits[b * width + t];
                    let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                    let next = scored.ids[t + 1] as usize;
                    let want = f64::from(row[next]) - sum.ln();
                    worst = worst.max((f64::from(*got) - want).abs());
                }
                let mean = scored.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>()
                    / scored.logprobs.len() as f64;
                assert!((scored.nll + mean).abs() < 1e-12);
                assert!((scored.perplexity.ln() - scored.nll).abs() < 1e-12);
            }
            println!("{family} {which}: log-probabilities off by {worst:.1e} at most");
            assert!(worst < 5e-5, "{family} {which}: {worst:e}");
        }
    }
}

/// Prompts of 1 to 30 tokens for the tiny model.
fn prompts(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let len = rng.random_range(1..31);
            (0..len).map(|_| rng.random_range(0..37)).collect()
        })
        .collect()
}

fn sampling() -> Decode {
    Decode {
        sample: true,
        temperature: 1.3,
        top_p: 0.9,
        top_k: 20,
        repetition_penalty: 1.1,
        ..greedy(20)
    }
}

#[test]
fn a_batch_of_unequal_lengths_answers_as_its_rows_alone() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let shape = LoraShape {
        rank: 3,
        alpha: 6.0,
        rank_stabilized: false,
        targets: medft_dsl::plan::Linear::ALL.to_vec(),
    };
    let mut adapter = Trained::new_lora(&Cpu, &decoder.config, shape, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for value in &mut adapter.values {
        *value += rng.random_range(-0.2..0.2);
    }
    let mut prompts = prompts(12, 6);
    prompts[3].truncate(1);
    for (settings, trained) in [
        (greedy(20), None),
        (greedy(20), Some(&adapter)),
        (sampling(), None),
        (sampling(), Some(&adapter)),
    ] {
        // Several end tokens, so that rows leave the batch at different steps.
        let ends = [2, 5, 9];
        let together = answers(&decoder, trained, &settings, &ends, &prompts);
        let end_ids = BTreeSet::from(ends);
        let generator = Generator {
            decoder: &decoder,
            trained,
            settings: &settings,
            end_ids: &end_ids,
        };
        for ((row, prompt), want) in (0..).zip(&prompts).zip(&together) {
            let alone = &generator.answer(&[Request { row, prompt }]).unwrap()[0];
            assert_eq!(
                (&alone.ids, alone.finish),
                (&want.ids, want.finish),
                "row {row}"
            );
        }
        let lengths: BTreeSet<usize> = together.iter().map(|a| a.ids.len()).collect();
        assert!(lengths.len() > 2, "all rows ended together: {lengths:?}");
    }
}

#[test]
fn an_answer_is_its_rows_and_seeds_own() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let same = vec![prompts(1, 8).remove(0); 6];
    let settings = sampling();
    let first = answers(&decoder, None, &settings, &[], &same);
    let again = answers(&decoder, None, &settings, &[], &same);
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(ids(&first).into_iter().collect::<BTreeSet<_>>().len(), 6);
    let other = Decode {
        seed: 43,
        ..settings
    };
    assert_ne!(
        ids(&first),
        ids(&answers(&decoder, None, &other, &[], &same))
    );
}

#[test]
fn an_answer_stops_at_any_of_the_end_tokens() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let prompts = prompts(1, 9);
    let free = answers(&decoder, None, &greedy(12), &[], &prompts);
    assert_eq!((free[0].ids.len(), free[0].finish), (12, Finish::Length));
    for at in [0, 1, 5, 11] {
        let end = free[0].ids[at];
        let first = free[0].ids.iter().position(|id| *id == end).unwrap();
        // Two more, which do not come: neither position in the list nor company matters.
        let never = (0..37).filter(|id| !free[0].ids.contains(id));
        let mut ends: Vec<u32> = never.take(2).collect();
        ends.insert(at % 3, end);
        let stopped = answers(&decoder, None, &greedy(12), &ends, &prompts);
        assert_eq!(stopped[0].ids, free[0].ids[..=first]);
        assert_eq!(stopped[0].finish, Finish::Stop);
    }
    for max_new in [0, 1, 2] {
        let short = answers(&decoder, None, &greedy(max_new), &[], &prompts);
        assert_eq!(
            short[0].ids,
            free[0].ids[..usize::try_from(max_new).unwrap()]
        );
        assert_eq!(short[0].finish, Finish::Length);
    }
}

#[test]
fn more_prompts_than_one_pass_holds_are_answered_alike() {
    // 1,024 tokens are read at once; 60 prompts of the tiny model's 128 positions are several passes.
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let prompts: Vec<Vec<u32>> = (0..60)
        .map(|i| (0..20 + i).map(|_| rng.random_range(0..37)).collect())
        .collect();
    let together = answers(&decoder, None, &greedy(3), &[], &prompts);
    for (prompt, want) in prompts.iter().zip(&together).step_by(7) {
        let alone = answers(
            &decoder,
            None,
            &greedy(3),
            &[],
            std::slice::from_ref(prompt),
        );
        assert_eq!(alone[0].ids, want.ids);
    }
    let scores = score(&decoder, None, &prompts).unwrap();
    for (prompt, want) in prompts.iter().zip(&scores).step_by(7) {
        let alone = score(&decoder, None, std::slice::from_ref(prompt)).unwrap();
        assert_eq!(alone[0], *want);
    }
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_row() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let error = |sequences: &[Vec<u32>]| score(&decoder, None, sequences).unwrap_err();
    assert!(matches!(
        error(&[vec![1], vec![]]),
        GenerateError::Empty { row: 1 }
    ));
    let unknown = error(&[vec![1, 36], vec![1], vec![0, 37]]);
    assert!(matches!(
        unknown,
        GenerateError::Token {
            row: 2,
            id: 37,
            vocab: 37
        }
    ));
    let single = score(&decoder, None, &[vec![7]]).unwrap();
    assert_eq!((single[0].logprobs.len(), single[0].perplexity), (0, 1.0));
    assert_eq!(score(&decoder, None, &[]).unwrap(), []);
    assert_eq!(answers(&decoder, None, &greedy(3), &[], &[]), []);
}

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
    let Some(dir) = support::shared("golden") else {
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
            ..greedy(1)
        };
        let mut sampler = Sampler::new(&settings);
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
                    seed: 7,
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
        Sampler::new(&settings).filter(&mut logits, seen);
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

/// The real model that tools/make_smollm2.py makes.
fn smollm2() -> Option<std::path::PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("MEDFT_MODELS").map(std::path::PathBuf::from);
    let places = [
        given,
        Some(root.join("../models")),
        Some(root.join("models")),
    ];
    let found = places
        .into_iter()
        .flatten()
        .map(|place| place.join("SmolLM2-135M-Instruct"))
        .find(|dir| dir.join("config.json").is_file());
    if found.is_none() {
        eprintln!("skipped: no SmolLM2-135M-Instruct in $MEDFT_MODELS, ../models or models");
    }
    found
}

#[derive(serde::Deserialize)]
struct Reference {
    max_new: u64,
    cases: Vec<Case>,
}

/// What benches/peers/reference_greedy.py writes of a prompt.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    input_ids: Vec<u32>,
    new_ids: Vec<u32>,
    text: String,
    least_gap: f64,
}

#[test]
fn smollm2_says_greedily_what_it_says_in_transformers() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2_greedy.json");
    let (Some(dir), true) = (smollm2(), fixture.is_file()) else {
        eprintln!("skipped: needs the model and {}", fixture.display());
        return;
    };
    let reference: Reference = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let (decoder, tokenizer) = (load(&dir), Tokenizer::load(&dir).unwrap());
    let ends: Vec<u32> = tokenizer.end_ids().iter().copied().collect();
    let prompts: Vec<Vec<u32>> = reference
        .cases
        .iter()
        .map(|c| c.input_ids.clone())
        .collect();
    let got = answers(&decoder, None, &greedy(reference.max_new), &ends, &prompts);
    for (case, got) in reference.cases.iter().zip(&got) {
        let (name, gap) = (&case.name, case.least_gap);
        assert_eq!(
            got.ids, case.new_ids,
            "{name}: least gap of two logits {gap}"
        );
        assert_eq!(
            tokenizer.decode(&got.ids, true).unwrap(),
            case.text,
            "{name}"
        );
    }
}
