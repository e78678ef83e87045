//! The op set that the decoder is written against, at the granularity of fused kernels.
//!
//! Holds the trait and the plain tables that cross it. It refuses to know models, files or recipes.
//! Invariants: an op has its backward beside it, and every buffer a method takes is either only read, wholly
//! overwritten (`=`) or added to (`+=`); each method says which. Ops take effect in the order of their calls, but may still run
//! when the call returns: only what returns a `Result` can wait, and what an op could not do, the next of these reports.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod facts;
mod packed;

use crate::model::checkpoint::Tensor;
pub use error::BackendError;
use medft_dsl::plan::{Decode, Precision};
pub use packed::{Packed, Pass, ROWS, Sequence, Target};

/// A range of the flat buffer that holds every trained value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// One matrix `[outputs, inputs]` (embedding, head), frozen in the checkpoint's form or trained in f32.
pub enum Weight<'a, B: Backend> {
    /// Never changes.
    Frozen(&'a B::Matrix),
    /// A range of the trained values, row-major.
    Trained(Slot),
}

/// A vector (norm gain, bias), frozen or trained.
pub enum Vector<'a, B: Backend> {
    /// A range of a buffer that never changes.
    Frozen(&'a B::Float, Slot),
    /// A range of the trained values.
    Trained(Slot),
}

/// A low-rank adapter of one linear layer: `y += scale * dropout(x) A^T B^T`.
#[derive(Debug, Clone, Copy)]
pub struct LoraSlots {
    /// `A`, `[rank, inputs]`.
    pub a: Slot,
    /// `B`, `[outputs, rank]`.
    pub b: Slot,
    /// Rank r.
    pub rank: usize,
    /// `alpha / r`.
    pub scale: f32,
    /// Dropout on the adapter's input; `None` outside training.
    pub dropout: Option<Dropout>,
}

/// A reproducible dropout mask: a function of these fields, the [`Pass`]'s seed and step, the token's index `t` in the step (64 bits) and the
/// column `c`.
///
/// A call of Philox4x32-10 gives eight 16-bit uniforms of one token: those of the columns with the same block `b = c / 32` and lane
/// `q = c % 8 / 2`. Its counter is `[t low, t high ^ step low, 4 b + q, stream]`, its key `[seed low ^ step low,
/// seed high ^ step high ^ stream.rotate_left(16)]`. Column `c` finds its uniform in word `c % 32 / 8`, in the low half if `c` is even:
/// the eight elements that one thread of a tensor-core product holds. It is dropped where the uniform is below `round(p * 65536)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, in (0, 1).
    pub p: f32,
    /// Layer and projection.
    pub stream: u32,
}

impl Dropout {
    /// 16-bit uniforms below it drop their element.
    pub fn threshold(&self) -> u32 {
        (f64::from(self.p) * 65_536.0).round() as u32
    }

    /// Factor of what is kept.
    pub fn keep_scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

/// One linear layer of a group.
pub struct Linear<'a, B: Backend> {
    /// Rows of its weight.
    pub outputs: usize,
    /// `[outputs]`.
    pub bias: Option<Vector<'a, B>>,
    /// The adapter, if this layer has one.
    pub lora: Option<LoraSlots>,
}

/// The weights of a group's members.
pub enum GroupWeight<'a, B: Backend> {
    /// All members' rows, stacked in their order, `[sum of outputs, inputs]`, loaded from one tensor a member; never changes.
    Frozen(&'a B::Matrix),
    /// A range of the trained values for each member, row-major `[outputs, inputs]`.
    Trained(Vec<Slot>),
}

/// Linear layers that read the same input and write side by side: q, k, v or gate, up; also a single one.
pub struct Group<'a, B: Backend> {
    /// Columns of the input.
    pub inputs: usize,
    /// The members' weights.
    pub weight: GroupWeight<'a, B>,
    /// The layers; their outputs stand in this order in a row of the result.
    pub members: Vec<Linear<'a, B>>,
}

impl<B: Backend> Group<'_, B> {
    /// Columns of the result.
    pub fn outputs(&self) -> usize {
        self.members.iter().map(|m| m.outputs).sum()
    }
}

