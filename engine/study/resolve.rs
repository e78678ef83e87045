//! From the plan's names to files and keys.
//!
//! Holds where data and models lie, their hashes, and the key of every stage. It refuses to read rows or weights beyond hashing
//! them. Invariant: two stages with the same key have the same result, bit for bit on the same kind of machine.

use super::StudyError;
use super::models::{Downloads, model_dir};
use super::observer::Observer;
use super::store::{Store, key};
use crate::data::hub::Hub;
use medft_dsl::plan::{Adapter, Data, Evaluate, Model, Plan, Task, Train};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes whenever the same inputs would give other numbers, so that old results are not reused.
const NUMERICS: u32 = 3;

/// A plan whose files were found.
pub struct Resolved<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The kind of device that computes.
    device: &'static str,
    data: BTreeMap<&'a str, Found>,
    models: BTreeMap<&'a str, Found>,
    adapters: BTreeMap<PathBuf, String>,
}

/// A file or folder and the hash of what is in it.
struct Found {
    path: PathBuf,
    print: String,
}

/// One line of a result table: a model as it comes or a tuned one.
#[derive(Debug, Clone, PartialEq)]
pub struct System<'a> {
    /// The block's name.
    pub name: &'a str,
    /// The base model.
    pub model: &'a Model,
    /// The training, if it is tuned.
    pub train: Option<&'a Train>,
}

impl<'a> Resolved<'a> {
    /// Finds everything that the plan's trainings and evaluations use; downloads what is not here yet. `device` is the kind that will
    /// compute.
    ///
    /// # Errors
    /// A file or folder that is not there, or a hub that does not give it.
    pub fn find(
        plan: &'a Plan,
        device: &'static str,
        store: &mut Store,
        observer: &mut dyn Observer,
    ) -> Result<Self, StudyError> {
        let mut resolved = Resolved {
            plan,
            device,
            data: BTreeMap::new(),
            models: BTreeMap::new(),
            adapters: BTreeMap::new(),
        };
        for system in resolved.systems_of_all()? {
            if !resolved.models.contains_key(system.model.name.as_str()) {
                let path = model_dir(system.model, observer)?;
                let print = folder_print(&path, store)?;
                resolved
                    .models
                    .insert(&system.model.name, Found { path, print });
            }
            if let Some(Train {
                adapter: Adapter::Lora(lora),
                ..
            }) = system.train
                && let Some(dir) = &lora.init
            {
                if !dir.is_dir() {
                    return Err(StudyError::NoAdapter {
                        name: system.name.to_string(),
                        dir: dir.clone(),
                    });
                }
                let print = folder_print(dir, store)?;
                resolved.adapters.insert(dir.clone(), print);
            }
        }
        for data in resolved.data_in_use()? {
            let path = Hub::from_env().source_file(&data.source, &mut Downloads::new(observer))?;
            if !path.is_file() {
                // The reader has the sentence for it.
                crate::data::rows::read_rows(data, &path, crate::data::icd10::CodeTree::shipped())?;
            }
            let print = store.fingerprint(&path)?;
            resolved.data.insert(&data.name, Found { path, print });
        }
        Ok(resolved)
    }

