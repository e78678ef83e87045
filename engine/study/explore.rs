//! Looking at a plan's data: the exploration of each data block, and a training example for each model that is here.

use super::StudyError;
use super::models::Downloads;
use super::observer::{Observer, StudyEvent};
use crate::data::explore::{Exploration, Tokens, explore as explore_rows};
use crate::data::hub::Hub;
use crate::data::icd10::CodeTree;
use crate::data::near;
use crate::data::rows::{Rows, read_rows};
use crate::text::example::{Renderer, Row};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use medft_dsl::plan::{Data, Model, Plan, Task, Weights};
use serde::Serialize;
use std::path::PathBuf;

/// What `explore` shows of a data block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explored {
    /// Counts, lengths, leaks, findings.
    pub exploration: Exploration,
    /// One training example for each task and model.
    pub examples: Vec<Shown>,
}

/// A training example as text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// The task block.
    pub task: String,
    /// The model block.
    pub model: String,
    /// Tokens in all.
    pub tokens: usize,
    /// What is read, special tokens included.
    pub prompt: String,
    /// What is learnt, the end token included.
    pub answer: String,
}

/// Explores every data block of a plan with the tokenizers of the models that are on this machine.
///
/// # Errors
/// Data that cannot be read, or a tokenizer that does not work.
pub fn explore(plan: &Plan, observer: &mut dyn Observer) -> Result<Vec<Explored>, StudyError> {
    let tree = CodeTree::shipped();
    let mut explored = Vec::new();
    for data in &plan.data {
        let path = Hub::from_env().source_file(&data.source, &mut Downloads::new(observer))?;
        let rows = read_rows(data, &path, tree)?;
        let clusters = near::clusters(
            &rows
                .rows
                .iter()
                .map(|r| r.text.as_str())
                .collect::<Vec<_>>(),
        );
        let mut readers = Vec::new();
        for (task, model) in uses(plan, data) {
            match here(model) {
                Some(dir) => readers.push(Reader::load(task, model, &dir)?),
                None => observer.event(StudyEvent::Notice(format!(
                    "`{}` is not on this machine yet: no lengths in its tokens",
                    model.name
                ))),
            }
        }
        let counters: Vec<Counter> = readers.iter().map(Reader::counter).collect();
        let tokens: Vec<Tokens> = readers
            .iter()
            .zip(&counters)
            .map(|(r, count)| Tokens {
                model: &r.model.name,
                max_tokens: r.task.max_tokens,
                count,
            })
            .collect();
        let exploration = explore_rows(&data.name, &rows, &clusters, &tokens, tree);
        let examples = readers
            .iter()
            .map(|r| r.show(&rows, tree))
            .collect::<Result<Vec<_>, _>>()?;
        explored.push(Explored {
            exploration,
            examples: examples.into_iter().flatten().collect(),
        });
    }
    Ok(explored)
}

/// The tasks on a data block and the models that read them, each pair once.
fn uses<'a>(plan: &'a Plan, data: &Data) -> Vec<(&'a Task, &'a Model)> {
    let trains = plan
        .trains
        .iter()
        .map(|t| (t.task.as_str(), t.model.as_str()));
    let evaluated = plan
        .evaluates
        .iter()
        .flat_map(|e| e.models.iter().map(|m| (e.task.as_str(), m.as_str())));
    let mut pairs: Vec<(&Task, &Model)> = Vec::new();
    for (task, model) in trains.chain(evaluated) {
        let task = plan
            .tasks
            .iter()
            .find(|t| t.name == task && t.data == data.name);
        let model = plan.models.iter().find(|m| m.name == model);
        if let (Some(task), Some(model)) = (task, model)
            && !pairs
                .iter()
                .any(|(t, m)| t.name == task.name && m.name == model.name)
        {
            pairs.push((task, model));
        }
    }
    pairs
}

/// The folder of a model, if it needs no download.
pub fn here(model: &Model) -> Option<PathBuf> {
    match &model.weights {
        Weights::Dir { path } => path.is_dir().then(|| path.clone()),
        Weights::Hf { repo, revision } => Hub::from_env().cached_model(repo, revision),
    }
}

/// Counts the tokens of a text.
type Counter<'a> = Box<dyn Fn(&str) -> usize + 'a>;

/// A model's text side and a task.
struct Reader<'a> {
    task: &'a Task,
    model: &'a Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl<'a> Reader<'a> {
    fn load(task: &'a Task, model: &'a Model, dir: &std::path::Path) -> Result<Self, StudyError> {
        let text = |source| StudyError::Text {
            block: model.name.clone(),
            source,
        };
        let tokenizer = Tokenizer::load(dir).map_err(text)?;
        Ok(Reader {
            task,
            model,
            tokenizer,
            template: ChatTemplate::load(dir).map_err(text)?,
        })
    }

    fn counter(&self) -> Counter<'_> {
        // A text that a tokenizer refuses is reported when its prompt is rendered.
        Box::new(|text| {
            self.tokenizer
                .encode_rendered(text)
                .map_or(0, |ids| ids.len())
        })
    }

    /// The first row as a training example.
    fn show(&self, rows: &Rows, tree: &CodeTree) -> Result<Option<Shown>, StudyError> {
        let text = |source| StudyError::Text {
            block: self.task.name.clone(),
            source,
        };
        let Some(row) = rows.rows.first() else {
            return Ok(None);
        };
        let renderer = Renderer::new(self.task, &self.template, &self.tokenizer).map_err(text)?;
        let code = tree.label(&row.code, self.task.level);
        let title = tree.title_of(&code);
        let example = renderer
            .example(&Row {
                text: &row.text,
                code: &code,
                title,
            })
            .map_err(text)?;
        let (prompt, answer) = example.ids.split_at(example.target_start);
        Ok(Some(Shown {
            task: self.task.name.clone(),
            model: self.model.name.clone(),
            tokens: example.ids.len(),
            prompt: self.tokenizer.decode(prompt, false).map_err(text)?,
            answer: self.tokenizer.decode(answer, false).map_err(text)?,
        }))
    }
}
