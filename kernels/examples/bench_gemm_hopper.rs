//! Times the Hopper matrix products at the models' shapes: `bench_gemm_hopper [part of a line's name]`.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../tests/gpu/mod.rs"]
mod gpu;

use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::gemm_hopper::{self, Plain, Product, Tile};
use medft_kernels::linear::{
    Backward, Dropout, Epilogue, Forward, Group, LowBackward, LowForward, NO_LOW, StepState,
};
use medft_kernels::{LaunchError, Launcher, Ptr};

const T: usize = 16_384;
const RUNS: usize = 10;

/// Random bf16 of any size: one block of 4 Mi elements, copied.
fn random(d: &Device, len: usize, seed: u64) -> Buffer<bf16> {
    let some = gpu::Random(seed).bf16s(len.min(1 << 22), 0.5);
    let buffer = d.alloc::<bf16>(len).unwrap();
    for (i, at) in (0..len).step_by(1 << 22).enumerate() {
        let part = (len - at).min(1 << 22);
        if i == 0 {
            d.write(buffer.ptr(), &some).unwrap()
        } else {
            d.copy(buffer.ptr().at(at), buffer.ptr(), part).unwrap()
        }
    }
    buffer
}

fn time(d: &Device, name: &str, flop: f64, op: impl Fn() -> Result<(), LaunchError>) {
    if std::env::args()
        .nth(1)
        .is_some_and(|part| !name.contains(&part))
    {
        return;
    }
    // A rest before each op: after a second of products the GPU's power limit takes a fifth of its clock.
    d.synchronize().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    for _ in 0..2 {
        op().unwrap();
    }
    let mut times: Vec<f32> = (0..RUNS).map(|_| d.time(&op).unwrap()).collect();
    times.sort_by(f32::total_cmp);
    let ms = f64::from(times[RUNS / 2]);
    println!(
        "{name:<44} {ms:8.3} ms {:7.1} TFLOP/s (best {:.3})",
        flop / ms / 1e9,
        times[0]
    );
}

