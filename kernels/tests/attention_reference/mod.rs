//! Attention in f64 on the CPU, straight from the formulas, and how far a kernel may be from it.
//!
//! # The bound of an element
//! A kernel makes S = q k^T in f32, P = exp(scale S - lse), rounds P (forward, dv) and dS = P (dP - delta) (dq, dk) to bf16 to multiply them, sums in
//! f32 and rounds the result to bf16 once. With u = 2^-8, half a unit in the last place of bf16 at most, its errors are:
//!
//! 1. **Rounded weights.** out = sum_j p_j v_j gets sum_j e_j v_j with |e_j| <= u p_j. The e_j are independent and of mean 0: that is what rounding to
//!    nearest means, and what truncation breaks. Hoeffding: |sum| <= t sqrt(sum (u p_j v_j)^2) but for a chance of 2 exp(-t^2 / 2), and never more
//!    than sum u p_j |v_j|. With t = [`SURE`] = 8.4, 10^6 elements miss it with a chance of 10^-9. dv, dq, dk: the same with P and dS.
//! 2. **f32 sums** on tensor cores go by sixteen terms, aligned to the largest and cut at about 2^-23 of it: n terms lose (n / 16 + 1) 2^-22 of the sum
//!    of magnitudes ([`LOST`]). S loses it, dP and delta lose it, and the final sums.
//! 3. **P** has the relative error r of its exponent: what S lost, and 2^-22 of the exponent's size; ex2.approx adds 2^-22. A forward pass divides
//!    by sums of such P: 2 max r.
//! 4. **The result's rounding**, u of its size.
//!
//! Errors 2 and 3 are a hundred times smaller than 1 and 4 and are added in the worst case. The gradients are judged against those of the kernel's own
//! `out` and `lse`, whose errors are judged themselves.
//!
//! # The bias of a tensor
//! An element's bound cannot see a systematic error of one u among errors of one u. The projection sum_i error_i y_i can, where y is the tensor
//! with each head's row scaled to length 1: under 1 and 4 it is again a sum of independent terms of mean 0 (e_ij times c_ij = sum_d v_jd y_id, and the
//! results' roundings times y), so Hoeffding bounds it by t sqrt(sum of squares); truncation moves it by 0.72 u of the rows' lengths, more than
//! that from about a hundred rows on.
#![allow(dead_code)]

use crate::gpu::within;
use half::bf16;
use medft_kernels::attention::Heads;

/// Half a unit in the last place of bf16, of the smallest number of a binade.
const U: f64 = 1.0 / 256.0;
/// Deviations that 10^6 sums of bounded independent errors exceed with a chance of 10^-9: sqrt(2 ln(2 10^15)).
const SURE: f64 = 8.4;
/// What f32 arithmetic on tensor cores loses in a step.
const LOST: f64 = 1.0 / 4_194_304.0;

/// Relative loss of an f32 sum of `terms` products.
fn lost(terms: usize) -> f64 {
    (terms as f64 / 16.0 + 1.0) * LOST
}

