//! The arithmetic: from shapes and numbers of tokens to bytes and seconds.
//!
//! A pass costs its products at the speed of a product timed here, and its other ops at the speed of memory. The shares below were measured
//! on SmolLM2-135M (benches/RESULTS.md); other models and machines may take half or twice as long.

use super::Work;
use super::lengths::Measured;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Config;
use crate::model::decoder::ModelError;
use crate::model::trained::{LoraShape, linear_shape, model_shapes, parameters};
use crate::study::StudyError;
use crate::study::resolve::System;
use crate::train::batch::AUTO_TOKENS;
use medft_dsl::plan::{Adapter, Evaluate, Linear, Model, Precision, Task, Train};
use std::path::Path;

/// Share of the timed product's speed that a pass over many tokens reaches.
const PASS: f64 = 0.8;
/// The same for one token a row: dot products, not matrix products.
const DECODE: f64 = 0.21;
/// Reading all weights costs a decoding step as much as so many rows more.
const DECODE_FIXED: f64 = 2.0;
/// Bytes a second of the ops between the products, which read and write what they keep.
const MEMORY: f64 = 2e10;

/// Numbers of values of a system's parts.
pub(super) struct Shape {
    config: Config,
    /// Weights of the linear layers.
    linear: u64,
    /// Bytes of weights.
    weights: u64,
    /// Trained values; 0 for a model as it comes.
    trained: u64,
    full: bool,
}

impl Shape {
    /// From the model's folder; headers are read, weights are not.
    pub(super) fn load(dir: &Path, system: &System) -> Result<Shape, StudyError> {
        let model = |source: ModelError| StudyError::Model {
            name: system.model.name.clone(),
            source,
        };
        let config = Config::load(dir).map_err(|e| model(e.into()))?;
        let checkpoint = Checkpoint::open(dir).map_err(|e| model(e.into()))?;
        let check = |name: &str, wanted: &[usize]| {
            let found = checkpoint.get(name, wanted);
            found.map(|_| ()).map_err(|e| model(e.into()))
        };
        // The last layer first: a config may claim millions. Once all shapes are the file's own, no product of them overflows.
        let last = config.layers.saturating_sub(1);
        let name = format!("model.layers.{last}.input_layernorm.weight");
        check(&name, &[config.hidden])?;
        for (name, wanted) in model_shapes(&config) {
            check(&name, &wanted)?;
        }
        let stored = checkpoint.bytes();
        let all = config.parameters();
        let linear = Linear::ALL
            .iter()
            .map(|l| linear_shape(&config, *l))
            .map(|(o, i)| (o * i * config.layers) as u64)
            .sum();
        let adapter = system.train.map(|train| &train.adapter);
        Ok(Shape {
            weights: weights(system.model, all, linear, stored),
            trained: match adapter {
                None => 0,
                Some(Adapter::Full) => all,
                Some(Adapter::Lora(lora)) => {
                    let shape = LoraShape {
                        rank: lora.rank as usize,
                        alpha: lora.alpha,
                        rank_stabilized: false,
                        targets: lora.targets.clone(),
                    };
                    parameters(&config, &shape)
                }
            },
            full: adapter == Some(&Adapter::Full),

            linear,
            config,
        })
    }
}

/// Bytes of weights in memory. Under f32 a bf16 checkpoint stays as it is stored.
fn weights(model: &Model, all: u64, linear: u64, stored: u64) -> u64 {
    match model.precision {
        Precision::F32 => stored.min(4 * all),
        Precision::Bf16 => 2 * all,
        // 4 bits, and a scale for 64 weights: 32 bits, or 8 and a share of the second level's.
        Precision::Nf4 => {
            let bits = if model.double_quant { 4.127 } else { 4.5 };
            (linear as f64 * bits / 8.0) as u64 + 2 * (all - linear)
        }
    }
}

/// What a system's stages cost.
pub(super) struct Cost<'a> {
    pub(super) shape: &'a Shape,
    /// Operations a second of a product.
    pub(super) rate: f64,
}

