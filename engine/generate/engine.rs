//! Decodes prompts of unequal lengths together.
//!
//! Holds the batch: prompts are packed and read once, then every unfinished row gets one token at a time; finished rows leave the cache.
//! Invariant: an answer depends on its own prompt, settings and row number alone, never on its neighbours.

use super::sampler::{Sampler, SamplerError, Stream};
use crate::backend::{Backend, Packed, Target};
use crate::model::decoder::Decoder;
use crate::model::pass::Workspace;
use crate::model::trained::Trained;
use medft_dsl::plan::Decode;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;

/// Tokens of prompts that are read together; a longer prompt is read alone.
const PREFILL_TOKENS: usize = 1024;

/// Why decoding failed.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A sequence without tokens.
    #[error("sequence {row} is empty: there is no token to start from")]
    Empty {
        /// Index of the sequence.
        row: usize,
    },
    /// A token that the model does not have.
    #[error(
        "sequence {row} holds token id {id}, and the model's vocabulary has {vocab} tokens; is this the model's tokenizer?"
    )]
    Token {
        /// Index of the sequence.
        row: usize,
        /// The token.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// No token could be chosen.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
}

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

/// Checks that a sequence can be given to a model with this vocabulary; `row` is for the message.
pub(super) fn check_ids(row: usize, ids: &[u32], vocab: usize) -> Result<(), GenerateError> {
    if ids.is_empty() {
        return Err(GenerateError::Empty { row });
    }
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(GenerateError::Token {
            row,
            id: *id,
            vocab,
        }),
        None => Ok(()),
    }
}

/// A row that is being decoded.
struct Live<'a> {
    index: usize,
    row: u64,
    /// Prompt and answer.
    ids: Vec<u32>,
    prompt: &'a [u32],
}

impl<B: Backend> Generator<'_, B> {
    /// Answers one batch of prompts, in their order.
    ///
    /// # Errors
    /// See [`GenerateError`].
    pub fn answer(&self, requests: &[Request]) -> Result<Vec<Answer>, GenerateError> {
        let config = &self.decoder.config;
        for (row, request) in requests.iter().enumerate() {
            check_ids(row, request.prompt, config.vocab)?;
        }
        let began = Instant::now();
        let max_new = self.settings.max_new as usize;
        let mut answers: Vec<Answer> = requests
            .iter()
            .map(|_| Answer {
                ids: Vec::new(),
                finish: Finish::Length,
                seconds: 0.0,
            })
            .collect();
        if max_new == 0 || requests.is_empty() {
            return Ok(answers);
        }
        let backend = &self.decoder.backend;
        let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
        let mut cache = backend.cache(
            config.layers,
            requests.len(),
            longest + max_new,
            &config.heads,
        );
        let mut live: Vec<Live> = requests
            .iter()
            .enumerate()
            .map(|(index, r)| Live {
                index,
                row: r.row,
                ids: r.prompt.to_vec(),
                prompt: r.prompt,
            })
            .collect();
        let mut logits = self.prefill(requests, longest, &mut cache);
        let mut ws = Workspace::new(backend, config, self.trained, requests.len(), false);
        for _ in 0..max_new {
            let tokens = self.choose(&live, &mut logits)?;
            let mut keep = Vec::new();
            for (slot, (row, token)) in live.iter_mut().zip(&tokens).enumerate() {
                let answer = &mut answers[row.index];
                answer.seconds = began.elapsed().as_secs_f64();
                answer.ids.push(*token);
                row.ids.push(*token);
                if self.end_ids.contains(token) {
                    answer.finish = Finish::Stop;
                    continue;
                }
                if answer.ids.len() < max_new {
                    keep.push(slot);
                }
            }
            if keep.is_empty() {
                break;
            }
            if keep.len() < live.len() {
                backend.cache_compact(&mut cache, &keep);
                let mut slot = 0;
                live.retain(|_| {
                    slot += 1;
                    keep.binary_search(&(slot - 1)).is_ok()
                });
            }
            let mut batch = Packed::default();
            for (slot, row) in live.iter().enumerate() {
                let past = row.ids.len() - 1;
                let at = batch.push(&row.ids[past..], past, slot);
                batch.targets.push(Target { row: at, id: 0 });
            }
            let n = batch.tokens();
            logits = self.decoder.logits(
                self.trained,
                &backend.upload(batch),
                n,
                Some(&mut cache),
                &mut ws,
            );
        }
        Ok(answers)
    }

    /// Reads the prompts into the cache; returns the logits after each, `[requests, vocab]`.
    fn prefill(&self, requests: &[Request], longest: usize, cache: &mut B::Cache) -> Vec<f32> {
        let (backend, config) = (&self.decoder.backend, &self.decoder.config);
        let total: usize = requests.iter().map(|r| r.prompt.len()).sum();
        let capacity = longest.max(PREFILL_TOKENS.min(total));
        let mut ws = Workspace::new(backend, config, self.trained, capacity, false);
        let mut logits = Vec::with_capacity(requests.len() * config.vocab);
        let mut batch = Packed::default();
        for (slot, request) in requests.iter().enumerate() {
            let start = batch.push(request.prompt, 0, slot);
            batch.targets.push(Target {
                row: start + request.prompt.len() - 1,
                id: 0,
            });
            let next = requests
                .get(slot + 1)
                .map_or(usize::MAX, |r| r.prompt.len());
            if next > capacity - batch.tokens() {
                let full = std::mem::take(&mut batch);
                let n = full.tokens();
                let part = self.decoder.logits(
                    self.trained,
                    &backend.upload(full),
                    n,
                    Some(&mut *cache),
                    &mut ws,
                );
                logits.extend(part);
            }
        }
        logits
    }

    /// The next token of every live row.
    fn choose(&self, live: &[Live], logits: &mut [f32]) -> Result<Vec<u32>, SamplerError> {
        let vocab = self.decoder.config.vocab;
        logits
            .par_chunks_mut(vocab)
            .zip(live)
            .map_init(
                || Sampler::new(self.settings),
                |sampler, (logits, row)| {
                    let position = (row.ids.len() - row.prompt.len()) as u32;
                    let stream = Stream {
                        seed: self.settings.seed,
                        row: row.row,
                        position,
                    };
                    sampler.choose(logits, &row.ids, stream)
                },
            )
            .collect()
    }
}
