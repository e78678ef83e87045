//! Linear layers with their adapters: forward, backward, and the skinny form that decoding uses.
//!
//! Holds products of activations with weights in any precision. Invariant: a weight is read in blocks of rows, so no f32 copy of a
//! whole matrix ever exists.

use super::dropout::Mask;
use super::gemm::{View, gemm};
use super::matrix::{Matrix, Values};
use super::simd;
use crate::backend::{LoraSlots, Slot};
use rayon::prelude::*;

/// Elements of a dequantised block of a weight: 4 MiB of f32, shared by all cores' caches.
const BLOCK: usize = 1 << 20;
/// Up to this many rows a product is bound by reading the weight, and dot products beat a packed product.
const SKINNY: usize = 8;

/// A weight `[outputs, inputs]`, wherever its values lie.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// In the checkpoint's form.
    Frozen(&'a Matrix),
    /// Trained, in f32.
    Trained(&'a [f32]),
}

impl Source<'_> {
    /// Calls `each` with the first row and the f32 values of every block of rows.
    pub fn blocks(self, outputs: usize, inputs: usize, mut each: impl FnMut(usize, &[f32])) {
        let whole = match self {
            Source::Trained(v) => Some(v),
            Source::Frozen(m) => match m.values() {
                Values::F32(v) => Some(v),
                _ => None,
            },
        };
        if let Some(values) = whole {
            return each(0, &values[..outputs * inputs]);
        }
        let Source::Frozen(matrix) = self else { return };
        let step = (BLOCK / inputs.max(1)).clamp(16, outputs.max(16));
        let mut scratch = Vec::new();
        for from in (0..outputs).step_by(step) {
            each(
                from,
                matrix.block(from, step.min(outputs - from), &mut scratch),
            );
        }
    }

    /// One row as f32.
    pub fn row(self, row: usize, inputs: usize, to: &mut [f32]) {
        match self {
            Source::Trained(v) => to.copy_from_slice(&v[row * inputs..(row + 1) * inputs]),
            Source::Frozen(m) => m.row(row, to),
        }
    }
}

/// `y[:, at..at + outputs] = x W^T`; x `[rows, inputs]`, y in rows of `stride`.
pub fn forward(
    w: Source,
    rows: usize,
    inputs: usize,
    outputs: usize,
    x: &[f32],
    y: &mut [f32],
    stride: usize,
    at: usize,
) {
    if rows <= SKINNY {
        return skinny(w, rows, inputs, outputs, x, y, stride, at);
    }
    w.blocks(outputs, inputs, |from, block| {
        let n = block.len() / inputs;
        let a = View::rows(x, inputs);
        gemm(
            rows,
            inputs,
            n,
            1.0,
            a,
            View::rows(block, inputs).t(),
            0.0,
            &mut y[at + from..],
            stride,
        );
    });
}

/// [`forward`] for a few rows: every weight is read once, widened in registers or L1, and met with all rows.
fn skinny(
    w: Source,
    rows: usize,
    inputs: usize,
    outputs: usize,
    x: &[f32],
    y: &mut [f32],
    stride: usize,
    at: usize,
) {
    // One task's outputs: enough work to pay for it, few enough to balance two cores.
    let grain = (65_536 / inputs.max(1)).clamp(8, 256);
    let mut columns = vec![0.0; outputs * rows]; // [outputs, rows]
    columns
        .par_chunks_mut(grain * rows)
        .enumerate()
        .for_each(|(task, out)| {
            let mut row = vec![0.0; inputs];
            for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                let o = task * grain + i;
                let range = o * inputs..(o + 1) * inputs;
                match w {
                    Source::Trained(v) => skinny_row(&v[range], inputs, x, out),
                    Source::Frozen(m) => match m.values() {
                        Values::F32(v) => skinny_row(&v[range], inputs, x, out),
                        Values::Bf16(v) if rows == 1 => {
                            out[0] = simd::dot_bf16(&x[..inputs], &v[range])
                        }
                        _ => {
                            m.row(o, &mut row);
                            skinny_row(&row, inputs, x, out);
                        }
                    },
                }
            }
        });
    for (o, column) in columns.chunks_exact(rows).enumerate() {
        for (r, value) in column.iter().enumerate() {
            y[r * stride + at + o] = *value;
        }
    }
}

fn skinny_row(w: &[f32], inputs: usize, x: &[f32], out: &mut [f32]) {
    let row = |r: usize| &x[r * inputs..(r + 1) * inputs];
    let mut r = 0;
    while r + 4 <= out.len() {
        out[r..r + 4].copy_from_slice(&simd::dot4([row(r), row(r + 1), row(r + 2), row(r + 3)], w));
        r += 4;
    }
    for (r, out) in out.iter_mut().enumerate().skip(r) {
        *out = simd::dot(row(r), w);
    }
}

