//! What is wrong with the rows of an evaluation.
//!
//! Holds rules over its side of the split and its size.

use super::super::document::{Evaluation, Finding, Severity};
use super::super::format::count;
use super::finding;
use crate::evaluate::paired::smallest_difference;
use crate::evaluate::statistics::{ALPHA, Verdict};
use medft_dsl::plan::Part;

/// A study that cannot show a difference of this size is small.
const SMALL: f64 = 0.05;
/// Share of rows on which two systems are assumed to disagree when nothing was compared.
const DISAGREEMENT: f64 = 0.3;

/// All findings of an evaluation's rows.
pub(super) fn find(evaluation: &Evaluation) -> Vec<Finding> {
    let found = [wrong_side(evaluation), too_few_rows(evaluation)];
    found.into_iter().flatten().collect()
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
    let asked: Vec<_> = evaluation.pairs.iter().filter(|p| p.asked).collect();
    let open = asked
        .iter()
        .filter(|p| p.verdict() == Verdict::NoDifferenceShown);
    let smallest = if asked.is_empty() {
        smallest_difference(rows, DISAGREEMENT, ALPHA)
    } else {
        // What was shown needs no more rows.
        let worst = open.map(|p| p.smallest).max_by(|a, b| {
            let size = |of: &Option<f64>| of.unwrap_or(1.0);
            size(a).total_cmp(&size(b))
        });
        worst.unwrap_or(Some(0.0))
    };
    let smallest = smallest.unwrap_or(1.0);
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
