//! Times NF4 dequantisation and the few-row products at the real models' shapes; weights rotate through more memory than the L2 holds.
//! `bench_nf4 [all]`: `all` times every variant of the products, not only the chosen one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::linear::{Epilogue, Forward, Group, LowForward, NO_LOW};
use medft_kernels::nf4::{self, Absmax, Weights};
use medft_kernels::{LaunchError, Ptr, skinny};

const ROTATE_BYTES: usize = 700 << 20;

/// Random bytes by a small generator on the host, repeated through the buffer: compression and zeros must not flatter.
fn noise(device: &Device, bytes: usize, seed: u64) -> Buffer<u8> {
    let buffer = device.alloc::<u8>(bytes).unwrap();
    let mut state = seed | 1;
    let block: Vec<u64> = (0..(4 << 20) / 8)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // As bf16 each half is about 2^-6: an exponent of 0x79 or so and random sign and mantissa.
            state & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00
        })
        .collect();
    for at in (0..bytes).step_by(4 << 20) {
        let len = (bytes - at).min(4 << 20);
        device
            .write(
                buffer.ptr().at(at),
                &bytemuck::cast_slice::<u64, u8>(&block)[..len],
            )
            .unwrap();
    }
    buffer
}

/// Median microseconds of one call among `calls` calls in a graph, over 11 launches: decode runs as a graph, and the host takes longer
/// to launch one of these kernels than the GPU to run it.
fn median(
    device: &Device,
    calls: usize,
    mut work: impl FnMut(usize) -> Result<(), LaunchError>,
) -> f64 {
    work(0).unwrap(); // loads the module, which a recording cannot
    let graph = device
        .record(|| (0..calls).try_for_each(&mut work))
        .unwrap();
    graph.launch().unwrap();
    let mut times: Vec<f32> = (0..11)
        .map(|_| device.time(|| graph.launch()).unwrap())
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[5]) * 1000.0 / calls as f64
}

struct Bench<'a> {
    device: &'a Device,
    pool: Buffer<u8>,
    copy: f64,
    all: bool,
}

impl Bench<'_> {
    /// One product with weights of `weight_bytes`, at `rows` rows.
    fn product(
        &self,
        what: &str,
        inputs: usize,
        outputs: [usize; 3],
        nf4: bool,
        low: bool,
        epilogue: &str,
    ) {
        let device = self.device;
        let n: usize = outputs.iter().sum();
        let codes = n * inputs / 2;
        let blocks = n * inputs / 64;
        let bytes = if nf4 {
            codes + blocks + blocks / 64
        } else {
            2 * n * inputs
        };
        let span = (bytes + 4096).next_multiple_of(4096);
        let copies = (self.pool.len() / span).max(1);
        let x = noise(device, 64 * inputs * 2, 3);
        let (y, h) = (
            device.alloc::<bf16>(64 * n).unwrap(),
            device.alloc::<bf16>(64 * n).unwrap(),
        );
        let table = device.upload(&vec![0.5f32; 64 * 128]).unwrap();
        let positions = device.upload(&vec![3u32; 64]).unwrap();
        let b = noise(device, n * 64 * 2, 5);
        let low_buffer = noise(device, 64 * 192 * 2, 7);
        for rows in [1, 2, 4, 8, 16, 48] {
            let low_at = if low {
                [
                    0,
                    if outputs[1] > 0 { 64 } else { NO_LOW },
                    if outputs[2] > 0 { 128 } else { NO_LOW },
                ]
            } else {
                [NO_LOW; 3]
            };
            let group = Group {
                rows,
                inputs,
                outputs,
                low_at,
                rank: if low { 64 } else { 0 },
            };
            let call = |i: usize, name: Option<&str>| {
                let at = self.pool.ptr().at(i % copies * span);
                let forward = Forward {
                    group,
                    x: x.ptr().cast(),
                    weight: at.cast(),
                    bias: Ptr::NULL,
                    low: low.then(|| LowForward {
                        low: low_buffer.ptr().cast(),
                        b: b.ptr().cast(),
                    }),
                    epilogue: match epilogue {
                        "rope" => Epilogue::Rope {
                            table: table.ptr(),
                            positions: positions.ptr(),
                            head_dim: 128,
                            rotated: (outputs[0] + outputs[1]) / 128,
                        },
                        "swiglu" => Epilogue::SwiGlu(h.ptr()),
                        "residual" => Epilogue::Residual(h.ptr()),
                        _ => Epilogue::None,
                    },
                    y: y.ptr(),
                };
                // Members share one buffer here: the addresses of each follow one another.
                let mut first = 0;
                let weights: Vec<Weights> = outputs
                    .iter()
                    .filter(|n| **n > 0)
                    .map(|n| {
                        let begin = first;
                        first += n * inputs;
                        Weights {
                            packed: at.at(begin / 2),
                            absmax: Absmax::Double {
                                codes: at.at(codes + begin / 64),
                                absmax2: at.at(codes + blocks).cast::<f32>().at(begin / 64 / 256),
                                offset: 0.01,
                            },
                        }
                    })
                    .collect();
                match (name, nf4) {
                    (Some(name), _) => {
                        skinny::forward_by(device, &forward, nf4.then_some(&weights[..]), name)
                    }
                    (None, true) => skinny::forward_nf4(device, &forward, &weights),
                    (None, false) => skinny::forward_bf16(device, &forward),
                }
            };
            let kind = if nf4 { "nf4+dq" } else { "bf16" };
            let line = |name: &str, us: f64| {
                let rate = bytes as f64 / us / 1e3;
                println!(
                    "{what:8} {kind:6} {inputs:5} x {n:5} T {rows:2} {name:26} {us:8.2} us {rate:7.0} GB/s {:5.1}% of copy",
                    rate / self.copy * 100.0
                );
            };
            line("chosen", median(device, 24, |i| call(i, None)));
            if self.all {
                for name in skinny::variants(nf4) {
                    if call(0, Some(name)).is_ok() {
                        line(name, median(device, 24, |i| call(i, Some(name))));
                    }
                }
            }
        }
    }

    fn down(&self, inputs: usize, width: usize) {
        let device = self.device;
        let x = noise(device, 16 * inputs * 2, 3);
        let low = device.alloc::<bf16>(16 * width).unwrap();
        let span = width * inputs * 2;
        for rows in [1, 4, 16] {
            let group = Group {
                rows,
                inputs,
                outputs: [8, 0, 0],
                low_at: [0, NO_LOW, NO_LOW],
                rank: width,
            };
            let us = median(device, 24, |i| {
                let a = self.pool.ptr().at(i % (self.pool.len() / span) * span);
                skinny::down(device, &group, x.ptr().cast(), a.cast(), 1.0, low.ptr())
            });
            println!("down     bf16   {inputs:5} x {width:5} T {rows:2} {us:8.2} us");
        }
    }
}

