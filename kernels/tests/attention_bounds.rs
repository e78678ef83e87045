//! The bounds of attention's tests, tested without a GPU: a kernel played in f64 that rounds where it must is within them; one that rounds
//! otherwise, or forgets a factor, is not.
#![allow(clippy::unwrap_used)]

mod attention_reference;
mod gpu;

use attention_reference::{Packed, columns, dot, put, rounded, row};
use gpu::{Random, f64s};
use half::bf16;
use medft_kernels::attention::Heads;

/// How a kernel rounds, and what it gets wrong.
#[derive(Clone, Copy)]
struct Kernel {
    weights: fn(f64) -> f64,
    gradients: fn(f64) -> f64,
    result: fn(f64) -> f64,
    /// Factor of what dq and dk are scaled by; and of the softmax's scale.
    scale: f64,
    temperature: f64,
    /// Keys that row i sees beyond its own.
    ahead: usize,
}

const HONEST: Kernel = Kernel {
    weights: rounded,
    gradients: rounded,
    result: rounded,
    scale: 1.0,
    temperature: 1.0,
    ahead: 0,
};

fn truncated(x: f64) -> f64 {
    f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))
}

/// To 8-bit floats' three bits: a kernel of too low a precision.
fn coarse(x: f64) -> f64 {
    f64::from(f32::from_bits(
        ((x as f32).to_bits() + 0x0008_0000) & 0xfff0_0000,
    ))
}

struct Case {
    heads: Heads,
    lengths: Vec<usize>,
    qkv: Vec<f64>,
    dout: Vec<f64>,
}

fn case(dim: usize, lengths: &[usize], seed: u64) -> Case {
    let heads = Heads {
        queries: 4,
        keys: 2,
        dim,
        window: None,
    };
    let (mut random, tokens) = (Random(seed), lengths.iter().sum::<usize>());
    Case {
        heads,
        lengths: lengths.to_vec(),
        qkv: f64s(&random.bf16s(tokens * heads.width(), 1.0)),
        dout: f64s(&random.bf16s(tokens * heads.queries * dim, 1.0)),
    }
}

impl Case {
    /// Judges what `kernel` makes of this case: the name of the tensor that is out of bounds.
    fn judge(&self, kernel: Kernel) -> Result<(), &'static str> {
        let (h, dim) = (self.heads, self.heads.dim);
        let (tokens, wide) = (self.lengths.iter().sum::<usize>(), h.queries * dim);
        let packed = Packed {
            heads: h,
            lengths: &self.lengths,
            qkv: &self.qkv,
            scale: 1.0 / (dim as f64).sqrt(),
        };
        let played = Packed {
            scale: packed.scale * kernel.temperature,
            ..packed
        };
        let mut out = vec![0.0; tokens * wide];
        let mut lse = vec![0.0; h.queries * tokens];
        let mut gradients = vec![0.0; tokens * h.width()];
        let mut start = 0;
        for &len in &self.lengths {
            for head in 0..h.queries {
                played.with(head, start, len, |s| {
                    let mut o = vec![0.0; len * dim];
                    let dout = columns(&self.dout, wide, start, len, head * dim, dim);
                    let at = played.places(head);
                    let [mut dq, mut dk, mut dv] =
                        at.map(|c| columns(&gradients, h.width(), start, len, c * dim, dim));
                    for i in 0..len {
                        let keys = (i + 1 + kernel.ahead).min(len);
                        let scores: Vec<f64> = (0..keys)
                            .map(|j| s.scale * dot(row(s.q, i, dim), row(s.k, j, dim)))
                            .collect();
                        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                        let o = &mut o[i * dim..(i + 1) * dim];
                        for (j, x) in scores.iter().enumerate() {
                            let p = (kernel.weights)((x - top).exp());
                            o.iter_mut()
                                .zip(row(s.v, j, dim))
                                .for_each(|(o, v)| *o += p * v);
                        }
                        o.iter_mut().for_each(|o| *o = (kernel.result)(*o / sum));
                        let log = f64::from((top + sum.ln()) as f32);
                        lse[head * tokens + start + i] = log;
                        let d_out = row(&dout, i, dim);
                        let delta = dot(d_out, o);
                        for (j, x) in scores.iter().enumerate() {
                            let p = (x - log).exp();
                            let ds = p * (dot(d_out, row(s.v, j, dim)) - delta);
                            let (p, ds) = ((kernel.weights)(p), (kernel.gradients)(ds));
                            let ds = ds * s.scale * kernel.scale;
                            for c in 0..dim {
                                dv[j * dim + c] += p * d_out[c];
                                dk[j * dim + c] += ds * s.q[i * dim + c];
                                dq[i * dim + c] += ds * s.k[j * dim + c];
                            }
                        }
                    }
                    put(&mut out, wide, start, head * dim, dim, &o);
                    for (c, d) in at.into_iter().zip([dq, dk, dv]) {
                        put(&mut gradients, h.width(), start, c * dim, dim, &d);
                    }
                });
            }
            start += len;
        }
        gradients.iter_mut().for_each(|g| *g = (kernel.result)(*g));

