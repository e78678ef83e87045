//! Attention in f64 on the CPU, straight from the formulas: exact, or rounding where the kernels round.
#![allow(dead_code)]

use half::bf16;
use medft_kernels::attention::Heads;

/// Rounds to bf16 and back.
pub fn rounded(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
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

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn axpy(to: &mut [f64], factor: f64, from: &[f64]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += factor * f;
    }
}

fn row(of: &[f64], i: usize, dim: usize) -> &[f64] {
    &of[i * dim..(i + 1) * dim]
}

impl Sequence<'_> {
    /// First key and scores of query row `i`.
    fn scores(&self, i: usize) -> (usize, Vec<f64>) {
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

    /// out `[len, dim]`, lse `[len]`; with `round`, the weights are rounded to bf16 before they are used, and so is the result.
    pub fn forward(&self, round: bool) -> (Vec<f64>, Vec<f64>) {
        let rows = self.q.len() / self.dim;
        let (mut out, mut lse) = (vec![0.0; rows * self.dim], vec![0.0; rows]);
        for i in 0..rows {
            let (from, s) = self.scores(i);
            let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = s.iter().map(|s| (s - top).exp()).sum();
            let o = &mut out[i * self.dim..(i + 1) * self.dim];
            for (j, s) in s.iter().enumerate() {
                let p = (s - top).exp();
                axpy(
                    o,
                    if round { rounded(p) } else { p },
                    row(self.v, from + j, self.dim),
                );
            }
            for o in o {
                *o /= sum;
                if round {
                    *o = rounded(*o);
                }
            }
            lse[i] = top + sum.ln();
        }
        (out, lse)
    }

    /// Adds to dq, dk, dv of this head; with `round`, P and dS are rounded and the row sums use the output of a rounding [`Sequence::forward`].
    pub fn backward(
        &self,
        dout: &[f64],
        round: bool,
        dq: &mut [f64],
        dk: &mut [f64],
        dv: &mut [f64],
    ) {
        let dim = self.dim;
        let (exact, lse) = self.forward(false);
        let out = if round { self.forward(true).0 } else { exact };
        for i in 0..self.q.len() / dim {
            let (from, s) = self.scores(i);
            let d_out = row(dout, i, dim);
            let delta = dot(d_out, row(&out, i, dim));
            for (j, s) in s.iter().enumerate() {
                let j = from + j;
                let p = (s - lse[i]).exp();
                let ds = p * (dot(d_out, row(self.v, j, dim)) - delta);
                let (p, ds) = if round {
                    (rounded(p), rounded(ds))
                } else {
                    (p, ds)
                };
                axpy(&mut dv[j * dim..(j + 1) * dim], p, d_out);
                axpy(
                    &mut dk[j * dim..(j + 1) * dim],
                    ds * self.scale,
                    row(self.q, i, dim),
                );
                axpy(
                    &mut dq[i * dim..(i + 1) * dim],
                    ds * self.scale,
                    row(self.k, j, dim),
                );
            }
        }
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
        .flat_map(|r| {
            of[r * width + column..r * width + column + dim]
                .iter()
                .copied()
        })
        .collect()
}

/// The inverse of [`columns`].
pub fn put(to: &mut [f64], width: usize, start: usize, column: usize, dim: usize, from: &[f64]) {
    for (i, from) in from.chunks_exact(dim).enumerate() {
        let at = (start + i) * width + column;
        to[at..at + dim].copy_from_slice(from);
    }
}

/// A packed batch: out `[T, queries dim]`, lse `[queries, T]`.
pub fn forward(
    heads: &Heads,
    lengths: &[usize],
    qkv: &[f64],
    scale: f64,
    round: bool,
) -> (Vec<f64>, Vec<f64>) {
    let tokens: usize = lengths.iter().sum();
    let (width, dim) = (heads.width(), heads.dim);
    let mut out = vec![0.0; tokens * heads.queries * dim];
    let mut lse = vec![0.0; heads.queries * tokens];
    each(heads, lengths, |head, start, len| {
        let kv = head / heads.group();
        let part = |c: usize| columns(qkv, width, start, len, c * dim, dim);
        let (q, k, v) = (
            part(head),
            part(heads.queries + kv),
            part(heads.queries + heads.keys + kv),
        );
        let s = Sequence {
            q: &q,
            k: &k,
            v: &v,
            past: 0,
            dim,
            scale,
            window: heads.window,
        };
        let (o, l) = s.forward(round);
        put(&mut out, heads.queries * dim, start, head * dim, dim, &o);
        lse[head * tokens + start..head * tokens + start + len].copy_from_slice(&l);
    });
    (out, lse)
}

/// A packed batch: dqkv before the inverse rotation.
pub fn backward(
    heads: &Heads,
    lengths: &[usize],
    qkv: &[f64],
    dout: &[f64],
    scale: f64,
    round: bool,
) -> Vec<f64> {
    let (width, dim) = (heads.width(), heads.dim);
    let mut dqkv = vec![0.0; qkv.len()];
    each(heads, lengths, |head, start, len| {
        let kv = head / heads.group();
        let at = [head, heads.queries + kv, heads.queries + heads.keys + kv];
        let [q, k, v] = at.map(|c| columns(qkv, width, start, len, c * dim, dim));
        let [mut dq, mut dk, mut dv] = at.map(|c| columns(&dqkv, width, start, len, c * dim, dim));
        let s = Sequence {
            q: &q,
            k: &k,
            v: &v,
            past: 0,
            dim,
            scale,
            window: heads.window,
        };
        let d = columns(dout, heads.queries * dim, start, len, head * dim, dim);
        s.backward(&d, round, &mut dq, &mut dk, &mut dv);
        for (c, d) in at.into_iter().zip([dq, dk, dv]) {
            put(&mut dqkv, width, start, c * dim, dim, &d);
        }
    });
    dqkv
}

fn each(heads: &Heads, lengths: &[usize], mut job: impl FnMut(usize, usize, usize)) {
    let mut start = 0;
    for &len in lengths {
        for head in 0..heads.queries {
            job(head, start, len);
        }
        start += len;
    }
}

/// Rotates the q and k columns back by their positions; table `[positions, dim / 2, 2]`.
pub fn rotate_back(heads: &Heads, table: &[f32], positions: &[u32], dqkv: &mut [f64]) {
    let (dim, half) = (heads.dim, heads.dim / 2);
    for (row, position) in dqkv.chunks_exact_mut(heads.width()).zip(positions) {
        for head in row.chunks_exact_mut(dim).take(heads.queries + heads.keys) {
            for c in 0..half {
                let at = *position as usize * dim + 2 * c;
                let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
                let (a, b) = (head[c], head[c + half]);
                head[c] = a * cos + b * sin;
                head[c + half] = b * cos - a * sin;
            }
        }
    }
}
