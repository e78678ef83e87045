//! Gradients of fully trained linear layers (`weight_grad.cu`, sm_80 and up), in f32.
//!
//! Holds geometry and ops. Long sums over tokens are split into parts when the gradient has few tiles; the number of parts follows from the
//! shapes alone, and the parts are added in order. Invariant: columns and strides are multiples of 8.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use crate::lora::{SumItem, sum};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Columns of the output tile; as in `weight_grad.cu`, like the following.
const COLUMNS: usize = 128;
/// Its rows.
const TALL: usize = 256;
const LARGE: usize = 128;
const DEPTH: usize = 32;
const STAGES: usize = 4;
/// Small tiles that fill a large GPU at two an SM.
const FILL: usize = 264;
/// Tall tiles that fill it at one an SM.
const ENOUGH_TALL: usize = 120;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WeightGrad {
    a: Ptr<bf16>,
    b: Ptr<bf16>,
    out: Ptr<f32>,
    split_stride: u64,
    rows: u32,
    m: u32,
    n: u32,
    lda: u32,
    ldb: u32,
    tiles_m: u32,
    splits: u32,
    rows_per_split: u32,
}
const _: () = assert!(size_of::<WeightGrad>() == 64);

/// Shape of a weight's gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the batch, T.
    pub rows: usize,
    /// Rows of the gradient: columns of dy.
    pub m: usize,
    /// Columns of the gradient: columns of x.
    pub n: usize,
}

const fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "weight_grad",
        name,
    }
}

/// Parts of the sum over tokens, at most 16 and of at least 512 tokens: the number that ends first by a model of an H100: waves of small tiles at
/// 21.6 ns a token, and 8 bytes an element and part at 2.5 TB/s. From the shape alone: the bits must not depend on the GPU.
fn splits(shape: Shape) -> usize {
    let tiles = shape.m.div_ceil(LARGE) * shape.n.div_ceil(COLUMNS);
    let nanoseconds = |parts: usize| {
        let waves = (tiles * parts).div_ceil(FILL);
        let sums = if parts == 1 {
            0
        } else {
            parts * shape.m * shape.n * 8 / 2500
        };
        waves * (shape.rows / parts) * 216 / 10 + sums
    };
    let most = shape.rows.div_ceil(512).clamp(1, 16);
    (1..=most)
        .min_by_key(|parts| nanoseconds(*parts))
        .unwrap_or(1)
}

/// The kernel, the rows of its tile, and the launch.
fn geometry(shape: Shape, parts: usize) -> (&'static str, usize, Geometry) {
    let columns = shape.n.div_ceil(COLUMNS);
    let tall = parts == 1 && shape.m.div_ceil(TALL) * columns >= ENOUGH_TALL;
    let (name, rows) = match tall {
        true => ("weight_grad_tall", TALL),
        false => ("weight_grad_large", LARGE),
    };
    let geometry = Geometry {
        grid: [(shape.m.div_ceil(rows) * columns) as u32, parts as u32, 1],
        block: rows as u32,
        shared: (STAGES * (rows + COLUMNS) * DEPTH * size_of::<bf16>()) as u32,
    };
    (name, rows, geometry)
}

/// f32 elements of scratch that [`weight_grad`] needs; often 0.
pub fn scratch_len(shape: Shape) -> usize {
    match splits(shape) {
        1 => 0,
        parts => parts * shape.m * shape.n,
    }
}

/// `out += a^T b`: a `[T, m]` with rows `lda` apart, b `[T, n]` with rows `ldb` apart, out f32 `[m, n]` `+=`; scratch of [`scratch_len`] `=`.
///
/// # Errors
/// m, n or strides that are no multiples of 8, or the driver's refusal.
pub fn weight_grad(
    l: &impl Launcher,
    shape: Shape,
    a: Ptr<bf16>,
    lda: usize,
    b: Ptr<bf16>,
    ldb: usize,
    out: Ptr<f32>,
    scratch: Ptr<f32>,
) -> Result<(), LaunchError> {
    let Shape { rows, m, n } = shape;
    if [m, n, lda, ldb].iter().any(|s| s % 8 != 0) {
        return Err(LaunchError::Unsupported(format!(
            "a weight gradient [{m}, {n}] from rows {lda} and {ldb} apart: multiples of 8 are needed"
        )));
    }
    let parts = splits(shape);
    let (name, tile, geometry) = geometry(shape, parts);
    let params = WeightGrad {
        a,
        b,
        out: if parts == 1 { out } else { scratch },
        split_stride: (m * n) as u64,
        rows: rows as u32,
        m: m as u32,
        n: n as u32,
        lda: lda as u32,
        ldb: ldb as u32,
        tiles_m: m.div_ceil(tile) as u32,
        splits: parts as u32,
        rows_per_split: rows.div_ceil(parts).next_multiple_of(DEPTH) as u32,
    };
    l.launch(kernel(name), geometry, &params)?;
    if parts == 1 {
        return Ok(());
    }
    let item = SumItem {
        partial: scratch,
        out,
        split_stride: (m * n) as u64,
        splits: parts as u32,
        rows: m as u32,
        columns: n as u32,
        ld: n as u32,
        first_block: 0,
        factor: 1.0,
    };
    sum(l, &[item])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_gradients_of_long_batches_are_split() {
        let shape = |rows, m, n| Shape { rows, m, n };
        assert_eq!(splits(shape(16384, 22016, 2048)), 1);
        assert!(
            splits(shape(16384, 2560, 2048)) > 1,
            "320 tiles are 1.2 waves"
        );
        assert!(splits(shape(16384, 256, 2048)) > 4);
        assert_eq!(splits(shape(600, 32, 32)), 2);
        let (name, _, launch) = geometry(shape(16384, 22016, 2048), 1);
        assert_eq!(
            (name, launch.grid, launch.block),
            ("weight_grad_tall", [1376, 1, 1], 256)
        );
        assert_eq!(launch.shared, 96 << 10);
        assert_eq!(scratch_len(shape(16384, 22016, 2048)), 0);
    }
}
