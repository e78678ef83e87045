//! A tensor's values on their way to a device: copied out of the mapped file by all cores, which look for NaN and infinity and find the largest
//! magnitude of each block while they pass by. Memory is the bound, so both cost nothing.

use super::{Dtype, Tensor};
use crate::backend::BackendError;
use crate::model::nf4::BLOCK;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// How values lie where they were staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// As in a file of bf16.
    Bf16,
    /// As in a file of f32; f16 is widened, which is exact.
    F32,
}

impl Staged {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Staged::Bf16 => 2,
            Staged::F32 => 4,
        }
    }
}

/// Values that a core copies at a time.
const PIECE: usize = 1 << 15;

impl Tensor {
    /// How [`Tensor::stage`] hands its values over.
    ///
    /// # Errors
    /// If the tensor does not hold floats.
    pub fn staged(&self) -> Result<Staged, BackendError> {
        match self.dtype {
            Dtype::Bf16 => Ok(Staged::Bf16),
            Dtype::F16 | Dtype::F32 => Ok(Staged::F32),
            Dtype::U8 | Dtype::Other => {
                Err(self.error("does not hold floating-point numbers (F32, BF16 or F16)".into()))
            }
        }
    }

    /// Copies values to `to`, from number `first` on, as [`Tensor::staged`] says; `absmax[b] =` the largest magnitude of the `b`th [`BLOCK`] of
    /// them. Wants as many values as both have room for, which the tensor must have.
    ///
    /// # Errors
    /// If the tensor does not hold floats; names the first value that is NaN or infinite.
    pub fn stage(
        &self,
        first: usize,
        to: &mut [u8],
        absmax: &mut [f32],
    ) -> Result<(), BackendError> {
        let values = to.len() / self.staged()?.bytes();
        match self.dtype {
            Dtype::F32 => pieces::<4>(self.values(first, values, 4), to, absmax, 4, copy_f32),
            Dtype::F16 => pieces::<2>(self.values(first, values, 2), to, absmax, 4, widen_f16),
            _ => pieces::<2>(self.values(first, values, 2), to, absmax, 2, copy_bf16),
        }
        if absmax.iter().all(|m| m.is_finite()) {
            return Ok(());
        }
        self.check_finite()
    }

    fn values(&self, first: usize, count: usize, bytes: usize) -> &[u8] {
        &self.bytes()[bytes * first..bytes * (first + count)]
    }
}

/// Runs `copy` over the blocks of `from`, values of `N` bytes that take `wide` in `to`.
fn pieces<const N: usize>(
    from: &[u8],
    to: &mut [u8],
    absmax: &mut [f32],
    wide: usize,
    copy: impl Fn(&[u8], &mut [u8]) -> f32 + Sync,
) {
    from.par_chunks(PIECE * N)
        .zip(to.par_chunks_mut(PIECE * wide))
        .zip(absmax.par_chunks_mut(PIECE / BLOCK))
        .for_each(|((from, to), absmax)| {
            let blocks = from.chunks(BLOCK * N).zip(to.chunks_mut(BLOCK * wide));
            for ((from, to), absmax) in blocks.zip(absmax) {
                *absmax = copy(from, to);
            }
        });
}

// Without their sign, floats are ordered as their bits are, and NaN and infinity lie above all others.

fn copy_bf16(from: &[u8], to: &mut [u8]) -> f32 {
    to.copy_from_slice(from);
    let (values, _) = from.as_chunks::<2>();
    let bits = values.iter().map(|v| i16::from_le_bytes(*v) & 0x7fff);
    f32::from_bits((bits.fold(0, i16::max) as u32) << 16)
}

fn copy_f32(from: &[u8], to: &mut [u8]) -> f32 {
    to.copy_from_slice(from);
    let (values, _) = from.as_chunks::<4>();
    let bits = values.iter().map(|v| i32::from_le_bytes(*v) & 0x7fff_ffff);
    f32::from_bits(bits.fold(0, i32::max) as u32)
}