    /// A model or train block by name.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn system(&self, name: &str) -> Result<System<'a>, StudyError> {
        system(self.plan, name)
    }

    /// See [`systems`].
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn systems(&self, evaluate: &Evaluate) -> Result<Vec<System<'a>>, StudyError> {
        systems(self.plan, evaluate)
    }

    fn systems_of_all(&self) -> Result<Vec<System<'a>>, StudyError> {
        let mut all = Vec::new();
        for train in &self.plan.trains {
            all.push(self.system(&train.name)?);
        }
        for evaluate in &self.plan.evaluates {
            all.extend(self.systems(evaluate)?);
        }
        Ok(all)
    }

    /// The data blocks of all trainings and evaluations, each once.
    pub(super) fn data_in_use(&self) -> Result<Vec<&'a Data>, StudyError> {
        let tasks = self
            .plan
            .trains
            .iter()
            .map(|t| &t.task)
            .chain(self.plan.evaluates.iter().map(|e| &e.task));
        let mut all: Vec<&'a Data> = Vec::new();
        for task in tasks {
            let data = self.data(self.task(task)?)?;
            if !all.iter().any(|d| d.name == data.name) {
                all.push(data);
            }
        }
        Ok(all)
    }

    /// A task block by name.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn task(&self, name: &str) -> Result<&'a Task, StudyError> {
        self.plan
            .tasks
            .iter()
            .find(|t| t.name == name)
            .ok_or_else(|| StudyError::Dangling(name.to_string()))
    }

    /// A task's data block.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn data(&self, task: &Task) -> Result<&'a Data, StudyError> {
        let found = self.plan.data.iter().find(|d| d.name == task.data);
        found.ok_or_else(|| StudyError::Dangling(task.data.clone()))
    }

    /// Where a data block's file lies.
    pub fn data_path(&self, data: &Data) -> &Path {
        self.data
            .get(data.name.as_str())
            .map_or(Path::new(""), |f| &f.path)
    }

    /// Where a model lies.
    pub fn model_path(&self, model: &Model) -> &Path {
        self.models
            .get(model.name.as_str())
            .map_or(Path::new(""), |f| &f.path)
    }

    /// Hash of a model's files.
    pub fn model_print(&self, model: &Model) -> &str {
        self.models
            .get(model.name.as_str())
            .map_or("", |f| &f.print)
    }

    /// What the bits of a result depend on besides its inputs: the kind of device and the version of the numerics, such as `cpu/2`.
    pub fn numerics(&self) -> String {
        format!("{}/{NUMERICS}", self.device)
    }

    fn data_print(&self, data: &Data) -> &str {
        self.data.get(data.name.as_str()).map_or("", |f| &f.print)
    }

    /// Key of a data block's split.
    pub fn split_key(&self, data: &Data) -> String {
        key(&(
            NUMERICS,
            "split",
            self.data_print(data),
            &data.text,
            data.redact,
            &data.code,
            data.limit,
            &data.split,
        ))
    }

    fn task_key(&self, task: &Task) -> Result<String, StudyError> {
        let Task {
            name: _,
            data: _,
            system,
            user,
            answer,
            max_tokens,
            level,
        } = task;
        Ok(key(&(
            self.split_key(self.data(task)?),
            system,
            user,
            answer,
            max_tokens,
            level,
        )))
    }

    fn model_key(&self, model: &Model) -> String {
        key(&(self.model_print(model), model.precision, model.double_quant))
    }

    /// Key of a training.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn train_key(&self, train: &Train) -> Result<String, StudyError> {
        let system = self.system(&train.name)?;
        let init = match &train.adapter {
            Adapter::Lora(lora) => lora.init.as_ref().and_then(|dir| self.adapters.get(dir)),
            Adapter::Full => None,
        };
        // Names, paths, and what only decides when something is written, do not change the result.
        let mut settings = train.clone();
        settings.name.clear();
        settings.model.clear();
        settings.task.clear();
        (settings.log_every, settings.save_every, settings.keep) = (1, 1, 1);
        if let Adapter::Lora(lora) = &mut settings.adapter {
            lora.init = None;
        }
        let task = self.task_key(self.task(&train.task)?)?;
        Ok(key(&(
            self.numerics(),
            "train",
            self.model_key(system.model),
            task,
            settings,
            init,
        )))
    }

    /// Key of one system's predictions.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn predict_key(&self, evaluate: &Evaluate, system: &System) -> Result<String, StudyError> {
        #[derive(Serialize)]
        struct Parts<'a> {
            numerics: String,
            model: String,
            train: Option<String>,
            task: String,
            decode: &'a medft_dsl::plan::Decode,
            part: medft_dsl::plan::Part,
            limit: Option<u64>,
        }
        Ok(key(&Parts {
            numerics: self.numerics(),
            model: self.model_key(system.model),
            train: system.train.map(|t| self.train_key(t)).transpose()?,
            task: self.task_key(self.task(&evaluate.task)?)?,
            decode: &evaluate.decode,
            part: evaluate.split,
            limit: evaluate.limit,
        }))
    }
}

/// A model or train block by name.
///
/// # Errors
/// A name that the plan does not define.
pub fn system<'a>(plan: &'a Plan, name: &str) -> Result<System<'a>, StudyError> {
    let train = plan.trains.iter().find(|t| t.name == name);
    let wanted = train.map_or(name, |t| &t.model);
    let model = plan.models.iter().find(|m| m.name == wanted);
    let model = model.ok_or_else(|| StudyError::Dangling(wanted.to_string()))?;
    Ok(System {
        name: train.map_or(&model.name, |t| &t.name),
        model,
        train,
    })
}

/// The systems of an evaluation: those that the recipe names, and each tuned one's own base as it comes.
///
/// # Errors
/// A name that the plan does not define.
pub fn systems<'a>(plan: &'a Plan, evaluate: &Evaluate) -> Result<Vec<System<'a>>, StudyError> {
    let mut systems = Vec::new();
    for name in &evaluate.models {
        systems.push(system(plan, name)?);
    }
    for tuned in systems.clone() {
        if tuned.train.is_some() && !systems.iter().any(|s| s.name == tuned.model.name) {
            systems.push(system(plan, &tuned.model.name)?);
        }
    }
    Ok(systems)
}

/// Hash of the files in a folder that a model or an adapter consists of.
fn folder_print(dir: &Path, store: &mut Store) -> Result<String, StudyError> {
    let mut prints = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(|e| StudyError::unreadable(dir, e))? {
        let path = entry.map_err(|e| StudyError::unreadable(dir, e))?.path();
        let part = path
            .extension()
            .is_some_and(|e| e == "json" || e == "safetensors" || e == "jinja");
        if part && path.is_file() {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            prints.insert(name, store.fingerprint(&path)?);
        }
    }
    Ok(key(&prints))
}
