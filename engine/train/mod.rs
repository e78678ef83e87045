//! Training: the loop, its schedule, its checkpoints.

pub mod batch;
pub mod metrics;
pub mod schedule;
pub mod session;
pub mod snapshot;

use crate::data::whole_file::WriteError;
use crate::model::adapter::AdapterError;
use std::path::PathBuf;

/// Why a training ended early.
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
    /// The loss is not a number.
    #[error(
        "`{name}`: the loss is {loss} at step {step}: the training diverged; lower `lr`, lengthen `warmup` or set `clip`"
    )]
    Diverged {
        /// The train block.
        name: String,
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The adapter to start from, or one of a checkpoint.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
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
    /// A checkpoint's state cannot be parsed.
    #[error(
        "{path}: not a checkpoint of this program: {source}; remove its folder to go on from an earlier one"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A checkpoint's tensors do not fit.
    #[error(
        "{path}: holds {found} values, and {wanted} were expected; remove its folder to go on from an earlier one"
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Values found.
        found: usize,
        /// Values expected.
        wanted: usize,
    },
}
