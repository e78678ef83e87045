//! The scales of an NF4 matrix: the largest magnitude of each block, as f32 or as one byte.
//!
//! Holds double quantisation (QLoRA, section 3). It refuses to know what the scales belong to. The
//! scales are centred on their mean before they are quantised, and the mean is summed in PyTorch's
//! order: another order gives another last bit in every weight.

use super::dynamic_map::{self, DYNAMIC_MAP};

/// Scales that share one nested scale under double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// One scale a block of 64 weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// One f32 a block.
    Single(Vec<f32>),
    /// One byte a block: `DYNAMIC_MAP[code] * absmax[block / 256] + offset`.
    Double {
        /// Entry of [`DYNAMIC_MAP`] for each block.
        codes: Vec<u8>,
        /// Largest magnitude of `scale - offset` in 256 blocks.
        absmax: Vec<f32>,
        /// Mean of all scales.
        offset: f32,
    },
}

impl Absmax {
    /// Quantises scales to one byte each.
    pub(super) fn double(scales: &[f32]) -> Self {
        let offset = mean(scales);
        let mut codes = Vec::with_capacity(scales.len());
        let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
        for block in scales.chunks(NESTED_BLOCK) {
            let largest = block.iter().map(|s| (s - offset).abs()).fold(0.0, f32::max);
            let unit = if largest > 0.0 { largest } else { 1.0 };
            codes.extend(
                block
                    .iter()
                    .map(|s| dynamic_map::nearest((s - offset) / unit)),
            );
            absmax.push(largest);
        }
        Absmax::Double {
            codes,
            absmax,
            offset,
        }
    }

    /// The scale of one block, which must exist.
    #[inline]
    pub fn of_block(&self, block: usize) -> f32 {
        match self {
            Absmax::Single(scales) => scales[block],
            Absmax::Double {
                codes,
                absmax,
                offset,
            } => DYNAMIC_MAP[usize::from(codes[block])] * absmax[block / NESTED_BLOCK] + offset,
        }
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Absmax::Single(scales) => size_of_val(&scales[..]),
            Absmax::Double {
                codes,
                absmax,
                offset,
            } => codes.len() + size_of_val(&absmax[..]) + size_of_val(offset),
        }
    }
}

/// `torch.mean` of f32 values on one AVX2 thread (ATen `SumKernel.cpp`, `cascade_sum`): four
/// accumulators of eight lanes, emptied into the next of four levels after every sixteen additions.
/// Bit-equal to it from eight values up.
pub fn mean(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    const STEP: usize = 16;
    let mut levels = [[0.0f32; 4 * LANES]; 4];
    let rows = values.chunks_exact(4 * LANES);
    let rest = rows.remainder().chunks_exact(LANES);
    let last = rest.remainder();
    for (row, additions) in rows.zip(1usize..) {
        add(&mut levels[0], row);
        let mut full = additions;
        for level in 1..levels.len() {
            if full % STEP != 0 {
                break;
            }
            full /= STEP;
            let emptied = std::mem::replace(&mut levels[level - 1], [0.0; 4 * LANES]);
            add(&mut levels[level], &emptied);
        }
    }
    let [mut sums, higher @ ..] = levels;
    higher.iter().for_each(|level| add(&mut sums, level));
    rest.for_each(|row| add(&mut sums, row));
    let (lanes, others) = sums.split_at_mut(LANES);
    others.chunks_exact(LANES).for_each(|row| add(lanes, row));
    let sum = last.iter().chain(lanes.iter()).fold(0.0, |sum, x| sum + x);
    sum / values.len().max(1) as f32
}

/// `to[i] += from[i]`, for as many as both have.
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_visits_every_value_once() {
        for count in [0, 1, 7, 8, 31, 33, 512, 8193, 140_000] {
            let values: Vec<f32> = (0..count).map(|i| (i % 3) as f32).collect();
            let sum: f32 = values.iter().sum(); // whole numbers: exact in any order
            assert_eq!(mean(&values), sum / count.max(1) as f32, "{count}");
        }
    }
}
