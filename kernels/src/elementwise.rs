//! Elementwise ops and rows that move: SwiGLU, add, clear, conversions, gather, scatter. `elementwise.cu`.
//!
//! Buffers are aligned to 16 bytes; matrix widths are multiples of 8; flat lengths are free.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Threads of a block.
const THREADS: usize = 256;
/// 16-byte vectors of a thread of the flat kernels and of SwiGLU.
const UNROLL: usize = 4;
const SWIGLU_UNROLL: usize = 2;
/// Elements of a vector.
const VECTOR: usize = 8;
/// Rows of a block of the kernels that move rows.
const ROW_WARPS: usize = THREADS / 32;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SwiGlu {
    gate_up: Ptr<bf16>,
    dh: Ptr<bf16>,
    h: Ptr<bf16>,
    dgate_up: Ptr<bf16>,
    vectors: u32,
    inner8: u32,
}
const _: () = assert!(size_of::<SwiGlu>() == 40);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Flat {
    from: u64,
    to: u64,
    len: u64,
}
const _: () = assert!(size_of::<Flat>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Rows {
    from: Ptr<bf16>,
    rows: Ptr<u32>,
    to: Ptr<bf16>,
    count: u32,
    total: u32,
    columns: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Rows>() == 40);

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "elementwise",
        name,
    }
}

fn blocks(of: usize, each: usize) -> Geometry {
    Geometry {
        grid: [of.div_ceil(each) as u32, 1, 1],
        block: THREADS as u32,
        shared: 0,
    }
}

fn whole_vectors(op: &str, columns: usize) -> Result<usize, LaunchError> {
    if columns.is_multiple_of(VECTOR) {
        Ok(columns / VECTOR)
    } else {
        Err(LaunchError::Unsupported(format!(
            "{op} of {columns} columns: the kernels need a multiple of {VECTOR}"
        )))
    }
}

fn swiglu_vectors(rows: usize, inner: usize) -> Result<u32, LaunchError> {
    let vectors = rows * whole_vectors("swiglu", inner)?;
    u32::try_from(vectors).map_err(|_| {
        LaunchError::Unsupported(format!(
            "swiglu of {rows} x {inner} elements: at most 2^35 at once"
        ))
    })
}

/// `h = silu(gate) up`; gate_up `[rows, 2 inner]`, gate first; h `[rows, inner]`.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn swiglu(
    l: &impl Launcher,
    rows: usize,
    inner: usize,
    gate_up: Ptr<bf16>,
    h: Ptr<bf16>,
) -> Result<(), LaunchError> {
    let vectors = swiglu_vectors(rows, inner)?;
    let params = SwiGlu {
        gate_up,
        dh: Ptr::NULL,
        h,
        dgate_up: Ptr::NULL,
        vectors,
        inner8: (inner / VECTOR) as u32,
    };
    let geometry = blocks(vectors as usize, THREADS * SWIGLU_UNROLL);
    l.launch(kernel("swiglu_forward"), geometry, &params)
}

/// `dgate_up =` the gradient of [`swiglu`], and `h =` once more if `h_out` is given. dgate_up may be gate_up; h_out may be dh.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn swiglu_backward(
    l: &impl Launcher,
    rows: usize,
    inner: usize,
    gate_up: Ptr<bf16>,
    dh: Ptr<bf16>,
    dgate_up: Ptr<bf16>,
    h_out: Option<Ptr<bf16>>,
) -> Result<(), LaunchError> {
    let vectors = swiglu_vectors(rows, inner)?;
    let params = SwiGlu {
        gate_up,
        dh,
        h: h_out.unwrap_or(Ptr::NULL),
        dgate_up,
        vectors,
        inner8: (inner / VECTOR) as u32,
    };
    let geometry = blocks(vectors as usize, THREADS * SWIGLU_UNROLL);
    l.launch(kernel("swiglu_backward"), geometry, &params)
}

