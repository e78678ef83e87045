//! 4-bit NormalFloat matrices in bitsandbytes' layout (QLoRA, arXiv:2305.14314, section 3).
//!
//! Holds quantisation and dequantisation of one matrix: codes in blocks of 64 values over the
//! row-major flattened matrix, one scale a block, the scales themselves quantised if wanted. It
//! refuses to hold products (`backend/`) and files ([`checkpoint`] maps to tensors, not to disk).
//! Blocks run across row ends: only when `cols % 64 == 0` does a row own whole blocks.

use std::ops::Range;

use rayon::prelude::*;

mod absmax;
pub mod checkpoint;
mod dynamic_map;

pub use absmax::{Absmax, NESTED_BLOCK, mean as mean_scale};
pub use dynamic_map::DYNAMIC_MAP;

/// Values that share one scale.
pub const BLOCK: usize = 64;

/// Bytes of a quantised tensor: 4 bits a value, and a scale a block, of 32 bits or of 8 and a share of the second level's.
pub fn bytes(values: u64, double_quant: bool) -> u64 {
    let blocks = values.div_ceil(BLOCK as u64);
    let scales = match double_quant {
        true => blocks + 4 * blocks.div_ceil(NESTED_BLOCK as u64),
        false => 4 * blocks,
    };
    values.div_ceil(2) + scales
}

/// The sixteen values of a code: quantiles of a normal distribution (QLoRA, appendix E).
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Code of 0.0: what pads an odd count.
const ZERO_CODE: u8 = 7;

/// Halfway between neighbours of the codebook: a code is the number of midpoints below the value.
static MIDPOINTS: [f32; 15] = {
    let mut mid = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        mid[i] = ((CODEBOOK[i] as f64 + CODEBOOK[i + 1] as f64) / 2.0) as f32;
        i += 1;
    }
    mid
};

/// Both values of a packed byte, the high four bits first.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [CODEBOOK[byte >> 4], CODEBOOK[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Why a matrix cannot be quantised, dequantised or read.
#[derive(Debug, thiserror::Error)]
pub enum Nf4Error {
    /// The slice is not the matrix that was announced.
    #[error("NF4: a {rows} x {cols} matrix has {} values, and {found} were given", rows.saturating_mul(*cols))]
    Count {
        /// Rows announced.
        rows: usize,
        /// Columns announced.
        cols: usize,
        /// Values found.
        found: usize,
    },
    /// NaN and infinity have no code.
    #[error(
        "NF4: the value in row {row}, column {col} is {value}; only finite weights can be quantised"
    )]
    NotFinite {
        /// Row of the value.
        row: usize,
        /// Column of the value.
        col: usize,
        /// The value.
        value: f32,
    },
    /// Rows outside the matrix, or an output of the wrong length.
    #[error("NF4: rows {rows:?} of a {of} x {cols} matrix do not fill an output of {out} values")]
    Rows {
        /// Rows asked for.
        rows: Range<usize>,
        /// Rows of the matrix.
        of: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Length of the output.
        out: usize,
    },
    /// A pre-quantised checkpoint lacks a tensor.
    #[error(
        "the pre-quantised weight `{name}` needs the tensor `{missing}`, which the checkpoint does not have; download the model again"
    )]
    MissingTensor {
        /// The weight.
        name: String,
        /// The tensor's full name.
        missing: String,
    },
    /// A tensor of a pre-quantised checkpoint is not what its quant state says.
    #[error(
        "the tensor `{name}` of a pre-quantised checkpoint is unusable: {found}, needed {needed}; download the model again, or use its unquantised weights with `precision = nf4`"
    )]
    Tensor {
        /// The tensor's full name.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        needed: String,
    },
}

/// A quantised matrix, row-major. Build it with [`Nf4Matrix::quantize`] or
/// [`checkpoint::read`]: both guarantee that the lengths belong to the shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4Matrix {
    rows: usize,
    cols: usize,
    /// Two codes a byte, the first in the high four bits.
    packed: Vec<u8>,
    scales: Absmax,
}

impl Nf4Matrix {
    /// Quantises `weight` (`[rows, cols]`, row-major); `double` quantises the scales, too.
    ///
    /// # Errors
    /// When the length is not `rows * cols`, or a value is not finite.
    pub fn quantize(
        weight: &[f32],
        rows: usize,
        cols: usize,
        double: bool,
    ) -> Result<Self, Nf4Error> {
        if rows.checked_mul(cols) != Some(weight.len()) {
            return Err(Nf4Error::Count {
                rows,
                cols,
                found: weight.len(),
            });
        }
        if let Some(at) = weight.par_iter().position_first(|x| !x.is_finite()) {
            return Err(Nf4Error::NotFinite {
                row: at / cols,
                col: at % cols,
                value: weight[at],
            });
        }
        let mut packed = vec![0; weight.len().div_ceil(2)];
        let mut absmax = vec![0.0; weight.len().div_ceil(BLOCK)];
        weight
            .par_chunks(BLOCK)
            .zip(packed.par_chunks_mut(BLOCK / 2))
            .zip(&mut absmax)
            .with_min_len(256)
            .for_each(|((block, packed), absmax)| *absmax = quantize_block(block, packed));
        let scales = if double {
            Absmax::double(&absmax)
        } else {
            Absmax::Single(absmax)
        };
        Ok(Self {
            rows,
            cols,
            packed,
            scales,
        })
    }

