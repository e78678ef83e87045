//! Linear layers for few rows (decode): weights are read once, as bf16 or as NF4, and the time is that of reading them.
//!
//! Invariant: the order in which one output element is summed depends on the input's width and the rank alone, so a row has the same bits
//! whatever rows lie beside it and whichever variant is chosen. The choice is [`plan`]'s: how many rows of the weight a CTA takes, how many
//! tokens, and whether their x stays in shared memory or travels with the weights.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::{Epilogue, Forward, Group, MEMBERS, NO_LOW};
use crate::nf4::{Absmax, BLOCK, Weights};
use bytemuck::{Pod, Zeroable};
use half::bf16;
use plan::{BF16, NF4, Variant, plan};

mod plan;

const WARPS: usize = 8;
const TILE: usize = 16;
const LINE: usize = 128;
const MAX_RANK: usize = 128;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Member {
    packed: Ptr<u8>,
    scales: Ptr<u8>,
    absmax2: Ptr<f32>,
    offset: f32,
    first: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    x: Ptr<bf16>,
    weight: Ptr<bf16>,
    members: [Member; MEMBERS],
    bias: Ptr<f32>,
    low: Ptr<bf16>,
    b: Ptr<bf16>,
    residual: Ptr<bf16>,
    table: Ptr<f32>,
    positions: Ptr<u32>,
    y: Ptr<u8>,
    h: Ptr<bf16>,
    rows: u32,
    inputs: u32,
    outputs: u32,
    rank: u32,
    low_stride: u32,
    low_at: [u32; MEMBERS],
    epilogue: u32,
    tiles: u32,
    paired: u32,
    span_tiles: u32,
    span: u32,
    gap: u32,
    chunk: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Member>() == 32 && size_of::<Params>() == 240);

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DownParams {
    x: Ptr<bf16>,
    a: Ptr<bf16>,
    low: Ptr<bf16>,
    rows: u32,
    inputs: u32,
    outputs: u32,
    scale: f32,
}
const _: () = assert!(size_of::<DownParams>() == 40);
const DOWN_SIDE: usize = 4;

/// How rows of the weight fall into tiles of 8 + 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    tiles: usize,
    paired: usize,
    span_tiles: usize,
    span: usize,
    gap: usize,
}

fn unsupported<T>(what: String) -> Result<T, LaunchError> {
    Err(LaunchError::Unsupported(format!("few-row product: {what}")))
}

fn tiling(group: &Group, epilogue: &Epilogue) -> Result<Tiling, LaunchError> {
    let outputs = group.columns();
    let plain = Tiling {
        tiles: outputs.div_ceil(TILE),
        paired: 0,
        span_tiles: 1,
        span: TILE,
        gap: TILE / 2,
    };
    match *epilogue {
        Epilogue::None | Epilogue::Residual(_) => Ok(plain),
        Epilogue::Rope {
            head_dim, rotated, ..
        } => {
            if head_dim == 0 || !head_dim.is_multiple_of(TILE) || head_dim * rotated > outputs {
                return unsupported(format!(
                    "{rotated} heads of {head_dim} columns among {outputs}; heads are a multiple of 16 wide"
                ));
            }
            Ok(Tiling {
                paired: head_dim * rotated / TILE,
                span_tiles: head_dim / TILE,
                span: head_dim,
                gap: head_dim / 2,
                ..plain
            })
        }
        Epilogue::SwiGlu(_) => {
            let [gate, up, rest] = group.outputs;
            if gate != up || rest != 0 || !gate.is_multiple_of(8) {
                return unsupported(format!(
                    "SwiGLU of members {:?}; it needs two of one width",
                    group.outputs
                ));
            }
            Ok(Tiling {
                tiles: gate / 8,
                paired: gate / 8,
                span_tiles: (gate / 8).max(1),
                span: outputs,
                gap: gate,
            })
        }
    }
}

fn narrow(what: &str, value: usize) -> Result<u32, LaunchError> {
    u32::try_from(value).or_else(|_| unsupported(format!("{what} = {value} does not fit 32 bits")))
}

