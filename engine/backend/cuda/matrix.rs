//! Frozen weights on the GPU: bf16, or NF4 as bitsandbytes defines it.
//!
//! Holds loading and the way to bf16. Invariant: no f32 copy of a model exists; host memory holds a few MiB beside the mapped file.

use crate::backend::BackendError;
use crate::model::checkpoint::{Dtype, Tensor};
use crate::model::nf4::{BLOCK, NESTED_BLOCK, mean_scale};
use half::{bf16, f16};
use medft_dsl::plan::Precision;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::nf4::{self, Source, Weights};
use medft_kernels::{LaunchError, Ptr};

/// Values that are converted and copied at a time; whole NF4 blocks.
const CHUNK: usize = 4 << 20;

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
            tensor.check_finite()?;
        }
        let store = if precision == Precision::Nf4 {
            let parts: Vec<Part> = tensors
                .iter()
                .map(|tensor| quantize(device, tensor, double_quant))
                .collect::<Result<_, _>>()?;
            let weights = parts.iter().map(Part::weights).collect();
            Store::Nf4 { parts, weights }
        } else {
            let padded = rows.next_multiple_of(ROWS);
            let to = device.alloc::<bf16>(padded * cols)?;
            device.fill(to.ptr().at(rows * cols), 0, (padded - rows) * cols)?;
            let mut at = 0;
            for tensor in tensors {
                at += upload(device, tensor, to.ptr().at(at))?;
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

/// Copies a tensor over, rounded to bf16; gives the number of its values. A bf16 file is copied as it is mapped.
fn upload(device: &Device, tensor: &Tensor, to: Ptr<bf16>) -> Result<usize, LoadError> {
    if let Some(bits) = tensor.as_bf16() {
        device.write(to.cast::<u16>(), bits)?;
        return Ok(bits.len());
    }
    let mut at = 0;
    in_chunks(tensor, |values| {
        let rounded: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
        device.write(to.at(at), &rounded)?;
        at += values.len();
        Ok(())
    })?;
    Ok(at)
}

/// Quantises a tensor on the GPU, chunk by chunk.
fn quantize(device: &Device, tensor: &Tensor, double_quant: bool) -> Result<Part, LoadError> {
    let len: usize = tensor.shape().iter().product();
    let blocks = len.div_ceil(BLOCK);
    let (packed, scales) = (device.alloc(len.div_ceil(2))?, device.alloc(blocks)?);
    let chunk = device.alloc::<f32>(CHUNK.min(len))?;
    let mut at = 0;
    in_chunks(tensor, |values| {
        device.write(chunk.ptr(), values)?;
        let (packed, scales) = (packed.ptr().at(at / 2), scales.ptr().at(at / BLOCK));
        nf4::quantize(
            device,
            Source::F32(chunk.ptr()),
            values.len(),
            packed,
            scales,
        )?;
        at += values.len();
        Ok(())
    })?;
    if !double_quant {
        let scales = Scales::Single(scales);
        return Ok(Part {
            len,
            packed,
            scales,
        });
    }
    // Only the mean passes through the host: it has to be summed in PyTorch's order.
    let offset = mean_scale(&scales.download()?);
    let (codes, nested) = (
        device.alloc(blocks)?,
        device.alloc(blocks.div_ceil(NESTED_BLOCK))?,
    );
    nf4::double_quantize(
        device,
        scales.ptr(),
        blocks,
        offset,
        codes.ptr(),
        nested.ptr(),
    )?;
    let scales = Scales::Double {
        codes,
        absmax: nested,
        offset,
    };
    Ok(Part {
        len,
        packed,
        scales,
    })
}

/// Gives a tensor's values in f32, [`CHUNK`] at a time.
fn in_chunks(
    tensor: &Tensor,
    mut take: impl FnMut(&[f32]) -> Result<(), LaunchError>,
) -> Result<(), LoadError> {
    let (width, widen): (usize, fn(&[u8]) -> f32) = match tensor.dtype() {
        Dtype::F32 => (4, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Dtype::Bf16 => (2, |b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Dtype::F16 => (2, |b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        Dtype::U8 | Dtype::Other => {
            let problem = "does not hold floating-point numbers (F32, BF16 or F16)".to_string();
            return Err(tensor.error(problem).into());
        }
    };
    for bytes in tensor.bytes().chunks(CHUNK * width) {
        let values: Vec<f32> = bytes.chunks_exact(width).map(widen).collect();
        take(&values)?;
    }
    Ok(())
}
