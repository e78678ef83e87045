//! Frozen weights on the CPU: as the checkpoint has them where that is exact, else converted once at load.
//!
//! Holds storage and the way to read a block of rows as f32. Invariant: a mapped tensor is never copied whole; bf16 weights stay bf16 in
//! memory (half the bytes of f32, the same numbers).

use super::simd;
use crate::backend::BackendError;
use crate::model::checkpoint::{Dtype, Tensor};
use crate::model::nf4::Nf4Matrix;
use half::bf16;
use medft_dsl::plan::Precision;
use rayon::prelude::*;

/// Frozen weights `[rows, cols]` that stand below each other, each as its own checkpoint tensor.
pub struct Matrix {
    parts: Vec<Part>,
}

impl Matrix {
    /// Loads each tensor.
    ///
    /// # Errors
    /// The first one of [`Part::load`].
    pub fn load(
        tensors: &[Tensor],
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self, BackendError> {
        let parts = tensors
            .iter()
            .map(|tensor| Part::load(tensor, precision, double_quant));
        Ok(Matrix {
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// The weights, in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// One frozen weight `[rows, cols]`, row-major.
pub struct Part {
    rows: usize,
    cols: usize,
    store: Store,
}

enum Store {
    F32(Vec<f32>),
    MappedF32(Tensor),
    Bf16(Vec<u16>),
    MappedBf16(Tensor),
    Nf4(Nf4Matrix),
}

/// Values at the precision in which they lie.
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16 bits.
    Bf16(&'a [u16]),
    /// To be dequantised.
    Nf4(&'a Nf4Matrix),
}

impl Part {
    /// Loads `[rows, cols]` (a vector is one row). bf16 checkpoints stay bf16 under `Precision::F32`: the numbers are the same.
    ///
    /// # Errors
    /// A tensor with a dtype that is no weight's, or with a value that is not finite.
    pub fn load(
        tensor: &Tensor,
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self, BackendError> {
        let (rows, cols) = match tensor.shape() {
            [cols] => (1, *cols),
            [rows, cols] => (*rows, *cols),
            shape => return Err(tensor.error(format!("has shape {shape:?}; a matrix was needed"))),
        };
        tensor.check_finite()?;
        let store = match (precision, tensor.dtype()) {
            (Precision::F32, Dtype::F32) if tensor.as_f32().is_some() => {
                Store::MappedF32(tensor.clone())
            }
            (Precision::F32 | Precision::Bf16, Dtype::Bf16) if tensor.as_bf16().is_some() => {
                Store::MappedBf16(tensor.clone())
            }
            (Precision::F32, _) => Store::F32(tensor.to_f32()?),
            (Precision::Bf16, _) => Store::Bf16(
                tensor
                    .to_f32()?
                    .into_iter()
                    .map(|v| bf16::from_f32(v).to_bits())
                    .collect(),
            ),
            (Precision::Nf4, _) => {
                let quantized = Nf4Matrix::quantize(&tensor.to_f32()?, rows, cols, double_quant);
                Store::Nf4(quantized.map_err(|e| tensor.error(e.to_string()))?)
            }
        };
        Ok(Part { rows, cols, store })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The values as they lie.
    pub fn values(&self) -> Values<'_> {
        match &self.store {
            Store::F32(v) => Values::F32(v),
            Store::Bf16(v) => Values::Bf16(v),
            // `load` chose a mapped store only where the cast works.
            Store::MappedF32(t) => Values::F32(t.as_f32().unwrap_or_default()),
            Store::MappedBf16(t) => Values::Bf16(t.as_bf16().unwrap_or_default()),
            Store::Nf4(m) => Values::Nf4(m),
        }
    }

    /// Rows `from..from + count` as f32; `scratch` is used where they lie in another form.
    pub fn block<'a>(&'a self, from: usize, count: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let range = from * self.cols..(from + count) * self.cols;
        match self.values() {
            Values::F32(v) => &v[range],
            Values::Bf16(v) => {
                scratch.resize(count * self.cols, 0.0);
                // Chunks of 64 KiB: large enough to be worth a task.
                scratch
                    .par_chunks_mut(1 << 14)
                    .zip(v[range].par_chunks(1 << 14))
                    .for_each(|(to, from)| {
                        simd::widen_bf16(from, to);
                    });
                scratch
            }
            Values::Nf4(m) => {
                scratch.resize(count * self.cols, 0.0);
                scratch
                    .par_chunks_mut(16 * self.cols)
                    .enumerate()
                    .for_each(|(i, to)| {
                        let row = from + 16 * i;
                        dequantize(m, row, to);
                    });
                scratch
            }
        }
    }

    /// One row as f32.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        let range = row * self.cols..(row + 1) * self.cols;
        match self.values() {
            Values::F32(v) => to.copy_from_slice(&v[range]),
            Values::Bf16(v) => simd::widen_bf16(&v[range], to),
            Values::Nf4(m) => dequantize(m, row, to),
        }
    }
}

/// Rows from `row` on, as many as `to` holds.
fn dequantize(matrix: &Nf4Matrix, row: usize, to: &mut [f32]) {
    let rows = row..row + to.len() / matrix.cols().max(1);
    if let Err(e) = matrix.dequantize_rows(rows, to) {
        unreachable!("a block inside the matrix: {e}");
    }
}