/// Rounds to bf16 and back.
pub fn rounded(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

/// Sums with what their errors sum to.
#[derive(Clone, Default)]
struct Sums {
    value: Vec<f64>,
    /// Sum of magnitudes, and of squares, of the terms whose weights are rounded.
    size: Vec<f64>,
    squares: Vec<f64>,
    /// f32 errors.
    small: Vec<f64>,
}

impl Sums {
    fn zero(len: usize) -> Self {
        let zero = vec![0.0; len];
        Sums {
            value: zero.clone(),
            size: zero.clone(),
            squares: zero.clone(),
            small: zero,
        }
    }

    /// Row `to` of `dim` columns `+= weight * from`, the weight off by `error` before it is rounded.
    fn add(&mut self, to: usize, weight: f64, error: f64, from: &[f64]) {
        for (i, f) in from.iter().enumerate() {
            let (at, term) = (to * from.len() + i, weight * f);
            self.value[at] += term;
            self.size[at] += term.abs();
            self.squares[at] += term * term;
            self.small[at] += error * f.abs();
        }
    }

    /// The sums as a kernel gives them. `terms`: of each sum, at most.
    fn want(self, terms: usize, dim: usize) -> Want {
        let mut want = Want {
            dim,
            ..Want::default()
        };
        for (i, value) in self.value.into_iter().enumerate() {
            let small = self.small[i] + lost(terms) * self.size[i];
            let weights = U * (SURE * self.squares[i].sqrt()).min(self.size[i]);
            want.small.push(small);
            want.bound.push(small + weights);
            want.value.push(value);
        }
        want
    }
}

/// What a tensor must be and how far off its elements, and all of them together, may be.
#[derive(Clone, Default)]
pub struct Want {
    pub value: Vec<f64>,
    /// Of each element, before the result's rounding.
    bound: Vec<f64>,
    /// The f32 part of `bound`.
    small: Vec<f64>,
    /// Sum of squares of the rounded weights' part of the bias.
    spread: f64,
    /// Columns of a head.
    dim: usize,
}

/// A row scaled to length 1.
fn unit(row: &[f64]) -> Vec<f64> {
    let length = dot(row, row).sqrt();
    row.iter().map(|x| x / length.max(1e-30)).collect()
}

impl Want {
    /// Fails where an element, or the bias, is out of bounds.
    pub fn judge(&self, what: &str, got: &[f64]) {
        within(what, got, &self.value, |i| {
            self.bound[i] + U * (self.value[i].abs() + self.bound[i]) + 1e-30
        });
        let (mut bias, mut spread, mut small, mut size) = (0.0, self.spread, 0.0, 0.0);
        for (at, w) in self.value.chunks_exact(self.dim).enumerate() {
            for (c, (y, w)) in unit(w).iter().zip(w).enumerate() {
                let i = at * self.dim + c;
                bias += (got[i] - w) * y;
                spread += (U * w * y).powi(2);
                small += y.abs() * self.small[i];
                size += w * y;
            }
        }
        let bound = SURE * spread.sqrt() + small + 1e-30;
        assert!(
            bias.abs() <= bound,
            "{what}: biased by {:.2e} of its size, bound {:.2e}: a rounding that is not to nearest?",
            bias / size,
            bound / size
        );
    }

    fn put(&mut self, width: usize, start: usize, column: usize, dim: usize, from: &Want) {
        put(&mut self.value, width, start, column, dim, &from.value);
        put(&mut self.bound, width, start, column, dim, &from.bound);
        put(&mut self.small, width, start, column, dim, &from.small);
        self.spread += from.spread;
    }

    fn zero(rows: usize, dim: usize) -> Want {
        Sums::zero(rows * dim).want(0, dim)
    }

    /// Rotates each head by minus its row's position, in f32.
    fn rotate_back(&mut self, heads: usize, dim: usize, table: &[f32], positions: &[u32]) {
        for (at, position) in (0..self.value.len()).step_by(dim).zip(
            positions
                .iter()
                .flat_map(|p| std::iter::repeat_n(*p as usize, heads)),
        ) {
            for c in at..at + dim / 2 {
                let turn = &table[position * dim + 2 * (c - at)..][..2];
                let (cos, sin) = (f64::from(turn[0]), f64::from(turn[1]));
                let d = c + dim / 2;
                let (a, b) = (self.value[c], self.value[d]);
                (self.value[c], self.value[d]) = (a * cos + b * sin, b * cos - a * sin);
                for errors in [&mut self.bound, &mut self.small] {
                    let (e, f) = (errors[c], errors[d]);
                    let own = LOST * (a.abs() + b.abs());
                    errors[c] = e * cos.abs() + f * sin.abs() + own;
                    errors[d] = f * cos.abs() + e * sin.abs() + own;
                }
            }
        }
    }
}

/// One query head over one sequence: rows of q, k, v, each `[len, dim]`.
pub struct Sequence<'a> {
    pub q: &'a [f64],
    pub k: &'a [f64],
    pub v: &'a [f64],
    /// Position of the first row of q; k and v start at position 0.
    pub past: usize,
    pub dim: usize,
    pub scale: f64,
    pub window: Option<u32>,
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn magnitude(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x * y).abs()).sum()
}

pub fn row(of: &[f64], i: usize, dim: usize) -> &[f64] {
    &of[i * dim..(i + 1) * dim]
}

/// Of one query and one key.
struct Score {
    key: usize,
    score: f64,
    /// Its f32 error.
    lost: f64,
}

