//! What is wrong with a data block.
//!
//! Holds rules over the counts of its rows.

use super::super::document::{DataSummary, Finding, Severity};
use super::super::format::{count, share};
use super::finding;

/// Share of rows that name their own code, or of rows that a look-up of titles solves.
const LEAKED: f64 = 0.05;
/// Share of rows that hold the official title: common wording alone explains a few.
const TITLED: f64 = 0.2;

/// All findings of a data block.
pub(super) fn find(data: &DataSummary) -> Vec<Finding> {
    let found = [
        overlap(data),
        leaks(data),
        dropped(data),
        not_billable(data),
    ];
    found.into_iter().flatten().collect()
}

fn overlap(data: &DataSummary) -> Option<Finding> {
    if data.overlap == 0 {
        return None;
    }
    finding(
        Severity::Severe,
        format!("texts of `{}` stand on two sides of the split", data.name),
        format!(
            "{} of {} test rows have a text, or nearly one, that stands among the training or validation rows, too.",
            count(data.overlap),
            count(data.test)
        ),
        "Scores on such rows measure memory. Delete the stored split (runs/.store/split-*.json) to have it drawn again.",
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
