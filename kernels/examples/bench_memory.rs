//! Times the memory-bound kernels at real models' shapes, beside a copy measured in the same run.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::sample::{Batch, Row, Settings};
use medft_kernels::{
    LaunchError, cross_entropy, elementwise, embed, launch::Ptr, norm, optimizer, sample,
};

const TOKENS: usize = 16_384;
const REPEATS: usize = 11;
/// Launches between two events: their own cost is spread over so many.
const LAUNCHES: usize = 4;

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// About normal: the sum of four 16-bit uniforms.
fn normal(state: &mut u64) -> f32 {
    let bits = splitmix(state);
    let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732
}

struct Bench {
    gpu: Device,
    copy: f64,
}

impl Bench {
    /// Fills a buffer with copies of 1M random elements.
    fn random<T: bytemuck::Pod>(&self, len: usize, make: impl Fn(f32) -> T) -> Buffer<T> {
        let mut state = len as u64;
        let tile: Vec<T> = (0..len.min(1 << 20))
            .map(|_| make(normal(&mut state)))
            .collect();
        let buffer = self.gpu.alloc::<T>(len).unwrap();
        let first = tile.len();
        self.gpu.write(buffer.ptr(), &tile).unwrap();
        let mut at = first;
        while at < len {
            let n = first.min(len - at);
            self.gpu.copy(buffer.ptr().at(at), buffer.ptr(), n).unwrap();
            at += n;
        }
        buffer
    }

    fn bf16(&self, len: usize) -> Buffer<bf16> {
        self.random(len, bf16::from_f32)
    }

    fn f32(&self, len: usize) -> Buffer<f32> {
        self.random(len, |x| x)
    }

    /// Median microseconds.
    fn time(&self, work: impl Fn() -> Result<(), LaunchError>) -> f64 {
        for _ in 0..3 {
            work().unwrap();
        }
        let mut times: Vec<f32> = (0..REPEATS)
            .map(|_| self.gpu.time(&work).unwrap())
            .collect();
        times.sort_by(f32::total_cmp);
        f64::from(times[REPEATS / 2]) * 1e3
    }

    fn line(&self, what: &str, bytes: usize, work: impl Fn() -> Result<(), LaunchError>) {
        let us = self.time(|| (0..LAUNCHES).try_for_each(|_| work())) / LAUNCHES as f64;
        let rate = bytes as f64 / us / 1e3;
        let share = 100.0 * rate / self.copy;
        println!("{what:<48} {us:>9.1} us {rate:>7.0} GB/s {share:>5.1} % of copy");
    }
}

fn main() {
    let gpu = Device::open(0).unwrap();
    let mut b = Bench { gpu, copy: 1.0 };
    let n = 1 << 30;
    {
        let (from, to) = (b.gpu.alloc::<u8>(n).unwrap(), b.gpu.alloc::<u8>(n).unwrap());
        let copies = |n| {
            b.time(|| (0..LAUNCHES).try_for_each(|_| b.gpu.copy(to.ptr(), from.ptr(), n)))
                / LAUNCHES as f64
        };
        let (us, small) = (copies(n), copies(67 << 20));
        b.copy = 2.0 * n as f64 / us / 1e3;
        println!(
            "{}: copy of 1 GiB {:.0} GB/s, of 67 MB {:.0} GB/s (read and write counted)",
            medft_kernels::Launcher::gpu(&b.gpu).name,
            b.copy,
            2.0 * f64::from(67 << 20) / small / 1e3
        );
    }
    norms(&b);
    elements(&b);
    embeddings(&b);
    losses(&b);
    steps(&b);
    samples(&b);
}

fn norms(b: &Bench) {
    let gpu = &b.gpu;
    for h in [576, 2048, 3072, 4096] {
        let n = TOKENS * h;
        let (x, y, dx) = (b.bf16(n), b.bf16(n), b.bf16(n));
        let (gain, rstd, dgain) = (b.f32(h), b.f32(TOKENS), b.f32(h));
        let scratch = b.f32(norm::column_sum_scratch(TOKENS, h));
        b.line(&format!("norm forward {TOKENS} x {h}"), 4 * n, || {
            norm::forward(
                gpu,
                TOKENS,
                h,
                1e-6,
                x.ptr(),
                gain.ptr(),
                y.ptr(),
                rstd.ptr(),
            )
        });
        let backward = |trained: bool| {
            let gradient = trained.then(|| norm::GainGradient {
                dgain: dgain.ptr(),
                scratch: scratch.ptr(),
            });
            norm::backward(
                gpu,
                TOKENS,
                h,
                x.ptr(),
                rstd.ptr(),
                gain.ptr(),
                y.ptr(),
                dx.ptr(),
                gradient,
            )
        };
        b.line(&format!("norm backward {TOKENS} x {h}"), 8 * n, || {
            backward(false)
        });
        b.line(
            &format!("norm backward, trained gain {TOKENS} x {h}"),
            12 * n,
            || backward(true),
        );
    }
}

