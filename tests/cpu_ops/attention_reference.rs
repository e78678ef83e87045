//! Causal grouped-query attention, straight from the formulas, one query at a time; RoPE as a rotation of pairs.
//!
//! The backward pass is proven against central differences of the forward pass.

use crate::near::{Near, ONE, exact};
use medft_engine::backend::{Heads, Sequence};

/// `1 / sqrt(dim)`, rounded twice.
fn scale(heads: &Heads) -> Near {
    Near::real(1.0 / (heads.dim as f64).sqrt())
        .rounded()
        .rounded()
}

/// Rotates queries and keys `[tokens, qkv]` to their positions, or back with `sign` -1.
pub fn rotate(heads: &Heads, sequences: &[Sequence], sign: f64, qkv: &mut [Near]) {
    let half = heads.dim / 2;
    for s in sequences {
        for i in 0..s.len {
            for head in 0..heads.queries + heads.keys {
                let at = (s.start + i) * heads.qkv() + head * heads.dim;
                for pair in 0..half {
                    let angle = (s.past + i) as f64 * heads.inv_freq[pair];
                    let sin = Near::real(sign * angle.sin()).rounded();
                    let cos = Near::real(angle.cos()).rounded();
                    let (a, b) = (qkv[at + pair], qkv[at + half + pair]);
                    qkv[at + pair] = a * cos - b * sin;
                    qkv[at + half + pair] = b * cos + a * sin;
                }
            }
        }
    }
}

/// The positions that query `i` of a sequence sees.
fn seen(heads: &Heads, i: usize) -> std::ops::RangeInclusive<usize> {
    heads.window.map_or(0, |w| (i + 1).saturating_sub(w))..=i
}

/// A sequence's rows of qkv.
struct Rows<'a> {
    heads: &'a Heads,
    qkv: &'a [Near],
    start: usize,
}

impl<'a> Rows<'a> {
    fn at(&self, i: usize, head: usize) -> &'a [Near] {
        let at = (self.start + i) * self.heads.qkv() + head * self.heads.dim;
        &self.qkv[at..at + self.heads.dim]
    }
    fn q(&self, i: usize, h: usize) -> &'a [Near] {
        self.at(i, h)
    }
    fn k(&self, j: usize, h: usize) -> &'a [Near] {
        self.at(j, self.heads.queries + self.kv(h))
    }
    fn v(&self, j: usize, h: usize) -> &'a [Near] {
        self.at(j, self.heads.queries + self.heads.keys + self.kv(h))
    }
    fn kv(&self, h: usize) -> usize {
        h / (self.heads.queries / self.heads.keys)
    }
}

fn dot(a: &[Near], b: &[Near]) -> Near {
    Near::dot(a.iter().copied().zip(b.iter().copied()))
}

/// `(out [tokens, queries * dim], lse [queries, tokens])`.
pub fn forward(heads: &Heads, sequences: &[Sequence], qkv: &[Near]) -> (Vec<Near>, Vec<Near>) {
    let tokens: usize = sequences.iter().map(|s| s.len).sum();
    let (dim, scale) = (heads.dim, scale(heads));
    let mut out = vec![Near::real(0.0); tokens * heads.queries * dim];
    let mut lse = vec![Near::real(0.0); tokens * heads.queries];
    for s in sequences {
        let rows = Rows {
            heads,
            qkv,
            start: s.start,
        };
        for h in 0..heads.queries {
            for i in 0..s.len {
                let scores: Vec<Near> = seen(heads, i)
                    .map(|j| dot(rows.q(i, h), rows.k(j, h)) * scale)
                    .collect();
                // The shift cancels, so it is exact.
                let top = scores
                    .iter()
                    .fold(f64::NEG_INFINITY, |top, s| top.max(s.value));
                let top = Near::real(top);
                let e: Vec<Near> = scores.iter().map(|s| (*s - top).exp()).collect();
                let sum = Near::dot(e.iter().map(|e| (*e, ONE)));
                // One rounding of the shift itself stays in the log-sum-exp.
                lse[h * tokens + s.start + i] = top.rounded() + sum.ln();
                for c in 0..dim {
                    let terms = seen(heads, i)
                        .zip(&e)
                        .map(|(j, e)| (*e * (ONE / sum), rows.v(j, h)[c]));
                    out[((s.start + i) * heads.queries + h) * dim + c] = Near::dot(terms);
                }
            }
        }
    }
    (out, lse)
}

