//! Attention over the KV cache: storing new keys and values, the decoding step, prompts behind a past, and moving sequences.
//!
//! One layer's cache is `[slot, key head, capacity, dim]` bf16, once for keys and once for values. Where each sequence stands is in device
//! memory ([`Place`]), so a recorded graph goes on as sequences grow. Invariant: chunks have a fixed number of keys, so a sequence's result
//! does not depend on which others are in the batch.

use crate::attention::{self, ForwardParams, Heads, Works};
use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Keys of one block of the decoding step; a multiple of 64. On an H100, 256 takes up to 2 us less at batch 1 and up to 11% more at batch 48.
pub const CHUNK: usize = 512;

const ATTEND_THREADS: u32 = 128;
/// Query heads of one block.
const ATTEND_HEADS: usize = 16;
/// Shared memory of a block holds this many steps of 64 keys and values.
const ATTEND_STAGES: usize = 3;
const ATTEND_STEP: usize = 64;
/// Bytes for the maximum and sum of each of four warps and heads.
const ATTEND_SUMS: usize = 2 * 4 * ATTEND_HEADS * 4;
const APPEND_ROWS: usize = 16;
const APPEND_THREADS: u32 = 256;

/// Where a sequence stands; laid out as in `prim/heads.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Its slot in the cache.
    pub slot: u32,
    /// Tokens of it in the cache.
    pub past: u32,
    /// Its first new row in `qkv`.
    pub start: u32,
    /// Its new rows; 0 makes the entry do nothing.
    pub length: u32,
}

/// One layer's keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// `[slot, key head, capacity, dim]`.
    pub keys: Ptr<bf16>,
    /// The same.
    pub values: Ptr<bf16>,
    /// Tokens that a slot has room for; a multiple of 64.
    pub capacity: usize,
}

/// New rows of a batch of sequences, attending to the cache.
#[derive(Debug, Clone, Copy)]
pub struct Cached {
    /// Shapes.
    pub heads: Heads,
    /// Multiplies the scores.
    pub scale: f32,
    /// Rows of the batch, T: all new rows.
    pub tokens: usize,
    /// `[T, (queries + 2 keys) dim]`, after RoPE.
    pub qkv: Ptr<bf16>,
    /// `[sequences]`.
    pub places: Ptr<Place>,
    /// Sequences.
    pub sequences: usize,
    /// Most new rows of a sequence.
    pub longest_new: usize,
    /// No sequence has more tokens than this, new ones included; a graph may be given more than there are.
    pub longest: usize,
    /// The layer's cache.
    pub cache: Cache,
    /// Tiles of new rows ([`attention::FORWARD_TILE`]); not read if `longest_new` is 1.
    pub work: Works,
    /// Scratch of [`scratch_len`] elements; not used if `longest_new` is above 1.
    pub partial: Ptr<f32>,
    /// `[T, queries * dim]`, `=`.
    pub out: Ptr<bf16>,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    qkv: Ptr<bf16>,
    out: Ptr<bf16>,
    cached_keys: Ptr<bf16>,
    cached_values: Ptr<bf16>,
    places: Ptr<Place>,
    partial: Ptr<f32>,
    sequences: u32,
    queries: u32,
    keys: u32,
    group: u32,
    capacity: u32,
    chunks: u32,
    /// Keys of a chunk; columns of a head for `decode_append`.
    chunk: u32,
    window: i32,
    scale_log2: f32,
    longest: u32,
}
const _: () = assert!(size_of::<Params>() == 88);

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct CompactParams {
    keys: Ptr<bf16>,
    values: Ptr<bf16>,
    keep: Ptr<u32>,
    lengths: Ptr<u32>,
    layer_stride: u64,
    count: u32,
    heads: u32,
    capacity: u32,
    dim: u32,
}
const _: () = assert!(size_of::<CompactParams>() == 56);

/// f32 elements of scratch for a decoding step of this many sequences of at most `longest` tokens.
pub fn scratch_len(heads: &Heads, sequences: usize, longest: usize) -> usize {
    match longest.div_ceil(CHUNK) {
        0 | 1 => 0,
        chunks => sequences * heads.queries * chunks * (heads.dim + 2),
    }
}

fn attend_geometry(heads: &Heads, sequences: usize, chunks: usize) -> Geometry {
    Geometry {
        grid: [
            chunks as u32,
            (heads.keys * heads.group().div_ceil(ATTEND_HEADS)) as u32,
            sequences as u32,
        ],
        block: ATTEND_THREADS,
        shared: (ATTEND_STAGES * ATTEND_STEP * 2 * 2 * heads.dim + ATTEND_SUMS) as u32,
    }
}

fn check(a: &Cached) -> Result<(), LaunchError> {
    let capacity = a.cache.capacity;
    if !capacity.is_multiple_of(64) || a.longest > capacity {
        return Err(LaunchError::Unsupported(format!(
            "a cache of {capacity} tokens for sequences of {}; it takes a multiple of 64 that holds them",
            a.longest
        )));
    }
    Ok(())
}

