//! What the matrix-product families (portable and Hopper) take: linear layers that read one input, with their adapters and epilogues.
//!
//! All matrices are row-major bf16 with rows at a multiple of 16 bytes. A group's weights are stacked by rows (q over k over v, gate over up).
//! Adapters are padded to a rank that is a multiple of 16 with zeros; a group's adapted members have the same padded rank.

use crate::launch::Ptr;
use half::bf16;

/// Most members of a group.
pub const MEMBERS: usize = 3;

/// What stands for "no adapter" in [`Group::low_at`].
pub const NO_LOW: u32 = u32::MAX;

/// A group of linear layers over the same input.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Rows of the batch, T.
    pub rows: usize,
    /// Columns of the input, K.
    pub inputs: usize,
    /// Members, at most [`MEMBERS`]; multiples of 8; unused ones are 0. Their outputs stand side by side in a row.
    pub outputs: [usize; MEMBERS],
    /// First column of each member's product in the low-rank buffer `[T, low]`, or [`NO_LOW`].
    pub low_at: [u32; MEMBERS],
    /// Padded rank (16, 32, 48, ... 128), 0 without adapters.
    pub rank: usize,
}

impl Group {
    /// Columns of the result, N.
    pub fn columns(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// Columns of the low-rank buffer, R: padded rank times adapted members.
    pub fn low(&self) -> usize {
        self.rank * self.low_at.iter().filter(|at| **at != NO_LOW).count()
    }
}

/// The low-rank part of the forward product: `y += low B^T`, each member with its own columns of `low`.
#[derive(Debug, Clone, Copy)]
pub struct LowForward {
    /// H' = s drop(x) A^T, `[T, R]`.
    pub low: Ptr<bf16>,
    /// B of every member, stacked like the weights: `[N, rank]`; rows of a member without adapter are not read.
    pub b: Ptr<bf16>,
}

/// The low-rank part of the input's gradient: `dx += mask . (g A) / (1 - p)`, summed over the adapted members.
#[derive(Debug, Clone, Copy)]
pub struct LowBackward {
    /// G' = s dy B, `[T, R]`.
    pub g: Ptr<bf16>,
    /// A of the adapted members, stacked: `[R, K]`.
    pub a: Ptr<bf16>,
    /// The mask of the forward pass.
    pub dropout: Option<Dropout>,
}

/// Dropout of a group's members; [`crate::dropout::draw`] makes the masks.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// A bit an element of x, for each adapted member.
    pub kept: Ptr<u32>,
    /// `1 / (1 - p)`.
    pub keep_scale: f32,
}

/// What tells a pass of a step from the others, in device memory, so that a graph can be replayed for another one. Laid out as in
/// `prim/philox.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepState {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Index in the step of the batch's row 0.
    pub first_token: u64,
    /// Where the loss of the first target goes among those of the step.
    pub first_target: u32,
    /// Factor of every loss before its gradient is taken.
    pub loss_scale: f32,
}

/// What happens to the product in f32, before its one rounding to bf16.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue {
    /// Bias, if there is one.
    None,
    /// `[T, N]` is added.
    Residual(Ptr<bf16>),
    /// Columns of the first `rotated` heads of `head_dim` columns are rotated to their positions (half-split pairs).
    Rope {
        /// f32 pairs (cos, sin), `[positions, head_dim / 2, 2]`.
        table: Ptr<f32>,
        /// Position of each row, `[T]`.
        positions: Ptr<u32>,
        /// Columns of a head: 32, 64 or 128 (any multiple of 16 in the portable form).
        head_dim: usize,
        /// Query and key heads together.
        rotated: usize,
    },
    /// Two members of equal width, gate and up: y is stored, and `h = silu(gate) up`, `[T, N / 2]`, formed from the f32 values.
    SwiGlu(Ptr<bf16>),
}

/// `y = epilogue(x W^T + low B^T + bias)`.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// Shapes.
    pub group: Group,
    /// `[T, K]`.
    pub x: Ptr<bf16>,
    /// `[N, K]`.
    pub weight: Ptr<bf16>,
    /// `[N]`, or NULL.
    pub bias: Ptr<f32>,
    /// The adapters' part.
    pub low: Option<LowForward>,
    /// What happens before the store.
    pub epilogue: Epilogue,
    /// `[T, N]`, `=`.
    pub y: Ptr<bf16>,
}

/// `dx = dy W + low-rank part`.
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// Shapes.
    pub group: Group,
    /// `[T, N]`.
    pub dy: Ptr<bf16>,
    /// `[N, K]`.
    pub weight: Ptr<bf16>,
    /// The adapters' part.
    pub low: Option<LowBackward>,
    /// `[T, K]`, `=`.
    pub dx: Ptr<bf16>,
}
