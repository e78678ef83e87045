//! Causal grouped-query attention over packed sequences: arguments (the Hopper form takes the same), work lists, and the portable kernels.
//!
//! Sequences lie back to back in `qkv`; a work list made on the host names the tiles of rows, longest first, so that no kernel searches for
//! its sequence. Invariant: one block owns its output rows, and sums run in a fixed order: results do not depend on timing or on neighbours.

use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Rows of the portable [`forward`]'s tiles.
pub const FORWARD_TILE: usize = 128;

/// Rows of the portable [`backward`]'s tiles.
pub const BACKWARD_TILE: usize = 64;

const THREADS: u32 = 128;

/// The shape of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Columns of a head: 32, 64 or 128.
    pub dim: usize,
    /// A query sees this many of the latest positions, itself included (at least 1); `None` sees all before it.
    pub window: Option<u32>,
}

impl Heads {
    /// Columns of q, k and v together.
    pub fn width(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    /// Query heads of one key head.
    pub fn group(&self) -> usize {
        self.queries / self.keys
    }

    /// The window as kernels take it: differences of positions stay inside i32.
    pub(crate) fn window(&self) -> i32 {
        self.window
            .map_or(i32::MAX, |w| w.clamp(1, i32::MAX as u32) as i32)
    }

    /// The part of a kernel's name that depends on the head size.
    ///
    /// # Errors
    /// A shape that the kernels do not have.
    pub(crate) fn pick(&self, names: [&'static str; 3]) -> Result<&'static str, LaunchError> {
        if self.keys == 0 || self.queries == 0 || !self.queries.is_multiple_of(self.keys) {
            return Err(LaunchError::Unsupported(format!(
                "{} query heads cannot share {} key heads",
                self.queries, self.keys
            )));
        }
        match self.dim {
            32 => Ok(names[0]),
            64 => Ok(names[1]),
            128 => Ok(names[2]),
            dim => Err(LaunchError::Unsupported(format!(
                "attention heads of {dim} columns; 32, 64 and 128 are supported"
            ))),
        }
    }
}

/// One tile of rows of one sequence; laid out as in `prim/heads.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Work {
    /// First row of the sequence in the packed batch.
    pub start: u32,
    /// Rows of the sequence; 0 makes the entry do nothing.
    pub length: u32,
    /// The tile holds query rows `tile * size ..` of the sequence. A kernel whose tiles are keys takes the mirrored tile,
    /// `ceil(length / size) - 1 - tile`: the first tile of keys is seen by as many queries as the last tile of queries sees keys.
    pub tile: u32,
    /// Index of the sequence in the batch.
    pub sequence: u32,
}

/// The work list of a batch of sequences in tiles of `tile` rows, most keys first (ties in the batch's order).
pub fn work(lengths: &[usize], tile: usize) -> Vec<Work> {
    let mut start = 0;
    let mut list = Vec::new();
    for (sequence, &length) in lengths.iter().enumerate() {
        list.extend((0..length.div_ceil(tile)).map(|tile| Work {
            start: start as u32,
            length: length as u32,
            tile: tile as u32,
            sequence: sequence as u32,
        }));
        start += length;
    }
    list.sort_by_key(|w| std::cmp::Reverse(w.tile));
    list
}

/// A work list in device memory.
#[derive(Debug, Clone, Copy)]
pub struct Works {
    /// From [`work`], padded with [`Work::zeroed`] to `len` if a graph wants a fixed size.
    pub items: Ptr<Work>,
    /// Entries.
    pub len: usize,
    /// Rows of a tile, as given to [`work`].
    pub tile: usize,
}

/// The rotation that queries and keys went through (half-split pairs).
#[derive(Debug, Clone, Copy)]
pub struct Rope {
    /// f32 pairs (cos, sin), `[positions, dim / 2, 2]`.
    pub table: Ptr<f32>,
    /// Position of each row, `[T]`.
    pub positions: Ptr<u32>,
}

/// `out = softmax(scale q k^T, causal inside each sequence) v`.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// Shapes.
    pub heads: Heads,
    /// Rows of the batch, T.
    pub tokens: usize,
    /// Tiles of query rows.
    pub work: Works,
    /// `[T, (queries + 2 keys) dim]`, after RoPE: query heads, then key heads, then value heads.
    pub qkv: Ptr<bf16>,
    /// Multiplies the scores.
    pub scale: f32,
    /// `[T, queries * dim]`, `=`.
    pub out: Ptr<bf16>,
    /// Natural logarithm of the sum of exp of the scaled scores, `[queries, T]`, `=`.
    pub lse: Ptr<f32>,
}

/// Gradients of [`Forward`] for q, k and v.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// Shapes.
    pub heads: Heads,
    /// Rows of the batch, T.
    pub tokens: usize,
    /// Tiles of rows; the same list serves query tiles and (mirrored) key tiles.
    pub work: Works,
    /// As in [`Forward`].
    pub qkv: Ptr<bf16>,
    /// As in [`Forward`].
    pub scale: f32,
    /// Result of [`Forward`].
    pub out: Ptr<bf16>,
    /// Result of [`Forward`].
    pub lse: Ptr<f32>,
    /// Gradient of `out`, `[T, queries * dim]`.
    pub dout: Ptr<bf16>,
    /// Scratch, `[queries, T]`: row sums of `dout . out`.
    pub delta: Ptr<f32>,
    /// If given, the gradients of q and k are rotated back (by minus theta) in f32, before their one rounding.
    pub rope: Option<Rope>,
    /// `[T, (queries + 2 keys) dim]`, `=`.
    pub dqkv: Ptr<bf16>,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct ForwardParams {
    pub(crate) qkv: Ptr<bf16>,
    pub(crate) out: Ptr<bf16>,
    pub(crate) lse: Ptr<f32>,
    pub(crate) work: Ptr<Work>,
    pub(crate) cached_keys: Ptr<bf16>,
    pub(crate) cached_values: Ptr<bf16>,
    pub(crate) places: Ptr<crate::decode::Place>,
    pub(crate) tokens: u32,
    pub(crate) queries: u32,
    pub(crate) keys: u32,
    pub(crate) group: u32,
    pub(crate) capacity: u32,
    pub(crate) window: i32,
    pub(crate) scale_log2: f32,
    pub(crate) pad: u32,
}
const _: () = assert!(size_of::<ForwardParams>() == 88);

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct BackwardParams {
    qkv: Ptr<bf16>,
    out: Ptr<bf16>,
    dout: Ptr<bf16>,
    lse: Ptr<f32>,
    delta: Ptr<f32>,
    dqkv: Ptr<bf16>,
    work: Ptr<Work>,
    table: Ptr<f32>,
    positions: Ptr<u32>,
    tokens: u32,
    queries: u32,
    keys: u32,
    group: u32,
    window: i32,
    scale: f32,
    scale_log2: f32,
    pad: u32,
}
const _: () = assert!(size_of::<BackwardParams>() == 104);

/// `scale * log2 e`, rounded once.
pub(crate) fn scale_log2(scale: f32) -> f32 {
    (f64::from(scale) * std::f64::consts::LOG2_E) as f32
}

/// Whether two blocks of 64 KB are too much for a multiprocessor.
fn small(gpu: &Gpu) -> bool {
    gpu.shared_per_block <= 99 << 10
}

/// One block a tile and head; shared memory holds Q and one tile each of K and V.
fn forward_geometry(heads: &Heads, works: usize, small: bool) -> Geometry {
    let step = if small && heads.dim == 128 { 32 } else { 64 };
    Geometry {
        grid: [(works * heads.queries) as u32, 1, 1],
        block: THREADS,
        shared: ((FORWARD_TILE + 2 * step) * 2 * heads.dim) as u32,
    }
}

/// One block a tile and head (query heads, or key heads); five tiles in shared memory (of the operand that moves first, two),
/// and two stages of LSE and delta.
fn backward_geometry(heads: usize, dim: usize, works: usize) -> Geometry {
    Geometry {
        grid: [(works * heads) as u32, 1, 1],
        block: THREADS,
        shared: (5 * BACKWARD_TILE * 2 * dim + 4 * BACKWARD_TILE * 4) as u32,
    }
}

pub(crate) fn expect_tile(works: &Works, tile: usize) -> Result<(), LaunchError> {
    if works.tile == tile {
        return Ok(());
    }
    Err(LaunchError::Unsupported(format!(
        "a work list in tiles of {} rows; this kernel takes tiles of {tile}",
        works.tile
    )))
}

/// Launches the forward kernel, over `qkv` or the cache.
pub(crate) fn launch_forward(
    l: &impl Launcher,
    heads: &Heads,
    works: &Works,
    params: &ForwardParams,
) -> Result<(), LaunchError> {
    expect_tile(works, FORWARD_TILE)?;
    let small = small(l.gpu());
    let name = heads.pick([
        "attention_forward_32",
        "attention_forward_64",
        if small {
            "attention_forward_128_small"
        } else {
            "attention_forward_128"
        },
    ])?;
    let kernel = Kernel {
        family: "attention",
        name,
    };
    l.launch(kernel, forward_geometry(heads, works.len, small), params)
}

/// [`Forward`] on mma.sync: any GPU from sm_80 on. Takes work in tiles of [`FORWARD_TILE`].
///
/// # Errors
/// The driver's refusal, or a shape that the kernels do not have.
pub fn forward(l: &impl Launcher, a: &Forward) -> Result<(), LaunchError> {
    let params = ForwardParams {
        qkv: a.qkv,
        out: a.out,
        lse: a.lse,
        work: a.work.items,
        tokens: a.tokens as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: a.heads.group() as u32,
        window: a.heads.window(),
        scale_log2: scale_log2(a.scale),
        ..ForwardParams::zeroed()
    };
    launch_forward(l, &a.heads, &a.work, &params)
}

/// [`Backward`] on mma.sync: any GPU from sm_80 on. Takes work in tiles of [`BACKWARD_TILE`].
///
/// # Errors
/// The driver's refusal, or a shape that the kernels do not have.
pub fn backward(l: &impl Launcher, a: &Backward) -> Result<(), LaunchError> {
    expect_tile(&a.work, BACKWARD_TILE)?;
    let (table, positions) = a
        .rope
        .map_or((Ptr::NULL, Ptr::NULL), |r| (r.table, r.positions));
    let params = BackwardParams {
        qkv: a.qkv,
        out: a.out,
        dout: a.dout,
        lse: a.lse,
        delta: a.delta,
        dqkv: a.dqkv,
        work: a.work.items,
        table,
        positions,
        tokens: a.tokens as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: a.heads.group() as u32,
        window: a.heads.window(),
        scale: a.scale,
        scale_log2: scale_log2(a.scale),
        pad: 0,
    };
    let queries = a.heads.pick([
        "attention_backward_queries_32",
        "attention_backward_queries_64",
        "attention_backward_queries_128",
    ])?;
    let keys = a.heads.pick([
        "attention_backward_keys_32",
        "attention_backward_keys_64",
        "attention_backward_keys_128",
    ])?;
    for (name, heads) in [(queries, a.heads.queries), (keys, a.heads.keys)] {
        let kernel = Kernel {
            family: "attention_backward",
            name,
        };
        l.launch(
            kernel,
            backward_geometry(heads, a.heads.dim, a.work.len),
            &params,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_tile_and_long_ones_come_first() {
        let lengths = [1, 64, 65, 0, 300];
        let list = work(&lengths, 64);
        let mut rows = vec![0; lengths.iter().sum()];
        for w in &list {
            let end = (w.tile as usize + 1) * 64;
            for row in w.tile as usize * 64..end.min(w.length as usize) {
                rows[w.start as usize + row] += 1;
            }
            assert_eq!(w.length as usize, lengths[w.sequence as usize]);
        }
        assert!(rows.iter().all(|n| *n == 1));
        assert!(list.windows(2).all(|w| w[0].tile >= w[1].tile));
        assert_eq!(list[0].sequence, 4);
    }

    #[test]
    fn geometry_fits_every_gpu_of_the_list() {
        for dim in [32, 64, 128] {
            let heads = Heads {
                queries: 16,
                keys: 2,
                dim,
                window: None,
            };
            let g = forward_geometry(&heads, 10, true);
            assert_eq!(g.grid, [160, 1, 1]);
            assert!(g.shared <= 48 << 10, "two blocks on a part with 99 KB");
            assert!(forward_geometry(&heads, 10, false).shared <= 64 << 10);
            assert!(backward_geometry(2, dim, 10).shared <= 99 << 10);
        }
    }

    #[test]
    fn windows_stay_inside_i32() {
        let mut heads = Heads {
            queries: 2,
            keys: 1,
            dim: 64,
            window: None,
        };
        assert_eq!(heads.window(), i32::MAX);
        heads.window = Some(u32::MAX);
        assert_eq!(heads.window(), i32::MAX);
        heads.window = Some(0);
        assert_eq!(heads.window(), 1);
    }
}
