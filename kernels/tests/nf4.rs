//! NF4 quantisation and dequantisation on the GPU: bit-equal to the engine's CPU form (ported below) and to bitsandbytes' golden files.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "gpu/mod.rs"]
mod gpu;

use gpu::{CODEBOOK, Random, poisoned, poisoned_f32};
use half::bf16;
use medft_kernels::Ptr;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::nf4::{self, Absmax, Source, Weights};
use proptest::prelude::*;
use std::path::PathBuf;

/// engine/model/nf4.rs, `quantize_block`.
fn quantize_on_cpu(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = Vec::new();
    for (block, packed) in values.chunks(64).zip(packed.chunks_mut(32)) {
        let largest = block.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let unit = if largest > 0.0 { largest } else { 1.0 };
        let mut codes = [7u8; 64];
        for (code, x) in codes.iter_mut().zip(block) {
            let x = x / unit;
            *code = (0..15)
                .map(|i| {
                    u8::from((((CODEBOOK[i] as f64 + CODEBOOK[i + 1] as f64) / 2.0) as f32) < x)
                })
                .sum();
        }
        for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        absmax.push(largest);
    }
    (packed, absmax)
}

/// engine/model/nf4/dynamic_map.rs.
fn dynamic_map() -> [f32; 256] {
    let boundary = |i: usize, cells: usize| {
        let (low, high) = (0.1f32, 1.0f32);
        let step = (high - low) / cells as f32;
        if i < cells.div_ceil(2) {
            step.mul_add(i as f32, low)
        } else {
            (-step).mul_add((cells - i) as f32, high)
        }
    };
    let mut map = vec![0.0f32, 1.0];
    for decade in 0..7 {
        let cells = 1usize << decade;
        let power = 10f64.powi(decade - 6) as f32;
        for cell in 0..cells {
            let centre = (boundary(cell, cells) + boundary(cell + 1, cells)) / 2.0;
            map.extend([power * centre, -power * centre]);
        }
    }
    map.sort_by(f32::total_cmp);
    map.try_into().unwrap()
}

/// engine/model/nf4/absmax.rs, `Absmax::double` around a given mean.
fn double_on_cpu(scales: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let map = dynamic_map();
    let (mut codes, mut absmax) = (Vec::new(), Vec::new());
    for block in scales.chunks(256) {
        let largest = block.iter().map(|s| (s - offset).abs()).fold(0.0, f32::max);
        let unit = if largest > 0.0 { largest } else { 1.0 };
        codes.extend(block.iter().map(|s| {
            let x = (s - offset) / unit;
            let above = map.partition_point(|entry| *entry < x).min(255);
            let below = above.saturating_sub(1);
            (if x - map[below] <= map[above] - x {
                below
            } else {
                above
            }) as u8
        }));
        absmax.push(largest);
    }
    (codes, absmax)
}

fn scales_on_cpu(codes: &[u8], absmax2: &[f32], offset: f32) -> Vec<f32> {
    let map = dynamic_map();
    codes
        .iter()
        .enumerate()
        .map(|(i, c)| map[usize::from(*c)] * absmax2[i / 256] + offset)
        .collect()
}

fn dequantize_on_cpu(packed: &[u8], scales: &[f32], values: usize) -> Vec<f32> {
    (0..values)
        .map(|i| {
            let byte = packed[i / 2];
            let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
            CODEBOOK[usize::from(code)] * scales[i / 64]
        })
        .collect()
}

fn same_bits(what: &str, got: &[bf16], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(
            g.to_bits(),
            bf16::from_f32(*w).to_bits(),
            "{what}: value {i} of {}: got {g} wanted {w}",
            got.len()
        );
    }
}

struct Quantised {
    packed: Buffer<u8>,
    absmax: Buffer<f32>,
    codes: Buffer<u8>,
    absmax2: Buffer<f32>,
}

