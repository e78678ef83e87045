//! One optimizer step and one validation: passes, loss, gradients, clipping, AdamW.
//!
//! Holds the buffers that both need. It refuses the order of rows, logging and checkpoints, which belong to the session.
//! Invariant: a step's loss is the mean over all targets of its rows, however these are divided into passes.

use super::TrainError;
use super::batch::passes;
use super::snapshot::State;
use crate::backend::{AdamWStep, Backend};
use crate::model::decoder::Decoder;
use crate::model::pass::Workspace;
use crate::model::trained::{DropoutStep, Trained};
use crate::text::example::Example;
use medft_dsl::plan::{Adapter, Train};

/// Added to the norm that gradients are divided by, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// Workspaces grow by whole multiples of so many tokens.
const GROWTH: usize = 64;

/// What a step found.
pub struct Stepped {
    /// Mean loss of its targets.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens read.
    pub tokens: u64,
}

/// Takes steps and measures losses.
pub struct Stepper<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    settings: &'a Train,
    grads: B::Float,
    workspace: Option<Workspace<B>>,
}

/// Dropout on the input of the adapters; 0 where the whole model is trained.
pub fn dropout(settings: &Train) -> f64 {
    match &settings.adapter {
        Adapter::Lora(lora) => lora.dropout,
        Adapter::Full => 0.0,
    }
}

impl<'a, B: Backend> Stepper<'a, B> {
    /// For so many trained values.
    pub fn new(decoder: &'a Decoder<B>, settings: &'a Train, trained_values: usize) -> Self {
        Stepper {
            decoder,
            settings,
            grads: decoder.backend.float(trained_values),
            workspace: None,
        }
    }

    /// One optimizer step over these rows. `state.progress` is left to the caller.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], before any trained value changes.
    pub fn step(
        &mut self,
        state: &mut State<B>,
        rows: &[&Example],
        lr: f64,
    ) -> Result<Stepped, TrainError> {
        let (settings, decoder) = (self.settings, self.decoder);
        let backend = &decoder.backend;
        let passes = passes(rows, settings.micro_batch);
        let targets = passes.iter().map(|p| p.targets.len()).sum::<usize>().max(1);
        let dropout = DropoutStep {
            p: dropout(settings) as f32,
            seed: settings.seed,
            step: state.progress.step,
        };
        backend.zero(&mut self.grads);
        let (mut sum, mut tokens) = (0.0, 0);
        for pass in passes {
            let n = pass.tokens();
            let ws = workspace(&mut self.workspace, decoder, &state.trained, n);
            let losses = decoder.train_pass(
                &state.trained,
                &mut self.grads,
                Some(dropout),
                &backend.upload(pass),
                n,
                1.0 / targets as f32,
                ws,
            );
            sum += losses.into_iter().map(f64::from).sum::<f64>();
            tokens += n as u64;
        }
        let step = state.progress.step + 1;
        let loss = self.finite("loss", sum / targets as f64, step)?;
        let grad_norm = self.finite("gradient norm", backend.norm(&self.grads), step)?;
        let optimizer = &settings.optimizer;
        let clip = settings.clip.map_or(1.0, |c| c / (grad_norm + CLIP_EPS));
        let adamw = AdamWStep {
            lr,
            weight_decay: optimizer.weight_decay,
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            eps: optimizer.eps,
            step,
            clip: clip.min(1.0),
        };
        backend.adamw(
            &adamw,
            &self.grads,
            &mut state.trained.values,
            &mut state.first,
            &mut state.second,
        );
        Ok(Stepped {
            loss,
            grad_norm,
            tokens,
        })
    }

    /// Mean loss of all targets of these rows, without dropout.
    ///
    /// # Errors
    /// [`TrainError::Diverged`].
    pub fn validate(&mut self, state: &State<B>, rows: &[Example]) -> Result<f64, TrainError> {
        let decoder = self.decoder;
        let (mut sum, mut targets) = (0.0, 0);
        for rows in rows.chunks(self.settings.eval_batch as usize) {
            let rows: Vec<&Example> = rows.iter().collect();
            for pass in passes(&rows, self.settings.micro_batch) {
                let n = pass.tokens();
                let ws = workspace(&mut self.workspace, decoder, &state.trained, n);
                let batch = decoder.backend.upload(pass);
                let losses = decoder.losses(Some(&state.trained), &batch, n, ws);
                targets += losses.len();
                sum += losses.into_iter().map(f64::from).sum::<f64>();
            }
        }
        let loss = sum / targets.max(1) as f64;
        self.finite("validation loss", loss, state.progress.step)
    }

    fn finite(&self, what: &'static str, value: f64, step: u64) -> Result<f64, TrainError> {
        if value.is_finite() {
            return Ok(value);
        }
        Err(TrainError::Diverged {
            name: self.settings.name.clone(),
            what,
            value,
            step,
        })
    }
}

/// A workspace for `tokens`, made anew only when a larger one is needed; the old one is freed first.
fn workspace<'w, B: Backend>(
    kept: &'w mut Option<Workspace<B>>,
    decoder: &Decoder<B>,
    trained: &Trained<B>,
    tokens: usize,
) -> &'w mut Workspace<B> {
    if kept.as_ref().is_some_and(|w| w.capacity() < tokens) {
        *kept = None;
    }
    kept.get_or_insert_with(|| {
        let capacity = tokens.next_multiple_of(GROWTH);
        Workspace::new(
            &decoder.backend,
            &decoder.config,
            Some(trained),
            capacity,
            true,
        )
    })
}
