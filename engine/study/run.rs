//! Runs a plan: split, train, predict, report, in this order; what is done already is not done again.
//!
//! Holds the stage graph and the run's folder. Invariant: `report.json` is written last and names the run's key, so a folder that has it is
//! complete.

use super::estimate::{self, Shortage};
use super::models::{Bases, as_held};
use super::observer::{Observer, StageLine, StudyEvent};
use super::predict::Stage;
use super::resolve::{Resolved, System};
use super::rows::DataSets;
use super::store::{Store, key};
use super::summary::{self, Evaluation, Material};
use super::{StudyError, train};
use crate::backend::Backend;
use crate::data::whole_file::write_whole;
use crate::machine::Machine;
use crate::report::document::Report;
use medft_dsl::plan::Plan;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Changes whenever the report of the same answers would look different.
const REPORTS: u32 = 3;
/// Names the run's key inside its folder.
const KEY: &str = "run.key";

/// A recipe to run.
pub struct Study<'a> {
    /// What it means.
    pub plan: &'a Plan,
    /// Its text, for the run's folder and the report.
    pub text: &'a str,
    /// Folder for results.
    pub out: &'a Path,
    /// Go on with a run that has begun, never begin one.
    pub must_resume: bool,
    /// Begin nothing that will not fit into the device's memory; else that is a warning.
    pub must_fit: bool,
}

/// `environment.json`.
#[derive(Serialize)]
struct Environment<'a> {
    device: &'a str,
    #[serde(flatten)]
    machine: Machine,
}

/// A finished run.
pub struct Finished {
    /// The run's folder.
    pub dir: PathBuf,
    /// Its report.
    pub report: Report,
    /// Everything was there already.
    pub nothing_to_do: bool,
}

