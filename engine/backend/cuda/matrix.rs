//! Frozen weights on the GPU: bf16, or NF4 as bitsandbytes defines it.
//!
//! Holds loading and the way to bf16. Invariant: no f32 copy of a model exists; host memory holds a few MiB beside the mapped file.

use crate::backend::BackendError;
use crate::model::checkpoint::{Dtype, Tensor};
use crate::model::nf4::{Absmax, BLOCK};
use half::{bf16, f16};
use medft_dsl::plan::Precision;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::nf4::{self, Weights};
use medft_kernels::{LaunchError, Ptr};
use std::sync::Arc;

/// Values that are converted and copied at a time; whole NF4 blocks.
const CHUNK: usize = 4 << 20;

/// Weights `[rows, cols]`, of one tensor or several stacked by rows.
pub struct Matrix {
    rows: usize,
    cols: usize,
    store: Store,
}

enum Store {
    Bf16(Buffer<bf16>),
    Nf4 {
        /// Two codes a byte, tensor after tensor.
        packed: Buffer<u8>,
        /// Scale of each block of 64, f32: what dequantisation multiplies by, also after double quantisation.
        absmax: Buffer<f32>,
    },
}

/// Weights where the products can read them.
#[derive(Clone, Copy)]
pub enum Stored {
    /// `[rows, cols]`.
    Bf16(Ptr<bf16>),
    /// Quantised; blocks of 64 run along the rows.
    Nf4(Weights),
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
        let len = rows * cols;
        let store = if precision == Precision::Nf4 {
            let (packed, absmax) = (device.alloc(len.div_ceil(2))?, device.alloc(len.div_ceil(BLOCK))?);
            let mut at = 0;
            for tensor in tensors {
                let count: usize = tensor.shape().iter().product();
                if at % BLOCK != 0 {
                    let problem = format!(
                        "cannot be quantised beside its neighbours: {count} values are not whole blocks of {BLOCK}; set `precision = bf16`"
                    );
                    return Err(tensor.error(problem).into());
                }
                quantize(device, tensor, packed.ptr().at(at / 2), absmax.ptr().at(at / BLOCK), double_quant)?;
                at += count;
            }
            Store::Nf4 { packed, absmax }
        } else {
            let to = device.alloc::<bf16>(len)?;
            let mut at = 0;
            for tensor in tensors {
                at += upload(device, tensor, to.ptr().at(at))?;
            }
            Store::Bf16(to)
        };
        Ok(Matrix { rows, cols, store })
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// As they lie.
    pub fn stored(&self) -> Stored {
        match &self.store {
            Store::Bf16(values) => Stored::Bf16(values.ptr()),
            Store::Nf4 { packed, absmax } => Stored::Nf4(Weights {
                packed: packed.ptr(),
                absmax: nf4::Absmax::Plain(absmax.ptr()),
            }),
        }
    }

    /// All values as the products see them: rounded to bf16.
    pub fn values(&self, device: &Device) -> Result<Vec<f32>, LaunchError> {
        let values = match &self.store {
            Store::Bf16(values) => values.download()?,
            Store::Nf4 { .. } => {
                let Stored::Nf4(weights) = self.stored() else { return Ok(Vec::new()) };
                let values = device.alloc(self.len())?;
                nf4::dequantize(device, &weights, self.len(), values.ptr())?;
                values.download()?
            }
        };
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
fn quantize(
    device: &Device,
    tensor: &Tensor,
    packed: Ptr<u8>,
    absmax: Ptr<f32>,
    double_quant: bool,
) -> Result<(), LoadError> {
    let count: usize = tensor.shape().iter().product();
    let chunk = device.alloc::<f32>(CHUNK.min(count))?;
    let mut at = 0;
    in_chunks(tensor, |values| {
        device.write(chunk.ptr(), values)?;
        nf4::quantize_f32(device, chunk.ptr(), values.len(), packed.at(at / 2), absmax.at(at / BLOCK))?;
        at += values.len();
        Ok(())
    })?;
    if double_quant {
        // The mean of all scales has to be summed in PyTorch's order: the scales (1/64 of the values) pass through the host.
        let mut scales = vec![0.0f32; count.div_ceil(BLOCK)];
        device.read(absmax, &mut scales)?;
        let double = Absmax::double(&scales);
        let scales: Vec<f32> = (0..scales.len()).map(|block| double.of_block(block)).collect();
        device.write(absmax, &scales)?;
    }
    Ok(())
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