/// What every product's parameters have in common; `first` is each member's first row.
fn params(f: &Forward, tiling: &Tiling) -> Result<Params, LaunchError> {
    let g = &f.group;
    if g.inputs == 0 || !g.inputs.is_multiple_of(8) {
        return unsupported(format!(
            "{} inputs; rows must be a multiple of 16 bytes",
            g.inputs
        ));
    }
    let outputs = narrow("outputs", g.columns())?;
    let mut members = [Member {
        first: outputs,
        ..Member::zeroed()
    }; MEMBERS];
    let mut first = 0;
    for (member, width) in members.iter_mut().zip(g.outputs) {
        if width == 0 {
            continue;
        }
        member.first = first;
        first += width as u32;
    }
    let mut p = Params {
        x: f.x,
        weight: f.weight,
        members,
        bias: f.bias,
        y: f.y.cast(),
        rows: narrow("rows", g.rows)?,
        inputs: narrow("inputs", g.inputs)?,
        outputs,
        low_at: [NO_LOW; MEMBERS],
        tiles: tiling.tiles as u32,
        paired: tiling.paired as u32,
        span_tiles: tiling.span_tiles as u32,
        span: tiling.span as u32,
        gap: tiling.gap as u32,
        ..Params::zeroed()
    };
    if let Some(low) = f.low
        && g.low() > 0
    {
        let odd = g.outputs.iter().any(|n| !n.is_multiple_of(8));
        if !g.rank.is_multiple_of(16) || g.rank > MAX_RANK || odd {
            return unsupported(format!(
                "adapters of rank {} over members {:?}; rank 16 to 128 by 16, members by 8",
                g.rank, g.outputs
            ));
        }
        p.low = low.low;
        p.b = low.b;
        p.rank = g.rank as u32;
        p.low_stride = narrow("low", g.low())?;
        p.low_at = g.low_at;
    }
    match f.epilogue {
        Epilogue::None => {}
        Epilogue::Residual(residual) => {
            p.epilogue = 1;
            p.residual = residual;
        }
        Epilogue::Rope {
            table, positions, ..
        } => {
            p.epilogue = 2;
            p.table = table;
            p.positions = positions;
        }
        Epilogue::SwiGlu(h) => {
            p.epilogue = 3;
            p.h = h;
        }
    }
    Ok(p)
}

fn start(l: &impl Launcher, variants: &[Variant], mut p: Params) -> Result<(), LaunchError> {
    let (rows, inputs, tiles) = (p.rows as usize, p.inputs as usize, p.tiles as usize);
    if rows == 0 || tiles == 0 {
        return Ok(());
    }
    let Some(plan) = plan(l.gpu(), variants, rows, inputs, tiles) else {
        return unsupported(format!("{inputs} inputs do not fit shared memory"));
    };
    p.chunk = plan.chunk as u32;
    l.launch(plan.variant.kernel, plan.geometry, &p)
}

/// `y = epilogue(x W^T + low B^T + bias)` with bf16 weights. Any number of rows; meant for up to about 64. `y` may be NULL under SwiGLU.
///
/// # Errors
/// Shapes that the kernels cannot take; the driver's.
pub fn forward_bf16(l: &impl Launcher, f: &Forward) -> Result<(), LaunchError> {
    start(l, BF16, bf16_params(f)?)
}

fn bf16_params(f: &Forward) -> Result<Params, LaunchError> {
    params(f, &tiling(&f.group, &f.epilogue)?)
}

/// As [`forward_bf16`] with NF4 weights, one matrix a member (`f.weight` is not read).
///
/// # Errors
/// [`LaunchError::Unsupported`] when `inputs % 64 != 0` (blocks cross rows: dequantise instead) or shapes do not fit; the driver's.
pub fn forward_nf4(l: &impl Launcher, f: &Forward, weights: &[Weights]) -> Result<(), LaunchError> {
    start(l, NF4, nf4_params(f, weights)?)
}

fn nf4_params(f: &Forward, weights: &[Weights]) -> Result<Params, LaunchError> {
    let g = &f.group;
    if !g.inputs.is_multiple_of(BLOCK) {
        return unsupported(format!(
            "NF4 rows of {} inputs, not a multiple of {BLOCK}: blocks cross rows",
            g.inputs
        ));
    }
    if weights.len() != g.outputs.iter().filter(|n| **n > 0).count() {
        return unsupported(format!(
            "{} NF4 matrices for members {:?}",
            weights.len(),
            g.outputs
        ));
    }
    let nested = |w: &Weights| matches!(w.absmax, Absmax::Double { .. });
    if weights.iter().any(|w| nested(w) != nested(&weights[0])) {
        return unsupported("members with and without double quantisation".to_string());
    }
    let mut p = params(f, &tiling(g, &f.epilogue)?)?;
    let present = p.members.iter_mut().zip(g.outputs).filter(|(_, n)| *n > 0);
    for ((member, _), w) in present.zip(weights) {
        member.packed = w.packed;
        match w.absmax {
            Absmax::Plain(absmax) => member.scales = absmax.cast(),
            Absmax::Double {
                codes,
                absmax2,
                offset,
            } => {
                member.scales = codes;
                member.absmax2 = absmax2;
                member.offset = offset;
            }
        }
    }
    Ok(p)
}

