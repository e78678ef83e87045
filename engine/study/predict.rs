//! The prediction stage: one system's answers to one side of the split.
//!
//! Holds the cache of answers and the batches. Invariant: an answer is reused only for the same weights, prompt tokens, row and
//! decoding settings.

use super::StudyError;
use super::models::Bases;
use super::observer::{Observer, StudyEvent};
use super::resolve::{Resolved, System};
use super::rows::DataSets;
use super::store::{Store, key};
use super::train;
use crate::data::whole_file::write_whole;
use crate::evaluate::prediction::{self, Prediction, prompt_hash};
use crate::generate::engine::{Generator, Request};
use crate::text::example::{Prompt, Renderer};
use medft_dsl::plan::Evaluate;
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// A system's answers, and what they cost.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Answers {
    /// One for each row of the side, in the order of the split.
    pub predictions: Vec<Prediction>,
    /// Seconds of decoding for the rows that were decoded in this stage.
    pub seconds: f64,
    /// Rows that were decoded in this stage; the others came from the cache.
    pub decoded: usize,
    /// Most memory in use while decoding, bytes.
    pub peak_memory: Option<u64>,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Trained values, if the system is tuned.
    pub trained: Option<u64>,
}

/// Where a stage's answers lie when it is complete.
///
/// # Errors
/// A name that the plan does not define.
pub fn place(
    resolved: &Resolved,
    store: &Store,
    evaluate: &Evaluate,
    system: &System,
) -> Result<PathBuf, StudyError> {
    Ok(store.place(&format!(
        "predict-{}.json",
        resolved.predict_key(evaluate, system)?
    )))
}

/// The answers of a complete stage.
///
/// # Errors
/// A name that the plan does not define.
pub fn finished(
    resolved: &Resolved,
    store: &Store,
    evaluate: &Evaluate,
    system: &System,
) -> Result<Option<Answers>, StudyError> {
    if !evaluate.cache {
        return Ok(None);
    }
    let bytes = std::fs::read(place(resolved, store, evaluate, system)?).ok();
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Answers every row of the side; rows that were answered before are not decoded again.
///
/// # Errors
/// Whatever stops the decoding; [`StudyError::Interrupted`] with all complete batches on disk.
pub fn run(
    resolved: &Resolved,
    store: &Store,
    evaluate: &Evaluate,
    system: &System,
    bases: &mut Bases,
    sets: &mut DataSets,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Answers, StudyError> {
    let text = |source| StudyError::Text {
        block: evaluate.name.clone(),
        source,
    };
    let base = bases.get(system.model, resolved)?;
    let trained = match system.train {
        Some(train) => Some(train::load(resolved, store, train, &base.decoder.config)?),
        None => None,
    };
    let task = resolved.task(&evaluate.task)?;
    let set = sets.get(resolved, store, resolved.data(task)?)?;
    let rows = set.side(evaluate.split, evaluate.limit);
    let renderer = Renderer::new(task, &base.template, &base.tokenizer).map_err(text)?;
    let notes: Vec<&str> = rows
        .iter()
        .map(|r| set.all.rows[*r].text.as_str())
        .collect();
    let prompts: Vec<Prompt> = renderer.prompts(&notes).map_err(text)?;

    let path = store.place(&format!(
        "answers-{}.jsonl",
        key(&(resolved.weights_key(system)?, &evaluate.decode))
    ));
    let io = |e| StudyError::io(&path, e);
    if !evaluate.cache && path.is_file() {
        std::fs::remove_file(&path).map_err(io)?;
    }
    let mut known: HashMap<(String, String), Prediction> = HashMap::new();
    for prediction in prediction::read(&path).map_err(io)? {
        known.insert(
            (prediction.id.clone(), prediction.prompt.clone()),
            prediction,
        );
    }
    let name = |at: usize| {
        (
            set.all.rows[rows[at]].id.clone(),
            prompt_hash(&prompts[at].ids),
        )
    };
    let mut todo: Vec<usize> = (0..rows.len())
        .filter(|at| !known.contains_key(&name(*at)))
        .collect();
    // Prompts of like length share a batch, longest first: memory is known from the first batch on.
    todo.sort_by_key(|at| std::cmp::Reverse(prompts[*at].ids.len()));

    let end_ids = renderer.stop_ids();
    let generator = Generator {
        decoder: &base.decoder,
        trained: trained.as_ref(),
        settings: &evaluate.decode,
        end_ids: &end_ids,
    };
    let mut file = prediction::append(&path).map_err(io)?;
    let mut seconds = 0.0;
    crate::machine::reset_peak_memory();
    let total = rows.len();
    let tell = |observer: &mut dyn Observer, done| {
        observer.event(StudyEvent::Predict {
            name: system.name.to_string(),
            done,
            total,
        });
    };
    tell(observer, total - todo.len());
    for (i, batch) in todo.chunks(evaluate.batch.max(1) as usize).enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err(StudyError::Interrupted);
        }
        let requests: Vec<Request> = batch
            .iter()
            .map(|at| Request {
                row: stream(&set.all.rows[rows[*at]].id),
                prompt: &prompts[*at].ids,
            })
            .collect();
        let began = std::time::Instant::now();
        let answers = generator
            .answer(&requests)
            .map_err(|source| StudyError::Generate {
                block: evaluate.name.clone(),
                source,
            })?;
        seconds += began.elapsed().as_secs_f64();
        let mut done = Vec::new();
        for (at, answer) in batch.iter().zip(answers) {
            let (id, prompt) = name(*at);
            done.push(Prediction {
                id,
                prompt,
                prompt_tokens: prompts[*at].ids.len(),
                cut: prompts[*at].cut,
                answer: base.tokenizer.decode(&answer.ids, true).map_err(text)?,
                tokens: answer.ids.len(),
                finish: answer.finish,
                seconds: answer.seconds,
            });
        }
        file.write_all(prediction::lines(&done).as_bytes())
            .map_err(io)?;
        known.extend(
            done.into_iter()
                .map(|p| ((p.id.clone(), p.prompt.clone()), p)),
        );
        let so_far = total - todo.len() + (i * evaluate.batch as usize + batch.len());
        tell(observer, so_far);
    }
    let answers = Answers {
        predictions: (0..total)
            .filter_map(|at| known.get(&name(at)).cloned())
            .collect(),
        seconds,
        decoded: todo.len(),
        peak_memory: crate::machine::peak_memory(),
        parameters: base.decoder.config.parameters(),
        trained: trained.map(|t| t.len() as u64),
    };
    let bytes = serde_json::to_vec(&answers).unwrap_or_default();
    write_whole(&place(resolved, store, evaluate, system)?, &bytes)?;
    Ok(answers)
}

/// The number that a row's random draws follow: its identity.
fn stream(id: &str) -> u64 {
    u64::from_str_radix(id, 16).unwrap_or_default()
}
