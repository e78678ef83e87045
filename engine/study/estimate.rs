//! What a plan will need, before anything is loaded: memory and time.
//!
//! Holds arithmetic on shapes. It refuses to touch weights. Invariant: a number is given only where its inputs are known; the rest is said
//! to be unknown.

use super::explore::here;
use crate::backend::Backend;
use crate::model::config::Config;
use crate::model::pass::Workspace;
use crate::model::trained::{LoraShape, Tuning, linear_shape, parameters};
use crate::train::batch::AUTO_TOKENS;
use medft_dsl::plan::{Adapter, Linear, Model, Plan, Precision, Task, Train};
use serde::Serialize;

/// What one training or one loaded model needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Need {
    /// The block.
    pub name: String,
    /// Parameters of the base model; `None` if it is not on this machine yet.
    pub parameters: Option<u64>,
    /// Bytes of weights.
    pub weights: Option<u64>,
    /// Trained values.
    pub trained: Option<u64>,
    /// Bytes of trained values, their gradients and AdamW's moments.
    pub optimizer: Option<u64>,
    /// Bytes of activations and their gradients in one pass.
    pub activations: Option<u64>,
    /// Seconds of one pass over 1,000 tokens, forward and backward for a training; from a product timed on the device.
    pub seconds_per_1000_tokens: Option<f64>,
}

impl Need {
    /// Bytes in all.
    pub fn bytes(&self) -> Option<u64> {
        Some(self.weights? + self.optimizer.unwrap_or(0) + self.activations.unwrap_or(0))
    }
}

/// Needs of every model that is evaluated as it comes, and of every training.
pub fn needs<B: Backend>(plan: &Plan, backend: &B) -> Vec<Need> {
    let rate = backend.measure_flops();
    let models = plan.models.iter().map(|m| need(backend, m, None, rate));
    let trains = plan.trains.iter().filter_map(|t| {
        let model = plan.models.iter().find(|m| m.name == t.model)?;
        let task = plan.tasks.iter().find(|k| k.name == t.task)?;
        Some(need(backend, model, Some((t, task)), rate))
    });
    models.chain(trains).collect()
}

fn need<B: Backend>(backend: &B, model: &Model, train: Option<(&Train, &Task)>, rate: f64) -> Need {
    let mut need = Need {
        name: train.map_or(&model.name, |(t, _)| &t.name).clone(),
        parameters: None,
        weights: None,
        trained: None,
        optimizer: None,
        activations: None,
        seconds_per_1000_tokens: None,
    };
    let Some(config) = here(model).and_then(|dir| Config::load(&dir).ok()) else {
        return need;
    };
    let all = config.parameters();
    let linear: u64 = Linear::ALL
        .iter()
        .map(|l| linear_shape(&config, *l))
        .map(|(o, i)| (o * i * config.layers) as u64)
        .sum();
    need.parameters = Some(all);
    need.weights = Some(match model.precision {
        Precision::F32 => 4 * all,
        Precision::Bf16 => 2 * all,
        // 4 bits, and a scale for 64 weights: 32 bits, or 8 and a share of the second level's.
        Precision::Nf4 => {
            let bits = if model.double_quant { 4.127 } else { 4.5 };
            (linear as f64 * bits / 8.0) as u64 + 2 * (all - linear)
        }
    });
    // 2 operations a weight and token forward, as many again for the gradient of the input.
    let mut operations = 2.0 * linear as f64;
    if let Some((train, task)) = train {
        let (tuning, trained, passes) = match &train.adapter {
            Adapter::Lora(lora) => {
                let shape = LoraShape {
                    rank: lora.rank as usize,
                    alpha: lora.alpha,
                    rank_stabilized: false,
                    targets: lora.targets.clone(),
                };
                let trained = parameters(&config, &shape);
                (Tuning::Lora(shape), trained, 2.0)
            }
            Adapter::Full => (Tuning::Full, all, 3.0),
        };
        operations *= passes;
        operations += 6.0 * trained as f64;
        need.trained = Some(trained);
        need.optimizer = Some(16 * trained);
        let rows = train.micro_batch.map(|n| n * task.max_tokens);
        let tokens = rows.unwrap_or(task.max_tokens.max(AUTO_TOKENS as u64));
        let buffers = Workspace::need(backend, &config, Some(&tuning), tokens as usize, true);
        need.activations = Some(backend.arena_bytes(&buffers));
    }
    need.seconds_per_1000_tokens = Some(1000.0 * operations / rate);
    need
}
