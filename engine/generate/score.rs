//! Log-probabilities of given tokens.
//!
//! Holds scoring in packed passes. It refuses to choose tokens. Invariant: a sequence's numbers do not depend on the others.

use super::{GenerateError, passes};
use crate::backend::{Backend, Packed, Pass, ROWS, Slot, Target};
use crate::model::decoder::Decoder;
use crate::model::trained::Trained;
use crate::model::workspace::Largest;
use serde::Serialize;

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
/// An empty sequence, a token that the model does not have, and whatever the device says.
pub fn score<B: Backend>(
    decoder: &Decoder<B>,
    trained: Option<&Trained<B>>,
    sequences: &[Vec<u32>],
) -> Result<Vec<Score>, GenerateError> {
    let (backend, config) = (&decoder.backend, &decoder.config);
    let (passes, largest) = passes(sequences.iter().map(Vec::as_slice), config.vocab)?;
    let tokens = largest.next_multiple_of(ROWS);
    let mut ws = decoder.workspace(
        trained,
        &Largest {
            tokens,
            targets: tokens,
            training: false,
            cached: None,
        },
    )?;
    let targets = sequences.iter().map(|ids| ids.len() - 1).sum();
    let mut losses = backend.floats("the losses of all sequences", targets)?;
    let mut first_target = 0;
    for pass in passes {
        let mut batch = Packed {
            pass: Some(Pass {
                first_target,
                ..Pass::default()
            }),
            ..Packed::default()
        };
        for (slot, ids) in sequences[pass].iter().enumerate() {
            let start = batch.push(ids, 0, slot);
            let next = ids.iter().enumerate().skip(1);
            batch.targets.extend(next.map(|(i, id)| Target {
                row: start + i - 1,
                id: *id,
            }));
        }
        first_target += batch.targets.len();
        let batch = backend.upload(batch)?;
        decoder.losses(trained, &batch, &mut losses, &mut ws);
    }
    let slot = Slot {
        offset: 0,
        len: targets,
    };
    let mut losses = backend.read(&losses, slot)?.into_iter();
    let score = |ids: &Vec<u32>| {
        let logprobs: Vec<f32> = losses.by_ref().take(ids.len() - 1).map(|l| -l).collect();
        // From a positive zero: an empty sum is -0, which JSON would show.
        let sum = logprobs.iter().fold(0.0, |sum, l| sum - f64::from(*l));
        let nll = sum / logprobs.len().max(1) as f64;
        Score {
            ids: ids.clone(),
            logprobs,
            nll,
            perplexity: nll.exp(),
        }
    };
    Ok(sequences.iter().map(score).collect())
}
