//! `metrics.jsonl`: one line for every logged step and every validation.
//!
//! Holds the lines and their file. Invariant: after a resume the file goes on at the checkpoint's step: later lines, and a line that a
//! crash cut, are removed first.

use super::TrainError;
use crate::data::whole_file::write_whole;
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
    /// Mean of the steps' losses since the last log line.
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
        let mut text = String::new();
        for metric in read(path)?.iter().filter(|m| m.step <= step) {
            text.push_str(&line(path, metric)?);
        }
        write_whole(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path);
        Ok(Metrics {
            path: path.to_path_buf(),
            file: file.map_err(TrainError::io(path))?,
        })
    }

    /// Appends a line, which is on disk before a later checkpoint is.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn push(&mut self, metric: &Metric) -> Result<(), TrainError> {
        let line = line(&self.path, metric)?;
        let written = self.file.write_all(line.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .map_err(TrainError::io(&self.path))
    }
}

fn line(path: &Path, metric: &Metric) -> Result<String, TrainError> {
    match serde_json::to_string(metric) {
        Ok(json) => Ok(json + "\n"),
        Err(e) => Err(TrainError::io(path)(e.into())),
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
        Err(e) => Err(TrainError::io(path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(step: u64) -> Metric {
        Metric {
            step,
            epoch: 0.5,
            loss: Some(1.0 / 3.0),
            val_loss: None,
            lr: 1e-4,
            grad_norm: Some(2.5),
            tokens: 10 * step,
            seconds: 0.25,
        }
    }

    #[test]
    fn a_resumed_file_loses_the_lines_behind_the_checkpoint_and_the_cut_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (1..=4).for_each(|step| metrics.push(&metric(step)).unwrap());
        metrics.file.write_all(b"{\"step\":2,\"epo").unwrap();
        let mut metrics = Metrics::open(&path, 2).unwrap();
        metrics.push(&metric(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [metric(1), metric(2), metric(3)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
