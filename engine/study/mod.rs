//! A study: from a plan to a report. Finished stages are reused, interrupted ones go on.
//!
//! Holds the stage graph (split -> train -> predict -> report), the artifact store and what observers hear. It refuses to
//! print and to do a stage's work itself. Invariant: a stage's key names everything its result depends on, so a result is
//! never used for other inputs.

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
    #[error("{}: no run of `{recipe}` with these settings to go on from; run without `--resume` to begin one", out.display())]
    NothingToResume {
        /// The output folder.
        out: PathBuf,
        /// The recipe's name.
        recipe: String,
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
    /// A file or folder could not be read or changed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stage needs something that the plan does not have: a bug in the checker.
    #[error("the plan names `{0}`, which it does not define")]
    Dangling(String),
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

impl StudyError {
    /// About a file or folder.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        StudyError::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether the user's input is wrong (exit code 2) rather than the work failed (1).
    pub fn is_input(&self) -> bool {
        match self {
            StudyError::NoModel { .. }
            | StudyError::NoAdapter { .. }
            | StudyError::NothingToResume { .. }
            | StudyError::NoSystem { .. }
            | StudyError::NotTrained { .. }
            | StudyError::Rows(_)
            | StudyError::Split(_)
            | StudyError::Text { .. }
            | StudyError::Model { .. }
            | StudyError::Adapter(_) => true,
            StudyError::Train(e) => {
                matches!(
                    e,
                    TrainError::NoRows { .. } | TrainError::Adapter(_) | TrainError::State { .. }
                )
            }
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
