//! Dense products with their epilogues and adapters, forward and backward: the portable form (`gemm/`) and the Hopper form (`gemm_hopper/`).

use crate::bench::{Bench, Rig, Work};
use crate::models::{HEADS, LAYERS, Linear, Model, RANK, TOKENS};
use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::dropout::{self, Draw};
use medft_kernels::linear::{
    Backward, Dropout, Epilogue, Forward, Group, LowBackward, LowForward, NO_LOW, StepState,
};
use medft_kernels::{LaunchError, Ptr, gemm, gemm_hopper};

/// A group as its Rust ops take it; rank 0: without adapters.
pub fn group(linear: &Linear, rows: usize, rank: usize) -> Group {
    let mut at = 0;
    let low_at = linear.outputs.map(|n| {
        if n == 0 || rank == 0 {
            return NO_LOW;
        }
        at += rank as u32;
        at - rank as u32
    });
    Group {
        rows,
        inputs: linear.inputs,
        outputs: linear.outputs,
        low_at,
        rank,
    }
}

/// What draws a dropout of 0.1; the buffer holds what it points to.
pub fn draw(rig: &Rig) -> (Draw, Buffer<StepState>) {
    let state = rig.upload(&[StepState {
        seed: 1,
        step: 2,
        first_token: 0,
        first_target: 0,
        loss_scale: 1.0,
    }]);
    let draw = Draw {
        threshold: 6554,
        state: state.ptr(),
        streams: [1, 2, 3],
    };
    (draw, state)
}

/// The drawn masks, and what they point to.
pub fn dropout(rig: &Rig, group: &Group) -> (Dropout, Buffer<u32>) {
    let kept = rig.upload(&vec![0; dropout::kept_len(group)]);
    let (draw, _state) = draw(rig);
    dropout::draw(&rig.gpu, group, &draw, kept.ptr()).unwrap();
    rig.gpu.synchronize().unwrap();
    let dropout = Dropout {
        kept: kept.ptr(),
        keep_scale: 1.0 / 0.9,
    };
    (dropout, kept)
}

/// FLOPs and bytes of the base product and the adapters' part.
fn work(g: &Group) -> Work {
    let (t, k, n) = (g.rows, g.inputs, g.columns());
    let base = 2.0 * (t * k) as f64 * n as f64;
    Work::flops(base).and_bytes(2 * (t * k + n * k + t * n))
}

/// Everything that [`Forward`] may point to.
struct Layer {
    group: Group,
    buffers: [Buffer<bf16>; 7],
    table: Buffer<f32>,
    positions: Buffer<u32>,
}

impl Layer {
    fn new(rig: &Rig, group: Group) -> Self {
        let (t, k, n, low) = (group.rows, group.inputs, group.columns(), group.low());
        let lens = [t * k, n * k, t * n, t * low, n * group.rank, low * k, t * n];
        let positions: Vec<u32> = (0..t).map(|i| i as u32 % 4096).collect();
        Layer {
            group,
            buffers: lens.map(|len| rig.bf16(len)),
            table: rig.f32(4096 * 128),
            positions: rig.upload(&positions),
        }
    }

    fn forward(&self, model: &Model, epilogue: &str) -> Forward {
        let [x, w, y, low, b, _, extra] = self.buffers.each_ref().map(Buffer::ptr);
        Forward {
            group: self.group,
            x,
            weight: w,
            bias: Ptr::NULL,
            low: (self.group.rank > 0).then_some(LowForward { low, b }),
            epilogue: match epilogue {
                "rope" => Epilogue::Rope {
                    table: self.table.ptr(),
                    positions: self.positions.ptr(),
                    head_dim: model.dim,
                    rotated: model.queries + model.keys,
                },
                "swiglu" => Epilogue::SwiGlu(extra),
                "residual" => Epilogue::Residual(extra),
                _ => Epilogue::None,
            },
            y,
        }
    }

    fn backward(&self, dropout: Option<Dropout>) -> Backward {
        let [dx, w, dy, g, _, a, _] = self.buffers.each_ref().map(Buffer::ptr);
        Backward {
            group: self.group,
            dy,
            weight: w,
            low: (self.group.rank > 0).then_some(LowBackward { g, a, dropout }),
            dx,
        }
    }
}

type Ahead = fn(&Device, &Forward) -> Result<(), LaunchError>;
type Back = fn(&Device, &Backward) -> Result<(), LaunchError>;

