//! The prediction stage: one system's answers to one side of the split.
//!
//! Holds the log of answers and the batches. Invariant: an answer is reused only for the same weights, prompt tokens, row and
//! decoding settings.

use super::StudyError;
use super::models::{Base, Bases};
use super::observer::{Observer, StudyEvent};
use super::resolve::{Resolved, System};
use super::rows::{DataSet, DataSets};
use super::store::Store;
use super::train;
use crate::backend::Backend;
use crate::data::icd10::CodeTree;
use crate::data::whole_file::write_whole;
use crate::evaluate::answer;
use crate::evaluate::prediction::{Prediction, PredictionLog, Scope};
use crate::generate::engine::{Generator, Request};
use crate::model::trained::Trained;
use crate::text::example::{Cuts, Prompt, Renderer};
use medft_dsl::plan::{Evaluate, Task};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A system's answers, and what they cost.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Answers {
    /// One for each row of the side, in the order of the split.
    pub predictions: Vec<Prediction>,
    /// Seconds of decoding for the rows that were decoded in this stage.
    pub seconds: f64,
    /// Rows that were decoded in this stage; the others came from the log.
    pub decoded: usize,
    /// Most bytes in use while decoding, on the device that decoded ([`crate::backend::facts::Facts::peak`]).
    pub peak_memory: Option<u64>,
    /// Parameters of the base model.
    pub parameters: u64,
    /// Rows whose note was shortened.
    pub cut_rows: usize,
}

/// The stage of one system: everything that `run` needs to know.
pub struct Stage<'a> {
    /// Files and keys.
    pub resolved: &'a Resolved<'a>,
    /// Where results lie.
    pub store: &'a Store,
    /// The block.
    pub evaluate: &'a Evaluate,
    /// The model or tuned model.
    pub system: &'a System<'a>,
}

impl Stage<'_> {
    /// Where the answers lie when the stage is complete.
    fn place(&self) -> Result<PathBuf, StudyError> {
        let key = self.resolved.predict_key(self.evaluate, self.system)?;
        Ok(self.store.place(&format!("predict-{key}.json")))
    }

    /// The answers of a complete stage.
    ///
    /// # Errors
    /// A name that the plan does not define.
    pub fn finished(&self) -> Result<Option<Answers>, StudyError> {
        if !self.evaluate.cache {
            return Ok(None);
        }
        let bytes = std::fs::read(self.place()?).ok();
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Answers every row of the side; rows that were answered before are not decoded again.
    ///
    /// # Errors
    /// Whatever stops the decoding; [`StudyError::Interrupted`] with all complete batches on disk.
    pub fn run<B: Backend>(
        &self,
        bases: &mut Bases<B>,
        sets: &mut DataSets,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Answers, StudyError> {
        let Stage {
            resolved,
            store,
            evaluate,
            system,
        } = *self;
        let text = |source| StudyError::Text {
            block: evaluate.name.clone(),
            source,
        };
        let base = bases.get(system.model, resolved)?;
        let train = system
            .train
            .map(|train| train::load(resolved, store, train, &base.decoder));
        let trained = train.transpose()?;
        let task = resolved.task(&evaluate.task)?;
        let set = sets.get(resolved, store, resolved.data(task)?)?;
        let rows = set.side(evaluate.split, evaluate.limit);
        let renderer = Renderer::new(task, &base.template, &base.tokenizer).map_err(text)?;
        let notes: Vec<&str> = rows
            .iter()
            .map(|r| set.all.rows[*r].text.as_str())
            .collect();
        let prompts = renderer.prompts(&notes).map_err(text)?;
        let adapter = system
            .train
            .map(|train| resolved.train_key(train))
            .transpose()?;
        let scope = Scope {
            weights: resolved.model_print(system.model),
            adapter: adapter.as_deref(),
            precision: system.model.precision,
            double_quant: system.model.double_quant,
            decode: &evaluate.decode,
            decoder: &resolved.numerics(),
        };
        base.decoder.backend.forget_peak();
        let mut work = Work {
            stage: self,
            task,
            base: &base,
            trained: trained.as_ref(),
            set: &set,
            rows: &rows,
            prompts: &prompts,
            scope: scope.hash()?,
            keys: (0..rows.len())
                .map(|at| scope.prompt_hash(&prompts[at].ids, stream(&set.all.rows[rows[at]].id)))
                .collect(),
            end_ids: renderer.stop_ids(),
            seconds: 0.0,
            decoded: 0,
        };
        let predictions = work.run(stop, observer)?;
        let answers = Answers {
            predictions,
            seconds: work.seconds,
            decoded: work.decoded,
            peak_memory: base.decoder.backend.peak(),
            parameters: base.decoder.config.parameters(),
            cut_rows: prompts.iter().map(|p| p.cut).collect::<Cuts>().rows,
        };
        write_whole(
            &self.place()?,
            &serde_json::to_vec(&answers).unwrap_or_default(),
        )?;
        Ok(answers)
    }
}

/// A stage with everything loaded.
struct Work<'a, B: Backend> {
    stage: &'a Stage<'a>,
    task: &'a Task,
    base: &'a Base<B>,
    trained: Option<&'a Trained<B>>,
    set: &'a DataSet,
    rows: &'a [usize],
    prompts: &'a [Prompt],
    scope: String,
    /// Hash of each row's prompt.
    keys: Vec<String>,
    end_ids: std::collections::BTreeSet<u32>,
    seconds: f64,
    decoded: usize,
}

