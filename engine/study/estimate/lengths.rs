//! How long a task's prompts and answers are in a model's tokens, from a sample of the rows.

use crate::data::hub::Hub;
use crate::data::icd10::CodeTree;
use crate::data::rows::{Rows, read_rows};
use crate::study::StudyError;
use crate::text::example::{Example, Renderer, Row};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use medft_dsl::plan::{Data, Model, Part, Plan, Source, Split, Task};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Rows that are tokenised; the others are taken to be like them.
const SAMPLE: usize = 64;
/// Rows with the most letters, which are tokenised as well: the row with the most tokens is among them, or nearly so.
const LONGEST: usize = 16;

/// What is known of a task's rows.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Usable rows.
    all: usize,
    split: Split,
    /// Tokens of a prompt, on the average.
    pub(super) prompt: f64,
    /// Tokens of a right answer with its end token, on the average.
    pub(super) answer: f64,
    /// Standard deviation of the tokens of a row, answer included.
    pub(super) deviation: f64,
    /// Tokens of the longest row, answer included.
    pub(super) longest: usize,
    /// Tokens of the longest answer.
    pub(super) longest_answer: usize,
}

/// What is known of a task's rows, or why nothing is.
pub(super) type Known = Result<Measured, String>;

impl Measured {
    /// Rows on a side, nearly: the split is not drawn.
    pub(super) fn rows(&self, part: Part) -> u64 {
        let share = match part {
            Part::Train => self.split.train,
            Part::Val => self.split.val,
            Part::Test => self.split.test,
        };
        (share * self.all as f64).round() as u64
    }
}

/// Reads each data block once.
pub(super) struct Lengths<'a> {
    plan: &'a Plan,
    rows: BTreeMap<&'a str, Result<Arc<Rows>, String>>,
    known: BTreeMap<(String, String), Known>,
}

impl<'a> Lengths<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Lengths {
            plan,
            rows: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    /// The lengths of a task's rows for the model in `dir`, or why they are not known.
    pub(super) fn get(
        &mut self,
        task: &Task,
        model: &Model,
        dir: &Path,
    ) -> Result<Known, StudyError> {
        let key = (task.name.clone(), model.name.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let data = self.plan.data.iter().find(|d| d.name == task.data);
        let data = data.ok_or_else(|| StudyError::Dangling(task.data.clone()))?;
        let measured = match self.rows(data)? {
            Ok(rows) => Ok(measure(task, model, dir, data, &rows)?),
            Err(reason) => Err(reason),
        };
        self.known.insert(key, measured.clone());
        Ok(measured)
    }

    fn rows(&mut self, data: &'a Data) -> Result<Result<Arc<Rows>, String>, StudyError> {
        if let Some(rows) = self.rows.get(data.name.as_str()) {
            return Ok(rows.clone());
        }
        let rows = match Hub::from_env().cached_source_file(&data.source) {
            Some(path) => Ok(Arc::new(read_rows(data, &path, CodeTree::shipped())?)),
            None => Err(match &data.source {
                Source::Hf { repo, file, .. } => {
                    format!("`{file}` of data set `{repo}` is not downloaded yet")
                }
                Source::Csv { path, .. } | Source::Jsonl { path } => {
                    format!("{} is not there", path.display())
                }
            }),
        };
        self.rows.insert(&data.name, rows.clone());
        Ok(rows)
    }
}

fn measure(
    task: &Task,
    model: &Model,
    dir: &Path,
    data: &Data,
    rows: &Rows,
) -> Result<Measured, StudyError> {
    let text = |source| StudyError::Text {
        block: model.name.clone(),
        source,
    };
    let tokenizer = Tokenizer::load(dir).map_err(text)?;
    let template = ChatTemplate::load(dir).map_err(text)?;
    let renderer = Renderer::new(task, &template, &tokenizer).map_err(text)?;
    let tree = CodeTree::shipped();
    let step = rows.rows.len().div_ceil(SAMPLE).max(1);
    let mut chosen: Vec<usize> = (0..rows.rows.len()).step_by(step).collect();
    let sampled = chosen.len();
    let mut longest: Vec<usize> = (0..rows.rows.len()).collect();
    longest.sort_by_key(|at| Reverse(rows.rows[*at].text.len()));
    chosen.extend(longest.iter().take(LONGEST));
    let chosen = chosen.iter().map(|at| &rows.rows[*at]);
    let labels: Vec<String> = chosen
        .clone()
        .map(|r| tree.label(&r.code, task.level))
        .collect();
    let rendered: Vec<Row> = chosen
        .zip(&labels)
        .map(|(row, code)| Row {
            text: &row.text,
            code,
            title: tree.title_of(code),
        })
        .collect();
    let examples = renderer.examples(&rendered).map_err(text)?;
    let sample = &examples[..sampled];
    let mean =
        |of: &dyn Fn(&Example) -> f64| sample.iter().map(of).sum::<f64>() / sampled.max(1) as f64;
    let answer = |e: &Example| e.ids.len() - e.target_start;
    let tokens = mean(&|e| e.ids.len() as f64);
    let most = |of: &dyn Fn(&Example) -> usize| examples.iter().map(of).max().unwrap_or(0);
    Ok(Measured {
        all: rows.rows.len(),
        split: data.split.clone(),
        prompt: mean(&|e| e.target_start as f64),
        answer: mean(&|e| answer(e) as f64),
        deviation: mean(&|e| (e.ids.len() as f64 - tokens).powi(2)).sqrt(),
        longest: most(&|e| e.ids.len()),
        longest_answer: most(&answer),
    })
}
