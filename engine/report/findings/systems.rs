//! What is wrong with a system's answers.
//!
//! Holds rules over one system of an evaluation.

use super::super::document::{Evaluation, Finding, Role, Severity, System};
use super::super::format::{count, percent, share};
use super::finding;
use crate::evaluate::statistics::Verdict;

/// Share of cut answers that is worth a line.
const CUT: f64 = 0.01;
/// Share of answers without a usable code that is worth a line.
const UNREADABLE: f64 = 0.05;

/// All findings of a system.
pub(super) fn find(evaluation: &Evaluation, system: &System) -> Vec<Finding> {
    let found = [
        below_base(evaluation, system),
        below_baseline(evaluation, system),
        unchanged(system),
        cut(evaluation, system),
        unreadable(evaluation, system),
        foreign(evaluation, system),
    ];
    found.into_iter().flatten().collect()
}

/// Two accuracies at the asked level.
fn against(evaluation: &Evaluation, system: &System, other: &System) -> String {
    format!(
        "{} of {} rows right against {} in `{}`",
        percent(system.accuracy(evaluation.level)),
        count(evaluation.rows),
        percent(other.accuracy(evaluation.level)),
        evaluation.name
    )
}

fn below_base(evaluation: &Evaluation, system: &System) -> Option<Finding> {
    let base = evaluation.system(system.base.as_deref()?)?;
    if system.accuracy(evaluation.level) >= base.accuracy(evaluation.level) {
        return None;
    }
    let pair = evaluation.pairs.iter().find(|p| {
        [(&p.system, &p.baseline), (&p.baseline, &p.system)].contains(&(&system.name, &base.name))
    });
    let (severity, certainty) = match pair.map(|pair| pair.verdict()) {
        Some(Verdict::NoDifferenceShown) => {
            (Severity::Warning, ", a difference that chance may explain")
        }
        _ => (Severity::Severe, ""),
    };
    finding(
        severity,
        format!("{} is below its own zero-shot {}", system.name, base.name),
        format!("{}{certainty}.", against(evaluation, system, base)),
        "Read ten of its answers in predictions/ beside the base's. Answers that run on or repeat: the training never saw an end \
         token or was cut. Sensible but wrong codes: lower `lr`, train fewer epochs, or look for wrong labels with `explore`.",
    )
}

fn below_baseline(evaluation: &Evaluation, system: &System) -> Option<Finding> {
    let level = evaluation.level;
    let best = evaluation
        .systems
        .iter()
        .filter(|other| other.role == Role::Baseline)
        .max_by(|a, b| a.accuracy(level).total_cmp(&b.accuracy(level)))?;
    if system.role != Role::Tuned || system.accuracy(level) >= best.accuracy(level) {
        return None;
    }
    finding(
        Severity::Severe,
        format!("{} is below the baseline `{}`", system.name, best.name),
        format!(
            "{}. That rule needs no model.",
            against(evaluation, system, best)
        ),
        "Do not report this system as an improvement. Train on more rows or a larger model, or take a view of the text in which the \
         rule does not work, if it is the title look-up that wins (`text = sections(...)`, `redact = titles`).",
    )
}

fn unchanged(system: &System) -> Option<Finding> {
    let (same, rows) = (system.same_as_base?, system.metrics.rows);
    if rows == 0 || same < rows {
        return None;
    }
    finding(
        Severity::Severe,
        format!("{} answers exactly as its base does", system.name),
        format!(
            "All {} answers are the same, letter for letter.",
            count(rows)
        ),
        "The adapter is not applied or was hardly trained: compare the number of steps with `warmup`, look at the learning rate in \
         metrics.jsonl, and check that adapter_config.json names the layers of this model.",
    )
}

fn cut(evaluation: &Evaluation, system: &System) -> Option<Finding> {
    let rows = system.metrics.rows;
    if system.role == Role::Baseline || system.cut as f64 <= CUT * rows as f64 {
        return None;
    }
    let tuned = system.role == Role::Tuned;
    let remedy = if tuned {
        "A tuned model should stop by itself: check with `explore` that the trained tokens of a row end with the end token."
    } else {
        "Raise `max_new`, or say in the task's `system` text that the code alone is wanted."
    };
    finding(
        if tuned {
            Severity::Severe
        } else {
            Severity::Warning
        },
        format!("answers of {} were cut off", system.name),
        format!(
            "{} of {} answers in `{}` ended at `max_new` tokens ({}).",
            count(system.cut),
            count(rows),
            evaluation.name,
            share(system.cut, rows)
        ),
        remedy,
    )
}

fn unreadable(evaluation: &Evaluation, system: &System) -> Option<Finding> {
    let metrics = &system.metrics;
    let bad = metrics.unparsed + metrics.invalid;
    if system.role == Role::Baseline || bad as f64 <= UNREADABLE * metrics.rows as f64 {
        return None;
    }
    finding(
        Severity::Warning,
        format!("many answers of {} hold no usable code", system.name),
        format!(
            "In `{}`, {} hold nothing like a code and {} a code that is not in the table. They count as wrong.",
            evaluation.name,
            share(metrics.unparsed, metrics.rows),
            share(metrics.invalid, metrics.rows)
        ),
        "Read some of them in predictions/. A zero-shot model may need a plainer `system` text.",
    )
}

fn foreign(evaluation: &Evaluation, system: &System) -> Option<Finding> {
    if system.foreign == 0 {
        return None;
    }
    finding(
        Severity::Severe,
        format!("{} has answers that are not its own", system.name),
        format!(
            "{} of {} rows of `{}` have no answer, or one that was stored for another row.",
            count(system.foreign),
            count(evaluation.rows),
            evaluation.name
        ),
        "Stored answers and data do not fit together: set `cache = false` in the evaluate block once, to decode them again.",
    )
}