/// What happens to a linear layer's result before it is stored.
pub enum Epilogue<'a, B: Backend> {
    /// Nothing.
    None,
    /// `[rows, outputs]` is added.
    Residual(&'a B::Act),
    /// The query and key columns are rotated to their positions (RoPE, arXiv:2104.09864, half-split pairs).
    Rope(&'a Heads),
    /// The result `[rows, 2 * inner]` (gate first) is stored, and this buffer `[rows, inner]` `= silu(gate) * up`.
    SwiGlu(&'a mut B::Act),
}

/// The shape of attention, and the rotation of its queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Columns of a head.
    pub dim: usize,
    /// A query sees this many of the latest positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// Rotation per position of each pair of columns, `[dim / 2]`, radians.
    pub inv_freq: Vec<f64>,
}

impl Heads {
    /// Columns of q, k and v together.
    pub fn qkv(&self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }
}

/// Coefficients of one AdamW step (arXiv:1711.05101, PyTorch's form).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Steps taken before, plus one.
    pub step: u64,
    /// Gradients are first multiplied by `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's `clip_grad_norm_`; `None` leaves them.
    pub max_norm: Option<f64>,
}

/// How next tokens are chosen, with Transformers' meaning and order: penalty, temperature, top-k, top-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Draw by probability; otherwise the largest score (after the penalty alone) is taken, the lowest token of equal ones.
    pub sample: bool,
    /// Scores are divided by it.
    pub temperature: f32,
    /// Only so many largest scores stay, and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// The smallest set of most probable tokens that reaches it stays; 1 keeps all.
    pub top_p: f64,
    /// Scores of seen tokens are divided by it where positive, multiplied where negative.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl From<&Decode> for Sampling {
    fn from(decode: &Decode) -> Self {
        Sampling {
            sample: decode.sample,
            temperature: decode.temperature as f32,
            top_k: usize::try_from(decode.top_k).unwrap_or(usize::MAX),
            top_p: decode.top_p,
            repetition_penalty: decode.repetition_penalty as f32,
            seed: decode.seed,
        }
    }
}

/// Second word of a draw's counter, which no dropout mask of the same seed shares.
pub const DRAW: u32 = 0x6472_6177; // "draw"

/// Whose draw it is: under one seed the same two numbers give the same random bits everywhere, the first word of Philox4x32-10 at
/// `[position, DRAW, row low, row high]` under the key `[seed low, seed high]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The row's own number, whatever batch it is in.
    pub row: u64,
    /// Position of the token that is drawn.
    pub position: u32,
}

/// A row whose next token is to be chosen.
#[derive(Debug, Clone, Copy)]
pub struct SampleRow<'a> {
    /// The tokens of prompt and answer so far, for the repetition penalty.
    pub seen: &'a [u32],
    /// Whose draw it is.
    pub stream: Stream,
}

/// Lengths of buffers, in the order in which they will be carved from one arena.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Of activations, in elements.
    pub acts: Vec<usize>,
    /// Of f32 buffers, in elements.
    pub floats: Vec<usize>,
}

