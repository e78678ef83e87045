//! What the product kernels of `gemm.cu` take, their tiles, and the launch.
//!
//! Holds the parameter structs, tile choice and geometry; it does not know layers. Invariant: strides and widths are multiples of 8.

use super::Size;
use crate::dropout::Masks;
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::{MEMBERS, NO_LOW};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Columns of the result that share operands; as in `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Part {
    pub(super) first_tile: u32,
    pub(super) columns: u32,
    pub(super) out_at: u32,
    pub(super) a_at: u32,
    pub(super) b_at: u32,
    pub(super) depth: u32,
    pub(super) low_at: [u32; 2],
    pub(super) low_depth: u32,
    pub(super) reserved: u32,
}

impl Part {
    /// A part without adapter.
    pub(super) fn plain(columns: usize, depth: usize) -> Self {
        Part {
            columns: columns as u32,
            depth: depth as u32,
            low_at: [NO_LOW; 2],
            ..Part::zeroed()
        }
    }
}

/// One product; as in `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Product {
    pub(super) a: Ptr<bf16>,
    pub(super) b: Ptr<bf16>,
    pub(super) bias: Ptr<f32>,
    pub(super) low: Ptr<bf16>,
    pub(super) low_b: Ptr<bf16>,
    pub(super) residual: Ptr<bf16>,
    pub(super) table: Ptr<f32>,
    pub(super) positions: Ptr<u32>,
    pub(super) y: Ptr<u8>,
    pub(super) h: Ptr<bf16>,
    pub(super) masks: Masks,
    pub(super) lda: u32,
    pub(super) ldb: u32,
    pub(super) ldy: u32,
    pub(super) ldlow: u32,
    pub(super) ldlow_b: u32,
    pub(super) rows: u32,
    pub(super) tiles_m: u32,
    pub(super) tiles_n: u32,
    pub(super) group: u32,
    pub(super) parts_len: u32,
    pub(super) mode: u32,
    pub(super) head_dim: u32,
    pub(super) rotated: u32,
    pub(super) scale: f32,
    pub(super) keep_scale: f32,
    pub(super) members: u32,
    pub(super) rank: u32,
    pub(super) low_at: [u32; MEMBERS],
    pub(super) parts: [Part; MEMBERS],
}
const _: () = assert!(size_of::<Part>() == 40 && size_of::<Product>() == 296);

/// `Mode` of `gemm.cu`.
pub(super) mod mode {
    pub(in crate::gemm) const STORE: u32 = 0;
    pub(in crate::gemm) const STORE_F32: u32 = 1;
    pub(in crate::gemm) const RESIDUAL: u32 = 2;
    pub(in crate::gemm) const ROPE: u32 = 3;
    pub(in crate::gemm) const SWIGLU: u32 = 4;
}

/// A tile of `gemm.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    name: &'static str,
    pub(super) rows: usize,
    columns: usize,
    depth: usize,
    stages: usize,
    threads: u32,
}

impl Tile {
    const fn shared(self) -> u32 {
        (self.stages * (self.rows + self.columns) * self.depth * size_of::<bf16>()) as u32
    }
}

const fn tile(name: &'static str, [rows, columns, depth, stages]: [usize; 4]) -> Tile {
    Tile {
        name,
        rows,
        columns,
        depth,
        stages,
        threads: if columns == WIDE[1] { 256 } else { 128 },
    }
}
/// Rows, columns, depth, stages.
const WIDE: [usize; 4] = [128, 256, 64, 3];
const LARGE_NT: [usize; 4] = [128, 128, 64, 3];
const LARGE_NN: [usize; 4] = [128, 128, 32, 4];
const SMALL: [usize; 4] = [64, 32, 64, 6];
const NARROW: [usize; 4] = [128, 64, 64, 4];
/// By descending size, as [`choose`] takes them.
pub(super) const NT: [Tile; 3] = [
    tile("gemm_nt_wide", WIDE),
    tile("gemm_nt_large", LARGE_NT),
    tile("gemm_nt_small", SMALL),
];
pub(super) const NN: [Tile; 3] = [
    tile("gemm_nn_wide", WIDE),
    tile("gemm_nn_large", LARGE_NN),
    tile("gemm_nn_small", SMALL),
];
pub(super) const NN_DROPOUT: [Tile; 3] = [
    tile("gemm_nn_wide_dropout", WIDE),
    tile("gemm_nn_large_dropout", LARGE_NN),
    tile("gemm_nn_small_dropout", SMALL),
];
pub(super) const NN_NARROW: Tile = tile("gemm_nn_narrow", NARROW);

