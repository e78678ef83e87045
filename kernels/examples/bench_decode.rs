//! Times the decoding step's attention: GB/s of keys and values read.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use half::bf16;
use medft_kernels::attention::{Heads, Works};
use medft_kernels::decode::{self, Cache, Cached, Place};
use medft_kernels::device::Device;
use medft_kernels::{LaunchError, Ptr};

fn main() {
    let device = Device::open(0).unwrap();
    println!("{:?}", medft_kernels::Launcher::gpu(&device).name);
    for (queries, keys, dim) in [(16, 2, 128), (32, 8, 128), (9, 3, 64)] {
        for batch in [1, 48] {
            for context in [544, 4096] {
                let heads = Heads {
                    queries,
                    keys,
                    dim,
                    window: None,
                };
                shape(&device, heads, batch, context);
            }
        }
    }
}

fn shape(device: &Device, heads: Heads, batch: usize, context: usize) {
    let capacity = context.next_multiple_of(64);
    let lane = batch * heads.keys * capacity * heads.dim;
    // Layers enough that a layer's cache has left L2 when its turn comes again.
    let layers = (256usize << 20).div_ceil(4 * lane).clamp(1, 28);
    let (keys, values) = (
        device.alloc::<bf16>(layers * lane).unwrap(),
        device.alloc::<bf16>(layers * lane).unwrap(),
    );
    device.fill(keys.ptr(), 0x3c, layers * lane).unwrap();
    device.fill(values.ptr(), 0x3c, layers * lane).unwrap();
    let qkv = device.alloc::<bf16>(batch * heads.width()).unwrap();
    device.fill(qkv.ptr(), 0x3c, batch * heads.width()).unwrap();
    let out = device
        .alloc::<bf16>(batch * heads.queries * heads.dim)
        .unwrap();
    let places: Vec<Place> = (0..batch as u32)
        .map(|s| Place {
            slot: s,
            past: context as u32 - 1,
            start: s,
            length: 1,
        })
        .collect();
    let places = device.upload(&places).unwrap();
    let partial = device
        .alloc::<f32>(decode::scratch_len(&heads, batch, context))
        .unwrap();
    let step = |layer: usize| {
        decode::append_and_attend(
            device,
            &Cached {
                heads,
                scale: 1.0 / (heads.dim as f32).sqrt(),
                tokens: batch,
                qkv: qkv.ptr(),
                places: places.ptr(),
                sequences: batch,
                longest_new: 1,
                longest: context,
                cache: Cache {
                    keys: keys.ptr().at(layer * lane),
                    values: values.ptr().at(layer * lane),
                    capacity,
                },
                work: Works {
                    items: Ptr::NULL,
                    len: 0,
                    tile: 0,
                },
                partial: partial.ptr(),
                out: out.ptr(),
            },
        )
    };
    // A graph of all layers, so that the host's launches are not what is timed.
    step(0).unwrap();
    let graph = device
        .record::<LaunchError>(|| (0..4 * layers).try_for_each(|i| step(i % layers)))
        .unwrap();
    let mut times: Vec<f32> = (0..12)
        .map(|_| device.time(|| graph.launch()).unwrap())
        .collect();
    times.sort_by(f32::total_cmp);
    let us = f64::from(times[6]) * 1e3 / (4 * layers) as f64;
    let bytes = (batch * heads.keys * context * heads.dim * 4) as f64;
    println!(
        "decode heads {}/{} dim {} batch {batch} context {context}: {us:.2} us, {:.0} GB/s",
        heads.queries,
        heads.keys,
        heads.dim,
        bytes / us / 1e3
    );
}
