//! Which rows make up a step, and how they are packed into passes.
//!
//! Holds nothing from one step to the next: the rows of a step depend on (seed, step) alone, so a resumed run sees those that an
//! uninterrupted one would have.

use super::division::Division;
use crate::backend::{Packed, Pass, Target};
use crate::text::example::Example;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

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

    /// All rows in the order of an epoch (from 0).
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows).collect();
        if self.shuffle {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch + 1);
            rows.shuffle(&mut rng);
        }
        rows
    }

    /// The rows of each step; an epoch is put in order once.
    pub fn steps(&self) -> Steps<'_> {
        Steps {
            order: self,
            epoch: None,
        }
    }
}

/// The rows of steps, asked for one after the other.
pub struct Steps<'a> {
    order: &'a Order,
    /// The latest, and its rows.
    epoch: Option<(u64, Vec<usize>)>,
}

impl Steps<'_> {
    /// The rows of optimizer step `step` (from 0).
    pub fn rows(&mut self, step: u64) -> &[usize] {
        let order = self.order;
        let epoch = step / order.steps_per_epoch();
        let first = (step % order.steps_per_epoch()) as usize * order.batch;
        if self
            .epoch
            .as_ref()
            .is_none_or(|(latest, _)| *latest != epoch)
        {
            self.epoch = None;
        }
        let (_, rows) = self
            .epoch
            .get_or_insert_with(|| (epoch, order.epoch(epoch)));
        &rows[first..rows.len().min(first + order.batch)]
    }
}

/// Divides rows into passes.
fn divide(rows: &[&Example], division: Division) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (i, row) in rows.iter().enumerate() {
        tokens += row.ids.len();
        let full = |pass: &Range<usize>| match division {
            Division::Rows(n) => pass.len() as u64 >= n,
            Division::Tokens(most) => tokens > most,
        };
        match passes.last_mut().filter(|pass| !full(pass)) {
            Some(pass) => pass.end = i + 1,
            None => {
                passes.push(i..i + 1);
                tokens = row.ids.len();
            }
        }
    }
    passes
}

/// The passes of optimizer step `step` over these rows, under a run's seed.
pub fn passes(rows: &[&Example], division: Division, seed: u64, step: u64) -> Vec<Packed> {
    let targets: usize = rows.iter().map(|row| row.targets().len()).sum();
    let mut pass = Pass {
        seed,
        step,
        loss_scale: 1.0 / targets.max(1) as f32,
        ..Pass::default()
    };
    let pack = |range: Range<usize>| {
        let mut packed = Packed {
            pass: Some(pass),
            ..Packed::default()
        };
        for row in &rows[range] {
            push(&mut packed, row);
        }
        pass.first_token += packed.tokens() as u64;
        pass.first_target += packed.targets.len();
        packed
    };
    divide(rows, division).into_iter().map(pack).collect()
}

/// Appends an example whose answer and end token are the targets.
fn push(packed: &mut Packed, row: &Example) {
    let start = packed.push(&row.ids, 0, 0);
    packed.targets.extend(row.targets().map(|at| Target {
        row: start + at - 1,
        id: row.ids[at],
    }));
}

/// The largest pass of some steps, and the most targets of one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Tokens of a pass.
    pub tokens: usize,
    /// Targets of a pass.
    pub targets: usize,
    /// Targets of a step.
    pub losses: usize,
}

impl Extent {
    /// Of one step over these rows.
    pub fn of(rows: &[&Example], division: Division) -> Self {
        let mut extent = Extent::default();
        for range in divide(rows, division) {
            let rows = &rows[range];
            let targets = rows.iter().map(|row| row.targets().len()).sum();
            let tokens = rows.iter().map(|row| row.ids.len()).sum();
            extent.tokens = extent.tokens.max(tokens);
            extent.targets = extent.targets.max(targets);
            extent.losses += targets;
        }
        extent
    }

    /// Of these steps and those.
    pub fn max(self, other: Extent) -> Self {
        Extent {
            tokens: self.tokens.max(other.tokens),
            targets: self.targets.max(other.targets),
            losses: self.losses.max(other.losses),
        }
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
        let (order, steps) = (order(false), 0..4);
        let mut of = order.steps();
        let steps: Vec<_> = steps.map(|s| of.rows(s).to_vec()).collect();
        assert_eq!(
            steps,
            [vec![0, 1, 2], vec![3, 4, 5], vec![6], vec![0, 1, 2]]
        );
    }

    #[test]
    fn a_shuffled_epoch_holds_every_row_once_and_differs_from_the_next() {
        let epoch = |e: u64| -> Vec<usize> {
            let (order, steps) = (order(true), 3 * e..3 * e + 3);
            let mut of = order.steps();
            steps.flat_map(|s| of.rows(s).to_vec()).collect()
        };
        for e in 0..5 {
            let mut rows = epoch(e);
            assert_ne!(rows, epoch(e + 1));
            rows.sort_unstable();
            assert_eq!(rows, (0..7).collect::<Vec<_>>());
        }
    }

    #[test]
    fn passes_divide_the_rows_and_their_extent_is_known_before() {
        let example = |len: usize| Example {
            ids: vec![9; len],
            target_start: len - 1,
            cut: 0,
        };
        let rows: Vec<Example> = [3, 997, 1, 2000, 2].map(example).to_vec();
        let rows: Vec<&Example> = rows.iter().collect();
        let sizes = |division| -> Vec<usize> {
            let passes = divide(&rows, division).into_iter();
            let size = |range: Range<usize>| rows[range].iter().map(|r| r.ids.len()).sum();
            passes.map(size).collect()
        };
        assert_eq!(sizes(Division::Tokens(1000)), [1000, 1, 2000, 2]);
        assert_eq!(sizes(Division::Rows(5)), [3003]);
        assert_eq!(sizes(Division::Rows(2)).len(), 3);
        let extent = Extent::of(&rows, Division::Rows(2));
        // The row of one token has no target.
        let (tokens, targets, losses) = (2001, 2, 4);
        assert_eq!(
            extent,
            Extent {
                tokens,
                targets,
                losses
            }
        );
    }
}
