//! Training: the loop, its schedule, its checkpoints.

pub mod batch;
pub mod division;
pub mod metrics;
pub mod schedule;
pub mod session;
pub mod snapshot;
pub mod step;

use crate::backend::BackendError;
use crate::data::whole_file::WriteError;
use crate::model::adapter::AdapterError;
use std::path::PathBuf;

/// Why a training ended early. Checkpoints written before stay.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Nothing to train on.
    #[error(
        "`{name}`: there are no training rows; check the data block's `split` and `explore` the data"
    )]
    NoRows {
        /// The train block.
        name: String,
    },
    /// A number that must be finite is not.
    #[error(
        "`{name}`: the {what} is {value} at step {step}: the training diverged; lower `lr`, lengthen `warmup` or set `clip`"
    )]
    Diverged {
        /// The train block.
        name: String,
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step, from 1.
        step: u64,
    },
    /// The adapter to start from, or the trained values of a checkpoint.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A file or folder could not be read or changed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint cannot be gone on from.
    #[error("{path}: {problem}; remove its folder to go on from an earlier checkpoint")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl TrainError {
    /// For `map_err` of operations on `path`.
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.into();
        move |source| TrainError::Io { path, source }
    }
}
