//! Which rows make up a step, and how they are packed into passes.
//!
//! Invariant: the order of rows depends on (seed, epoch) alone, so a resumed run sees the rows that an uninterrupted one would have.

use crate::backend::{Packed, Target};
use crate::text::example::Example;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Tokens of one pass under `micro_batch = auto`: enough for the matrix products, and about 0.7 GiB of activations for a model of 135M.
pub const AUTO_TOKENS: usize = 1024;

/// The rows of optimizer steps.
#[derive(Debug, Clone)]
pub struct Order {
    /// Number of rows.
    pub rows: usize,
    /// Rows of one step.
    pub batch: usize,
    /// New order every epoch.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
}

impl Order {
    /// Steps of one pass over the rows; the last one may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.batch.max(1)) as u64
    }

    /// The rows of a whole epoch.
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows).collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch + 1);
            rows.shuffle(&mut rng);
        }
        rows
    }
}

/// Divides rows into passes: `micro_batch` rows each, or as many as fit [`AUTO_TOKENS`].
pub fn passes(rows: &[&Example], micro_batch: Option<u64>) -> Vec<Packed> {
    let mut passes: Vec<Packed> = Vec::new();
    let mut first_token = 0;
    for row in rows {
        let full = |p: &Packed| match micro_batch {
            Some(n) => p.sequences.len() as u64 >= n,
            None => p.tokens() + row.ids.len() > AUTO_TOKENS,
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
