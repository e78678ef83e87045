//! The CPU backend: f32 arithmetic on all cores; the readable reference and a reasonable trainer of small models.
//!
//! Holds the [`Backend`] implementation, which only finds operands and calls the rooms beside it. Invariant: the same inputs give
//! the same bits, whatever the number of threads.

mod attention;
mod dropout;
mod facts;
mod gemm;
mod group;
mod linear;
mod loss;
mod low_rank;
mod matrix;
pub mod sampler;
mod simd;

use super::{
    AdamWStep, Backend, BackendError, Epilogue, Group, HeadBackward, Heads, Need, Packed,
    SampleRow, Sampling, Slot, Vector, Weight,
};
use crate::backend::facts::Passes;
use crate::model::checkpoint::Tensor;
use linear::Source;
use loss::{Chunk, Head};
use low_rank::{part, part_mut};
use medft_dsl::plan::Precision;
use rayon::prelude::*;
use sampler::Sampler;

/// Elements of one task of an elementwise op.
const CHUNK: usize = 1 << 14;

/// Added to the norm that gradients are divided by, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// The CPU, with rayon's global pool of threads.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cpu;

fn source<'a>(weight: &'a Weight<Cpu>, values: &'a [f32]) -> Source<'a> {
    match weight {
        Weight::Frozen(matrix) => Source::Frozen(&matrix.parts()[0]),
        Weight::Trained(slot) => Source::Trained(part(values, *slot)),
    }
}

fn vector<'a>(vector: &'a Vector<Cpu>, values: &'a [f32]) -> &'a [f32] {
    match vector {
        Vector::Frozen(v, slot) => part(v, *slot),
        Vector::Trained(slot) => part(values, *slot),
    }
}

/// Whether every sequence has one new token behind what the cache holds. Chosen by the kind of work, never by the number of rows, so
/// that a row's bits do not depend on its neighbours.
fn decoding(batch: &Packed) -> bool {
    batch.sequences.iter().all(|s| s.len == 1 && s.past > 0)
}

/// Rotates q and k columns to their positions (`sign` 1) or back (-1).
fn rotate(heads: &Heads, batch: &Packed, sign: f64, qkv: &mut [f32]) {
    let (half, width) = (heads.dim / 2, heads.qkv());
    let positions: Vec<usize> = batch
        .sequences
        .iter()
        .flat_map(|s| s.past..s.past + s.len)
        .collect();
    qkv.par_chunks_mut(width).zip(positions).for_each_init(
        || (vec![0.0f32; half], vec![0.0f32; half]),
        |(sin, cos), (row, position)| {
            // Turning back is turning from the negative position.
            simd::sin_cos(sign * position as f64, &heads.inv_freq, sin, cos);
            for head in row[..(heads.queries + heads.keys) * heads.dim].chunks_exact_mut(heads.dim)
            {
                let (first, second) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = b * cos[i] + a * sin[i];
                }
            }
        },
    );
}

impl Backend for Cpu {
    type Act = Vec<f32>;
    type Float = Vec<f32>;
    type Matrix = matrix::Matrix;
    type Loader = ();
    type Batch = Packed;
    type Cache = attention::Cache;
    type Recording = ();
    type Arena = ();

