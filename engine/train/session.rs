//! The training loop of one train block.
//!
//! Holds the order of things: passes, clipping, AdamW, validation, checkpoints. It refuses to print: an observer hears what happens.
//! Invariant: everything that the next step depends on is in `Progress` and the tensors, so a resumed run has the bits of an uninterrupted one.

use super::TrainError;
use super::batch::{Order, passes};
use super::metrics::{Metric, Metrics};
use super::schedule::learning_rate;
use super::snapshot::{Best, Label, Moments, Progress, Snapshots, read_trained, write_trained};
use crate::backend::{AdamWStep, Backend};
use crate::model::adapter;
use crate::model::decoder::Decoder;
use crate::model::pass::Workspace;
use crate::model::trained::{DropoutStep, LoraShape, Trained, Tuning};
use crate::text::example::Example;
use medft_dsl::plan::{Adapter, Train};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Gradient norms are divided with this added, as PyTorch's `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// One train block, ready to run.
pub struct Session<'a, B: Backend> {
    /// The base model.
    pub decoder: &'a Decoder<B>,
    /// The settings.
    pub settings: &'a Train,
    /// Training rows.
    pub train: &'a [Example],
    /// Validation rows; without any, the last weights are the result.
    pub val: &'a [Example],
    /// Folder of the training; the result goes to `adapter/` or `model/` in it.
    pub dir: &'a Path,
    /// The base model's name, for PEFT.
    pub base: &'a str,
    /// Hash of everything that the training depends on.
    pub key: &'a str,
}

/// What happens while training.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The first step is about to begin.
    Started {
        steps: u64,
        done: u64,
        trained_values: usize,
    },
    /// A step is done.
    Step {
        metric: Metric,
        steps: u64,
        tokens_per_second: f64,
        logged: bool,
    },
    /// A validation is done.
    Validated { metric: Metric, best: bool },
    /// A checkpoint is on disk.
    Saved { path: PathBuf },
}

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ending {
    /// All steps done.
    Completed,
    /// No improvement for so many validations.
    EarlyStop { validations: u64 },
    /// Asked to stop; a checkpoint is on disk.
    Interrupted,
}

/// The result of a training.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// Steps done.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds, over all sessions.
    pub seconds: f64,
    /// The checkpoint that was kept.
    pub best: Option<Best>,
    /// Number of trained values.
    pub trained_values: usize,
}

/// The folder of a training's result.
pub fn result_dir(settings: &Train, dir: &Path) -> PathBuf {
    dir.join(if settings.adapter == Adapter::Full {
        "model"
    } else {
        "adapter"
    })
}

