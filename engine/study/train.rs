//! The training stage: rows to examples, a session, and where its result lies.

use super::StudyError;
use super::models::Bases;
use super::observer::{Observer, StudyEvent};
use super::resolve::Resolved;
use super::rows::DataSets;
use super::store::Store;
use crate::backend::Backend;
use crate::data::whole_file::write_whole;
use crate::model::adapter;
use crate::model::decoder::Decoder;
use crate::model::trained::{Trained, Tuning};
use crate::text::audit::{ExampleAudit, audit};
use crate::text::example::{Cuts, Example, Renderer};
use crate::train::TrainError;
use crate::train::session::{Ending, Outcome, Session, result_dir};
use crate::train::snapshot::read_trained;
use medft_dsl::plan::{Adapter, Model, Part, Train};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Written when a training is complete.
const OUTCOME: &str = "outcome.json";

/// What a finished training left behind, besides its weights.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainRecord {
    /// How it went.
    pub outcome: Outcome,
    /// Training rows.
    pub rows: usize,
    /// Validation rows.
    pub val_rows: usize,
    /// Target tokens of all training rows.
    pub targets: usize,
    /// Training rows whose note was shortened.
    pub cut_rows: usize,
    /// Tokens cut from them.
    pub cut_tokens: usize,
    /// Most bytes in use while training, on the device that trained ([`crate::backend::facts::Facts::peak`]).
    pub peak_memory: Option<u64>,
    /// What the text room wanted to be said.
    pub notices: Vec<String>,
    /// What the examples look like.
    #[serde(default)]
    pub audit: Option<ExampleAudit>,
}

/// The folder of a training.
///
/// # Errors
/// A name that the plan does not define.
pub fn folder(resolved: &Resolved, store: &Store, train: &Train) -> Result<PathBuf, StudyError> {
    Ok(store.place(&format!("train-{}", resolved.train_key(train)?)))
}

/// The record of a finished training, if it is finished.
///
/// # Errors
/// A name that the plan does not define.
pub fn record(
    resolved: &Resolved,
    store: &Store,
    train: &Train,
) -> Result<Option<TrainRecord>, StudyError> {
    let path = folder(resolved, store, train)?.join(OUTCOME);
    Ok(std::fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Trains, or goes on from the latest checkpoint.
///
/// # Errors
/// Whatever stops the training; [`StudyError::Interrupted`] with a checkpoint on disk.
pub fn run<B: Backend>(
    resolved: &Resolved,
    store: &Store,
    train: &Train,
    bases: &mut Bases<B>,
    sets: &mut DataSets,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<TrainRecord, StudyError> {
    let model = model_of(resolved, train)?;
    let base = bases.get(model, resolved)?;
    let task = resolved.task(&train.task)?;
    let set = sets.get(resolved, store, resolved.data(task)?)?;
    let text = |source| StudyError::Text {
        block: train.name.clone(),
        source,
    };
    let renderer = Renderer::new(task, &base.template, &base.tokenizer).map_err(text)?;
    let notices: Vec<String> = renderer.notices().iter().map(ToString::to_string).collect();
    for notice in &notices {
        observer.event(StudyEvent::Notice(format!("`{}`: {notice}", train.name)));
    }
    let examples = |part| -> Result<Vec<Example>, StudyError> {
        renderer.examples(&set.rows(part, task.level)).map_err(text)
    };
    let (rows, val) = (examples(Part::Train)?, examples(Part::Val)?);
    let cuts: Cuts = rows.iter().map(|e| e.cut).collect();
    if cuts.rows > 0 {
        let (n, all) = (cuts.rows, rows.len());
        let limit = task.max_tokens;
        observer.event(StudyEvent::Notice(format!(
            "`{}`: {n} of {all} training notes are longer than `max_tokens = {limit}` allows and were shortened at their end",
            train.name
        )));
    }
    let dir = folder(resolved, store, train)?;
    let key = resolved.train_key(train)?;
    let session = Session {
        decoder: &base.decoder,
        settings: train,
        train: &rows,
        val: &val,
        dir: &dir,
        base: &base_name(resolved, model),
        key: &key,
    };
    base.decoder.backend.forget_peak();
    let outcome = session.run(stop, &mut |event| {
        observer.event(StudyEvent::Train {
            name: train.name.clone(),
            event,
        });
    })?;
    if outcome.ending == Ending::Interrupted {
        return Err(StudyError::Interrupted);
    }
    if train.adapter == Adapter::Full {
        complete_model(resolved, model, &result_dir(train, &dir))?;
    }
    let record = TrainRecord {
        outcome,
        rows: rows.len(),
        val_rows: val.len(),
        targets: rows.iter().map(|e| e.ids.len() - e.target_start).sum(),
        cut_rows: cuts.rows,
        cut_tokens: cuts.tokens,
        peak_memory: base.decoder.backend.peak(),
        notices,
        audit: Some(audit(&rows, &base.tokenizer, &renderer.stop_ids())),
    };
    write_whole(
        &dir.join(OUTCOME),
        &serde_json::to_vec_pretty(&record).unwrap_or_default(),
    )?;
    Ok(record)
}

/// The trained values of a finished training.
///
/// # Errors
/// Files that are gone or damaged.
pub fn load<B: Backend>(
    resolved: &Resolved,
    store: &Store,
    train: &Train,
    decoder: &Decoder<B>,
) -> Result<Trained<B>, StudyError> {
    let (backend, config) = (&decoder.backend, &decoder.config);
    let dir = result_dir(train, &folder(resolved, store, train)?);
    match train.adapter {
        Adapter::Lora(_) => Ok(adapter::read(backend, config, &dir)?),
        Adapter::Full => {
            let mut trained =
                Trained::zeros(backend, config, Tuning::Full).map_err(TrainError::from)?;
            read_trained(backend, &mut trained, &dir)?;
            Ok(trained)
        }
    }
}

fn model_of<'a>(resolved: &Resolved<'a>, train: &Train) -> Result<&'a Model, StudyError> {
    let found = resolved.plan.models.iter().find(|m| m.name == train.model);
    found.ok_or_else(|| StudyError::Dangling(train.model.clone()))
}

/// What PEFT should look for as the base model.
fn base_name(resolved: &Resolved, model: &Model) -> String {
    match &model.weights {
        medft_dsl::plan::Weights::Hf { repo, .. } => repo.clone(),
        medft_dsl::plan::Weights::Dir { .. } => resolved.model_path(model).display().to_string(),
    }
}

/// Copies what makes a fully trained `model.safetensors` a model directory.
fn complete_model(
    resolved: &Resolved,
    model: &Model,
    to: &std::path::Path,
) -> Result<(), StudyError> {
    let from = resolved.model_path(model);
    for entry in std::fs::read_dir(from).map_err(|e| StudyError::io(from, e))? {
        let path = entry.map_err(|e| StudyError::io(from, e))?.path();
        let text = path
            .extension()
            .is_some_and(|e| e == "json" || e == "jinja");
        let Some(name) = path
            .file_name()
            .filter(|n| text && *n != "model.safetensors.index.json")
        else {
            continue;
        };
        let bytes = std::fs::read(&path).map_err(|e| StudyError::io(&path, e))?;
        write_whole(&to.join(name), &bytes)?;
    }
    Ok(())
}
