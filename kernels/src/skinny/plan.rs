//! Which kernel takes a few-row product: how many rows of the weight and how many tokens a CTA has, and where x lies.
//!
//! Holds the table of variants, their shared memory and a model of their time. Invariant: the numbers of a variant are those of its `PRODUCT`
//! line; the choice changes the time of a product and never its bits.

use super::{LINE, TILE, WARPS};
use crate::launch::{Geometry, Gpu, Kernel};
use crate::nf4::BLOCK;

/// One kernel of `skinny.cu` or `skinny_nf4.cu`; the numbers are those of its `PRODUCT` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) kernel: Kernel,
    nf4: bool,
    /// Tiles of 16 rows a CTA.
    tiles: usize,
    /// Groups of eight tokens a CTA.
    groups: usize,
    resident: bool,
    stages: usize,
    /// Blocks of 64 a stage.
    depth: usize,
    /// CTAs an SM that registers allow.
    ctas: usize,
}

const fn bf16_variant(
    name: &'static str,
    tiles: usize,
    groups: usize,
    resident: bool,
    stages: usize,
    ctas: usize,
) -> Variant {
    let kernel = Kernel {
        family: "skinny",
        name,
    };
    Variant {
        kernel,
        nf4: false,
        tiles,
        groups,
        resident,
        stages,
        depth: 1,
        ctas,
    }
}

const fn nf4_variant(
    name: &'static str,
    tiles: usize,
    groups: usize,
    resident: bool,
    stages: usize,
    depth: usize,
    ctas: usize,
) -> Variant {
    let kernel = Kernel {
        family: "skinny_nf4",
        name,
    };
    Variant {
        kernel,
        nf4: true,
        tiles,
        groups,
        resident,
        stages,
        depth,
        ctas,
    }
}

pub(super) const BF16: &[Variant] = &[
    bf16_variant("skinny_bf16_resident_16x8", 1, 1, true, 4, 2),
    bf16_variant("skinny_bf16_resident_16x16", 1, 2, true, 4, 2),
    bf16_variant("skinny_bf16_stream_16x8", 1, 1, false, 4, 2),
    bf16_variant("skinny_bf16_deep_16x8", 1, 1, false, 8, 1),
    bf16_variant("skinny_bf16_stream_16x16", 1, 2, false, 4, 2),
    bf16_variant("skinny_bf16_stream_32x8", 2, 1, false, 4, 1),
    bf16_variant("skinny_bf16_stream_32x16", 2, 2, false, 4, 1),
    bf16_variant("skinny_bf16_stream_32x32", 2, 4, false, 3, 1),
    bf16_variant("skinny_bf16_stream_64x32", 4, 4, false, 2, 1),
];

pub(super) const NF4: &[Variant] = &[
    nf4_variant("skinny_nf4_resident_16x8", 1, 1, true, 3, 4, 2),
    nf4_variant("skinny_nf4_resident_32x8", 2, 1, true, 3, 4, 1),
    nf4_variant("skinny_nf4_resident_16x16", 1, 2, true, 3, 4, 1),
    nf4_variant("skinny_nf4_stream_16x8", 1, 1, false, 3, 4, 2),
    nf4_variant("skinny_nf4_small_16x8", 1, 1, false, 4, 1, 1),
    nf4_variant("skinny_nf4_stream_16x16", 1, 2, false, 4, 2, 1),
    nf4_variant("skinny_nf4_stream_32x8", 2, 1, false, 2, 4, 1),
    nf4_variant("skinny_nf4_stream_32x16", 2, 2, false, 3, 2, 1),
    nf4_variant("skinny_nf4_stream_32x32", 2, 4, false, 4, 1, 1),
];

impl Variant {
    /// Bytes of a weight's row in a block of 64.
    fn block_bytes(&self) -> usize {
        if self.nf4 { BLOCK / 2 } else { LINE }
    }

    /// Dynamic shared memory of a CTA with `chunk` tokens (the layout of `skinny::Product`).
    fn shared(&self, chunk: usize, inputs: usize) -> usize {
        let x_row = inputs.div_ceil(BLOCK).next_multiple_of(self.depth) * LINE;
        let (resident, streamed) = if self.resident {
            (chunk * x_row, 0)
        } else {
            (0, chunk * self.depth * LINE)
        };
        let (head, scales) = if self.nf4 {
            (256 * 128 + 1024, self.tiles * 256)
        } else {
            (0, 0)
        };
        let stage = self.tiles * TILE * self.block_bytes() * self.depth + streamed + scales;
        head + 2 * self.tiles * 4096 + resident + WARPS * self.stages * stage
    }
}

/// A chosen variant and its launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) variant: Variant,
    pub(super) chunk: usize,
    pub(super) geometry: Geometry,
}

/// Bytes that the L2 delivers to one SM in a clock, and how much slower the HBM is (measured ceilings of KERNELS.md at 1.7 GHz).
const L2_BYTES_A_CLOCK: f64 = 24.0;
const L2_OVER_HBM: f64 = 1.4;
/// Bytes of weights on their way to one SM beyond which more do not help: twice what latency times bandwidth asks for, and some.
const ENOUGH_IN_FLIGHT: f64 = 65_536.0;

