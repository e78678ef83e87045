//! Damaged model files: an error sentence with the file's name, never a panic.
//!
//! `PROPTEST_CASES=20000 cargo test --release --test damaged_models` is the long run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod support;

use medft_dsl::plan::Precision;
use medft_engine::backend::cpu::Cpu;
use medft_engine::model::adapter;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained};
use proptest::prelude::*;
use std::path::Path;
use support::{TINY, tiny_model, weights};

/// What happens to a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: usize, to: u8 },
    Cut { at: usize },
    Insert { at: usize, text: String },
    Remove { at: usize, count: usize },
}

fn damage(within: usize) -> impl Strategy<Value = Vec<Damage>> {
    let words = prop::sample::select(vec![
        "-1",
        "0",
        "null",
        "1e400",
        "18446744073709551615",
        "\"x\"",
        "[]",
        "{}",
        ",",
        "NaN",
        "true",
        "9",
        "\u{0}",
        "9999999999",
    ]);
    let one = prop_oneof![
        (0..within, any::<u8>()).prop_map(|(at, to)| Damage::Flip { at, to }),
        (0..within).prop_map(|at| Damage::Cut { at }),
        (0..within, words).prop_map(|(at, text)| Damage::Insert {
            at,
            text: text.to_string()
        }),
        (0..within, 1..40usize).prop_map(|(at, count)| Damage::Remove { at, count }),
    ];
    prop::collection::vec(one, 1..4)
}

fn apply(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        match damage {
            Damage::Flip { at, to } if *at < bytes.len() => bytes[*at] = *to,
            Damage::Cut { at } => bytes.truncate(*at),
            Damage::Insert { at, text } if *at <= bytes.len() => {
                bytes.splice(at..at, text.bytes());
            }
            Damage::Remove { at, count } if *at < bytes.len() => {
                let end = (at + count).min(bytes.len());
                bytes.drain(*at..end);
            }
            _ => {}
        }
    }
    bytes
}

fn load(dir: &Path) -> Result<(), String> {
    Decoder::load(Cpu, dir, Precision::F32, true)
        .map(drop)
        .map_err(|e| e.to_string())
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_damaged_config_is_an_error_or_a_model(damages in damage(TINY.len())) {
        let dir = tiny_model(1);
        std::fs::write(dir.path().join("config.json"), apply(TINY.as_bytes(), &damages)).unwrap();
        if let Err(message) = load(dir.path()) {
            prop_assert!(message.contains(&dir.path().display().to_string()), "{message}");
        }
    }

    #[test]
    fn a_damaged_header_is_an_error_or_a_model(damages in damage(2200)) {
        let dir = tiny_model(1);
        std::fs::write(dir.path().join("model.safetensors"), apply(&weights(TINY, 1), &damages)).unwrap();
        if let Err(message) = load(dir.path()) {
            prop_assert!(message.contains(&dir.path().display().to_string()), "{message}");
        }
    }

    #[test]
    fn a_damaged_adapter_is_an_error_or_an_adapter(damages in damage(700), config in any::<bool>()) {
        let dir = tiny_model(1);
        let model = Decoder::load(Cpu, dir.path(), Precision::F32, true).unwrap();
        let targets = medft_dsl::plan::Linear::ALL.to_vec();
        let shape = LoraShape { rank: 2, alpha: 4.0, rank_stabilized: false, targets };
        let trained = Trained::new_lora(&Cpu, &model.config, shape.clone(), 7).unwrap();
        adapter::write(&Cpu, &trained, &shape, 0.0, "tiny", dir.path()).unwrap();
        let path = dir.path().join(if config { adapter::CONFIG } else { adapter::WEIGHTS });
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, apply(&bytes, &damages)).unwrap();
        if let Err(e) = adapter::read(&Cpu, &model.config, dir.path()) {
            prop_assert!(e.to_string().contains(&dir.path().display().to_string()), "{e}");
        }
    }
}

#[test]
fn a_truncated_file_is_named() {
    let dir = tiny_model(1);
    let bytes = weights(TINY, 1);
    std::fs::write(
        dir.path().join("model.safetensors"),
        &bytes[..bytes.len() - 5],
    )
    .unwrap();
    let message = load(dir.path()).unwrap_err();
    assert!(
        message.contains("model.safetensors") && message.contains("truncated"),
        "{message}"
    );
}

#[test]
fn a_nan_is_named_with_its_tensor() {
    let dir = tiny_model(1);
    let mut bytes = weights(TINY, 1);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let message = load(dir.path()).unwrap_err();
    assert!(
        message.contains("not a finite number") && message.contains("tensor `"),
        "{message}"
    );
}

#[test]
fn an_unknown_architecture_is_named() {
    let dir = tiny_model(1);
    let config = TINY.replace("\"llama\"", "\"gpt2\"");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let message = load(dir.path()).unwrap_err();
    assert!(
        message.contains("gpt2") && message.contains("mistral"),
        "{message}"
    );
}
