//! Times the portable matrix products at the models' shapes: op, shape, milliseconds, TFLOP/s, GB/s of what must move.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::gemm::{self, Output};
use medft_kernels::linear::{
    Backward, Dropout, Epilogue, Forward, Group, LowBackward, LowForward, NO_LOW, StepState,
};
use medft_kernels::lora::{self, Grads, Slots};
use medft_kernels::{LaunchError, Ptr, weight_grad};

const TOKENS: usize = 16_384;
const RUNS: usize = 8;

struct Bench {
    device: Device,
    block: Buffer<bf16>,
}

impl Bench {
    /// Random bf16 of deviation 1, repeated from one block.
    fn random(&self, len: usize) -> Buffer<bf16> {
        let buffer = self.device.alloc(len).unwrap();
        let mut at = 0;
        while at < len {
            let n = self.block.len().min(len - at);
            self.device
                .copy(buffer.ptr().at(at), self.block.ptr(), n)
                .unwrap();
            at += n;
        }
        buffer
    }

    fn zeros(&self, len: usize) -> Buffer<f32> {
        let buffer = self.device.alloc(len).unwrap();
        self.device.fill(buffer.ptr(), 0, len).unwrap();
        buffer
    }

    fn time(
        &self,
        what: &str,
        flops: f64,
        bytes: f64,
        mut op: impl FnMut() -> Result<(), LaunchError>,
    ) {
        let mut times: Vec<f32> = (0..RUNS + 2)
            .map(|_| self.device.time(&mut op).unwrap())
            .skip(2)
            .collect();
        times.sort_by(f32::total_cmp);
        let ms = f64::from(times[RUNS / 2]);
        println!(
            "{what:62} {ms:9.4} ms {:7.1} TFLOP/s {:7.0} GB/s",
            flops / ms / 1e9,
            bytes / ms / 1e6
        );
    }
}

fn group(rows: usize, inputs: usize, outputs: [usize; 3], rank: usize) -> Group {
    let mut group = Group {
        rows,
        inputs,
        outputs,
        low_at: [NO_LOW; 3],
        rank,
    };
    let mut at = 0;
    for m in 0..3 {
        if outputs[m] > 0 && rank > 0 {
            group.low_at[m] = at;
            at += rank as u32;
        }
    }
    group
}

