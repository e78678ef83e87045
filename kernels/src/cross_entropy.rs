//! Cross-entropy over a chunk of logits, and its gradient. `cross_entropy.cu`.
//!
//! Any vocabulary and any stride; strides that are multiples of 4 elements are read 16 bytes at a time.

use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::StepState;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Threads of a block of each kernel, and vectors that a thread of the gradient takes.
const LOSS_THREADS: u32 = 512;
const FUSED_THREADS: u32 = 1024;
const CLUSTER_THREADS: u32 = 512;
const GRADIENT_THREADS: usize = 256;
const UNROLL: usize = 4;
/// Shared memory of a cluster's block before its piece of the row, and what two blocks on an SM of sm_90 can each have.
const CLUSTER_HEAD: u32 = 256;
const HALF_SM: u32 = 113 << 10;
/// Shared memory that the fused kernel needs beside the kept logits.
const REDUCTION_BYTES: u32 = 128;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    logits: Ptr<f32>,
    targets: Ptr<u32>,
    losses: Ptr<f32>,
    lse: Ptr<f32>,
    d: Ptr<bf16>,
    state: Ptr<StepState>,
    stride: u64,
    d_stride: u64,
    rows: u32,
    vocab: u32,
    kept: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Params>() == 80);

/// The target of a row that has none: no loss is written for it, and its gradient is 0.
pub const NO_TARGET: u32 = u32::MAX;

/// A chunk of logits and what is wanted at its rows.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub vocab: usize,
    /// `[rows, stride]`.
    pub logits: Ptr<f32>,
    /// Elements from one row of logits to the next, at least `vocab`; columns beyond `vocab` are not looked at.
    pub stride: usize,
    /// Wanted token of each row, below `vocab`, or [`NO_TARGET`].
    pub targets: Ptr<u32>,
    /// Factor of every loss in the gradient, and where the first row's loss goes.
    pub state: Ptr<StepState>,
}

/// Where the gradient goes.
#[derive(Debug, Clone, Copy)]
pub struct Gradient {
    /// `[rows, stride]`, `=`; columns from `vocab` to `stride` become 0.
    pub d: Ptr<bf16>,
    /// Elements from one row of d to the next, at least `vocab`.
    pub stride: usize,
}

impl Chunk {
    fn params(&self, losses: Ptr<f32>, lse: Ptr<f32>, gradient: Option<&Gradient>) -> Params {
        Params {
            logits: self.logits,
            targets: self.targets,
            losses,
            lse,
            d: gradient.map_or(Ptr::NULL, |g| g.d),
            state: self.state,
            stride: self.stride as u64,
            d_stride: gradient.map_or(0, |g| g.stride as u64),
            rows: self.rows as u32,
            vocab: self.vocab as u32,
            kept: 0,
            pad: 0,
        }
    }

    /// Logits that are read at once.
    fn vector(&self, gradient: Option<&Gradient>) -> usize {
        let strides = [self.stride, gradient.map_or(0, |g| g.stride)];
        let aligned =
            strides.iter().all(|s| s.is_multiple_of(4)) && self.logits.address().is_multiple_of(16);
        if aligned { 4 } else { 1 }
    }
}

fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "cross_entropy",
        name,
    }
}

fn blocks(count: usize, block: u32, shared: u32) -> Geometry {
    Geometry {
        grid: [count as u32, 1, 1],
        block,
        shared,
    }
}

/// `losses[first_target + i] = lse[i] - logits[i, targets[i]]` and `lse[i] = ln sum exp logits[i]`, `[rows]`.
///
/// # Errors
/// The driver's refusal.
pub fn loss(
    l: &impl Launcher,
    chunk: &Chunk,
    losses: Ptr<f32>,
    lse: Ptr<f32>,
) -> Result<(), LaunchError> {
    let name = match chunk.vector(None) {
        4 => "cross_entropy_loss",
        _ => "cross_entropy_loss_unaligned",
    };
    let params = chunk.params(losses, lse, None);
    l.launch(kernel(name), blocks(chunk.rows, LOSS_THREADS, 0), &params)
}

/// `d = loss_scale (softmax - onehot)`, from the `lse` of [`loss`].
///
/// # Errors
/// The driver's refusal.
pub fn gradient(
    l: &impl Launcher,
    chunk: &Chunk,
    lse: Ptr<f32>,
    gradient: &Gradient,
) -> Result<(), LaunchError> {
    let vector = chunk.vector(Some(gradient));
    let name = match vector {
        4 => "cross_entropy_gradient",
        _ => "cross_entropy_gradient_unaligned",
    };
    let params = chunk.params(Ptr::NULL, lse, Some(gradient));
    let geometry = gradient_geometry(chunk.rows, chunk.vocab, vector);
    l.launch(kernel(name), geometry, &params)
}

