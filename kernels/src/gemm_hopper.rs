//! Matrix products of Hopper (`kernels/gemm_hopper.cu`, sm_90a): linear layers forward and backward, and the language-model head.
//!
//! Takes what [`supports_forward`], [`supports_backward`] and [`supports_plain`] say; everything else goes to the portable family.
//! Invariant: [`Params`] is laid out as in the `.cu`, and every tensor map's box is what the kernel's byte counts assume.

use crate::dropout::Masks;
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use crate::linear::{Backward, Epilogue, Forward, Group, MEMBERS, NO_LOW};
use bytemuck::{Pod, Zeroable};
use half::bf16;

const FAMILY: &str = "gemm_hopper";
/// Rows of a block's tile.
const BM: usize = 128;
/// Columns of a box in K, and of a store's box.
const BK: u32 = 64;
/// Threads: a producer and two consumer warpgroups.
const THREADS: u32 = 384;
/// Stages and store buffers of `Tile<256>` and `Tile<128>` (both 192 + 32 KB), barriers, and the slack of alignment.
const SHARED: u32 = (192 + 32 + 1) * 1024 + 128;
const _: () = assert!(SHARED <= 232_448, "an SM gives a block 227 KB");
/// What a group of row tiles may occupy of L2, so that its rows of the left operand stay there.
const GROUP_BYTES: usize = 16 << 20;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    a: TensorMap,
    b: TensorMap,
    a2: TensorMap,
    b2: [TensorMap; MEMBERS],
    out: TensorMap,
    extra: TensorMap,
    bias: Ptr<f32>,
    table: Ptr<f32>,
    positions: Ptr<u32>,
    out_at: u64,
    extra_at: Ptr<bf16>,
    masks: Masks,
    rows: u32,
    columns: u32,
    depth: u32,
    rank: u32,
    width: [u32; MEMBERS],
    low_at: [u32; MEMBERS],
    keep_scale: f32,
    planes: u32,
    head_dim: u32,
    rotated: u32,
    tiles_m: u32,
    tiles_n: u32,
    group: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Params>() == 1152);

/// A variant of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 256, pairs of blocks sharing the right operand.
    Pair256,
    /// 128 x 128, for few rows or narrow members.
    Single128,
}

impl Tile {
    const ALL: [Tile; 2] = [Tile::Pair256, Tile::Single128];

    fn columns(self) -> usize {
        match self {
            Tile::Pair256 => 256,
            Tile::Single128 => 128,
        }
    }

    fn blocks(self) -> usize {
        match self {
            Tile::Pair256 => 2,
            Tile::Single128 => 1,
        }
    }

    /// Time of one tile, in that of a 128 x 256 one: a smaller tile reads more for each product.
    fn cost(self) -> f64 {
        match self {
            Tile::Pair256 => 1.0,
            Tile::Single128 => 0.6,
        }
    }
}

/// Tiles of a launch and who works on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    tile: Tile,
    tiles_m: usize,
    tiles_n: usize,
    /// Rows (of clusters) of a raster group.
    group: usize,
    clusters: usize,
}

impl Plan {
    /// `widths`: of the members, in columns that one tile's width covers `share` times (SwiGLU: half of it gate, half up).
    fn new(
        tile: Tile,
        sms: usize,
        rows: usize,
        depth: usize,
        widths: &[usize],
        share: usize,
    ) -> Self {
        let wide = tile.columns() / share;
        let deep = BM * tile.blocks();
        let (tiles_m, tiles_n): (usize, usize) = (
            rows.div_ceil(deep),
            widths.iter().map(|w| w.div_ceil(wide)).sum(),
        );
        let group = (GROUP_BYTES / (2 * depth.max(1) * deep)).clamp(1, tiles_m.max(1));
        let clusters = (sms / tile.blocks()).clamp(1, (tiles_m * tiles_n).max(1));
        Plan {
            tile,
            tiles_m,
            tiles_n,
            group,
            clusters,
        }
    }

    /// Waves of tiles times the cost of one.
    fn cost(&self) -> f64 {
        (self.tiles_m * self.tiles_n).div_ceil(self.clusters) as f64 * self.tile.cost()
    }

    fn best(
        tile: Option<Tile>,
        sms: usize,
        rows: usize,
        depth: usize,
        widths: &[usize],
        share: usize,
    ) -> Self {
        let plan = |tile| Plan::new(tile, sms, rows, depth, widths, share);
        match tile {
            Some(tile) => plan(tile),
            None => Tile::ALL
                .map(plan)
                .into_iter()
                .min_by(|a, b| a.cost().total_cmp(&b.cost()))
                .unwrap_or(plan(Tile::Pair256)),
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            grid: [(self.clusters * self.tile.blocks()) as u32, 1, 1],
            block: THREADS,
            shared: SHARED,
        }
    }
}

