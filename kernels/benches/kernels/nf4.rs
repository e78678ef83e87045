//! NF4 weights (`nf4/`) and the few-row products of decoding, NF4 and bf16 (`skinny/`): weights rotate through more memory than the L2 holds.

use crate::bench::{Bench, Rig, Work};
use crate::gemm::group;
use crate::models::{HEADS, LAYERS, LLAMA_3B, LLAMA_8B, Linear, Model, QWEN_3B, RANK};
use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::linear::{Epilogue, Forward, Group, LowForward};
use medft_kernels::nf4::{self, Absmax, BLOCK, NESTED_BLOCK, Source, Weights};
use medft_kernels::{LaunchError, Ptr, skinny};

/// Weights of all rotated copies together.
const ROTATE_BYTES: usize = 512 << 20;
const CALLS: usize = 24;

/// A matrix of `values` values with double-quantised scales in one buffer: codes, scales, nested scales.
struct Quantised {
    values: usize,
    packed: Buffer<u8>,
    codes: Buffer<u8>,
    absmax2: Buffer<f32>,
}

impl Quantised {
    fn new(rig: &Rig, values: usize) -> Self {
        let blocks = values.div_ceil(BLOCK);
        Quantised {
            values,
            packed: rig.bytes(values / 2),
            codes: rig.bytes(blocks),
            absmax2: rig.f32(blocks.div_ceil(NESTED_BLOCK)),
        }
    }

    /// `len` values from value `first` on, a multiple of a nested block.
    fn part(&self, first: usize) -> Weights {
        Weights {
            packed: self.packed.ptr().at(first / 2),
            absmax: Absmax::Double {
                codes: self.codes.ptr().at(first / BLOCK),
                absmax2: self.absmax2.ptr().at(first / BLOCK / NESTED_BLOCK),
                offset: 0.01,
            },
        }
    }

    fn bytes(values: usize) -> usize {
        values / 2 + values / BLOCK + values / BLOCK / 64
    }
}

pub fn all(bench: &mut Bench) {
    for model in &LAYERS {
        forms(bench, model);
    }
    for linear in LLAMA_8B.linears() {
        for rows in [1, 8, 48] {
            product(bench, &LLAMA_8B, &linear, rows, true);
        }
    }
    for model in [&QWEN_3B, &LLAMA_3B] {
        for linear in model.linears() {
            for rows in [1, 8, 48] {
                product(bench, model, &linear, rows, false);
            }
        }
    }
    for model in &HEADS {
        for rows in [1, 48] {
            logits(bench, model, rows);
        }
    }
    for model in &LAYERS {
        down(bench, model);
    }
}

/// A whole gate-and-up matrix: to NF4 at load, back to bf16 for a training product.
fn forms(bench: &mut Bench, model: &Model) {
    let values = 2 * model.inner * model.hidden;
    let blocks = values / BLOCK;
    bench.case(
        &format!("nf4/quantise gate_up/{}", model.name),
        Work::bytes(2 * values + values / 2 + 4 * blocks),
        |rig| {
            let (w, packed, absmax) = (rig.bf16(values), rig.bytes(values / 2), rig.f32(blocks));
            move |d| nf4::quantize(d, Source::Bf16(w.ptr()), values, packed.ptr(), absmax.ptr())
        },
    );
    bench.case(
        &format!("nf4/double quantise gate_up/{}", model.name),
        Work::bytes(5 * blocks),
        |rig| {
            let (absmax, codes, nested) = (
                rig.f32(blocks),
                rig.bytes(blocks),
                rig.f32(blocks.div_ceil(NESTED_BLOCK)),
            );
            move |d| nf4::double_quantize(d, absmax.ptr(), blocks, 0.01, codes.ptr(), nested.ptr())
        },
    );
    bench.case(
        &format!("nf4/dequantise gate_up/{}", model.name),
        Work::bytes(2 * values + Quantised::bytes(values)),
        |rig| {
            let (from, out) = (Quantised::new(rig, values), rig.bf16(values));
            move |d| nf4::dequantize(d, &from.part(0), from.values, out.ptr())
        },
    );
}

/// What [`Forward`] points to, but for the weights.
struct Rows {
    group: Group,
    x: Buffer<bf16>,
    y: Buffer<bf16>,
    extra: Buffer<bf16>,
    low: Buffer<bf16>,
    b: Buffer<bf16>,
    table: Buffer<f32>,
    positions: Buffer<u32>,
}

