//! The language-model head: logits at the rows that are asked for, and their cross-entropy, a chunk of rows at a time.
//!
//! Invariant: the logits of a whole batch never exist: a chunk's are overwritten by the next one's.

use super::matrix::Stored;
use super::memory::{Act, Float, Scratch};
use super::{Batch, Cuda};
use crate::backend::{HeadBackward, Weight};
use half::bf16;
use medft_kernels::{LaunchError, Launcher, Ptr, cross_entropy, elementwise, gemm, gemm_hopper, skinny};

/// Rows of a chunk: 1,024 x 151,936 f32 logits are 0.6 GB.
const CHUNK: usize = 1024;

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
        at: usize,
        mut backward: Option<HeadBackward<Cuda>>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let (h, v) = (head.hidden, head.vocab);
        let targets = head.batch.packed.targets.len();
        if let Some(back) = &mut backward {
            d.fill(back.dx.ptr(), 0, head.batch.packed.tokens() * h)?;
        }
        let rows = CHUNK.min(targets);
        let partials = match (&head.weight, &backward) {
            (Weight::Trained(_), Some(_)) => gemm::weight_grad_scratch_len(d.gpu(), rows, v, h),
            _ => 0,
        };
        let mut scratch = self.scratch();
        let sizes = [self.wide_bytes(head), 2 * rows * h, 4 * rows * v, 4 * rows, 2 * rows * h, 4 * partials];
        let [weight, x, logits, lse, dx, partials] = scratch.take(d, sizes)?;
        let weight = self.head_weight(head, weight.cast())?;
        let (x, logits, lse, dx) = (x.cast::<bf16>(), logits.cast::<f32>(), lse.cast::<f32>(), dx.cast::<bf16>());
        for first in (0..targets).step_by(CHUNK) {
            let n = CHUNK.min(targets - first);
            let (chunk_rows, ids) = (head.batch.target_rows.at(first), head.batch.target_ids.at(first));
            elementwise::gather_rows(d, head.x.ptr(), chunk_rows, n, h, x)?;
            self.product(n, v, h, x, weight, logits)?;
            cross_entropy::loss(d, logits, n, v, ids, losses.ptr().at(at + first), lse)?;
            let Some(back) = &backward else { continue };
            // bf16 gradients take the place of the f32 logits.
            let dz = logits.cast::<bf16>();
            cross_entropy::gradient(d, logits, lse, n, v, ids, back.grad_scale, dz)?;
            gemm::plain_nn(d, n, h, v, dz, 2 * v, weight, h, dx, h)?;
            elementwise::scatter_rows(d, dx, chunk_rows, n, h, back.dx.ptr())?;
            if let Weight::Trained(slot) = head.weight {
                let to = back.grads.ptr().at(slot.offset);
                gemm::weight_grad(d, n, v, h, dz, 2 * v, x, h, to, partials.cast())?;
            }
        }
        Ok(())
    }

    pub(super) fn head_scores(&self, head: &Head, to: Ptr<f32>) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let (h, v, n) = (head.hidden, head.vocab, head.batch.packed.targets.len());
        let mut scratch: std::sync::MutexGuard<'_, Scratch> = self.scratch();
        let [weight, x] = scratch.take(d, [self.wide_bytes(head), 2 * n * h])?;
        let weight = self.head_weight(head, weight.cast())?;
        let x = x.cast::<bf16>();
        elementwise::gather_rows(d, head.x.ptr(), head.batch.target_rows, n, h, x)?;
        if head.batch.decoding && n <= skinny::MAX_ROWS {
            return skinny::logits(d, n, v, h, x, weight, to);
        }
        self.product(n, v, h, x, weight, to)
    }

    /// `to = x W^T` in f32.
    fn product(
        &self,
        n: usize,
        v: usize,
        h: usize,
        x: Ptr<bf16>,
        weight: Ptr<bf16>,
        to: Ptr<f32>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        if gemm_hopper::supports_plain(d.gpu(), n, v, h) {
            gemm_hopper::plain_nt_f32(d, n, v, h, x, weight, to)
        } else {
            gemm::plain_nt_f32(d, n, v, h, x, weight, to)
        }
    }

    /// Scratch bytes of the head in bf16; 0 where it lies so already.
    fn wide_bytes(&self, head: &Head) -> usize {
        match head.weight {
            Weight::Frozen(matrix) if matches!(matrix.stored(), Stored::Bf16(_)) => 0,
            _ => 2 * head.vocab * head.hidden,
        }
    }

    fn head_weight(&self, head: &Head, scratch: Ptr<bf16>) -> Result<Ptr<bf16>, LaunchError> {
        match head.weight {
            Weight::Frozen(matrix) => self.matrix_in_bf16(matrix, scratch),
            Weight::Trained(slot) => self.round(head.values, *slot, scratch).map(|()| scratch),
        }
    }
}