fn layer(bench: &Bench, name: &str, group: Group, kind: &str, skinny: bool) {
    let d = &bench.device;
    let (t, k, n, low) = (group.rows, group.inputs, group.columns(), group.low());
    let (x, w, y) = (
        bench.random(t * k),
        bench.random(n * k),
        bench.random(t * n),
    );
    let (h, residual) = (bench.random(t * n / 2), bench.random(t * n));
    let (a, b) = (bench.random(low * k), bench.random(n * group.rank));
    let (low_buffer, g_buffer) = (bench.random(t * low), bench.random(t * low));
    let table = bench.zeros(4096 * 128);
    let positions = d
        .upload(&(0..t as u32).map(|i| i % 4096).collect::<Vec<_>>())
        .unwrap();
    let state = d
        .upload(&[StepState {
            seed: 1,
            step: 2,
            first_token: 0,
            reserved: 0,
        }])
        .unwrap();
    let dropout = Dropout {
        threshold: 6554,
        keep_scale: 1.0 / 0.9,
        state: state.ptr(),
        streams: [1, 2, 3],
    };
    let epilogue = match kind {
        "rope" => Epilogue::Rope {
            table: table.ptr(),
            positions: positions.ptr(),
            head_dim: 128,
            rotated: (group.outputs[0] + group.outputs[1]) / 128,
        },
        "swiglu" => Epilogue::SwiGlu(h.ptr()),
        "residual" => Epilogue::Residual(residual.ptr()),
        _ => Epilogue::None,
    };
    let forward = Forward {
        group,
        x: x.ptr(),
        weight: w.ptr(),
        bias: Ptr::NULL,
        low: (low > 0).then_some(LowForward {
            low: low_buffer.ptr(),
            b: b.ptr(),
        }),
        epilogue,
        y: y.ptr(),
    };
    let at = format!("{name} T={t} K={k} N={n} r={}", group.rank);
    let base = 2.0 * (t * k) as f64 * n as f64;
    let moved = 2.0 * ((t * k) as f64 + (n * k) as f64 + (t * n) as f64);
    let flops = base + 2.0 * (t * group.rank * n) as f64;
    bench.time(&format!("forward {kind} {at}"), flops, moved, || {
        gemm::forward(d, &forward)
    });
    if t < 1024 {
        return;
    }
    for masked in [None, Some(dropout)] {
        if masked.is_some() && !skinny {
            continue;
        }
        let backward = Backward {
            group,
            dy: y.ptr(),
            weight: w.ptr(),
            low: (low > 0).then_some(LowBackward {
                g: low_buffer.ptr(),
                a: a.ptr(),
                dropout: masked,
            }),
            dx: x.ptr(),
        };
        let what = if masked.is_some() {
            "backward dropout"
        } else {
            "backward"
        };
        let flops = base + 2.0 * (t * low * k) as f64;
        bench.time(&format!("{what} {at}"), flops, moved, || {
            gemm::backward(d, &backward)
        });
    }
    if !skinny {
        return;
    }
    let x_bytes = 2.0 * (t * k + t * low + low * k) as f64;
    let dy_bytes = 2.0 * (t * n + t * low + n * group.rank) as f64;
    let flops_a = 2.0 * (t * low) as f64 * k as f64;
    let flops_b = 2.0 * (t * group.rank) as f64 * n as f64;
    let scratch = d.alloc::<f32>(lora::scratch_len(&group)).unwrap();
    let (da, db) = (bench.zeros(low * k), bench.zeros(n * group.rank));
    let (mut members, mut row) = ([None; 3], 0);
    for m in 0..3 {
        if group.low_at[m] != NO_LOW {
            members[m] = Some(Slots {
                a: da.ptr().at(group.low_at[m] as usize * k),
                b: db.ptr().at(row * group.rank),
                rank: group.rank,
            });
        }
        row += group.outputs[m];
    }
    for masked in [None, Some(dropout)] {
        let what = if masked.is_some() { "dropout " } else { "" };
        bench.time(&format!("lora down {what}{at}"), flops_a, x_bytes, || {
            lora::down(
                d,
                &group,
                x.ptr(),
                a.ptr(),
                0.5,
                masked.as_ref(),
                low_buffer.ptr(),
            )
        });
        let grads = Grads {
            x: x.ptr(),
            dy: y.ptr(),
            low: low_buffer.ptr(),
            g: g_buffer.ptr(),
            dropout: masked,
            members,
            scratch: scratch.ptr(),
        };
        bench.time(
            &format!("lora grads {what}{at}"),
            flops_a + flops_b,
            x_bytes + dy_bytes,
            || lora::grads(d, &group, &grads),
        );
    }
    bench.time(&format!("lora up_backward {at}"), flops_b, dy_bytes, || {
        lora::up_backward(d, &group, y.ptr(), b.ptr(), 0.5, g_buffer.ptr())
    });
    let pack_bytes = 6.0 * (low * k + n * group.rank) as f64;
    bench.time(&format!("lora pack {at}"), 0.0, pack_bytes, || {
        lora::pack(d, &group, members, a.ptr(), b.ptr())
    });
}

