//! How long a stage takes: its products at the speed of one that was timed, its other ops at that of memory, both as the device tells
//! them ([`Rates`]). Other models than those that the shares were measured on may take half or twice as long.

use super::Work;
use super::lengths::Measured;
use super::memory::Planner;
use super::shape::Shape;
use crate::backend::Backend;
use crate::backend::facts::Rates;
use medft_dsl::plan::{Evaluate, Train};

/// Tokens of the pass that bytes a token are taken from.
const SAMPLE: usize = 1024;

/// What a system's stages cost.
pub(super) struct Cost<'a, B: Backend> {
    pub(super) plan: &'a Planner<'a, B>,
    pub(super) rates: Rates,
}

impl<B: Backend> Cost<'_, B> {
    fn shape(&self) -> &Shape {
        self.plan.shape
    }

    pub(super) fn train_seconds(&self, train: &Train, m: &Measured, work: &Work) -> f64 {
        let Work::Train {
            steps,
            tokens,
            validation,
            ..
        } = work
        else {
            return 0.0;
        };
        let (shape, rates) = (self.shape(), &self.rates);
        let targets = m.answer / (m.prompt + m.answer).max(1.0);
        let forward = self.forward(m.prompt + m.answer) + targets * self.head();
        // The gradient of the input costs as much as the forward pass, that of the weights as much again.
        let weights = if shape.full() {
            2.0 * shape.linear as f64
        } else {
            4.0 * shape.trained as f64
        };
        let once = 2.0 * forward + weights + 0.5 * self.attention(m.prompt + m.answer);
        let products = (tokens * once + validation * forward) / (rates.pass * rates.product);
        let between = (3.0 * tokens + validation) * self.bytes(true) / rates.memory;
        // AdamW reads and writes four values and a gradient.
        let optimizer = *steps as f64 * 28.0 * shape.trained as f64 / rates.memory;
        let pass = match train.micro_batch {
            Some(rows) => rows as f64 * (m.prompt + m.answer),
            None => self.plan.auto_tokens(train, shape.precision) as f64,
        };
        let passes = (3.0 * tokens + validation) / pass.max(1.0);
        products + between + optimizer + passes * self.layers()
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
        let (shape, rates) = (self.shape(), &self.rates);
        let reading = read * self.forward(m.prompt) + *rows as f64 * self.head();
        let between = read * self.bytes(false) / rates.memory;
        let batches = (*rows as f64 / evaluate.batch.max(1) as f64).ceil();
        let steps = batches * written / (*rows as f64).max(1.0);
        let extra = if shape.full() { 0 } else { shape.trained };
        let token =
            2.0 * (shape.linear + extra) as f64 + self.head() + 2.0 * self.attention(m.prompt);
        let writing = (written + rates.decode_fixed * steps) * token;
        let weights = shape.weights(self.plan.device, shape.precision) as f64;
        reading / (rates.pass * rates.product)
            + between
            + writing / (rates.decode * rates.product)
            + steps * weights / rates.weights
            + (batches + steps) * self.layers()
    }

    /// Seconds that a pass takes, however small.
    fn layers(&self) -> f64 {
        self.rates.layer * self.shape().config.layers as f64
    }

    /// Operations of a token's forward pass in sequences of this length, without the head.
    fn forward(&self, length: f64) -> f64 {
        let shape = self.shape();
        let extra = if shape.full() { 0 } else { shape.trained };
        2.0 * (shape.linear + extra) as f64 + self.attention(length)
    }

    /// Operations of attention, for a token that sees half of its sequence.
    fn attention(&self, length: f64) -> f64 {
        let config = &self.shape().config;
        2.0 * length * (config.heads.queries * config.heads.dim * config.layers) as f64
    }

    /// Operations of the language-model head, for a token that has logits.
    fn head(&self) -> f64 {
        let config = &self.shape().config;
        2.0 * (config.vocab * config.hidden) as f64
    }

    /// Bytes of a pass's buffers for each token.
    fn bytes(&self, training: bool) -> f64 {
        self.plan.activations(SAMPLE, training) as f64 / SAMPLE as f64
    }
}
