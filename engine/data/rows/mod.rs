//! Rows of a data block: read from a file, seen through the block's view, with an identity that
//! lasts.
//!
//! Holds [`Row`], [`Rows`] and [`read_rows`]; the formats are in `csv` and `jsonl`. It refuses to
//! mend a file: what cannot be read is an error, what cannot be used (no text, no code) is dropped
//! and counted. Invariant: a row's `index` is its place in the file, whatever was dropped before
//! it.

mod columns;
mod csv;
mod error;
mod jsonl;
mod quotes;

pub use error::RowsError;

use super::icd10::CodeTree;
use super::view::View;
use medft_dsl::plan::{Data, Source, TextView};
use std::path::{Path, PathBuf};

/// What the study works on: a text and its gold code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Place in the file, from 0, without the header.
    pub index: u64,
    /// First 16 hexadecimal digits of the text's BLAKE3 hash. Rows with the same text have the
    /// same.
    pub id: String,
    /// What the model reads: the view is applied.
    pub text: String,
    /// Gold code as the file writes it, without white space around it.
    pub code: String,
    /// Official title of the code; empty for a code that never was in ICD-10-CM.
    pub title: String,
}

impl Row {
    /// A row with its identity and title.
    pub fn new(index: u64, text: String, code: String, tree: &CodeTree) -> Row {
        let mut id = blake3::hash(text.as_bytes()).to_hex().to_string();
        id.truncate(16);
        let title = tree.title_of(&code).unwrap_or_default().to_owned();
        Row {
            index,
            id,
            text,
            code,
            title,
        }
    }
}

impl AsRef<str> for Row {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// The rows of a data block that can be used, and what happened to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The file.
    pub path: PathBuf,
    /// Usable rows in the order of the file.
    pub rows: Vec<Row>,
    /// Rows read, dropped ones included.
    pub read: u64,
    /// Dropped: nothing is left of the text in this view.
    pub empty_text: u64,
    /// Dropped: there is a text, but no code.
    pub empty_code: u64,
    /// For each section of the view, the rows that lack it.
    pub lacking: Vec<(String, u64)>,
    /// Codes hidden by the view.
    pub hidden_codes: u64,
    /// Titles hidden by the view.
    pub hidden_titles: u64,
    /// BLAKE3 of the usable rows' places, texts and codes, in hexadecimal: names the data in every
    /// result.
    pub hash: String,
}

/// A pair for the two columns that a data block names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cells<T> {
    text: T,
    code: T,
}

/// Reads the rows of `data` from the file at `path`: the source's own, or where the hub's file was
/// put.
pub fn read_rows(data: &Data, path: &Path, tree: &CodeTree) -> Result<Rows, RowsError> {
    let (column, sections) = match &data.text {
        TextView::Column { column } => (column, &[][..]),
        TextView::Sections { column, sections } => (column, &sections[..]),
    };
    let view = View::new(&data.text, data.redact, tree)?;
    let columns = Cells {
        text: column.as_str(),
        code: data.code.as_str(),
    };
    let limit = data
        .limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX);

    let mut rows = Rows {
        path: path.to_owned(),
        rows: Vec::new(),
        read: 0,
        empty_text: 0,
        empty_code: 0,
        lacking: sections
            .iter()
            .map(|section| (section.clone(), 0))
            .collect(),
        hidden_codes: 0,
        hidden_titles: 0,
        hash: String::new(),
    };
    for cells in open(&data.source, path, columns)?.take(limit) {
        let cells = cells?;
        let viewed = view.apply(&cells.text);
        for (section, rows) in &mut rows.lacking {
            *rows += u64::from(viewed.lacking.contains(section));
        }
        rows.hidden_codes += viewed.codes;
        rows.hidden_titles += viewed.titles;
        let code = cells.code.trim();
        if viewed.text.is_empty() {
            rows.empty_text += 1;
        } else if code.is_empty() {
            rows.empty_code += 1;
        } else {
            rows.rows
                .push(Row::new(rows.read, viewed.text, code.to_owned(), tree));
        }
        rows.read += 1;
    }
    let Rows {
        read,
        empty_text,
        empty_code,
        ..
    } = rows;
    let path = path.to_owned();
    if read == 0 {
        return Err(RowsError::NoRows {
            path,
            header: !matches!(data.source, Source::Jsonl { .. }),
        });
    }
    if rows.rows.is_empty() {
        return Err(RowsError::NothingLeft {
            path,
            read,
            empty_text,
            empty_code,
        });
    }
    rows.hash = hash(&rows.rows);
    Ok(rows)
}

type Records = Box<dyn Iterator<Item = Result<Cells<String>, RowsError>>>;

