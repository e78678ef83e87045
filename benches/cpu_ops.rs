//! The CPU ops at the shapes of SmolLM2-135M: `cargo bench --bench cpu_ops`.
//!
//! Holds single ops, not whole steps. `elem/s` are floating-point operations a second (two a multiply-add, causal half of attention counted
//! whole), bytes are those that must be read and written at least once. It refuses to compare with other programs: benches/peers does.
//! Invariant: inputs are random, never zero, since denormals and zeros have other speeds.

// Inputs are made here; a bench that cannot make them has nothing to measure.
#![allow(clippy::unwrap_used)]
// `criterion_main` writes functions without documentation.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use medft_dsl::plan::Precision;
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{
    AdamWStep, Backend, Epilogue, Group, GroupWeight, HeadBackward, Heads, Linear, Packed, Target,
    Weight,
};
use medft_engine::model::checkpoint::open_file;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use std::hint::black_box;
use std::time::Duration;

const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCAB: usize = 49_152;

fn random(len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(len as u64);
    (0..len).map(|_| rng.random_range(-0.1..0.1)).collect()
}

/// `count` weights `[outputs, inputs]`, stacked.
fn matrix(
    count: usize,
    outputs: usize,
    inputs: usize,
    precision: Precision,
) -> <Cpu as Backend>::Matrix {
    let bits = |v: f32| bf16::from_f32(v).to_bits().to_le_bytes();
    let bytes: Vec<u8> = random(outputs * inputs)
        .into_iter()
        .flat_map(bits)
        .collect();
    let view = TensorView::new(safetensors::Dtype::BF16, vec![outputs, inputs], &bytes).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    safetensors::serialize_to_file([("weight", view)], None, file.path()).unwrap();
    let tensor = open_file(file.path()).unwrap().remove(0);
    Cpu.matrix(&mut (), &vec![tensor; count], precision, true)
        .unwrap()
}

/// Sequences of equal length; one token each, behind a past, is a decoding step.
fn batch(sequences: usize, len: usize) -> Packed {
    let mut packed = Packed::default();
    for slot in 0..sequences {
        packed.push(&vec![7; len], usize::from(len == 1) * 100, slot);
    }
    packed
}

