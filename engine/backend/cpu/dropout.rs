//! Dropout masks that are a function of (seed, step, layer and projection, token, column), so that forward and backward, any
//! division into micro-batches and a resumed run see the same one.

use crate::backend::Dropout;
use crate::model::philox::philox4x32;
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
        let Dropout {
            p,
            seed,
            step,
            stream,
        } = *self.dropout;
        // A 32-bit uniform is dropped where it lies below p * 2^32.
        let threshold = (f64::from(p) * 4_294_967_296.0) as u32;
        let keep = 1.0 / (1.0 - p);
        let key = [
            seed as u32 ^ step as u32,
            (seed >> 32) as u32 ^ (step >> 32) as u32 ^ stream.rotate_left(16),
        ];
        x.par_chunks_mut(columns).enumerate().for_each(|(row, x)| {
            let token = self.first_token + row as u64;
            for (i, four) in x.chunks_mut(4).enumerate() {
                let counter = [
                    token as u32,
                    (token >> 32) as u32 ^ step as u32,
                    i as u32,
                    stream,
                ];
                for (value, draw) in four.iter_mut().zip(philox4x32(counter, key)) {
                    *value = if draw < threshold { 0.0 } else { *value * keep };
                }
            }
        });
    }
}