fn widen_f16(from: &[u8], to: &mut [u8]) -> f32 {
    let (mut halves, mut wide) = ([f16::ZERO; BLOCK], [0.0; BLOCK]);
    let (values, _) = from.as_chunks::<2>();
    for (half, value) in halves.iter_mut().zip(values) {
        *half = f16::from_le_bytes(*value);
    }
    // The processor's instruction, where it has one.
    halves.convert_to_f32_slice(&mut wide);
    let bytes = bytemuck::cast_slice(&wide[..values.len()]);
    copy_f32(bytes, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::open_file;
    use half::bf16;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    /// A tensor of these values in a file, at an odd address.
    fn stored(values: &[f32], dtype: safetensors::Dtype) -> Tensor {
        let bytes: Vec<u8> = match dtype {
            safetensors::Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            safetensors::Dtype::F16 => {
                let halves = values.iter().map(|v| f16::from_f32(*v));
                halves.flat_map(f16::to_le_bytes).collect()
            }
            _ => {
                let halves = values.iter().map(|v| bf16::from_f32(*v));
                halves.flat_map(bf16::to_le_bytes).collect()
            }
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let pad = TensorView::new(safetensors::Dtype::U8, vec![1], &[7]).unwrap();
        let view = TensorView::new(dtype, vec![values.len()], &bytes).unwrap();
        safetensors::serialize_to_file([("a", pad), ("w", view)], None, file.path()).unwrap();
        let tensors = open_file(file.path()).unwrap();
        tensors.into_iter().find(|t| t.name() == "w").unwrap()
    }

    /// Values and magnitudes, staged a few blocks at a time.
    fn staged(tensor: &Tensor, step: usize) -> Result<(Vec<f32>, Vec<f32>), BackendError> {
        let len = tensor.shape()[0];
        let form = tensor.staged()?;
        let (mut values, mut absmax) = (Vec::new(), Vec::new());
        for first in (0..len).step_by(step * BLOCK) {
            let count = (len - first).min(step * BLOCK);
            let mut to = vec![0xff; count * form.bytes()];
            let mut largest = vec![-1.0; count.div_ceil(BLOCK)];
            tensor.stage(first, &mut to, &mut largest)?;
            absmax.extend(largest);
            match form {
                Staged::F32 => {
                    values.extend(to.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
                }
                Staged::Bf16 => {
                    let halves = to.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b));
                    values.extend(halves.map(bf16::to_f32));
                }
            }
        }
        Ok((values, absmax))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_staged_is_what_the_file_holds(
            len in prop_oneof![1usize..300, PIECE - 2..PIECE + 70, 2 * PIECE..2 * PIECE + 9],
            step in prop_oneof![1usize..4, Just(1usize << 20)],
            dtype in prop_oneof![
                Just(safetensors::Dtype::F32), Just(safetensors::Dtype::F16), Just(safetensors::Dtype::BF16),
            ],
            seed in 0u32..99,
            bad: Option<(prop::sample::Index, bool)>,
        ) {
            let step = if len > 4 * PIECE / 3 { step.max(64) } else { step };
            let mut values: Vec<f32> = (0..len).map(|i| ((i as f32 + 0.3) * (seed as f32 + 0.7)).sin()).collect();
            if let Some((at, nan)) = &bad {
                values[at.index(len)] = if *nan { -f32::NAN } else { f32::NEG_INFINITY };
            }
            let tensor = stored(&values, dtype);
            match (staged(&tensor, step), &bad) {
                (Ok((got, absmax)), None) => {
                    let want = tensor.to_f32().unwrap();
                    prop_assert_eq!(&got, &want);
                    let largest = |b: &[f32]| b.iter().map(|v| v.abs()).fold(0.0, f32::max);
                    let want: Vec<f32> = want.chunks(BLOCK).map(largest).collect();
                    prop_assert_eq!(absmax, want);
                }
                (Err(e), Some((at, _))) => {
                    let place = format!("(element {})", at.index(len));
                    prop_assert!(e.to_string().contains(&place), "{}", e);
                }
                (result, _) => prop_assert!(false, "{:?}", result.map(|r| r.0.len())),
            }
        }
    }
}
