//! Attention for Hopper (TMA, wgmma): the same arguments and results as [`crate::attention`], for heads of 64 and 128 columns without a window.
//!
//! Blocks are persistent: as many as the GPU has multiprocessors (one fits each), dealt the work list forth and back.

use crate::attention::{Backward, Forward, Heads, Work};
use crate::launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// Rows of a tile that [`crate::attention::work`] must be asked for.
pub const TILE: usize = 128;

const FORWARD: &str = "attention_hopper";
const BACKWARD: &str = "attention_backward_hopper";
/// Producer warpgroup and two consumers.
const THREADS: u32 = 384;
/// Query rows of a step of the key kernel.
const STEP: u32 = 64;
/// Columns of a box of the copy engine: 128 bytes.
const BOX: u32 = 64;

/// Whether the kernels here can take these heads on this GPU; if not, [`crate::attention`] does.
pub fn supports(gpu: &Gpu, heads: &Heads) -> bool {
    gpu.hopper
        && matches!(heads.dim, 64 | 128)
        && heads.window.is_none()
        && heads.keys > 0
        && heads.queries.is_multiple_of(heads.keys)
}

#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct ForwardParams {
    qkv: TensorMap,
    out: Ptr<bf16>,
    lse: Ptr<f32>,
    work: Ptr<Work>,
    works: u32,
    tokens: u32,
    queries: u32,
    keys: u32,
    group: u32,
    scale: f32,
    pad: [u32; 4],
}
const _: () = assert!(size_of::<ForwardParams>() == 192);

#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct BackwardParams {
    qkv: TensorMap,
    dout: TensorMap,
    out: Ptr<bf16>,
    dout_rows: Ptr<bf16>,
    lse: Ptr<f32>,
    delta: Ptr<f32>,
    dqkv: Ptr<bf16>,
    rope: Ptr<f32>,
    positions: Ptr<u32>,
    work: Ptr<Work>,
    works: u32,
    tokens: u32,
    queries: u32,
    keys: u32,
    group: u32,
    scale: f32,
    pad: [u32; 10],
}
const _: () = assert!(size_of::<BackwardParams>() == 384);