impl Rows {
    fn new(rig: &Rig, group: Group) -> Self {
        let (t, n) = (group.rows, group.columns());
        Rows {
            group,
            x: rig.bf16(t * group.inputs),
            y: rig.bf16(t * n),
            extra: rig.bf16(t * n),
            low: rig.bf16(t * group.low()),
            b: rig.bf16(n * group.rank),
            table: rig.f32(64 * 128),
            positions: rig.upload(&vec![3; t]),
        }
    }

    fn forward(&self, model: &Model, linear: &str, weight: Ptr<bf16>) -> Forward {
        Forward {
            group: self.group,
            x: self.x.ptr(),
            weight,
            bias: Ptr::NULL,
            low: Some(LowForward {
                low: self.low.ptr(),
                b: self.b.ptr(),
            }),
            epilogue: match linear {
                "qkv" => Epilogue::Rope {
                    table: self.table.ptr(),
                    positions: self.positions.ptr(),
                    head_dim: model.dim,
                    rotated: model.queries + model.keys,
                },
                "gate_up" => Epilogue::SwiGlu(self.extra.ptr()),
                _ => Epilogue::Residual(self.extra.ptr()),
            },
            y: self.y.ptr(),
        }
    }
}

/// Bytes are those of the weights and adapters.
fn product(bench: &mut Bench, model: &'static Model, linear: &Linear, rows: usize, nf4: bool) {
    let g = group(linear, rows, RANK);
    let (values, name) = (g.columns() * g.inputs, linear.name);
    let bytes = if nf4 {
        Quantised::bytes(values)
    } else {
        2 * values
    };
    let copies = (ROTATE_BYTES / bytes).clamp(1, CALLS);
    let kind = if nf4 { "nf4" } else { "bf16" };
    let title = format!("skinny/{name} {kind} r{RANK} {rows} rows/{}", model.name);
    let work = Work::bytes(bytes + 2 * g.columns() * g.rank);
    if nf4 {
        bench.case_in_graph(&title, work, CALLS, |rig| {
            let (weights, at) = (Quantised::new(rig, copies * values), Rows::new(rig, g));
            move |d: &Device, call| -> Result<(), LaunchError> {
                let mut first = call % copies * values;
                let members: Vec<Weights> = (g.outputs.iter().filter(|n| **n > 0))
                    .map(|n| {
                        first += n * g.inputs;
                        weights.part(first - n * g.inputs)
                    })
                    .collect();
                skinny::forward_nf4(d, &at.forward(model, name, Ptr::NULL), &members)
            }
        });
    } else {
        bench.case_in_graph(&title, work, CALLS, |rig| {
            let (weights, at) = (rig.bf16(copies * values), Rows::new(rig, g));
            move |d, call| {
                skinny::forward_bf16(
                    d,
                    &at.forward(model, name, weights.ptr().at(call % copies * values)),
                )
            }
        });
    }
}

fn logits(bench: &mut Bench, model: &Model, rows: usize) {
    let (h, vocab) = (model.hidden, model.vocab);
    let name = format!("skinny/logits bf16 {rows} rows/{}", model.name);
    bench.case_in_graph(
        &name,
        Work::bytes(2 * h * vocab + 4 * rows * vocab),
        4,
        |rig| {
            let (x, w, out) = (
                rig.bf16(rows * h),
                rig.bf16(h * vocab),
                rig.f32(rows * vocab),
            );
            move |d, _| skinny::logits(d, rows, h, vocab, x.ptr(), w.ptr(), out.ptr())
        },
    );
}

/// The adapters' first product of qkv.
fn down(bench: &mut Bench, model: &Model) {
    let linear = &model.linears()[0];
    for rows in [1, 48] {
        let g = group(linear, rows, RANK);
        let name = format!("skinny/down qkv r{RANK} {rows} rows/{}", model.name);
        bench.case_in_graph(&name, Work::bytes(2 * g.low() * g.inputs), CALLS, |rig| {
            let (x, a) = (
                rig.bf16(rows * g.inputs),
                rig.bf16(CALLS * g.low() * g.inputs),
            );
            let low = rig.bf16(rows * g.low());
            move |d, call| {
                skinny::down(
                    d,
                    &g,
                    x.ptr(),
                    a.ptr().at(call * g.low() * g.inputs),
                    1.0,
                    low.ptr(),
                )
            }
        });
    }
}
