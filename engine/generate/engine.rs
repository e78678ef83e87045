//! Decodes prompts of unequal lengths together.
//!
//! Holds the batch: prompts are packed and read once, then every unfinished row gets one token at a time; finished rows leave the cache.
//! It refuses to know text. Invariant: an answer depends on its own prompt, settings and row number alone, never on its neighbours.

pub use super::GenerateError;
use super::passes;
use crate::backend::{Backend, BackendError, Packed, SampleRow, Sampling, Stream, Target};
use crate::model::decoder::Decoder;
use crate::model::trained::Trained;
use crate::model::workspace::Largest;
use medft_dsl::plan::Decode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end token.
    Stop,
    /// `max_new` tokens without one.
    Length,
}

/// A decoded answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// New tokens; with [`Finish::Stop`] the end token is the last.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Seconds from the start of its batch to its last token.
    pub seconds: f64,
}

/// A prompt and its number, which its random draws follow.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The row's own number, whatever batch it is in.
    pub row: u64,
    /// Token ids.
    pub prompt: &'a [u32],
}

/// A model ready to decode.
pub struct Generator<'a, B: Backend> {
    /// The base model.
    pub decoder: &'a Decoder<B>,
    /// The adapter, if any.
    pub trained: Option<&'a Trained<B>>,
    /// How to choose tokens.
    pub settings: &'a Decode,
    /// Tokens that end an answer.
    pub end_ids: &'a BTreeSet<u32>,
}

/// A row that is being decoded.
struct Live {
    /// Which request it answers.
    index: usize,
    /// Whose draws it takes.
    row: u64,
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt_len: usize,
    done: bool,
}

impl<B: Backend> Generator<'_, B> {
    /// Answers one batch of prompts, in their order.
    ///
    /// # Errors
    /// See [`GenerateError`].
    pub fn answer(&self, requests: &[Request]) -> Result<Vec<Answer>, GenerateError> {
        let (backend, config) = (&self.decoder.backend, &self.decoder.config);
        let (passes, largest) = passes(requests.iter().map(|r| r.prompt), config.vocab)?;
        let began = Instant::now();
        let max_new = self.settings.max_new as usize;
        let mut answers = vec![
            Answer {
                ids: Vec::new(),
                finish: Finish::Length,
                seconds: 0.0,
            };
            requests.len()
        ];
        if max_new == 0 || requests.is_empty() {
            return Ok(answers);
        }
        let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
        let room = longest + max_new;
        let mut cache = backend.cache(config.layers, requests.len(), room, &config.heads)?;
        let mut logits = backend.floats("a batch's logits", requests.len() * config.vocab)?;
        let largest = Largest {
            tokens: largest.max(requests.len()),
            targets: requests.len(),
            training: false,
            cached: Some((requests.len(), room)),
        };
        self.read_prompts(requests, passes, &largest, &mut cache, &mut logits)?;
        let largest = Largest {
            tokens: requests.len(),
            ..largest
        };
        let mut ws = self.decoder.workspace(self.trained, &largest)?;
        let live = |(index, r): (usize, &Request)| Live {
            index,
            row: r.row,
            ids: r.prompt.to_vec(),
            prompt_len: r.prompt.len(),
            done: false,
        };
        let mut recording = B::Recording::default();
        let mut live: Vec<Live> = requests.iter().enumerate().map(live).collect();
        loop {
            let tokens = self.choose(&live, &mut logits)?;
            for (row, token) in live.iter_mut().zip(tokens) {
                row.ids.push(token);
                let answer = &mut answers[row.index];
                answer.ids.push(token);
                answer.seconds = began.elapsed().as_secs_f64();
                if self.end_ids.contains(&token) {
                    answer.finish = Finish::Stop;
                }
                row.done = answer.finish == Finish::Stop || answer.ids.len() == max_new;
            }
            let keep: Vec<usize> = (0..live.len()).filter(|slot| !live[*slot].done).collect();
            if keep.is_empty() {
                return Ok(answers);
            }
            if keep.len() < live.len() {
                backend.cache_compact(&mut cache, &keep);
                live.retain(|row| !row.done);
            }
            let mut batch = Packed::default();
            for (slot, row) in live.iter().enumerate() {
                let past = row.ids.len() - 1;
                let at = batch.push(&row.ids[past..], past, slot);
                batch.targets.push(Target { row: at, id: 0 });
            }
            let batch = backend.upload(batch)?;
            backend.step(&mut recording, &batch, Some(&mut cache), |cache| {
                self.decoder
                    .logits(self.trained, &batch, cache, &mut logits, 0, &mut ws);
            });
        }
    }

    /// Reads the prompts into the cache; the logits after each `[requests, vocab]` `=`.
    fn read_prompts(
        &self,
        requests: &[Request],
        passes: Vec<Range<usize>>,
        largest: &Largest,
        cache: &mut B::Cache,
        logits: &mut B::Float,
    ) -> Result<(), BackendError> {
        let backend = &self.decoder.backend;
        let mut ws = self.decoder.workspace(self.trained, largest)?;
        for pass in passes {
            let (mut batch, at_row) = (Packed::default(), pass.start);
            for slot in pass {
                batch.push(requests[slot].prompt, 0, slot);
                let row = batch.tokens() - 1;
                batch.targets.push(Target { row, id: 0 });
            }
            let batch = backend.upload(batch)?;
            let (trained, cache) = (self.trained, Some(&mut *cache));
            self.decoder
                .logits(trained, &batch, cache, logits, at_row, &mut ws);
        }
        Ok(())
    }

    /// The next token of every live row.
    fn choose(&self, live: &[Live], logits: &mut B::Float) -> Result<Vec<u32>, BackendError> {
        let rows: Vec<SampleRow> = live
            .iter()
            .map(|live| SampleRow {
                seen: &live.ids,
                stream: Stream {
                    row: live.row,
                    position: (live.ids.len() - live.prompt_len) as u32,
                },
            })
            .collect();
        let vocab = self.decoder.config.vocab;
        let sampling = Sampling::from(self.settings);
        self.decoder.backend.sample(&sampling, &rows, vocab, logits)
    }
}