/// [`loss`] and [`gradient`] with one read of the logits from memory, where the GPU has clusters and rows are aligned; else with most of the
/// second read from L2.
///
/// # Errors
/// The driver's refusal.
pub fn loss_and_gradient(
    l: &impl Launcher,
    chunk: &Chunk,
    losses: Ptr<f32>,
    lse: Ptr<f32>,
    gradient: &Gradient,
) -> Result<(), LaunchError> {
    let vector = chunk.vector(Some(gradient));
    let name = match vector {
        4 => "cross_entropy_fused",
        _ => "cross_entropy_fused_unaligned",
    };
    if let Some((cluster, shared)) = cluster(l.gpu(), chunk.vocab).filter(|_| vector == 4) {
        let kernel = Kernel {
            family: "cross_entropy_hopper",
            name: match cluster {
                1 => "cross_entropy_cluster1",
                2 => "cross_entropy_cluster2",
                4 => "cross_entropy_cluster4",
                _ => "cross_entropy_cluster8",
            },
        };
        let geometry = blocks(chunk.rows * cluster, CLUSTER_THREADS, shared);
        return l.launch(kernel, geometry, &chunk.params(losses, lse, Some(gradient)));
    }
    let (kept, shared) = kept(l.gpu(), chunk.vocab, vector);
    let params = Params {
        kept,
        ..chunk.params(losses, lse, Some(gradient))
    };
    l.launch(
        kernel(name),
        blocks(chunk.rows, FUSED_THREADS, shared),
        &params,
    )
}

fn gradient_geometry(rows: usize, vocab: usize, vector: usize) -> Geometry {
    let parts = vocab.div_ceil(vector).div_ceil(GRADIENT_THREADS * UNROLL);
    blocks(rows * parts, GRADIENT_THREADS as u32, 0)
}

/// Blocks that hold a row between them, and the shared memory of each: as few as let two blocks share an SM. `None` without clusters, and for
/// rows that eight blocks cannot hold.
fn cluster(gpu: &Gpu, vocab: usize) -> Option<(usize, u32)> {
    let bytes = |blocks: usize| CLUSTER_HEAD + 16 * vocab.div_ceil(4).div_ceil(blocks) as u32;
    let blocks = [1, 2, 4].into_iter().find(|&b| bytes(b) <= HALF_SM);
    let blocks = blocks.unwrap_or(8);
    (gpu.hopper && bytes(blocks) <= gpu.shared_per_block).then(|| (blocks, bytes(blocks)))
}

/// Vectors of a row that stay in shared memory, and its bytes: the whole row, or what a block can have.
fn kept(gpu: &Gpu, vocab: usize, vector: usize) -> (u32, u32) {
    let bytes = 4 * vector as u32;
    let room = gpu.shared_per_block.saturating_sub(REDUCTION_BYTES) / bytes;
    let kept = room.min(vocab.div_ceil(vector) as u32);
    (kept, REDUCTION_BYTES + kept * bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(shared_per_block: u32) -> Gpu {
        Gpu {
            name: String::new(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_per_block,
            l2: 0,
            memory: 0,
            hopper: true,
        }
    }

    #[test]
    fn a_row_is_kept_whole_if_it_fits() {
        assert_eq!(kept(&gpu(232_448), 151_936, 4), (14_520, 232_448));
        assert_eq!(kept(&gpu(232_448), 1001, 4), (251, 4_144));
        assert_eq!(kept(&gpu(101_376), 1001, 1), (1001, 4_132));
    }

    #[test]
    fn a_cluster_is_as_small_as_two_blocks_an_sm_allow() {
        let of = |vocab| cluster(&gpu(232_448), vocab);
        assert_eq!(of(28_000), Some((1, 112_256)));
        assert_eq!(of(32_000), Some((2, 64_256)));
        assert_eq!(of(49_152), Some((2, 98_560)));
        assert_eq!(of(128_256), Some((8, 64_384)));
        assert_eq!(of(151_936), Some((8, 76_224)));
        assert_eq!(of(262_144), Some((8, 131_328)));
        assert_eq!(of(500_000), None);
    }

    #[test]
    fn unaligned_rows_take_the_scalar_kernels() {
        let chunk = |stride| Chunk {
            rows: 1,
            vocab: 5,
            logits: Ptr::NULL,
            stride,
            targets: Ptr::NULL,
            state: Ptr::NULL,
        };
        let to = |stride| Gradient {
            d: Ptr::NULL,
            stride,
        };
        assert_eq!(chunk(8).vector(None), 4);
        assert_eq!(chunk(8).vector(Some(&to(5))), 1);
        assert_eq!(chunk(5).vector(Some(&to(8))), 1);
        assert_eq!(gradient_geometry(3, 4097, 4).grid, [6, 1, 1]);
    }
}
