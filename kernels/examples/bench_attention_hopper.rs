//! Times Hopper attention at the shapes of real models: TFLOP/s with the causal half counted, backward as 2.5 forwards.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use half::bf16;
use medft_kernels::attention::{self, Backward, Forward, Heads, Rope, Work, Works};
use medft_kernels::attention_hopper::{self, TILE};
use medft_kernels::device::Device;
use medft_kernels::{LaunchError, Launcher};

fn main() {
    let device = Device::open(0).unwrap();
    println!("{}", device.gpu().name);
    for (queries, keys, dim) in [(16, 2, 128), (32, 8, 128), (14, 2, 64)] {
        for (sequences, length) in [(32, 512), (8, 2048), (2, 8192)] {
            shape(
                &device,
                Heads {
                    queries,
                    keys,
                    dim,
                    window: None,
                },
                sequences,
                length,
            );
        }
    }
}

fn median(mut of: impl FnMut() -> f32) -> f32 {
    for _ in 0..5 {
        of();
    }
    let mut times: Vec<f32> = (0..21).map(|_| of()).collect();
    times.sort_by(f32::total_cmp);
    times[10]
}

fn shape(device: &Device, heads: Heads, sequences: usize, length: usize) {
    let tokens = sequences * length;
    let mut state = 1u64;
    let mut random = |len: usize| -> Vec<bf16> {
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| bf16::from_f32(3.4 * next())).collect()
    };
    let o_width = heads.queries * heads.dim;
    let qkv = device.upload(&random(tokens * heads.width())).unwrap();
    let dout = device.upload(&random(tokens * o_width)).unwrap();
    let out = device.alloc::<bf16>(tokens * o_width).unwrap();
    let dqkv = device.alloc::<bf16>(tokens * heads.width()).unwrap();
    let lse = device.alloc::<f32>(heads.queries * tokens).unwrap();
    let delta = device.alloc::<f32>(heads.queries * tokens).unwrap();
    let table = device.upload(&vec![0.7f32; length * heads.dim]).unwrap();
    let positions: Vec<u32> = (0..tokens).map(|t| (t % length) as u32).collect();
    let positions = device.upload(&positions).unwrap();
    let list = device
        .upload::<Work>(&attention::work(&vec![length; sequences], TILE))
        .unwrap();
    let work = Works {
        items: list.ptr(),
        len: list.len(),
        tile: TILE,
    };
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let forward = Forward {
        heads,
        tokens,
        work,
        qkv: qkv.ptr(),
        scale,
        out: out.ptr(),
        lse: lse.ptr(),
    };
    let backward = Backward {
        heads,
        tokens,
        work,
        qkv: qkv.ptr(),
        scale,
        out: out.ptr(),
        lse: lse.ptr(),
        dout: dout.ptr(),
        delta: delta.ptr(),
        rope: Some(Rope {
            table: table.ptr(),
            positions: positions.ptr(),
        }),
        dqkv: dqkv.ptr(),
    };
    let flops = 2.0 * (sequences * length * length * heads.dim * heads.queries) as f64;
    let name = format!(
        "heads {}/{} dim {} {sequences}x{length}",
        heads.queries, heads.keys, heads.dim
    );
    let show = |what: &str, factor: f64, work: &dyn Fn() -> Result<(), LaunchError>| {
        let ms = median(|| device.time(work).unwrap());
        println!(
            "{what} {name}: {ms:.3} ms, {:.0} TFLOP/s",
            factor * flops / f64::from(ms) / 1e9
        );
    };
    show("forward ", 1.0, &|| {
        attention_hopper::forward(device, &forward)
    });
    if std::env::args().nth(1).as_deref() != Some("forward") {
        show("backward", 2.5, &|| {
            attention_hopper::backward(device, &backward)
        });
    }
}
