//! Ops that memory bounds: `norm/`, `elementwise/`, `embed/`, `cross_entropy/` and `optimizer/`.

use crate::bench::{Bench, Work};
use crate::models::{HEADS, LAYERS, TOKENS};
use medft_kernels::linear::StepState;
use medft_kernels::{Ptr, cross_entropy, elementwise, embed, norm, optimizer};

pub fn all(bench: &mut Bench) {
    for model in &LAYERS {
        norms(bench, model.hidden, model.name);
        gates(bench, model.inner, model.name);
        embeddings(bench, model.vocab, model.hidden, model.name);
        steps(bench, model.adapters(), model.name);
    }
    flat(bench, LAYERS[2].hidden, LAYERS[2].name);
    for model in &HEADS {
        losses(bench, model.vocab, model.name);
    }
}

fn norms(bench: &mut Bench, h: usize, model: &str) {
    let n = TOKENS * h;
    bench.case(
        &format!("norm/forward/{model}"),
        Work::bytes(4 * n),
        |rig| {
            let (x, y, gain, rstd) = (rig.bf16(n), rig.bf16(n), rig.f32(h), rig.f32(TOKENS));
            move |d| norm::forward(d, TOKENS, h, 1e-6, x.ptr(), gain.ptr(), y.ptr(), rstd.ptr())
        },
    );
    for (what, bytes, trained) in [("backward", 8, false), ("backward trained gain", 12, true)] {
        bench.case(
            &format!("norm/{what}/{model}"),
            Work::bytes(bytes * n),
            |rig| {
                let (x, dy, dx, gain, rstd) = (
                    rig.bf16(n),
                    rig.bf16(n),
                    rig.bf16(n),
                    rig.f32(h),
                    rig.f32(TOKENS),
                );
                let (dgain, scratch) = (rig.f32(h), rig.f32(norm::column_sum_scratch(TOKENS, h)));
                move |d| {
                    let gradient = trained.then(|| norm::GainGradient {
                        dgain: dgain.ptr(),
                        scratch: scratch.ptr(),
                    });
                    norm::backward(
                        d,
                        TOKENS,
                        h,
                        x.ptr(),
                        rstd.ptr(),
                        gain.ptr(),
                        dy.ptr(),
                        dx.ptr(),
                        gradient,
                    )
                }
            },
        );
    }
}

fn gates(bench: &mut Bench, inner: usize, model: &str) {
    let n = TOKENS * inner;
    bench.case(
        &format!("elementwise/swiglu/{model}"),
        Work::bytes(6 * n),
        |rig| {
            let (both, h) = (rig.bf16(2 * n), rig.bf16(n));
            move |d| elementwise::swiglu(d, TOKENS, inner, both.ptr(), h.ptr())
        },
    );
    for (what, bytes, again) in [
        ("swiglu backward", 10, false),
        ("swiglu backward with h", 12, true),
    ] {
        bench.case(
            &format!("elementwise/{what}/{model}"),
            Work::bytes(bytes * n),
            |rig| {
                let (both, h, dboth) = (rig.bf16(2 * n), rig.bf16(n), rig.bf16(2 * n));
                move |d| {
                    elementwise::swiglu_backward(
                        d,
                        TOKENS,
                        inner,
                        both.ptr(),
                        h.ptr(),
                        dboth.ptr(),
                        again.then(|| h.ptr()),
                    )
                }
            },
        );
    }
}

/// Casts, sums and moves of rows: their time is their bytes, whatever the model.
fn flat(bench: &mut Bench, h: usize, model: &str) {
    let n = TOKENS * h;
    bench.case(
        &format!("elementwise/add/{model}"),
        Work::bytes(6 * n),
        |rig| {
            let (x, y) = (rig.bf16(n), rig.bf16(n));
            move |d| elementwise::add(d, n, x.ptr(), y.ptr())
        },
    );
    bench.case(
        &format!("elementwise/clear/{model}"),
        Work::bytes(2 * n),
        |rig| {
            let y = rig.bf16(n);
            move |d| elementwise::clear(d, n, y.ptr())
        },
    );
    bench.case(
        &format!("elementwise/f32 to bf16/{model}"),
        Work::bytes(6 * n),
        |rig| {
            let (wide, y) = (rig.f32(n), rig.bf16(n));
            move |d| elementwise::to_bf16(d, n, wide.ptr(), y.ptr())
        },
    );
    bench.case(
        &format!("elementwise/bf16 to f32/{model}"),
        Work::bytes(6 * n),
        |rig| {
            let (wide, x) = (rig.f32(n), rig.bf16(n));
            move |d| elementwise::to_f32(d, n, x.ptr(), wide.ptr())
        },
    );
    for step in [1, 160] {
        let picked: Vec<u32> = (0..TOKENS as u32).step_by(step).collect();
        let count = picked.len();
        bench.case(
            &format!("elementwise/gather {count} rows/{model}"),
            Work::bytes(4 * count * h),
            |rig| {
                let (x, y, rows) = (rig.bf16(n), rig.bf16(n), rig.upload(&picked));
                move |d| elementwise::gather_rows(d, count, h, x.ptr(), rows.ptr(), y.ptr())
            },
        );
        let bytes = 2 * n + 2 * count * h;
        bench.case(
            &format!("elementwise/scatter {count} rows/{model}"),
            Work::bytes(bytes),
            |rig| {
                let (x, y, rows) = (rig.bf16(n), rig.bf16(n), rig.upload(&picked));
                move |d| {
                    elementwise::scatter_rows(d, count, TOKENS, h, x.ptr(), rows.ptr(), y.ptr())
                }
            },
        );
    }
}

