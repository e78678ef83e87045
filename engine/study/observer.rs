//! What a running study tells: to a terminal, to a log, to a test.

use crate::train::session::Event;
use std::path::PathBuf;

/// A stage of the plan.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct StageLine {
    /// `split`, `train` or `predict`.
    pub stage: &'static str,
    /// The block.
    pub name: String,
    /// What it will do, in a few words.
    pub what: String,
    /// Its result is there already.
    pub done: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum StudyEvent {
    /// The stages, before the first one begins.
    Plan {
        /// What computes.
        device: String,
        /// The stages.
        stages: Vec<StageLine>,
    },
    /// A file is being downloaded.
    Download {
        /// The file.
        file: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A stage begins.
    Begin {
        /// Its kind.
        stage: &'static str,
        /// Its block.
        name: String,
    },
    /// Something worth knowing that stops nothing.
    Notice(String),
    /// Something that may stop the work later.
    Warning(String),
    /// A training went on.
    Train {
        /// The train block.
        name: String,
        /// What happened.
        event: Event,
    },
    /// Rows were answered.
    Predict {
        /// The model or train block.
        name: String,
        /// Rows so far.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// The report is written.
    Report {
        /// The HTML file.
        path: PathBuf,
    },
}

/// Hears what happens.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: StudyEvent);
}

impl<F: FnMut(StudyEvent)> Observer for F {
    fn event(&mut self, event: StudyEvent) {
        self(event);
    }
}