impl Sequence<'_> {
    /// First key that row `i` sees, and the scores from there on.
    pub fn scores(&self, i: usize) -> (usize, Vec<f64>) {
        let position = self.past + i;
        let from = self
            .window
            .map_or(0, |w| (position + 1).saturating_sub(w as usize));
        let q = row(self.q, i, self.dim);
        let s = (from..=position)
            .map(|j| self.scale * dot(q, row(self.k, j, self.dim)))
            .collect();
        (from, s)
    }

    fn judged_scores(&self, i: usize) -> Vec<Score> {
        let (from, scores) = self.scores(i);
        let q = row(self.q, i, self.dim);
        let of = |(j, score)| Score {
            key: from + j,
            score,
            lost: lost(self.dim) * self.scale * magnitude(q, row(self.k, from + j, self.dim)),
        };
        scores.into_iter().enumerate().map(of).collect()
    }

    /// out `[len, dim]`, and lse `[len]` with its bounds.
    pub fn forward(&self) -> (Want, Vec<(f64, f64)>) {
        let rows = self.q.len() / self.dim;
        let (mut sums, mut lse, mut spread) =
            (Sums::zero(rows * self.dim), Vec::with_capacity(rows), 0.0);
        for i in 0..rows {
            let scores = self.judged_scores(i);
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, s| a.max(s.score));
            let all: f64 = scores.iter().map(|s| (s.score - top).exp()).sum();
            let log = top + all.ln();
            let worst = scores.iter().fold(0.0f64, |a, s| {
                a.max(s.lost + LOST * (1.0 + (top - s.score) + 2.0 * top.abs()))
            });
            for s in &scores {
                let p = (s.score - log).exp();
                sums.add(i, p, 2.0 * worst * p, row(self.v, s.key, self.dim));
            }
            let out = unit(row(&sums.value, i, self.dim));
            for s in &scores {
                let c = dot(row(self.v, s.key, self.dim), &out);
                spread += (U * (s.score - log).exp() * c).powi(2);
            }
            lse.push((log, worst + lost(scores.len()) + LOST * log.abs()));
        }
        let mut want = sums.want(self.past + rows, self.dim);
        want.spread = spread;
        (want, lse)
    }

    /// P, its error, dS and its error, of row `i` and each key that it sees.
    fn weights(&self, i: usize, dout: &[f64], out: &[f64], lse: &[f64]) -> Vec<(usize, [f64; 4])> {
        let dim = self.dim;
        let (d_out, out) = (row(dout, i, dim), row(out, i, dim));
        let (delta, delta_size) = (dot(d_out, out), magnitude(d_out, out));
        let of = |s: &Score| {
            let v = row(self.v, s.key, dim);
            let p = (s.score - lse[i]).exp();
            let r = s.lost + LOST * (1.0 + s.score.abs() + lse[i].abs());
            let ds = p * (dot(d_out, v) - delta);
            let noise = p * lost(dim) * (magnitude(d_out, v) + delta_size);
            (s.key, [p, r * p, ds, r * ds.abs() + noise])
        };
        self.judged_scores(i).iter().map(of).collect()
    }
}

/// Columns `column .. column + dim` of rows `start .. start + len` of a matrix with `width` columns.
pub fn columns(
    of: &[f64],
    width: usize,
    start: usize,
    len: usize,
    column: usize,
    dim: usize,
) -> Vec<f64> {
    (start..start + len)
        .flat_map(|r| &of[r * width + column..r * width + column + dim])
        .copied()
        .collect()
}

/// The inverse of [`columns`].
pub fn put(to: &mut [f64], width: usize, start: usize, column: usize, dim: usize, from: &[f64]) {
    for (i, from) in from.chunks_exact(dim).enumerate() {
        let at = (start + i) * width + column;
        to[at..at + dim].copy_from_slice(from);
    }
}

/// A packed batch.
pub struct Packed<'a> {
    pub heads: Heads,
    pub lengths: &'a [usize],
    /// `[T, width]`.
    pub qkv: &'a [f64],
    pub scale: f64,
}

