//! The language-model head: logits at the rows that are asked for, and their cross-entropy, a chunk of rows at a time.
//!
//! Invariant: the logits of a whole batch never exist: a chunk's are overwritten by the next one's.

use super::linear::{FEW, gradient};
use super::matrix::{ROWS, Stored};
use super::memory::{Act, Float};
use super::{Batch, Cuda};
use crate::backend::{HeadBackward, Weight};
use half::bf16;
use medft_kernels::cross_entropy::{self, Chunk, Gradient};
use medft_kernels::gemm::{self, Output};
use medft_kernels::gemm_hopper::{self, Plain, Product};
use medft_kernels::linear::{self, Group, MEMBERS, NO_LOW};
use medft_kernels::{LaunchError, Launcher, Ptr, elementwise, skinny, weight_grad};

/// Rows of a chunk: 2,048 x 2,048 inputs are 128 tiles of the product that goes back, about as many as an H100 has multiprocessors.
const CHUNK: usize = 2048;

/// What the head works on.
pub struct Head<'a> {
    pub weight: &'a Weight<'a, Cuda>,
    pub values: &'a Float,
    pub batch: &'a Batch,
    pub hidden: usize,
    pub vocab: usize,
    pub x: &'a Act,
}

impl Cuda {
    pub(super) fn head_cross_entropy(
        &self,
        head: &Head,
        losses: &Float,
        backward: Option<HeadBackward<Cuda>>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let (h, v) = (head.hidden, head.vocab);
        let stride = v.next_multiple_of(ROWS);
        let targets = head.batch.packed.targets.len();
        let trained = matches!(head.weight, Weight::Trained(_));
        let mut scratch = self.scratch();
        let sizes = loss_bytes([h, v, targets], wide(head), trained, backward.is_some());
        let [weight, x, logits, lse, dz, dx, partials] = scratch.take(sizes)?;
        let weight = self.head_weight(head, weight.cast())?;
        let (x, logits, lse, dx) = (
            x.cast::<bf16>(),
            logits.cast::<f32>(),
            lse.cast::<f32>(),
            dx.cast::<bf16>(),
        );
        for first in (0..targets).step_by(CHUNK) {
            let n = CHUNK.min(targets - first);
            elementwise::gather_rows(d, n, h, head.x.ptr(), head.batch.target_rows.at(first), x)?;
            self.logits_of(n, stride, h, x, weight, logits)?;
            let chunk = Chunk {
                rows: n,
                vocab: v,
                logits,
                stride,
                targets: head.batch.target_ids.at(first),
                state: head.batch.state,
            };
            let losses = losses.ptr().at(first);
            let Some(back) = &backward else {
                cross_entropy::loss(d, &chunk, losses, lse)?;
                continue;
            };
            let gradients = Gradient {
                d: dz.cast(),
                stride,
            };
            cross_entropy::loss_and_gradient(d, &chunk, losses, lse, &gradients)?;
            self.input_gradient(&linear::Backward {
                group: Group {
                    rows: n,
                    inputs: h,
                    outputs: [stride, 0, 0],
                    low_at: [NO_LOW; MEMBERS],
                    rank: 0,
                },
                dy: gradients.d,
                weight,
                low: None,
                dx: dx.at(first * h),
            })?;
            if let Weight::Trained(slot) = head.weight {
                let to = back.grads.ptr().at(slot.offset);
                weight_grad::weight_grad(
                    d,
                    gradient(n, v, h),
                    gradients.d,
                    stride,
                    x,
                    h,
                    to,
                    partials.cast(),
                )?;
            }
        }
        let Some(back) = backward else { return Ok(()) };
        let tokens = head.batch.packed.tokens();
        elementwise::scatter_rows(
            d,
            targets,
            tokens,
            h,
            dx,
            head.batch.target_rows,
            back.dx.ptr(),
        )
    }

