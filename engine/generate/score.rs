//! Log-probabilities of given tokens.
//!
//! Holds scoring in packed passes. Invariant: a sequence's numbers do not depend on the others.

use super::engine::GenerateError;
use crate::backend::{Backend, Packed, Target};
use crate::model::decoder::Decoder;
use crate::model::pass::Workspace;
use crate::model::trained::Trained;
use serde::Serialize;

/// Tokens of one pass; a longer sequence is alone in its pass.
const PASS_TOKENS: usize = 1024;

/// One scored sequence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Natural log-probability of every token after the first, given those before it.
    pub logprobs: Vec<f32>,
    /// Mean of the negative log-probabilities; 0 for a single token.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
}

/// Scores sequences, in their order.
///
/// # Errors
/// An empty sequence, or a token that the model does not have.
pub fn score<B: Backend>(
    decoder: &Decoder<B>,
    trained: Option<&Trained<B>>,
    sequences: &[Vec<u32>],
) -> Result<Vec<Score>, GenerateError> {
    for (row, ids) in sequences.iter().enumerate() {
        super::engine::check_ids(row, ids, decoder.config.vocab)?;
    }
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let total = sequences.iter().map(Vec::len).sum::<usize>();
    let capacity = longest.max(PASS_TOKENS.min(total));
    let mut ws = Workspace::new(&decoder.backend, &decoder.config, trained, capacity, false);
    let mut scores = Vec::with_capacity(sequences.len());
    let mut from = 0;
    while from < sequences.len() {
        let mut batch = Packed::default();
        let mut to = from;
        while to < sequences.len()
            && (to == from || batch.tokens() + sequences[to].len() <= capacity)
        {
            let start = batch.push(&sequences[to], 0, to - from);
            let next = sequences[to].iter().enumerate().skip(1);
            batch.targets.extend(next.map(|(i, id)| Target {
                row: start + i - 1,
                id: *id,
            }));
            to += 1;
        }
        let n = batch.tokens();
        let mut losses = decoder
            .losses(trained, &decoder.backend.upload(batch), n, &mut ws)
            .into_iter();
        for ids in &sequences[from..to] {
            let logprobs: Vec<f32> = losses.by_ref().take(ids.len() - 1).map(|l| -l).collect();
            let sum: f64 = logprobs.iter().map(|l| -f64::from(*l)).sum();
            let nll = sum / logprobs.len().max(1) as f64;
            scores.push(Score {
                ids: ids.clone(),
                logprobs,
                nll,
                perplexity: nll.exp(),
            });
        }
        from = to;
    }
    Ok(scores)
}
