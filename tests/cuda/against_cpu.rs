//! The same model and batch on both backends: the CPU computes in f32 with the same bf16 weights.

use super::{assert_relative, gpu, packed, relative};
use crate::support::weights;
use medft_dsl::plan::{Linear, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Packed, Pass, ROWS, Slot};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained, Tuning};
use medft_engine::model::workspace::Largest;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Errors of roundings on the way of a gradient through two layers with adapters, as in `golden.rs`: 2 x 2 x 1.1e-3 sqrt(26 x 2 + 4).
const BOUND: f64 = 4.0 * 1.1e-3 * 7.5;

/// config.json of two layers: head size, query and key heads, columns, inner columns, tokens, more lines.
pub fn config(
    dim: usize,
    heads: (usize, usize),
    hidden: usize,
    inner: usize,
    vocab: usize,
    more: &str,
) -> String {
    let (queries, keys) = heads;
    let qwen = more.contains("qwen");
    let (kind, class) = if qwen {
        ("qwen2", "Qwen2ForCausalLM")
    } else {
        ("llama", "LlamaForCausalLM")
    };
    let window = if more.contains("window") {
        r#", "sliding_window": 20"#
    } else {
        ""
    };
    let (kind, class) = if more.contains("window") {
        ("mistral", "MistralForCausalLM")
    } else {
        (kind, class)
    };
    format!(
        r#"{{"architectures": ["{class}"], "model_type": "{kind}", "hidden_act": "silu", "hidden_size": {hidden},
  "intermediate_size": {inner}, "num_hidden_layers": 2, "num_attention_heads": {queries}, "num_key_value_heads": {keys}, "head_dim": {dim},
  "vocab_size": {vocab}, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048, "eos_token_id": 2,
  "tie_word_embeddings": {qwen}{window}}}"#
    )
}

/// A model directory with random weights.
pub fn model(config: &str, seed: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights(config, seed)).unwrap();
    dir
}

pub fn sequences(lengths: &[usize], vocab: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    lengths
        .iter()
        .map(|n| (0..*n).map(|_| rng.random_range(0..vocab as u32)).collect())
        .collect()
}

/// Logits, losses and gradients of everything that is trained.
struct Got {
    logits: Vec<f32>,
    losses: Vec<f32>,
    grads: Vec<f32>,
}

