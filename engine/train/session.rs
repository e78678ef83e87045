//! The training loop of one train block.
//!
//! Holds the order of things: steps, log lines, validations, checkpoints, the end. It refuses to print: an observer hears what happens.
//! Invariant: everything that the next step depends on is in [`State`], so a resumed run has the bits of an uninterrupted one.

use super::TrainError;
use super::batch::{Extent, Order};
use super::division::Division;
use super::metrics::{Metric, Metrics};
use super::schedule::learning_rate;
use super::snapshot::{Best, Label, Progress, Snapshots, State, read_trained, write_trained};
use super::step::{Stepped, Stepper, dropout};
use crate::backend::Backend;
use crate::model::adapter;
use crate::model::decoder::Decoder;
use crate::model::trained::{LoraShape, Trained, Tuning};
use crate::text::example::Example;
use medft_dsl::plan::{Adapter, Train};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
        /// Steps of the whole training.
        steps: u64,
        /// Steps that a checkpoint has done already.
        done: u64,
        /// Number of trained values.
        trained_values: usize,
    },
    /// A step is done.
    Step {
        /// Its numbers; the loss is the mean since the last log line.
        metric: Metric,
        /// Steps of the whole training.
        steps: u64,
        /// Training tokens a second since this session began, validations included.
        tokens_per_second: f64,
    },
    /// A validation is done.
    Validated {
        /// Its numbers.
        metric: Metric,
        /// Its loss is the lowest so far, so these weights would be the result.
        best: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Its folder.
        path: PathBuf,
    },
}

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ending {
    /// All steps done.
    Completed,
    /// The last validations brought no improvement.
    EarlyStop {
        /// How many.
        validations: u64,
    },
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
    /// The validation whose weights are the result; without validation rows, the last step's are.
    pub best: Option<Best>,
    /// Number of trained values.
    pub trained_values: usize,
}

/// The folder of a training's result.
pub fn result_dir(settings: &Train, dir: &Path) -> PathBuf {
    dir.join(match settings.adapter {
        Adapter::Lora(_) => "adapter",
        Adapter::Full => "model",
    })
}

