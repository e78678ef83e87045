//! What the report says of a data block: sides, labels, leaks.

use crate::data::icd10::{CodeStatus, CodeTree};
use crate::data::leaks;
use crate::report::document::{DataSummary, Leaks};
use crate::study::rows::DataSet;
use medft_dsl::plan::{Data, Level, Part};
use std::collections::BTreeSet;

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
