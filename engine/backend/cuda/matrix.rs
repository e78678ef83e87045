//! Frozen weights on the GPU: bf16, or NF4 as bitsandbytes defines it.
//!
//! Holds how they lie and the way to bf16; `loader` brings them here. Invariant: what is stored is converted on the GPU, piece by piece, so no
//! other copy of a model exists.

use super::loader::Loader;
use crate::backend::BackendError;
use crate::model::checkpoint::{Staged, Tensor};
use crate::model::nf4::{BLOCK, NESTED_BLOCK, mean_scale};
use half::bf16;
use medft_dsl::plan::Precision;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::nf4::{self, Source, Weights};
use medft_kernels::{LaunchError, Ptr, elementwise};

/// Rows of a bf16 matrix are filled up with zeros to a multiple of it: products want columns in whole 16-byte vectors.
pub const ROWS: usize = 8;

/// Weights `[rows, cols]`, of one tensor or several stacked by rows.
pub struct Matrix {
    rows: usize,
    cols: usize,
    store: Store,
}

enum Store {
    Bf16(Buffer<bf16>),
    /// Each tensor by itself: blocks, and the mean of the scales under double quantisation, are a tensor's own.
    Nf4 {
        parts: Vec<Part>,
        weights: Vec<Weights>,
    },
}

/// A quantised tensor.
struct Part {
    len: usize,
    /// Two codes a byte.
    packed: Buffer<u8>,
    scales: Scales,
}

/// Of a tensor's blocks of 64.
enum Scales {
    Single(Buffer<f32>),
    Double {
        codes: Buffer<u8>,
        absmax: Buffer<f32>,
        offset: f32,
    },
}

impl Part {
    fn weights(&self) -> Weights {
        Weights {
            packed: self.packed.ptr(),
            absmax: match &self.scales {
                Scales::Single(absmax) => nf4::Absmax::Plain(absmax.ptr()),
                Scales::Double {
                    codes,
                    absmax,
                    offset,
                } => nf4::Absmax::Double {
                    codes: codes.ptr(),
                    absmax2: absmax.ptr(),
                    offset: *offset,
                },
            },
        }
    }
}

/// Weights where the products can read them.
#[derive(Clone, Copy)]
pub enum Stored<'a> {
    /// `[rows, cols]`, and zeros up to a multiple of [`ROWS`] rows.
    Bf16(Ptr<bf16>),
    /// One a tensor.
    Nf4(&'a [Weights]),
}

/// Why a tensor could not be loaded: its numbers, or the GPU.
pub enum LoadError {
    /// Its numbers.
    Tensor(BackendError),
    /// The GPU.
    Gpu(LaunchError),
}

impl From<BackendError> for LoadError {
    fn from(e: BackendError) -> Self {
        LoadError::Tensor(e)
    }
}

impl From<LaunchError> for LoadError {
    fn from(e: LaunchError) -> Self {
        LoadError::Gpu(e)
    }
}

impl Matrix {
    /// Loads tensors with the same number of columns, stacked by rows. `Precision::F32` has no place on the GPU and is held as bf16.
    ///
    /// # Errors
    /// A tensor with a dtype that is no weight's, or a value that is not finite; too little memory.
    pub fn load(
        device: &Device,
        loader: &mut Loader,
        tensors: &[Tensor],
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self, LoadError> {
        let (mut rows, mut cols) = (0, 0);
        for tensor in tensors {
            let [r, c] = tensor.shape() else {
                let problem = format!("has shape {:?}; a matrix was needed", tensor.shape());
                return Err(tensor.error(problem).into());
            };
            (rows, cols) = (rows + r, *c);
        }
        let store = if precision == Precision::Nf4 {
            let parts: Vec<Part> = tensors
                .iter()
                .map(|tensor| quantize(device, loader, tensor, double_quant))
                .collect::<Result<_, _>>()?;
            let weights = parts.iter().map(Part::weights).collect();
            Store::Nf4 { parts, weights }
        } else {
            let padded = rows.next_multiple_of(ROWS);
            let to = device.alloc::<bf16>(padded * cols)?;
            device.fill(to.ptr().at(rows * cols), 0, (padded - rows) * cols)?;
            let mut at = 0;
            for tensor in tensors {
                at += upload(device, loader, tensor, to.ptr().at(at))?;
            }
            Store::Bf16(to)
        };
        Ok(Matrix { rows, cols, store })
    }

    /// As they lie.
    pub fn stored(&self) -> Stored<'_> {
        match &self.store {
            Store::Bf16(values) => Stored::Bf16(values.ptr()),
            Store::Nf4 { weights, .. } => Stored::Nf4(weights),
        }
    }

