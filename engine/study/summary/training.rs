//! What the report says of a training: its record and its loss curve.

use crate::report::document::{CurvePoint, Ending, Training};
use crate::study::StudyError;
use crate::study::train::TrainRecord;
use crate::train::{metrics, session};
use medft_dsl::plan::Train;
use std::path::Path;

/// Gathers a finished training.
///
/// # Errors
/// Metrics that cannot be read.
pub(super) fn summary(
    train: &Train,
    record: &TrainRecord,
    folder: &Path,
) -> Result<Training, StudyError> {
    let outcome = &record.outcome;
    let points = metrics::read(&folder.join("metrics.jsonl"))?;
    let point = |m: metrics::Metric| CurvePoint {
        step: m.step,
        loss: m.loss,
        val_loss: m.val_loss,
        lr: m.lr,
    };
    Ok(Training {
        name: train.name.clone(),
        base: train.model.clone(),
        rows: record.rows as u64,
        truncated: record.cut_rows as u64,
        audit: record.audit,
        trained_values: outcome.trained_values as u64,
        steps: outcome.steps,
        tokens: outcome.tokens,
        seconds: outcome.seconds,
        peak_memory: record.peak_memory,
        curve: points.into_iter().map(point).collect(),
        best_step: outcome.best.map(|b| b.step),
        ending: match outcome.ending {
            session::Ending::Completed => Ending::Completed,
            session::Ending::EarlyStop { validations } => Ending::EarlyStop { validations },
            session::Ending::Interrupted => Ending::Interrupted,
        },
    })
}