fn fits(addresses: &[u64], multiples_of_8: &[usize]) -> bool {
    addresses.iter().all(|a| a % 16 == 0)
        && multiples_of_8.iter().all(|n| n % 8 == 0)
        && multiples_of_8.iter().all(|n| *n < 1 << 31)
}

fn group_fits(g: &Group) -> bool {
    fits(&[], &g.outputs)
        && g.rows > 0
        && g.rows < 1 << 31
        && g.inputs > 0
        && g.columns() > 0
        && fits(&[], &[g.inputs])
        && g.rank.is_multiple_of(16)
}

/// Whether [`forward`] takes this.
pub fn supports_forward(gpu: &Gpu, f: &Forward) -> bool {
    let g = &f.group;
    let epilogue = match f.epilogue {
        Epilogue::None => true,
        Epilogue::Residual(r) => fits(&[r.address()], &[]),
        Epilogue::Rope {
            table, head_dim, ..
        } => {
            matches!(head_dim, 32 | 64 | 128)
                && g.outputs.iter().all(|n| n % head_dim == 0)
                && fits(&[table.address()], &[])
        }
        Epilogue::SwiGlu(h) => {
            g.outputs[0] == g.outputs[1] && g.outputs[2] == 0 && fits(&[h.address()], &[])
        }
    };
    let low = f
        .low
        .is_none_or(|l| fits(&[l.low.address(), l.b.address()], &[]));
    gpu.hopper
        && group_fits(g)
        && epilogue
        && low
        && fits(
            &[
                f.x.address(),
                f.weight.address(),
                f.bias.address(),
                f.y.address(),
            ],
            &[],
        )
}

/// Whether [`backward`] takes this.
pub fn supports_backward(gpu: &Gpu, b: &Backward) -> bool {
    let low = b
        .low
        .is_none_or(|l| fits(&[l.g.address(), l.a.address()], &[]));
    gpu.hopper
        && group_fits(&b.group)
        && low
        && fits(&[b.dy.address(), b.weight.address(), b.dx.address()], &[])
}

/// Whether [`plain_nt`] takes this.
pub fn supports_plain(gpu: &Gpu, p: &Plain) -> bool {
    let to = match p.y {
        Product::Bf16(y) => y.address(),
        Product::F32(y) => y.address(),
    };
    gpu.hopper
        && p.rows > 0
        && p.inputs > 0
        && p.outputs > 0
        && fits(
            &[p.x.address(), p.weight.address(), to],
            &[p.inputs, p.outputs],
        )
}

fn unsupported(op: &str) -> LaunchError {
    LaunchError::Unsupported(format!(
        "the Hopper form of `{op}` takes sizes that are multiples of 8 and addresses that are multiples of 16 bytes, on compute capability 9.0"
    ))
}

/// `y = epilogue(x W^T + low B^T + bias)`. Needs no scratch.
///
/// # Errors
/// What [`supports_forward`] refuses, and the driver's.
pub fn forward(l: &impl Launcher, f: &Forward) -> Result<(), LaunchError> {
    forward_with(l, f, None)
}

/// [`forward`] with a given variant: for tests and benches.
///
/// # Errors
/// As [`forward`].
pub fn forward_with(l: &impl Launcher, f: &Forward, tile: Option<Tile>) -> Result<(), LaunchError> {
    if !supports_forward(l.gpu(), f) {
        return Err(unsupported("forward"));
    }
    let g = &f.group;
    let (rows, inputs, columns) = (g.rows, g.inputs, g.columns());
    let glu = matches!(f.epilogue, Epilogue::SwiGlu(_));
    let (widths, share) = if glu {
        (&g.outputs[..1], 2)
    } else {
        (&g.outputs[..], 1)
    };
    let plan = Plan::best(
        tile,
        l.gpu().multiprocessors as usize,
        rows,
        inputs,
        widths,
        share,
    );
    let half = (plan.tile.columns() / 2) as u32;
    let mut p = Params {
        a: l.tensor_map(f.x, rows, inputs, inputs, BM as u32, BK)?,
        b: l.tensor_map(f.weight, columns, inputs, inputs, half, BK)?,
        out: l.tensor_map(f.y, rows, columns, columns, BK, BK)?,
        bias: f.bias,
        out_at: f.y.address(),
        width: g.outputs.map(|n| n as u32),
        ..shape(&plan, rows, columns, inputs)
    };
    if let Some(low) = f.low
        && g.low() > 0
    {
        p.a2 = l.tensor_map(low.low, rows, g.low(), g.low(), BM as u32, BK)?;
        p.b2[0] = l.tensor_map(low.b, columns, g.rank, g.rank, half, BK)?;
        (p.rank, p.low_at) = (g.rank as u32, g.low_at);
    }
    let name = match f.epilogue {
        Epilogue::None => "plain",
        Epilogue::Residual(r) => {
            p.extra = l.tensor_map(r, rows, columns, columns, BM as u32, BK)?;
            p.extra_at = r;
            "plain"
        }
        Epilogue::Rope {
            table,
            positions,
            head_dim,
            rotated,
        } => {
            (p.table, p.positions) = (table, positions);
            (p.head_dim, p.rotated) = (head_dim as u32, (rotated * head_dim) as u32);
            "rope"
        }
        Epilogue::SwiGlu(h) => {
            p.extra = l.tensor_map(h, rows, columns / 2, columns / 2, BK, BK)?;
            p.extra_at = h;
            "swiglu"
        }
    };
    launch(l, name, &plan, &p)
}

