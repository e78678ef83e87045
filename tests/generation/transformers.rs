//! Greedy answers and scores against Transformers: ../shared/golden in float64, and SmolLM2 in float32.

use crate::references::{Fixtures, families};
use crate::setup::{answers, greedy, load};
use medft_engine::backend::cpu::Cpu;
use medft_engine::generate::engine::Finish;
use medft_engine::generate::score::score;
use medft_engine::model::adapter;
use medft_engine::text::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};

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
        let alone = answers(
            &decoder,
            None,
            &settings,
            &[],
            std::slice::from_ref(&prompt),
        );
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

/// The real model that tools/make_smollm2.py makes.
fn smollm2() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let given = std::env::var_os("MEDFT_MODELS").map(PathBuf::from);
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