    pub(super) fn head_scores(&self, head: &Head, to: Ptr<f32>) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let (h, v, n) = (head.hidden, head.vocab, head.batch.packed.targets.len());
        let stride = v.next_multiple_of(ROWS);
        let mut scratch = self.scratch();
        let [weight, x, padded] = scratch.take(score_bytes([h, v, n], wide(head)))?;
        let weight = self.head_weight(head, weight.cast())?;
        let x = x.cast::<bf16>();
        elementwise::gather_rows(d, n, h, head.x.ptr(), head.batch.target_rows, x)?;
        if stride != v {
            self.logits_of(n, stride, h, x, weight, padded.cast())?;
            return d.copy_rows([to, padded.cast()], [v, stride], n, v);
        }
        if head.batch.decoding && n <= FEW {
            return skinny::logits(d, n, h, v, x, weight, to);
        }
        self.logits_of(n, v, h, x, weight, to)
    }

    /// `to = x W^T` in f32.
    fn logits_of(
        &self,
        n: usize,
        v: usize,
        h: usize,
        x: Ptr<bf16>,
        weight: Ptr<bf16>,
        to: Ptr<f32>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let plain = Plain {
            rows: n,
            inputs: h,
            outputs: v,
            x,
            weight,
            y: Product::F32(to),
        };
        if gemm_hopper::supports_plain(d.gpu(), &plain) {
            return gemm_hopper::plain_nt(d, &plain);
        }
        let shape = gemm::Shape { m: n, n: v, k: h };
        gemm::plain_nt(d, shape, x, h, weight, h, Output::F32(to))
    }

    fn head_weight(&self, head: &Head, scratch: Ptr<bf16>) -> Result<Ptr<bf16>, LaunchError> {
        match head.weight {
            Weight::Frozen(matrix) => matrix.in_bf16(&self.0.device, scratch),
            Weight::Trained(slot) => {
                let padding = head.vocab.next_multiple_of(ROWS) * head.hidden - slot.len;
                self.0.device.fill(scratch.at(slot.len), 0, padding)?;
                self.round(head.values, *slot, scratch).map(|()| scratch)
            }
        }
    }
}

/// Whether the head has to be made in bf16.
fn wide(head: &Head) -> bool {
    match head.weight {
        Weight::Frozen(matrix) => !matches!(matrix.stored(), Stored::Bf16(_)),
        Weight::Trained(_) => true,
    }
}

/// Scratch of the losses at `[hidden, vocab, targets]`: the head in bf16 if it lies in another form (`wide`), inputs, logits and their log-sum-exp of a
/// chunk; and to go backward, the gradients of logits and inputs and the partial sums of a trained head's.
pub fn loss_bytes(
    [h, v, targets]: [usize; 3],
    wide: bool,
    trained: bool,
    backward: bool,
) -> [usize; 7] {
    let (stride, rows) = (v.next_multiple_of(ROWS), CHUNK.min(targets));
    let partials = match trained && backward {
        true => weight_grad::scratch_len(gradient(rows, v, h)),
        false => 0,
    };
    let (dz, dx) = if backward {
        (rows * stride, targets * h)
    } else {
        (0, 0)
    };
    [
        wide_bytes(h, v, wide),
        2 * rows * h,
        4 * rows * stride,
        4 * rows,
        2 * dz,
        2 * dx,
        4 * partials,
    ]
}

/// Scratch of the logits at `[hidden, vocab, targets]`: the head as above, inputs, and logits with padded rows if there is padding.
pub fn score_bytes([h, v, targets]: [usize; 3], wide: bool) -> [usize; 3] {
    let stride = v.next_multiple_of(ROWS);
    let padded = if stride == v { 0 } else { 4 * targets * stride };
    [wide_bytes(h, v, wide), 2 * targets * h, padded]
}

/// The head in bf16, its rows padded.
fn wide_bytes(h: usize, v: usize, wide: bool) -> usize {
    if wide {
        2 * v.next_multiple_of(ROWS) * h
    } else {
        0
    }
}
