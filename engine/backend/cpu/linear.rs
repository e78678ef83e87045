//! The frozen or fully trained part of a linear layer: forward, backward, and the form that decoding uses.
//!
//! Holds products of activations with weights in any precision; adapters are in `low_rank`. Invariant: a weight is
//! read in blocks of rows, so no f32 copy of a whole matrix ever exists.

use super::gemm::{View, gemm};
use super::matrix::{Part, Values};
use super::simd;
use rayon::prelude::*;

/// Elements of a dequantised block of a weight: 4 MiB of f32, shared by all cores' caches.
pub const BLOCK: usize = 1 << 20;
/// Multiplications of one task of a decoding step: about 5 microseconds.
const TASK: usize = 1 << 16;

/// A weight `[outputs, inputs]`, wherever its values lie.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// In the checkpoint's form.
    Frozen(&'a Part),
    /// Trained, in f32.
    Trained(&'a [f32]),
}

impl<'a> Source<'a> {
    fn values(self) -> Values<'a> {
        match self {
            Source::Trained(v) => Values::F32(v),
            Source::Frozen(m) => m.values(),
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

/// Columns of a wider row-major buffer.
#[derive(Clone, Copy)]
pub struct Columns {
    /// Elements from one row to the next.
    pub stride: usize,
    /// The first column.
    pub at: usize,
}

/// One linear layer: `y = x W^T`, x `[rows, inputs]`, y `[rows, outputs]` in its columns of a wider buffer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `[outputs, inputs]`.
    pub weight: Source<'a>,
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
    /// Where y and its gradient stand.
    pub y: Columns,
}

impl Layer<'_> {
    /// Calls `each` with the first row and the f32 values of every block of the weight's rows.
    fn blocks(&self, mut each: impl FnMut(usize, &[f32])) {
        let (inputs, outputs) = (self.inputs, self.outputs);
        match (self.weight.values(), self.weight) {
            (Values::F32(v), _) => each(0, &v[..outputs * inputs]),
            (_, Source::Trained(_)) => unreachable!("trained weights are f32"),
            (_, Source::Frozen(part)) => {
                let step = (BLOCK / inputs.max(1)).clamp(16, outputs.max(16));
                let mut scratch = Vec::new();
                for from in (0..outputs).step_by(step) {
                    let count = step.min(outputs - from);
                    each(from, part.block(from, count, &mut scratch));
                }
            }
        }
    }

    /// `y =`, for many rows that share each read of the weight.
    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (rows, inputs, Columns { stride, at }) = (self.rows, self.inputs, self.y);
        self.blocks(|from, block| {
            let (n, x, w) = (
                block.len() / inputs,
                View::rows(x, inputs),
                View::rows(block, inputs),
            );
            gemm(
                [rows, inputs, n],
                1.0,
                x,
                w.t(),
                0.0,
                &mut y[at + from..],
                stride,
            );
        });
    }

    /// Outputs `from..from + out.len() / rows` of a decoding step, `[outputs, rows]`.
    fn decode_rows(&self, from: usize, x: &[f32], out: &mut [f32]) {
        let (rows, inputs) = (self.rows, self.inputs);
        let mut scratch = vec![0.0; inputs];
        for (o, out) in (from..).zip(out.chunks_exact_mut(rows)) {
            let range = o * inputs..(o + 1) * inputs;
            match self.weight.values() {
                Values::F32(v) => dots(&v[range], x, out),
                Values::Bf16(v) if rows == 1 => out[0] = simd::dot_bf16(&x[..inputs], &v[range]),
                _ => {
                    self.weight.row(o, inputs, &mut scratch);
                    dots(&scratch, x, out);
                }
            }
        }
    }

    /// `dx += dy W`.
    pub fn backward_input(&self, dy: &[f32], dx: &mut [f32]) {
        let (rows, inputs, Columns { stride, at }) = (self.rows, self.inputs, self.y);
        self.blocks(|from, block| {
            let (n, dy, w) = (
                block.len() / inputs,
                View::rows(&dy[at + from..], stride),
                View::rows(block, inputs),
            );
            gemm([rows, n, inputs], 1.0, dy, w, 1.0, dx, inputs);
        });
    }

    /// `dw += dy^T x`.
    pub fn backward_weight(&self, dy: &[f32], x: &[f32], dw: &mut [f32]) {
        if self.rows > 0 {
            let (dy, x) = (
                View::rows(&dy[self.y.at..], self.y.stride),
                View::rows(x, self.inputs),
            );
            gemm(
                [self.outputs, self.rows, self.inputs],
                1.0,
                dy.t(),
                x,
                1.0,
                dw,
                self.inputs,
            );
        }
    }
}

/// `y =` of layers with one x, where every row is a sequence's only new token: bound by reading the weights, so each of their rows is read
/// once, widened in registers or L1, and met with all of x. Sums run in the same order for any number of rows. All layers are one
/// parallel region: waking the threads costs as much as a small layer.
pub fn decode(layers: &[Layer], x: &[f32], y: &mut [f32]) {
    let rows = layers.first().map_or(0, |l| l.rows);
    if rows == 0 {
        return;
    }
    let outputs: usize = layers.iter().map(|l| l.outputs).sum();
    let mut columns = vec![0.0; outputs * rows]; // [outputs, rows]
    let (mut tasks, mut rest) = (Vec::new(), &mut columns[..]);
    for layer in layers {
        let (own, later) = rest.split_at_mut(layer.outputs * rows);
        let grain = (TASK / layer.inputs.max(1)).clamp(8, 256);
        let chunks = own.chunks_mut(grain * rows).enumerate();
        tasks.extend(chunks.map(|(i, out)| (layer, i * grain, out)));
        rest = later;
    }
    tasks
        .into_par_iter()
        .for_each(|(layer, from, out)| layer.decode_rows(from, x, out));
    let mut columns = columns.chunks_exact(rows);
    for layer in layers {
        for (o, column) in columns.by_ref().take(layer.outputs).enumerate() {
            for (r, value) in column.iter().enumerate() {
                y[r * layer.y.stride + layer.y.at + o] = *value;
            }
        }
    }
}

/// `out[r] = x[r] . w`.
pub fn dots(w: &[f32], x: &[f32], out: &mut [f32]) {
    let row = |r: usize| &x[r * w.len()..(r + 1) * w.len()];
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (i, four) in fours.iter_mut().enumerate() {
        *four = simd::dot4(
            [row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3)],
            w,
        );
    }
    let done = 4 * fours.len();
    for (i, out) in rest.iter_mut().enumerate() {
        *out = simd::dot(row(done + i), w);
    }
}