/// The kernels that [`forward_bf16`] (or, with `nf4`, [`forward_nf4`]) chooses from; for tests and benches.
#[doc(hidden)]
pub fn variants(nf4: bool) -> impl Iterator<Item = &'static str> {
    let table = if nf4 { NF4 } else { BF16 };
    table.iter().map(|v| v.kernel.name)
}

/// As [`forward_bf16`], or with `weights` as [`forward_nf4`], by the kernel of this name; `Unsupported` if it is not for the shape.
#[doc(hidden)]
pub fn forward_by(
    l: &impl Launcher,
    f: &Forward,
    weights: Option<&[Weights]>,
    name: &str,
) -> Result<(), LaunchError> {
    let (table, p) = match weights {
        Some(weights) => (NF4, nf4_params(f, weights)?),
        None => (BF16, bf16_params(f)?),
    };
    let only: Vec<Variant> = table
        .iter()
        .filter(|v| v.kernel.name == name)
        .copied()
        .collect();
    start(l, &only, p)
}

/// `low = bf16(scale x A^T)` for few rows: x `[rows, inputs]`, a `[R, inputs]` of the group's adapted members stacked, low `[rows, R]`.
///
/// # Errors
/// Shapes that the kernel cannot take; the driver's.
pub fn down(
    l: &impl Launcher,
    group: &Group,
    x: Ptr<bf16>,
    a: Ptr<bf16>,
    scale: f32,
    low: Ptr<bf16>,
) -> Result<(), LaunchError> {
    if !group.inputs.is_multiple_of(8) {
        return unsupported(format!(
            "{} inputs; rows must be a multiple of 16 bytes",
            group.inputs
        ));
    }
    let outputs = group.low();
    let params = DownParams {
        x,
        a,
        low,
        rows: narrow("rows", group.rows)?,
        inputs: narrow("inputs", group.inputs)?,
        outputs: narrow("low", outputs)?,
        scale,
    };
    let geometry = Geometry {
        grid: [
            outputs.div_ceil(DOWN_SIDE) as u32,
            params.rows.div_ceil(DOWN_SIDE as u32),
            1,
        ],
        block: 256,
        shared: 0,
    };
    let kernel = Kernel {
        family: "skinny",
        name: "skinny_down",
    };
    l.launch(kernel, geometry, &params)
}

/// `out = x W^T` in f32: x `[rows, hidden]`, w `[vocab, hidden]`, out `[rows, vocab]`.
///
/// # Errors
/// Shapes that the kernels cannot take; the driver's.
pub fn logits(
    l: &impl Launcher,
    rows: usize,
    hidden: usize,
    vocab: usize,
    x: Ptr<bf16>,
    w: Ptr<bf16>,
    out: Ptr<f32>,
) -> Result<(), LaunchError> {
    let forward = Forward {
        group: Group {
            rows,
            inputs: hidden,
            outputs: [vocab, 0, 0],
            low_at: [NO_LOW; MEMBERS],
            rank: 0,
        },
        x,
        weight: w,
        bias: Ptr::NULL,
        low: None,
        epilogue: Epilogue::None,
        y: out.cast(),
    };
    let mut p = params(&forward, &tiling(&forward.group, &forward.epilogue)?)?;
    p.epilogue = 4;
    start(l, BF16, p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_pair_what_an_epilogue_joins() {
        let group = |outputs| Group {
            rows: 1,
            inputs: 64,
            outputs,
            low_at: [NO_LOW; MEMBERS],
            rank: 0,
        };
        let rope = |head_dim, rotated| Epilogue::Rope {
            table: Ptr::NULL,
            positions: Ptr::NULL,
            head_dim,
            rotated,
        };
        let t = tiling(&group([2048, 256, 256]), &rope(128, 18)).ok();
        let want = Tiling {
            tiles: 160,
            paired: 144,
            span_tiles: 8,
            span: 128,
            gap: 64,
        };
        assert_eq!(t, Some(want));
        let t = tiling(&group([24, 24, 0]), &Epilogue::SwiGlu(Ptr::NULL)).ok();
        let want = Tiling {
            tiles: 3,
            paired: 3,
            span_tiles: 3,
            span: 48,
            gap: 24,
        };
        assert_eq!(t, Some(want));
        assert!(tiling(&group([24, 16, 0]), &Epilogue::SwiGlu(Ptr::NULL)).is_err());
        assert!(tiling(&group([24, 0, 0]), &rope(24, 1)).is_err());
    }
}
