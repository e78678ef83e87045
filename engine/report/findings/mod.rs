//! What a reader must know before any table.
//!
//! Holds the rules of DESIGN section 7, one function each, over a finished report. It refuses to look at anything but the report, so
//! that a report rendered again says the same. Invariant: every finding carries its numbers and something to do.

mod data;
mod evaluation;
mod systems;
mod training;

use super::document::{Finding, Report, Severity};
use super::format::{count, share};

/// Share of shortened notes that is more than a note.
const TRUNCATED: f64 = 0.05;

/// The findings of a report, gravest first.
pub fn find(report: &Report) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for evaluation in &report.evaluations {
        found.extend(evaluation::find(evaluation));
        let shortened = evaluation
            .systems
            .iter()
            .map(|s| (s.name.as_str(), s.truncated, s.metrics.rows));
        found.extend(truncated(&format!("`{}`", evaluation.name), shortened));
        for system in &evaluation.systems {
            found.extend(systems::find(evaluation, system));
        }
    }
    found.extend(report.trainings.iter().flat_map(training::find));
    let shortened = report
        .trainings
        .iter()
        .map(|t| (t.name.as_str(), t.truncated, t.rows));
    found.extend(truncated("the training", shortened));
    found.extend(report.data.iter().flat_map(data::find));
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

#[cfg(test)]
mod tests {
    use super::super::document::Ending;
    use super::super::fixture::{report, tuned};
    use super::*;
    use medft_dsl::plan::Part;

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
        report.evaluations[0].pairs.clear();
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