impl<B: Backend> Work<'_, B> {
    fn run(
        &mut self,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Prediction>, StudyError> {
        let Stage {
            store,
            evaluate,
            system,
            ..
        } = *self.stage;
        let path = store.place(&format!(
            "answers-{}.jsonl",
            self.scope.get(..24).unwrap_or(&self.scope)
        ));
        if !evaluate.cache && path.is_file() {
            std::fs::remove_file(&path).map_err(|e| StudyError::io(&path, e))?;
        }
        let mut log = PredictionLog::open(&path)?;
        let total = self.rows.len();
        let mut todo: Vec<usize> = (0..total)
            .filter(|at| log.get(&self.scope, &self.keys[*at]).is_none())
            .collect();
        // Prompts of like length share a batch, longest first: memory is known from the first batch on.
        todo.sort_by_key(|at| std::cmp::Reverse(self.prompts[*at].ids.len()));
        let mut done = total - todo.len();
        let mut tell = |done| {
            observer.event(StudyEvent::Predict {
                name: system.name.to_string(),
                done,
                total,
            })
        };
        tell(done);
        for batch in todo.chunks(evaluate.batch.max(1) as usize) {
            if stop.load(Ordering::Relaxed) {
                return Err(StudyError::Interrupted);
            }
            for prediction in self.answer(batch)? {
                log.push(prediction)?;
            }
            log.sync()?;
            done += batch.len();
            tell(done);
        }
        self.decoded = todo.len();
        let answers = self.keys.iter().filter_map(|key| log.get(&self.scope, key));
        // Rows of one text share an answer; the row's own name goes into its line.
        let named = answers.zip(self.rows).map(|(p, row)| Prediction {
            row: self.set.all.rows[*row].id.clone(),
            ..p.clone()
        });
        Ok(named.collect())
    }

    /// Decodes one batch.
    fn answer(&mut self, batch: &[usize]) -> Result<Vec<Prediction>, StudyError> {
        let evaluate = self.stage.evaluate;
        let generator = Generator {
            decoder: &self.base.decoder,
            trained: self.trained,
            settings: &evaluate.decode,
            end_ids: &self.end_ids,
        };
        let id = |at: usize| &self.set.all.rows[self.rows[at]].id;
        let requests: Vec<Request> = batch
            .iter()
            .map(|at| Request {
                row: stream(id(*at)),
                prompt: &self.prompts[*at].ids,
            })
            .collect();
        let began = Instant::now();
        let answers = generator
            .answer(&requests)
            .map_err(|source| StudyError::Generate {
                block: evaluate.name.clone(),
                source,
            })?;
        self.seconds += began.elapsed().as_secs_f64();
        let mut predictions = Vec::with_capacity(batch.len());
        for (at, answer) in batch.iter().zip(answers) {
            let decoded = self.base.tokenizer.decode(&answer.ids, true);
            let text = decoded.map_err(|source| StudyError::Text {
                block: evaluate.name.clone(),
                source,
            })?;
            predictions.push(Prediction {
                row: id(*at).clone(),
                scope: self.scope.clone(),
                prompt: self.keys[*at].clone(),
                outcome: answer::read(&text, self.task.level, CodeTree::shipped()),
                answer: text,
                tokens: answer.ids.len() as u64,
                finish: answer.finish,
                seconds: answer.seconds,
            });
        }
        Ok(predictions)
    }
}

/// The number that a row's random draws follow: its identity.
fn stream(id: &str) -> u64 {
    u64::from_str_radix(id, 16).unwrap_or_default()
}
