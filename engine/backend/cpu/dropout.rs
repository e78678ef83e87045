//! Dropout masks that are a function of (seed, step, layer and projection, token, column), so that forward and backward, any
//! division into micro-batches and a resumed run see the same one.

use super::simd;
use crate::backend::Dropout;
use rayon::prelude::*;

/// The mask of one linear layer's input in one optimizer step.
pub struct Mask<'a> {
    dropout: &'a Dropout,
    first_token: u64,
}

impl<'a> Mask<'a> {
    /// The mask whose first row is token `first_token` of the step.
    pub fn new(dropout: &'a Dropout, first_token: u64) -> Self {
        Mask {
            dropout,
            first_token,
        }
    }

    /// `x = keep ? x / (1 - p) : 0` on `[rows, columns]`.
    pub fn apply(&self, columns: usize, x: &mut [f32]) {
        let (threshold, keep) = (self.dropout.threshold(), self.dropout.keep_scale());
        let Dropout {
            seed, step, stream, ..
        } = *self.dropout;
        let key = [
            seed as u32 ^ step as u32,
            (seed >> 32) as u32 ^ (step >> 32) as u32 ^ stream.rotate_left(16),
        ];
        x.par_chunks_mut(columns).enumerate().for_each(|(row, x)| {
            let token = self.first_token + row as u64;
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
        let dropout = Dropout {
            p: 0.25,
            seed: 0x0123_4567_89ab_cdef,
            step: 77,
            stream: 5,
        };
        let (first_token, columns) = ((1 << 32) + 9, 203);
        let mut x = vec![1.0; 3 * columns];
        Mask::new(&dropout, first_token).apply(columns, &mut x);
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
