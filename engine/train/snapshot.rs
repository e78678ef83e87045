//! Checkpoints of a training: everything that the next step depends on, in a folder that appears whole.
//!
//! Holds the files and their order. It refuses to decide when one is written. Invariant: a folder `step-NNNNNN` is complete, because
//! it is renamed into its place last; what a killed process leaves is named `part-*` and removed.

use super::TrainError;
use super::division::Division;
use crate::backend::{Backend, BackendError, Slot};
use crate::data::whole_file::write_whole;
use crate::model::adapter::{self, AdapterError, NamedTensor};
use crate::model::checkpoint::{CheckpointError, open_file};
use crate::model::trained::{Trained, Tuning};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

const PROGRESS: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const MODEL: &str = "model.safetensors";
const UNFINISHED: &str = "part-";

/// A training between two steps.
pub struct State<B: Backend> {
    /// The trained values.
    pub trained: Trained<B>,
    /// First moments of the optimizer, flat as the values.
    pub first: B::Float,
    /// Second moments of the optimizer.
    pub second: B::Float,
    /// All the rest.
    pub progress: Progress,
}

/// The state of a training besides its tensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Hash of everything that the training depends on.
    pub key: String,
    /// How steps are divided into passes; none before the first.
    pub division: Option<Division>,
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

/// What an adapter's files say besides its weights.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// The base model's name.
    pub base: &'a str,
    /// Dropout of the training.
    pub dropout: f64,
}

/// Writes trained values: a PEFT adapter, or `model.safetensors` of a fully trained model.
///
/// # Errors
/// Whatever the disk says.
pub fn write_trained<B: Backend>(
    backend: &B,
    trained: &Trained<B>,
    label: Label,
    dir: &Path,
) -> Result<(), TrainError> {
    match trained.tuning() {
        Tuning::Lora(shape) => {
            adapter::write(backend, trained, shape, label.dropout, label.base, dir)?
        }
        Tuning::Full => adapter::write_tensors(backend, trained, &dir.join(MODEL))?,
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
        Tuning::Full => MODEL,
    };
    Ok(adapter::read_tensors(backend, trained, &dir.join(file))?)
}

impl<B: Backend> State<B> {
    /// A training that is about to begin.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(backend: &B, trained: Trained<B>, key: &str) -> Result<Self, BackendError> {
        let moment = || backend.floats("the optimizer's state", trained.len());
        Ok(State {
            first: moment()?,
            second: moment()?,
            trained,
            progress: Progress {
                key: key.to_string(),
                ..Progress::default()
            },
        })
    }

    fn write(&self, backend: &B, label: Label, dir: &Path) -> Result<(), TrainError> {
        write_trained(backend, &self.trained, label, dir)?;
        let len = self.trained.len();
        let moment = |name: &str, from| -> Result<NamedTensor, BackendError> {
            Ok(NamedTensor {
                name: name.into(),
                shape: vec![len],
                values: backend.read(from, Slot { offset: 0, len })?,
            })
        };
        let moments = [
            moment("first", &self.first)?,
            moment("second", &self.second)?,
        ];
        adapter::write_file(&dir.join(OPTIMIZER), &moments)?;
        let path = dir.join(PROGRESS);
        let json = serde_json::to_vec_pretty(&self.progress);
        write_whole(&path, &json.map_err(|e| TrainError::io(&path)(e.into()))?)?;
        Ok(())
    }

    fn read(&mut self, backend: &B, dir: &Path) -> Result<(), TrainError> {
        let bad = |file: &str, problem: String| TrainError::State {
            path: dir.join(file),
            problem,
        };
        let path = dir.join(PROGRESS);
        let bytes = fs::read(&path).map_err(TrainError::io(&path))?;
        let progress: Progress = serde_json::from_slice(&bytes)
            .map_err(|e| bad(PROGRESS, format!("not a checkpoint of this program: {e}")))?;
        if progress.key != self.progress.key {
            let problem = "belongs to a training with other settings, data or model";
            return Err(bad(PROGRESS, problem.into()));
        }
        read_trained(backend, &mut self.trained, dir)?;
        let tensors = open_file(&dir.join(OPTIMIZER)).map_err(AdapterError::from)?;
        for (name, to) in [("first", &mut self.first), ("second", &mut self.second)] {
            let tensor = tensors
                .iter()
                .find(|t| t.name() == name && t.shape() == [self.trained.len()])
                .ok_or_else(|| {
                    let wanted = self.trained.len();
                    bad(OPTIMIZER, format!("no tensor `{name}` of {wanted} values"))
                })?;
            let values = tensor.to_f32().map_err(CheckpointError::from);
            backend.write(to, 0, &values.map_err(AdapterError::from)?);
        }
        self.progress = progress;
        Ok(())
    }
}

/// The folder of a training's checkpoints.
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    /// The checkpoints in `dir`, which is made if it is not there; leftovers of a killed process are removed.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn open(dir: PathBuf) -> Result<Self, TrainError> {
        fs::create_dir_all(&dir).map_err(TrainError::io(&dir))?;
        let snapshots = Snapshots { dir };
        for path in snapshots.entries()? {
            if name(&path).starts_with(UNFINISHED) {
                fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        Ok(snapshots)
    }

    fn entries(&self) -> Result<Vec<PathBuf>, TrainError> {
        fs::read_dir(&self.dir)
            .and_then(|entries| entries.map(|e| Ok(e?.path())).collect())
            .map_err(TrainError::io(&self.dir))
    }

    /// Checkpoints with their steps, latest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let step = |path: &Path| name(path).strip_prefix("step-")?.parse().ok();
        let entries = self.entries()?.into_iter();
        let mut found: Vec<(u64, PathBuf)> = entries.filter_map(|p| Some((step(&p)?, p))).collect();
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Writes a checkpoint and removes all but the latest `keep`; the one just written always stays.
    ///
    /// # Errors
    /// Whatever the disk says; the earlier checkpoints stay then.
    pub fn save<B: Backend>(
        &self,
        backend: &B,
        state: &State<B>,
        label: Label,
        keep: u64,
    ) -> Result<PathBuf, TrainError> {
        let io = || TrainError::io(&self.dir);
        let mut builder = tempfile::Builder::new();
        // Temporary folders are private by default; this one becomes an ordinary one, so the umask decides.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let part = builder
            .prefix(UNFINISHED)
            .tempdir_in(&self.dir)
            .map_err(io())?;
        state.write(backend, label, part.path())?;
        let place = self.dir.join(format!("step-{:06}", state.progress.step));
        fs::rename(part.keep(), &place).map_err(TrainError::io(&place))?;
        if cfg!(unix) {
            let synced = fs::File::open(&self.dir).and_then(|d| d.sync_all());
            synced.map_err(io())?;
        }
        for (_, old) in self.list()?.into_iter().skip(keep.max(1) as usize) {
            fs::remove_dir_all(&old).map_err(TrainError::io(&old))?;
        }
        Ok(place)
    }

    /// Brings `state` to the latest checkpoint, if there is one.
    ///
    /// # Errors
    /// A checkpoint that cannot be read, or is another training's.
    pub fn resume<B: Backend>(&self, backend: &B, state: &mut State<B>) -> Result<(), TrainError> {
        match self.list()?.first() {
            Some((_, dir)) => state.read(backend, dir),
            None => Ok(()),
        }
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}
