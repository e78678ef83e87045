//! Which rows make up a step, and how they are packed into passes.
//!
//! Holds nothing from one step to the next: the rows of a step depend on (seed, step) alone, so a resumed run sees those that an
//! uninterrupted one would have.

use super::division::Division;
use crate::backend::{Packed, Target};
use crate::text::example::Example;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The rows of optimizer steps.
#[derive(Debug, Clone)]
pub struct Order {
    /// Number of rows.
    pub rows: usize,
    /// Rows of one step, from 1.
    pub batch: usize,
    /// New order every epoch.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
}

impl Order {
    /// Steps of one pass over the rows; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.batch) as u64
    }

    /// The rows of optimizer step `step` (from 0).
    pub fn step(&self, step: u64) -> Vec<usize> {
        let (epoch, step) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let mut rows: Vec<usize> = (0..self.rows).collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch + 1);
            rows.shuffle(&mut rng);
        }
        rows.into_iter()
            .skip(step as usize * self.batch)
            .take(self.batch)
            .collect()
    }
}

/// Divides rows into passes.
pub fn passes(rows: &[&Example], division: Division) -> Vec<Packed> {
    let mut passes: Vec<Packed> = Vec::new();
    let mut first_token = 0;
    for row in rows {
        let full = |p: &Packed| match division {
            Division::Rows(n) => p.sequences.len() as u64 >= n,
            Division::Tokens(most) => p.tokens() + row.ids.len() > most,
        };
        if passes.last().is_none_or(full) {
            passes.push(Packed {
                first_token,
                ..Packed::default()
            });
        }
        if let Some(pass) = passes.last_mut() {
            push(pass, row);
            first_token += row.ids.len() as u64;
        }
    }
    passes
}

/// Appends an example whose answer and end token are the targets.
fn push(pass: &mut Packed, row: &Example) {
    let start = pass.push(&row.ids, 0, 0);
    for at in row.target_start.max(1)..row.ids.len() {
        pass.targets.push(Target {
            row: start + at - 1,
            id: row.ids[at],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(shuffle: bool) -> Order {
        Order {
            rows: 7,
            batch: 3,
            shuffle,
            seed: 5,
        }
    }

    #[test]
    fn unshuffled_rows_come_in_their_order_and_the_last_batch_is_smaller() {
        let steps: Vec<_> = (0..4).map(|s| order(false).step(s)).collect();
        assert_eq!(
            steps,
            [vec![0, 1, 2], vec![3, 4, 5], vec![6], vec![0, 1, 2]]
        );
    }

    #[test]
    fn a_shuffled_epoch_holds_every_row_once_and_differs_from_the_next() {
        let epoch = |e: u64| -> Vec<usize> {
            let steps = 3 * e..3 * e + 3;
            steps.flat_map(|s| order(true).step(s)).collect()
        };
        for e in 0..5 {
            let mut rows = epoch(e);
            assert_ne!(rows, epoch(e + 1));
            rows.sort_unstable();
            assert_eq!(rows, (0..7).collect::<Vec<_>>());
        }
    }

    #[test]
    fn passes_divide_the_rows_and_number_their_tokens_through() {
        let example = |len: usize| Example {
            ids: vec![9; len],
            target_start: len - 1,
            cut: 0,
        };
        let rows: Vec<Example> = [3, 997, 1, 2000, 2].map(example).to_vec();
        let rows: Vec<&Example> = rows.iter().collect();
        let sizes = |division| -> Vec<(u64, usize)> {
            let passes = passes(&rows, division);
            passes.iter().map(|p| (p.first_token, p.tokens())).collect()
        };
        let auto = [(0, 1000), (1000, 1), (1001, 2000), (3001, 2)];
        assert_eq!(sizes(Division::Tokens(1000)), auto);
        assert_eq!(sizes(Division::Rows(5)), [(0, 3003)]);
        assert_eq!(sizes(Division::Rows(2)).len(), 3);
    }
}
