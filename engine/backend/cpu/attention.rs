//! Causal grouped-query attention inside each sequence: forward, backward, and over the KV cache.
//!
//! Holds blocks of queries against all their keys. Invariant: a task owns its output rows and columns alone, and sums over keys run in
//! ascending order, so results depend on neither the number of threads nor the other sequences of the batch.

use super::gemm::{View, gemm_on};
use super::simd;
use crate::backend::{Heads, Packed, Sequence};
use rayon::prelude::*;

/// Queries of one block: the scores `[64, keys]` of a note of 2,000 tokens fit in L2.
const BLOCK: usize = 64;

/// A product on the calling thread: attention divides its work by heads and sequences instead.
fn product(
    shape: [usize; 3],
    alpha: f32,
    a: View,
    b: View,
    beta: f32,
    c: &mut [f32],
    stride: usize,
) {
    gemm_on(1, shape, alpha, a, b, beta, c, stride);
}

/// First key that query `position` sees.
fn first_key(heads: &Heads, position: usize) -> usize {
    heads.window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Queries `[count, dim]` against keys and values `0..=past + i`; writes out `[count, dim]` and each row's log-sum-exp.
struct Block<'a> {
    heads: &'a Heads,
    /// Position of the first query.
    position: usize,
    count: usize,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
}

impl Block<'_> {
    /// Scores to probabilities; returns `(first key, number of keys)` of the block.
    fn probabilities(&self, scores: &mut Vec<f32>, lse: &mut [f32], known: bool) -> (usize, usize) {
        let scale = 1.0 / (self.heads.dim as f32).sqrt();
        let from = first_key(self.heads, self.position);
        let keys = self.position + self.count - from;
        scores.resize(self.count * keys, 0.0);
        let k = self.k.skip_rows(from);
        product(
            [self.count, self.heads.dim, keys],
            1.0,
            self.q,
            k.t(),
            0.0,
            scores,
            keys,
        );
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let position = self.position + i;
            let (low, high) = (first_key(self.heads, position) - from, position + 1 - from);
            row[..low].fill(0.0);
            row[high..].fill(0.0);
            let seen = &mut row[low..high];
            if known {
                simd::exp_sum(seen, scale, lse[i]);
            } else {
                let top = simd::max(seen) * scale;
                let sum = simd::exp_sum(seen, scale, top);
                simd::scale(1.0 / sum, seen);
                lse[i] = top + sum.ln();
            }
        }
        (from, keys)
    }

    fn forward(&self, scores: &mut Vec<f32>, out: &mut [f32], lse: &mut [f32]) {
        let (from, keys) = self.probabilities(scores, lse, false);
        let v = self.v.skip_rows(from);
        product(
            [self.count, keys, self.heads.dim],
            1.0,
            View::rows(scores, keys),
            v,
            0.0,
            out,
            self.heads.dim,
        );
    }
}

/// out `[tokens, queries * dim]`, lse `[queries, tokens]`.
pub fn forward(heads: &Heads, batch: &Packed, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let (dim, width, tokens) = (heads.dim, heads.qkv(), batch.tokens());
    let tasks: Vec<(usize, Sequence, usize)> = (0..heads.queries)
        .flat_map(|h| batch.sequences.iter().map(move |s| (h, *s)))
        .flat_map(|(h, s)| (0..s.len).step_by(BLOCK).map(move |at| (h, s, at)))
        .collect();
    let group = heads.queries / heads.keys;
    let done: Vec<(Vec<f32>, Vec<f32>)> = tasks
        .par_iter()
        .map_init(Vec::new, |scores, (h, s, at)| {
            let count = BLOCK.min(s.len - at);
            let column = |c: usize, row: usize| View::rows(&qkv[row * width + c..], width);
            let kv = h / group;
            let block = Block {
                heads,
                position: *at,
                count,
                q: column(h * dim, s.start + at),
                k: column((heads.queries + kv) * dim, s.start),
                v: column((heads.queries + heads.keys + kv) * dim, s.start),
            };
            let (mut o, mut l) = (vec![0.0; count * dim], vec![0.0; count]);
            block.forward(scores, &mut o, &mut l);
            (o, l)
        })
        .collect();
    for ((h, s, at), (o, l)) in tasks.iter().zip(done) {
        let row = s.start + at;
        lse[h * tokens + row..h * tokens + row + l.len()].copy_from_slice(&l);
        scatter(&o, dim, out, heads.queries * dim, row, h * dim);
    }
}