fn params(a: &Cached) -> Params {
    Params {
        qkv: a.qkv,
        out: a.out,
        cached_keys: a.cache.keys,
        cached_values: a.cache.values,
        places: a.places,
        partial: a.partial,
        sequences: a.sequences as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: a.heads.group() as u32,
        capacity: a.cache.capacity as u32,
        chunks: a.longest.div_ceil(CHUNK) as u32,
        chunk: CHUNK as u32,
        window: a.heads.window(),
        scale_log2: attention::scale_log2(a.scale),
        longest: a.longest_new as u32,
    }
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "decode",
        name,
    }
}

/// Stores the batch's keys and values in the cache behind each sequence's past.
///
/// # Errors
/// The driver's refusal, or a cache that is too small.
pub fn append(l: &impl Launcher, a: &Cached) -> Result<(), LaunchError> {
    check(a)?;
    let params = Params {
        chunk: a.heads.dim as u32,
        ..params(a)
    };
    let geometry = Geometry {
        grid: [
            a.sequences as u32,
            a.longest_new.div_ceil(APPEND_ROWS) as u32,
            1,
        ],
        block: APPEND_THREADS,
        shared: 0,
    };
    l.launch(kernel("decode_append"), geometry, &params)
}

/// Stores the batch's keys and values in the cache and attends to all of them. With one new row a sequence: the decoding step (the rows
/// are stored on the way); with more, [`append`] and the forward kernel over the cache.
///
/// # Errors
/// The driver's refusal, a shape that the kernels do not have, or a cache that is too small.
pub fn append_and_attend(l: &impl Launcher, a: &Cached) -> Result<(), LaunchError> {
    if a.longest_new > 1 {
        append(l, a)?;
        return attend_rows(l, a);
    }
    check(a)?;
    let attend = a
        .heads
        .pick(["decode_attend_32", "decode_attend_64", "decode_attend_128"])?;
    let combine = a.heads.pick([
        "decode_combine_32",
        "decode_combine_64",
        "decode_combine_128",
    ])?;
    let params = params(a);
    let chunks = params.chunks as usize;
    l.launch(
        kernel(attend),
        attend_geometry(&a.heads, a.sequences, chunks),
        &params,
    )?;
    if chunks < 2 {
        return Ok(());
    }
    let geometry = Geometry {
        grid: [a.heads.queries as u32, a.sequences as u32, 1],
        block: a.heads.dim as u32,
        shared: 0,
    };
    l.launch(kernel(combine), geometry, &params)
}

/// The forward kernel over the cache, which holds the new rows already: any past, any number of new rows.
///
/// # Errors
/// As [`append_and_attend`].
pub fn attend_rows(l: &impl Launcher, a: &Cached) -> Result<(), LaunchError> {
    check(a)?;
    let params = ForwardParams {
        qkv: a.qkv,
        out: a.out,
        work: a.work.items,
        cached_keys: a.cache.keys,
        cached_values: a.cache.values,
        places: a.places,
        tokens: a.tokens as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: a.heads.group() as u32,
        capacity: a.cache.capacity as u32,
        window: a.heads.window(),
        scale_log2: attention::scale_log2(a.scale),
        ..ForwardParams::zeroed()
    };
    attention::launch_forward(l, &a.heads, &a.work, &params)
}

/// What [`compact`] moves.
#[derive(Debug, Clone, Copy)]
pub struct Compact {
    /// Shapes.
    pub heads: Heads,
    /// The first layer's cache.
    pub cache: Cache,
    /// Layers.
    pub layers: usize,
    /// Elements from one layer's keys to the next one's, and of values.
    pub layer_stride: usize,
    /// Slots to keep, strictly ascending, `[count]`.
    pub keep: Ptr<u32>,
    /// Tokens in each of them, `[count]`; the rest of a slot is not moved.
    pub lengths: Ptr<u32>,
    /// How many.
    pub count: usize,
}

/// Slot `keep[i]` moves to slot `i`, in all layers.
///
/// # Errors
/// The driver's refusal.
pub fn compact(l: &impl Launcher, a: &Compact) -> Result<(), LaunchError> {
    let params = CompactParams {
        keys: a.cache.keys,
        values: a.cache.values,
        keep: a.keep,
        lengths: a.lengths,
        layer_stride: a.layer_stride as u64,
        count: a.count as u32,
        heads: a.heads.keys as u32,
        capacity: a.cache.capacity as u32,
        dim: a.heads.dim as u32,
    };
    let pieces = a.heads.keys * a.cache.capacity * a.heads.dim / 8;
    let geometry = Geometry {
        grid: [
            pieces.div_ceil(APPEND_THREADS as usize) as u32,
            2 * a.layers as u32,
            1,
        ],
        block: APPEND_THREADS,
        shared: 0,
    };
    l.launch(kernel("decode_compact"), geometry, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_and_scratch() {
        let heads = Heads {
            queries: 36,
            keys: 2,
            dim: 128,
            window: None,
        };
        let g = attend_geometry(&heads, 5, 3);
        assert_eq!(g.grid, [3, 4, 5], "18 heads of a group are two blocks");
        assert!(g.shared <= 99 << 10);
        assert_eq!(scratch_len(&heads, 5, CHUNK), 0);
        assert_eq!(scratch_len(&heads, 5, CHUNK + 1), 5 * 36 * 2 * 130);
    }
}
