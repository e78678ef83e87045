//! What can be wrong with a file of rows, each with the place and the way out.
//!
//! Sentences only; reading is in `csv` and `jsonl`. Invariant: lines count from 1 and include the
//! header, as an editor shows them.

use std::path::PathBuf;

/// A file of rows could not be read. Nothing of it is used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // `path` is the file, `line` a line of it; the messages say the rest
pub enum RowsError {
    #[error("cannot read {}: {source}; check `source` of the data block", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot tell what {} is from its name; rows are read from .csv, .tsv and .jsonl files (export anything else, such as Parquet, to one of them)", path.display())]
    Format { path: PathBuf },
    #[error("cannot read {} with the delimiter {delimiter:?}: it must be one ASCII character, such as `,` or `;`, other than a quote or line break", path.display())]
    Delimiter { path: PathBuf, delimiter: char },
    #[error("{}: its header is separated by {used:?}, not by {delimiter:?}; set `delimiter = {:?}` in the `source` of the data block", path.display(), used.to_string())]
    OtherDelimiter {
        path: PathBuf,
        delimiter: char,
        used: char,
    },
    #[error("{}, line {line}: the bytes are not UTF-8; save the file as UTF-8 (`iconv -f latin1 -t utf-8`, for Excel's Unicode text `-f utf-16`)", path.display())]
    NotUtf8 { path: PathBuf, line: u64 },
    #[error("{}, line {line}: the quote that opens here is never closed; close it, or write a quote inside a quoted cell twice (`\"\"`)", path.display())]
    UnclosedQuote { path: PathBuf, line: u64 },
    #[error("{}, line {line}: text follows a closing quote; write a quote inside a quoted cell twice (`\"\"`)", path.display())]
    StrayQuote { path: PathBuf, line: u64 },
    #[error("{}, line {line}: the header has {needed} cells and this row {found}; quote cells that hold the delimiter, or set `delimiter`", path.display())]
    Ragged {
        path: PathBuf,
        line: u64,
        found: u64,
        needed: u64,
    },
    #[error("{}, line {line}: this is not one JSON object: {problem}", path.display())]
    Json {
        path: PathBuf,
        line: u64,
        problem: String,
    },
    #[error("{}, line {line}: `{column}` is {found} and should be text", path.display())]
    NotText {
        path: PathBuf,
        line: u64,
        column: String,
        found: &'static str,
    },
    #[error("{} has no column `{column}`; it has {}{}", path.display(), quoted(columns), did_you_mean(near))]
    MissingColumn {
        path: PathBuf,
        column: String,
        columns: Vec<String>,
        near: Option<String>,
    },
    #[error("{} has more than one column `{column}`; rename all but one", path.display())]
    RepeatedColumn { path: PathBuf, column: String },
    #[error("{} has no rows{}; check `source` of the data block", path.display(), if *header { " below its header line" } else { "" })]
    NoRows { path: PathBuf, header: bool },
    #[error("no row of {} can be used: of {read} rows {empty_text} have no text and {empty_code} no code; check `text` and `code` of the data block", path.display())]
    NothingLeft {
        path: PathBuf,
        read: u64,
        empty_text: u64,
        empty_code: u64,
    },
    #[error("the section names of the data block cannot be searched for: {0}")]
    Sections(#[from] regex::Error),
}

fn quoted(columns: &[String]) -> String {
    columns
        .iter()
        .map(|column| format!("`{column}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn did_you_mean(near: &Option<String>) -> String {
    near.as_ref()
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default()
}
