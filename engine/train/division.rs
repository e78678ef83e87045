//! How the rows of a step are divided into passes; where the recipe leaves that to the device (`micro_batch = auto`), how large a pass may be.
//!
//! Invariant: a training is divided alike from its first step to its last, because other passes give other last bits. What was chosen from the
//! memory that was free then stands in every checkpoint.

use super::snapshot::State;
use crate::backend::{Backend, ROWS};
use crate::model::decoder::Decoder;
use crate::model::trained::Trained;
use crate::model::workspace::Largest;
use crate::text::example::Example;
use medft_dsl::plan::Train;
use serde::{Deserialize, Serialize};

/// Tokens of a pass that `auto` does not go below: enough for the matrix products, and about 0.7 GiB of activations for a model of 135M.
pub const AUTO_TOKENS: usize = 1024;

/// How rows are divided into passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Division {
    /// So many rows each.
    Rows(u64),
    /// As many rows as have at most so many tokens together; a longer row is a pass of its own.
    Tokens(usize),
}

/// `most`, or half of it, and so on: the first that fits, else [`AUTO_TOKENS`].
pub fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let mut tokens = most;
    while tokens > AUTO_TOKENS && !fits(tokens) {
        tokens /= 2;
    }
    tokens.max(AUTO_TOKENS)
}

/// What `auto` may take of so many free bytes: the rest is for what other programs come to need, and for odd ends of the driver.
pub fn usable(free: u64) -> u64 {
    free - free / 16
}

impl Division {
    /// That of a training: the recipe's, or the one that it was begun with, or one that fits into what is free now.
    pub fn of<B: Backend>(
        decoder: &Decoder<B>,
        state: &State<B>,
        settings: &Train,
        [train, val]: [&[Example]; 2],
    ) -> Self {
        if let Some(rows) = settings.micro_batch {
            return Division::Rows(rows);
        }
        if let Some(begun) = state.progress.division {
            return begun;
        }
        let backend = &decoder.backend;
        let whole = tokens(train, settings.batch).max(tokens(val, settings.eval_batch));
        let longest = tokens(train, 1).max(tokens(val, 1));
        let fits = |most: usize| {
            let need = need(decoder, &state.trained, whole.min(most).max(longest));
            backend.memory().is_none_or(|m| need <= usable(m.free))
        };
        Division::Tokens(largest(backend.pass_tokens(), fits))
    }
}

/// Most tokens that so many of these rows have.
fn tokens(rows: &[Example], count: u64) -> usize {
    let mut lengths: Vec<usize> = rows.iter().map(|r| r.ids.len()).collect();
    lengths.sort_unstable_by_key(|length| std::cmp::Reverse(*length));
    lengths.iter().take(count as usize).sum()
}

/// Bytes that steps take beside weights, trained values and moments, which are there already.
fn need<B: Backend>(decoder: &Decoder<B>, trained: &Trained<B>, tokens: usize) -> u64 {
    let tokens = tokens.next_multiple_of(ROWS);
    let largest = Largest {
        tokens,
        targets: tokens,
        training: true,
        cached: None,
    };
    let gradient = 4 * trained.len() as u64;
    gradient + decoder.workspace_bytes(Some(trained.tuning()), &largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_half_that_fits_is_taken_and_never_less_than_the_least() {
        assert_eq!(largest(16384, |_| true), 16384);
        assert_eq!(largest(16384, |tokens| tokens <= 5000), 4096);
        assert_eq!(largest(16384, |_| false), AUTO_TOKENS);
        assert_eq!(largest(AUTO_TOKENS, |_| false), AUTO_TOKENS);
        assert_eq!(largest(1500, |_| false), AUTO_TOKENS);
    }

    #[test]
    fn the_longest_rows_are_counted() {
        let row = |len: usize| Example {
            ids: vec![0; len],
            target_start: 1,
            cut: 0,
        };
        let rows = [3, 9, 4].map(row);
        assert_eq!(tokens(&rows, 2), 13);
        assert_eq!(tokens(&rows, 8), 16);
        assert_eq!(tokens(&[], 8), 0);
    }
}
