//! A small random model in a folder, so that tests of the whole decoder need no files from elsewhere.

use crate::draw::Draw;
use crate::support::shared;
use crate::weights::encode;
use medft_dsl::plan::{Linear, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Packed, Target};
use medft_engine::model::checkpoint::Dtype;
use medft_engine::model::config::Config;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained, Tuning, model_shapes};
use safetensors::tensor::TensorView;

/// Nothing is a multiple of 16 but the head; biases, grouped heads, tied embeddings.
const CONFIG: &str = r#"{"model_type": "qwen2", "hidden_size": 72, "intermediate_size": 104, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 131, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": true, "rope_theta": 10000.0}"#;

/// A loaded model and its name.
pub struct Model {
    pub name: String,
    pub decoder: Decoder<Cpu>,
}

/// The random model in every precision, and the golden ones where they are.
pub fn models() -> Vec<Model> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let tiny = [Precision::F32, Precision::Bf16, Precision::Nf4].map(|precision| Model {
        name: format!("tiny {precision:?}"),
        decoder: Decoder::load(Cpu, folder.path(), precision, true).unwrap(),
    });
    let golden = ["llama", "mistral", "mistral-window", "qwen2"].map(|family| {
        let dir = shared(&format!("golden/{family}"))?;
        Some(Model {
            name: family.to_string(),
            decoder: Decoder::load(Cpu, &dir, Precision::F32, true).unwrap(),
        })
    });
    tiny.into_iter()
        .chain(golden.into_iter().flatten())
        .collect()
}

fn write(folder: &std::path::Path) {
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let config = Config::load(folder).unwrap();
    let mut draw = Draw::new(11);
    let mut tensors = Vec::new();
    for (name, shape) in model_shapes(&config) {
        let len = shape.iter().product();
        let values = match name.contains("norm") {
            true => draw.values(len, 0.2).iter().map(|v| 1.0 + v).collect(),
            false => draw.values(len, 0.2),
        };
        tensors.push((name, shape, encode(&values, Dtype::Bf16)));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap();
        (name, view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Adapters on all seven layers with random A and B.
pub fn adapters(decoder: &Decoder<Cpu>, seed: u64) -> Trained<Cpu> {
    let shape = LoraShape {
        rank: 5,
        alpha: 10.0,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    let mut trained = Trained::zeros(&Cpu, &decoder.config, Tuning::Lora(shape)).unwrap();
    let values = Draw::new(seed).values(trained.len(), 0.1);
    Cpu.write(&mut trained.values, 0, &values);
    trained
}

/// Sequences of these lengths, each with a target at the last half of its rows.
pub fn batch(decoder: &Decoder<Cpu>, lengths: &[usize], seed: u64) -> Packed {
    let draw = &mut Draw::new(seed);
    let mut packed = crate::draw::pack(draw, lengths, decoder.config.vocab);
    for s in &packed.sequences {
        for row in s.start + s.len / 2..s.start + s.len {
            let id = draw.index(decoder.config.vocab) as u32;
            packed.targets.push(Target { row, id });
        }
    }
    packed
}