/// Copies `[rows, dim]` into rows of `stride` at `(row, column)`.
fn scatter(from: &[f32], dim: usize, to: &mut [f32], stride: usize, row: usize, column: usize) {
    for (i, from) in from.chunks_exact(dim).enumerate() {
        let at = (row + i) * stride + column;
        to[at..at + dim].copy_from_slice(from);
    }
}

/// Gradients of one key head and its query heads in one sequence, `[len, dim]` each.
struct Gradients {
    dq: Vec<Vec<f32>>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// dqkv `=`, before the inverse rotation.
pub fn backward(
    heads: &Heads,
    batch: &Packed,
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
) {
    let width = heads.qkv();
    let tasks: Vec<(Sequence, usize)> = batch
        .sequences
        .iter()
        .flat_map(|s| (0..heads.keys).map(move |kv| (*s, kv)))
        .collect();
    let done: Vec<Gradients> = tasks
        .par_iter()
        .map(|(s, kv)| backward_head(heads, batch.tokens(), *s, *kv, qkv, out, lse, dout))
        .collect();
    let (dim, group) = (heads.dim, heads.queries / heads.keys);
    for ((s, kv), g) in tasks.iter().zip(done) {
        for (i, dq) in g.dq.iter().enumerate() {
            scatter(dq, dim, dqkv, width, s.start, (kv * group + i) * dim);
        }
        scatter(&g.dk, dim, dqkv, width, s.start, (heads.queries + kv) * dim);
        scatter(
            &g.dv,
            dim,
            dqkv,
            width,
            s.start,
            (heads.queries + heads.keys + kv) * dim,
        );
    }
}

fn backward_head(
    heads: &Heads,
    tokens: usize,
    s: Sequence,
    kv: usize,
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
) -> Gradients {
    let (dim, width, stride) = (heads.dim, heads.qkv(), heads.queries * heads.dim);
    let group = heads.queries / heads.keys;
    let scale = 1.0 / (dim as f32).sqrt();
    let column = |c: usize, row: usize| View::rows(&qkv[row * width + c..], width);
    let k = column((heads.queries + kv) * dim, s.start);
    let v = column((heads.queries + heads.keys + kv) * dim, s.start);
    let mut g = Gradients {
        dq: vec![vec![0.0; s.len * dim]; group],
        dk: vec![0.0; s.len * dim],
        dv: vec![0.0; s.len * dim],
    };
    let (mut p, mut dp) = (Vec::new(), Vec::new());
    for i in 0..group {
        let h = kv * group + i;
        for at in (0..s.len).step_by(BLOCK) {
            let (count, row) = (BLOCK.min(s.len - at), s.start + at);
            let q = column(h * dim, row);
            let block = Block {
                heads,
                position: at,
                count,
                q,
                k,
                v,
            };
            let mut l = lse[h * tokens + row..h * tokens + row + count].to_vec();
            let (from, keys) = block.probabilities(&mut p, &mut l, true);
            let d_out = View::rows(&dout[row * stride + h * dim..], stride);
            dp.resize(count * keys, 0.0);
            product(
                [count, dim, keys],
                1.0,
                d_out,
                v.skip_rows(from).t(),
                0.0,
                &mut dp,
                keys,
            );
            let probabilities = View::rows(&p, keys);
            product(
                [keys, count, dim],
                1.0,
                probabilities.t(),
                d_out,
                1.0,
                &mut g.dv[from * dim..],
                dim,
            );
            for j in 0..count {
                let at = (row + j) * stride + h * dim;
                let d = simd::dot(&dout[at..at + dim], &out[at..at + dim]);
                let range = j * keys..(j + 1) * keys;
                simd::softmax_backward(&p[range.clone()], d, scale, &mut dp[range]);
            }
            let ds = View::rows(&dp, keys);
            product(
                [count, keys, dim],
                1.0,
                ds,
                k.skip_rows(from),
                0.0,
                &mut g.dq[i][at * dim..],
                dim,
            );
            product(
                [keys, count, dim],
                1.0,
                ds.t(),
                q,
                1.0,
                &mut g.dk[from * dim..],
                dim,
            );
        }
    }
    g
}

/// Keys and values of all layers: for each layer and slot, `[keys, capacity, dim]` of each.
pub struct Cache {
    layers: Vec<Vec<Lane>>,
    capacity: usize,
}

struct Lane {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    /// Room for `slots` sequences of `capacity` tokens.
    pub fn new(layers: usize, slots: usize, capacity: usize, heads: &Heads) -> Self {
        let lane = || Lane {
            k: vec![0.0; heads.keys * capacity * heads.dim],
            v: vec![0.0; heads.keys * capacity * heads.dim],
        };
        Cache {
            layers: (0..layers)
                .map(|_| (0..slots).map(|_| lane()).collect())
                .collect(),
            capacity,
        }
    }