pub fn all(bench: &mut Bench) {
    if bench.hopper() {
        family(
            bench,
            "gemm_hopper",
            gemm_hopper::forward,
            gemm_hopper::backward,
        );
    }
    family(bench, "gemm", gemm::forward, gemm::backward);
    heads(bench);
}

fn family(bench: &mut Bench, family: &str, forward: Ahead, backward: Back) {
    for model in &LAYERS {
        for linear in model.linears() {
            let epilogue = match linear.name {
                "qkv" => "rope",
                "gate_up" => "swiglu",
                _ => "residual",
            };
            let g = group(&linear, TOKENS, RANK);
            let name = format!(
                "{family}/{} forward r{RANK} {epilogue}/{}",
                linear.name, model.name
            );
            bench.case(&name, work(&g), |rig| {
                let layer = Layer::new(rig, g);
                move |d| forward(d, &layer.forward(model, epilogue))
            });
            let name = format!("{family}/{} dX r{RANK}/{}", linear.name, model.name);
            bench.case(&name, work(&g), |rig| {
                let layer = Layer::new(rig, g);
                move |d| backward(d, &layer.backward(None))
            });
            if linear.name == "qkv" || linear.name == "gate_up" {
                let name = format!("{family}/{} dX r{RANK} dropout/{}", linear.name, model.name);
                bench.case(&name, work(&g), |rig| {
                    let (layer, (mask, kept)) = (Layer::new(rig, g), dropout(rig, &g));
                    move |d| {
                        let _ = &kept;
                        backward(d, &layer.backward(Some(mask)))
                    }
                });
                let bare = group(&linear, TOKENS, 0);
                let name = format!("{family}/{} forward/{}", linear.name, model.name);
                bench.case(&name, work(&bare), |rig| {
                    let layer = Layer::new(rig, bare);
                    move |d| forward(d, &layer.forward(model, ""))
                });
            }
        }
    }
}

/// The language-model head: logits in f32 of a chunk of rows, and the way back.
fn heads(bench: &mut Bench) {
    for model in &HEADS {
        let (rows, n, k) = (1024, model.vocab, model.hidden);
        let linear = Linear {
            name: "head",
            inputs: k,
            outputs: [n, 0, 0],
        };
        let to_logits = Work::flops(2.0 * (rows * k) as f64 * n as f64)
            .and_bytes(2 * (rows * k + n * k) + 4 * rows * n);
        if bench.hopper() {
            let name = format!("gemm_hopper/head logits {rows} rows f32/{}", model.name);
            bench.case(&name, to_logits, |rig| {
                let (x, w, y) = (rig.bf16(rows * k), rig.bf16(n * k), rig.f32(rows * n));
                move |d| {
                    let plain = gemm_hopper::Plain {
                        rows,
                        inputs: k,
                        outputs: n,
                        x: x.ptr(),
                        weight: w.ptr(),
                        y: gemm_hopper::Product::F32(y.ptr()),
                    };
                    gemm_hopper::plain_nt(d, &plain)
                }
            });
            let g = group(&linear, rows, 0);
            bench.case(
                &format!("gemm_hopper/head dX {rows} rows/{}", model.name),
                work(&g),
                |rig| {
                    let layer = Layer::new(rig, g);
                    move |d| gemm_hopper::backward(d, &layer.backward(None))
                },
            );
        }
        bench.case(
            &format!("gemm/head logits {rows} rows f32/{}", model.name),
            to_logits,
            |rig| {
                let (x, w, y) = (rig.bf16(rows * k), rig.bf16(n * k), rig.f32(rows * n));
                move |d| {
                    gemm::plain_nt(
                        d,
                        gemm::Shape { m: rows, n, k },
                        x.ptr(),
                        k,
                        w.ptr(),
                        k,
                        gemm::Output::F32(y.ptr()),
                    )
                }
            },
        );
        let back = Work::flops(to_logits.flops).and_bytes(2 * (rows * k + n * k + rows * n));
        bench.case(
            &format!("gemm/head dX {rows} rows/{}", model.name),
            back,
            |rig| {
                let (dx, w, dy) = (rig.bf16(rows * k), rig.bf16(n * k), rig.bf16(rows * n));
                move |d| {
                    gemm::plain_nn(
                        d,
                        gemm::Shape {
                            m: rows,
                            n: k,
                            k: n,
                        },
                        dy.ptr(),
                        n,
                        w.ptr(),
                        k,
                        gemm::Output::Bf16(dx.ptr()),
                    )
                }
            },
        );
    }
}
