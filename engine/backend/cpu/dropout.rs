//! Dropout masks that are a function of (seed, step, layer and projection, token, column), so that forward and backward, any
//! division into micro-batches and a resumed run see the same one.

use super::simd;
use crate::backend::{Dropout, Pass};
use rayon::prelude::*;

/// The mask of one linear layer's input in one optimizer step.
pub struct Mask<'a> {
    dropout: &'a Dropout,
    pass: Pass,
}

impl<'a> Mask<'a> {
    /// The mask of a pass.
    pub fn new(dropout: &'a Dropout, pass: Pass) -> Self {
        Mask { dropout, pass }
    }

    /// `x = keep ? x / (1 - p) : 0` on `[rows, columns]`.
    pub fn apply(&self, columns: usize, x: &mut [f32]) {
        let (threshold, keep) = (self.dropout.threshold(), self.dropout.keep_scale());
        let (stream, Pass { seed, step, .. }) = (self.dropout.stream, self.pass);
        let key = [
            seed as u32 ^ step as u32,
            (seed >> 32) as u32 ^ (step >> 32) as u32 ^ stream.rotate_left(16),
        ];
        x.par_chunks_mut(columns).enumerate().for_each(|(row, x)| {
            let token = self.pass.first_token + row as u64;
            let counter = [token as u32, (token >> 32) as u32 ^ step as u32, 0, stream];
            simd::dropout(key, counter, threshold, keep, x);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::philox::philox4x32;

    /// The map that every backend shares, one column at a time.
    #[test]
    fn a_mask_is_philox_of_token_and_column() {
        let dropout = Dropout { p: 0.25, stream: 5 };
        let (first_token, columns) = ((1 << 32) + 9, 203);
        let pass = Pass {
            seed: 0x0123_4567_89ab_cdef,
            step: 77,
            first_token,
            ..Pass::default()
        };
        let mut x = vec![1.0; 3 * columns];
        Mask::new(&dropout, pass).apply(columns, &mut x);
        let key = [0x89ab_cdef ^ 77, 0x0123_4567 ^ 5 << 16];
        for (i, x) in x.iter().enumerate() {
            let (row, column) = ((i / columns) as u32, i % columns);
            let call = 4 * (column / 32) + column % 8 / 2;
            let word = philox4x32([9 + row, 1 ^ 77, call as u32, 5], key)[column % 32 / 8];
            let draw = if column % 2 == 0 {
                word & 0xffff
            } else {
                word >> 16
            };
            let kept = draw >= 1 << 14;
            assert_eq!(*x, if kept { 1.0 / 0.75 } else { 0.0 }, "element {i}");
        }
    }
}
