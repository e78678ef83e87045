//! Models of a study: where they lie, and the one that is loaded.
//!
//! Invariant: at most one base model is in memory.

use super::StudyError;
use super::observer::{Observer, StudyEvent};
use super::resolve::Resolved;
use crate::backend::Backend;
use crate::backend::facts::Facts;
use crate::data::hub::{DownloadProgress, Hub};
use crate::model::decoder::Decoder;
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use medft_dsl::plan::{Model, Plan, Precision, Weights};
use std::path::PathBuf;
use std::sync::Arc;

/// A base model with its tokenizer and chat template.
pub struct Base<B: Backend> {
    /// The weights.
    pub decoder: Decoder<B>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
}

/// The plan with every model in the precision that the device holds it in, and what there is to say about it: a run is keyed and reported as
/// what it was, not as what was asked for.
pub fn as_held(plan: &Plan, device: &impl Facts) -> (Plan, Vec<String>) {
    let mut plan = plan.clone();
    let mut changed: Vec<(Precision, Precision, String)> = Vec::new();
    for model in &mut plan.models {
        let (asked, held) = (model.precision, device.held_as(model.precision));
        if asked != held {
            let name = format!("`{}`", model.name);
            match changed.iter_mut().find(|c| (c.0, c.1) == (asked, held)) {
                Some((_, _, names)) => *names += &format!(", {name}"),
                None => changed.push((asked, held, name)),
            }
            model.precision = held;
        }
    }
    let notices = changed.into_iter();
    let notices = notices.map(|(asked, held, names)| held_otherwise(&names, asked, held));
    (plan, notices.collect())
}

/// What to say of a precision that a device does not compute in.
pub fn held_otherwise(models: &str, asked: Precision, held: Precision) -> String {
    let word = |p: Precision| match p {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Nf4 => "nf4",
    };
    format!(
        "{models}: this device has no `precision = {}`; it computes in {} (16-bit weights and activations, 32-bit sums, adapters and optimizer), and is reported so; `--device cpu` computes in {}",
        word(asked),
        word(held),
        word(asked)
    )
}

/// The folder of a model; downloads it if it is not here.
///
/// # Errors
/// A folder that is not there, or a hub that does not give it.
pub fn model_dir(model: &Model, observer: &mut dyn Observer) -> Result<PathBuf, StudyError> {
    match &model.weights {
        Weights::Dir { path } if path.is_dir() => Ok(path.clone()),
        Weights::Dir { path } => Err(StudyError::NoModel {
            name: model.name.clone(),
            dir: path.clone(),
        }),
        Weights::Hf { repo, revision } => Ok(Hub::from_env()
            .model(repo, revision, &mut Downloads::new(observer))?
            .dir),
    }
}

/// Download progress as events.
pub struct Downloads<'a> {
    observer: &'a mut dyn Observer,
    file: String,
    done: u64,
    total: u64,
}

impl<'a> Downloads<'a> {
    /// Tells this observer.
    pub fn new(observer: &'a mut dyn Observer) -> Self {
        Downloads {
            observer,
            file: String::new(),
            done: 0,
            total: 0,
        }
    }

    fn tell(&mut self) {
        let Downloads {
            file, done, total, ..
        } = self;
        self.observer.event(StudyEvent::Download {
            file: file.clone(),
            done: *done,
            total: *total,
        });
    }
}

impl DownloadProgress for Downloads<'_> {
    fn started(&mut self, file: &str, bytes: u64) {
        (self.file, self.done, self.total) = (file.to_string(), 0, bytes);
        self.tell();
    }

    fn advanced(&mut self, bytes: u64) {
        self.done += bytes;
        self.tell();
    }

    fn finished(&mut self) {
        self.done = self.total;
        self.tell();
    }
}

/// Keeps the base model that was used last.
pub struct Bases<B: Backend> {
    backend: B,
    last: Option<(String, Arc<Base<B>>)>,
}

impl<B: Backend> Bases<B> {
    /// Models on this device; none is loaded yet.
    pub fn new(backend: B) -> Self {
        Bases {
            backend,
            last: None,
        }
    }

    /// Loads a model, or gives the one that is loaded.
    ///
    /// # Errors
    /// Weights, tokenizer or template that cannot be used.
    pub fn get(&mut self, model: &Model, resolved: &Resolved) -> Result<Arc<Base<B>>, StudyError> {
        if let Some((name, base)) = &self.last
            && *name == model.name
        {
            return Ok(base.clone());
        }
        self.last = None;
        let dir = resolved.model_path(model);
        let text = |source| StudyError::Text {
            block: model.name.clone(),
            source,
        };
        let backend = self.backend.clone();
        let decoder =
            Decoder::load(backend, dir, model.precision, model.double_quant).map_err(|source| {
                StudyError::Model {
                    name: model.name.clone(),
                    source,
                }
            })?;
        let tokenizer = Tokenizer::load(dir).map_err(text)?;
        tokenizer.check_fits(decoder.config.vocab).map_err(text)?;
        let template = ChatTemplate::load(dir).map_err(text)?;
        let base = Arc::new(Base {
            decoder,
            tokenizer,
            template,
        });
        self.last = Some((model.name.clone(), base.clone()));
        Ok(base)
    }
}
