//! The language-model head: cross-entropy and its gradient, in chunks of rows, so that the logits of a batch never exist at once.
//!
//! Invariant: only rows with a target are touched.

use super::gemm::{View, gemm};
use super::linear::{Source, forward};
use super::simd;
use crate::backend::Target;
use rayon::prelude::*;

/// Elements of one chunk of logits: 32 MiB of f32.
const CHUNK: usize = 8 << 20;

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

impl Head<'_> {
    /// The rows of x that have a target, `[targets, hidden]`.
    fn gather(&self, x: &[f32], targets: &[Target]) -> Vec<f32> {
        targets
            .iter()
            .flat_map(|t| &x[t.row * self.hidden..(t.row + 1) * self.hidden])
            .copied()
            .collect()
    }

    /// Logits `[targets, vocab]`.
    pub fn logits(&self, x: &[f32], targets: &[Target]) -> Vec<f32> {
        let mut z = vec![0.0; targets.len() * self.vocab];
        forward(
            self.weight,
            targets.len(),
            self.hidden,
            self.vocab,
            &self.gather(x, targets),
            &mut z,
            self.vocab,
            0,
        );
        z
    }

    /// Losses, one a target. `gradient` gets, chunk by chunk, the targets, their inputs `[n, hidden]` and the gradients of the logits
    /// `[n, vocab]` times `scale`.
    pub fn loss(
        &self,
        x: &[f32],
        targets: &[Target],
        mut gradient: Option<(f32, &mut dyn FnMut(&[Target], &[f32], &[f32]))>,
    ) -> Vec<f32> {
        let mut losses = Vec::with_capacity(targets.len());
        let rows = (CHUNK / self.vocab.max(1)).max(1);
        for chunk in targets.chunks(rows) {
            let mut z = self.logits(x, chunk);
            let with_gradient = gradient.as_ref().map(|(scale, _)| *scale);
            let mut part = Vec::new();
            z.par_chunks_mut(self.vocab)
                .zip(chunk)
                .map(|(z, target)| row_loss(z, target.id as usize, with_gradient))
                .collect_into_vec(&mut part);
            losses.extend(part);
            if let Some((_, each)) = &mut gradient {
                each(chunk, &self.gather(x, chunk), &z);
            }
        }
        losses
    }

    /// `dx += dz W`, `[n, hidden]`.
    pub fn backward_input(&self, n: usize, dz: &[f32], dx: &mut [f32]) {
        super::linear::backward_input(
            self.weight,
            n,
            self.hidden,
            self.vocab,
            dz,
            self.vocab,
            0,
            dx,
        );
    }

    /// `dw += dz^T x`.
    pub fn backward_weight(&self, n: usize, dz: &[f32], x: &[f32], dw: &mut [f32]) {
        if n > 0 {
            let (dz, x) = (View::rows(dz, self.vocab), View::rows(x, self.hidden));
            gemm(
                self.vocab,
                n,
                self.hidden,
                1.0,
                dz.t(),
                x,
                1.0,
                dw,
                self.hidden,
            );
        }
    }
}

/// `ln sum exp z - z[target]`; with a scale, z becomes `scale * (softmax - onehot)`.
fn row_loss(z: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    let top = simd::max(z);
    let wanted = z[target];
    if let Some(scale) = scale {
        let sum = simd::exp_sum(z, 1.0, top);
        let loss = top + sum.ln() - wanted;
        simd::scale(scale / sum, z);
        z[target] -= scale;
        loss
    } else {
        top + simd::exp_sum(z, 1.0, top).ln() - wanted
    }
}