fn open(source: &Source, path: &Path, columns: Cells<&str>) -> Result<Records, RowsError> {
    match source {
        Source::Csv { delimiter, .. } => Ok(Box::new(csv::open(path, *delimiter, columns)?)),
        Source::Jsonl { .. } => Ok(Box::new(jsonl::open(path, columns)?)),
        Source::Hf { .. } => {
            let extension = path
                .extension()
                .map(|extension| extension.to_string_lossy().to_lowercase());
            match extension.as_deref() {
                Some("csv") => Ok(Box::new(csv::open(path, ',', columns)?)),
                Some("tsv") => Ok(Box::new(csv::open(path, '\t', columns)?)),
                Some("jsonl" | "ndjson" | "json") => Ok(Box::new(jsonl::open(path, columns)?)),
                _ => Err(RowsError::Format {
                    path: path.to_owned(),
                }),
            }
        }
    }
}

fn hash(rows: &[Row]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        hasher.update(&row.index.to_le_bytes());
        for cell in [&row.text, &row.code] {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            hasher
                .update(&(cell.len() as u64).to_le_bytes())
                .update(cell.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use medft_dsl::plan::{Level, Redact, Split};

    fn read(name: &str, content: &str, edit: impl Fn(&mut Data)) -> Result<Rows, RowsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut data = Data {
            name: "notes".into(),
            source: Source::Hf {
                repo: "a/b".into(),
                file: name.into(),
                revision: "main".into(),
            },
            text: TextView::Column {
                column: "note".into(),
            },
            redact: Redact::None,
            code: "icd".into(),
            split: Split {
                train: 0.7,
                val: 0.15,
                test: 0.15,
                by: Level::Code,
                seed: 1,
            },
            limit: None,
        };
        edit(&mut data);
        read_rows(&data, &path, CodeTree::shipped())
    }

    #[test]
    fn rows_without_text_or_code_are_dropped_and_counted() {
        let rows = read(
            "r.csv",
            "note,icd\n a ,I10\n ,I10\nb,\nc,f32a \n,\n",
            |_| {},
        )
        .unwrap();
        assert_eq!((rows.read, rows.empty_text, rows.empty_code), (5, 2, 1));
        let kept: Vec<_> = rows
            .rows
            .iter()
            .map(|r| (r.index, &*r.text, &*r.code, &*r.title))
            .collect();
        let expected = [
            (0, "a", "I10", "Essential (primary) hypertension"),
            (3, "c", "f32a", "Depression, unspecified"),
        ];
        assert_eq!(kept, expected);
        assert_eq!(rows.rows[0].id, blake3::hash(b"a").to_hex()[..16]);
    }

    #[test]
    fn the_hash_names_the_rows_and_not_the_format() {
        let csv = read("r.csv", "note,icd\na,I10\n", |_| {}).unwrap();
        let tsv = read("r.tsv", "icd\tnote\nI10\ta\n", |_| {}).unwrap();
        let jsonl = read("r.jsonl", "{\"icd\":\"I10\",\"note\":\"a\"}", |_| {}).unwrap();
        assert!(csv.hash == tsv.hash && csv.hash == jsonl.hash && csv.hash.len() == 64);
        assert_ne!(
            csv.hash,
            read("r.csv", "note,icd\nb,I10\n", |_| {}).unwrap().hash
        );
    }

    #[test]
    fn limit_counts_rows_of_the_file() {
        let rows = read("r.csv", "note,icd\n,I10\nb,I10\nc,I10\n", |data| {
            data.limit = Some(2)
        })
        .unwrap();
        assert_eq!((rows.read, rows.rows.len()), (2, 1));
    }

    #[test]
    fn a_note_that_lacks_a_section_is_counted() {
        let sections = |data: &mut Data| {
            let sections = vec!["Subjective".to_owned(), "Objective".to_owned()];
            data.text = TextView::Sections {
                column: "note".into(),
                sections,
            };
        };
        let content = "note,icd\n**Subjective:** a **Plan:** b,I10\nnothing,I10\n";
        let rows = read("r.csv", content, sections).unwrap();
        assert_eq!(
            rows.lacking,
            [("Subjective".to_owned(), 1), ("Objective".to_owned(), 2)]
        );
        assert_eq!(
            (rows.empty_text, rows.rows[0].text.as_str()),
            (1, "**Subjective:** a")
        );
    }

    #[test]
    fn files_that_give_no_rows_say_why() {
        let message = |name, content| read(name, content, |_| {}).unwrap_err().to_string();
        assert!(message("r.csv", "note,icd\n").contains("no rows below its header line"));
        assert!(message("r.jsonl", "\n").contains("has no rows"));
        assert!(
            message("r.csv", "note,icd\n,\n").contains("of 1 rows 1 have no text and 0 no code")
        );
        assert!(message("r.parquet", "PAR1").contains("export anything else, such as Parquet"));
        let missing = read("r.csv", "", |_| {}).unwrap_err();
        assert!(matches!(missing, RowsError::NoRows { header: false, .. }));
    }
}
