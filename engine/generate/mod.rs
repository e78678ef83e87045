//! From prompts to answers: batches over a KV cache, sampling, stopping; and the scores of given tokens.

pub mod engine;
pub mod score;

use crate::backend::BackendError;
use std::ops::Range;

/// Tokens that are read together; a longer sequence is alone in its pass.
pub const PASS_TOKENS: usize = 1024;

/// Why tokens could not be read or chosen.
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
    /// The device, or no token that could be chosen.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl GenerateError {
    /// Whether the sequences or the weights are wrong rather than the device.
    pub fn is_input(&self) -> bool {
        match self {
            GenerateError::Backend(e) => e.is_input(),
            _ => true,
        }
    }
}

/// Divides checked sequences into passes of at most [`PASS_TOKENS`] tokens, or of a single one. Returns the passes and the tokens of the
/// largest.
///
/// # Errors
/// A sequence that is empty or holds a token that a model with this vocabulary does not have.
fn passes<'a>(
    sequences: impl Iterator<Item = &'a [u32]>,
    vocab: usize,
) -> Result<(Vec<Range<usize>>, usize), GenerateError> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let (mut tokens, mut largest) = (0, 0);
    for (row, ids) in sequences.enumerate() {
        if ids.is_empty() {
            return Err(GenerateError::Empty { row });
        }
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(GenerateError::Token { row, id, vocab });
        }
        tokens += ids.len();
        match passes.last_mut() {
            Some(pass) if tokens <= PASS_TOKENS => pass.end = row + 1,
            _ => {
                passes.push(row..row + 1);
                tokens = ids.len();
            }
        }
        largest = largest.max(tokens);
    }
    Ok((passes, largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_as_full_as_they_may_be_and_a_long_sequence_is_alone() {
        let lens = [1000, 24, 1, 3000, 5, 1019, 1];
        let sequences: Vec<Vec<u32>> = lens.iter().map(|n| vec![1; *n]).collect();
        let (passes, largest) = passes(sequences.iter().map(Vec::as_slice), 2).unwrap();
        assert_eq!(passes, [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(largest, 3000);
    }
}
