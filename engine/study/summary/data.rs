//! What the report says of a data block: sides, labels, leaks.

use crate::data::icd10::{CodeStatus, CodeTree};
use crate::data::leaks;
use crate::report::document::{DataSummary, Leaks};
use crate::study::rows::DataSet;
use medft_dsl::plan::{Data, Level, Part};
use std::collections::{BTreeSet, HashSet};

/// Counts a data block.
pub(super) fn summary(data: &Data, set: &DataSet, tree: &CodeTree) -> DataSummary {
    let side = |part| set.split.rows_of(part).len() as u64;
    let labels = |level| {
        let all: BTreeSet<&str> = (0..set.all.rows.len())
            .map(|row| set.label(row, level))
            .collect();
        (level, all.len() as u64)
    };
    let count = |wanted: fn(&CodeStatus) -> bool| {
        let rows = set.all.rows.iter();
        rows.filter(|row| wanted(&tree.status(&row.code))).count() as u64
    };
    let audit = leaks::audit(&set.all.rows, tree);
    DataSummary {
        name: data.name.clone(),
        rows: set.all.rows.len() as u64,
        dropped: set.all.empty_text + set.all.empty_code,
        train: side(Part::Train),
        val: side(Part::Val),
        test: side(Part::Test),
        clusters: set.split.clusters.iter().collect::<BTreeSet<_>>().len() as u64,
        overlap: overlap(set),
        labels: [Level::Code, Level::Category, Level::Block, Level::Chapter]
            .map(labels)
            .to_vec(),
        not_billable: count(|status| !matches!(status, CodeStatus::Billable)),
        unknown: count(|status| matches!(status, CodeStatus::Unknown)),
        code_table: tree.release().to_string(),
        leaks: Leaks {
            rows: audit.rows,
            gold_code: audit.gold_code,
            any_code: audit.any_code,
            gold_title: audit.gold_title,
            title_words: audit.title_words,
            lookup: audit.lookup,
        },
    }
}

/// Test rows that stand on another side, too: by their group, and by their words, which the split does not look at any more.
fn overlap(set: &DataSet) -> u64 {
    let words = |row: usize| {
        let text = &set.all.rows[row].text;
        text.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .to_lowercase()
    };
    let of = |part| set.split.rows_of(part).into_iter();
    let others: Vec<usize> = of(Part::Train).chain(of(Part::Val)).collect();
    let texts: HashSet<String> = others.iter().map(|row| words(*row)).collect();
    let groups: HashSet<u32> = others.iter().map(|row| set.split.clusters[*row]).collect();
    let stands_there =
        |row: &usize| groups.contains(&set.split.clusters[*row]) || texts.contains(&words(*row));
    of(Part::Test).filter(stands_there).count() as u64
}
