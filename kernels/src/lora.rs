//! The skinny products of low-rank adapters (`lora.cu`, sm_80 and up): `low`, `g`, the adapters' gradients, and their bf16 shadows.
//!
//! Holds geometry and ops. Sums over tokens are split into a number of parts that depends on the shapes alone and added in order, so a run
//! gives the same bits on every GPU of one model. Invariant: a group's adapted members share one padded rank; their true ranks may differ.

use crate::dropout::Masks;
use crate::gemm;
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::{Dropout, Group, MEMBERS, NO_LOW};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Low-rank columns of a unit; as in `lora.cu`, like the following.
const UNIT: usize = 64;
const UNIT_THREADS: u32 = 128;
/// Units of a block.
const UNITS: usize = 3;
const MOST_UNITS: usize = 6;
const DEPTH: usize = 32;
const DOWN_DEPTH: usize = 64;
const STAGES: usize = 4;
const SHORT_STAGES: usize = 3;
const COLUMNS: usize = 128;
const SUM_THREADS: usize = 256;
const PACK_THREADS: u64 = 256;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Unit {
    at: u32,
    width: u32,
    plane: u32,
    out_at: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Down {
    x: Ptr<bf16>,
    a: Ptr<bf16>,
    low: Ptr<bf16>,
    masks: Masks,
    rows: u32,
    inputs: u32,
    ldlow: u32,
    units_len: u32,
    scale: f32,
    reserved: u32,
    units: [Unit; MOST_UNITS],
}
const _: () = assert!(size_of::<Down>() == 160);

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct GradPart {
    first_tile: u32,
    columns: u32,
    at: u32,
    first_unit: u32,
    units_len: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Grad {
    big: Ptr<bf16>,
    small: Ptr<bf16>,
    partial: Ptr<f32>,
    masks: Masks,
    split_stride: u64,
    column_stride: u64,
    low_stride: u64,
    rows: u32,
    ld_big: u32,
    ld_small: u32,
    rows_per_split: u32,
    parts_len: u32,
    reserved: u32,
    parts: [GradPart; MEMBERS],
    units: [Unit; MOST_UNITS],
}
const _: () = assert!(size_of::<Grad>() == 256);

/// `out[r, c] += factor * (partial[0][r, c] + partial[1][r, c] + ...)`, out dense; as in `lora.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct SumItem {
    pub(crate) partial: Ptr<f32>,
    pub(crate) out: Ptr<f32>,
    pub(crate) split_stride: u64,
    pub(crate) splits: u32,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    pub(crate) ld: u32,
    pub(crate) first_block: u32,
    pub(crate) factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sum {
    items: [SumItem; 2 * MEMBERS],
    items_len: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<SumItem>() == 48 && size_of::<Sum>() == 296);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PackMember {
    a: Ptr<f32>,
    b: Ptr<f32>,
    rank: u32,
    end: u32,
    low_at: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pack {
    a: Ptr<bf16>,
    b: Ptr<bf16>,
    inputs: u32,
    columns: u32,
    rank: u32,
    low: u32,
    members: [PackMember; MEMBERS],
    members_len: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<PackMember>() == 32 && size_of::<Pack>() == 136);

const fn kernel(name: &'static str) -> Kernel {
    Kernel {
        family: "lora",
        name,
    }
}

/// The units of one member.
fn units_of(group: &Group, member: usize) -> impl Iterator<Item = Unit> {
    let (rank, low_at) = (group.rank, group.low_at[member]);
    let adapted = low_at != NO_LOW && group.outputs[member] > 0;
    (0..if adapted { rank } else { 0 })
        .step_by(UNIT)
        .map(move |first| Unit {
            at: low_at + first as u32,
            width: UNIT.min(rank - first) as u32,
            plane: low_at / rank as u32,
            out_at: first as u32,
        })
}

fn check(group: &Group) -> Result<(), LaunchError> {
    if !group.rank.is_multiple_of(16) || group.rank > 128 || !group.inputs.is_multiple_of(8) {
        return Err(LaunchError::Unsupported(format!(
            "adapters of padded rank {} over {} inputs: ranks are multiples of 16 up to 128, inputs of 8",
            group.rank, group.inputs
        )));
    }
    Ok(())
}

fn masks(group: &Group, dropout: Option<&Dropout>) -> Masks {
    Masks::new(group, dropout.map_or(Ptr::NULL, |d| d.kept))
}

/// Bytes of a ring of `stages` stages, each `outer + units * 64` by `depth` bf16.
fn ring(stages: usize, depth: usize, outer: usize, units: usize) -> u32 {
    (stages * depth * (outer + units * UNIT) * size_of::<bf16>()) as u32
}

/// `low_m = bf16(scale * drop_m(x) A_m^T)` of every adapted member: x `[T, K]`, a stacked `[R, K]`, low `[T, R]` `=`.
///
/// # Errors
/// Shapes that the kernels do not take, or the driver's refusal.
pub fn down(
    l: &impl Launcher,
    group: &Group,
    x: Ptr<bf16>,
    a: Ptr<bf16>,
    scale: f32,
    dropout: Option<&Dropout>,
    low: Ptr<bf16>,
) -> Result<(), LaunchError> {
    check(group)?;
    if group.rows == 0 || group.low() == 0 {
        return Ok(());
    }
    if dropout.is_none() && group.rows <= UNIT {
        return gemm::few_rows_nt(l, group, x, a, scale, low);
    }
    let all: Vec<Unit> = (0..MEMBERS).flat_map(|m| units_of(group, m)).collect();
    let mut units = [Unit::zeroed(); MOST_UNITS];
    units[..all.len()].copy_from_slice(&all);
    let params = Down {
        x,
        a,
        low,
        masks: masks(group, dropout),
        rows: group.rows as u32,
        inputs: group.inputs as u32,
        ldlow: group.low() as u32,
        units_len: all.len() as u32,
        scale: scale * dropout.map_or(1.0, |d| d.keep_scale),
        reserved: 0,
        units,
    };
    let (short, geometry) = down_geometry(group.rows, all.len(), l.gpu());
    let name = match (short, dropout.is_some()) {
        (false, false) => "lora_down",
        (false, true) => "lora_down_dropout",
        (true, false) => "lora_down_short",
        (true, true) => "lora_down_short_dropout",
    };
    l.launch(kernel(name), geometry, &params)
}

/// Whether the 64-row tile is used (it does not change a row's bits), and the launch.
fn down_geometry(rows: usize, units: usize, gpu: &Gpu) -> (bool, Geometry) {
    let blocks = units.div_ceil(UNITS);
    let units = units.min(UNITS);
    let tall = ring(STAGES, DOWN_DEPTH, 2 * UNIT, units);
    // One unit's blocks have 4 warps: two short ones an SM hide each other's waits.
    let idle = units == 1 || rows.div_ceil(2 * UNIT) * blocks * 2 <= gpu.multiprocessors as usize;
    let short = idle || tall > gpu.shared_per_block;
    let (tile, shared) = match short {
        true => (UNIT, ring(SHORT_STAGES, DOWN_DEPTH, UNIT, units)),
        false => (2 * UNIT, tall),
    };
    let geometry = Geometry {
        grid: [rows.div_ceil(tile) as u32, blocks as u32, 1],
        block: units as u32 * UNIT_THREADS,
        shared,
    };
    (short, geometry)
}

/// `g_m = bf16(scale * dy_m B_m)` of every adapted member: dy `[T, N]`, b `[N, rank]`, g `[T, R]` `=`.
///
/// # Errors
/// Shapes that the kernels do not take, or the driver's refusal.
pub fn up_backward(
    l: &impl Launcher,
    group: &Group,
    dy: Ptr<bf16>,
    b: Ptr<bf16>,
    scale: f32,
    g: Ptr<bf16>,
) -> Result<(), LaunchError> {
    if group.rows == 0 || group.low() == 0 {
        return Ok(());
    }
    gemm::narrow(l, group, dy, b, scale, g)
}

/// Where one member's f32 values or gradients stand.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// `[rank, K]`.
    pub a: Ptr<f32>,
    /// `[outputs, rank]`.
    pub b: Ptr<f32>,
    /// True rank, at most the padded one.
    pub rank: usize,
}

/// What [`grads`] reads and adds to.
#[derive(Debug, Clone, Copy)]
pub struct Grads {
    /// `[T, K]`.
    pub x: Ptr<bf16>,
    /// `[T, N]`.
    pub dy: Ptr<bf16>,
    /// Of the forward pass, `[T, R]`.
    pub low: Ptr<bf16>,
    /// Of [`up_backward`], `[T, R]`.
    pub g: Ptr<bf16>,
    /// The mask of the forward pass.
    pub dropout: Option<Dropout>,
    /// Gradients, `+=`; `None` for members without adapter.
    pub members: [Option<Slots>; MEMBERS],
    /// [`scratch_len`] elements, `=`.
    pub scratch: Ptr<f32>,
}

/// Parts that sums over tokens are split into, as (dA, dB): so many that the blocks fill a large GPU with 16 warps an SM (12 for three units),
/// and at least 256 tokens each. From the shapes alone: the bits must not depend on the GPU.
fn splits(group: &Group) -> (usize, usize) {
    let most = group.rows.div_ceil(256).clamp(1, 16);
    let units = group.low() / group.rank.max(1) * group.rank.div_ceil(UNIT);
    let tiles_a = group.inputs.div_ceil(COLUMNS) * units.div_ceil(UNITS);
    let tiles_b: usize = group.outputs.iter().map(|n| n.div_ceil(COLUMNS)).sum();
    let fill = |tiles: usize, blocks: usize| (blocks / tiles.max(1)).clamp(1, most);
    // Blocks of one, two or three units; of three only one fits an SM.
    let blocks = |units: usize| [528, 264, 132][units.clamp(1, UNITS) - 1];
    (
        fill(tiles_a, blocks(units)),
        fill(tiles_b, blocks(group.rank.div_ceil(UNIT))),
    )
}

/// f32 elements of scratch that [`grads`] needs.
pub fn scratch_len(group: &Group) -> usize {
    let (splits_a, splits_b) = splits(group);
    splits_a * group.low() * group.inputs + splits_b * group.columns() * group.rank
}

/// `dA_m += g_m^T drop_m(x)` and `dB_m += dy_m^T low_m` of every adapted member, in f32.
///
/// # Errors
/// Shapes that the kernels do not take, or the driver's refusal.
pub fn grads(l: &impl Launcher, group: &Group, args: &Grads) -> Result<(), LaunchError> {
    check(group)?;
    if group.rows == 0 || group.low() == 0 {
        return Ok(());
    }
    let (splits_a, splits_b) = splits(group);
    let partial_b = args.scratch.at(splits_a * group.low() * group.inputs);
    let (a, a_geometry) = grad_a(group, args, splits_a);
    let (b, b_geometry) = grad_b(group, args, splits_b, partial_b);
    let name = match args.dropout {
        Some(_) => "lora_grad_dropout",
        None => "lora_grad",
    };
    l.launch(kernel(name), a_geometry, &a)?;
    l.launch(kernel("lora_grad"), b_geometry, &b)?;
    let mut items = Vec::with_capacity(2 * MEMBERS);
    let mut first_row = 0;
    for (m, slots) in args.members.iter().enumerate() {
        let outputs = group.outputs[m];
        if let Some(slots) = slots
            && group.low_at[m] != NO_LOW
            && outputs > 0
        {
            items.push(SumItem {
                partial: args.scratch.at(group.low_at[m] as usize * group.inputs),
                out: slots.a,
                split_stride: a.split_stride,
                splits: splits_a as u32,
                rows: slots.rank as u32,
                columns: group.inputs as u32,
                ld: group.inputs as u32,
                first_block: 0,
                factor: args.dropout.map_or(1.0, |d| d.keep_scale),
            });
            items.push(SumItem {
                partial: partial_b.at(first_row * group.rank),
                out: slots.b,
                split_stride: b.split_stride,
                splits: splits_b as u32,
                rows: outputs as u32,
                columns: slots.rank as u32,
                ld: group.rank as u32,
                first_block: 0,
                factor: 1.0,
            });
        }
        first_row += outputs;
    }
    sum(l, &items)
}

fn grad_a(group: &Group, args: &Grads, splits: usize) -> (Grad, Geometry) {
    let all: Vec<Unit> = (0..MEMBERS)
        .flat_map(|m| units_of(group, m))
        .map(|u| Unit { out_at: u.at, ..u })
        .collect();
    let parts: Vec<GradPart> = (0..all.len())
        .step_by(UNITS)
        .map(|first| GradPart {
            columns: group.inputs as u32,
            first_unit: first as u32,
            units_len: UNITS.min(all.len() - first) as u32,
            ..GradPart::zeroed()
        })
        .collect();
    let params = Grad {
        big: args.x,
        small: args.g,
        partial: args.scratch,
        masks: masks(group, args.dropout.as_ref()),
        split_stride: (group.low() * group.inputs) as u64,
        column_stride: 1,
        low_stride: group.inputs as u64,
        ld_big: group.inputs as u32,
        ..Grad::zeroed()
    };
    lay_out(group, params, &parts, &all, splits, args.dropout.is_some())
}

fn grad_b(group: &Group, args: &Grads, splits: usize, partial: Ptr<f32>) -> (Grad, Geometry) {
    let (mut all, mut parts, mut at) = (Vec::new(), Vec::new(), 0);
    for (m, &outputs) in group.outputs.iter().enumerate() {
        let first = all.len();
        all.extend(units_of(group, m));
        if all.len() > first {
            parts.push(GradPart {
                columns: outputs as u32,
                at: at as u32,
                first_unit: first as u32,
                units_len: (all.len() - first) as u32,
                ..GradPart::zeroed()
            });
        }
        at += outputs;
    }
    let params = Grad {
        big: args.dy,
        small: args.low,
        partial,
        split_stride: (group.columns() * group.rank) as u64,
        column_stride: group.rank as u64,
        low_stride: 1,
        ld_big: group.columns() as u32,
        ..Grad::zeroed()
    };
    lay_out(group, params, &parts, &all, splits, false)
}

fn lay_out(
    group: &Group,
    mut params: Grad,
    parts: &[GradPart],
    units: &[Unit],
    splits: usize,
    masked: bool,
) -> (Grad, Geometry) {
    params.rows = group.rows as u32;
    params.ld_small = group.low() as u32;
    params.rows_per_split = group.rows.div_ceil(splits).next_multiple_of(DEPTH) as u32;
    params.parts_len = parts.len() as u32;
    params.units[..units.len()].copy_from_slice(units);
    let mut tiles = 0;
    for (slot, part) in params.parts.iter_mut().zip(parts) {
        *slot = GradPart {
            first_tile: tiles,
            ..*part
        };
        tiles += part.columns.div_ceil(COLUMNS as u32);
    }
    let widest = parts.iter().map(|p| p.units_len).max().unwrap_or(0);
    let bits = match masked {
        true => STAGES as u32 * widest * (DEPTH * COLUMNS / 8) as u32,
        false => 0,
    };
    let geometry = Geometry {
        grid: [tiles, splits as u32, 1],
        block: widest * UNIT_THREADS,
        shared: ring(STAGES, DEPTH, COLUMNS, widest as usize) + bits,
    };
    (params, geometry)
}

/// Adds partial sums, in order, to gradients.
pub(crate) fn sum(l: &impl Launcher, items: &[SumItem]) -> Result<(), LaunchError> {
    let mut params = Sum::zeroed();
    let mut blocks = 0;
    for (slot, item) in params.items.iter_mut().zip(items) {
        *slot = SumItem {
            first_block: blocks,
            ..*item
        };
        blocks += (item.rows as usize * item.columns as usize).div_ceil(SUM_THREADS) as u32;
    }
    params.items_len = items.len() as u32;
    let geometry = Geometry {
        grid: [blocks, 1, 1],
        block: SUM_THREADS as u32,
        shared: 0,
    };
    l.launch(kernel("lora_sum"), geometry, &params)
}

/// bf16 shadows of a group's adapters: a `[R, K]` and b `[N, rank]`, both `=`; zero in the padding and in rows of members without adapter.
///
/// # Errors
/// Shapes that the kernels do not take, or the driver's refusal.
pub fn pack(
    l: &impl Launcher,
    group: &Group,
    members: [Option<Slots>; MEMBERS],
    a: Ptr<bf16>,
    b: Ptr<bf16>,
) -> Result<(), LaunchError> {
    check(group)?;
    let mut params = Pack {
        a,
        b,
        inputs: group.inputs as u32,
        columns: group.columns() as u32,
        rank: group.rank as u32,
        low: group.low() as u32,
        ..Pack::zeroed()
    };
    let mut end = 0;
    for (m, &outputs) in group.outputs.iter().enumerate() {
        if outputs == 0 {
            continue;
        }
        end += outputs;
        let slots = members[m].filter(|_| group.low_at[m] != NO_LOW);
        params.members[params.members_len as usize] = PackMember {
            a: slots.map_or(Ptr::NULL, |s| s.a),
            b: slots.map_or(Ptr::NULL, |s| s.b),
            rank: slots.map_or(0, |s| s.rank) as u32,
            end: end as u32,
            low_at: group.low_at[m],
            reserved: 0,
        };
        params.members_len += 1;
    }
    let elements = group.low() * group.inputs + group.columns() * group.rank;
    let geometry = Geometry {
        grid: [((elements / 8) as u64).div_ceil(PACK_THREADS) as u32, 1, 1],
        block: PACK_THREADS as u32,
        shared: 0,
    };
    l.launch(kernel("lora_pack"), geometry, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qkv(rows: usize, rank: usize) -> Group {
        Group {
            rows,
            inputs: 2048,
            outputs: [2048, 256, 256],
            low_at: [0, NO_LOW, rank as u32],
            rank,
        }
    }

    #[test]
    fn units_cover_each_members_rank() {
        let group = qkv(64, 96);
        let widths =
            |m| -> Vec<(u32, u32)> { units_of(&group, m).map(|u| (u.at, u.width)).collect() };
        assert_eq!(widths(0), [(0, 64), (64, 32)]);
        assert_eq!(widths(1), []);
        assert_eq!(widths(2), [(96, 64), (160, 32)]);
    }

    #[test]
    fn splits_fill_the_gpu_and_follow_the_rows() {
        assert_eq!(splits(&qkv(16384, 64)), (16, 16));
        assert_eq!(splits(&qkv(100, 64)), (1, 1));
        let group = qkv(16384, 64);
        assert_eq!(scratch_len(&group), 16 * 128 * 2048 + 16 * 2560 * 64);
    }

    #[test]
    fn short_batches_and_small_parts_take_the_short_tile() {
        let gpu = |shared_per_block| Gpu {
            name: String::new(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_per_block,
            l2: 0,
            memory: 0,
            hopper: false,
        };
        let (short, geometry) = down_geometry(2048, 3, &gpu(227 << 10));
        assert!(short);
        assert_eq!((geometry.grid, geometry.block), ([32, 1, 1], 384));
        let (short, geometry) = down_geometry(16384, 6, &gpu(99 << 10));
        assert!(short);
        assert_eq!((geometry.grid, geometry.shared), ([256, 2, 1], 96 << 10));
        let (short, geometry) = down_geometry(16384, 6, &gpu(163 << 10));
        assert!(!short);
        assert_eq!((geometry.grid, geometry.block), ([128, 2, 1], 384));
        assert_eq!(geometry.shared, 160 << 10);
    }
}
