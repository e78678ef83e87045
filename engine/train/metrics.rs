//! `metrics.jsonl`: one line for every logged step and every validation.
//!
//! Invariant: after a resume the file goes on at the checkpoint's step: later lines, and a line that a crash cut, are removed first.

use super::TrainError;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Steps done.
    pub step: u64,
    /// Passes over the training rows.
    pub epoch: f64,
    /// Mean loss of the target tokens since the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean loss of the validation targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Gradient norm before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens seen since the start.
    pub tokens: u64,
    /// Seconds since the start, over all sessions.
    pub seconds: f64,
}

/// The file, open for appending.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file of a training that has done `step` steps.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let io = |source| TrainError::Io {
            path: path.to_path_buf(),
            source,
        };
        let kept: Vec<Metric> = read(path)?.into_iter().filter(|m| m.step <= step).collect();
        let mut text = String::new();
        for metric in &kept {
            text.push_str(&serde_json::to_string(metric).map_err(|e| io(e.into()))?);
            text.push('\n');
        }
        crate::data::whole_file::write_whole(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Metrics {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn push(&mut self, metric: &Metric) -> Result<(), TrainError> {
        let io = |source| TrainError::Io {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_string(metric).map_err(|e| io(e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(io)
    }
}

/// The complete lines of a metrics file; none if it is not there.
///
/// # Errors
/// Whatever the disk says.
pub fn read(path: &Path) -> Result<Vec<Metric>, TrainError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(TrainError::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}