fn elements(b: &Bench) {
    let gpu = &b.gpu;
    for i in [8192, 11_008, 14_336] {
        let n = TOKENS * i;
        let (gate_up, dgate_up, h) = (b.bf16(2 * n), b.bf16(2 * n), b.bf16(n));
        b.line(&format!("swiglu {TOKENS} x {i}"), 6 * n, || {
            elementwise::swiglu(gpu, TOKENS, i, gate_up.ptr(), h.ptr())
        });
        b.line(&format!("swiglu backward {TOKENS} x {i}"), 10 * n, || {
            elementwise::swiglu_backward(
                gpu,
                TOKENS,
                i,
                gate_up.ptr(),
                h.ptr(),
                dgate_up.ptr(),
                None,
            )
        });
        b.line(
            &format!("swiglu backward, h in place {TOKENS} x {i}"),
            12 * n,
            || {
                elementwise::swiglu_backward(
                    gpu,
                    TOKENS,
                    i,
                    gate_up.ptr(),
                    h.ptr(),
                    dgate_up.ptr(),
                    Some(h.ptr()),
                )
            },
        );
    }
    let n = TOKENS * 4096;
    let (x, y, wide) = (b.bf16(n), b.bf16(n), b.f32(n));
    b.line("add 16384 x 4096", 6 * n, || {
        elementwise::add(gpu, n, x.ptr(), y.ptr())
    });
    b.line("clear 16384 x 4096", 2 * n, || {
        elementwise::clear(gpu, n, y.ptr())
    });
    b.line("f32 to bf16 16384 x 4096", 6 * n, || {
        elementwise::to_bf16(gpu, n, wide.ptr(), y.ptr())
    });
    b.line("bf16 to f32 16384 x 4096", 6 * n, || {
        elementwise::to_f32(gpu, n, x.ptr(), wide.ptr())
    });
    let every = |step: usize| -> Vec<u32> { (0..TOKENS as u32).step_by(step).collect() };
    for step in [1, 160] {
        let rows = gpu.upload(&every(step)).unwrap();
        let count = rows.len();
        b.line(
            &format!("gather {count} rows x 4096"),
            4 * count * 4096,
            || elementwise::gather_rows(gpu, count, 4096, x.ptr(), rows.ptr(), y.ptr()),
        );
        b.line(
            &format!("scatter {count} rows to {TOKENS} x 4096"),
            2 * n + 2 * count * 4096,
            || elementwise::scatter_rows(gpu, count, TOKENS, 4096, x.ptr(), rows.ptr(), y.ptr()),
        );
    }
}

fn embeddings(b: &Bench) {
    let gpu = &b.gpu;
    let (vocab, h) = (151_936, 2048);
    let (table, x) = (b.bf16(vocab * h), b.bf16(TOKENS * h));
    let dtable = b.f32(vocab * h);
    let mut state = 3;
    // Zipf-like: a token's rank is exponential in a uniform number.
    let ids: Vec<u32> = (0..TOKENS)
        .map(|_| (vocab as f64).powf(splitmix(&mut state) as f64 / 2f64.powi(64)) as u32 - 1)
        .collect();
    let runs = embed::Runs::of(&ids);
    let longest = runs.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    let (ids, order, starts) = (
        gpu.upload(&ids).unwrap(),
        gpu.upload(&runs.order).unwrap(),
        gpu.upload(&runs.starts).unwrap(),
    );
    let n = TOKENS * h;
    b.line("embed 16384 x 2048", 4 * n, || {
        embed::forward(
            gpu,
            TOKENS,
            h,
            ids.ptr(),
            embed::Table::Bf16(table.ptr()),
            x.ptr(),
        )
    });
    b.line("embed from f32 16384 x 2048", 6 * n, || {
        embed::forward(
            gpu,
            TOKENS,
            h,
            ids.ptr(),
            embed::Table::F32(dtable.ptr()),
            x.ptr(),
        )
    });
    b.line(
        &format!("embed backward, {} runs, longest {longest}", runs.len()),
        2 * n + 8 * runs.len() * h,
        || {
            embed::backward(
                gpu,
                runs.len(),
                h,
                ids.ptr(),
                order.ptr(),
                starts.ptr(),
                x.ptr(),
                dtable.ptr(),
            )
        },
    );
}

