//! What is wrong with a training.
//!
//! Holds rules over its record, its curve and the counts of its tokens.

use super::super::document::{CurvePoint, Ending, Finding, Severity, Training};
use super::super::format::{count, share};
use super::finding;

/// All findings of a training.
pub(super) fn find(training: &Training) -> Vec<Finding> {
    let found = [
        ended_badly(training),
        never_improved(training),
        lost_loss(training),
        endless(training),
        begun_twice(training),
        learns_its_prompts(training),
    ];
    found.into_iter().flatten().collect()
}

fn ended_badly(training: &Training) -> Option<Finding> {
    let (what, remedy) = match training.ending {
        Ending::Completed | Ending::EarlyStop { .. } => return None,
        Ending::Diverged { step } => (
            format!("The loss was no number at step {}.", count(step)),
            "Lower `lr`, lengthen `warmup`, or set `clip = 1.0`.",
        ),
        Ending::Interrupted => (
            format!("It was interrupted after {} steps.", count(training.steps)),
            "Run the recipe again: it goes on at the last checkpoint.",
        ),
    };
    let detail = format!("{what} Whatever was measured of it comes from earlier weights.");
    finding(
        Severity::Severe,
        format!("the training of {} did not end well", training.name),
        detail,
        remedy,
    )
}

fn never_improved(training: &Training) -> Option<Finding> {
    let losses: Vec<f64> = training
        .curve
        .iter()
        .filter_map(|point| point.val_loss)
        .filter(|l| l.is_finite())
        .collect();
    let (&first, later) = losses.split_first()?;
    let best = later.iter().copied().reduce(f64::min)?;
    if best < first {
        return None;
    }
    finding(
        Severity::Warning,
        format!("{} never got better on validation rows", training.name),
        format!("Validation loss was {first:.3} at first and {best:.3} at best afterwards."),
        "Lower `lr`, validate earlier (`eval_every`), or train on more rows.",
    )
}

fn lost_loss(training: &Training) -> Option<Finding> {
    let lost = |point: &&CurvePoint| point.loss.is_none() && point.val_loss.is_none();
    let steps = training.curve.iter().filter(lost).count() as u64;
    if steps == 0 {
        return None;
    }
    finding(
        Severity::Severe,
        format!("the loss of {} was no number", training.name),
        format!(
            "So it was at {} logged steps; such steps teach nothing.",
            count(steps)
        ),
        "Lower `lr`, lengthen `warmup`, or set `clip = 1.0`, and train again.",
    )
}

/// `what` happened to `rows` of the examples.
fn examples(training: &Training, rows: u64) -> String {
    let all = training.audit.map_or(0, |audit| audit.examples);
    format!(
        "{} of {} training examples ({})",
        count(rows),
        count(all),
        share(rows, all)
    )
}

fn endless(training: &Training) -> Option<Finding> {
    let rows = training.audit?.endless;
    if rows == 0 {
        return None;
    }
    finding(
        Severity::Severe,
        format!("{} never learnt to stop", training.name),
        format!(
            "The last learnt token of {} is no end token.",
            examples(training, rows)
        ),
        "Its answers run on until `max_new`. Check that the model's chat template closes an assistant's message with an end token, and \
         that it is not the padding token.",
    )
}

fn begun_twice(training: &Training) -> Option<Finding> {
    let rows = training.audit?.begun_twice;
    if rows == 0 {
        return None;
    }
    finding(
        Severity::Severe,
        format!("prompts of {} begin twice", training.name),
        format!(
            "{} begin with the same special token twice.",
            examples(training, rows)
        ),
        "The chat template writes the begin token and something else adds it again; the model has never seen that. Remove one of them \
         from the template.",
    )
}

fn learns_its_prompts(training: &Training) -> Option<Finding> {
    let audit = training.audit?;
    if 2 * audit.targets <= audit.tokens {
        return None;
    }
    finding(
        Severity::Severe,
        format!("{} learns its prompts", training.name),
        format!(
            "{} of {} tokens carry loss ({}); answers alone should.",
            count(audit.targets),
            count(audit.tokens),
            share(audit.targets, audit.tokens)
        ),
        "Look at a training example with `explore`: only the answer's tokens should be marked. A note that was cut to nothing has the \
         same effect: raise `max_tokens`.",
    )
}
