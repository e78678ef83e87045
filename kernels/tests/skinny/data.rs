//! Random cases of the few-row products: shapes, data on both sides, and the values that NF4 weights stand for.
#![allow(dead_code)]

use crate::gpu::{CODEBOOK, Random, poisoned_f32};
use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::linear::{Group, NO_LOW};
use medft_kernels::nf4::{self, Absmax, Source, Weights};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Plain,
    Residual,
    /// Head width and rotated heads.
    Rope(usize, usize),
    SwiGlu,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Storage {
    Bf16,
    Nf4,
    /// Double quantisation.
    Nf4Double,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: [usize; 3],
    pub rank: usize,
    /// Which members have an adapter.
    pub adapted: [bool; 3],
    pub bias: bool,
    pub kind: Kind,
    pub storage: Storage,
}

impl Case {
    pub fn group(&self) -> Group {
        let mut at = 0;
        let low_at = std::array::from_fn(|m| {
            if !self.adapted[m] || self.outputs[m] == 0 || self.rank == 0 {
                return NO_LOW;
            }
            at += self.rank;
            (at - self.rank) as u32
        });
        Group {
            rows: self.rows,
            inputs: self.inputs,
            outputs: self.outputs,
            low_at,
            rank: self.rank,
        }
    }
}

/// A case's data on both sides.
pub struct Data {
    pub case: Case,
    pub x: Vec<bf16>,
    /// What the stored weights stand for.
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub low: Vec<bf16>,
    pub b: Vec<bf16>,
    pub residual: Vec<bf16>,
    pub table: Vec<f32>,
    pub positions: Vec<u32>,
    pub device: On,
}

/// Codes, scales, scale codes and nested scales of a member.
pub type Held = (Buffer<u8>, Buffer<f32>, Buffer<u8>, Buffer<f32>);

pub struct On {
    pub x: Buffer<bf16>,
    pub weight: Buffer<bf16>,
    pub members: Vec<Weights>,
    /// Keeps the members' memory alive.
    pub _keep: Vec<Held>,
    pub bias: Buffer<f32>,
    pub low: Buffer<bf16>,
    pub b: Buffer<bf16>,
    pub residual: Buffer<bf16>,
    pub table: Buffer<f32>,
    pub positions: Buffer<u32>,
}

pub const POSITIONS: usize = 40;

pub fn data(device: &Device, case: Case, seed: u64) -> Data {
    let mut r = Random(seed);
    let group = case.group();
    let (k, n) = (case.inputs, group.columns());
    let x = r.bf16s(case.rows * k, 1.0);
    let mut members = Vec::new();
    let mut keep = Vec::new();
    let mut weight = Vec::new();
    let mut stored = Vec::new();
    for outputs in case.outputs.into_iter().filter(|n| *n > 0) {
        if case.storage == Storage::Bf16 {
            let values = r.bf16s(outputs * k, 0.03);
            weight.extend(values.iter().map(|v| v.to_f32()));
            stored.extend(values);
            continue;
        }
        let values = r.f32s(outputs * k, 0.03);
        let blocks = values.len().div_ceil(64);
        let w = device.upload(&values).unwrap();
        let packed = device.alloc::<u8>(values.len().div_ceil(2)).unwrap();
        let absmax = poisoned_f32(device, blocks);
        let codes = device.alloc::<u8>(blocks).unwrap();
        let absmax2 = poisoned_f32(device, blocks.div_ceil(256));
        nf4::quantize(
            device,
            Source::F32(w.ptr()),
            values.len(),
            packed.ptr(),
            absmax.ptr(),
        )
        .unwrap();
        let mut scales = absmax.download().unwrap();
        let mut form = Absmax::Plain(absmax.ptr());
        if case.storage == Storage::Nf4Double {
            let offset = scales.iter().sum::<f32>() / blocks as f32;
            nf4::double_quantize(
                device,
                absmax.ptr(),
                blocks,
                offset,
                codes.ptr(),
                absmax2.ptr(),
            )
            .unwrap();
            form = Absmax::Double {
                codes: codes.ptr(),
                absmax2: absmax2.ptr(),
                offset,
            };
            // Scales as `nf4::dequantize` has them (tests/nf4.rs): codes of 1.0 alone give the scale, rounded to bf16; so take the map apart here.
            let (codes, absmax2) = (codes.download().unwrap(), absmax2.download().unwrap());
            let map = dynamic_map();
            scales = codes
                .iter()
                .enumerate()
                .map(|(i, c)| map[usize::from(*c)] * absmax2[i / 256] + offset)
                .collect();
        }
        let bytes = packed.download().unwrap();
        weight.extend((0..values.len()).map(|i| {
            let byte = bytes[i / 2];
            CODEBOOK[usize::from(if i % 2 == 0 { byte >> 4 } else { byte & 15 })] * scales[i / 64]
        }));
        members.push(Weights {
            packed: packed.ptr(),
            absmax: form,
        });
        keep.push((packed, absmax, codes, absmax2));
    }
    let bias = r.f32s(n, 1.0);
    let low = r.bf16s(case.rows * group.low().max(1), 1.0);
    let b = r.bf16s(n * case.rank.max(1), 0.1);
    let residual = r.bf16s(case.rows * n, 2.0);
    let half = if let Kind::Rope(dim, _) = case.kind {
        dim / 2
    } else {
        1
    };
    let table: Vec<f32> = (0..POSITIONS * half)
        .flat_map(|i| {
            let angle = (i / half) as f64 * 10_000f64.powf(-((i % half) as f64) / half as f64);
            [angle.cos() as f32, angle.sin() as f32]
        })
        .collect();
    let positions: Vec<u32> = (0..case.rows).map(|_| r.below(POSITIONS) as u32).collect();
    let device = On {
        x: device.upload(&x).unwrap(),
        weight: device.upload(&stored).unwrap(),
        members,
        _keep: keep,
        bias: device.upload(&bias).unwrap(),
        low: device.upload(&low).unwrap(),
        b: device.upload(&b).unwrap(),
        residual: device.upload(&residual).unwrap(),
        table: device.upload(&table).unwrap(),
        positions: device.upload(&positions).unwrap(),
    };
    Data {
        case,
        x,
        weight,
        bias,
        low,
        b,
        residual,
        table,
        positions,
        device,
    }
}

/// engine/model/nf4/dynamic_map.rs; tests/nf4.rs holds it against bitsandbytes' own.
pub fn dynamic_map() -> Vec<f32> {
    let boundary = |i: usize, cells: usize| {
        let step = (1.0f32 - 0.1) / cells as f32;
        if i < cells.div_ceil(2) {
            step.mul_add(i as f32, 0.1)
        } else {
            (-step).mul_add((cells - i) as f32, 1.0)
        }
    };
    let mut map = vec![0.0f32, 1.0];
    for decade in 0..7 {
        let cells = 1usize << decade;
        for cell in 0..cells {
            let centre = (boundary(cell, cells) + boundary(cell + 1, cells)) / 2.0;
            map.extend([
                10f64.powi(decade - 6) as f32 * centre,
                -(10f64.powi(decade - 6) as f32) * centre,
            ]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}