/// Wide tiles that fill an H100 (one block an SM) twice; fewer leave much of the last wave empty, and large ones divide the work better.
const ENOUGH_WIDE: usize = 264;
/// Shared memory of an SM from which two large nt blocks fit it, and beat a wide one.
const TWO_LARGE_NT: u32 = 200 << 10;
/// Below this many large tiles the small ones fill the GPU better (an A100 or H100 runs 216 to 264 large blocks at once).
pub(super) const ENOUGH_LARGE: usize = 96;
/// Bytes of `a` that a group of row tiles may keep in L2 while they pass along the columns: a third of an A100's.
const GROUP_BYTES: usize = 12 << 20;

/// Which tile: the small one for few rows, and where larger ones would leave the GPU idle.
pub(super) fn choose(
    gpu: &Gpu,
    rows: usize,
    parts: &[Part],
    size: Size,
    [wide, large, small]: [Tile; 3],
) -> Tile {
    let count = |tile: Tile| {
        let columns = |p: &Part| (p.columns as usize).div_ceil(tile.columns);
        rows.div_ceil(tile.rows) * parts.iter().map(columns).sum::<usize>()
    };
    let two_large = large.depth == LARGE_NT[2] && gpu.shared_per_block >= TWO_LARGE_NT;
    let fits = gpu.shared_per_block >= wide.shared() && !two_large;
    match size {
        Size::Wide if gpu.shared_per_block >= wide.shared() => wide,
        Size::Wide | Size::Large => large,
        Size::Small => small,
        Size::Auto if rows <= small.rows || count(large) < ENOUGH_LARGE => small,
        Size::Auto if fits && count(wide) >= ENOUGH_WIDE => wide,
        Size::Auto => large,
    }
}

/// Fills in what follows from the shapes and launches.
pub(super) fn run(
    l: &impl Launcher,
    mut product: Product,
    parts: &[Part],
    tile: Tile,
) -> Result<(), LaunchError> {
    let Some(geometry) = lay_out(&mut product, parts, tile)? else {
        return Ok(());
    };
    let kernel = Kernel {
        family: "gemm",
        name: tile.name,
    };
    l.launch(kernel, geometry, &product)
}

/// Tiles, groups and the launch shape; `None` if there is nothing to do.
pub(super) fn lay_out(
    product: &mut Product,
    parts: &[Part],
    tile: Tile,
) -> Result<Option<Geometry>, LaunchError> {
    let sizes = [
        product.lda,
        product.ldb,
        product.ldy,
        product.ldlow,
        product.ldlow_b,
        product.rank,
    ];
    let of_parts = |p: &Part| [p.columns, p.out_at, p.a_at, p.depth, p.low_depth];
    if sizes.iter().any(|s| s % 8 != 0) || parts.iter().flat_map(of_parts).any(|s| s % 8 != 0) {
        return Err(LaunchError::Unsupported(format!(
            "a matrix product whose rows are not whole 16-byte runs: strides {sizes:?}"
        )));
    }
    let mut tiles = 0;
    for (slot, part) in product.parts.iter_mut().zip(parts) {
        *slot = Part {
            first_tile: tiles,
            ..*part
        };
        tiles += part.columns.div_ceil(tile.columns as u32);
    }
    product.parts_len = parts.len() as u32;
    product.tiles_n = tiles;
    product.tiles_m = product.rows.div_ceil(tile.rows as u32);
    let bytes = tile.rows * product.lda as usize * size_of::<bf16>();
    product.group = (GROUP_BYTES / bytes.max(1)).clamp(4, 32) as u32;
    if tiles == 0 || product.tiles_m == 0 {
        return Ok(None);
    }
    Ok(Some(Geometry {
        grid: [product.tiles_m * tiles, 1, 1],
        block: tile.threads,
        shared: tile.shared(),
    }))
}