/// `dx = dy W + mask . (g A) keep_scale`, summed over the adapted members. Needs no scratch.
///
/// # Errors
/// What [`supports_backward`] refuses, and the driver's.
pub fn backward(l: &impl Launcher, b: &Backward) -> Result<(), LaunchError> {
    backward_with(l, b, None)
}

/// [`backward`] with a given variant: for tests and benches.
///
/// # Errors
/// As [`backward`].
pub fn backward_with(
    l: &impl Launcher,
    b: &Backward,
    tile: Option<Tile>,
) -> Result<(), LaunchError> {
    if !supports_backward(l.gpu(), b) {
        return Err(unsupported("backward"));
    }
    let g = &b.group;
    let (rows, columns, depth) = (g.rows, g.inputs, g.columns());
    let plan = Plan::best(
        tile,
        l.gpu().multiprocessors as usize,
        rows,
        depth,
        &[columns],
        1,
    );
    let mut p = Params {
        a: l.tensor_map(b.dy, rows, depth, depth, BM as u32, BK)?,
        b: l.tensor_map(b.weight, depth, columns, columns, BK, BK)?,
        out: l.tensor_map(b.dx, rows, columns, columns, BK, BK)?,
        out_at: b.dx.address(),
        width: [columns as u32, 0, 0],
        ..shape(&plan, rows, columns, depth)
    };
    let mut name = "backward";
    if let Some(low) = b.low
        && g.low() > 0
    {
        p.a2 = l.tensor_map(low.g, rows, g.low(), g.low(), BM as u32, BK)?;
        if let Some(dropout) = low.dropout {
            for (map, at) in
                p.b2.iter_mut()
                    .zip(g.low_at)
                    .filter(|(_, at)| *at != NO_LOW)
            {
                *map = l.tensor_map(
                    low.a.at(at as usize * columns),
                    g.rank,
                    columns,
                    columns,
                    BK,
                    BK,
                )?;
            }
            (p.rank, p.low_at) = (g.rank as u32, g.low_at);
            (p.masks, p.keep_scale) = (Masks::new(g, dropout.kept), dropout.keep_scale);
            p.planes = (g.low() / g.rank) as u32;
            name = "dropout";
        } else {
            p.b2[0] = l.tensor_map(low.a, g.low(), columns, columns, BK, BK)?;
            p.rank = g.low() as u32;
        }
    }
    launch(l, name, &plan, &p)
}

/// Where a plain product goes.
#[derive(Debug, Clone, Copy)]
pub enum Product {
    /// Rounded once.
    Bf16(Ptr<bf16>),
    /// As summed.
    F32(Ptr<f32>),
}

/// `y = x w^T`, `[rows, outputs]`, `=`.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x and w, K.
    pub inputs: usize,
    /// Rows of w, columns of y, N.
    pub outputs: usize,
    /// `[rows, inputs]`.
    pub x: Ptr<bf16>,
    /// `[outputs, inputs]`.
    pub weight: Ptr<bf16>,
    /// `[rows, outputs]`.
    pub y: Product,
}

/// The language-model head. Needs no scratch.
///
/// # Errors
/// What [`supports_plain`] refuses, and the driver's.
pub fn plain_nt(l: &impl Launcher, q: &Plain) -> Result<(), LaunchError> {
    plain_nt_with(l, q, None)
}