fn flat(
    l: &impl Launcher,
    name: &'static str,
    from: u64,
    to: u64,
    len: usize,
) -> Result<(), LaunchError> {
    let params = Flat {
        from,
        to,
        len: len as u64,
    };
    l.launch(
        kernel(name),
        blocks(len, THREADS * UNROLL * VECTOR),
        &params,
    )
}

/// `dx += dy`, `len` elements.
///
/// # Errors
/// The driver's refusal.
pub fn add(l: &impl Launcher, len: usize, dy: Ptr<bf16>, dx: Ptr<bf16>) -> Result<(), LaunchError> {
    flat(l, "add_bf16", dy.address(), dx.address(), len)
}

/// `x = 0`, `len` elements of any type of 2 bytes or a multiple of them (bf16, f32, u32, f64).
///
/// # Errors
/// The driver's refusal.
pub fn clear<T>(l: &impl Launcher, len: usize, x: Ptr<T>) -> Result<(), LaunchError> {
    const { assert!(size_of::<T>().is_multiple_of(2)) }
    flat(l, "clear_pairs", 0, x.address(), len * (size_of::<T>() / 2))
}

/// `to = bf16(from)`.
///
/// # Errors
/// The driver's refusal.
pub fn to_bf16(
    l: &impl Launcher,
    len: usize,
    from: Ptr<f32>,
    to: Ptr<bf16>,
) -> Result<(), LaunchError> {
    flat(l, "f32_to_bf16", from.address(), to.address(), len)
}

/// `to = f32(from)`, exactly.
///
/// # Errors
/// The driver's refusal.
pub fn to_f32(
    l: &impl Launcher,
    len: usize,
    from: Ptr<bf16>,
    to: Ptr<f32>,
) -> Result<(), LaunchError> {
    flat(l, "bf16_to_f32", from.address(), to.address(), len)
}

/// `out[i] = x[rows[i]]`; x `[any, columns]`, rows `[count]`, out `[count, columns]`.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn gather_rows(
    l: &impl Launcher,
    count: usize,
    columns: usize,
    x: Ptr<bf16>,
    rows: Ptr<u32>,
    out: Ptr<bf16>,
) -> Result<(), LaunchError> {
    whole_vectors("a gather", columns)?;
    let params = Rows {
        from: x,
        rows,
        to: out,
        count: count as u32,
        total: 0,
        columns: columns as u32,
        reserved: 0,
    };
    l.launch(kernel("gather_rows"), blocks(count, ROW_WARPS), &params)
}

/// `dx[rows[i]] = d[i]`, and 0 in every other of its `total` rows; `rows` `[count]` ascending and distinct, d `[count, columns]`,
/// dx `[total, columns]`.
///
/// # Errors
/// A width that the kernels cannot take, or the driver's refusal.
pub fn scatter_rows(
    l: &impl Launcher,
    count: usize,
    total: usize,
    columns: usize,
    d: Ptr<bf16>,
    rows: Ptr<u32>,
    dx: Ptr<bf16>,
) -> Result<(), LaunchError> {
    whole_vectors("a scatter", columns)?;
    let params = Rows {
        from: d,
        rows,
        to: dx,
        count: count as u32,
        total: total as u32,
        columns: columns as u32,
        reserved: 0,
    };
    l.launch(kernel("scatter_rows"), blocks(total, ROW_WARPS), &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything_and_nothing_launches_nothing() {
        assert_eq!(blocks(0, 8192).grid, [0, 1, 1]);
        assert_eq!(blocks(8192, 8192).grid, [1, 1, 1]);
        assert_eq!(blocks(8193, 8192).grid, [2, 1, 1]);
    }

    #[test]
    fn widths_that_break_rows_are_refused() {
        assert_eq!(swiglu_vectors(16384, 14336).ok(), Some(29_360_128));
        assert!(swiglu_vectors(1, 12).is_err());
        assert!(swiglu_vectors(1 << 24, 14336).is_err());
    }
}