/// Quantises on the GPU, compares everything with the CPU, dequantises in both forms and compares again.
fn check(device: &Device, what: &str, values: &[f32], offset: Option<f32>) -> Quantised {
    let n = values.len();
    let blocks = n.div_ceil(64);
    let w = device.upload(values).unwrap();
    let packed = device.upload(&vec![0xAAu8; n.div_ceil(2)]).unwrap();
    let absmax = poisoned_f32(device, blocks);
    nf4::quantize(device, Source::F32(w.ptr()), n, packed.ptr(), absmax.ptr()).unwrap();
    let (want_packed, want_absmax) = quantize_on_cpu(values);
    assert_eq!(packed.download().unwrap(), want_packed, "{what}: codes");
    assert_eq!(absmax.download().unwrap(), want_absmax, "{what}: absmax");

    let offset = offset.unwrap_or_else(|| {
        (want_absmax.iter().map(|v| f64::from(*v)).sum::<f64>() / blocks as f64) as f32
    });
    let codes = device.upload(&vec![0xAAu8; blocks]).unwrap();
    let absmax2 = poisoned_f32(device, blocks.div_ceil(256));
    nf4::double_quantize(
        device,
        absmax.ptr(),
        blocks,
        offset,
        codes.ptr(),
        absmax2.ptr(),
    )
    .unwrap();
    let (want_codes, want_absmax2) = double_on_cpu(&want_absmax, offset);
    assert_eq!(codes.download().unwrap(), want_codes, "{what}: scale codes");
    assert_eq!(
        absmax2.download().unwrap(),
        want_absmax2,
        "{what}: nested absmax"
    );

    let double = Absmax::Double {
        codes: codes.ptr(),
        absmax2: absmax2.ptr(),
        offset,
    };
    let nested = scales_on_cpu(&want_codes, &want_absmax2, offset);
    for (form, scales, absmax) in [
        ("plain", &want_absmax, Absmax::Plain(absmax.ptr())),
        ("double", &nested, double),
    ] {
        // A guard behind the values shows a write too far.
        let out = poisoned(device, n + 16);
        nf4::dequantize(
            device,
            &Weights {
                packed: packed.ptr(),
                absmax,
            },
            n,
            out.ptr(),
        )
        .unwrap();
        let out = out.download().unwrap();
        same_bits(
            &format!("{what} {form}"),
            &out[..n],
            &dequantize_on_cpu(&want_packed, scales, n),
        );
        assert!(
            out[n..].iter().all(|v| v.to_bits() == 0xffff),
            "{what} {form}: wrote behind the end"
        );
    }
    Quantised {
        packed,
        absmax,
        codes,
        absmax2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_count_is_bit_equal_to_the_cpu(n in 1usize..40_000, seed: u64, log_deviation in -30i32..10) {
        let Some(device) = gpu::gpu() else { return Ok(()) };
        let values = Random(seed).f32s(n, 2f64.powi(log_deviation));
        check(device, &format!("{n} values"), &values, None);
    }
}

#[test]
fn edges_of_words_blocks_and_nested_blocks() {
    let Some(device) = gpu::gpu() else { return };
    for n in [
        1,
        2,
        7,
        8,
        9,
        63,
        64,
        65,
        127,
        129,
        2047,
        2049,
        16383,
        16384,
        16385,
        64 * 256 - 1,
        64 * 256 + 1,
        33 * 70,
        5 * 13,
    ] {
        check(
            device,
            &format!("{n} values"),
            &Random(n as u64).f32s(n, 0.02),
            None,
        );
    }
}

#[test]
fn zeros_ties_and_extremes() {
    let Some(device) = gpu::gpu() else { return };
    let mut values = vec![0.0f32; 320];
    values[64..128].copy_from_slice(&[1.0; 64]);
    for (i, value) in values[128..192].iter_mut().enumerate() {
        // Midpoints themselves, exactly: a tie belongs to the lower code.
        let i = i % 15;
        *value = ((CODEBOOK[i] as f64 + CODEBOOK[i + 1] as f64) / 2.0) as f32;
    }
    values[191] = -1.0;
    values[192..256].copy_from_slice(&[f32::MIN_POSITIVE / 8.0; 64]); // denormal
    values[256] = 1e38;
    let q = check(device, "extremes", &values, None);
    assert_eq!(&q.packed.download().unwrap()[..32], &[0x77; 32]);
    assert_eq!(q.absmax.download().unwrap()[0], 0.0);
    check(device, "all zero", &[0.0; 130], None);
    check(device, "equal scales", &[0.5; 64 * 300], Some(0.5));
}

#[test]
fn bf16_values_quantise_as_their_f32_values() {
    let Some(device) = gpu::gpu() else { return };
    for n in [1, 64, 999, 4096 * 3 + 5] {
        let values = Random(n as u64).bf16s(n, 0.03);
        let wide: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
        let w = device.upload(&values).unwrap();
        let packed = device.upload(&vec![0xAAu8; n.div_ceil(2)]).unwrap();
        let absmax = poisoned_f32(device, n.div_ceil(64));
        nf4::quantize(device, Source::Bf16(w.ptr()), n, packed.ptr(), absmax.ptr()).unwrap();
        let (want_packed, want_absmax) = quantize_on_cpu(&wide);
        assert_eq!(packed.download().unwrap(), want_packed);
        assert_eq!(absmax.download().unwrap(), want_absmax);
    }
}

#[test]
fn nothing_to_do_is_no_error() {
    let Some(device) = gpu::gpu() else { return };
    nf4::quantize(device, Source::F32(Ptr::NULL), 0, Ptr::NULL, Ptr::NULL).unwrap();
    let weights = Weights {
        packed: Ptr::NULL,
        absmax: Absmax::Plain(Ptr::NULL),
    };
    nf4::dequantize(device, &weights, 0, Ptr::NULL).unwrap();
}

/// Bytes of tensor `name` of a safetensors file, found by its key in the JSON header.
fn tensor<'a>(file: &'a [u8], name: &str) -> &'a [u8] {
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + header_len]).unwrap();
    let entry = &header[header
        .find(&format!("\"{name}\":"))
        .unwrap_or_else(|| panic!("no tensor {name}"))..];
    let offsets = &entry[entry.find("\"data_offsets\":[").unwrap() + 16..];
    let (from, rest) = offsets.split_once(',').unwrap();
    let (to, _) = rest.split_once(']').unwrap();
    let at = |text: &str| 8 + header_len + text.trim().parse::<usize>().unwrap();
    &file[at(from)..at(to)]
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn golden_matrices_of_bitsandbytes() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into();
    let shared = std::env::var_os("MEDFT_SHARED").map_or(beside, PathBuf::from);
    let Ok(file) = std::fs::read(shared.join("golden/nf4.safetensors")) else {
        eprintln!("skipped: no golden/nf4.safetensors in {}", shared.display());
        return;
    };
    assert_eq!(floats(tensor(&file, "nf4_codebook")), CODEBOOK);
    assert_eq!(floats(tensor(&file, "nf4_dynamic_map")), dynamic_map());
    let Some(device) = gpu::gpu() else { return };
    for m in [
        "m64x128",
        "m128x256",
        "m33x70",
        "m5x13",
        "m16x64_zero_block",
        "m48x96_heavy_tailed",
    ] {
        let part = |name: &str| tensor(&file, &format!("{m}.{name}"));
        let values = floats(part("weight"));
        let offset = floats(part("nested.offset"))[0];
        let q = check(device, m, &values, Some(offset));
        assert_eq!(q.packed.download().unwrap(), part("packed"), "{m}");
        assert_eq!(q.absmax.download().unwrap(), floats(part("absmax")), "{m}");
        assert_eq!(q.codes.download().unwrap(), part("nested.codes"), "{m}");
        assert_eq!(
            q.absmax2.download().unwrap(),
            floats(part("nested.absmax")),
            "{m}"
        );
        let out = poisoned(device, values.len());
        let absmax = Absmax::Double {
            codes: q.codes.ptr(),
            absmax2: q.absmax2.ptr(),
            offset,
        };
        nf4::dequantize(
            device,
            &Weights {
                packed: q.packed.ptr(),
                absmax,
            },
            values.len(),
            out.ptr(),
        )
        .unwrap();
        same_bits(m, &out.download().unwrap(), &floats(part("dequant_double")));
    }
}