impl Study<'_> {
    /// Runs every stage that is not done yet, on this device.
    ///
    /// # Errors
    /// Whatever stops a stage; what was finished stays.
    pub fn run<B: Backend>(
        &self,
        backend: B,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Finished, StudyError> {
        let (plan, notices) = as_held(self.plan, &backend);
        for notice in notices {
            observer.event(StudyEvent::Notice(notice));
        }
        Study {
            plan: &plan,
            ..*self
        }
        .run_held(backend, stop, observer)
    }

    /// The same, of a plan whose precisions are the device's.
    fn run_held<B: Backend>(
        &self,
        backend: B,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Finished, StudyError> {
        let runs = self.out.join(&self.plan.recipe.name);
        // Before the store, so that nothing is made where there is nothing.
        if self.must_resume && !runs.is_dir() {
            return Err(self.nothing_to_resume(&runs));
        }
        let mut store = Store::open(self.out)?;
        let resolved = Resolved::find(self.plan, backend.kind(), &mut store, observer)?;
        let run_key = self.key(&resolved)?;
        let dir = runs.join(run_key.get(..8).unwrap_or(&run_key));
        let cached = self.plan.evaluates.iter().all(|e| e.cache);
        if let Some(report) = finished_report(&dir, &run_key).filter(|_| cached) {
            return Ok(Finished {
                dir,
                report,
                nothing_to_do: true,
            });
        }
        if self.must_resume && !dir.is_dir() {
            return Err(self.nothing_to_resume(&runs));
        }
        let mut sets = DataSets::default();
        // Data that cannot be used stops a run before it has begun.
        for data in resolved.data_in_use()? {
            sets.get(&resolved, &store, data)?;
        }
        let device = backend.name();
        let stages = self.stages(&resolved, &store)?;
        let shortages = shortages(self.plan, &backend, &stages)?;
        if self.must_fit && !shortages.is_empty() {
            return Err(StudyError::TooLarge(shortages));
        }
        observer.event(StudyEvent::Plan {
            device: device.clone(),
            stages,
        });
        for shortage in shortages {
            observer.event(StudyEvent::Warning(shortage.to_string()));
        }
        write_whole(&dir.join("recipe.rcp"), self.text.as_bytes())?;
        write_whole(&dir.join("plan.json"), &json(self.plan))?;
        let environment = Environment {
            device: &device,
            machine: Machine::inspect(),
        };
        write_whole(&dir.join("environment.json"), &json(&environment))?;

        let gpu = (backend.kind() != "cpu").then_some(device);
        let mut bases = Bases::new(backend);
        let mut trainings = Vec::new();
        for block in &self.plan.trains {
            let record = match train::record(&resolved, &store, block)? {
                Some(record) => record,
                None => {
                    observer.event(StudyEvent::Begin {
                        stage: "train",
                        name: block.name.clone(),
                    });
                    train::run(
                        &resolved, &store, block, &mut bases, &mut sets, stop, observer,
                    )?
                }
            };
            let folder = train::folder(&resolved, &store, block)?;
            link(&folder, &dir.join("train").join(&block.name))?;
            trainings.push((block, record, folder));
        }
        let mut evaluations = Vec::new();
        for block in &self.plan.evaluates {
            let mut answers = Vec::new();
            let named = resolved.systems(block)?;
            for system in by_model(named.clone()) {
                let stage = Stage {
                    resolved: &resolved,
                    store: &store,
                    evaluate: block,
                    system: &system,
                };
                let found = match stage.finished()? {
                    Some(found) => found,
                    None => {
                        observer.event(StudyEvent::Begin {
                            stage: "predict",
                            name: system.name.to_string(),
                        });
                        stage.run(&mut bases, &mut sets, stop, observer)?
                    }
                };
                let path = dir
                    .join("predictions")
                    .join(&block.name)
                    .join(format!("{}.jsonl", system.name));
                write_whole(&path, &lines(&found.predictions))?;
                answers.push((system, found));
            }
            answers.sort_by_key(|(system, _)| named.iter().position(|s| s == system));
            evaluations.push(Evaluation { block, answers });
        }
        let material = Material {
            resolved: &resolved,
            text: self.text,
            trainings: &trainings,
            evaluations: &evaluations,
            gpu,
        };
        let (report, tables) = summary::report(&material, &mut store, &mut sets)?;
        summary::write_tables(&tables, &dir)?;
        summary::write(&report, &dir)?;
        write_whole(&dir.join(KEY), run_key.as_bytes())?;
        observer.event(StudyEvent::Report {
            path: dir.join("report.html"),
        });
        Ok(Finished {
            dir,
            report,
            nothing_to_do: false,
        })
    }

    fn nothing_to_resume(&self, runs: &Path) -> StudyError {
        let entries = std::fs::read_dir(runs).into_iter().flatten().flatten();
        let mut runs: Vec<String> = entries.map(|e| e.path().display().to_string()).collect();
        runs.sort();
        StudyError::NothingToResume {
            out: self.out.to_path_buf(),
            recipe: self.plan.recipe.name.clone(),
            runs,
        }
    }

    /// Hash of everything that the report depends on.
    fn key(&self, resolved: &Resolved) -> Result<String, StudyError> {
        let mut parts = Vec::new();
        for block in &self.plan.trains {
            parts.push(resolved.train_key(block)?);
        }
        for block in &self.plan.evaluates {
            for system in resolved.systems(block)? {
                parts.push(resolved.predict_key(block, &system)?);
            }
        }
        Ok(key(&(REPORTS, env!("CARGO_PKG_VERSION"), self.plan, parts)))
    }

    /// The stages and what is done already.
    fn stages(&self, resolved: &Resolved, store: &Store) -> Result<Vec<StageLine>, StudyError> {
        let mut stages = Vec::new();
        for block in &self.plan.trains {
            stages.push(StageLine {
                stage: "train",
                name: block.name.clone(),
                what: format!(
                    "`{}` on `{}`, {} epochs",
                    block.model, block.task, block.epochs
                ),
                done: train::record(resolved, store, block)?.is_some(),
            });
        }
        for block in &self.plan.evaluates {
            for system in resolved.systems(block)? {
                let stage = Stage {
                    resolved,
                    store,
                    evaluate: block,
                    system: &system,
                };
                stages.push(StageLine {
                    stage: "predict",
                    name: system.name.to_string(),
                    what: if system.train.is_some() {
                        "tuned".into()
                    } else {
                        "zero-shot".into()
                    },
                    done: stage.finished()?.is_some(),
                });
            }
        }
        Ok(stages)
    }
}

/// What stages that are not done yet will lack of memory.
fn shortages<B: Backend>(
    plan: &Plan,
    backend: &B,
    stages: &[StageLine],
) -> Result<Vec<Shortage>, StudyError> {
    if stages.iter().all(|s| s.done) {
        return Ok(Vec::new());
    }
    // Both list the stages in the order of `run`.
    let estimated = estimate::memory(plan, backend)?.stages.into_iter();
    let open = estimated.zip(stages).filter(|(_, line)| !line.done);
    Ok(open.filter_map(|(stage, _)| stage.shortage).collect())
}

/// The same systems with those of one base model side by side, so that it is loaded once.
fn by_model(mut systems: Vec<System>) -> Vec<System> {
    let order: Vec<String> = systems.iter().map(|s| s.model.name.clone()).collect();
    systems.sort_by_key(|s| order.iter().position(|name| *name == s.model.name));
    systems
}

fn finished_report(dir: &Path, run_key: &str) -> Option<Report> {
    let stored = std::fs::read_to_string(dir.join(KEY)).ok()?;
    if stored != run_key || !dir.join("report.html").is_file() {
        return None;
    }
    Report::from_json(&std::fs::read_to_string(dir.join("report.json")).ok()?).ok()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// One JSON line for each value.
fn lines(values: &[impl Serialize]) -> Vec<u8> {
    let line = |value| serde_json::to_vec(value).unwrap_or_default();
    values
        .iter()
        .flat_map(|value| [line(value), b"\n".to_vec()].concat())
        .collect()
}

/// Makes a stage's folder reachable from the run's.
fn link(folder: &Path, place: &Path) -> Result<(), StudyError> {
    let io = |e| StudyError::io(place, e);
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    // Relative, so that the output folder can be moved: RECIPE/ID/train/NAME -> .store/STAGE.
    let target = Path::new("../../../.store").join(folder.file_name().unwrap_or_default());
    #[cfg(unix)]
    std::os::unix::fs::symlink(target, place).map_err(io)?;
    #[cfg(not(unix))]
    std::fs::write(
        place.with_extension("path.txt"),
        target.display().to_string(),
    )
    .map_err(io)?;
    Ok(())
}
