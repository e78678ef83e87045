//! Checkpoints of a training: everything that the next step depends on, in a folder that appears whole.
//!
//! Holds the files and their order. Invariant: a folder `step-NNNNNN` is complete, because it is renamed into its place last; what a
//! killed process leaves has another name and is removed.

use super::TrainError;
use crate::backend::{Backend, Slot};
use crate::data::whole_file::write_whole;
use crate::model::adapter;
use crate::model::checkpoint::{CheckpointError, open_file};
use crate::model::trained::{Trained, Tuning};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The state of a training between two steps, besides its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Hash of everything that the training depends on.
    pub key: String,
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Validations in a row without improvement.
    pub patience_used: u64,
    /// Loss summed over the steps since the last log line, and their number.
    pub window: (f64, u64),
}

/// A validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After this many steps.
    pub step: u64,
    /// Mean loss of the validation targets.
    pub loss: f64,
}

/// Gradients and moments of the optimizer, flat.
pub struct Moments<B: Backend> {
    /// First moment.
    pub first: B::Float,
    /// Second moment.
    pub second: B::Float,
}

/// The folder of a training's checkpoints.
pub struct Snapshots {
    dir: PathBuf,
}

/// How trained tensors are named for other programs.
pub struct Label<'a> {
    /// The base model's name.
    pub base: &'a str,
    /// Dropout of the training.
    pub dropout: f64,
}

/// Writes trained tensors: a PEFT adapter, or `model.safetensors` of a fully trained model.
///
/// # Errors
/// Whatever the disk says.
pub fn write_trained<B: Backend>(
    backend: &B,
    trained: &Trained<B>,
    label: &Label,
    dir: &Path,
) -> Result<(), TrainError> {
    match trained.tuning() {
        Tuning::Lora(shape) => {
            adapter::write(backend, trained, shape, label.dropout, label.base, dir)?
        }
        Tuning::Full => adapter::write_tensors(backend, trained, &dir.join("model.safetensors"))?,
    }
    Ok(())
}

/// Reads what [`write_trained`] wrote.
///
/// # Errors
/// A file that is damaged or belongs to another shape.
pub fn read_trained<B: Backend>(
    backend: &B,
    trained: &mut Trained<B>,
    dir: &Path,
) -> Result<(), TrainError> {
    let file = match trained.tuning() {
        Tuning::Lora(_) => adapter::WEIGHTS,
        Tuning::Full => "model.safetensors",
    };
    Ok(adapter::read_tensors(backend, trained, &dir.join(file))?)
}

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

impl Snapshots {
    /// The checkpoints in `dir`, which is made if it is not there; leftovers of a killed process are removed.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn open(dir: PathBuf) -> Result<Self, TrainError> {
        let io = |source| TrainError::Io {
            path: dir.clone(),
            source,
        };
        std::fs::create_dir_all(&dir).map_err(io)?;
        for entry in std::fs::read_dir(&dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.is_dir() && step_of(&path).is_none() {
                std::fs::remove_dir_all(&path).map_err(|source| TrainError::Io { path, source })?;
            }
        }
        Ok(Snapshots { dir })
    }

    /// Checkpoints with their steps, oldest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let io = |source| TrainError::Io {
            path: self.dir.clone(),
            source,
        };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if let Some(step) = step_of(&path) {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes a checkpoint and removes all but the latest `keep`.
    ///
    /// # Errors
    /// Whatever the disk says; the earlier checkpoints stay then.
    pub fn save<B: Backend>(
        &self,
        backend: &B,
        progress: &Progress,
        trained: &Trained<B>,
        moments: &Moments<B>,
        label: &Label,
        keep: u64,
    ) -> Result<PathBuf, TrainError> {
        let io = |source| TrainError::Io {
            path: self.dir.clone(),
            source,
        };
        let part = tempfile::Builder::new()
            .prefix("part-")
            .tempdir_in(&self.dir)
            .map_err(io)?;
        write_trained(backend, trained, label, part.path())?;
        let whole = Slot {
            offset: 0,
            len: trained.len(),
        };
        let (first, second) = (
            backend.read(&moments.first, whole),
            backend.read(&moments.second, whole),
        );
        let path = part.path().join(OPTIMIZER);
        let layout = |source| {
            TrainError::Adapter(adapter::AdapterError::Layout {
                path: path.clone(),
                source,
            })
        };
        let views = [("first", &first), ("second", &second)]
            .into_iter()
            .map(|(name, values)| {
                let bytes = bytemuck::cast_slice(values.as_slice());
                let view = safetensors::tensor::TensorView::new(
                    safetensors::Dtype::F32,
                    vec![values.len()],
                    bytes,
                );
                view.map(|v| (name, v))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(layout)?;
        write_whole(&path, &safetensors::serialize(views, None).map_err(layout)?)?;
        let state = serde_json::to_vec_pretty(progress).map_err(|e| io(e.into()))?;
        write_whole(&part.path().join(STATE), &state)?;
        let place = self.dir.join(format!("step-{:06}", progress.step));
        if place.exists() {
            std::fs::remove_dir_all(&place).map_err(io)?;
        }
        std::fs::rename(part.keep(), &place).map_err(io)?;
        std::fs::File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .map_err(io)?;
        let all = self.list()?;
        for (_, old) in all.iter().rev().skip(keep.max(1) as usize) {
            std::fs::remove_dir_all(old).map_err(io)?;
        }
        Ok(place)
    }

    /// Loads the latest checkpoint of the training with this key; others are left alone.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub fn latest<B: Backend>(
        &self,
        backend: &B,
        key: &str,
        trained: &mut Trained<B>,
        moments: &mut Moments<B>,
    ) -> Result<Option<Progress>, TrainError> {
        for (_, dir) in self.list()?.into_iter().rev() {
            let path = dir.join(STATE);
            let bytes = std::fs::read(&path).map_err(|source| TrainError::Io {
                path: path.clone(),
                source,
            })?;
            let progress: Progress =
                serde_json::from_slice(&bytes).map_err(|source| TrainError::State {
                    path: path.clone(),
                    source,
                })?;
            if progress.key != key {
                continue;
            }
            read_trained(backend, trained, &dir)?;
            for tensor in open_file(&dir.join(OPTIMIZER)).map_err(adapter::AdapterError::from)? {
                let to = if tensor.name() == "first" {
                    &mut moments.first
                } else {
                    &mut moments.second
                };
                let values = tensor
                    .to_f32()
                    .map_err(|e| adapter::AdapterError::from(CheckpointError::from(e)))?;
                if values.len() != trained.len() {
                    return Err(TrainError::Shape {
                        path: dir.join(OPTIMIZER),
                        found: values.len(),
                        wanted: trained.len(),
                    });
                }
                backend.write(to, 0, &values);
            }
            return Ok(Some(progress));
        }
        Ok(None)
    }
}

fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?
        .to_str()?
        .strip_prefix("step-")?
        .parse()
        .ok()
}