#[test]
fn twenty_runs_are_bitwise_equal() {
    let Some(device) = gpu::gpu() else { return };
    let n = 512 * 1024 + 17;
    let w = device.upload(&Random(5).f32s(n, 0.02)).unwrap();
    let mut first: Option<(Vec<u8>, Vec<u8>, Vec<bf16>)> = None;
    for _ in 0..20 {
        let packed = device.upload(&vec![0xAAu8; n.div_ceil(2)]).unwrap();
        let absmax = poisoned_f32(device, n.div_ceil(64));
        let codes = device.upload(&vec![0xAAu8; n.div_ceil(64)]).unwrap();
        let absmax2 = poisoned_f32(device, n.div_ceil(64 * 256));
        let out = poisoned(device, n);
        nf4::quantize(device, Source::F32(w.ptr()), n, packed.ptr(), absmax.ptr()).unwrap();
        nf4::double_quantize(
            device,
            absmax.ptr(),
            n.div_ceil(64),
            0.05,
            codes.ptr(),
            absmax2.ptr(),
        )
        .unwrap();
        let absmax = Absmax::Double {
            codes: codes.ptr(),
            absmax2: absmax2.ptr(),
            offset: 0.05,
        };
        nf4::dequantize(
            device,
            &Weights {
                packed: packed.ptr(),
                absmax,
            },
            n,
            out.ptr(),
        )
        .unwrap();
        let got = (
            packed.download().unwrap(),
            codes.download().unwrap(),
            out.download().unwrap(),
        );
        let first = first.get_or_insert_with(|| got.clone());
        assert!(*first == got, "runs differ");
    }
}
