//! The LoRA branch of a linear layer: `y += scale * dropout(x) A^T B^T`, always as (x A^T) B^T.
//!
//! Holds forward and backward of the branch alone. Invariant: `low` already carries the scale, so B's gradient needs no
//! second factor.

use super::dropout::Mask;
use super::gemm::{View, gemm};
use super::linear::Columns;
use super::simd;
use crate::backend::{LoraSlots, Pass, Slot};

/// One linear layer's branch.
pub struct Branch<'a> {
    /// Its place, rank and scale.
    pub lora: &'a LoraSlots,
    /// Rows of activations.
    pub rows: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
    /// Which pass it is, for the dropout mask.
    pub pass: Pass,
    /// Where `scale * dropout(x) A^T` stands, `[rows, rank]`.
    pub low: Columns,
    /// Where y and its gradient stand.
    pub y: Columns,
}

impl Branch<'_> {
    /// The input behind dropout.
    fn dropped<'x>(&self, x: &'x [f32], scratch: &'x mut Vec<f32>) -> View<'x> {
        let Some(dropout) = &self.lora.dropout else {
            return View::rows(x, self.inputs);
        };
        scratch.clear();
        scratch.extend_from_slice(&x[..self.rows * self.inputs]);
        Mask::new(dropout, self.pass).apply(self.inputs, scratch);
        View::rows(scratch, self.inputs)
    }

    /// `low =`, `y +=`.
    pub fn forward(&self, values: &[f32], x: &[f32], y: &mut [f32], low: &mut [f32]) {
        let (rows, inputs, outputs, rank) = (self.rows, self.inputs, self.outputs, self.lora.rank);
        let a = View::rows(part(values, self.lora.a), inputs);
        let b = View::rows(part(values, self.lora.b), rank);
        let mut scratch = Vec::new();
        let x = self.dropped(x, &mut scratch);
        let (low, stride) = (&mut low[self.low.at..], self.low.stride);
        gemm(
            [rows, inputs, rank],
            self.lora.scale,
            x,
            a.t(),
            0.0,
            low,
            stride,
        );
        let low = View::rows(low, stride);
        gemm(
            [rows, rank, outputs],
            1.0,
            low,
            b.t(),
            1.0,
            &mut y[self.y.at..],
            self.y.stride,
        );
    }

    /// [`Branch::forward`] for a decoding step, whose products are too small to be worth packing.
    pub fn decode(&self, values: &[f32], x: &[f32], y: &mut [f32]) {
        let (a, b) = (part(values, self.lora.a), part(values, self.lora.b));
        let mut low = vec![0.0; self.lora.rank];
        for r in 0..self.rows {
            let x = &x[r * self.inputs..(r + 1) * self.inputs];
            for (low, a) in low.iter_mut().zip(a.chunks_exact(self.inputs)) {
                *low = self.lora.scale * simd::dot(x, a);
            }
            let at = r * self.y.stride + self.y.at;
            for (y, b) in y[at..at + self.outputs]
                .iter_mut()
                .zip(b.chunks_exact(self.lora.rank))
            {
                *y += simd::dot(&low, b);
            }
        }
    }

    /// `dB += dy^T low`, `g = scale * dy B`, `dA += g^T dropout(x)`, `dx += mask * (g A)`.
    pub fn backward(
        &self,
        values: &[f32],
        grads: &mut [f32],
        x: &[f32],
        low: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
    ) {
        let (rows, inputs, outputs, rank) = (self.rows, self.inputs, self.outputs, self.lora.rank);
        if rows == 0 {
            return;
        }
        let a = View::rows(part(values, self.lora.a), inputs);
        let b = View::rows(part(values, self.lora.b), rank);
        let dy = View::rows(&dy[self.y.at..], self.y.stride);
        let low = View::rows(&low[self.low.at..], self.low.stride);
        gemm(
            [outputs, rows, rank],
            1.0,
            dy.t(),
            low,
            1.0,
            part_mut(grads, self.lora.b),
            rank,
        );
        let mut g = vec![0.0; rows * rank];
        gemm(
            [rows, outputs, rank],
            self.lora.scale,
            dy,
            b,
            0.0,
            &mut g,
            rank,
        );
        let g = View::rows(&g, rank);
        let mut scratch = Vec::new();
        let x = self.dropped(x, &mut scratch);
        gemm(
            [rank, rows, inputs],
            1.0,
            g.t(),
            x,
            1.0,
            part_mut(grads, self.lora.a),
            inputs,
        );
        let Some(dx) = dx else { return };
        let Some(dropout) = &self.lora.dropout else {
            return gemm([rows, rank, inputs], 1.0, g, a, 1.0, dx, inputs);
        };
        scratch.resize(rows * inputs, 0.0);
        gemm([rows, rank, inputs], 1.0, g, a, 0.0, &mut scratch, inputs);
        Mask::new(dropout, self.pass).apply(inputs, &mut scratch);
        simd::add(&scratch, dx);
    }
}

/// The values at a slot.
pub fn part(values: &[f32], slot: Slot) -> &[f32] {
    &values[slot.offset..slot.offset + slot.len]
}

/// The values at a slot, to be changed.
pub fn part_mut(values: &mut [f32], slot: Slot) -> &mut [f32] {
    &mut values[slot.offset..slot.offset + slot.len]
}
