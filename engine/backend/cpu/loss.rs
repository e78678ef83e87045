//! The language-model head: cross-entropy and its gradient, in chunks of rows, so that the logits of a batch never exist
//! at once.
//!
//! Invariant: only rows with a target are touched.

use super::linear::{Columns, Layer, Source};
use super::simd;
use crate::backend::Target;
use rayon::prelude::*;

/// Elements of one chunk of logits: 32 MiB of f32.
pub const CHUNK: usize = 8 << 20;

/// The head `[vocab, hidden]` and its shape.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// The weight.
    pub weight: Source<'a>,
    /// Columns.
    pub hidden: usize,
    /// Rows.
    pub vocab: usize,
}

/// A chunk of targets on the way back.
pub struct Chunk<'a> {
    /// The targets.
    pub targets: &'a [Target],
    /// Their inputs, `[targets, hidden]`.
    pub x: &'a [f32],
    /// Gradients of their logits, `[targets, vocab]`.
    pub dz: &'a [f32],
}

/// The scale of the gradients, and what takes each chunk.
pub type Backward<'a> = (f32, &'a mut dyn FnMut(Chunk));

impl<'a> Head<'a> {
    /// The linear layer for so many rows.
    pub fn layer(&self, rows: usize) -> Layer<'a> {
        let y = Columns {
            stride: self.vocab,
            at: 0,
        };
        Layer {
            weight: self.weight,
            rows,
            inputs: self.hidden,
            outputs: self.vocab,
            y,
        }
    }

    /// The rows of x that have a target, `[targets, hidden]`.
    pub fn gather(&self, x: &[f32], targets: &[Target]) -> Vec<f32> {
        let row = |t: &Target| &x[t.row * self.hidden..(t.row + 1) * self.hidden];
        targets.iter().flat_map(row).copied().collect()
    }

    /// `losses =`, one a target. With `backward`, every chunk is handed over with the gradients of its logits times that scale.
    pub fn loss(
        &self,
        x: &[f32],
        targets: &[Target],
        losses: &mut [f32],
        mut backward: Option<Backward>,
    ) {
        let rows = (CHUNK / self.vocab.max(1)).max(1);
        let mut z = vec![0.0; rows.min(targets.len()) * self.vocab];
        for (targets, losses) in targets.chunks(rows).zip(losses.chunks_mut(rows)) {
            let x = self.gather(x, targets);
            let z = &mut z[..targets.len() * self.vocab];
            self.layer(targets.len()).forward(&x, z);
            let scale = backward.as_ref().map(|(scale, _)| *scale);
            z.par_chunks_mut(self.vocab)
                .zip(targets)
                .zip(losses)
                .for_each(|((z, target), loss)| *loss = row_loss(z, target.id as usize, scale));
            if let Some((_, take)) = &mut backward {
                take(Chunk {
                    targets,
                    x: &x,
                    dz: z,
                });
            }
        }
    }
}

/// `ln sum exp z - z[target]`; with a scale, z becomes `scale * (softmax - onehot)`.
fn row_loss(z: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    let top = simd::max(z);
    let wanted = z[target];
    let sum = simd::exp_sum(z, 1.0, top);
    if let Some(scale) = scale {
        simd::scale(scale / sum, z);
        z[target] -= scale;
    }
    top + sum.ln() - wanted
}
