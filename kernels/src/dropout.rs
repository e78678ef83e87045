//! Dropout masks of a group's members as bits (`dropout.cu`): drawn once, read by the adapters' products.
//!
//! Invariant: the layout is that of `prim/dropout.cuh`, a plane of `[T, row_words]` for each adapted member, in the members' order.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use crate::linear::{Group, MEMBERS, NO_LOW, StepState};
use bytemuck::{Pod, Zeroable};

/// Of a block, and the words that each draws.
const THREADS: usize = 256;
const RUN: usize = 4;
/// Columns that a row's words are padded to: 32 bytes of bits, a Hopper product's widest tile.
const PADDED: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    kept: Ptr<u32>,
    state: Ptr<StepState>,
    rows: u32,
    stride: u32,
    threshold: u32,
    streams: [u32; MEMBERS],
}
const _: () = assert!(size_of::<Params>() == 40);

/// What names the masks of a group's members.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// `round(p * 65536)`: an element is dropped if its 16-bit uniform is below.
    pub threshold: u32,
    /// Seed, step and first token, in device memory.
    pub state: Ptr<StepState>,
    /// Philox stream of each member.
    pub streams: [u32; MEMBERS],
}

/// Masks as the products' kernels take them; as in `prim/dropout.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Masks {
    kept: Ptr<u32>,
    stride: u32,
    rows: u32,
}

impl Masks {
    pub(crate) fn new(group: &Group, kept: Ptr<u32>) -> Self {
        Masks {
            kept,
            stride: row_words(group.inputs) as u32,
            rows: group.rows as u32,
        }
    }
}

/// Words of a row of this many columns.
fn row_words(inputs: usize) -> usize {
    inputs.div_ceil(PADDED) * (PADDED / 32)
}

fn planes(group: &Group) -> impl Iterator<Item = usize> {
    let low_at = group.low_at;
    (0..MEMBERS).filter(move |m| low_at[*m] != NO_LOW)
}

/// Words that [`draw`] writes.
pub fn kept_len(group: &Group) -> usize {
    planes(group).count() * group.rows * row_words(group.inputs)
}

/// Draws the masks of every adapted member into `kept`, [`kept_len`] words, `=`.
///
/// # Errors
/// The driver's refusal.
pub fn draw(
    l: &impl Launcher,
    group: &Group,
    draw: &Draw,
    kept: Ptr<u32>,
) -> Result<(), LaunchError> {
    let (stride, count) = (row_words(group.inputs), planes(group).count());
    if group.rows * count == 0 {
        return Ok(());
    }
    let mut params = Params {
        kept,
        state: draw.state,
        rows: group.rows as u32,
        stride: stride as u32,
        threshold: draw.threshold,
        streams: [0; MEMBERS],
    };
    for (stream, member) in params.streams.iter_mut().zip(planes(group)) {
        *stream = draw.streams[member];
    }
    let kernel = Kernel {
        family: "dropout",
        name: "dropout_draw",
    };
    let blocks = (group.rows * stride / RUN).div_ceil(THREADS) as u32;
    let geometry = Geometry {
        grid: [blocks, count as u32, 1],
        block: THREADS as u32,
        shared: 0,
    };
    l.launch(kernel, geometry, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_for_each_adapted_member() {
        let group = Group {
            rows: 3,
            inputs: 300,
            outputs: [8; 3],
            low_at: [0, NO_LOW, 16],
            rank: 16,
        };
        assert_eq!(planes(&group).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(kept_len(&group), 2 * 3 * 16);
    }
}
