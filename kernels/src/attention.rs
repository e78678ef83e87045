//! Causal grouped-query attention over packed sequences: arguments (the Hopper form takes the same), work lists, and the portable kernels.
//!
//! Sequences lie back to back in `qkv`; a work list made on the host names the tiles of rows, longest first, so that no kernel searches for
//! its sequence. Invariant: one block owns its output rows, and sums run in a fixed order: results do not depend on timing or on neighbours.

use crate::launch::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

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
