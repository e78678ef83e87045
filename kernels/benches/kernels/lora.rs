//! What adapters cost beside the dense products (`lora/`), and the gradients of trained weights and biases (`weight_grad/`).

use crate::bench::{Bench, Work};
use crate::gemm::{draw, dropout as masks, group};
use crate::models::{LAYERS, RANK, TOKENS};
use medft_kernels::linear::{Group, NO_LOW};
use medft_kernels::lora::{self, Grads, Slots};
use medft_kernels::{Ptr, dropout, norm, weight_grad};

pub fn all(bench: &mut Bench) {
    for model in &LAYERS {
        for linear in model.linears().iter().filter(|l| l.name != "o") {
            adapters(
                bench,
                group(linear, TOKENS, RANK),
                &format!("{} r{RANK}/{}", linear.name, model.name),
            );
        }
        let qkv = group(&model.linears()[0], TOKENS, 0);
        gradients(
            bench,
            qkv.columns(),
            qkv.inputs,
            &format!("qkv/{}", model.name),
        );
        gradients(
            bench,
            2 * model.inner,
            model.hidden,
            &format!("gate_up/{}", model.name),
        );
    }
}

/// Where the f32 values or gradients of a group's members stand in one buffer for A and one for B.
fn members(g: &Group, a: Ptr<f32>, b: Ptr<f32>) -> [Option<Slots>; 3] {
    let mut row = 0;
    std::array::from_fn(|m| {
        let first = row;
        row += g.outputs[m];
        (g.low_at[m] != NO_LOW).then(|| Slots {
            a: a.at(g.low_at[m] as usize * g.inputs),
            b: b.at(first * g.rank),
            rank: g.rank,
        })
    })
}

fn adapters(bench: &mut Bench, g: Group, at: &str) {
    let (t, k, n, low) = (g.rows, g.inputs, g.columns(), g.low());
    let (x_bytes, dy_bytes) = (
        2 * (t * k + t * low + low * k),
        2 * (t * n + t * low + n * g.rank),
    );
    let (flops_a, flops_b) = (
        2.0 * (t * low) as f64 * k as f64,
        2.0 * (t * g.rank) as f64 * n as f64,
    );
    for masked in [false, true] {
        let what = if masked { "dropout " } else { "" };
        let work = Work::flops(flops_a).and_bytes(x_bytes);
        bench.case(&format!("lora/down {what}{at}"), work, |rig| {
            let (x, a, to) = (rig.bf16(t * k), rig.bf16(low * k), rig.bf16(t * low));
            let (mask, kept) = masks(rig, &g);
            move |d| {
                let _ = &kept;
                lora::down(
                    d,
                    &g,
                    x.ptr(),
                    a.ptr(),
                    0.5,
                    masked.then_some(&mask),
                    to.ptr(),
                )
            }
        });
        let work = Work::flops(flops_a + flops_b).and_bytes(x_bytes + dy_bytes);
        bench.case(&format!("lora/grads {what}{at}"), work, |rig| {
            let (x, dy, h, dh) = (
                rig.bf16(t * k),
                rig.bf16(t * n),
                rig.bf16(t * low),
                rig.bf16(t * low),
            );
            let (da, db, scratch) = (
                rig.f32(low * k),
                rig.f32(n * g.rank),
                rig.f32(lora::scratch_len(&g)),
            );
            let (mask, kept) = masks(rig, &g);
            move |d| {
                let _ = &kept;
                let grads = Grads {
                    x: x.ptr(),
                    dy: dy.ptr(),
                    low: h.ptr(),
                    g: dh.ptr(),
                    dropout: masked.then_some(mask),
                    members: members(&g, da.ptr(), db.ptr()),
                    scratch: scratch.ptr(),
                };
                lora::grads(d, &g, &grads)
            }
        });
    }
    bench.case(
        &format!("lora/up_backward {at}"),
        Work::flops(flops_b).and_bytes(dy_bytes),
        |rig| {
            let (dy, b, to) = (rig.bf16(t * n), rig.bf16(n * g.rank), rig.bf16(t * low));
            move |d| lora::up_backward(d, &g, dy.ptr(), b.ptr(), 0.5, to.ptr())
        },
    );
    let words = dropout::kept_len(&g);
    bench.case(&format!("lora/masks {at}"), Work::bytes(4 * words), |rig| {
        let (kept, (draw, state)) = (rig.upload(&vec![0; words]), draw(rig));
        move |d| {
            let _ = &state;
            dropout::draw(d, &g, &draw, kept.ptr())
        }
    });
    let values = low * k + n * g.rank;
    bench.case(&format!("lora/pack {at}"), Work::bytes(6 * values), |rig| {
        let (from_a, from_b) = (rig.f32(low * k), rig.f32(n * g.rank));
        let (a, b) = (rig.bf16(low * k), rig.bf16(n * g.rank));
        move |d| {
            lora::pack(
                d,
                &g,
                members(&g, from_a.ptr(), from_b.ptr()),
                a.ptr(),
                b.ptr(),
            )
        }
    });
}

/// Full fine-tuning: `dW += dy^T x` and `db += column sums of dy`.
fn gradients(bench: &mut Bench, m: usize, n: usize, at: &str) {
    let shape = weight_grad::Shape { rows: TOKENS, m, n };
    let flops = 2.0 * (TOKENS * m) as f64 * n as f64;
    let work = Work::flops(flops).and_bytes(2 * TOKENS * (m + n) + 8 * m * n);
    bench.case(&format!("weight_grad/weight {at}"), work, |rig| {
        let (dy, x, out) = (rig.bf16(TOKENS * m), rig.bf16(TOKENS * n), rig.f32(m * n));
        let scratch = rig.f32(weight_grad::scratch_len(shape).max(1));
        move |d| {
            weight_grad::weight_grad(d, shape, dy.ptr(), m, x.ptr(), n, out.ptr(), scratch.ptr())
        }
    });
    bench.case(
        &format!("weight_grad/bias {at}"),
        Work::bytes(2 * TOKENS * m),
        |rig| {
            let (dy, out) = (rig.bf16(TOKENS * m), rig.f32(m));
            let scratch = rig.f32(norm::column_sum_scratch(TOKENS, m));
            move |d| norm::column_sum(d, TOKENS, m, m, dy.ptr(), out.ptr(), scratch.ptr())
        },
    );
}