fn main() {
    let device = Device::open(0).unwrap();
    let mut bits = 1u64;
    let block: Vec<bf16> = (0..(1 << 22) + 8)
        .map(|_| {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bf16::from_f32(((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7)
        })
        .collect();
    let block = device.upload(&block).unwrap();
    println!("{}", {
        use medft_kernels::Launcher;
        device.gpu().name.clone()
    });
    let bench = Bench { device, block };
    let t = TOKENS;
    let layers = [
        ("qwen3b qkv", 2048, [2048, 256, 256], "rope", true),
        ("qwen3b o", 2048, [2048, 0, 0], "residual", false),
        ("qwen3b gate_up", 2048, [11008, 11008, 0], "swiglu", true),
        ("qwen3b down", 11008, [2048, 0, 0], "residual", true),
        ("llama3b qkv", 3072, [3072, 1024, 1024], "rope", false),
        ("llama3b gate_up", 3072, [8192, 8192, 0], "swiglu", false),
        ("llama8b qkv", 4096, [4096, 1024, 1024], "rope", false),
        ("llama8b gate_up", 4096, [14336, 14336, 0], "swiglu", false),
        ("llama8b down", 14336, [4096, 0, 0], "residual", false),
    ];
    for (name, inputs, outputs, kind, skinny) in layers {
        layer(&bench, name, group(t, inputs, outputs, 64), kind, skinny);
    }
    layer(
        &bench,
        "square",
        group(8192, 8192, [8192, 0, 0], 0),
        "none",
        false,
    );
    for rows in [1, 16, 64] {
        layer(
            &bench,
            "qwen3b qkv",
            group(rows, 2048, [2048, 256, 256], 64),
            "rope",
            false,
        );
        layer(
            &bench,
            "qwen3b gate_up",
            group(rows, 2048, [11008, 11008, 0], 64),
            "swiglu",
            false,
        );
        layer(
            &bench,
            "qwen3b down",
            group(rows, 11008, [2048, 0, 0], 64),
            "residual",
            false,
        );
    }
    let d = &bench.device;
    let (m, n, k) = (2560, 2048, t);
    let (dy, x, out) = (bench.random(k * m), bench.random(k * n), bench.zeros(m * n));
    let shape = weight_grad::Shape { rows: k, m, n };
    let scratch_w = bench.zeros(weight_grad::scratch_len(shape));
    bench.time(
        "weight_grad [2560, 2048] T=16384",
        2.0 * (m * n) as f64 * k as f64,
        0.0,
        || {
            weight_grad::weight_grad(
                d,
                shape,
                dy.ptr(),
                m,
                x.ptr(),
                n,
                out.ptr(),
                scratch_w.ptr(),
            )
        },
    );
    let scratch = bench.zeros(weight_grad::bias_scratch_len(k, m));
    bench.time(
        "bias_grad [2560] T=16384",
        0.0,
        2.0 * (k * m) as f64,
        || weight_grad::bias_grad(d, k, m, dy.ptr(), out.ptr(), scratch.ptr()),
    );
    // The head of Qwen2.5-3B: logits of 1024 rows, and their way back.
    let (rows, vocabulary, hidden) = (1024, 151_936, 2048);
    let (x, w) = (
        bench.random(rows * hidden),
        bench.random(vocabulary * hidden),
    );
    let (logits, z, dx) = (
        bench.zeros(rows * vocabulary),
        bench.random(rows * vocabulary),
        bench.random(rows * hidden),
    );
    let flops = 2.0 * (rows * hidden) as f64 * vocabulary as f64;
    let shape = |n, k| gemm::Shape { m: rows, n, k };
    bench.time(
        "plain_nt f32 logits 1024 x 151936 x 2048",
        flops,
        0.0,
        || {
            gemm::plain_nt(
                d,
                shape(vocabulary, hidden),
                x.ptr(),
                hidden,
                w.ptr(),
                hidden,
                Output::F32(logits.ptr()),
            )
        },
    );
    bench.time("plain_nn dx 1024 x 2048 x 151936", flops, 0.0, || {
        gemm::plain_nn(
            d,
            shape(hidden, vocabulary),
            z.ptr(),
            vocabulary,
            w.ptr(),
            hidden,
            Output::Bf16(dx.ptr()),
        )
    });
}