impl Packed<'_> {
    /// Calls `job` with each sequence's first row and length.
    fn each(&self, mut job: impl FnMut(usize, usize)) {
        let mut start = 0;
        for &len in self.lengths {
            job(start, len);
            start += len;
        }
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// `head`'s columns of q, k and v in qkv, in units of the head size.
    pub fn places(&self, head: usize) -> [usize; 3] {
        let (h, kv) = (&self.heads, head / self.heads.group());
        [head, h.queries + kv, h.queries + h.keys + kv]
    }

    /// Calls `job` with a head's sequence.
    pub fn with<R>(
        &self,
        head: usize,
        start: usize,
        len: usize,
        job: impl FnOnce(Sequence) -> R,
    ) -> R {
        let (width, dim) = (self.heads.width(), self.heads.dim);
        let [q, k, v] = self
            .places(head)
            .map(|c| columns(self.qkv, width, start, len, c * dim, dim));
        job(Sequence {
            q: &q,
            k: &k,
            v: &v,
            past: 0,
            dim,
            scale: self.scale,
            window: self.heads.window,
        })
    }

    /// out `[T, queries dim]`; lse `[queries, T]` with bounds.
    pub fn forward(&self) -> (Want, Vec<(f64, f64)>) {
        let (tokens, dim, wide) = (
            self.tokens(),
            self.heads.dim,
            self.heads.queries * self.heads.dim,
        );
        let mut out = Want::zero(tokens * self.heads.queries, dim);
        let mut lse = vec![(0.0, 0.0); self.heads.queries * tokens];
        self.each(|start, len| {
            for head in 0..self.heads.queries {
                let (o, l) = self.with(head, start, len, |s| s.forward());
                out.put(wide, start, head * dim, dim, &o);
                lse[head * tokens + start..head * tokens + start + len].copy_from_slice(&l);
            }
        });
        (out, lse)
    }

    /// dq, dk, dv, `[T, heads dim]` each, from a kernel's `out` and `lse`; dq and dk rotated back by `rope`: a table `[positions, dim / 2, 2]` and
    /// each row's position.
    pub fn backward(
        &self,
        dout: &[f64],
        out: &[f64],
        lse: &[f64],
        rope: Option<(&[f32], &[u32])>,
    ) -> [Want; 3] {
        let (h, tokens) = (&self.heads, self.tokens());
        let dim = h.dim;
        let mut wants = [h.queries, h.keys, h.keys].map(|heads| Want::zero(tokens * heads, dim));
        self.each(|start, len| {
            for kv in 0..h.keys {
                let group = kv * h.group()..(kv + 1) * h.group();
                let [dqs, dk, dv] = self.gradients(start, len, group.clone(), dout, out, lse);
                for (head, dq) in group.zip(&dqs) {
                    wants[0].put(h.queries * dim, start, head * dim, dim, dq);
                }
                wants[1].put(h.keys * dim, start, kv * dim, dim, &dk[0]);
                wants[2].put(h.keys * dim, start, kv * dim, dim, &dv[0]);
            }
        });
        if let Some((table, positions)) = rope {
            for (want, heads) in wants.iter_mut().zip([h.queries, h.keys]) {
                want.rotate_back(heads, dim, table, positions);
            }
        }
        wants
    }

    /// Of one sequence and one group: dq of each head, dk, dv.
    fn gradients(
        &self,
        start: usize,
        len: usize,
        group: std::ops::Range<usize>,
        dout: &[f64],
        out: &[f64],
        lse: &[f64],
    ) -> [Vec<Want>; 3] {
        let (dim, wide) = (self.heads.dim, self.heads.queries * self.heads.dim);
        let (mut dk, mut dv) = (Sums::zero(len * dim), Sums::zero(len * dim));
        let mut heads = Vec::new();
        for head in group.clone() {
            let rows = |of| columns(of, wide, start, len, head * dim, dim);
            let (dout, out) = (rows(dout), rows(out));
            let lse = &lse[head * self.tokens() + start..][..len];
            self.with(head, start, len, |s| {
                let mut dq = Sums::zero(len * dim);
                let weights: Vec<_> = (0..len).map(|i| s.weights(i, &dout, &out, lse)).collect();
                for (i, row_weights) in weights.iter().enumerate() {
                    for &(j, [p, p_error, ds, ds_error]) in row_weights {
                        let (ds, ds_error) = (s.scale * ds, s.scale * ds_error);
                        dv.add(j, p, p_error, row(&dout, i, dim));
                        dk.add(j, ds, ds_error, row(s.q, i, dim));
                        dq.add(i, ds, ds_error, row(s.k, j, dim));
                    }
                }
                heads.push((head, dout, weights, dq.want(len, dim)));
            });
        }
        let terms = len * group.len();
        let (mut dk, mut dv) = (dk.want(terms, dim), dv.want(terms, dim));
        let units = |of: &Want| of.value.chunks_exact(dim).map(unit).collect::<Vec<_>>();
        let (k_units, v_units) = (units(&dk), units(&dv));
        for (head, dout, weights, dq) in &mut heads {
            self.with(*head, start, len, |s| {
                for (i, (row_weights, q_unit)) in weights.iter().zip(units(dq)).enumerate() {
                    for &(j, [p, _, ds, _]) in row_weights {
                        let ds = s.scale * ds;
                        dv.spread += (U * p * dot(row(dout, i, dim), &v_units[j])).powi(2);
                        dk.spread += (U * ds * dot(row(s.q, i, dim), &k_units[j])).powi(2);
                        dq.spread += (U * ds * dot(row(s.k, j, dim), &q_unit)).powi(2);
                    }
                }
            });
        }
        let dqs = heads.into_iter().map(|(_, _, _, dq)| dq).collect();
        [dqs, vec![dk], vec![dv]]
    }
}
