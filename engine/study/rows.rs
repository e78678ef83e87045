//! Data blocks of a study: rows read once, split once.

use super::StudyError;
use super::resolve::Resolved;
use super::store::Store;
use crate::data::icd10::CodeTree;
use crate::data::near;
use crate::data::rows::{Row, Rows, read_rows};
use crate::data::split::SplitTable;
use crate::text::example;
use medft_dsl::plan::{Data, Level, Part};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A data block in memory.
pub struct DataSet {
    /// Its rows.
    pub all: Rows,
    /// Its split.
    pub split: SplitTable,
    /// The stored split.
    pub split_path: PathBuf,
    /// Label and title of each row at each level that was asked for.
    labels: BTreeMap<Level, Vec<(String, String)>>,
}

/// The data blocks that were needed so far.
#[derive(Default)]
pub struct DataSets {
    sets: BTreeMap<String, Arc<DataSet>>,
}

impl DataSets {
    /// A data block with its split, which is drawn and stored at the first use.
    ///
    /// # Errors
    /// A file that cannot be read, or a split that does not fit it.
    pub fn get(
        &mut self,
        resolved: &Resolved,
        store: &Store,
        data: &Data,
    ) -> Result<Arc<DataSet>, StudyError> {
        if let Some(set) = self.sets.get(&data.name) {
            return Ok(set.clone());
        }
        let tree = CodeTree::shipped();
        let all = read_rows(data, resolved.data_path(data), tree)?;
        let split_path = store.place(&format!("split-{}.json", resolved.split_key(data)));
        let split = if split_path.is_file() {
            SplitTable::load(&split_path, &all, &data.split)?
        } else {
            let texts: Vec<&str> = all.rows.iter().map(|r| r.text.as_str()).collect();
            let table = SplitTable::draw(&all, &near::clusters(&texts), &data.split, tree)?;
            table.save(&split_path)?;
            table
        };
        let labels = [Level::Code, Level::Category, Level::Block, Level::Chapter]
            .into_iter()
            .map(|level| {
                (
                    level,
                    all.rows.iter().map(|row| label(row, level, tree)).collect(),
                )
            })
            .collect();
        let set = Arc::new(DataSet {
            all,
            split,
            split_path,
            labels,
        });
        self.sets.insert(data.name.clone(), set.clone());
        Ok(set)
    }

    /// A data block that nobody else holds, to be disturbed.
    #[cfg(test)]
    pub(super) fn take(&mut self, name: &str) -> Option<DataSet> {
        Arc::into_inner(self.sets.remove(name)?)
    }

    /// A disturbed data block.
    #[cfg(test)]
    pub(super) fn put(&mut self, name: &str, set: DataSet) {
        self.sets.insert(name.to_owned(), Arc::new(set));
    }
}

/// A row's label at a level, and its title.
fn label(row: &Row, level: Level, tree: &CodeTree) -> (String, String) {
    let label = tree.label(&row.code, level);
    let title = tree.title_of(&label).unwrap_or_default().to_string();
    (label, title)
}

impl DataSet {
    /// Places of the rows of one side, at most `limit`.
    pub fn side(&self, part: Part, limit: Option<u64>) -> Vec<usize> {
        let limit = limit
            .and_then(|l| usize::try_from(l).ok())
            .unwrap_or(usize::MAX);
        let mut rows = self.split.rows_of(part);
        rows.truncate(limit);
        rows
    }

    /// The rows of one side as the text room wants them.
    pub fn rows(&self, part: Part, level: Level) -> Vec<example::Row<'_>> {
        let labels = self.labels.get(&level).map_or(&[][..], Vec::as_slice);
        let row = |at: usize| {
            let (code, title) = labels.get(at)?;
            let title = Some(title.as_str()).filter(|t| !t.is_empty());
            Some(example::Row {
                text: &self.all.rows.get(at)?.text,
                code,
                title,
            })
        };
        self.split
            .rows_of(part)
            .into_iter()
            .filter_map(row)
            .collect()
    }

    /// A row's label at a level.
    pub fn label(&self, row: usize, level: Level) -> &str {
        self.labels
            .get(&level)
            .and_then(|l| l.get(row))
            .map_or("", |(label, _)| label)
    }
}
