//! NF4 weights in bitsandbytes' layout: quantisation, and dequantisation to bf16. Products are [`crate::skinny`]'s.
//!
//! Invariant: codes, scales and values are bit-equal to the engine's CPU form. Blocks of 64 run over the flattened matrix, so the tail of a
//! matrix is a short block; a matrix of a group is a [`Weights`] of its own, because its scales have an offset of their own.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Values that share one scale.
pub const BLOCK: usize = 64;
/// Scales that share one nested scale.
pub const NESTED_BLOCK: usize = 256;

/// A quantised matrix in device memory; `packed` and the scales lie at multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// Two codes a byte, the first in the high four bits: `[ceil(n / 2)]`.
    pub packed: Ptr<u8>,
    /// One scale a block.
    pub absmax: Absmax,
}

/// Scales of a matrix's blocks.
#[derive(Debug, Clone, Copy)]
pub enum Absmax {
    /// One f32 a block, `[ceil(n / 64)]`.
    Plain(Ptr<f32>),
    /// One byte a block: `map[code] * absmax2[block / 256] + offset`.
    Double {
        /// `[ceil(n / 64)]`.
        codes: Ptr<u8>,
        /// `[ceil(blocks / 256)]`.
        absmax2: Ptr<f32>,
        /// Mean of all scales, computed where PyTorch's summation order is kept.
        offset: f32,
    },
}

/// Values to quantise.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// bf16.
    Bf16(Ptr<bf16>),
    /// f32.
    F32(Ptr<f32>),
}

const THREADS: usize = 256;
const WORDS: usize = 8;
const VALUES_A_WORD: usize = 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DequantizeParams {
    packed: Ptr<u8>,
    scales: Ptr<u8>,
    absmax2: Ptr<f32>,
    out: Ptr<bf16>,
    values: u64,
    offset: f32,
    reserved: u32,
}
const _: () = assert!(size_of::<DequantizeParams>() == 48);

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct QuantizeParams {
    w: Ptr<u8>,
    packed: Ptr<u8>,
    absmax: Ptr<f32>,
    values: u64,
}
const _: () = assert!(size_of::<QuantizeParams>() == 32);

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DoubleQuantizeParams {
    absmax: Ptr<f32>,
    codes: Ptr<u8>,
    absmax2: Ptr<f32>,
    blocks: u64,
    offset: f32,
    reserved: u32,
}
const _: () = assert!(size_of::<DoubleQuantizeParams>() == 40);

/// Enough blocks of threads for `items`, `each` a block; none for none.
fn geometry(items: usize, each: usize) -> Result<Geometry, LaunchError> {
    let blocks = u32::try_from(items.div_ceil(each)).map_err(|_| {
        LaunchError::Unsupported(format!("NF4: {items} values are too many for one launch"))
    })?;
    Ok(Geometry {
        grid: [blocks, 1, 1],
        block: THREADS as u32,
        shared: 0,
    })
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "nf4",
        name,
    }
}

/// `packed =` the codes and `absmax =` the scales of `values` values, which must be finite: the codes of a NaN's block mean nothing.
///
/// # Errors
/// The driver's.
pub fn quantize(
    l: &impl Launcher,
    w: Source,
    values: usize,
    packed: Ptr<u8>,
    absmax: Ptr<f32>,
) -> Result<(), LaunchError> {
    let (name, w) = match w {
        Source::Bf16(w) => ("nf4_quantize_bf16", w.cast()),
        Source::F32(w) => ("nf4_quantize_f32", w.cast()),
    };
    let params = QuantizeParams {
        w,
        packed,
        absmax,
        values: values as u64,
    };
    l.launch(
        kernel(name),
        geometry(values, THREADS * VALUES_A_WORD)?,
        &params,
    )
}

/// Quantises `blocks` scales around their mean `offset`: `codes =`, `absmax2 =`.
///
/// # Errors
/// The driver's.
pub fn double_quantize(
    l: &impl Launcher,
    absmax: Ptr<f32>,
    blocks: usize,
    offset: f32,
    codes: Ptr<u8>,
    absmax2: Ptr<f32>,
) -> Result<(), LaunchError> {
    let params = DoubleQuantizeParams {
        absmax,
        codes,
        absmax2,
        blocks: blocks as u64,
        offset,
        reserved: 0,
    };
    l.launch(
        kernel("nf4_double_quantize"),
        geometry(blocks, NESTED_BLOCK)?,
        &params,
    )
}

/// `out =` the first `values` values as bf16; `out` lies at a multiple of 16 bytes.
///
/// # Errors
/// The driver's.
pub fn dequantize(
    l: &impl Launcher,
    weights: &Weights,
    values: usize,
    out: Ptr<bf16>,
) -> Result<(), LaunchError> {
    let (name, scales, absmax2, offset) = match weights.absmax {
        Absmax::Plain(absmax) => ("nf4_dequantize_plain", absmax.cast(), Ptr::NULL, 0.0),
        Absmax::Double {
            codes,
            absmax2,
            offset,
        } => ("nf4_dequantize_double", codes, absmax2, offset),
    };
    let params = DequantizeParams {
        packed: weights.packed,
        scales,
        absmax2,
        out,
        values: values as u64,
        offset,
        reserved: 0,
    };
    l.launch(
        kernel(name),
        geometry(values, THREADS * WORDS * VALUES_A_WORD)?,
        &params,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_last_block_of_threads_is_counted() {
        let grid = |values| {
            geometry(values, THREADS * WORDS * VALUES_A_WORD)
                .map(|g| g.grid)
                .unwrap_or_default()
        };
        assert_eq!(grid(0), [0, 1, 1]);
        assert_eq!(grid(1), [1, 1, 1]);
        assert_eq!(grid(16384), [1, 1, 1]);
        assert_eq!(grid(16385), [2, 1, 1]);
    }
}