fn heads() -> Heads {
    let inv_freq = (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect();
    Heads {
        queries: 9,
        keys: 3,
        dim: 64,
        window: None,
        inv_freq,
    }
}

/// Gate and up, `[3072, 576]`: the widest group. 1 and 8 rows are decoding steps.
fn linear(c: &mut Criterion) {
    let mut bench = c.benchmark_group("linear 576 -> 2 x 1536");
    for precision in [Precision::Bf16, Precision::Nf4] {
        let weights = matrix(2, INNER, HIDDEN, precision);
        let member = |_| Linear {
            bias: None,
            outputs: INNER,
            lora: None,
        };
        let group = Group::<Cpu> {
            inputs: HIDDEN,
            weight: GroupWeight::Frozen(&weights),
            members: (0..2).map(member).collect(),
        };
        for rows in [1, 8, 256, 1024] {
            let batch = if rows <= 8 {
                batch(rows, 1)
            } else {
                batch(rows / 256, 256)
            };
            let (x, mut y) = (random(rows * HIDDEN), random(rows * 2 * INNER));
            let (none, mut low) = (Vec::new(), Vec::new());
            bench.throughput(Throughput::Elements((4 * rows * HIDDEN * INNER) as u64));
            bench.bench_function(format!("forward {precision:?} {rows}"), |b| {
                let mut run = || {
                    let epilogue = Epilogue::None;
                    Cpu.linear(&group, &none, &batch, rows, &x, epilogue, &mut y, &mut low)
                };
                b.iter(&mut run);
            });
            if rows <= 8 {
                continue;
            }
            let (dy, mut dx, mut grads) = (y.clone(), x.clone(), Vec::new());
            bench.bench_function(format!("backward {precision:?} {rows}"), |b| {
                let mut run = || {
                    let dx = Some(&mut dx);
                    let low = Vec::new();
                    Cpu.linear_backward(&group, &none, &mut grads, &batch, rows, &x, &low, &dy, dx)
                };
                b.iter(&mut run);
            });
        }
    }
}

/// Four sequences of 512 tokens.
fn attention(c: &mut Criterion) {
    let (heads, batch) = (heads(), batch(4, 512));
    let (tokens, columns) = (batch.tokens(), heads.queries * heads.dim);
    let (qkv, mut out) = (random(tokens * heads.qkv()), random(tokens * columns));
    let (mut lse, dout) = (random(tokens * heads.queries), random(tokens * columns));
    let product = 2 * 4 * 512 * 512 * columns as u64;
    let mut bench = c.benchmark_group("attention 4 x 512, 9 heads of 64");
    bench.throughput(Throughput::Elements(2 * product));
    bench.bench_function("forward", |b| {
        b.iter(|| Cpu.attention(&heads, &batch, &qkv, &mut out, &mut lse));
    });
    let mut dqkv = qkv.clone();
    bench.throughput(Throughput::Elements(5 * product));
    bench.bench_function("backward", |b| {
        b.iter(|| Cpu.attention_backward(&heads, &batch, &qkv, &out, &lse, &dout, &mut dqkv));
    });
}

fn head_loss(c: &mut Criterion) {
    let matrix = matrix(1, VOCAB, HIDDEN, Precision::Bf16);
    let mut batch = batch(4, 256);
    batch.targets = (0..64)
        .map(|t| Target {
            row: 16 * t,
            id: 700 * t as u32,
        })
        .collect();
    let (x, none) = (random(batch.tokens() * HIDDEN), Vec::new());
    let mut bench = c.benchmark_group("head loss 64 x 49152");
    bench.throughput(Throughput::Elements((4 * 64 * HIDDEN * VOCAB) as u64));
    bench.bench_function("forward and backward", |b| {
        let (mut dx, mut grads, mut losses) = (x.clone(), Vec::new(), vec![0.0; 64]);
        b.iter(|| {
            let back = HeadBackward {
                dx: &mut dx,
                grads: &mut grads,
            };
            let head = Weight::Frozen(&matrix);
            let losses = &mut losses;
            Cpu.head_loss(&head, &none, &batch, HIDDEN, VOCAB, &x, losses, Some(back));
            black_box(losses[0])
        });
    });
}

fn elementwise(c: &mut Criterion) {
    let rows = 1024;
    let (gate_up, mut h) = (random(rows * 2 * INNER), random(rows * INNER));
    let mut bench = c.benchmark_group("elementwise");
    bench.throughput(Throughput::Bytes((rows * INNER * 3 * 4) as u64));
    bench.bench_function("swiglu 1024 x 1536", |b| {
        b.iter(|| Cpu.swiglu(rows, INNER, &gate_up, &mut h));
    });
    let mut d = gate_up.clone();
    bench.throughput(Throughput::Bytes((rows * INNER * 5 * 4) as u64));
    bench.bench_function("swiglu backward 1024 x 1536", |b| {
        b.iter(|| Cpu.swiglu_backward(rows, INNER, &gate_up, &h, &mut d));
    });
    // Adapters of rank 16 on all linear layers of SmolLM2-135M.
    let n = 4_884_480;
    let step = AdamWStep {
        lr: 2e-4,
        weight_decay: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        step: 10,
        max_norm: Some(1.0),
    };
    let (grads, norm) = (random(n), vec![1.0]);
    let state = || (random(n), random(n), vec![0.1; n]);
    bench.throughput(Throughput::Bytes((n * 7 * 4) as u64));
    bench.bench_function("adamw 4.9 M", |b| {
        let run = |(values, first, second): &mut (Vec<f32>, Vec<f32>, Vec<f32>)| {
            Cpu.adamw(&step, &grads, &norm, values, first, second);
        };
        b.iter_batched_ref(state, run, BatchSize::NumIterations(50));
    });
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = short(); targets = linear, attention, head_loss, elementwise }
criterion_main!(benches);
