//! What a plan has to know of a device before anything is loaded: its speed, its free memory, and the bytes that it holds things in.
//!
//! Holds questions that cost next to nothing. It refuses to reserve or to load. Invariant: a size is what the backend's own allocations
//! take, from the same constants, so that a plan and what comes of it cannot differ.

use super::Heads;
use medft_dsl::plan::Precision;

/// Speeds, for estimates of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Operations a second of a large product, timed now.
    pub product: f64,
    /// Share of it that a pass over many tokens reaches.
    pub pass: f64,
    /// Share of it that the rows of a decoding step reach.
    pub decode: f64,
    /// Rows more that a decoding step seems to have, because it reads every weight; 0 where `weights` says it.
    pub decode_fixed: f64,
    /// Bytes of weights a second that a decoding step reads; infinite where `decode_fixed` says it.
    pub weights: f64,
    /// Bytes a second of the ops between the products.
    pub memory: f64,
    /// Seconds that a layer costs each pass, however small.
    pub layer: f64,
}

/// Memory of a device, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    /// What can be had now.
    pub free: u64,
    /// What there is.
    pub total: u64,
}

/// A weight matrix of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct MatrixShape {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub inputs: usize,
    /// Bytes of a value in the file.
    pub stored: usize,
}

/// Linear layers over one input, with their adapters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupShape {
    /// Columns of the input.
    pub inputs: usize,
    /// Rows of each member's weight.
    pub outputs: Vec<usize>,
    /// Rank of each member's adapter, 0 where it has none.
    pub ranks: Vec<usize>,
}

/// The passes of a stage as the ops see them: what decides how much memory they borrow.
#[derive(Debug, Clone)]
pub struct Passes<'a> {
    /// Every kind of group that the model has.
    pub groups: &'a [GroupShape],
    /// Attention.
    pub heads: &'a Heads,
    /// Columns of the residual stream.
    pub hidden: usize,
    /// Rows of the head.
    pub vocab: usize,
    /// How the linear layers are held.
    pub precision: Precision,
    /// Every weight is trained.
    pub full: bool,
    /// There is a backward pass.
    pub training: bool,
    /// Most tokens of a pass.
    pub tokens: usize,
    /// Most rows of a pass whose logits are asked for.
    pub targets: usize,
    /// Sequences in the KV cache and the room of each; none in training.
    pub cached: Option<(usize, usize)>,
}

/// What a device says of itself, apart from its ops.
pub trait Facts {
    /// How fast it is; takes up to a second.
    fn rates(&self) -> Rates;
    /// Its memory, if that can be known.
    fn memory(&self) -> Option<Memory>;
    /// Counts [`Facts::peak`] anew.
    fn forget_peak(&self);
    /// Most bytes in use since then, if that can be known: of a GPU's memory, what this program reserved there; else of the process.
    fn peak(&self) -> Option<u64>;
    /// The precision that it computes in where a recipe asks for this one.
    fn held_as(&self, precision: Precision) -> Precision;
    /// Most tokens of a training pass that are of use: a recipe's `micro_batch = auto` goes up to it where memory allows.
    fn pass_tokens(&self) -> usize;
    /// Bytes of a weight matrix, held so.
    fn matrix_bytes(&self, matrix: MatrixShape, precision: Precision, double_quant: bool) -> u64;
    /// Bytes of a KV cache.
    fn cache_bytes(&self, layers: usize, slots: usize, capacity: usize, heads: &Heads) -> u64;
    /// Bytes that ops borrow beside the buffers of a pass.
    fn scratch_bytes(&self, passes: &Passes) -> u64;
}