impl<B: Backend> Session<'_, B> {
    /// Trains, or goes on from the latest checkpoint.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub fn run(
        &self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainError> {
        let s = self.settings;
        let order = Order {
            rows: self.train.len(),
            batch: s.batch as usize,
            shuffle: s.shuffle,
            seed: s.seed,
        };
        if self.train.is_empty() {
            return Err(TrainError::NoRows {
                name: s.name.clone(),
            });
        }
        let per_epoch = order.steps_per_epoch();
        let steps = (per_epoch * s.epochs).min(s.max_steps.unwrap_or(u64::MAX));
        let backend = &self.decoder.backend;
        let mut trained = self.start()?;
        let mut moments = Moments {
            first: backend.float(trained.len()),
            second: backend.float(trained.len()),
        };
        let snapshots = Snapshots::open(self.dir.join("checkpoints"))?;
        let mut progress = snapshots
            .latest(backend, self.key, &mut trained, &mut moments)?
            .unwrap_or(Progress {
                key: self.key.to_string(),
                step: 0,
                tokens: 0,
                seconds: 0.0,
                best: None,
                patience_used: 0,
                window: (0.0, 0),
            });
        let mut metrics = Metrics::open(&self.dir.join("metrics.jsonl"), progress.step)?;
        let mut ws: Option<Workspace<B>> = None;
        let mut grads = backend.float(trained.len());
        observe(Event::Started {
            steps,
            done: progress.step,
            trained_values: trained.len(),
        });
        let (began, before) = (Instant::now(), progress.seconds);
        let first_step_tokens = progress.tokens;
        let mut rows = order.epoch(progress.step / per_epoch);
        let mut ending = self.ending(&progress);
        while progress.step < steps && ending == Ending::Completed {
            let step = progress.step;
            let at = (step % per_epoch) as usize * order.batch;
            if at == 0 {
                rows = order.epoch(step / per_epoch);
            }
            let batch: Vec<&Example> = rows[at..(at + order.batch).min(rows.len())]
                .iter()
                .map(|r| &self.train[*r])
                .collect();
            let lr = learning_rate(&s.schedule, s.optimizer.lr, step, steps);
            let (loss, grad_norm, tokens) = self.step(
                &batch,
                step,
                lr,
                &mut trained,
                &mut grads,
                &mut moments,
                &mut ws,
            )?;
            progress.step += 1;
            progress.tokens += tokens;
            progress.seconds = before + began.elapsed().as_secs_f64();
            progress.window = (progress.window.0 + loss, progress.window.1 + 1);
            let logged = progress.step.is_multiple_of(s.log_every) || progress.step == steps;
            let mut metric = Metric {
                step: progress.step,
                epoch: progress.step as f64 / per_epoch as f64,
                loss: Some(progress.window.0 / progress.window.1 as f64),
                val_loss: None,
                lr,
                grad_norm: Some(grad_norm),
                tokens: progress.tokens,
                seconds: progress.seconds,
            };
            if logged {
                metrics.push(&metric)?;
                progress.window = (0.0, 0);
            }
            let tokens_per_second = (progress.tokens - first_step_tokens) as f64
                / began.elapsed().as_secs_f64().max(1e-9);
            observe(Event::Step {
                metric: metric.clone(),
                steps,
                tokens_per_second,
                logged,
            });

            let due = progress.step.is_multiple_of(s.eval_every) || progress.step == steps;
            if due && !self.val.is_empty() {
                let val_loss = self.validate(&trained, &mut ws);
                metric = Metric {
                    loss: None,
                    val_loss: Some(val_loss),
                    grad_norm: None,
                    ..metric
                };
                let best = self.judge(&mut progress, val_loss);
                if best {
                    write_trained(backend, &trained, &self.label(), &self.dir.join("best"))?;
                }
                metrics.push(&metric)?;
                observe(Event::Validated { metric, best });
                ending = self.ending(&progress);
            }
            let interrupted = stop.load(Ordering::Relaxed)
                && progress.step < steps
                && ending == Ending::Completed;
            let last = progress.step == steps || ending != Ending::Completed;
            if interrupted || last || progress.step.is_multiple_of(s.save_every) {
                let path = snapshots.save(
                    backend,
                    &progress,
                    &trained,
                    &moments,
                    &self.label(),
                    s.keep,
                )?;
                observe(Event::Saved { path });
            }
            if interrupted {
                ending = Ending::Interrupted;
            }
        }
        if ending != Ending::Interrupted {
            if progress.best.is_some() {
                read_trained(backend, &mut trained, &self.dir.join("best"))?;
            }
            write_trained(backend, &trained, &self.label(), &result_dir(s, self.dir))?;
        }
        Ok(Outcome {
            ending,
            steps: progress.step,
            tokens: progress.tokens,
            seconds: progress.seconds,
            best: progress.best,
            trained_values: trained.len(),
        })
    }

    /// The trained values before the first step.
    fn start(&self) -> Result<Trained<B>, TrainError> {
        let (decoder, backend) = (self.decoder, &self.decoder.backend);
        match &self.settings.adapter {
            Adapter::Lora(lora) => {
                let shape = LoraShape {
                    rank: lora.rank as usize,
                    alpha: lora.alpha,
                    rank_stabilized: false,
                    targets: lora.targets.clone(),
                };
                let Some(init) = &lora.init else {
                    return Ok(Trained::new_lora(
                        backend,
                        &decoder.config,
                        shape,
                        self.settings.seed,
                    ));
                };
                let trained = adapter::read(backend, &decoder.config, init)?;
                if let Tuning::Lora(found) = trained.tuning() {
                    adapter::check_shape(found, &shape, init)?;
                }
                Ok(trained)
            }
            Adapter::Full => {
                let mut trained = Trained::zeros(backend, &decoder.config, Tuning::Full);
                for parameter in trained.parameters().to_vec() {
                    if let Some(values) = decoder.values(&parameter.name) {
                        backend.write(&mut trained.values, parameter.slot.offset, &values);
                    }
                }
                Ok(trained)
            }
        }
    }

    fn label(&self) -> Label<'_> {
        let dropout = match &self.settings.adapter {
            Adapter::Lora(lora) => lora.dropout,
            Adapter::Full => 0.0,
        };
        Label {
            base: self.base,
            dropout,
        }
    }

    /// One optimizer step; returns the mean loss of its targets, the gradient norm before clipping and the tokens seen.
    fn step(
        &self,
        batch: &[&Example],
        step: u64,
        lr: f64,
        trained: &mut Trained<B>,
        grads: &mut B::Float,
        moments: &mut Moments<B>,
        ws: &mut Option<Workspace<B>>,
    ) -> Result<(f64, f64, u64), TrainError> {
        let (s, backend) = (self.settings, &self.decoder.backend);
        let passes = passes(batch, s.micro_batch);
        let targets: usize = passes.iter().map(|p| p.targets.len()).sum();
        let dropout = DropoutStep {
            p: self.label().dropout as f32,
            seed: s.seed,
            step,
        };
        backend.zero(grads);
        let (mut sum, mut tokens) = (0.0, 0);
        for pass in passes {
            let n = pass.tokens();
            tokens += n as u64;
            let ws = self.workspace(ws, trained, n);
            let scale = 1.0 / targets.max(1) as f32;
            let losses = self.decoder.train_pass(
                trained,
                grads,
                Some(dropout),
                &backend.upload(pass),
                n,
                scale,
                ws,
            );
            sum += losses.into_iter().map(f64::from).sum::<f64>();
        }
        let loss = sum / targets.max(1) as f64;
        let norm = backend.norm(grads);
        if !loss.is_finite() || !norm.is_finite() {
            return Err(TrainError::Diverged {
                name: s.name.clone(),
                step: step + 1,
                loss,
            });
        }
        let adamw = AdamWStep {
            lr,
            weight_decay: s.optimizer.weight_decay,
            beta1: s.optimizer.beta1,
            beta2: s.optimizer.beta2,
            eps: s.optimizer.eps,
            step: step + 1,
            clip: s
                .clip
                .map_or(1.0, |clip| (clip / (norm + CLIP_EPS)).min(1.0)),
        };
        backend.adamw(
            &adamw,
            grads,
            &mut trained.values,
            &mut moments.first,
            &mut moments.second,
        );
        Ok((loss, norm, tokens))
    }

    /// A workspace for `tokens`, made anew only when a larger one is needed.
    fn workspace<'w>(
        &self,
        ws: &'w mut Option<Workspace<B>>,
        trained: &Trained<B>,
        tokens: usize,
    ) -> &'w mut Workspace<B> {
        if ws.as_ref().is_some_and(|w| w.capacity() < tokens) {
            *ws = None;
        }
        ws.get_or_insert_with(|| {
            Workspace::new(
                &self.decoder.backend,
                &self.decoder.config,
                Some(trained),
                tokens.next_multiple_of(64),
                true,
            )
        })
    }

    /// Mean loss of all validation targets.
    fn validate(&self, trained: &Trained<B>, ws: &mut Option<Workspace<B>>) -> f64 {
        let backend = &self.decoder.backend;
        let (mut sum, mut targets) = (0.0, 0);
        for rows in self.val.chunks(self.settings.eval_batch.max(1) as usize) {
            for pass in passes(&rows.iter().collect::<Vec<_>>(), self.settings.micro_batch) {
                let n = pass.tokens();
                let ws = self.workspace(ws, trained, n);
                let losses = self
                    .decoder
                    .losses(Some(trained), &backend.upload(pass), n, ws);
                targets += losses.len();
                sum += losses.into_iter().map(f64::from).sum::<f64>();
            }
        }
        sum / targets.max(1) as f64
    }

    /// Whether the validations so far end the training.
    fn ending(&self, progress: &Progress) -> Ending {
        match &self.settings.stop {
            Some(stop) if progress.patience_used >= stop.patience => Ending::EarlyStop {
                validations: progress.patience_used,
            },
            _ => Ending::Completed,
        }
    }

    /// Whether this validation is the best one; counts those without a sufficient improvement (Transformers' `EarlyStoppingCallback`).
    fn judge(&self, progress: &mut Progress, loss: f64) -> bool {
        let before = progress.best.map_or(f64::INFINITY, |b| b.loss);
        let enough = self.settings.stop.as_ref().map_or(0.0, |s| s.min_delta);
        progress.patience_used = if before - loss > enough {
            0
        } else {
            progress.patience_used + 1
        };
        let best = loss < before;
        if best {
            progress.best = Some(Best {
                step: progress.step,
                loss,
            });
        }
        best
    }
}
