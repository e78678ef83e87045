//! A system of a recipe, loaded to code notes one after the other.
//!
//! Holds the model and the task. Invariant: a note gets the prompt, the weights and the decoding that the recipe's evaluation uses.

use super::StudyError;
use super::models::{Base, Bases};
use super::observer::Observer;
use super::resolve::{Resolved, System};
use super::store::Store;
use super::train;
use crate::backend::Backend;
use crate::data::icd10::{CodeStatus, CodeTree};
use crate::evaluate::answer::{self, Outcome};
use crate::generate::engine::{Finish, Generator, Request};
use crate::model::trained::Trained;
use crate::text::example::Renderer;
use medft_dsl::plan::{Decode, Plan, Task};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// A loaded system.
pub struct Coder<'a, B: Backend> {
    base: Arc<Base<B>>,
    trained: Option<Trained<B>>,
    task: &'a Task,
    decode: Decode,
    name: &'a str,
}

/// The code of a note.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coded {
    /// The code as the tree writes it; null where the answer holds none.
    pub code: Option<String>,
    /// Its official title.
    pub title: Option<String>,
    /// `billable`, `parent`, `retired` or `unknown`.
    pub status: Option<&'static str>,
    /// What the model wrote.
    pub answer: String,
    /// Why it stopped writing.
    pub finish: Finish,
    /// Tokens that were cut from the end of the note.
    pub cut_tokens: usize,
}

impl<'a, B: Backend> Coder<'a, B> {
    /// Loads the system `name` of a recipe, or its first tuned one; a training must be finished.
    ///
    /// # Errors
    /// An unknown name, a training that was not run, or files that cannot be used.
    pub fn load(
        backend: B,
        plan: &'a Plan,
        name: Option<&str>,
        out: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self, StudyError> {
        let mut store = Store::open(out)?;
        let resolved = Resolved::find(plan, backend.kind(), &mut store, observer)?;
        let first = plan
            .trains
            .first()
            .map(|t| &t.name)
            .or(plan.models.first().map(|m| &m.name));
        let known = || {
            plan.trains
                .iter()
                .map(|t| &t.name)
                .chain(plan.models.iter().map(|m| &m.name))
        };
        let wanted = name.or(first.map(String::as_str)).unwrap_or_default();
        let Some(name) = known().find(|n| *n == wanted) else {
            let known = known()
                .map(|n| format!("`{n}`"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(StudyError::NoSystem {
                name: wanted.to_string(),
                known,
            });
        };
        let system = resolved.system(name)?;
        let evaluate = plan
            .evaluates
            .iter()
            .find(|e| e.models.contains(name))
            .or(plan.evaluates.first());
        let task = match (system.train, evaluate) {
            (Some(train), _) => resolved.task(&train.task)?,
            (None, Some(evaluate)) => resolved.task(&evaluate.task)?,
            (None, None) => plan
                .tasks
                .first()
                .ok_or_else(|| StudyError::Dangling("task".into()))?,
        };
        let System { model, train, .. } = system;
        if let Some(train) = train
            && train::record(&resolved, &store, train)?.is_none()
        {
            return Err(StudyError::NotTrained { name: name.clone() });
        }
        let base = Bases::new(backend).get(model, &resolved)?;
        let trained = train
            .map(|train| train::load(&resolved, &store, train, &base.decoder))
            .transpose()?;
        let greedy = Decode {
            sample: false,
            max_new: 32,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: plan.recipe.seed,
        };
        let decode = evaluate.map_or(greedy, |e| e.decode.clone());
        Ok(Coder {
            base,
            trained,
            task,
            decode,
            name,
        })
    }

    /// The system's name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Codes one note.
    ///
    /// # Errors
    /// A note that template or tokenizer refuse, or logits that are not numbers.
    pub fn code(&self, note: &str) -> Result<Coded, StudyError> {
        let text = |source| StudyError::Text {
            block: self.name.to_string(),
            source,
        };
        let (tokenizer, template) = (&self.base.tokenizer, &self.base.template);
        let renderer = Renderer::new(self.task, template, tokenizer).map_err(text)?;
        let prompt = renderer.prompt(note).map_err(text)?;
        let generator = Generator {
            decoder: &self.base.decoder,
            trained: self.trained.as_ref(),
            settings: &self.decode,
            end_ids: &renderer.stop_ids(),
        };
        let mut answers = generator
            .answer(&[Request {
                row: 0,
                prompt: &prompt.ids,
            }])
            .map_err(|source| StudyError::Generate {
                block: self.name.to_string(),
                source,
            })?;
        let answer = answers.remove(0);
        let written = tokenizer.decode(&answer.ids, true).map_err(text)?;
        let tree = CodeTree::shipped();
        let outcome = answer::read(&written, self.task.level, tree);
        let code = match &outcome {
            Outcome::Code { code, .. } | Outcome::Invalid { code, .. } => Some(code.clone()),
            Outcome::Unparsed => None,
        };
        Ok(Coded {
            title: code
                .as_deref()
                .and_then(|c| tree.title_of(c))
                .map(str::to_string),
            status: code.as_deref().map(|c| match tree.status(c) {
                CodeStatus::Billable => "billable",
                CodeStatus::Parent { .. } => "parent",
                CodeStatus::Retired { .. } => "retired",
                CodeStatus::Unknown => "unknown",
            }),
            code,
            answer: written,
            finish: answer.finish,
            cut_tokens: prompt.cut,
        })
    }
}