/// `dqkv`, the inverse rotation included, from what the forward pass left.
pub fn backward(
    heads: &Heads,
    sequences: &[Sequence],
    qkv: &[Near],
    out: &[Near],
    lse: &[Near],
    dout: &[Near],
) -> Vec<Near> {
    let tokens: usize = sequences.iter().map(|s| s.len).sum();
    let (dim, width, scale) = (heads.dim, heads.qkv(), scale(heads));
    let (group, zero) = (heads.queries / heads.keys, Near::real(0.0));
    let mut dqkv = vec![zero; tokens * width];
    for s in sequences {
        let rows = Rows {
            heads,
            qkv,
            start: s.start,
        };
        let of = |buffer: &'_ [Near], i: usize, h: usize| {
            let at = ((s.start + i) * heads.queries + h) * dim;
            buffer[at..at + dim].to_vec()
        };
        // Probabilities and gradients of scores, `[queries, len, len]`; zero where nothing is seen.
        let mut p = vec![zero; heads.queries * s.len * s.len];
        let mut ds = p.clone();
        for h in 0..heads.queries {
            for i in 0..s.len {
                let d_out = of(dout, i, h);
                let d = dot(&d_out, &of(out, i, h));
                for j in seen(heads, i) {
                    let at = (h * s.len + i) * s.len + j;
                    let score = dot(rows.q(i, h), rows.k(j, h)) * scale;
                    p[at] = (score - lse[h * tokens + s.start + i]).exp();
                    ds[at] = p[at] * (dot(&d_out, rows.v(j, h)) - d) * scale;
                }
            }
        }
        for i in 0..s.len {
            let at = (s.start + i) * width;
            for c in 0..dim {
                for h in 0..heads.queries {
                    let terms = seen(heads, i).map(|j| {
                        let ds = ds[(h * s.len + i) * s.len + j];
                        (ds, rows.k(j, h)[c])
                    });
                    dqkv[at + h * dim + c] = Near::dot(terms);
                }
                // Of key i: all queries of the group that see it.
                for kv in 0..heads.keys {
                    let queries = || {
                        (kv * group..(kv + 1) * group)
                            .flat_map(|h| (i..s.len).map(move |q| (h, q)))
                            .filter(|(_, q)| seen(heads, *q).contains(&i))
                    };
                    let of_key = |m: &[Near], h: usize, q: usize| m[(h * s.len + q) * s.len + i];
                    let dk = queries().map(|(h, q)| (of_key(&ds, h, q), rows.q(q, h)[c]));
                    dqkv[at + (heads.queries + kv) * dim + c] = Near::dot(dk);
                    let column = |h, q| dout[((s.start + q) * heads.queries + h) * dim + c];
                    let dv = queries().map(|(h, q)| (of_key(&p, h, q), column(h, q)));
                    dqkv[at + (heads.queries + heads.keys + kv) * dim + c] = Near::dot(dv);
                }
            }
        }
    }
    rotate(heads, sequences, -1.0, &mut dqkv);
    dqkv
}

/// Rotation, attention and a weighted sum of its output, of a qkv before rotation.
fn objective(heads: &Heads, sequences: &[Sequence], raw: &[f64], weights: &[Near]) -> f64 {
    let mut qkv: Vec<Near> = raw.iter().map(|v| Near::real(*v)).collect();
    rotate(heads, sequences, 1.0, &mut qkv);
    let (out, _) = forward(heads, sequences, &qkv);
    out.iter()
        .zip(weights)
        .map(|(o, w)| o.value * w.value)
        .sum()
}

#[test]
fn the_backward_reference_is_the_forward_references_derivative() {
    let mut draw = crate::draw::Draw::new(3);
    for (queries, keys, window) in [(4, 2, None), (3, 1, Some(3)), (2, 2, Some(1))] {
        let heads = Heads {
            queries,
            keys,
            dim: 4,
            window,
            inv_freq: vec![1.0, 0.3],
        };
        let batch = crate::draw::pack(&mut draw, &[5, 1, 4], 7);
        let sequences = &batch.sequences;
        let n = batch.tokens() * heads.qkv();
        let raw: Vec<f64> = draw.values(n, 1.0).iter().map(|v| f64::from(*v)).collect();
        let weights = exact(&draw.values(batch.tokens() * queries * 4, 1.0));

        let mut qkv: Vec<Near> = raw.iter().map(|v| Near::real(*v)).collect();
        rotate(&heads, sequences, 1.0, &mut qkv);
        let (out, lse) = forward(&heads, sequences, &qkv);
        let gradient = backward(&heads, sequences, &qkv, &out, &lse, &weights);
        // Central differences in f64: truncation h^2 / 6, rounding 1e-16 / h, so about 1e-10 at h = 1e-5.
        let h = 1e-5;
        for (i, g) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = raw.clone();
                moved[i] += step;
                objective(&heads, sequences, &moved, &weights)
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!(
                (slope - g.value).abs() < 1e-8,
                "element {i}: slope {slope}, gradient {}",
                g.value
            );
        }
    }
}