/// Clocks (relative) that the busiest SM needs: the L2's deliveries, shared memory's lookups and ring traffic, or the HBM, whichever is most.
fn cost(
    v: &Variant,
    ctas: usize,
    sms: usize,
    chunk: usize,
    chunks: usize,
    tiles: usize,
    inputs: usize,
) -> f64 {
    let blocks = inputs.div_ceil(BLOCK) as f64;
    let turns = (tiles.div_ceil(v.tiles) * chunks).div_ceil(sms) as f64;
    let weights = (v.tiles * TILE * v.block_bytes()) as f64;
    let x = (chunk * LINE) as f64;
    let once = if v.resident { ctas as f64 * x } else { 0.0 };
    let delivered =
        blocks * (turns * (weights + if v.resident { 0.0 } else { x }) + once) / L2_BYTES_A_CLOCK;
    // NF4: measured on an H100 (16 x 4096 and 16 x 14336 tiles, one to eight rows); bf16: in and out of the ring.
    let tile = match (v.nf4, v.depth) {
        (false, _) => 2.0 * (TILE * LINE) as f64 / 128.0,
        (true, 4) => 42.0,
        (true, 2) => 60.0,
        (true, _) => 110.0,
    };
    let worked = blocks * turns * (v.tiles as f64 * tile + chunk as f64 + 2.0);
    let read = blocks * (tiles * TILE * v.block_bytes()) as f64 / sms as f64 / L2_BYTES_A_CLOCK
        * L2_OVER_HBM;
    // Too few bytes under way, and a single CTA's waits between its tiles.
    let stage = v.tiles * TILE * v.block_bytes() * v.depth;
    let flight = ctas.min(turns as usize) * (v.stages - 1) * WARPS * stage;
    let short = 0.25 * (1.0 - flight as f64 / ENOUGH_IN_FLIGHT).max(0.0);
    let lonely = match (ctas, v.tiles) {
        (1, 1) if turns > 1.0 => 0.35,
        (1, _) if turns > 1.0 => 0.1,
        _ => 0.0,
    };
    let alone = 1.0 + short + lonely;
    // The largest decides; the sum parts equals.
    alone * (delivered.max(worked).max(read) + 0.05 * (delivered + worked))
}

/// The variant for `tiles` tiles of 16 rows, or `None` when not even one token's x fits.
pub(super) fn plan(
    gpu: &Gpu,
    variants: &[Variant],
    rows: usize,
    inputs: usize,
    tiles: usize,
) -> Option<Plan> {
    let (sms, limit) = (gpu.multiprocessors as usize, gpu.shared_per_block as usize);
    let mut best: Option<(f64, Plan)> = None;
    for v in variants {
        // Deeper NF4 stages take a row's scale codes by aligned fours.
        if v.depth > 1 && !inputs.is_multiple_of(4 * BLOCK) {
            continue;
        }
        // Half of the groups would stay empty.
        if v.groups > 1 && rows <= 4 * v.groups {
            continue;
        }
        // Whole groups if they fit, else as many tokens as do.
        let widest = (1..=8 * v.groups)
            .rev()
            .find(|chunk| v.shared(*chunk, inputs) <= limit);
        let Some(widest) = widest else { continue };
        let chunks = rows.div_ceil(widest);
        let chunk = rows.div_ceil(chunks.max(1));
        let shared = v.shared(chunk, inputs);
        // The driver keeps 1 KiB of every CTA for itself.
        let ctas = v.ctas.min((limit + 1024) / (shared + 1024));
        let along = tiles
            .div_ceil(v.tiles)
            .min((sms * ctas).div_ceil(chunks.max(1)));
        let cost = cost(v, ctas, sms, chunk, chunks, tiles, inputs);
        if best.is_none_or(|(least, _)| cost < least) {
            let geometry = Geometry {
                grid: [chunks as u32, along as u32, 1],
                block: (WARPS * 32) as u32,
                shared: shared as u32,
            };
            best = Some((
                cost,
                Plan {
                    variant: *v,
                    chunk,
                    geometry,
                },
            ));
        }
    }
    best.map(|(_, plan)| plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(sms: u32, shared_kib: u32) -> Gpu {
        Gpu {
            name: String::new(),
            capability: (9, 0),
            multiprocessors: sms,
            shared_per_block: shared_kib << 10,
            l2: 60 << 20,
            memory: 80 << 30,
            hopper: true,
        }
    }

    #[test]
    fn a_plan_exists_and_fits_for_every_shape_and_gpu() {
        for gpu in [gpu(132, 227), gpu(108, 163), gpu(128, 99)] {
            for variants in [BF16, NF4] {
                for inputs in [64, 320, 2048, 4096, 8192, 11008, 14336] {
                    for rows in [1, 2, 4, 8, 9, 16, 33, 48, 64, 100] {
                        for tiles in [1, 128, 160, 384, 1792, 8016] {
                            let plan = plan(&gpu, variants, rows, inputs, tiles)
                                .unwrap_or_else(|| panic!("{inputs} {rows}"));
                            assert!(plan.geometry.shared <= gpu.shared_per_block);
                            assert!(plan.chunk <= 8 * plan.variant.groups);
                            assert!(plan.chunk * plan.geometry.grid[0] as usize >= rows);
                            assert!(plan.geometry.grid[1] as usize <= tiles);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_row_has_two_ctas_an_sm() {
        let h100 = gpu(132, 227);
        for (variants, inputs, tiles) in [(NF4, 4096, 384), (BF16, 2048, 1376), (BF16, 11008, 128)]
        {
            let plan =
                plan(&h100, variants, 1, inputs, tiles).unwrap_or_else(|| panic!("{inputs}"));
            assert_eq!(plan.geometry.grid[1] as usize, tiles.min(264), "{plan:?}");
        }
    }
}