    /// Sequence `keep[i]` moves to slot `i`; the others are freed.
    pub fn compact(&mut self, keep: &[usize]) {
        for lanes in &mut self.layers {
            for (to, from) in keep.iter().enumerate() {
                lanes.swap(to, *from);
            }
            lanes.truncate(keep.len());
        }
    }
}

/// Stores the batch's keys and values behind each sequence's past and attends to all of them.
pub fn cached(
    heads: &Heads,
    batch: &Packed,
    layer: usize,
    cache: &mut Cache,
    qkv: &[f32],
    out: &mut [f32],
) {
    let (dim, width, capacity) = (heads.dim, heads.qkv(), cache.capacity);
    let lanes = &mut cache.layers[layer];
    for s in &batch.sequences {
        let lane = &mut lanes[s.slot];
        for kv in 0..heads.keys {
            for i in 0..s.len {
                let to = (kv * capacity + s.past + i) * dim;
                let k = (s.start + i) * width + (heads.queries + kv) * dim;
                let v = k + heads.keys * dim;
                lane.k[to..to + dim].copy_from_slice(&qkv[k..k + dim]);
                lane.v[to..to + dim].copy_from_slice(&qkv[v..v + dim]);
            }
        }
    }
    let lanes = &*lanes;
    let group = heads.queries / heads.keys;
    let tasks: Vec<(usize, Sequence, usize)> = batch
        .sequences
        .iter()
        .flat_map(|s| (0..heads.queries).map(move |h| (h, *s)))
        .flat_map(|(h, s)| (0..s.len).step_by(BLOCK).map(move |at| (h, s, at)))
        .collect();
    let done: Vec<Vec<f32>> = tasks
        .par_iter()
        .map_init(Vec::new, |scores, (h, s, at)| {
            let (count, position) = (BLOCK.min(s.len - at), s.past + at);
            let base = h / group * capacity * dim;
            let (k, v) = (&lanes[s.slot].k[base..], &lanes[s.slot].v[base..]);
            let at = (s.start + at) * width + h * dim;
            let mut o = vec![0.0; count * dim];
            if count == 1 {
                one_query(heads, position, &qkv[at..at + dim], k, v, scores, &mut o);
            } else {
                let (k, v) = (View::rows(k, dim), View::rows(v, dim));
                let block = Block {
                    heads,
                    position,
                    count,
                    q: View::rows(&qkv[at..], width),
                    k,
                    v,
                };
                block.forward(scores, &mut o, &mut vec![0.0; count]);
            }
            o
        })
        .collect();
    for ((h, s, at), o) in tasks.iter().zip(done) {
        scatter(&o, dim, out, heads.queries * dim, s.start + at, h * dim);
    }
}

/// The decoding step: bound by reading keys and values, so plain dot products.
fn one_query(
    heads: &Heads,
    position: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (dim, from) = (heads.dim, first_key(heads, position));
    let scale = 1.0 / (dim as f32).sqrt();
    scores.clear();
    scores.extend(
        k[from * dim..(position + 1) * dim]
            .chunks_exact(dim)
            .map(|k| simd::dot(q, k)),
    );
    let top = simd::max(scores) * scale;
    let sum = simd::exp_sum(scores, scale, top);
    for (p, v) in scores.iter().zip(v[from * dim..].chunks_exact(dim)) {
        simd::axpy(p / sum, v, out);
    }
}