impl Cost<'_> {
    /// Weights, trained values with their gradients and AdamW's moments, and the buffers of one pass.
    pub(super) fn train_memory(&self, train: &Train, task: &Task) -> u64 {
        let tokens = match train.micro_batch {
            Some(rows) => rows.saturating_mul(task.max_tokens),
            None => task.max_tokens.max(AUTO_TOKENS as u64),
        };
        let buffers = tokens.saturating_mul(4 * self.kept_and_temporary());
        (self.shape.weights + 16 * self.shape.trained).saturating_add(buffers)
    }

    /// Weights, trained values, the cache of keys and values for prompts of full length, and the logits.
    pub(super) fn predict_memory(&self, evaluate: &Evaluate, task: &Task, rows: u64) -> u64 {
        let Config {
            heads,
            layers,
            vocab,
            ..
        } = &self.shape.config;
        let values = 2 * heads.keys * heads.dim * layers;
        let room = task.max_tokens.saturating_add(evaluate.decode.max_new);
        let cache = room.saturating_mul(4 * values as u64);
        let answers = evaluate
            .batch
            .min(rows)
            .saturating_mul(cache.saturating_add(8 * *vocab as u64));
        let pass = AUTO_TOKENS as u64 * 4 * self.temporary();
        (self.shape.weights + 4 * self.shape.trained + pass).saturating_add(answers)
    }

    pub(super) fn train_seconds(&self, m: &Measured, work: &Work) -> f64 {
        let Work::Train {
            steps,
            tokens,
            validation,
            ..
        } = work
        else {
            return 0.0;
        };
        let Shape {
            linear,
            trained,
            full,
            ..
        } = self.shape;
        let targets = m.answer / (m.prompt + m.answer).max(1.0);
        let forward = self.forward(m.prompt + m.answer) + targets * self.head();
        // The gradient of the input costs as much as the forward pass, that of the weights as much again.
        let weights = if *full {
            2.0 * *linear as f64
        } else {
            4.0 * *trained as f64
        };
        let once = 2.0 * forward + weights + 0.5 * self.attention(m.prompt + m.answer);
        let products = (tokens * once + validation * forward) / (PASS * self.rate);
        let values = self.kept_and_temporary() as f64;
        let between = (3.0 * tokens + validation) * 4.0 * values / MEMORY;
        // AdamW reads and writes four values and a gradient.
        let optimizer = *steps as f64 * 28.0 * *trained as f64 / MEMORY;
        products + between + optimizer
    }

    pub(super) fn predict_seconds(&self, evaluate: &Evaluate, m: &Measured, work: &Work) -> f64 {
        let Work::Predict {
            rows,
            read,
            written,
        } = work
        else {
            return 0.0;
        };
        let Shape {
            linear, trained, ..
        } = self.shape;
        let reading = read * self.forward(m.prompt) + *rows as f64 * self.head();
        let between = read * 4.0 * self.temporary() as f64 / MEMORY;
        let batches = (*rows as f64 / evaluate.batch.max(1) as f64).ceil();
        let steps = batches * written / (*rows as f64).max(1.0);
        let extra = if self.shape.full { 0 } else { *trained };
        let token = 2.0 * (linear + extra) as f64 + self.head() + 2.0 * self.attention(m.prompt);
        let writing = (written + DECODE_FIXED * steps) * token;
        reading / (PASS * self.rate) + between + writing / (DECODE * self.rate)
    }

    /// Operations of a token's forward pass in sequences of this length, without the head.
    fn forward(&self, length: f64) -> f64 {
        let extra = if self.shape.full {
            0
        } else {
            self.shape.trained
        };
        2.0 * (self.shape.linear + extra) as f64 + self.attention(length)
    }

    /// Operations of attention, for a token that sees half of its sequence.
    fn attention(&self, length: f64) -> f64 {
        let Config { heads, layers, .. } = &self.shape.config;
        2.0 * length * (heads.queries * heads.dim * layers) as f64
    }

    /// Operations of the language-model head, for a token that has logits.
    fn head(&self) -> f64 {
        2.0 * (self.shape.config.vocab * self.shape.config.hidden) as f64
    }

    /// Values of a training pass, for each token.
    fn kept_and_temporary(&self) -> u64 {
        let Config {
            heads,
            hidden,
            inner,
            layers,
            ..
        } = &self.shape.config;
        let out = heads.queries * heads.dim;
        let kept = 2 * hidden + heads.qkv() + out + 2 * inner + heads.queries + 2;
        (kept * layers) as u64 + self.temporary()
    }

    /// Values of a pass that are not kept, for each token.
    fn temporary(&self) -> u64 {
        let Config {
            heads,
            hidden,
            inner,
            ..
        } = &self.shape.config;
        (4 * hidden + heads.qkv() + heads.queries * heads.dim + 4 * inner) as u64
    }
}
