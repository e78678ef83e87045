//! The way of weights from mapped files to the GPU: page-locked memory in two halves, one of which is filled by all cores while the GPU copies
//! from the other.
//!
//! Invariant: beside the weights themselves a load takes [`STAGE`] bytes of GPU memory, the scales of one tensor, and twice [`STAGE`] of the
//! host's; all of it goes when the loader goes.

use super::matrix::LoadError;
use crate::model::checkpoint::Tensor;
use crate::model::nf4::BLOCK;
use medft_kernels::device::{Buffer, Device, Pinned};
use medft_kernels::{LaunchError, Ptr};

/// Bytes that are staged at a time.
pub const STAGE: usize = 32 << 20;

/// What loading keeps from one matrix to the next.
#[derive(Default)]
pub struct Loader {
    halves: Option<[Pinned<u8>; 2]>,
    /// Which half comes next.
    turn: usize,
    /// Values as they are stored, where they are converted on the GPU.
    stored: Option<Buffer<u8>>,
    /// Scales of a tensor that is quantised twice.
    scales: Option<Buffer<f32>>,
    /// Largest magnitude of each of a tensor's blocks.
    absmax: Vec<f32>,
}

/// Values on the GPU, not yet in their place.
pub struct Piece {
    /// Number of the first one.
    pub first: usize,
    /// How many.
    pub values: usize,
    /// Where they lie until the next piece is staged.
    pub at: Ptr<u8>,
}

impl Loader {
    /// Copies a tensor over as it is; returns when the last piece is staged.
    pub fn copy(&mut self, device: &Device, tensor: &Tensor, to: Ptr<u8>) -> Result<(), LoadError> {
        let bytes = tensor.staged()?.bytes();
        self.pieces(device, tensor, |half, first, length| {
            half.copy(0..length, to.at(bytes * first))
        })
    }

    /// Hands a tensor's values to `take`, piece by piece, as [`Tensor::staged`] says; pieces are whole NF4 blocks.
    pub fn convert(
        &mut self,
        device: &Device,
        tensor: &Tensor,
        mut take: impl FnMut(Piece) -> Result<(), LaunchError>,
    ) -> Result<(), LoadError> {
        let bytes = tensor.staged()?.bytes();
        let at = room(device, &mut self.stored, STAGE)?;
        self.pieces(device, tensor, |half, first, length| {
            half.copy(0..length, at)?;
            take(Piece {
                first,
                values: length / bytes,
                at,
            })
        })
    }

    /// Stages a tensor; `send` gets each piece, the number of its first value, and its bytes.
    fn pieces(
        &mut self,
        device: &Device,
        tensor: &Tensor,
        mut send: impl FnMut(&mut Pinned<u8>, usize, usize) -> Result<(), LaunchError>,
    ) -> Result<(), LoadError> {
        let bytes = tensor.staged()?.bytes();
        let values: usize = tensor.shape().iter().product();
        self.absmax.clear();
        self.absmax.resize(values.div_ceil(BLOCK), 0.0);
        let halves = match &mut self.halves {
            Some(halves) => halves,
            None => {
                let half = || Pinned::zeros(device, STAGE);
                self.halves.insert([half()?, half()?])
            }
        };
        let mut first = 0;
        for absmax in self.absmax.chunks_mut(STAGE / bytes / BLOCK) {
            let length = bytes * (values - first).min(STAGE / bytes);
            let half = &mut halves[self.turn];
            tensor.stage(first, &mut half.as_mut_slice()?[..length], absmax)?;
            send(half, first, length)?;
            self.turn = 1 - self.turn;
            first += length / bytes;
        }
        Ok(())
    }

    /// Room for the scales of a tensor, which the next one takes over.
    pub fn scales(&mut self, device: &Device, blocks: usize) -> Result<Ptr<f32>, LaunchError> {
        room(device, &mut self.scales, blocks)
    }

    /// The scales of the tensor that was staged last, as the GPU finds them, too.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }
}

/// Memory for so many elements, made anew where what is kept is too small.
fn room<T>(
    device: &Device,
    kept: &mut Option<Buffer<T>>,
    len: usize,
) -> Result<Ptr<T>, LaunchError> {
    if kept.as_ref().is_none_or(|b| b.len() < len) {
        // Freeing waits for what still uses the old one.
        *kept = None;
        *kept = Some(device.alloc(len)?);
    }
    Ok(kept.as_ref().map_or(Ptr::NULL, Buffer::ptr))
}