    /// In bf16: where they lie, or dequantised into `scratch`, `[rows, cols]`.
    pub fn in_bf16(&self, device: &Device, scratch: Ptr<bf16>) -> Result<Ptr<bf16>, LaunchError> {
        match &self.store {
            Store::Bf16(values) => Ok(values.ptr()),
            Store::Nf4 { parts, weights } => {
                let mut at = 0;
                for (part, weights) in parts.iter().zip(weights) {
                    nf4::dequantize(device, weights, part.len, scratch.at(at))?;
                    at += part.len;
                }
                Ok(scratch)
            }
        }
    }

    /// All values as the products see them: rounded to bf16.
    pub fn values(&self, device: &Device) -> Result<Vec<f32>, LaunchError> {
        let len = self.rows * self.cols;
        let scratch = device.alloc::<bf16>(match self.store {
            Store::Bf16(_) => 0,
            Store::Nf4 { .. } => len,
        })?;
        let mut values = vec![bf16::ZERO; len];
        device.read(self.in_bf16(device, scratch.ptr())?, &mut values)?;
        Ok(values.into_iter().map(bf16::to_f32).collect())
    }
}

/// Copies a tensor over, rounded to bf16; gives the number of its values.
fn upload(
    device: &Device,
    loader: &mut Loader,
    tensor: &Tensor,
    to: Ptr<bf16>,
) -> Result<usize, LoadError> {
    match tensor.staged()? {
        Staged::Bf16 => loader.copy(device, tensor, to.cast())?,
        Staged::F32 => loader.convert(device, tensor, |piece| {
            elementwise::to_bf16(device, piece.values, piece.at.cast(), to.at(piece.first))
        })?,
    }
    Ok(tensor.shape().iter().product())
}

/// Quantises a tensor on the GPU, piece by piece.
fn quantize(
    device: &Device,
    loader: &mut Loader,
    tensor: &Tensor,
    double_quant: bool,
) -> Result<Part, LoadError> {
    let len: usize = tensor.shape().iter().product();
    let blocks = len.div_ceil(BLOCK);
    let packed = device.alloc(len.div_ceil(2))?;
    let (single, to) = match double_quant {
        true => (None, loader.scales(device, blocks)?),
        false => {
            let scales = device.alloc(blocks)?;
            let to = scales.ptr();
            (Some(scales), to)
        }
    };
    let staged = tensor.staged()?;
    loader.convert(device, tensor, |piece| {
        let source = match staged {
            Staged::Bf16 => Source::Bf16(piece.at.cast()),
            Staged::F32 => Source::F32(piece.at.cast()),
        };
        let (packed, to) = (packed.ptr().at(piece.first / 2), to.at(piece.first / BLOCK));
        nf4::quantize(device, source, piece.values, packed, to)
    })?;
    let scales = match single {
        Some(scales) => Scales::Single(scales),
        None => {
            // Their mean is the host's: it has to be summed in PyTorch's order.
            let offset = mean_scale(loader.absmax());
            let codes = device.alloc(blocks)?;
            let absmax = device.alloc(blocks.div_ceil(NESTED_BLOCK))?;
            nf4::double_quantize(device, to, blocks, offset, codes.ptr(), absmax.ptr())?;
            Scales::Double {
                codes,
                absmax,
                offset,
            }
        }
    };
    Ok(Part {
        len,
        packed,
        scales,
    })
}
