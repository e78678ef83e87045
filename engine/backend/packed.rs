//! A packed batch: sequences back to back, as every backend takes it over.

/// Sequences laid back to back without padding, and the positions that carry a target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// The sequences, in the order of their rows; they cover `ids` exactly.
    pub sequences: Vec<Sequence>,
    /// Rows whose next token is supervised (or asked for), in ascending order of `row`.
    pub targets: Vec<Target>,
    /// Which pass of which step it is. A backend may fill such a batch up with rows that change no result; none while generating.
    pub pass: Option<Pass>,
}

/// What tells a pass from the others of a training. The default is a step's only pass, and adds its losses up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Seed of the run, for dropout.
    pub seed: u64,
    /// Optimizer step, for dropout.
    pub step: u64,
    /// Index of the first token within the step: dropout masks follow it, so that the division into passes does not change them.
    pub first_token: u64,
    /// Index of the first target within the step: where its loss goes.
    pub first_target: usize,
    /// Factor of every loss in the gradient: 1 / (targets of the step).
    pub loss_scale: f32,
}

impl Default for Pass {
    fn default() -> Self {
        Pass {
            seed: 0,
            step: 0,
            first_token: 0,
            first_target: 0,
            loss_scale: 1.0,
        }
    }
}

/// A pass has room for a multiple of so many rows: what a backend may fill it up to.
pub const ROWS: usize = 128;

/// One sequence of a packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its first row in the batch.
    pub start: usize,
    /// Its number of rows.
    pub len: usize,
    /// Tokens of it that the KV cache already holds; 0 in training. Row `i` has position `past + i`.
    pub past: usize,
    /// Its place in the KV cache; unused in training.
    pub slot: usize,
}

/// A row that predicts a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the batch whose output is used.
    pub row: usize,
    /// The token that should follow.
    pub id: u32,
}

impl Packed {
    /// Rows in the batch.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Appends a sequence of which `past` tokens are in the cache's `slot` already; returns its first row.
    pub fn push(&mut self, ids: &[u32], past: usize, slot: usize) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.sequences.push(Sequence {
            start,
            len: ids.len(),
            past,
            slot,
        });
        start
    }
}