/// `dx += dy W`; dy in rows of `stride` from column `at`.
pub fn backward_input(
    w: Source,
    rows: usize,
    inputs: usize,
    outputs: usize,
    dy: &[f32],
    stride: usize,
    at: usize,
    dx: &mut [f32],
) {
    w.blocks(outputs, inputs, |from, block| {
        let n = block.len() / inputs;
        let a = View::rows(&dy[at + from..], stride);
        gemm(
            rows,
            n,
            inputs,
            1.0,
            a,
            View::rows(block, inputs),
            1.0,
            dx,
            inputs,
        );
    });
}

/// `dw += dy^T x`.
pub fn backward_weight(
    rows: usize,
    inputs: usize,
    outputs: usize,
    dy: &[f32],
    stride: usize,
    at: usize,
    x: &[f32],
    dw: &mut [f32],
) {
    if rows > 0 {
        gemm(
            outputs,
            rows,
            inputs,
            1.0,
            View::rows(&dy[at..], stride).t(),
            View::rows(x, inputs),
            1.0,
            dw,
            inputs,
        );
    }
}

/// The low-rank branch of one linear layer.
pub struct Branch<'a> {
    /// Its place, rank and scale.
    pub lora: &'a LoraSlots,
    /// Rows of activations.
    pub rows: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
    /// Index of the first row within the optimizer step, for the dropout mask.
    pub first_token: u64,
    /// `low`'s row stride and this branch's first column in it.
    pub low: (usize, usize),
    /// The result's row stride and this branch's first column in it.
    pub out: (usize, usize),
}

impl Branch<'_> {
    fn dropped<'x>(&self, x: &'x [f32], scratch: &'x mut Vec<f32>) -> &'x [f32] {
        match &self.lora.dropout {
            None => x,
            Some(dropout) => {
                scratch.clear();
                scratch.extend_from_slice(&x[..self.rows * self.inputs]);
                Mask::new(dropout, self.first_token).apply(self.inputs, scratch);
                scratch
            }
        }
    }

    /// `low = scale * dropout(x) A^T`, `y += low B^T`.
    pub fn forward(&self, values: &[f32], x: &[f32], y: &mut [f32], low: &mut [f32]) {
        let (rank, scale) = (self.lora.rank, self.lora.scale);
        let (a, b) = (part(values, self.lora.a), part(values, self.lora.b));
        let mut scratch = Vec::new();
        let x = self.dropped(x, &mut scratch);
        let a = View::rows(a, self.inputs).t();
        gemm(
            self.rows,
            self.inputs,
            rank,
            scale,
            View::rows(x, self.inputs),
            a,
            0.0,
            &mut low[self.low.1..],
            self.low.0,
        );
        let low = View::rows(&low[self.low.1..], self.low.0);
        gemm(
            self.rows,
            rank,
            self.outputs,
            1.0,
            low,
            View::rows(b, rank).t(),
            1.0,
            &mut y[self.out.1..],
            self.out.0,
        );
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
        let (rank, rows) = (self.lora.rank, self.rows);
        if rows == 0 {
            return;
        }
        let (a, b) = (part(values, self.lora.a), part(values, self.lora.b));
        let dy = View::rows(&dy[self.out.1..], self.out.0);
        let low = View::rows(&low[self.low.1..], self.low.0);
        gemm(
            self.outputs,
            rows,
            rank,
            1.0,
            dy.t(),
            low,
            1.0,
            part_mut(grads, self.lora.b),
            rank,
        );
        let mut g = vec![0.0; rows * rank];
        gemm(
            rows,
            self.outputs,
            rank,
            self.lora.scale,
            dy,
            View::rows(b, rank),
            0.0,
            &mut g,
            rank,
        );
        let g = View::rows(&g, rank);
        let mut scratch = Vec::new();
        let dropped = View::rows(self.dropped(x, &mut scratch), self.inputs);
        gemm(
            rank,
            rows,
            self.inputs,
            1.0,
            g.t(),
            dropped,
            1.0,
            part_mut(grads, self.lora.a),
            self.inputs,
        );
        let Some(dx) = dx else { return };
        let a = View::rows(a, self.inputs);
        match &self.lora.dropout {
            None => gemm(rows, rank, self.inputs, 1.0, g, a, 1.0, dx, self.inputs),
            Some(dropout) => {
                scratch.resize(rows * self.inputs, 0.0);
                gemm(
                    rows,
                    rank,
                    self.inputs,
                    1.0,
                    g,
                    a,
                    0.0,
                    &mut scratch,
                    self.inputs,
                );
                Mask::new(dropout, self.first_token).apply(self.inputs, &mut scratch);
                simd::add(&scratch, dx);
            }
        }
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