fn pass<B: Backend>(decoder: &Decoder<B>, tuning: &Tuning, rows: &[Vec<u32>], dropout: f32) -> Got {
    let (backend, c) = (&decoder.backend, &decoder.config);
    let mut trained = match tuning {
        Tuning::Lora(shape) => Trained::new_lora(backend, c, shape.clone(), 5).unwrap(),
        Tuning::Full => Trained::zeros(backend, c, Tuning::Full).unwrap(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    for p in trained.parameters().to_vec() {
        let values = match tuning {
            Tuning::Full => decoder.values(&p.name).unwrap().unwrap(),
            Tuning::Lora(_) if p.name.contains("lora_B") => {
                // As strong at every rank.
                let most = 0.8 / (p.shape[1] as f32).sqrt();
                (0..p.slot.len)
                    .map(|_| rng.random_range(-most..most))
                    .collect()
            }
            Tuning::Lora(_) => continue,
        };
        backend.write(&mut trained.values, p.slot.offset, &values);
    }
    let batch = packed(rows, 1);
    let targets = batch.targets.len();
    let largest = Largest {
        tokens: batch.tokens().next_multiple_of(ROWS),
        targets,
        training: true,
        cached: None,
    };
    let mut ws = decoder.workspace(Some(&trained), &largest).unwrap();
    let pass = Pass {
        seed: 9,
        step: 3,
        first_token: 0,
        first_target: 2,
        loss_scale: 1.0 / targets as f32,
    };
    let trained_on = Packed {
        pass: Some(pass),
        ..batch.clone()
    };
    let batch = backend.upload(batch).unwrap();
    let mut logits = backend.floats("logits", targets * c.vocab).unwrap();
    decoder.logits(Some(&trained), &batch, None, &mut logits, 0, &mut ws);
    let mut grads = backend.floats("grads", trained.len()).unwrap();
    let mut losses = backend.floats("losses", targets + 2).unwrap();
    decoder.train_pass(
        &mut B::Recording::default(),
        &trained,
        &mut grads,
        dropout,
        &backend.upload(trained_on).unwrap(),
        &mut losses,
        &mut ws,
    );
    let read = |from: &B::Float, offset, len| backend.read(from, Slot { offset, len }).unwrap();
    Got {
        logits: read(&logits, 0, targets * c.vocab),
        losses: read(&losses, 2, targets),
        grads: read(&grads, 0, trained.len()),
    }
}

fn compare(
    what: &str,
    config: &str,
    precision: Precision,
    tuning: &Tuning,
    lengths: &[usize],
    dropout: f32,
) {
    let Some(gpu) = gpu() else { return };
    let dir = model(config, 1);
    let cpu = Decoder::load(Cpu, dir.path(), precision, true).unwrap();
    let cuda = Decoder::load(gpu, dir.path(), precision, true).unwrap();
    let rows = sequences(lengths, cpu.config.vocab, 3);
    let (want, got) = (
        pass(&cpu, tuning, &rows, dropout),
        pass(&cuda, tuning, &rows, dropout),
    );
    assert_relative(
        &format!("{what}: logits"),
        &got.logits,
        &want.logits,
        BOUND / 2.0,
    );
    assert_relative(
        &format!("{what}: losses"),
        &got.losses,
        &want.losses,
        BOUND / 2.0,
    );
    assert_relative(
        &format!("{what}: gradients"),
        &got.grads,
        &want.grads,
        BOUND,
    );
}

fn lora(rank: usize, targets: &[Linear]) -> Tuning {
    Tuning::Lora(LoraShape {
        rank,
        alpha: 2.0 * rank as f64,
        rank_stabilized: false,
        targets: targets.to_vec(),
    })
}

#[test]
fn adapters_of_every_rank_on_all_layers() {
    let config = config(64, (4, 2), 256, 448, 512, "");
    for rank in [4, 8, 16, 24, 64, 128] {
        compare(
            &format!("rank {rank}"),
            &config,
            Precision::Bf16,
            &lora(rank, &Linear::ALL),
            &[130, 1, 63, 77],
            0.0,
        );
    }
}

#[test]
fn dropout_masks_are_the_cpus() {
    for (dim, heads, more) in [(32, (4, 4), ""), (64, (4, 1), "qwen"), (128, (4, 2), "")] {
        let config = config(dim, heads, 192, 320, 320, more);
        compare(
            &format!("dropout, head size {dim}"),
            &config,
            Precision::Bf16,
            &lora(8, &Linear::ALL),
            &[65, 40, 129],
            0.3,
        );
    }
}

#[test]
fn some_layers_adapted_alone() {
    let config = config(64, (6, 3), 384, 512, 640, "qwen");
    for targets in [
        &[Linear::QProj, Linear::VProj][..],
        &[Linear::UpProj],
        &[Linear::DownProj, Linear::KProj],
    ] {
        compare(
            &format!("{targets:?}"),
            &config,
            Precision::Bf16,
            &lora(16, targets),
            &[100, 29],
            0.1,
        );
    }
}

#[test]
fn a_sliding_window() {
    let config = config(64, (4, 2), 256, 448, 512, "window");
    compare(
        "window",
        &config,
        Precision::Bf16,
        &lora(8, &Linear::ALL),
        &[90, 150, 7],
        0.0,
    );
}

#[test]
fn full_fine_tuning() {
    for more in ["", "qwen"] {
        let config = config(64, (4, 2), 256, 448, 504, more);
        compare(
            &format!("full {more}"),
            &config,
            Precision::Bf16,
            &Tuning::Full,
            &[130, 61],
            0.0,
        );
    }
}

#[test]
fn four_bit_weights() {
    for inner in [448, 400] {
        let config = config(64, (4, 2), 256, inner, 512, "");
        compare(
            &format!("nf4, inner {inner}"),
            &config,
            Precision::Nf4,
            &lora(16, &Linear::ALL),
            &[70, 131],
            0.0,
        );
    }
}

#[test]
fn a_vocabulary_of_an_odd_size() {
    let config = config(64, (4, 2), 256, 448, 333, "");
    compare(
        "vocabulary 333",
        &config,
        Precision::Bf16,
        &lora(8, &Linear::ALL),
        &[50, 20],
        0.0,
    );
}

#[test]
fn a_packed_sequence_is_as_if_alone() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 512, ""), 1);
    let decoder = Decoder::load(gpu, dir.path(), Precision::Bf16, true).unwrap();
    let rows = sequences(&[100, 37, 64], 512, 3);
    let together = pass(&decoder, &lora(8, &Linear::ALL), &rows, 0.0);
    let alone: Vec<f32> = rows
        .iter()
        .flat_map(|row| {
            pass(
                &decoder,
                &lora(8, &Linear::ALL),
                std::slice::from_ref(row),
                0.0,
            )
            .losses
        })
        .collect();
    let error = relative(&together.losses, &alone);
    assert!(
        error <= 2e-3,
        "packed losses differ from lone ones by {error:e}"
    );
}