    /// Writes rows `rows` into `out` (`[rows.len(), cols]`): codebook value times scale, in f32.
    ///
    /// # Errors
    /// When the rows are not in the matrix or `out` has another length.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Nf4Error> {
        if rows.end > self.rows
            || rows.start > rows.end
            || out.len() != (rows.end - rows.start) * self.cols
        {
            return Err(Nf4Error::Rows {
                rows,
                of: self.rows,
                cols: self.cols,
                out: out.len(),
            });
        }
        let mut at = rows.start * self.cols;
        let mut rest = out;
        while !rest.is_empty() {
            let within = at % BLOCK;
            let (piece, later) = rest.split_at_mut(rest.len().min(BLOCK - within));
            let scale = self.scales.of_block(at / BLOCK);
            if within == 0 && piece.len() == BLOCK {
                let bytes = &self.packed[at / 2..][..BLOCK / 2];
                for (pair, &byte) in piece.chunks_exact_mut(2).zip(bytes) {
                    let [high, low] = PAIRS[usize::from(byte)];
                    pair[0] = high * scale;
                    pair[1] = low * scale;
                }
            } else {
                for (i, value) in (at..).zip(piece.iter_mut()) {
                    *value = PAIRS[usize::from(self.packed[i / 2])][i % 2] * scale;
                }
            }
            at += piece.len();
            rest = later;
        }
        Ok(())
    }

    /// Rows (outputs of a linear layer).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (inputs of a linear layer).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The codes, two a byte, the first in the high four bits.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The scales.
    pub fn scales(&self) -> &Absmax {
        &self.scales
    }

    /// Bytes held in memory by codes and scales.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.scales.bytes()
    }
}

/// Quantises up to 64 values into half as many bytes; returns their scale.
fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    let absmax = block.iter().map(|x| x.abs()).fold(0.0, f32::max);
    // A block of zeros has scale 0 and the code of 0.0 throughout.
    let unit = if absmax > 0.0 { absmax } else { 1.0 };
    let mut codes = [ZERO_CODE; BLOCK];
    for (code, x) in codes.iter_mut().zip(block) {
        let x = x / unit;
        *code = MIDPOINTS.iter().map(|mid| u8::from(*mid < x)).sum();
    }
    for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    absmax
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn dequantize(matrix: &Nf4Matrix) -> Vec<f32> {
        let mut out = vec![0.0; matrix.rows * matrix.cols];
        matrix.dequantize_rows(0..matrix.rows, &mut out).unwrap();
        out
    }

    #[test]
    fn zeros_keep_scale_zero_and_an_odd_count_is_padded_with_zero() {
        let matrix = Nf4Matrix::quantize(&[0.0; 65], 5, 13, false).unwrap();
        assert_eq!(matrix.packed, vec![0x77; 33]);
        assert_eq!(matrix.scales, Absmax::Single(vec![0.0, 0.0]));
        assert_eq!(dequantize(&matrix), [0.0; 65]);
    }

    #[test]
    fn an_empty_matrix_is_a_matrix() {
        let matrix = Nf4Matrix::quantize(&[], 0, 8, true).unwrap();
        assert!(dequantize(&matrix).is_empty());
    }

    #[test]
    fn a_nan_is_refused_with_its_place() {
        let mut weight = [0.5; 12];
        weight[7] = f32::NAN;
        let error = Nf4Matrix::quantize(&weight, 3, 4, false).unwrap_err();
        assert!(error.to_string().contains("row 1, column 3"), "{error}");
        assert!(Nf4Matrix::quantize(&weight, 3, 5, false).is_err());
    }

    #[test]
    fn rows_outside_the_matrix_are_refused() {
        let matrix = Nf4Matrix::quantize(&[1.0; 12], 3, 4, false).unwrap();
        assert!(matrix.dequantize_rows(2..4, &mut [0.0; 8]).is_err());
        assert!(matrix.dequantize_rows(0..2, &mut [0.0; 7]).is_err());
    }

    proptest! {
        /// A value moves by at most half the widest gap of the codebook, times its block's scale;
        /// any range of rows equals the same rows of the whole.
        #[test]
        fn values_stay_near_and_rows_agree(
            rows in 1usize..9, cols in 1usize..140, double: bool, seed: u32, from in 0usize..9,
        ) {
            let weight: Vec<f32> = (0..rows * cols)
                .map(|i| ((i as f32 + 1.0) * (seed as f32 + 0.7)).sin() * 0.05)
                .collect();
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, double).unwrap();
            let all = dequantize(&matrix);
            let widest = (CODEBOOK[1] - CODEBOOK[0]) / 2.0;
            // Double quantisation moves a scale by up to half a step of the dynamic map.
            let slack = if double { 0.05 * 0.02 } else { 1e-9 };
            for (block, (got, want)) in all.chunks(BLOCK).zip(weight.chunks(BLOCK)).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    let bound = widest * matrix.scales.of_block(block) + slack;
                    prop_assert!((got - want).abs() <= bound, "{got} {want} {bound}");
                }
            }
            let from = from.min(rows);
            let mut part = vec![0.0; (rows - from) * cols];
            matrix.dequantize_rows(from..rows, &mut part).unwrap();
            prop_assert_eq!(&part[..], &all[from * cols..]);
        }
    }
}
