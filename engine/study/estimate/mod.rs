//! What a plan will need, before anything is loaded: memory and time of every stage.
//!
//! Holds the stages and their sum; `memory` and `cost` are the arithmetic, `shape` reads the model's headers and `lengths` the data. It refuses
//! to touch weights and to download. Invariant: a number is given only where its inputs are on this machine; for the rest a reason is given.

mod cost;
mod lengths;
mod memory;
mod shape;

use super::StudyError;
use super::explore::here;
use super::resolve::{System, systems};
use crate::backend::Backend;
use crate::backend::facts::{self, Facts, Rates};
use cost::Cost;
use lengths::{Known, Lengths, Measured};
use medft_dsl::plan::{Evaluate, Model, Part, Plan, Task, Train};
use memory::Planner;
pub use memory::{Memory, Remedy, Shortage, gib};
use serde::Serialize;
use shape::Shape;

/// What a plan will need if nothing of it is done yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// What would compute.
    pub device: String,
    /// Its memory, if that is known.
    pub room: Option<facts::Memory>,
    /// In the order of `run`.
    pub stages: Vec<Stage>,
    /// Seconds of all stages that could be estimated.
    pub seconds: f64,
    /// Bytes of the stage that needs most of those that could be estimated: one runs after the other.
    pub memory: u64,
    /// Stages that do not fit into what is free.
    pub shortages: Vec<Shortage>,
}

/// One training, or one system's answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// `train` or `predict`.
    pub stage: &'static str,
    /// The train block, or the system that answers.
    pub name: String,
    /// What is to be done; `None` if the rows or the tokenizer are not here.
    pub work: Option<Work>,
    /// What it keeps in the device's memory; `None` if the model is not here.
    pub memory: Option<Memory>,
    /// Seconds, from a product timed on the device.
    pub seconds: Option<f64>,
    /// Why a number is lacking.
    pub unknown: Option<String>,
    /// What it lacks of memory; all of them are in [`Estimate::shortages`].
    #[serde(skip)]
    pub shortage: Option<Shortage>,
}

/// What a stage has to do. Tokens are counted in a sample of the rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Work {
    /// A training, to its last step.
    Train {
        /// Training rows.
        rows: u64,
        /// Optimizer steps.
        steps: u64,
        /// Tokens that are learnt from, over all steps.
        tokens: f64,
        /// Tokens that are read to validate.
        validation: f64,
    },
    /// Answers.
    Predict {
        /// Rows.
        rows: u64,
        /// Tokens of their prompts.
        read: f64,
        /// Tokens of their answers: those of a right answer if tuned, up to `max_new` if not.
        written: f64,
    },
}

/// Estimates every stage of a plan on a device.
///
/// # Errors
/// Data, tokenizers or configs that are on this machine and cannot be used.
pub fn estimate<B: Backend>(plan: &Plan, backend: &B) -> Result<Estimate, StudyError> {
    let rates = Some(backend.rates());
    estimate_on(plan, backend, &backend.name(), backend, rates)
}

/// The same without times: quick, because nothing is timed.
///
/// # Errors
/// As [`estimate`].
pub fn memory<B: Backend>(plan: &Plan, backend: &B) -> Result<Estimate, StudyError> {
    estimate_on(plan, backend, &backend.name(), backend, None)
}

