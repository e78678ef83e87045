//! One way to time an op: criterion's samples of GPU time, and a line that says what part of this run's ceilings it reached.
//!
//! The two ceilings are measured first, by the same code: a dense product of 8192^3 (by our own Hopper product, or the portable one: cuBLAS is
//! not linked) and a copy of 1 GiB. An op's floor is the longer of its FLOPs at the one and its bytes at the other.
//! Invariant: an op's buffers are made when its turn has come, so a filter costs nothing for what it leaves out.

use criterion::Criterion;
use half::bf16;
use medft_kernels::device::{Buffer, Device, Graph};
use medft_kernels::{LaunchError, Launcher, gemm, gemm_hopper};
use std::time::Duration;

const SAMPLES: usize = 10;
/// Elements of the random block that fills every buffer.
const BLOCK: usize = 1 << 22;
/// Before a product's turn: after a second of products the power limit takes a fifth of the GPU's clock.
const REST: Duration = Duration::from_millis(50);

/// What an op must compute and move.
#[derive(Clone, Copy, Default)]
pub struct Work {
    pub flops: f64,
    pub bytes: f64,
}

impl Work {
    pub fn flops(flops: f64) -> Self {
        Work { flops, bytes: 0.0 }
    }

    pub fn bytes(bytes: usize) -> Self {
        Work {
            flops: 0.0,
            bytes: bytes as f64,
        }
    }

    pub fn and_bytes(self, bytes: usize) -> Self {
        Work {
            bytes: bytes as f64,
            ..self
        }
    }
}

/// The GPU and random numbers on it.
pub struct Rig {
    pub gpu: Device,
    normal: Buffer<bf16>,
    wide: Buffer<f32>,
    bits: Buffer<u8>,
    /// About normal numbers of deviation 0.5, on the host.
    pub numbers: Vec<f32>,
}

impl Rig {
    fn fill<T>(&self, block: &Buffer<T>, len: usize) -> Buffer<T> {
        let buffer = self.gpu.alloc::<T>(len).unwrap();
        for at in (0..len).step_by(block.len()) {
            let some = block.len().min(len - at);
            self.gpu
                .copy(buffer.ptr().at(at), block.ptr(), some)
                .unwrap();
        }
        buffer
    }

    /// About normal numbers of deviation 0.5.
    pub fn bf16(&self, len: usize) -> Buffer<bf16> {
        self.fill(&self.normal, len)
    }

    /// The same in f32.
    pub fn f32(&self, len: usize) -> Buffer<f32> {
        self.fill(&self.wide, len)
    }

    /// Random bytes.
    pub fn bytes(&self, len: usize) -> Buffer<u8> {
        self.fill(&self.bits, len)
    }

    pub fn upload<T: bytemuck::Pod>(&self, from: &[T]) -> Buffer<T> {
        self.gpu.upload(from).unwrap()
    }
}

pub struct Bench {
    criterion: Criterion,
    rig: Rig,
    /// TFLOP/s and GB/s.
    dense: f64,
    copy: f64,
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

impl Bench {
    pub fn new(gpu: Device) -> Self {
        let criterion = Criterion::default()
            .sample_size(SAMPLES)
            .warm_up_time(Duration::from_millis(50))
            .measurement_time(Duration::from_millis(250))
            .nresamples(1000)
            .without_plots()
            .configure_from_args();
        let mut state = 1;
        let words: Vec<u64> = (0..BLOCK).map(|_| splitmix(&mut state)).collect();
        let sum = |w: &u64| (0..4).map(|i| (w >> (16 * i)) & 0xffff).sum::<u64>();
        let wide: Vec<f32> = words
            .iter()
            .map(|w| (sum(w) as f32 / 65536.0 - 2.0) * 0.866)
            .collect();
        let normal: Vec<bf16> = wide.iter().map(|x| bf16::from_f32(*x)).collect();
        let rig = Rig {
            normal: gpu.upload(&normal).unwrap(),
            wide: gpu.upload(&wide).unwrap(),
            bits: gpu.upload(bytemuck::cast_slice(&words)).unwrap(),
            gpu,
            numbers: wide,
        };
        let mut bench = Bench {
            criterion,
            rig,
            dense: 0.0,
            copy: 0.0,
        };
        bench.measure_ceilings();
        bench
    }

    /// Whether the Hopper forms run here.
    pub fn hopper(&self) -> bool {
        self.rig.gpu.gpu().hopper
    }

