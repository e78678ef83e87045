//! What a reader must know before any table.
//!
//! Holds the rules of DESIGN section 7, one function each, over a finished report. It refuses to look at anything but the report, so
//! that a report rendered again says the same. Invariant: every finding carries its numbers and something to do.

use super::document::{
    DataSummary, Ending, Evaluation, Finding, Report, Role, Severity, System, Training,
};
use super::format::{count, percent, share};
use crate::evaluate::statistics::{Verdict, smallest_difference};
use medft_dsl::plan::Part;

/// Share of cut answers that is worth a line.
const CUT: f64 = 0.01;
/// Share of answers without a usable code that is worth a line.
const UNREADABLE: f64 = 0.05;
/// Share of shortened notes that is more than a note.
const TRUNCATED: f64 = 0.05;
/// Share of rows that name their own code, or of rows that a look-up of titles solves.
const LEAKED: f64 = 0.05;
/// Share of rows that hold the official title: common wording alone explains a few.
const TITLED: f64 = 0.2;
/// A study that cannot show a difference of this size is small.
const SMALL: f64 = 0.05;
/// Share of rows on which two systems are assumed to disagree when nothing was compared.
const DISAGREEMENT: f64 = 0.3;

/// The findings of a report, gravest first.
pub fn find(report: &Report) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for evaluation in &report.evaluations {
        found.extend(wrong_side(evaluation));
        found.extend(too_few_rows(evaluation));
        let shortened = evaluation
            .systems
            .iter()
            .map(|s| (s.name.as_str(), s.truncated, s.metrics.rows));
        found.extend(truncated(&format!("`{}`", evaluation.name), shortened));
        for system in &evaluation.systems {
            found.extend(below_base(evaluation, system));
            found.extend(below_baseline(evaluation, system));
            found.extend(unchanged(system));
            found.extend(cut(evaluation, system));
            found.extend(unreadable(evaluation, system));
        }
    }
    for training in &report.trainings {
        found.extend(ended_badly(training));
        found.extend(never_improved(training));
    }
    let shortened = report
        .trainings
        .iter()
        .map(|t| (t.name.as_str(), t.truncated, t.rows));
    found.extend(truncated("the training", shortened));
    for data in &report.data {
        found.extend(leaks(data));
        found.extend(dropped(data));
        found.extend(not_billable(data));
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

fn finding(severity: Severity, title: String, detail: String, remedy: &str) -> Option<Finding> {
    Some(Finding {
        severity,
        title,
        detail,
        remedy: remedy.to_owned(),
    })
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
    let pair = evaluation
        .pairs
        .iter()
        .find(|p| p.system == system.name && p.baseline == base.name);
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

/// `counts` are (name, shortened notes, notes).
fn truncated<'a>(of: &str, counts: impl Iterator<Item = (&'a str, u64, u64)>) -> Option<Finding> {
    let counts: Vec<_> = counts.filter(|&(_, truncated, _)| truncated > 0).collect();
    let much = counts
        .iter()
        .any(|&(_, truncated, rows)| truncated as f64 > TRUNCATED * rows as f64);
    let severity = if much {
        Severity::Warning
    } else {
        Severity::Note
    };
    let detail: Vec<String> = counts
        .iter()
        .map(|&(name, truncated, rows)| {
            format!(
                "{} of {} for {name} ({})",
                count(truncated),
                count(rows),
                share(truncated, rows)
            )
        })
        .collect();
    if detail.is_empty() {
        return None;
    }
    finding(
        severity,
        format!("notes of {of} were shortened"),
        format!("They did not fit in `max_tokens`: {}.", detail.join(", ")),
        "Raise the task's `max_tokens`; `explore` shows how long the texts are in tokens.",
    )
}

fn wrong_side(evaluation: &Evaluation) -> Option<Finding> {
    let (severity, side, why) = match evaluation.part {
        Part::Test => return None,
        Part::Val => (
            Severity::Warning,
            "validation",
            "The kept checkpoint was chosen on these rows, which flatters it.",
        ),
        Part::Train => (
            Severity::Severe,
            "training",
            "Tuned models have seen these rows with their codes.",
        ),
    };
    finding(
        severity,
        format!("`{}` measures on {side} rows", evaluation.name),
        why.to_owned(),
        "Set `split = test` for numbers that leave the house.",
    )
}