/// [`plain_nt`] with a given variant: for tests and benches.
///
/// # Errors
/// As [`plain_nt`].
pub fn plain_nt_with(l: &impl Launcher, q: &Plain, tile: Option<Tile>) -> Result<(), LaunchError> {
    if !supports_plain(l.gpu(), q) {
        return Err(unsupported("plain_nt"));
    }
    let (rows, inputs, columns) = (q.rows, q.inputs, q.outputs);
    let plan = Plan::best(
        tile,
        l.gpu().multiprocessors as usize,
        rows,
        inputs,
        &[columns],
        1,
    );
    let mut p = Params {
        a: l.tensor_map(q.x, rows, inputs, inputs, BM as u32, BK)?,
        b: l.tensor_map(
            q.weight,
            columns,
            inputs,
            inputs,
            (plan.tile.columns() / 2) as u32,
            BK,
        )?,
        width: [columns as u32, 0, 0],
        ..shape(&plan, rows, columns, inputs)
    };
    let name = match q.y {
        Product::Bf16(y) => {
            p.out = l.tensor_map(y, rows, columns, columns, BK, BK)?;
            p.out_at = y.address();
            "plain"
        }
        Product::F32(y) => {
            p.out_at = y.address();
            "float"
        }
    };
    launch(l, name, &plan, &p)
}

/// What every launch sets; no adapters.
fn shape(plan: &Plan, rows: usize, columns: usize, depth: usize) -> Params {
    Params {
        rows: rows as u32,
        columns: columns as u32,
        depth: depth as u32,
        low_at: [NO_LOW; MEMBERS],
        tiles_m: plan.tiles_m as u32,
        tiles_n: plan.tiles_n as u32,
        group: plan.group as u32,
        ..Params::zeroed()
    }
}

fn launch(l: &impl Launcher, op: &str, plan: &Plan, p: &Params) -> Result<(), LaunchError> {
    let name = match (op, plan.tile) {
        ("plain", Tile::Pair256) => "gemm_hopper_plain_pair256",
        ("plain", Tile::Single128) => "gemm_hopper_plain_128",
        ("float", Tile::Pair256) => "gemm_hopper_float_pair256",
        ("float", Tile::Single128) => "gemm_hopper_float_128",
        ("rope", Tile::Pair256) => "gemm_hopper_rope_pair256",
        ("rope", Tile::Single128) => "gemm_hopper_rope_128",
        ("swiglu", Tile::Pair256) => "gemm_hopper_swiglu_pair256",
        ("swiglu", Tile::Single128) => "gemm_hopper_swiglu_128",
        ("dropout", Tile::Pair256) => "gemm_hopper_dropout_pair256",
        ("dropout", Tile::Single128) => "gemm_hopper_dropout_128",
        (_, Tile::Pair256) => "gemm_hopper_backward_pair256",
        (_, Tile::Single128) => "gemm_hopper_backward_128",
    };
    l.launch(
        Kernel {
            family: FAMILY,
            name,
        },
        plan.geometry(),
        p,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The map from tile number to place in the `.cu`.
    fn place(plan: &Plan, tile: usize) -> (usize, usize) {
        let first = tile / (plan.group * plan.tiles_n) * plan.group;
        let inside = tile % (plan.group * plan.tiles_n);
        let deep = plan.group.min(plan.tiles_m - first);
        (first + inside % deep, inside / deep)
    }

    #[test]
    fn every_tile_is_visited_once() {
        for (rows, depth, widths) in [
            (1, 64, [8, 0, 0]),
            (16384, 2048, [2048, 256, 256]),
            (1000, 11008, [2048, 0, 0]),
            (700, 4096, [136, 264, 8]),
        ] {
            for tile in Tile::ALL {
                let plan = Plan::new(tile, 132, rows, depth, &widths, 1);
                let mut seen = vec![false; plan.tiles_m * plan.tiles_n];
                for t in 0..seen.len() {
                    let (m, n) = place(&plan, t);
                    assert!(
                        !std::mem::replace(&mut seen[m * plan.tiles_n + n], true),
                        "{plan:?} {t}"
                    );
                }
            }
        }
    }

    #[test]
    fn big_products_take_pairs_and_small_ones_do_not() {
        let best = |rows, widths: &[usize]| Plan::best(None, 132, rows, 2048, widths, 1);
        let qkv = best(16384, &[2048, 256, 256]);
        assert_eq!(
            (qkv.tile, qkv.tiles_m, qkv.tiles_n, qkv.group, qkv.clusters),
            (Tile::Pair256, 64, 10, 16, 66)
        );
        assert_eq!(qkv.geometry().grid, [132, 1, 1]);
        assert_eq!(best(300, &[576, 192, 192]).tile, Tile::Single128);
    }
}
