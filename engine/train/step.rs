//! One optimizer step and one validation: passes, loss, gradients, clipping, AdamW.
//!
//! Holds the buffers that both need. It refuses the order of rows, logging and checkpoints, which belong to the session.
//! Invariants: a step's loss is the mean over all targets of its rows, however these are divided into passes. Between the first op of a
//! step or validation and the last, nothing is allocated and nothing waits for the device.

use super::TrainError;
use super::batch::passes;
use super::division::Division;
use super::snapshot::State;
use crate::backend::{AdamWStep, Backend, BackendError, Packed, Slot};
use crate::model::decoder::Decoder;
use crate::model::pass::Workspace;
use crate::model::trained::{DropoutStep, Trained};
use crate::text::example::Example;
use medft_dsl::plan::{Adapter, Train};

/// Workspaces grow by whole multiples of so many tokens.
pub const GROWTH: usize = 64;

/// What an error calls the buffer of losses.
const LOSSES: &str = "the losses of a step";

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
    division: Division,
    grads: B::Float,
    norm: B::Float,
    workspace: Option<Workspace<B>>,
    /// Room for so many losses.
    losses: (B::Float, usize),
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
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(
        decoder: &'a Decoder<B>,
        settings: &'a Train,
        division: Division,
        trained_values: usize,
    ) -> Result<Self, BackendError> {
        Ok(Stepper {
            decoder,
            settings,
            division,
            grads: decoder.backend.floats("the gradient", trained_values)?,
            norm: decoder.backend.floats("the gradient's norm", 1)?,
            workspace: None,
            losses: (decoder.backend.floats(LOSSES, 0)?, 0),
        })
    }

    /// One optimizer step over these rows. `state.progress` is left to the caller.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], where the trained values are not to be used any more, and whatever the device says.
    pub fn step(
        &mut self,
        state: &mut State<B>,
        rows: &[&Example],
        lr: f64,
    ) -> Result<Stepped, TrainError> {
        let (settings, decoder) = (self.settings, self.decoder);
        let backend = &decoder.backend;
        let passes = passes(rows, self.division);
        let tokens: usize = passes.iter().map(Packed::tokens).sum();
        let ws = workspace(&mut self.workspace, decoder, &state.trained, &passes)?;
        let (losses, targets) = losses(&mut self.losses, backend, &passes)?;
        let dropout = DropoutStep {
            p: dropout(settings) as f32,
            seed: settings.seed,
            step: state.progress.step,
        };
        backend.zero(&mut self.grads);
        let mut at = 0;
        for pass in passes {
            let (n, own) = (pass.tokens(), pass.targets.len());
            decoder.train_pass(
                &state.trained,
                &mut self.grads,
                Some(dropout),
                &backend.upload(pass)?,
                n,
                1.0 / targets.max(1) as f32,
                losses,
                at,
                ws,
            );
            at += own;
        }
        let step = state.progress.step + 1;
        let optimizer = &settings.optimizer;
        let adamw = AdamWStep {
            lr,
            weight_decay: optimizer.weight_decay,
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            eps: optimizer.eps,
            step,
            max_norm: settings.clip,
        };
        backend.norm(&self.grads, &mut self.norm);
        backend.adamw(
            &adamw,
            &self.grads,
            &self.norm,
            &mut state.trained.values,
            &mut state.first,
            &mut state.second,
        );
        let loss = mean_loss(backend, losses, targets)?;
        let norm = backend.read(&self.norm, Slot { offset: 0, len: 1 })?;
        Ok(Stepped {
            loss: self.finite("loss", loss, step)?,
            grad_norm: self.finite("gradient norm", f64::from(norm[0]), step)?,
            tokens: tokens as u64,
        })
    }

    /// Mean loss of all targets of these rows, without dropout.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], and whatever the device says.
    pub fn validate(&mut self, state: &State<B>, rows: &[Example]) -> Result<f64, TrainError> {
        let decoder = self.decoder;
        let passes: Vec<Packed> = rows
            .chunks(self.settings.eval_batch as usize)
            .flat_map(|rows| passes(&rows.iter().collect::<Vec<_>>(), self.division))
            .collect();
        let ws = workspace(&mut self.workspace, decoder, &state.trained, &passes)?;
        let (losses, targets) = losses(&mut self.losses, &decoder.backend, &passes)?;
        let mut at = 0;
        for pass in passes {
            let (n, own) = (pass.tokens(), pass.targets.len());
            decoder.losses(
                Some(&state.trained),
                &decoder.backend.upload(pass)?,
                n,
                losses,
                at,
                ws,
            );
            at += own;
        }
        let loss = mean_loss(&decoder.backend, losses, targets)?;
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

/// Mean of the first `targets` losses; 0 of none.
fn mean_loss<B: Backend>(
    backend: &B,
    losses: &B::Float,
    targets: usize,
) -> Result<f64, BackendError> {
    let slot = Slot {
        offset: 0,
        len: targets,
    };
    let sum: f64 = backend.read(losses, slot)?.into_iter().map(f64::from).sum();
    Ok(sum / targets.max(1) as f64)
}

/// A workspace for these passes, made anew only when a larger one is needed; the old one is freed first.
fn workspace<'w, B: Backend>(
    kept: &'w mut Option<Workspace<B>>,
    decoder: &Decoder<B>,
    trained: &Trained<B>,
    passes: &[Packed],
) -> Result<&'w mut Workspace<B>, BackendError> {
    let tokens = passes.iter().map(Packed::tokens).max().unwrap_or(0);
    if kept.as_ref().is_some_and(|w| w.capacity() < tokens) {
        *kept = None;
    }
    let (backend, config) = (&decoder.backend, &decoder.config);
    let capacity = tokens.next_multiple_of(GROWTH);
    Ok(match kept {
        Some(workspace) => workspace,
        None => kept.insert(Workspace::new(
            backend,
            config,
            Some(trained),
            capacity,
            true,
        )?),
    })
}

/// Room for the losses of these passes, and their number.
fn losses<'l, B: Backend>(
    kept: &'l mut (B::Float, usize),
    backend: &B,
    passes: &[Packed],
) -> Result<(&'l mut B::Float, usize), BackendError> {
    let targets = passes.iter().map(|p| p.targets.len()).sum();
    if kept.1 < targets {
        *kept = (backend.floats(LOSSES, targets)?, targets);
    }
    Ok((&mut kept.0, targets))
}
