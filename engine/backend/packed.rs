//! A packed batch: sequences back to back, as every backend takes it over.

/// Sequences laid back to back without padding, and the positions that carry a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// The sequences, in the order of their rows; they cover `ids` exactly.
    pub sequences: Vec<Sequence>,
    /// Rows whose next token is supervised (or asked for), in ascending order of `row`.
    pub targets: Vec<Target>,
    /// Index of the first token within the optimizer step: dropout masks follow it, so that the division
    /// into micro-batches does not change them.
    pub first_token: u64,
}

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