/// The op set. `Act` holds activations `[rows, columns]` row-major in the backend's activation dtype (f32 on
/// the CPU); `Float` is f32 everywhere. All sums are f32 or wider. A clone is the same device.
pub trait Backend: facts::Facts + Clone + Send + Sync + Sized + 'static {
    /// Activations and their gradients.
    type Act: Send + Sync;
    /// Trained values, gradients, optimizer state, statistics.
    type Float: Send + Sync;
    /// Frozen weights in the precision that the recipe asked for: one tensor, or several stacked by rows.
    type Matrix: Send + Sync;
    /// What loading keeps from one matrix to the next; it goes once all are loaded.
    type Loader: Default;
    /// A packed batch where the ops can read it.
    type Batch: Send + Sync;
    /// Keys and values of all layers for a number of sequences.
    type Cache: Send + Sync;
    /// Records of passes.
    type Recording: Default + Send;
    /// One allocation that buffers are carved from. They keep it alive; this handle is dropped once all of them are made.
    type Arena: Send + Sync;

    /// The device, for people: "CPU, 2 threads".
    fn name(&self) -> String;
    /// The kind of device: results of different kinds have different bits, so the word goes into their keys.
    fn kind(&self) -> &'static str;
    /// Waits until every op is done, and reports the first error of any of them.
    fn finish(&self) -> Result<(), BackendError>;

    /// Takes a batch over.
    fn upload(&self, batch: Packed) -> Result<Self::Batch, BackendError>;
    /// Rows of a batch's activations: its tokens, and what it was filled up with.
    fn rows(&self, batch: &Self::Batch) -> usize;
    /// Makes room for what ops borrow in such passes; without it they may fail.
    fn reserve(&self, passes: &facts::Passes) -> Result<(), BackendError>;
    /// Bytes that an arena for these buffers takes.
    fn arena_bytes(&self, need: &Need) -> u64;
    /// Room for exactly these buffers. `what` names them in an error.
    fn arena(&self, what: &'static str, need: &Need) -> Result<Self::Arena, BackendError>;
    /// The next activation buffer of an arena, of `len` elements, contents unspecified.
    ///
    /// # Panics
    /// If the arena was made for other buffers.
    fn act(&self, arena: &mut Self::Arena, len: usize) -> Self::Act;
    /// The next f32 buffer of an arena, of `len` elements, contents unspecified.
    ///
    /// # Panics
    /// If the arena was made for other buffers.
    fn float(&self, arena: &mut Self::Arena, len: usize) -> Self::Float;
    /// A long-lived f32 buffer of `len` zeros. `what` names it in an error.
    fn floats(&self, what: &'static str, len: usize) -> Result<Self::Float, BackendError>;
    /// Copies `from` into `to` at `offset`.
    fn write(&self, to: &mut Self::Float, offset: usize, from: &[f32]);
    /// Copies a range out, once all ops before are done; reports their errors as [`Backend::finish`] does.
    fn read(&self, from: &Self::Float, slot: Slot) -> Result<Vec<f32>, BackendError>;
    /// Loads weights `[rows, inputs]` with the same number of columns, stacked by rows in this order; values that are not finite are an
    /// error. Of one tensor, it is that weight.
    fn matrix(
        &self,
        loader: &mut Self::Loader,
        tensors: &[Tensor],
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self::Matrix, BackendError>;
    /// All rows of a frozen matrix, row-major, as the ops see them.
    fn matrix_values(&self, matrix: &Self::Matrix) -> Result<Vec<f32>, BackendError>;
    /// A KV cache for `slots` sequences of at most `capacity` tokens.
    fn cache(
        &self,
        layers: usize,
        slots: usize,
        capacity: usize,
        heads: &Heads,
    ) -> Result<Self::Cache, BackendError>;
    /// Runs the ops of one pass over `batch`. A backend may record them and replay the record for another batch, so with one `recording` they
    /// are always the same ops on the same buffers; only the batch differs.
    fn step(
        &self,
        recording: &mut Self::Recording,
        batch: &Self::Batch,
        cache: Option<&mut Self::Cache>,
        ops: impl FnOnce(Option<&mut Self::Cache>),
    );
    /// Forgets slots: sequence `keep[i]` moves to slot `i`. `keep` is ascending.
    fn cache_compact(&self, cache: &mut Self::Cache, keep: &[usize]);
    /// Columns that an adapter of this rank takes in the buffer of low-rank products; at least `rank`.
    fn low_columns(&self, rank: usize) -> usize;

    /// `x[t] = table[ids[t]]`; x `[tokens, hidden]`.
    fn embed(
        &self,
        table: &Weight<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        x: &mut Self::Act,
    );
    /// `dtable[ids[t]] += dx[t]`.
    fn embed_backward(
        &self,
        table: Slot,
        grads: &mut Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        dx: &Self::Act,
    );

    /// `y = x * rstd * gain`, `rstd = 1 / sqrt(mean(x^2) + eps)`; x, y `[rows, hidden]`, rstd `[rows]` (arXiv:1910.07467).
    fn rmsnorm(
        &self,
        gain: &Vector<Self>,
        values: &Self::Float,
        eps: f32,
        rows: usize,
        hidden: usize,
        x: &Self::Act,
        y: &mut Self::Act,
        rstd: &mut Self::Float,
    );
    /// `dx +=`; a trained gain's gradient `+=`.
    fn rmsnorm_backward(
        &self,
        gain: &Vector<Self>,
        values: &Self::Float,
        grads: &mut Self::Float,
        rows: usize,
        hidden: usize,
        x: &Self::Act,
        rstd: &Self::Float,
        dy: &Self::Act,
        dx: &mut Self::Act,
    );

    /// `y = x W^T + bias + LoRA`, then the epilogue; x `[rows, inputs]`, y `[rows, outputs]`. `low` keeps
    /// `scale * dropout(x) A^T` of each member, `[rows, sum of low_columns(rank)]`, for the backward pass; its layout is the backend's own.
    fn linear(
        &self,
        group: &Group<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        rows: usize,
        x: &Self::Act,
        epilogue: Epilogue<Self>,
        y: &mut Self::Act,
        low: &mut Self::Act,
    );
    /// `dx =` (if asked for), gradients of trained values `+=`. dy is the gradient before the epilogue.
    fn linear_backward(
        &self,
        group: &Group<Self>,
        values: &Self::Float,
        grads: &mut Self::Float,
        batch: &Self::Batch,
        rows: usize,
        x: &Self::Act,
        low: &Self::Act,
        dy: &Self::Act,
        dx: Option<&mut Self::Act>,
    );

    /// Causal grouped-query attention inside each sequence. qkv `[tokens, qkv]` after RoPE, out `[tokens, queries * dim]`,
    /// lse `[queries, tokens]` = log-sum-exp of the scaled scores.
    fn attention(
        &self,
        heads: &Heads,
        batch: &Self::Batch,
        qkv: &Self::Act,
        out: &mut Self::Act,
        lse: &mut Self::Float,
    );
    /// `dqkv =`, the inverse rotation of RoPE included.
    fn attention_backward(
        &self,
        heads: &Heads,
        batch: &Self::Batch,
        qkv: &Self::Act,
        out: &Self::Act,
        lse: &Self::Float,
        dout: &Self::Act,
        dqkv: &mut Self::Act,
    );
    /// Stores the batch's keys and values behind each sequence's `past` tokens and attends to all of them.
    fn attention_cached(
        &self,
        heads: &Heads,
        batch: &Self::Batch,
        layer: usize,
        cache: &mut Self::Cache,
        qkv: &Self::Act,
        out: &mut Self::Act,
    );

    /// `h = silu(gate) * up`; gate_up `[rows, 2 * inner]` (gate first), h `[rows, inner]` (arXiv:2002.05202).
    fn swiglu(&self, rows: usize, inner: usize, gate_up: &Self::Act, h: &mut Self::Act);
    /// `dgate_up =`.
    fn swiglu_backward(
        &self,
        rows: usize,
        inner: usize,
        gate_up: &Self::Act,
        dh: &Self::Act,
        dgate_up: &mut Self::Act,
    );

    /// `x = 0`, `[rows, hidden]`.
    fn clear(&self, rows: usize, hidden: usize, x: &mut Self::Act);
    /// `dx += dy`, both `[rows, hidden]`.
    fn add(&self, rows: usize, hidden: usize, dy: &Self::Act, dx: &mut Self::Act);

    /// Cross-entropy at the batch's targets: `losses[first_target..][..targets] =` one loss a target (natural log). With `backward`, its dx
    /// `[rows, hidden]` `=` `loss_scale` times the gradient of the sum of the losses (0 at rows without a target), and a trained head's
    /// gradient `+=`. Place and factor are those of the batch's [`Pass`].
    fn head_loss(
        &self,
        head: &Weight<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        vocab: usize,
        x: &Self::Act,
        losses: &mut Self::Float,
        backward: Option<HeadBackward<Self>>,
    );
    /// Logits at the batch's targets: rows `at_row..at_row + targets` of logits `[rows, vocab]` `=`.
    fn head_logits(
        &self,
        head: &Weight<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        vocab: usize,
        x: &Self::Act,
        logits: &mut Self::Float,
        at_row: usize,
    );
    /// The next token of each row, from the first `rows.len()` rows of logits `[rows, vocab]`, whose contents are lost. The last op of
    /// a step of generation: reports errors as [`Backend::finish`] does, and [`BackendError::NoToken`].
    fn sample(
        &self,
        sampling: &Sampling,
        rows: &[SampleRow],
        vocab: usize,
        logits: &mut Self::Float,
    ) -> Result<Vec<u32>, BackendError>;

    /// `out[0] = sqrt(sum(x^2))`.
    fn norm(&self, x: &Self::Float, out: &mut Self::Float);
    /// `x = 0`.
    fn zero(&self, x: &mut Self::Float);
    /// One AdamW step over all trained values: values, first and second moments `=`. `norm[0]` is the gradients' norm; where it is not
    /// finite, nothing changes.
    fn adamw(
        &self,
        step: &AdamWStep,
        grads: &Self::Float,
        norm: &Self::Float,
        values: &mut Self::Float,
        first: &mut Self::Float,
        second: &mut Self::Float,
    );
}

/// What [`Backend::head_loss`] needs to go backward.
pub struct HeadBackward<'a, B: Backend> {
    /// Gradient of the normed hidden state, `[rows, hidden]`.
    pub dx: &'a mut B::Act,
    /// Gradients of the trained values.
    pub grads: &'a mut B::Float,
}