fn losses(b: &Bench) {
    let gpu = &b.gpu;
    for (rows, vocab) in [
        (100, 151_936),
        (2048, 151_936),
        (1024, 128_256),
        (4096, 32_000),
        (4096, 49_152),
    ] {
        let n = rows * vocab;
        let (logits, d) = (b.random(n, |x| 3.0 * x), b.bf16(n));
        let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 % vocab) as u32).collect();
        let (targets, losses, lse) = (gpu.upload(&targets).unwrap(), b.f32(rows), b.f32(rows));
        let chunk = cross_entropy::Chunk {
            rows,
            vocab,
            logits: logits.ptr(),
            stride: vocab,
            targets: targets.ptr(),
        };
        let gradient = cross_entropy::Gradient {
            scale: 1e-3,
            d: d.ptr(),
            stride: vocab,
        };
        b.line(
            &format!("cross-entropy loss {rows} x {vocab}"),
            4 * n,
            || cross_entropy::loss(gpu, &chunk, losses.ptr(), lse.ptr()),
        );
        b.line(
            &format!("cross-entropy gradient {rows} x {vocab}"),
            6 * n,
            || cross_entropy::gradient(gpu, &chunk, lse.ptr(), &gradient),
        );
        b.line(
            &format!("cross-entropy fused {rows} x {vocab}"),
            6 * n,
            || cross_entropy::loss_and_gradient(gpu, &chunk, losses.ptr(), lse.ptr(), &gradient),
        );
    }
}

fn steps(b: &Bench) {
    let gpu = &b.gpu;
    for n in [6_000_000, 119_734_272] {
        let (grads, values, first, second) = (b.f32(n), b.f32(n), b.f32(n), b.random(n, |x| x * x));
        let (shadow, out, scratch) = (
            b.bf16(n),
            b.f32(1),
            b.random(optimizer::NORM_SCRATCH, f64::from),
        );
        b.line(&format!("gradient norm {n}"), 4 * n, || {
            optimizer::norm(gpu, n, grads.ptr(), out.ptr(), scratch.ptr())
        });
        let step = optimizer::AdamWStep {
            lr: 1e-5,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            step: 100,
            max_norm: Some(1.0),
        };
        for shadow in [Ptr::NULL, shadow.ptr()] {
            let buffers = optimizer::AdamWBuffers {
                len: n,
                grads: grads.ptr(),
                values: values.ptr(),
                first: first.ptr(),
                second: second.ptr(),
                shadow,
                norm: out.ptr(),
            };
            let bytes = if shadow.address() == 0 { 28 } else { 30 };
            b.line(
                &format!("adamw {n}, {bytes} bytes a value"),
                bytes * n,
                || optimizer::adamw(gpu, &step, &buffers),
            );
        }
    }
}

fn samples(b: &Bench) {
    let gpu = &b.gpu;
    for (rows, vocab) in [(1, 151_936), (8, 151_936), (64, 151_936), (8, 49_152)] {
        // About normal scores of deviation 3, not a language model's: how many tokens top-p keeps is not looked at.
        let logits = b.random(rows * vocab, |x| 3.0 * x + 5.0);
        let seen: Vec<u32> = (0..rows * 1500)
            .map(|i| (i * 7919 % vocab) as u32)
            .collect();
        let who: Vec<Row> = (0..rows)
            .map(|r| Row {
                row: r as u64,
                position: 9,
                seen_start: (r * 1500) as u32,
                seen_len: 1500,
                reserved: 0,
            })
            .collect();
        let (seen, who) = (gpu.upload(&seen).unwrap(), gpu.upload(&who).unwrap());
        let scratch = gpu.alloc::<u8>(sample::scratch_bytes(rows, vocab)).unwrap();
        let out = gpu.alloc::<u32>(rows).unwrap();
        let batch = Batch {
            rows,
            vocab,
            logits: logits.ptr(),
            stride: vocab,
            who: who.ptr(),
            seen: seen.ptr(),
        };
        for (what, sample, top_k, top_p, penalty) in [
            ("greedy", false, 0, 1.0, 1.0),
            ("greedy, penalty", false, 0, 1.0, 1.0001),
            ("draw", true, 0, 1.0, 1.0),
            ("top-k 50", true, 50, 1.0, 1.0),
            ("top-p 0.9", true, 0, 0.9, 1.0),
            ("top-k 50, top-p 0.9, penalty", true, 50, 0.9, 1.0001),
        ] {
            let s = Settings {
                sample,
                temperature: 1.0,
                top_k,
                top_p,
                repetition_penalty: penalty,
                seed: 1,
            };
            let work = || sample::choose(gpu, &batch, &s, scratch.ptr(), out.ptr());
            let launched = b.time(work);
            let graph = gpu.record(work).unwrap();
            // Ten in a row: what one costs inside a step's graph.
            let replayed = b.time(|| (0..10).try_for_each(|_| graph.launch())) / 10.0;
            println!(
                "sample {what:<30} {rows:>3} x {vocab}: {replayed:>7.1} us in a graph, {launched:>7.1} us launched"
            );
        }
    }
}
