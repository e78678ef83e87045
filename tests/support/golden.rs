//! The golden references of ../shared/golden: a family's folder and the tensors of its fixtures.
#![allow(dead_code)]

use super::support::shared;
use medft_engine::backend::{Packed, Target};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// The families, each with its folder.
pub fn families() -> impl Iterator<Item = (&'static str, PathBuf)> {
    ["llama", "mistral", "mistral-window", "qwen2"]
        .into_iter()
        .filter_map(|name| Some((name, shared(&format!("golden/{name}"))?)))
}

/// A safetensors file in memory.
pub struct Fixtures(Vec<u8>);

impl Fixtures {
    /// Reads a file.
    pub fn read(path: &Path) -> Self {
        Fixtures(std::fs::read(path).unwrap())
    }

    /// The bytes and the last dimension of a tensor.
    fn tensor(&self, name: &str) -> (Vec<u8>, usize) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        (tensor.data().to_vec(), *tensor.shape().last().unwrap())
    }

    /// The rows of an f32 tensor.
    pub fn f32_rows(&self, name: &str) -> Vec<Vec<f32>> {
        let (bytes, columns) = self.tensor(name);
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        bytes
            .chunks_exact(4 * columns)
            .map(|row| row.chunks_exact(4).map(value).collect())
            .collect()
    }

    /// All values of an f32 tensor.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.f32_rows(name).concat()
    }

    /// The rows of an i64 tensor.
    pub fn i64_rows(&self, name: &str) -> Vec<Vec<i64>> {
        let (bytes, columns) = self.tensor(name);
        let value = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap());
        bytes
            .chunks_exact(8 * columns)
            .map(|row| row.chunks_exact(8).map(value).collect())
            .collect()
    }

    /// Rows of token ids without their padding, whichever side it is on.
    pub fn sequences(&self, ids: &str, mask: &str) -> Vec<Vec<u32>> {
        let real = |(ids, mask): (Vec<i64>, Vec<i64>)| {
            ids.into_iter()
                .zip(mask)
                .filter(|(_, m)| *m == 1)
                .map(|(id, _)| u32::try_from(id).unwrap())
                .collect()
        };
        self.i64_rows(ids)
            .into_iter()
            .zip(self.i64_rows(mask))
            .map(real)
            .collect()
    }
}

/// Packs the real tokens of a right-padded batch; targets from the labels, or every position.
pub fn pack(ids: &[Vec<i64>], mask: &[Vec<i64>], labels: Option<&[Vec<i64>]>) -> Packed {
    let mut packed = Packed::default();
    for (b, (ids, mask)) in ids.iter().zip(mask).enumerate() {
        let len = mask.iter().sum::<i64>() as usize;
        let real: Vec<u32> = ids[..len].iter().map(|i| *i as u32).collect();
        let start = packed.push(&real, 0, b);
        for t in 0..len {
            let row = start + t;
            match labels {
                None => packed.targets.push(Target { row, id: 0 }),
                Some(labels) if t + 1 < len && labels[b][t + 1] >= 0 => {
                    let id = labels[b][t + 1] as u32;
                    packed.targets.push(Target { row, id });
                }
                Some(_) => {}
            }
        }
    }
    packed
}
