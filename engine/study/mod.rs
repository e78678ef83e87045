//! A study: from a plan to a report. Finished stages are reused, interrupted ones go on.
//!
//! Holds the stage graph (split -> train -> predict -> report), the artifact store and what observers hear. It refuses to
//! print and to do a stage's work itself. Invariant: a stage's key names everything its result depends on, so a result is
//! never used for other inputs.

pub mod cache;
pub mod coder;
pub mod estimate;
pub mod explore;
pub mod models;
pub mod observer;
pub mod predict;
pub mod resolve;
pub mod rows;
pub mod run;
pub mod store;
pub mod summary;
pub mod train;

use crate::data::hub::HubError;
use crate::data::rows::RowsError;
use crate::data::split::SplitError;
use crate::data::whole_file::WriteError;
use crate::evaluate::prediction::PredictionError;
use crate::generate::engine::GenerateError;
use crate::model::adapter::AdapterError;
use crate::model::decoder::ModelError;
use crate::report::document::ReportError;
use crate::text::TextError;
use crate::train::TrainError;
use estimate::Shortage;
use std::path::{Path, PathBuf};

/// Why a study stopped.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// Another process works in the output folder.
    #[error("{}: another medft-engine is working here; wait for it, or choose another folder with `--out`", out.display())]
    Busy {
        /// The output folder.
        out: PathBuf,
    },
    /// The output folder cannot be used.
    #[error("cannot keep results in {}: {source}; choose a folder that can be written to with `--out`", out.display())]
    Out {
        /// The output folder.
        out: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A system that the recipe does not have.
    #[error("the recipe has no model or training `{name}`; it has {known}")]
    NoSystem {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A tuned system before its training.
    #[error("`{name}` is not trained yet; run the recipe first, with the same `--out`")]
    NotTrained {
        /// The train block.
        name: String,
    },
    /// `--resume` without a run.
    #[error("nothing to resume: {} has no run of `{recipe}` with these settings, data and models{}; undo what was changed, or run without `--resume` to begin one", out.display(), others(runs))]
    NothingToResume {
        /// The output folder.
        out: PathBuf,
        /// The recipe's name.
        recipe: String,
        /// Runs of the recipe with other settings.
        runs: Vec<String>,
    },
    /// A model directory is not there.
    #[error("model `{name}`: {} is not a folder; download or make the model, or correct `weights`", dir.display())]
    NoModel {
        /// The model block.
        name: String,
        /// The folder.
        dir: PathBuf,
    },
    /// An adapter to start from is not there.
    #[error("train `{name}`: {} is not a folder; `init` names a PEFT adapter to go on from", dir.display())]
    NoAdapter {
        /// The train block.
        name: String,
        /// The folder.
        dir: PathBuf,
    },
    /// A file or folder that the recipe names could not be read.
    #[error("cannot read {}: {source}; check that it is there and that its permissions allow it", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder of the results could not be read or changed.
    #[error("cannot use {}: {source}; check that it is there and that its permissions allow it", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stage needs something that the plan does not have: a bug in the checker.
    #[error("the plan names `{0}`, which it does not define")]
    Dangling(String),
    /// Stages that will not fit into the device's memory.
    #[error("{}", sentences(.0))]
    TooLarge(Vec<Shortage>),
    /// Ctrl-C.
    #[error("interrupted; run the same command again to go on from where it stopped")]
    Interrupted,
    /// The data.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// Tokenizer, template or task.
    #[error("`{block}`: {source}")]
    Text {
        /// The train or evaluate block.
        block: String,
        /// What is wrong.
        source: TextError,
    },
    /// A model.
    #[error("model `{name}`: {source}")]
    Model {
        /// The model block.
        name: String,
        /// What is wrong.
        source: ModelError,
    },
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Decoding.
    #[error("`{block}`: {source}")]
    Generate {
        /// The evaluate block.
        block: String,
        /// What is wrong.
        source: GenerateError,
    },
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Stored answers.
    #[error(transparent)]
    Predictions(#[from] PredictionError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn sentences(shortages: &[Shortage]) -> String {
    let sentences: Vec<String> = shortages.iter().map(Shortage::to_string).collect();
    sentences.join("\n")
}

fn others(runs: &[String]) -> String {
    match runs {
        [] => String::new(),
        runs => format!(" (others: {})", runs.join(", ")),
    }
}

impl StudyError {
    /// About a file or folder.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        StudyError::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// About a file or folder that the recipe names.
    pub fn unreadable(path: &Path, source: std::io::Error) -> Self {
        StudyError::Unreadable {
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether the user's input is wrong (exit code 2) rather than the work failed (1).
    pub fn is_input(&self) -> bool {
        match self {
            // What the disk refuses is nobody's input, whatever was to be written.
            StudyError::Adapter(AdapterError::Write(_))
            | StudyError::Split(SplitError::Write(_))
            | StudyError::Train(TrainError::Adapter(AdapterError::Write(_))) => false,
            StudyError::Out { .. }
            | StudyError::Unreadable { .. }
            | StudyError::NoModel { .. }
            | StudyError::NoAdapter { .. }
            | StudyError::NothingToResume { .. }
            | StudyError::TooLarge(_)
            | StudyError::NoSystem { .. }
            | StudyError::NotTrained { .. }
            | StudyError::Rows(_)
            | StudyError::Split(_)
            | StudyError::Text { .. } => true,
            StudyError::Model { source, .. } => source.is_input(),
            StudyError::Adapter(e) => e.is_input(),
            StudyError::Train(e) => match e {
                TrainError::NoRows { .. } | TrainError::State { .. } => true,
                TrainError::Adapter(e) => e.is_input(),
                TrainError::Backend(e) => e.is_input(),
                _ => false,
            },
            StudyError::Generate { source, .. } => source.is_input(),
            StudyError::Hub(e) => matches!(
                e,
                HubError::NoToken { .. }
                    | HubError::Refused { .. }
                    | HubError::NotFound { .. }
                    | HubError::Offline { .. }
                    | HubError::Unsuitable { .. }
                    | HubError::Timeout { .. }
            ),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendError;
    use crate::model::checkpoint::CheckpointError;

    /// A device that fails is exit code 1 wherever it was noticed, and its words reach the user.
    #[test]
    fn a_failing_device_is_not_the_users_input() {
        let device = || BackendError::Device {
            doing: "waiting for GPU 0".into(),
            message: "an illegal memory access".into(),
        };
        let name = || "small".to_string();
        for error in [
            StudyError::Model {
                name: name(),
                source: ModelError::Checkpoint(CheckpointError::Values(device())),
            },
            StudyError::Adapter(AdapterError::Backend(device())),
            StudyError::Train(TrainError::Backend(device())),
            StudyError::Train(TrainError::Adapter(AdapterError::Backend(device()))),
            StudyError::Generate {
                block: name(),
                source: GenerateError::Backend(device()),
            },
        ] {
            let said = error.to_string();
            assert!(
                said.ends_with("waiting for GPU 0: an illegal memory access"),
                "{said}"
            );
            assert!(!error.is_input(), "{said}");
        }
    }

    #[test]
    fn a_full_disk_is_failed_work_whatever_was_to_be_written() {
        let full = || WriteError {
            path: "a".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        for error in [
            full().into(),
            SplitError::from(full()).into(),
            AdapterError::from(full()).into(),
            TrainError::from(full()).into(),
            TrainError::from(AdapterError::from(full())).into(),
        ] {
            let error: StudyError = error;
            assert!(!error.is_input(), "{error}");
            assert!(error.to_string().contains("disk has room"), "{error}");
        }
    }
}
