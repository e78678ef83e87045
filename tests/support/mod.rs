//! What several test files need: the shared folder, and a tiny model on disk.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

use medft_engine::model::config::Config;
use medft_engine::model::trained::model_shapes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

mod shared;
pub use shared::shared;

/// A config.json of two layers, 37 tokens and odd sizes.
pub const TINY: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 24,
  "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "vocab_size": 37, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128, "eos_token_id": 2,
  "tie_word_embeddings": false,
  "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32}
}"#;

/// The bytes of random f32 weights for a config.
pub fn weights(config: &str, seed: u64) -> Vec<u8> {
    let config = Config::parse(Path::new("config.json"), config).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = model_shapes(&config)
        .into_iter()
        .map(|(name, shape)| {
            let scale = 1.0 / (*shape.last().unwrap() as f32).sqrt();
            let center = if name.contains("norm") { 1.0 } else { 0.0 };
            let values = (0..shape.iter().product())
                .map(|_| center + scale * rng.random_range(-1.0f32..1.0));
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(n, s, b)| {
        (
            n.as_str(),
            TensorView::new(Dtype::F32, s.clone(), b).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

/// A model directory with [`TINY`] and random weights.
pub fn tiny_model(seed: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), TINY).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights(TINY, seed)).unwrap();
    dir
}