/// Token ids with Zipf's law: a token's rank is exponential in a uniform number.
fn zipf(vocab: usize) -> Vec<u32> {
    let uniform = |i: usize| (i as f64 * 0.618_033_988_749_894_9).fract();
    (0..TOKENS)
        .map(|i| ((vocab as f64).powf(uniform(i)) as u32).saturating_sub(1))
        .collect()
}

fn embeddings(bench: &mut Bench, vocab: usize, h: usize, model: &str) {
    let (n, ids) = (TOKENS * h, zipf(vocab));
    bench.case(
        &format!("embed/forward/{model}"),
        Work::bytes(4 * n),
        |rig| {
            let (table, x, ids) = (rig.bf16(vocab * h), rig.bf16(n), rig.upload(&ids));
            move |d| {
                embed::forward(
                    d,
                    TOKENS,
                    h,
                    ids.ptr(),
                    embed::Table::Bf16(table.ptr()),
                    x.ptr(),
                )
            }
        },
    );
    let runs = embed::Runs::of(&ids);
    let distinct = runs.len();
    bench.case(
        &format!("embed/backward {distinct} ids/{model}"),
        Work::bytes(2 * n + 8 * distinct * h),
        |rig| {
            let (dtable, dx, ids) = (rig.f32(vocab * h), rig.bf16(n), rig.upload(&ids));
            let (order, starts) = (rig.upload(&runs.order), rig.upload(&runs.starts));
            move |d| {
                embed::backward(
                    d,
                    distinct,
                    h,
                    ids.ptr(),
                    order.ptr(),
                    starts.ptr(),
                    dx.ptr(),
                    dtable.ptr(),
                )
            }
        },
    );
}

fn losses(bench: &mut Bench, vocab: usize, model: &str) {
    let rows = 1024;
    let n = rows * vocab;
    for (what, bytes) in [("loss", 4), ("gradient", 6), ("loss and gradient", 6)] {
        bench.case(
            &format!("cross_entropy/{what} {rows} rows/{model}"),
            Work::bytes(bytes * n),
            |rig| {
                let (logits, d_logits, losses, lse) =
                    (rig.f32(n), rig.bf16(n), rig.f32(rows), rig.f32(rows));
                let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocab) as u32).collect();
                let targets = rig.upload(&targets);
                let state = rig.upload(&[StepState {
                    seed: 0,
                    step: 0,
                    first_token: 0,
                    first_target: 0,
                    loss_scale: 1e-3,
                }]);
                move |d| {
                    let chunk = cross_entropy::Chunk {
                        rows,
                        vocab,
                        logits: logits.ptr(),
                        stride: vocab,
                        targets: targets.ptr(),
                        state: state.ptr(),
                    };
                    let to = cross_entropy::Gradient {
                        d: d_logits.ptr(),
                        stride: vocab,
                    };
                    match what {
                        "loss" => cross_entropy::loss(d, &chunk, losses.ptr(), lse.ptr()),
                        "gradient" => cross_entropy::gradient(d, &chunk, lse.ptr(), &to),
                        _ => cross_entropy::loss_and_gradient(
                            d,
                            &chunk,
                            losses.ptr(),
                            lse.ptr(),
                            &to,
                        ),
                    }
                }
            },
        );
    }
}

fn steps(bench: &mut Bench, n: usize, model: &str) {
    bench.case(
        &format!("optimizer/norm {n}/{model}"),
        Work::bytes(4 * n),
        |rig| {
            let (grads, out, scratch) = (
                rig.f32(n),
                rig.f32(1),
                rig.upload(&vec![0f64; optimizer::NORM_SCRATCH]),
            );
            move |d| optimizer::norm(d, n, grads.ptr(), out.ptr(), scratch.ptr())
        },
    );
    for (what, bytes, shadowed) in [("adamw", 28, false), ("adamw with shadow", 30, true)] {
        bench.case(
            &format!("optimizer/{what} {n}/{model}"),
            Work::bytes(bytes * n),
            |rig| {
                let (grads, values, first) = (rig.f32(n), rig.f32(n), rig.f32(n));
                // Second moments are no less than 0.
                let second = rig.gpu.alloc::<f32>(n).unwrap();
                rig.gpu.fill(second.ptr(), 0x3c, n).unwrap();
                let (shadow, norm) = (rig.bf16(n), rig.upload(&[2f32]));
                move |d| {
                    let step = optimizer::AdamWStep {
                        lr: 1e-5,
                        weight_decay: 0.01,
                        beta1: 0.9,
                        beta2: 0.999,
                        eps: 1e-8,
                        step: 100,
                        max_norm: Some(1.0),
                    };
                    let buffers = optimizer::AdamWBuffers {
                        len: n,
                        grads: grads.ptr(),
                        values: values.ptr(),
                        first: first.ptr(),
                        second: second.ptr(),
                        shadow: if shadowed { shadow.ptr() } else { Ptr::NULL },
                        norm: norm.ptr(),
                    };
                    optimizer::adamw(d, &step, &buffers)
                }
            },
        );
    }
}
