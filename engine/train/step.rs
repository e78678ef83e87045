//! One optimizer step and one validation: passes, loss, gradients, clipping, AdamW.
//!
//! Holds the buffers that both need. It refuses the order of rows, logging and checkpoints, which belong to the session.
//! Invariants: a step's loss is the mean over all targets of its rows, however these are divided into passes. Between the first op of a
//! step or validation and the last, nothing is allocated and nothing waits for the device.

use super::TrainError;
use super::batch::{Extent, passes};
use super::division::Division;
use super::snapshot::State;
use crate::backend::{AdamWStep, Backend, BackendError, Pass, ROWS, Slot};
use crate::model::decoder::Decoder;
use crate::model::trained::Trained;
use crate::model::workspace::{Largest, Workspace};
use crate::text::example::Example;
use medft_dsl::plan::{Adapter, Train};

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
    room: Option<Room<B>>,
}

/// The buffers of steps and validations of some extent, and the records of passes over them.
struct Room<B: Backend> {
    extent: Extent,
    workspace: Workspace<B>,
    losses: B::Float,
    training: B::Recording,
    validation: B::Recording,
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
            room: None,
        })
    }

    /// Makes room for steps and validations of at most this extent, so that none of them has to.
    ///
    /// # Errors
    /// Too little memory.
    pub fn reserve(&mut self, trained: &Trained<B>, extent: Extent) -> Result<(), BackendError> {
        room(&mut self.room, self.decoder, trained, extent).map(|_| ())
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
        let extent = Extent::of(rows, self.division);
        let room = room(&mut self.room, decoder, &state.trained, extent)?;
        backend.zero(&mut self.grads);
        let mut tokens = 0;
        for pass in passes(rows, self.division, settings.seed, state.progress.step) {
            tokens += pass.tokens() as u64;
            decoder.train_pass(
                &mut room.training,
                &state.trained,
                &mut self.grads,
                dropout(settings) as f32,
                &backend.upload(pass)?,
                &mut room.losses,
                &mut room.workspace,
            );
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
        let loss = mean_loss(backend, &room.losses, extent.losses)?;
        let norm = backend.read(&self.norm, Slot { offset: 0, len: 1 })?;
        Ok(Stepped {
            loss: self.finite("loss", loss, step)?,
            grad_norm: self.finite("gradient norm", f64::from(norm[0]), step)?,
            tokens,
        })
    }

    /// Mean loss of all targets of these rows, without dropout.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], and whatever the device says.
    pub fn validate(&mut self, state: &State<B>, rows: &[Example]) -> Result<f64, TrainError> {
        let (settings, decoder) = (self.settings, self.decoder);
        let backend = &decoder.backend;
        let extent = self.validation_extent(rows);
        let room = room(&mut self.room, decoder, &state.trained, extent)?;
        let mut first = 0;
        for rows in rows.chunks(settings.eval_batch as usize) {
            let rows: Vec<&Example> = rows.iter().collect();
            for mut packed in passes(&rows, self.division, settings.seed, 0) {
                let own = packed.targets.len();
                packed.pass = packed.pass.map(|pass| Pass {
                    first_target: first,
                    ..pass
                });
                first += own;
                let (batch, trained) = (backend.upload(packed)?, Some(&state.trained));
                backend.step(&mut room.validation, &batch, None, |_| {
                    decoder.losses(trained, &batch, &mut room.losses, &mut room.workspace)
                });
            }
        }
        let loss = mean_loss(backend, &room.losses, extent.losses)?;
        self.finite("validation loss", loss, state.progress.step)
    }

    /// The extent of a validation on these rows.
    pub fn validation_extent(&self, rows: &[Example]) -> Extent {
        let settings = self.settings;
        let mut extent = Extent::default();
        for rows in rows.chunks(settings.eval_batch as usize) {
            let rows: Vec<&Example> = rows.iter().collect();
            let own = Extent::of(&rows, self.division);
            let losses = extent.losses + own.losses;
            extent = Extent {
                losses,
                ..extent.max(own)
            };
        }
        extent
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

/// Room for steps of this extent, made anew only where there is less; what was there goes first.
fn room<'r, B: Backend>(
    kept: &'r mut Option<Room<B>>,
    decoder: &Decoder<B>,
    trained: &Trained<B>,
    extent: Extent,
) -> Result<&'r mut Room<B>, BackendError> {
    let before = kept.as_ref().map_or(Extent::default(), |room| room.extent);
    let extent = extent.max(before);
    if extent != before {
        *kept = None;
    }
    if let Some(room) = kept {
        return Ok(room);
    }
    let extent = Extent {
        tokens: extent.tokens.next_multiple_of(ROWS),
        ..extent
    };
    let largest = Largest {
        tokens: extent.tokens,
        targets: extent.targets,
        training: true,
        cached: None,
    };
    Ok(kept.insert(Room {
        extent,
        workspace: decoder.workspace(Some(trained), &largest)?,
        losses: decoder.backend.floats(LOSSES, extent.losses)?,
        training: B::Recording::default(),
        validation: B::Recording::default(),
    }))
}
