//! Checkpoints on disk: one safetensors file or shards with an index, mapped into memory.
//!
//! Holds names, shapes and bytes; it refuses to know what the tensors are for. Invariant: every offset was checked against the file before a
//! `Tensor` exists, so reading one cannot fail.

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
        let bad16 = |mask: u16| {
            self.bytes()
                .par_chunks_exact(2)
                .position_first(move |b| u16::from_le_bytes([b[0], b[1]]) & mask == mask)
        };
        let bad = match self.dtype {
            Dtype::F32 => self
                .bytes()
                .par_chunks_exact(4)
                .position_first(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
            Dtype::Bf16 => bad16(0x7f80),
            Dtype::F16 => bad16(0x7c00),
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