    fn name(&self) -> String {
        let threads = rayon::current_num_threads();
        format!(
            "CPU, {threads} thread{}",
            if threads == 1 { "" } else { "s" }
        )
    }

    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn finish(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn upload(&self, batch: Packed) -> Result<Packed, BackendError> {
        Ok(batch)
    }

    fn rows(&self, batch: &Packed) -> usize {
        batch.tokens()
    }

    fn reserve(&self, _: &Passes) -> Result<(), BackendError> {
        Ok(())
    }

    fn arena_bytes(&self, need: &Need) -> u64 {
        4 * need.acts.iter().chain(&need.floats).sum::<usize>() as u64
    }

    fn arena(&self, _: &'static str, _: &Need) -> Result<(), BackendError> {
        Ok(())
    }

    fn act(&self, (): &mut (), len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn float(&self, (): &mut (), len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn floats(&self, _: &'static str, len: usize) -> Result<Vec<f32>, BackendError> {
        Ok(vec![0.0; len])
    }

    fn write(&self, to: &mut Vec<f32>, offset: usize, from: &[f32]) {
        to[offset..offset + from.len()].copy_from_slice(from);
    }

    fn read(&self, from: &Vec<f32>, slot: Slot) -> Result<Vec<f32>, BackendError> {
        Ok(part(from, slot).to_vec())
    }

    fn matrix(
        &self,
        _loader: &mut (),
        tensors: &[Tensor],
        precision: Precision,
        double_quant: bool,
    ) -> Result<matrix::Matrix, BackendError> {
        matrix::Matrix::load(tensors, precision, double_quant)
    }

    fn matrix_values(&self, matrix: &matrix::Matrix) -> Result<Vec<f32>, BackendError> {
        let mut values = Vec::new();
        for part in matrix.parts() {
            values.extend_from_slice(part.block(0, part.rows(), &mut Vec::new()));
        }
        Ok(values)
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        capacity: usize,
        heads: &Heads,
    ) -> Result<attention::Cache, BackendError> {
        Ok(attention::Cache::new(layers, slots, capacity, heads))
    }

    fn low_columns(&self, rank: usize) -> usize {
        rank
    }

    fn step(
        &self,
        (): &mut (),
        _batch: &Packed,
        cache: Option<&mut Self::Cache>,
        ops: impl FnOnce(Option<&mut Self::Cache>),
    ) {
        ops(cache);
    }

    fn cache_compact(&self, cache: &mut attention::Cache, keep: &[usize]) {
        cache.compact(keep);
    }

    fn embed(
        &self,
        table: &Weight<Self>,
        values: &Vec<f32>,
        batch: &Packed,
        hidden: usize,
        x: &mut Vec<f32>,
    ) {
        let table = source(table, values);
        x.par_chunks_mut(hidden)
            .zip(&batch.ids)
            .for_each(|(x, id)| table.row(*id as usize, hidden, x));
    }

    fn embed_backward(
        &self,
        table: Slot,
        grads: &mut Vec<f32>,
        batch: &Packed,
        hidden: usize,
        dx: &Vec<f32>,
    ) {
        let table = part_mut(grads, table);
        for (id, dx) in batch.ids.iter().zip(dx.chunks_exact(hidden)) {
            let at = *id as usize * hidden;
            simd::add(dx, &mut table[at..at + hidden]);
        }
    }

    fn rmsnorm(
        &self,
        gain: &Vector<Self>,
        values: &Vec<f32>,
        eps: f32,
        rows: usize,
        hidden: usize,
        x: &Vec<f32>,
        y: &mut Vec<f32>,
        rstd: &mut Vec<f32>,
    ) {
        let gain = vector(gain, values);
        y.par_chunks_mut(hidden)
            .zip(x.par_chunks(hidden))
            .zip(rstd.par_iter_mut())
            .take(rows)
            .for_each(|((y, x), rstd)| {
                *rstd = 1.0 / (simd::dot(x, x) / hidden as f32 + eps).sqrt();
                simd::norm_row(x, gain, *rstd, y);
            });
    }

    fn rmsnorm_backward(
        &self,
        gain: &Vector<Self>,
        values: &Vec<f32>,
        grads: &mut Vec<f32>,
        rows: usize,
        hidden: usize,
        x: &Vec<f32>,
        rstd: &Vec<f32>,
        dy: &Vec<f32>,
        dx: &mut Vec<f32>,
    ) {
        if let Vector::Trained(slot) = gain {
            let dgain = part_mut(grads, *slot);
            for ((x, dy), rstd) in x
                .chunks_exact(hidden)
                .zip(dy.chunks_exact(hidden))
                .zip(rstd)
                .take(rows)
            {
                for ((g, x), dy) in dgain.iter_mut().zip(x).zip(dy) {
                    *g += x * rstd * dy;
                }
            }
        }
        let gain = vector(gain, values);
        let inputs = x
            .par_chunks(hidden)
            .zip(rstd.par_iter())
            .zip(dy.par_chunks(hidden));
        dx.par_chunks_mut(hidden)
            .zip(inputs)
            .take(rows)
            .for_each(|(dx, ((x, rstd), dy))| {
                simd::norm_row_backward(x, gain, *rstd, dy, dx);
            });
    }

    fn linear(
        &self,
        group: &Group<Self>,
        values: &Vec<f32>,
        batch: &Packed,
        rows: usize,
        x: &Vec<f32>,
        epilogue: Epilogue<Self>,
        y: &mut Vec<f32>,
        low: &mut Vec<f32>,
    ) {
        let stride = group.outputs();
        group::forward(group, values, batch, rows, x, y, low);
        match epilogue {
            Epilogue::None => {}
            Epilogue::Residual(residual) => self.add(rows, stride, residual, y),
            Epilogue::Rope(heads) => rotate(heads, batch, 1.0, &mut y[..rows * stride]),
            Epilogue::SwiGlu(h) => self.swiglu(rows, stride / 2, y, h),
        }
    }

    fn linear_backward(
        &self,
        group: &Group<Self>,
        values: &Vec<f32>,
        grads: &mut Vec<f32>,
        batch: &Packed,
        rows: usize,
        x: &Vec<f32>,
        low: &Vec<f32>,
        dy: &Vec<f32>,
        dx: Option<&mut Vec<f32>>,
    ) {
        group::backward(group, values, grads, batch, rows, x, low, dy, dx);
    }

    fn attention(
        &self,
        heads: &Heads,
        batch: &Packed,
        qkv: &Vec<f32>,
        out: &mut Vec<f32>,
        lse: &mut Vec<f32>,
    ) {
        attention::forward(heads, batch, qkv, out, lse);
    }

    fn attention_backward(
        &self,
        heads: &Heads,
        batch: &Packed,
        qkv: &Vec<f32>,
        out: &Vec<f32>,
        lse: &Vec<f32>,
        dout: &Vec<f32>,
        dqkv: &mut Vec<f32>,
    ) {
        attention::backward(heads, batch, qkv, out, lse, dout, dqkv);
        rotate(
            heads,
            batch,
            -1.0,
            &mut dqkv[..batch.tokens() * heads.qkv()],
        );
    }

    fn attention_cached(
        &self,
        heads: &Heads,
        batch: &Packed,
        layer: usize,
        cache: &mut attention::Cache,
        qkv: &Vec<f32>,
        out: &mut Vec<f32>,
    ) {
        attention::cached(heads, batch, layer, cache, qkv, out);
    }

    fn swiglu(&self, rows: usize, inner: usize, gate_up: &Vec<f32>, h: &mut Vec<f32>) {
        h.par_chunks_mut(inner)
            .zip(gate_up.par_chunks(2 * inner))
            .take(rows)
            .for_each(|(h, gate_up)| {
                let (gate, up) = gate_up.split_at(inner);
                simd::swiglu(gate, up, h);
            });
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        inner: usize,
        gate_up: &Vec<f32>,
        dh: &Vec<f32>,
        dgate_up: &mut Vec<f32>,
    ) {
        let inputs = gate_up.par_chunks(2 * inner).zip(dh.par_chunks(inner));
        dgate_up
            .par_chunks_mut(2 * inner)
            .zip(inputs)
            .take(rows)
            .for_each(|(d, (gate_up, dh))| {
                let (gate, up) = gate_up.split_at(inner);
                let (dgate, dup) = d.split_at_mut(inner);
                simd::swiglu_backward(gate, up, dh, dgate, dup);
            });
    }

    fn clear(&self, rows: usize, hidden: usize, x: &mut Vec<f32>) {
        x[..rows * hidden].fill(0.0);
    }

    fn add(&self, rows: usize, hidden: usize, dy: &Vec<f32>, dx: &mut Vec<f32>) {
        let n = rows * hidden;
        dx[..n]
            .par_chunks_mut(CHUNK)
            .zip(dy[..n].par_chunks(CHUNK))
            .for_each(|(x, y)| simd::add(y, x));
    }

    fn head_loss(
        &self,
        head: &Weight<Self>,
        values: &Vec<f32>,
        batch: &Packed,
        hidden: usize,
        vocab: usize,
        x: &Vec<f32>,
        losses: &mut Vec<f32>,
        backward: Option<HeadBackward<Self>>,
    ) {
        let h = Head {
            weight: source(head, values),
            hidden,
            vocab,
        };
        let pass = batch.pass.unwrap_or_default();
        let losses = &mut losses[pass.first_target..][..batch.targets.len()];
        let Some(HeadBackward { dx, grads }) = backward else {
            return h.loss(x, &batch.targets, losses, None);
        };
        dx[..batch.tokens() * hidden].fill(0.0);
        let mut take = |chunk: Chunk| {
            let layer = h.layer(chunk.targets.len());
            let mut rows = vec![0.0; chunk.targets.len() * hidden];
            layer.backward_input(chunk.dz, &mut rows);
            for (target, row) in chunk.targets.iter().zip(rows.chunks_exact(hidden)) {
                simd::add(row, &mut dx[target.row * hidden..(target.row + 1) * hidden]);
            }
            if let Weight::Trained(slot) = head {
                layer.backward_weight(chunk.dz, chunk.x, part_mut(grads, *slot));
            }
        };
        h.loss(
            x,
            &batch.targets,
            losses,
            Some((pass.loss_scale, &mut take)),
        );
    }

    fn head_logits(
        &self,
        head: &Weight<Self>,
        values: &Vec<f32>,
        batch: &Packed,
        hidden: usize,
        vocab: usize,
        x: &Vec<f32>,
        logits: &mut Vec<f32>,
        at_row: usize,
    ) {
        let h = Head {
            weight: source(head, values),
            hidden,
            vocab,
        };
        let z = &mut logits[at_row * vocab..(at_row + batch.targets.len()) * vocab];
        let layer = h.layer(batch.targets.len());
        let x = h.gather(x, &batch.targets);
        if decoding(batch) {
            linear::decode(&[layer], &x, z);
        } else {
            layer.forward(&x, z);
        }
    }

    fn sample(
        &self,
        sampling: &Sampling,
        rows: &[SampleRow],
        vocab: usize,
        logits: &mut Vec<f32>,
    ) -> Result<Vec<u32>, BackendError> {
        logits
            .par_chunks_mut(vocab)
            .zip(rows)
            .map_init(
                || Sampler::new(sampling),
                |sampler, (logits, row)| sampler.choose(logits, row.seen, row.stream),
            )
            .map(|token| token.ok_or(BackendError::NoToken { vocab }))
            .collect()
    }

    fn norm(&self, x: &Vec<f32>, out: &mut Vec<f32>) {
        // Chunks in order, each summed in f64: the same bits on any number of threads.
        let parts: Vec<f64> = x
            .par_chunks(CHUNK)
            .map(|c| c.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>())
            .collect();
        out[0] = parts.into_iter().sum::<f64>().sqrt() as f32;
    }

    fn zero(&self, x: &mut Vec<f32>) {
        x.fill(0.0);
    }

    fn adamw(
        &self,
        s: &AdamWStep,
        grads: &Vec<f32>,
        norm: &Vec<f32>,
        values: &mut Vec<f32>,
        first: &mut Vec<f32>,
        second: &mut Vec<f32>,
    ) {
        let norm = f64::from(norm[0]);
        if !norm.is_finite() {
            return;
        }
        let clip = s.max_norm.map_or(1.0, |max| max / (norm + CLIP_EPS));
        let t = s.step as f64;
        let c = simd::AdamW {
            step_size: (s.lr / (1.0 - s.beta1.powf(t))) as f32,
            decay: (1.0 - s.lr * s.weight_decay) as f32,
            first: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            second: (1.0 - s.beta2) as f32,
            root: (1.0 - s.beta2.powf(t)).sqrt() as f32,
            eps: s.eps as f32,
            clip: clip.min(1.0) as f32,
        };
        values
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(grads.par_chunks(CHUNK))
            .for_each(|(((v, m), s), g)| simd::adamw(c, g, v, m, s));
    }
}
