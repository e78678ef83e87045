//! What the numbers of an exploration mean for the study: sentences with a way out.
//!
//! One rule a finding, and the threshold beside it. It refuses to stop anybody: findings are said,
//! not enforced. Invariant: a finding quotes the numbers it rests on.

use super::{CodeCount, Exploration};
use serde::{Deserialize, Serialize};

/// Something about the data that would change how a result is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was found, with its numbers.
    pub sentence: String,
    /// What to do about it.
    pub remedy: String,
}

/// The findings of an exploration, most important first.
pub(super) fn find(data: &Exploration) -> Vec<Finding> {
    let rules = [
        leaks,
        tokens,
        sections,
        contradictions,
        duplicates,
        codes,
        rare_labels,
        dropped,
    ];
    rules.iter().flat_map(|rule| rule(data)).collect()
}

fn finding(sentence: String, remedy: &str) -> Finding {
    Finding {
        sentence,
        remedy: remedy.to_owned(),
    }
}

/// `19.4 %`.
pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Told from 2 % of the rows on: such a share of answers for nothing would show in a comparison.
fn leaks(data: &Exploration) -> Vec<Finding> {
    let leaks = &data.leaks;
    let much = |count: u64| count * 50 > leaks.rows;
    if ![leaks.gold_code, leaks.gold_title, leaks.lookup]
        .into_iter()
        .any(much)
    {
        return Vec::new();
    }
    let of = |count| percent(count, leaks.rows);
    let sentence = format!(
        "the answer stands in the text: its code in {}, its official title in {} of the rows; a look-up of titles without any \
         learning gets {} right",
        of(leaks.gold_code),
        of(leaks.gold_title),
        of(leaks.lookup),
    );
    let remedy = "read a part written before the diagnosis (`text = sections(column(..), [\"Subjective\", \"Objective\"])`, or the \
                  dialogue), or set `redact = titles`; otherwise judge every result against the look-up";
    vec![finding(sentence, remedy)]
}

fn tokens(data: &Exploration) -> Vec<Finding> {
    let over = data.tokens.iter().filter(|model| model.over > 0);
    over.map(|model| {
        let sentence = format!(
            "{} of the texts are longer than `max_tokens = {}` in the tokens of `{}` (95 % have at most {}) and will be shortened",
            percent(model.over, data.rows),
            model.max_tokens,
            model.model,
            model.tokens.p95,
        );
        finding(sentence, "raise `max_tokens` of the task (prompt and answer need room, too)")
    })
    .collect()
}

fn sections(data: &Exploration) -> Vec<Finding> {
    let lacking = data.lacking.iter().filter(|(_, rows)| *rows > 0);
    lacking
        .map(|(section, rows)| {
            let sentence = format!("{rows} of {} notes have no section `{section}`", data.read);
            finding(
                sentence,
                "see how these notes write their headings, or read the whole column",
            )
        })
        .collect()
}

fn contradictions(data: &Exploration) -> Vec<Finding> {
    if data.contradicted == 0 {
        return Vec::new();
    }
    let sentence = format!(
        "{} rows have the wording of a row with another code ({}): no coder can get more than {:.1} % right",
        data.contradicted,
        data.contradictions.join(", "),
        100.0 * data.ceiling,
    );
    vec![finding(
        sentence,
        "keep one of the codes, or judge at a coarser `level`",
    )]
}

fn duplicates(data: &Exploration) -> Vec<Finding> {
    if data.equal + data.near == 0 {
        return Vec::new();
    }
    let sentence = format!(
        "{} rows repeat the wording of an earlier row and {} nearly do",
        data.equal, data.near
    );
    vec![finding(
        sentence,
        "none needed: the split keeps them on one side, and intervals resample them together",
    )]
}

fn codes(data: &Exploration) -> Vec<Finding> {
    let kinds: [(&CodeCount, &str, &str); 3] = [
        (
            &data.unknown,
            "are not in ICD-10-CM",
            "correct the codes; as they are, no valid answer can be right",
        ),
        (
            &data.retired,
            "have left ICD-10-CM",
            "map them to the codes of today, or judge at `level = category`",
        ),
        (
            &data.parents,
            "are too broad to be billed today",
            "use `level = category`, or map them to full codes",
        ),
    ];
    let found = kinds.into_iter().filter(|(count, ..)| count.rows > 0);
    found
        .map(|(count, what, remedy)| {
            let (codes, rows, examples) = (count.codes, count.rows, count.examples.join(", "));
            finding(
                format!("{codes} codes of {rows} rows {what} (such as {examples})"),
                remedy,
            )
        })
        .collect()
}

/// Three sides need three rows.
fn rare_labels(data: &Exploration) -> Vec<Finding> {
    let rare: u64 = data
        .rows_per_label
        .iter()
        .filter(|(rows, _)| *rows < 3)
        .map(|(_, labels)| labels)
        .sum();
    let labels: u64 = data.rows_per_label.iter().map(|(_, labels)| labels).sum();
    if rare == 0 {
        return Vec::new();
    }
    let sentence = format!(
        "{rare} of {labels} codes have fewer than 3 rows and cannot stand in training, validation and test: some are asked for \
         without ever having been shown"
    );
    vec![finding(
        sentence,
        "collect more rows of them, or ask for a coarser `level`",
    )]
}

fn dropped(data: &Exploration) -> Vec<Finding> {
    if data.empty_text + data.empty_code == 0 {
        return Vec::new();
    }
    let sentence = format!(
        "of {} rows {} are left out because they have no text and {} because they have no code",
        data.read, data.empty_text, data.empty_code
    );
    vec![finding(
        sentence,
        "fill the cells, or leave it at that: no result counts these rows",
    )]
}