fn too_few_rows(evaluation: &Evaluation) -> Option<Finding> {
    let rows = evaluation.rows;
    if rows == 0 {
        return finding(
            Severity::Severe,
            format!("`{}` has no rows", evaluation.name),
            "Nothing was measured.".to_owned(),
            "Check the data block's `split` and `limit` with `explore`.",
        );
    }
    let disagreements = evaluation
        .pairs
        .iter()
        .map(|p| (p.only_system + p.only_baseline) as f64 / rows as f64);
    let disagreement = disagreements.reduce(f64::max).unwrap_or(DISAGREEMENT);
    let smallest = smallest_difference(rows, disagreement);
    if smallest <= SMALL {
        return None;
    }
    finding(
        Severity::Warning,
        format!("`{}` is small", evaluation.name),
        format!(
            "With {} rows, only differences of about {:.0} points or more show in four studies of five.",
            count(rows),
            100.0 * smallest
        ),
        "Measure on more rows: raise `limit`, or the share of `test` in the split.",
    )
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

fn leaks(data: &DataSummary) -> Option<Finding> {
    let leaks = &data.leaks;
    let over = |n: u64, limit: f64| n as f64 > limit * leaks.rows as f64;
    if !over(leaks.gold_code, LEAKED)
        && !over(leaks.lookup, LEAKED)
        && !over(leaks.gold_title, TITLED)
    {
        return None;
    }
    finding(
        Severity::Warning,
        format!("the texts of `{}` name their own diagnosis", data.name),
        format!(
            "The gold code stands in {} of the texts and its official title in {}; a look-up of titles alone is right in {}.",
            share(leaks.gold_code, leaks.rows),
            share(leaks.gold_title, leaks.rows),
            share(leaks.lookup, leaks.rows)
        ),
        "Scores on such texts measure copying. Take a view that comes before the diagnosis (`text = sections(...)`), or set \
         `redact = titles`.",
    )
}

fn dropped(data: &DataSummary) -> Option<Finding> {
    if data.dropped == 0 {
        return None;
    }
    finding(
        Severity::Note,
        format!("rows of `{}` were left out", data.name),
        format!(
            "{} of {} rows have no text or no code.",
            count(data.dropped),
            count(data.rows + data.dropped)
        ),
        "Nothing, if that is known; `explore` names them.",
    )
}

fn not_billable(data: &DataSummary) -> Option<Finding> {
    if data.not_billable == 0 {
        return None;
    }
    if 2 * data.unknown > data.rows {
        return finding(
            Severity::Severe,
            format!("most gold codes of `{}` are no ICD-10-CM codes", data.name),
            format!(
                "{} of {} rows have a code that never was in ICD-10-CM.",
                count(data.unknown),
                count(data.rows)
            ),
            "Check that `code` names the right column. With such codes, categories, blocks, chapters and the title look-up mean nothing.",
        );
    }
    finding(
        Severity::Note,
        format!(
            "some gold codes of `{}` are not valid for a claim",
            data.name
        ),
        format!(
            "{} of {} rows have a code that is a heading, retired or unknown in {}.",
            count(data.not_billable),
            count(data.rows),
            data.code_table
        ),
        "They are judged as written. `explore` lists them.",
    )
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{report, tuned};
    use super::*;

    fn titles(report: &Report) -> Vec<(Severity, String)> {
        find(report)
            .into_iter()
            .map(|f| (f.severity, f.title))
            .collect()
    }

    #[track_caller]
    fn has(report: &Report, severity: Severity, title: &str) {
        let found = titles(report);
        assert!(
            found
                .iter()
                .any(|(s, t)| *s == severity && t.contains(title)),
            "{title}: {found:?}"
        );
    }

    #[test]
    fn a_good_run_has_no_severe_finding() {
        let found = titles(&report());
        assert!(
            found
                .iter()
                .all(|(severity, _)| *severity != Severity::Severe),
            "{found:?}"
        );
    }

    #[test]
    fn a_code_column_of_row_numbers_is_loud() {
        let mut report = report();
        report.data[0].unknown = report.data[0].rows / 2;
        has(&report, Severity::Note, "not valid for a claim");
        report.data[0].unknown += 1;
        has(&report, Severity::Severe, "no ICD-10-CM codes");
    }

    #[test]
    fn the_seeds_failures_are_loud() {
        let mut report = report();
        let rows = report.evaluations[0].rows;
        let system = tuned(&mut report);
        system.metrics.levels[0].accuracy.value = 0.002;
        system.same_as_base = Some(rows);
        system.cut = rows / 2;
        system.metrics.invalid = rows / 2;
        report.evaluations[0].pairs.clear();
        has(
            &report,
            Severity::Severe,
            "qwen_3b_lora is below its own zero-shot qwen_3b",
        );
        has(
            &report,
            Severity::Severe,
            "qwen_3b_lora is below the baseline",
        );
        has(
            &report,
            Severity::Severe,
            "answers exactly as its base does",
        );
        has(&report, Severity::Severe, "were cut off");
        has(&report, Severity::Warning, "hold no usable code");
        let severities: Vec<Severity> = find(&report).iter().map(|f| f.severity).collect();
        assert!(severities.is_sorted());
    }

    #[test]
    fn the_wrong_side_and_few_rows() {
        let mut report = report();
        report.evaluations[0].part = Part::Train;
        has(&report, Severity::Severe, "measures on training rows");
        report.evaluations[0].part = Part::Val;
        has(&report, Severity::Warning, "measures on validation rows");
        report.evaluations[0].rows = 40;
        has(&report, Severity::Warning, "is small");
        report.evaluations[0].rows = 0;
        has(&report, Severity::Severe, "has no rows");
    }

    #[test]
    fn a_training_that_ended_badly() {
        let mut report = report();
        report.trainings[0].ending = Ending::Diverged { step: 7 };
        has(&report, Severity::Severe, "did not end well");
        for point in &mut report.trainings[0].curve {
            point.val_loss = point.val_loss.map(|_| 2.0);
        }
        has(&report, Severity::Warning, "never got better");
    }

    #[test]
    fn leaks_and_lost_text() {
        let mut report = report();
        report.data[0].leaks.lookup = report.data[0].leaks.rows / 2;
        has(&report, Severity::Warning, "name their own diagnosis");
        tuned(&mut report).truncated = 1000;
        has(&report, Severity::Warning, "notes of `all` were shortened");
    }
}
