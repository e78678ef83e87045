//! Checkpoints on disk: one safetensors file or shards with an index, mapped into memory.
//!
//! Holds names, shapes and bytes; it refuses to know what the tensors are for. Invariant: every offset was checked against the file before a
//! `Tensor` exists, so reading one cannot fail.

mod stage;

pub use stage::Staged;

use crate::backend::BackendError;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a checkpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// No weights in the folder.
    #[error(
        "{0}: no `model.safetensors` and no `model.safetensors.index.json` in this folder; is it a Hugging Face model directory?"
    )]
    Missing(PathBuf),
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that the architecture needs is not there.
    #[error("{dir}: tensor `{name}` is missing{near}; does config.json belong to these weights?")]
    NoTensor {
        /// The folder.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// A hint, or nothing.
        near: String,
    },
    /// A tensor does not have the shape that config.json implies.
    #[error("{file}: tensor `{name}` has shape {found:?}, and config.json asks for {wanted:?}")]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        name: String,
        /// As stored.
        found: Vec<usize>,
        /// As needed.
        wanted: Vec<usize>,
    },
    /// A tensor's numbers cannot be used.
    #[error(transparent)]
    Values(#[from] BackendError),
}

impl CheckpointError {
    /// Whether the files are wrong rather than the device.
    pub fn is_input(&self) -> bool {
        match self {
            CheckpointError::Values(e) => e.is_input(),
            _ => true,
        }
    }
}

/// Element types that weights come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// Bytes: packed 4-bit codes and quantised scales.
    U8,
    /// Anything else; an error once it is read.
    Other,
}

/// A tensor in a mapped file.
#[derive(Debug, Clone)]
pub struct Tensor {
    name: String,
    file: Arc<PathBuf>,
    map: Arc<Mmap>,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Tensor {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// The values in place, if they are f32 and aligned.
    pub fn as_f32(&self) -> Option<&[f32]> {
        (self.dtype == Dtype::F32)
            .then(|| bytemuck::try_cast_slice(self.bytes()).ok())
            .flatten()
    }

    /// The bits in place, if they are bf16 and aligned.
    pub fn as_bf16(&self) -> Option<&[u16]> {
        (self.dtype == Dtype::Bf16)
            .then(|| bytemuck::try_cast_slice(self.bytes()).ok())
            .flatten()
    }

    /// A copy in f32.
    ///
    /// # Errors
    /// If the tensor does not hold floats.
    pub fn to_f32(&self) -> Result<Vec<f32>, BackendError> {
        let halves = || {
            self.bytes()
                .par_chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        match self.dtype {
            Dtype::F32 => Ok(self
                .bytes()
                .par_chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()),
            Dtype::Bf16 => Ok(halves().map(|b| bf16::from_bits(b).to_f32()).collect()),
            Dtype::F16 => Ok(halves().map(|b| f16::from_bits(b).to_f32()).collect()),
            Dtype::U8 | Dtype::Other => {
                Err(self.error("does not hold floating-point numbers (F32, BF16 or F16)".into()))
            }
        }
    }

    /// Looks at every value.
    ///
    /// # Errors
    /// Names the first value that is NaN or infinite.
    pub fn check_finite(&self) -> Result<(), BackendError> {
        // Infinities and NaN are the values whose exponent has every bit set.
        let half = |ones: u16| move |b: [u8; 2]| u16::from_le_bytes(b) & ones == ones;
        let single = |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000;
        let bad = match self.dtype {
            Dtype::F32 => first(self.bytes(), single),
            Dtype::Bf16 => first(self.bytes(), half(0x7f80)),
            Dtype::F16 => first(self.bytes(), half(0x7c00)),
            Dtype::U8 | Dtype::Other => None,
        };
        match bad {
            None => Ok(()),
            Some(at) => Err(self.error(format!(
                "holds a value that is not a finite number (element {at}); the file is damaged or the training that wrote it diverged"
            ))),
        }
    }

    /// An error about this tensor.
    pub fn error(&self, problem: String) -> BackendError {
        BackendError::Tensor {
            file: self.file.display().to_string(),
            tensor: self.name.clone(),
            problem,
        }
    }
}

/// Bytes that a core looks at before it asks whether one value was bad.
const BLOCK: usize = 1 << 16;

/// The first value of `N` bytes that is `bad`. A block is one loop without an exit, which the compiler turns into vectors.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    let blocks = bytes.par_chunks(BLOCK).enumerate();
    blocks.find_map_first(|(block, bytes)| {
        let (values, _) = bytes.as_chunks::<N>();
        let any = values.iter().fold(false, |any, value| any | bad(*value));
        any.then(|| values.iter().position(|value| bad(*value)))?
            .map(|at| block * BLOCK / N + at)
    })
}

/// All tensors of a checkpoint, by name.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Missing, unreadable, truncated or inconsistent files.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let files = if single.is_file() {
            vec![single]
        } else if index.is_file() {
            shards(dir, &index)?
        } else {
            return Err(CheckpointError::Missing(dir.to_path_buf()));
        };
        let mut tensors = BTreeMap::new();
        for file in &files {
            for tensor in open_file(file)? {
                tensors.insert(tensor.name.clone(), tensor);
            }
        }
        Ok(Checkpoint {
            dir: dir.to_path_buf(),
            tensors,
        })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.range.len() as u64).sum()
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get(&self, name: &str, wanted: &[usize]) -> Result<&Tensor, CheckpointError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| CheckpointError::NoTensor {
                dir: self.dir.clone(),
                name: name.to_string(),
                near: match self.tensors.keys().next() {
                    Some(first) => format!(" (the file starts with `{first}`)"),
                    None => String::new(),
                },
            })?;
        if tensor.shape != wanted {
            return Err(CheckpointError::Shape {
                file: tensor.file.to_path_buf(),
                name: name.to_string(),
                found: tensor.shape.clone(),
                wanted: wanted.to_vec(),
            });
        }
        Ok(tensor)
    }
}