        let holds = |what, want: &attention_reference::Want, got: &[f64]| {
            let judged = std::panic::AssertUnwindSafe(|| want.judge(what, got));
            std::panic::catch_unwind(judged).map_err(|_| what)
        };
        let (want, want_lse) = packed.forward();
        holds("out", &want, &out)?;
        if want_lse
            .iter()
            .zip(&lse)
            .any(|((w, b), l)| (w - l).abs() > *b)
        {
            return Err("lse");
        }
        let wants = packed.backward(&self.dout, &out, &lse, None);
        for (i, (what, first, count)) in [
            ("dq", 0, h.queries),
            ("dk", h.queries, h.keys),
            ("dv", h.queries + h.keys, h.keys),
        ]
        .into_iter()
        .enumerate()
        {
            let got = columns(&gradients, h.width(), 0, tokens, first * dim, count * dim);
            holds(what, &wants[i], &got)?;
        }
        Ok(())
    }
}

#[test]
fn a_kernel_that_rounds_to_nearest_is_within_the_bounds() {
    for (dim, lengths, seed) in [
        (32, vec![1, 2, 3, 64], 1),
        (64, vec![129, 40], 2),
        (128, vec![1; 30], 3),
        (128, vec![150], 4),
    ] {
        case(dim, &lengths, seed).judge(HONEST).unwrap();
    }
}

#[test]
fn faults_are_found() {
    let faults: [(&str, &str, Kernel); 9] = [
        (
            "P truncated",
            "out",
            Kernel {
                weights: truncated,
                ..HONEST
            },
        ),
        (
            "dS truncated",
            "dq",
            Kernel {
                gradients: truncated,
                ..HONEST
            },
        ),
        (
            "results truncated",
            "out",
            Kernel {
                result: truncated,
                ..HONEST
            },
        ),
        (
            "P in 8 bits",
            "out",
            Kernel {
                weights: coarse,
                ..HONEST
            },
        ),
        (
            "dS in 8 bits",
            "dq",
            Kernel {
                gradients: coarse,
                ..HONEST
            },
        ),
        (
            "dq, dk without the scale",
            "dq",
            Kernel {
                scale: 8.0,
                ..HONEST
            },
        ),
        (
            "dq, dk off by half a per cent",
            "dq",
            Kernel {
                scale: 1.005,
                ..HONEST
            },
        ),
        (
            "softmax off by a thousandth",
            "lse",
            Kernel {
                temperature: 1.001,
                ..HONEST
            },
        ),
        ("a key ahead", "out", Kernel { ahead: 1, ..HONEST }),
    ];
    let case = case(64, &[129, 40], 2);
    for (fault, tensor, kernel) in faults {
        assert_eq!(case.judge(kernel), Err(tensor), "{fault}");
    }
}

#[test]
fn truncation_is_of_bf16() {
    assert_eq!(
        truncated(1.0 + 1.0 / 128.0 + 1.0 / 200.0),
        1.0 + 1.0 / 128.0
    );
    assert_eq!(bf16::from_f64(truncated(-0.3)).to_f64(), truncated(-0.3));
}