fn main() {
    let device = Device::open(0).unwrap();
    println!("{:?}", medft_kernels::Launcher::gpu(&device));
    let pool = noise(&device, ROTATE_BYTES, 1);
    let to = device.alloc::<u8>(ROTATE_BYTES).unwrap();
    // Launched, not recorded: an H100 gave 2993 GB/s for 400 MiB so, and 2435 for 700 MiB in a graph.
    let mut times: Vec<f32> = (0..11)
        .map(|_| {
            device
                .time(|| device.copy(to.ptr(), pool.ptr(), ROTATE_BYTES))
                .unwrap()
        })
        .collect();
    times.sort_by(f32::total_cmp);
    let copy = 2.0 * ROTATE_BYTES as f64 / f64::from(times[5]) / 1e6;
    println!("copy {copy:.0} GB/s (read + write)");
    drop(to);

    for values in [4096 * 4096usize, 28672 * 4096, 8 * 28672 * 4096] {
        let (codes, blocks) = (values / 2, values / 64);
        if codes + blocks + blocks / 64 > pool.len() {
            continue;
        }
        let out = device.alloc::<bf16>(values).unwrap();
        for double in [false, true] {
            let absmax = if double {
                Absmax::Double {
                    codes: pool.ptr().at(codes),
                    absmax2: pool.ptr().at(codes + blocks).cast(),
                    offset: 0.01,
                }
            } else {
                Absmax::Plain(pool.ptr().at(0).cast())
            };
            let bytes = values * 2
                + codes
                + if double {
                    blocks + blocks / 64
                } else {
                    4 * blocks
                };
            let us = median(&device, 10, |_| {
                nf4::dequantize(
                    &device,
                    &Weights {
                        packed: pool.ptr(),
                        absmax,
                    },
                    values,
                    out.ptr(),
                )
            });
            let rate = bytes as f64 / us / 1e3;
            println!(
                "dequantise {values} double {double}: {us:.2} us {rate:.0} GB/s {:.1}% of copy",
                rate / copy * 100.0
            );
        }
    }

    let bench = Bench {
        device: &device,
        pool,
        copy,
        all: std::env::args().nth(1).is_some_and(|a| a == "all"),
    };
    bench.product("qkv", 4096, [4096, 1024, 1024], true, false, "rope");
    bench.product("qkv+lora", 4096, [4096, 1024, 1024], true, true, "rope");
    bench.product("o", 4096, [4096, 0, 0], true, false, "residual");
    bench.product("gate/up", 4096, [14336, 14336, 0], true, false, "swiglu");
    bench.product("down", 14336, [4096, 0, 0], true, false, "residual");
    bench.product("qkv", 2048, [2048, 256, 256], false, false, "rope");
    bench.product("o", 2048, [2048, 0, 0], false, false, "residual");
    bench.product("gate/up", 2048, [11008, 11008, 0], false, false, "swiglu");
    bench.product("down", 11008, [2048, 0, 0], false, false, "residual");
    bench.product("head", 2048, [151_936, 0, 0], false, false, "");
    bench.down(2048, 192);
    bench.down(4096, 128);
    bench.down(14336, 64);
}
