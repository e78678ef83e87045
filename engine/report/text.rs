//! A report's results for the terminal: plain text, no colours, no control characters.
//!
//! Holds the summary after a run. It refuses what needs a page: figures, examples, methods. Invariant: findings stand above numbers.

use super::document::{Evaluation, Finding, Report, Role, Severity, System};
use super::format::{count, interval, level, percent, share};

/// Findings, results and verdicts of a run.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for Finding {
        severity,
        title,
        detail,
        remedy,
    } in &report.findings
    {
        text += &format!(
            "{}: {title}\n  {detail}\n  {remedy}\n\n",
            severity_name(*severity)
        );
    }
    for evaluation in &report.evaluations {
        text += &results(evaluation);
        text.push('\n');
    }
    for verdict in &report.verdicts {
        text += &format!("{}\n", verdict.sentence);
    }
    text.trim_end().to_owned()
}

fn results(evaluation: &Evaluation) -> String {
    let rows = count(evaluation.rows);
    let judged = level(evaluation.level);
    let mut text = format!(
        "{}: {rows} {} rows of {}, asked for the {judged}\n",
        evaluation.name,
        part(evaluation),
        evaluation.data
    );
    if evaluation.rows == 0 {
        return text;
    }
    let above = || {
        evaluation
            .systems
            .iter()
            .take(1)
            .flat_map(|s| s.metrics.levels.iter().skip(1))
    };
    let mut lines = vec![vec![
        "system".to_owned(),
        "role".to_owned(),
        judged.to_owned(),
        "95 % interval".to_owned(),
    ]];
    for heading in above()
        .map(|l| level(l.level))
        .chain(["macro F1", "no code", "rows/s"])
    {
        lines[0].push(heading.to_owned());
    }
    for system in &evaluation.systems {
        lines.push(line(system));
    }
    text += &aligned(&lines);
    text
}

fn line(system: &System) -> Vec<String> {
    let metrics = &system.metrics;
    let mut line = vec![system.name.clone(), role(system.role).to_owned()];
    let Some((asked, above)) = metrics.levels.split_first() else {
        return line;
    };
    line.extend([percent(asked.accuracy.value), interval(asked.accuracy)]);
    line.extend(above.iter().map(|level| percent(level.accuracy.value)));
    line.push(format!("{:.3}", asked.macro_average.f1.value));
    line.push(share(metrics.unparsed + metrics.invalid, metrics.rows));
    line.push(
        system
            .rows_per_second()
            .map_or("–".to_owned(), |speed| format!("{speed:.1}")),
    );
    line
}

/// Columns of equal width: the first two flush left, the rest flush right.
pub(super) fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| Some(line.get(column)?.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells =
            line.iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match column {
                    0 | 1 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Severe => "SEVERE",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::ZeroShot => "zero-shot",
        Role::Tuned => "tuned",
        Role::Baseline => "baseline",
    }
}

pub(super) fn part(evaluation: &Evaluation) -> &'static str {
    use medft_dsl::plan::Part;
    match evaluation.part {
        Part::Train => "training",
        Part::Val => "validation",
        Part::Test => "test",
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::report;
    use super::*;

    #[test]
    fn the_table_of_a_run() {
        let text = table(&report());
        let line = text
            .lines()
            .find(|l| l.starts_with("qwen_3b_lora"))
            .expect("a line a system");
        assert!(line.contains("tuned") && line.contains("41.2 %"), "{line}");
        let heading = text
            .lines()
            .find(|l| l.starts_with("system"))
            .expect("a heading");
        assert_eq!(
            heading.chars().count(),
            line.chars().count(),
            "columns are aligned"
        );
        assert!(
            text.contains("qwen_3b_lora is better than llama_8b"),
            "{text}"
        );
    }

    #[test]
    fn findings_come_first_and_no_rows_are_no_table() {
        let mut report = report();
        report.evaluations[0].rows = 0;
        report.findings = super::super::findings::find(&report);
        let text = table(&report);
        assert!(text.starts_with("SEVERE: `all` has no rows"), "{text}");
        assert!(!text.contains("macro F1"));
    }
}
