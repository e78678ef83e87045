//! Several runs side by side.
//!
//! Holds one table over all systems of all runs, for the terminal and as a page. It refuses statistics: rows of different runs are not
//! paired here. Invariant: runs on different splits are called so above the table.

use super::document::{Report, ReportError, Role, System};
use super::format::{count, interval, level, parameters, percent, share};
use super::html;
use super::text::{aligned, part, role};
use minijinja::context;
use std::collections::BTreeSet;

const HEADINGS: [&str; 11] = [
    "Run",
    "System",
    "Role",
    "Parameters",
    "Rows",
    "Asked",
    "Accuracy",
    "95 % interval",
    "Macro F1",
    "Hierarchical F1",
    "No code",
];

/// A table for the terminal.
pub fn text(reports: &[Report]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned).to_vec()];
    lines.extend(lines_of(reports));
    caution(reports).map_or(String::new(), |caution| caution + "\n\n") + &aligned(&lines)
}

/// A page of its own.
///
/// # Errors
/// None in practice: the page's template is built in.
pub fn html(reports: &[Report]) -> Result<String, ReportError> {
    let page =
        context! { headings => HEADINGS, lines => lines_of(reports), caution => caution(reports) };
    html::fill("comparison.html", include_str!("comparison.html"), page)
}

fn lines_of(reports: &[Report]) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for report in reports {
        for evaluation in &report.evaluations {
            let run = format!("{} {}", report.recipe, report.created);
            let rows = format!("{} {}", count(evaluation.rows), part(evaluation));
            lines.extend(
                evaluation
                    .systems
                    .iter()
                    .map(|system| line(&run, &rows, system)),
            );
        }
    }
    lines
}

fn line(run: &str, rows: &str, system: &System) -> Vec<String> {
    let metrics = &system.metrics;
    let dash = || "–".to_owned();
    let size = system.parameters.filter(|_| system.role != Role::Baseline);
    let mut line = vec![
        run.to_owned(),
        system.name.clone(),
        role(system.role).to_owned(),
    ];
    line.extend([size.map_or_else(dash, parameters), rows.to_owned()]);
    line.extend(match metrics.levels.first() {
        Some(asked) => [
            level(asked.level).to_owned(),
            percent(asked.accuracy.value),
            interval(asked.accuracy),
            format!("{:.3}", asked.macro_average.f1.value),
        ],
        None => [dash(), dash(), dash(), dash()],
    });
    line.push(format!("{:.3}", metrics.hierarchical.f1.value));
    line.push(share(metrics.unparsed + metrics.invalid, metrics.rows));
    line
}

/// What stands in the way of comparing the numbers.
fn caution(reports: &[Report]) -> Option<String> {
    let splits = reports.iter().map(|report| -> BTreeSet<&str> {
        report
            .hashes
            .iter()
            .filter(|h| h.what.starts_with("split"))
            .map(|h| h.hash.as_str())
            .collect()
    });
    let different: BTreeSet<BTreeSet<&str>> = splits.collect();
    (different.len() > 1).then(|| {
        "These runs were measured on different splits: their numbers are not of the same rows. For a comparison with tests, put the systems into one recipe.".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::report;
    use super::*;

    #[test]
    fn all_systems_of_all_runs() {
        let (first, mut second) = (report(), report());
        second.recipe = "<b>second".into();
        let systems = first.evaluations[0].systems.len();
        let both = [first, second];
        assert_eq!(text(&both).lines().count(), 1 + 2 * systems);
        let page = html(&both).expect("renders");
        assert!(page.contains("&lt;b&gt;second") && !page.contains("<b>second"));
        assert!(!page.contains("different splits"));
    }

    #[test]
    fn other_splits_are_named() {
        let (first, mut second) = (report(), report());
        second.hashes.iter_mut().for_each(|h| h.hash.push('0'));
        assert!(text(&[first, second]).starts_with("These runs were measured on different splits"));
        assert_eq!(text(&[]).lines().count(), 1);
    }
}