/// The same on a device that says so of itself; `backend` counts the buffers of a pass.
fn estimate_on<B: Backend>(
    plan: &Plan,
    backend: &B,
    name: &str,
    device: &dyn Facts,
    rates: Option<Rates>,
) -> Result<Estimate, StudyError> {
    let mut lengths = Lengths::new(plan);
    let room = device.memory();
    let mut stages = Vec::new();
    let finish = |mut stage: Stage, memory: Memory, remedies: &dyn Fn(u64) -> Vec<Remedy>| {
        stage.memory = Some(memory);
        let free = room.map(|r| r.free).filter(|free| memory.total > *free);
        stage.shortage = free.map(|free| Shortage {
            stage: stage.stage,
            name: stage.name.clone(),
            needed: memory.total,
            free,
            device: name.split(',').next().unwrap_or(name).to_string(),
            remedies: remedies(free),
        });
        stage
    };
    for train in &plan.trains {
        let system = super::resolve::system(plan, &train.name)?;
        let mut stage = Stage::new("train", &system);
        let task = task(plan, &train.task)?;
        if let Some((shape, rows)) = stage.begin(&mut lengths, task, &system, device)? {
            let planner = Planner {
                shape: &shape,
                backend,
                device,
                rows: &rows,
                task,
            };
            let plan = &planner;
            stage = finish(stage, planner.train(train), &|free| {
                plan.train_remedies(train, free)
            });
            stage.measured(
                &rows,
                |m| train_work(train, m),
                |m, work| {
                    Some(
                        Cost {
                            plan,
                            rates: rates?,
                        }
                        .train_seconds(train, m, work),
                    )
                },
            );
        }
        stages.push(stage);
    }
    for evaluate in &plan.evaluates {
        for system in systems(plan, evaluate)? {
            let mut stage = Stage::new("predict", &system);
            let task = task(plan, &evaluate.task)?;
            if let Some((shape, known)) = stage.begin(&mut lengths, task, &system, device)? {
                let planner = Planner {
                    shape: &shape,
                    backend,
                    device,
                    rows: &known,
                    task,
                };
                let plan = &planner;
                let most = known.as_ref().map_or(u64::MAX, |m| rows(evaluate, m));
                stage = finish(stage, planner.predict(evaluate, most), &|free| {
                    plan.predict_remedies(evaluate, most, free)
                });
                let tuned = system.train.is_some();
                stage.measured(
                    &known,
                    |m| predict_work(evaluate, tuned, m),
                    |m, work| {
                        Some(
                            Cost {
                                plan,
                                rates: rates?,
                            }
                            .predict_seconds(evaluate, m, work),
                        )
                    },
                );
            }
            stages.push(stage);
        }
    }
    let totals = stages.iter().filter_map(|s| s.memory).map(|m| m.total);
    Ok(Estimate {
        device: name.to_string(),
        room,
        seconds: stages.iter().filter_map(|s| s.seconds).sum(),
        memory: totals.max().unwrap_or(0),
        shortages: stages.iter().filter_map(|s| s.shortage.clone()).collect(),
        stages,
    })
}

fn task<'a>(plan: &'a Plan, name: &str) -> Result<&'a Task, StudyError> {
    let found = plan.tasks.iter().find(|t| t.name == name);
    found.ok_or_else(|| StudyError::Dangling(name.to_string()))
}

impl Stage {
    fn new(stage: &'static str, system: &System) -> Self {
        Stage {
            stage,
            name: system.name.to_string(),
            work: None,
            memory: None,
            seconds: None,
            unknown: None,
            shortage: None,
        }
    }

    /// The model's shape and the lengths of the rows, if the model is here.
    fn begin(
        &mut self,
        lengths: &mut Lengths,
        task: &Task,
        system: &System,
        device: &dyn Facts,
    ) -> Result<Option<(Shape, Known)>, StudyError> {
        let Some(dir) = here(system.model) else {
            self.unknown = Some(not_here(system.model));
            return Ok(None);
        };
        let mut shape = Shape::load(&dir, system)?;
        shape.precision = device.held_as(shape.precision);
        Ok(Some((shape, lengths.get(task, system.model, &dir)?)))
    }

    fn measured(
        &mut self,
        measured: &Known,
        work: impl Fn(&Measured) -> Work,
        seconds: impl Fn(&Measured, &Work) -> Option<f64>,
    ) {
        match measured {
            Ok(measured) => {
                let work = work(measured);
                self.seconds = seconds(measured, &work);
                self.work = Some(work);
            }
            Err(reason) => self.unknown = Some(reason.clone()),
        }
    }
}

fn not_here(model: &Model) -> String {
    use medft_dsl::plan::Weights;
    match &model.weights {
        Weights::Hf { repo, .. } => format!("model `{repo}` is not downloaded yet"),
        Weights::Dir { path } => format!("model folder {} is not there", path.display()),
    }
}

fn train_work(train: &Train, m: &Measured) -> Work {
    let rows = m.rows(Part::Train);
    let per_epoch = rows.div_ceil(train.batch.max(1));
    let all = per_epoch.saturating_mul(train.epochs);
    let steps = all.min(train.max_steps.unwrap_or(u64::MAX));
    // After every `eval_every` steps, and after the last one.
    let validations = match m.rows(Part::Val) {
        0 => 0,
        _ => steps.div_ceil(train.eval_every.max(1)),
    };
    let example = m.prompt + m.answer;
    Work::Train {
        rows,
        steps,
        tokens: steps as f64 / per_epoch.max(1) as f64 * rows as f64 * example,
        validation: validations as f64 * m.rows(Part::Val) as f64 * example,
    }
}

/// Rows that are answered.
fn rows(evaluate: &Evaluate, m: &Measured) -> u64 {
    let limit = evaluate.limit.unwrap_or(u64::MAX);
    m.rows(evaluate.split).min(limit)
}

fn predict_work(evaluate: &Evaluate, tuned: bool, m: &Measured) -> Work {
    let rows = rows(evaluate, m);
    let most = evaluate.decode.max_new as f64;
    let answer = if tuned { m.answer.min(most) } else { most };
    Work::Predict {
        rows,
        read: rows as f64 * m.prompt,
        written: rows as f64 * answer,
    }
}

#[cfg(test)]
mod tests;
