//! The op set that the decoder is written against, at the granularity of fused kernels.
//!
//! Holds the trait and the plain tables that cross it. It refuses to know models, files or recipes.
//! Invariant: an op has its backward beside it, and every buffer a method takes is either only read, wholly
//! overwritten (`=`) or added to (`+=`); each method says which.

pub mod cpu;

use crate::model::checkpoint::Tensor;
use medft_dsl::plan::Precision;

/// Sequences laid back to back without padding, and the positions that carry a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// The sequences, in the order of their rows; they cover `ids` exactly.
    pub sequences: Vec<Sequence>,
    /// Rows whose next token is supervised (or asked for), in ascending order of `row`.
    pub targets: Vec<Target>,
    /// Index of the first token within the optimizer step: dropout masks follow it, so that the division
    /// into micro-batches does not change them.
    pub first_token: u64,
}

/// One sequence of a packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its first row in the batch.
    pub start: usize,
    /// Its number of rows.
    pub len: usize,
    /// Tokens of it that the KV cache already holds; 0 in training. Row `i` has position `past + i`.
    pub past: usize,
    /// Its place in the KV cache; unused in training.
    pub slot: usize,
}

/// A row that predicts a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the batch whose output is used.
    pub row: usize,
    /// The token that should follow.
    pub id: u32,
}

impl Packed {
    /// Rows in the batch.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Appends a sequence of which `past` tokens are in the cache's `slot` already; returns its first row.
    pub fn push(&mut self, ids: &[u32], past: usize, slot: usize) -> usize {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.sequences.push(Sequence {
            start,
            len: ids.len(),
            past,
            slot,
        });
        start
    }
}

/// A range of the flat buffer that holds every trained value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// A matrix `[outputs, inputs]`, frozen in the checkpoint's form or trained in f32.
pub enum Weight<'a, B: Backend> {
    /// Never changes.
    Frozen(&'a B::Matrix),
    /// A range of the trained values, row-major.
    Trained(Slot),
}

/// A vector (norm gain, bias), frozen or trained.
pub enum Vector<'a, B: Backend> {
    /// Never changes.
    Frozen(&'a B::Float),
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

/// A reproducible dropout mask: a function of these fields, the token's index in the step and the column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, in (0, 1).
    pub p: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Layer and projection.
    pub stream: u32,
}

/// One linear layer of a group.
pub struct Linear<'a, B: Backend> {
    /// `[outputs, inputs]`.
    pub weight: Weight<'a, B>,
    /// `[outputs]`.
    pub bias: Option<Vector<'a, B>>,
    /// Rows of the weight.
    pub outputs: usize,
    /// The adapter, if this layer has one.
    pub lora: Option<LoraSlots>,
}

/// Linear layers that read the same input and write side by side: q, k, v or gate, up; also a single one.
pub struct Group<'a, B: Backend> {
    /// Columns of the input.
    pub inputs: usize,
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
    /// Gradients are multiplied by it first (clipping).
    pub clip: f64,
}

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The tensor's numbers cannot be used.
    #[error("{file}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The op set. `Act` holds activations `[rows, columns]` row-major in the backend's activation dtype (f32 on
/// the CPU); `Float` is f32 everywhere. All sums are f32 or wider.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations and their gradients.
    type Act: Send + Sync;
    /// Trained values, gradients, optimizer state, statistics.
    type Float: Send + Sync;
    /// A frozen weight in the precision that the recipe asked for.
    type Matrix: Send + Sync;
    /// A packed batch where the ops can read it.
    type Batch: Send + Sync;
    /// Keys and values of all layers for a number of sequences.
    type Cache: Send + Sync;

    /// Takes a batch over.
    fn upload(&self, batch: Packed) -> Self::Batch;
    /// An activation buffer of `len` elements, contents unspecified.
    fn act(&self, len: usize) -> Self::Act;
    /// An f32 buffer of `len` zeros.
    fn float(&self, len: usize) -> Self::Float;
    /// Copies `from` into `to` at `offset`.
    fn write(&self, to: &mut Self::Float, offset: usize, from: &[f32]);
    /// Copies a range out.
    fn read(&self, from: &Self::Float, slot: Slot) -> Vec<f32>;
    /// Loads a weight `[rows, cols]`; values that are not finite are an error.
    fn matrix(
        &self,
        tensor: &Tensor,
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self::Matrix, BackendError>;
    /// A frozen matrix's values, row-major, as the ops see them.
    fn matrix_values(&self, matrix: &Self::Matrix) -> Vec<f32>;
    /// A KV cache for `slots` sequences of at most `capacity` tokens.
    fn cache(&self, layers: usize, slots: usize, capacity: usize, heads: &Heads) -> Self::Cache;
    /// Forgets slots: sequence `keep[i]` moves to slot `i`. `keep` is ascending.
    fn cache_compact(&self, cache: &mut Self::Cache, keep: &[usize]);

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
    /// `scale * dropout(x) A^T` of each member, `[rows, sum of ranks]`, for the backward pass.
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

    /// Cross-entropy at the batch's targets: returns one loss a target (natural log). With `dx`, that buffer `[tokens, hidden]` `=`
    /// `grad_scale` times the gradient of the sum of the losses (0 at rows without a target), and a trained head's gradient `+=`.
    fn head_loss(
        &self,
        head: &Weight<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        vocab: usize,
        x: &Self::Act,
        backward: Option<HeadBackward<Self>>,
    ) -> Vec<f32>;
    /// Logits at the batch's targets, `[targets, vocab]`.
    fn head_logits(
        &self,
        head: &Weight<Self>,
        values: &Self::Float,
        batch: &Self::Batch,
        hidden: usize,
        vocab: usize,
        x: &Self::Act,
    ) -> Vec<f32>;

    /// `sqrt(sum(x^2))`.
    fn norm(&self, x: &Self::Float) -> f64;
    /// `x = 0`.
    fn zero(&self, x: &mut Self::Float);
    /// One AdamW step over all trained values: values, first and second moments `=`.
    fn adamw(
        &self,
        step: &AdamWStep,
        grads: &Self::Float,
        values: &mut Self::Float,
        first: &mut Self::Float,
        second: &mut Self::Float,
    );
}

/// What [`Backend::head_loss`] needs to go backward.
pub struct HeadBackward<'a, B: Backend> {
    /// Factor of every loss, 1 / (targets of the optimizer step).
    pub grad_scale: f32,
    /// Gradient of the normed hidden state, `[tokens, hidden]`.
    pub dx: &'a mut B::Act,
    /// Gradients of the trained values.
    pub grads: &'a mut B::Float,
}