/// The tensors of one safetensors file.
///
/// # Errors
/// Unreadable, truncated or inconsistent files.
pub fn open_file(path: &Path) -> Result<Vec<Tensor>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: mapped read-only. A file that another program truncates while we run would raise SIGBUS; weights are not edited in place.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let format = |problem: String| CheckpointError::Format {
        path: path.to_path_buf(),
        problem,
    };
    let (header, meta) = SafeTensors::read_metadata(&map).map_err(|e| {
        format(format!(
            "not a complete safetensors file ({e}); it may be truncated: download or copy it again"
        ))
    })?;
    let data = header + 8;
    let (map, file) = (Arc::new(map), Arc::new(path.to_path_buf()));
    let mut tensors = Vec::new();
    for (name, info) in meta.tensors() {
        let (start, end) = info.data_offsets;
        let range = data.saturating_add(start)..data.saturating_add(end);
        if range.start > range.end || range.end > map.len() {
            return Err(format(format!(
                "tensor `{name}` reaches past the end of the file; it is truncated"
            )));
        }
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::U8 => Dtype::U8,
            _ => Dtype::Other,
        };
        tensors.push(Tensor {
            name,
            file: file.clone(),
            map: map.clone(),
            dtype,
            shape: info.shape.clone(),
            range,
        });
    }
    Ok(tensors)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let text = std::fs::read_to_string(index).map_err(|source| CheckpointError::Io {
        path: index.into(),
        source,
    })?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| CheckpointError::Format {
        path: index.into(),
        problem: format!("not a weight index: {e}"),
    })?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(CheckpointError::Format {
            path: index.into(),
            problem: "names no weight files".into(),
        });
    }
    let mut files = Vec::new();
    for name in names {
        if name.contains(['/', '\\']) {
            return Err(CheckpointError::Format {
                path: index.into(),
                problem: format!("names `{name}`; a shard must lie beside its index"),
            });
        }
        files.push(dir.join(name));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// Bytes of finite values, among them the largest, subnormal and negative ones; `bad` stands at `at`.
    fn values<const N: usize>(
        finite: [[u8; N]; 5],
        len: usize,
        at: usize,
        bad: [u8; N],
    ) -> Vec<u8> {
        let value = |i| if i == at { bad } else { finite[i % 5] };
        (0..len).flat_map(value).collect()
    }

    fn check(dtype: safetensors::Dtype, len: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A byte before the weights puts them at an odd address.
        for odd in [&[][..], &[7]] {
            let pad = TensorView::new(safetensors::Dtype::U8, vec![odd.len()], odd).unwrap();
            let view = TensorView::new(dtype, vec![len], bytes).unwrap();
            let header = [("a", pad), ("w", view)];
            safetensors::serialize_to_file(header, None, file.path()).unwrap();
            let tensors = open_file(file.path()).unwrap();
            tensors
                .iter()
                .find(|t| t.name == "w")
                .unwrap()
                .check_finite()?;
        }
        Ok(())
    }

    fn family<const N: usize>(dtype: safetensors::Dtype, finite: [[u8; N]; 5], bad: &[[u8; N]]) {
        let block = BLOCK / N;
        for len in [1, 2, 31, block - 1, block, block + 1, 3 * block + 17] {
            assert!(
                check(dtype, len, &values(finite, len, len, finite[0])).is_ok(),
                "{dtype:?} {len}"
            );
            for at in [0, 1, (len / 2) | 1, block, len - 1]
                .into_iter()
                .filter(|at| *at < len)
            {
                for bad in bad {
                    let error = check(dtype, len, &values(finite, len, at, *bad)).unwrap_err();
                    let place = format!("(element {at})");
                    assert!(
                        error.to_string().contains(&place),
                        "{dtype:?} {len} {bad:?}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_found_wherever_they_stand() {
        let h = |bits: [u16; 5]| bits.map(u16::to_le_bytes);
        let bf16_finite = h([0, 0x3f80, 0x7f7f, 0x8001, 0xff7f]);
        let bf16_bad = h([0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff]);
        family(safetensors::Dtype::BF16, bf16_finite, &bf16_bad);
        let f16_finite = h([0, 0x3c00, 0x7bff, 0x8001, 0xfbff]);
        let f16_bad = h([0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff]);
        family(safetensors::Dtype::F16, f16_finite, &f16_bad);
        let f32_finite = [0.0, 1.0, f32::MAX, -f32::from_bits(1), f32::MIN].map(f32::to_le_bytes);
        let signalling = f32::from_bits(0xff80_0001);
        let f32_bad =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, signalling].map(f32::to_le_bytes);
        family(safetensors::Dtype::F32, f32_finite, &f32_bad);
    }

    #[test]
    fn the_first_of_several_bad_values_is_named() {
        let mut bytes = [1.0f32; 50_000].map(f32::to_le_bytes);
        (bytes[49_999], bytes[20_001], bytes[20_002]) = (
            f32::NAN.to_le_bytes(),
            f32::INFINITY.to_le_bytes(),
            f32::NAN.to_le_bytes(),
        );
        let error = check(safetensors::Dtype::F32, 50_000, bytes.as_flattened()).unwrap_err();
        assert!(error.to_string().contains("(element 20001)"), "{error}");
    }
}