impl<B: Backend> Session<'_, B> {
    /// Trains, or goes on from the latest checkpoint. Once `stop` is set, the step is finished, a checkpoint written and
    /// [`Ending::Interrupted`] returned.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub fn run(
        &self,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainError> {
        let (s, backend) = (self.settings, &self.decoder.backend);
        if self.train.is_empty() {
            return Err(TrainError::NoRows {
                name: s.name.clone(),
            });
        }
        let order = Order {
            rows: self.train.len(),
            batch: s.batch as usize,
            shuffle: s.shuffle,
            seed: s.seed,
        };
        let per_epoch = order.steps_per_epoch();
        let steps = (per_epoch * s.epochs).min(s.max_steps.unwrap_or(u64::MAX));
        let snapshots = Snapshots::open(self.dir.join("checkpoints"))?;
        let mut state = State::new(backend, self.start()?, self.key)?;
        snapshots.resume(backend, &mut state)?;
        let mut metrics = Metrics::open(&self.dir.join("metrics.jsonl"), state.progress.step)?;
        let trained_values = state.trained.len();
        let division = Division::of(self.decoder, &state, s, [self.train, self.val]);
        state.progress.division = Some(division);
        let mut stepper = Stepper::new(self.decoder, s, division, trained_values)?;
        let mut order_of = order.steps();
        let mut rows_of = |step| -> Vec<&Example> {
            let rows = order_of.rows(step).iter();
            rows.map(|row| &self.train[*row]).collect()
        };
        let extents = (state.progress.step..steps).map(|step| Extent::of(&rows_of(step), division));
        let validation = stepper.validation_extent(self.val);
        stepper.reserve(&state.trained, extents.fold(validation, Extent::max))?;
        observe(Event::Started {
            steps,
            done: state.progress.step,
            trained_values,
        });

        let (began, before) = (Instant::now(), state.progress.clone());
        let mut ending = self.ending(&state.progress, steps);
        while ending.is_none() {
            let rows = rows_of(state.progress.step);
            let lr = learning_rate(&s.schedule, s.optimizer.lr, state.progress.step, steps);
            let Stepped {
                loss,
                grad_norm,
                tokens,
            } = stepper.step(&mut state, &rows, lr)?;
            let progress = &mut state.progress;
            progress.step += 1;
            progress.tokens += tokens;
            progress.seconds = before.seconds + began.elapsed().as_secs_f64();
            progress.window = (progress.window.0 + loss, progress.window.1 + 1);
            let step = progress.step;
            let due = |every: u64| step.is_multiple_of(every) || step == steps;
            let metric = Metric {
                step,
                epoch: step as f64 / per_epoch as f64,
                loss: Some(progress.window.0 / progress.window.1 as f64),
                val_loss: None,
                lr,
                grad_norm: Some(grad_norm),
                tokens: progress.tokens,
                seconds: progress.seconds,
            };
            if due(s.log_every) {
                metrics.push(&metric)?;
                progress.window = (0.0, 0);
            }
            let seconds = (progress.seconds - before.seconds).max(1e-9);
            observe(Event::Step {
                metric: metric.clone(),
                steps,
                tokens_per_second: (progress.tokens - before.tokens) as f64 / seconds,
            });

            if due(s.eval_every) && !self.val.is_empty() {
                let val_loss = stepper.validate(&state, self.val)?;
                let best = self.judge(&mut state.progress, val_loss);
                if best {
                    // Before the checkpoint that refers to it; a kill in between repeats this validation.
                    write_trained(backend, &state.trained, self.label(), &self.best_dir())?;
                }
                let metric = Metric {
                    loss: None,
                    val_loss: Some(val_loss),
                    grad_norm: None,
                    ..metric
                };
                metrics.push(&metric)?;
                observe(Event::Validated { metric, best });
            }
            ending = self.ending(&state.progress, steps);
            if ending.is_none() && stop.load(Ordering::Relaxed) {
                ending = Some(Ending::Interrupted);
            }
            if ending.is_some() || due(s.save_every) {
                let path = snapshots.save(backend, &state, self.label(), s.keep)?;
                observe(Event::Saved { path });
            }
        }

        let ending = ending.unwrap_or(Ending::Completed);
        if ending != Ending::Interrupted {
            if state.progress.best.is_some() {
                read_trained(backend, &mut state.trained, &self.best_dir())?;
            }
            let to = result_dir(s, self.dir);
            write_trained(backend, &state.trained, self.label(), &to)?;
        }
        Ok(Outcome {
            ending,
            steps: state.progress.step,
            tokens: state.progress.tokens,
            seconds: state.progress.seconds,
            best: state.progress.best,
            trained_values,
        })
    }

    /// The trained values before the first step.
    fn start(&self) -> Result<Trained<B>, TrainError> {
        let (backend, config) = (&self.decoder.backend, &self.decoder.config);
        let Adapter::Lora(lora) = &self.settings.adapter else {
            let mut trained = Trained::zeros(backend, config, Tuning::Full)?;
            for parameter in trained.parameters().to_vec() {
                if let Some(values) = self.decoder.values(&parameter.name)? {
                    backend.write(&mut trained.values, parameter.slot.offset, &values);
                }
            }
            return Ok(trained);
        };
        let shape = LoraShape {
            rank: lora.rank as usize,
            alpha: lora.alpha,
            rank_stabilized: false,
            targets: lora.targets.clone(),
        };
        Ok(match &lora.init {
            None => Trained::new_lora(backend, config, shape, self.settings.seed)?,
            Some(dir) => adapter::read_as(backend, config, &shape, dir)?,
        })
    }

    fn label(&self) -> Label<'_> {
        Label {
            base: self.base,
            dropout: dropout(self.settings),
        }
    }

    fn best_dir(&self) -> PathBuf {
        self.dir.join("best")
    }

    /// Whether the training is over.
    fn ending(&self, progress: &Progress, steps: u64) -> Option<Ending> {
        if progress.step >= steps {
            return Some(Ending::Completed);
        }
        let stop = self.settings.stop.as_ref()?;
        (progress.patience_used >= stop.patience).then_some(Ending::EarlyStop {
            validations: progress.patience_used,
        })
    }

    /// Whether this validation is the best one; counts those without a sufficient improvement over the best before
    /// (Transformers' `EarlyStoppingCallback`: any improvement is the new best, one above `min_delta` resets the count).
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