fn main() {
    let d = &Device::open(0).unwrap();
    println!("{}", d.gpu().name);
    let state = d
        .upload(&[StepState {
            seed: 3,
            step: 4,
            first_token: 5,
            reserved: 0,
        }])
        .unwrap();
    let members = |n: usize, rank: usize| -> [u32; 3] {
        std::array::from_fn(|m| {
            if m < n && rank > 0 {
                (m * rank) as u32
            } else {
                NO_LOW
            }
        })
    };
    let shapes: [(&str, usize, [usize; 3]); 7] = [
        ("3B qkv", 2048, [2048, 256, 256]),
        ("3B o", 2048, [2048, 0, 0]),
        ("3B gate/up", 2048, [11008, 11008, 0]),
        ("3B down", 11008, [2048, 0, 0]),
        ("8B qkv", 4096, [4096, 1024, 1024]),
        ("8B gate/up", 4096, [14336, 14336, 0]),
        ("8B down", 14336, [4096, 0, 0]),
    ];
    for (shape, inputs, outputs) in shapes {
        let columns: usize = outputs.iter().sum();
        let count = outputs.iter().filter(|n| **n > 0).count();
        let (x, w, y) = (
            random(d, T * inputs, 1),
            random(d, columns * inputs, 2),
            random(d, T * columns, 3),
        );
        let (low, b, a) = (
            random(d, T * 192, 4),
            random(d, columns * 64, 5),
            random(d, 192 * inputs, 6),
        );
        let (out, hidden, res) = (
            random(d, T * columns, 7),
            random(d, T * columns / 2, 8),
            random(d, T * columns, 9),
        );
        let (table, positions) = (
            d.upload(&vec![0.7f32; 4096 * 128]).unwrap(),
            d.upload(&(0..T).map(|t| t as u32 % 4096).collect::<Vec<_>>())
                .unwrap(),
        );
        let flop = 2.0 * T as f64 * inputs as f64 * columns as f64;
        let group = |rank: usize| Group {
            rows: T,
            inputs,
            outputs,
            low_at: members(count, rank),
            rank,
        };
        let forward = |rank: usize, epilogue: Epilogue, tile| {
            let low = (rank > 0).then(|| LowForward {
                low: low.ptr(),
                b: b.ptr(),
            });
            gemm_hopper::forward_with(
                d,
                &Forward {
                    group: group(rank),
                    x: x.ptr(),
                    weight: w.ptr(),
                    bias: Ptr::NULL,
                    low,
                    epilogue,
                    y: out.ptr(),
                },
                tile,
            )
        };
        let backward = |rank: usize, dropout: bool, tile| {
            let dropout = dropout.then(|| Dropout {
                threshold: 6554,
                keep_scale: 1.1,
                state: state.ptr(),
                streams: [1, 2, 3],
            });
            let low = (rank > 0).then(|| LowBackward {
                g: low.ptr(),
                a: a.ptr(),
                dropout,
            });
            gemm_hopper::backward_with(
                d,
                &Backward {
                    group: group(rank),
                    dy: y.ptr(),
                    weight: w.ptr(),
                    low,
                    dx: x.ptr(),
                },
                tile,
            )
        };
        for tile in [Tile::Pair256, Tile::Single128] {
            time(d, &format!("{shape} forward {tile:?}"), flop, || {
                forward(0, Epilogue::None, Some(tile))
            });
            time(d, &format!("{shape} dX {tile:?}"), flop, || {
                backward(0, false, Some(tile))
            });
        }
        time(d, &format!("{shape} forward r64"), flop, || {
            forward(64, Epilogue::None, None)
        });
        time(d, &format!("{shape} dX r64"), flop, || {
            backward(64, false, None)
        });
        time(d, &format!("{shape} dX r64 dropout Pair256"), flop, || {
            backward(64, true, Some(Tile::Pair256))
        });
        time(
            d,
            &format!("{shape} dX r64 dropout Single128"),
            flop,
            || backward(64, true, Some(Tile::Single128)),
        );
        if shape.ends_with("qkv") {
            let rotated = (outputs[0] + outputs[1]) / 128;
            let rope = Epilogue::Rope {
                table: table.ptr(),
                positions: positions.ptr(),
                head_dim: 128,
                rotated,
            };
            time(d, &format!("{shape} forward r64 rope"), flop, || {
                forward(64, rope, None)
            });
        } else if shape.ends_with("up") {
            time(d, &format!("{shape} forward r0 swiglu"), flop, || {
                forward(0, Epilogue::SwiGlu(hidden.ptr()), None)
            });
            time(d, &format!("{shape} forward r64 swiglu"), flop, || {
                forward(64, Epilogue::SwiGlu(hidden.ptr()), None)
            });
        } else {
            time(d, &format!("{shape} forward r64 residual"), flop, || {
                forward(64, Epilogue::Residual(res.ptr()), None)
            });
        }
    }
    let (rows, inputs, outputs) = (2048, 2048, 151_936);
    let (x, w, y) = (
        random(d, rows * inputs, 1),
        random(d, outputs * inputs, 2),
        d.alloc::<f32>(rows * outputs).unwrap(),
    );
    for y in [Product::Bf16(y.ptr().cast()), Product::F32(y.ptr())] {
        let plain = Plain {
            rows,
            inputs,
            outputs,
            x: x.ptr(),
            weight: w.ptr(),
            y,
        };
        let name = format!(
            "3B head 2048 rows {}",
            if matches!(y, Product::F32(_)) {
                "f32"
            } else {
                "bf16"
            }
        );
        time(
            d,
            &name,
            2.0 * (rows * inputs) as f64 * outputs as f64,
            || gemm_hopper::plain_nt(d, &plain),
        );
    }
}