    fn measure_ceilings(&mut self) {
        let (gpu, n) = (&self.rig.gpu, 8192);
        let often = |flop: &dyn Fn() -> Result<(), LaunchError>| {
            for _ in 0..3 {
                gpu.time(flop).unwrap();
            }
            median(
                (0..SAMPLES)
                    .map(|_| f64::from(gpu.time(flop).unwrap()))
                    .collect(),
            )
        };
        let (x, w, y) = (
            self.rig.bf16(n * n),
            self.rig.bf16(n * n),
            self.rig.bf16(n * n),
        );
        let (how, ms) = if gpu.gpu().hopper {
            let plain = gemm_hopper::Plain {
                rows: n,
                inputs: n,
                outputs: n,
                x: x.ptr(),
                weight: w.ptr(),
                y: gemm_hopper::Product::Bf16(y.ptr()),
            };
            ("gemm_hopper", often(&|| gemm_hopper::plain_nt(gpu, &plain)))
        } else {
            let shape = gemm::Shape { m: n, n, k: n };
            let to = gemm::Output::Bf16(y.ptr());
            (
                "gemm",
                often(&|| gemm::plain_nt(gpu, shape, x.ptr(), n, w.ptr(), n, to)),
            )
        };
        self.dense = 2.0 * (n as f64).powi(3) / ms / 1e9;
        let bytes = 1 << 30;
        let (from, to) = (self.rig.bytes(bytes), self.rig.bytes(bytes));
        let ms = often(&|| gpu.copy(to.ptr(), from.ptr(), bytes));
        self.copy = 2.0 * bytes as f64 / ms / 1e6;
        let (major, minor) = gpu.driver_version();
        println!("{}, driver for CUDA {major}.{minor}", gpu.gpu().name);
        println!(
            "ceilings: {:.0} TFLOP/s ({how}, 8192^3, bf16), {:.0} GB/s (copy of 1 GiB, read and written)",
            self.dense, self.copy
        );
    }

    /// Times `op`, launch by launch; for ops that take longer than the host to launch them.
    pub fn case<O>(&mut self, name: &str, work: Work, setup: impl Fn(&Rig) -> O)
    where
        O: Fn(&Device) -> Result<(), LaunchError>,
    {
        let (rig, mut ready, mut times) = (&self.rig, None, Vec::new());
        self.criterion.bench_function(name, |b| {
            let op = ready.get_or_insert_with(|| {
                let op = setup(rig);
                rig.gpu.synchronize().unwrap();
                if work.flops > 0.0 {
                    std::thread::sleep(REST);
                }
                op
            });
            b.iter_custom(|calls| {
                let ms = f64::from(
                    rig.gpu
                        .time(|| (0..calls).try_for_each(|_| op(&rig.gpu)))
                        .unwrap(),
                );
                times.push(ms / calls as f64);
                Duration::from_secs_f64(ms / 1e3)
            });
        });
        self.line(name, work, times);
    }

    /// Times `op` in a graph of `calls` calls, as decoding runs it; `op` is told the number of the call, to rotate what it reads through more
    /// memory than the L2 cache holds.
    pub fn case_in_graph<O>(
        &mut self,
        name: &str,
        work: Work,
        calls: usize,
        setup: impl Fn(&Rig) -> O,
    ) where
        O: Fn(&Device, usize) -> Result<(), LaunchError>,
    {
        let (rig, mut ready, mut times) = (&self.rig, None::<(Graph, O)>, Vec::new());
        self.criterion.bench_function(name, |b| {
            let (graph, _) = ready.get_or_insert_with(|| {
                let op = setup(rig);
                op(&rig.gpu, 0).unwrap(); // loads the module, which a recording cannot
                rig.gpu.synchronize().unwrap();
                let graph = rig
                    .gpu
                    .record::<LaunchError>(|| (0..calls).try_for_each(|i| op(&rig.gpu, i)));
                (graph.unwrap(), op)
            });
            b.iter_custom(|wanted| {
                let launches = wanted.div_ceil(calls as u64);
                let ms = f64::from(
                    rig.gpu
                        .time(|| (0..launches).try_for_each(|_| graph.launch()))
                        .unwrap(),
                );
                let one = ms / (launches * calls as u64) as f64;
                times.push(one);
                Duration::from_secs_f64(one * wanted as f64 / 1e3)
            });
        });
        self.line(name, work, times);
    }

    /// Nothing if a filter left it out.
    fn line(&self, name: &str, work: Work, times: Vec<f64>) {
        if times.is_empty() {
            return;
        }
        let ms = median(times[times.len().saturating_sub(SAMPLES)..].to_vec());
        let (dense, copy) = (work.flops / ms / 1e9, work.bytes / ms / 1e6);
        let (of_dense, of_copy) = (100.0 * dense / self.dense, 100.0 * copy / self.copy);
        let share = if of_dense > of_copy {
            format!("{of_dense:5.1} % of dense")
        } else {
            format!("{of_copy:5.1} % of copy")
        };
        let rate = |rate: f64, unit: &str| {
            if rate > 0.0 {
                format!("{rate:6.0} {unit}")
            } else {
                String::new()
            }
        };
        println!(
            "> {name:<58} {:>9.1} us {:>14} {:>11} {share}",
            ms * 1e3,
            rate(dense, "TFLOP/s"),
            rate(copy, "GB/s")
        );
    }
}