/// Bytes of shared memory of each kernel, alignment included; the `.cu` files lay it out.
fn shared(kernel: Part, dim: usize) -> u32 {
    let tile = (TILE * dim * 2) as u32;
    let step = STEP * dim as u32 * 2;
    1024 + match kernel {
        Part::Forward => 5 * tile + 256,
        Part::Queries => 6 * tile + 256,
        Part::Keys => 2 * tile + 4 * (2 * step + 2 * STEP * 4) + 256,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Forward,
    Queries,
    Keys,
}

/// One persistent block a multiprocessor, or one a tile if there are fewer.
fn geometry(gpu: &Gpu, part: Part, heads: &Heads, works: usize) -> Geometry {
    let tiles = works
        * if part == Part::Keys {
            heads.keys
        } else {
            heads.queries
        };
    Geometry {
        grid: [tiles.min(gpu.multiprocessors as usize) as u32, 1, 1],
        block: THREADS,
        shared: shared(part, heads.dim),
    }
}

fn check(gpu: &Gpu, heads: &Heads, tile: usize) -> Result<(), LaunchError> {
    if !supports(gpu, heads) {
        return Err(LaunchError::Unsupported(format!(
            "the Hopper attention kernels do not take {heads:?} on {}",
            gpu.name
        )));
    }
    if tile != TILE {
        return Err(LaunchError::Unsupported(format!(
            "the Hopper attention kernels take tiles of {TILE} rows, not {tile}"
        )));
    }
    Ok(())
}

/// Attention forward; see [`Forward`]. `work.tile` must be [`TILE`].
///
/// # Errors
/// What [`supports`] rules out, or the driver's refusal.
pub fn forward(l: &impl Launcher, a: &Forward) -> Result<(), LaunchError> {
    check(l.gpu(), &a.heads, a.work.tile)?;
    if a.tokens == 0 {
        return Ok(());
    }
    let width = a.heads.width();
    let params = ForwardParams {
        qkv: l.tensor_map(a.qkv, a.tokens, width, width, TILE as u32, BOX)?,
        out: a.out,
        lse: a.lse,
        work: a.work.items,
        works: a.work.len as u32,
        tokens: a.tokens as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: (a.heads.queries / a.heads.keys) as u32,
        scale: a.scale,
        pad: [0; 4],
    };
    let name = if a.heads.dim == 128 {
        "attention_forward_hopper_128"
    } else {
        "attention_forward_hopper_64"
    };
    let kernel = Kernel {
        family: FORWARD,
        name,
    };
    l.launch(
        kernel,
        geometry(l.gpu(), Part::Forward, &a.heads, a.work.len),
        &params,
    )
}

/// Gradients of [`forward`]; see [`Backward`]. `work.tile` must be [`TILE`]. Two kernels: dq (and delta) by tiles of queries, then dk and dv by
/// tiles of keys; each output is written by one block.
///
/// # Errors
/// What [`supports`] rules out, or the driver's refusal.
pub fn backward(l: &impl Launcher, a: &Backward) -> Result<(), LaunchError> {
    check(l.gpu(), &a.heads, a.work.tile)?;
    if a.tokens == 0 {
        return Ok(());
    }
    let (width, rows) = (a.heads.width(), a.heads.queries * a.heads.dim);
    let maps = |height: u32| -> Result<(TensorMap, TensorMap), LaunchError> {
        Ok((
            l.tensor_map(a.qkv, a.tokens, width, width, height, BOX)?,
            l.tensor_map(a.dout, a.tokens, rows, rows, height, BOX)?,
        ))
    };
    let (qkv, dout) = maps(STEP)?;
    let params = BackwardParams {
        qkv,
        dout,
        out: a.out,
        dout_rows: a.dout,
        lse: a.lse,
        delta: a.delta,
        dqkv: a.dqkv,
        rope: a.rope.map_or(Ptr::NULL, |r| r.table),
        positions: a.rope.map_or(Ptr::NULL, |r| r.positions),
        work: a.work.items,
        works: a.work.len as u32,
        tokens: a.tokens as u32,
        queries: a.heads.queries as u32,
        keys: a.heads.keys as u32,
        group: (a.heads.queries / a.heads.keys) as u32,
        scale: a.scale,
        pad: [0; 10],
    };
    let names = if a.heads.dim == 128 {
        ["attention_dq_hopper_128", "attention_dkdv_hopper_128"]
    } else {
        ["attention_dq_hopper_64", "attention_dkdv_hopper_64"]
    };
    for (name, part) in names.into_iter().zip([Part::Queries, Part::Keys]) {
        let kernel = Kernel {
            family: BACKWARD,
            name,
        };
        l.launch(
            kernel,
            geometry(l.gpu(), part, &a.heads, a.work.len),
            &params,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> Gpu {
        Gpu {
            name: "H200".into(),
            capability: (9, 0),
            multiprocessors: 132,
            shared_per_block: 227 << 10,
            l2: 60 << 20,
            memory: 140 << 30,
            hopper: true,
        }
    }

    const QWEN: Heads = Heads {
        queries: 16,
        keys: 2,
        dim: 128,
        window: None,
    };

    #[test]
    fn one_block_a_multiprocessor_or_a_tile() {
        let gpu = h200();
        assert_eq!(geometry(&gpu, Part::Forward, &QWEN, 128).grid, [132, 1, 1]);
        assert_eq!(geometry(&gpu, Part::Keys, &QWEN, 3).grid, [6, 1, 1]);
        assert_eq!(geometry(&gpu, Part::Queries, &QWEN, 0).grid, [0, 1, 1]);
    }

    #[test]
    fn shared_memory_fits_a_block() {
        for part in [Part::Forward, Part::Queries, Part::Keys] {
            for dim in [64, 128] {
                assert!(
                    shared(part, dim) <= h200().shared_per_block,
                    "{part:?} {dim}"
                );
            }
        }
    }

    #[test]
    fn windows_and_odd_heads_go_to_the_portable_form() {
        let gpu = h200();
        assert!(supports(&gpu, &QWEN));
        assert!(!supports(
            &gpu,
            &Heads {
                window: Some(4096),
                ..QWEN
            }
        ));
        assert!(!supports(&gpu, &Heads { dim: 32, ..QWEN }));
        assert!(!supports(
            &Gpu {
                hopper: false,
                ..gpu
            },
            &QWEN
        ));
    }
}
