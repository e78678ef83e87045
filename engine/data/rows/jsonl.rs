//! Rows of a JSON-lines file: one object a line.
//!
//! Streams. Text and numbers are cells, a missing or null value is an empty one; anything else is
//! refused with its line. Invariant: the first object decides which keys the columns are.

use super::columns::find_column;
use super::{Cells, RowsError};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The wanted cells of every object of the file at `path`.
pub(super) fn open(
    path: &Path,
    columns: Cells<&str>,
) -> Result<Objects<BufReader<File>>, RowsError> {
    let file = File::open(path).map_err(|source| RowsError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(Objects::new(BufReader::new(file), path.to_owned(), columns))
}

/// An iterator over the objects of a stream.
pub(super) struct Objects<R> {
    stream: R,
    path: PathBuf,
    /// As the recipe writes them until the first object is read, then as the file does.
    columns: Cells<String>,
    resolved: bool,
    line: u64,
}

impl<R: BufRead> Objects<R> {
    fn new(stream: R, path: PathBuf, columns: Cells<&str>) -> Objects<R> {
        let columns = Cells {
            text: columns.text.to_owned(),
            code: columns.code.to_owned(),
        };
        Objects {
            stream,
            path,
            columns,
            resolved: false,
            line: 0,
        }
    }

    /// The next line that is not blank; `None` at the end.
    fn next_line(&mut self) -> Result<Option<String>, RowsError> {
        loop {
            let mut bytes = Vec::new();
            let read = self.stream.read_until(b'\n', &mut bytes);
            let read = read.map_err(|source| RowsError::Read {
                path: self.path.clone(),
                source,
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let text = String::from_utf8(bytes).map_err(|_| RowsError::NotUtf8 {
                path: self.path.clone(),
                line: self.line,
            })?;
            let text = if self.line == 1 {
                text.trim_start_matches('\u{feff}').to_owned()
            } else {
                text
            };
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
        }
    }

    fn cells(&mut self, line: &str) -> Result<Cells<String>, RowsError> {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            // The crate counts lines of this one line: its place would mislead.
            let problem = error.to_string();
            let problem = problem
                .split(" at line ")
                .next()
                .unwrap_or_default()
                .to_owned();
            RowsError::Json {
                path: self.path.clone(),
                line: self.line,
                problem,
            }
        })?;
        if !self.resolved {
            let keys: Vec<String> = object.keys().cloned().collect();
            for column in [&mut self.columns.text, &mut self.columns.code] {
                let at = find_column(&self.path, &keys, column)?;
                if let Some(key) = keys.get(at) {
                    column.clone_from(key);
                }
            }
            self.resolved = true;
        }
        Ok(Cells {
            text: self.cell(&object, &self.columns.text)?,
            code: self.cell(&object, &self.columns.code)?,
        })
    }

    fn cell(&self, object: &Map<String, Value>, column: &str) -> Result<String, RowsError> {
        let found = match object.get(column) {
            Some(Value::String(text)) => return Ok(text.clone()),
            Some(Value::Number(number)) => return Ok(number.to_string()),
            None | Some(Value::Null) => return Ok(String::new()),
            Some(Value::Bool(_)) => "true or false",
            Some(Value::Array(_)) => "a list",
            Some(Value::Object(_)) => "an object",
        };
        Err(RowsError::NotText {
            path: self.path.clone(),
            line: self.line,
            column: column.to_owned(),
            found,
        })
    }
}

impl<R: BufRead> Iterator for Objects<R> {
    type Item = Result<Cells<String>, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_line() {
            Ok(Some(line)) => Some(self.cells(&line)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Vec<(String, String)>, RowsError> {
        let columns = Cells {
            text: "note",
            code: "icd",
        };
        let cells = Objects::new(bytes, PathBuf::from("/d/rows.jsonl"), columns);
        cells
            .map(|cells| cells.map(|cells| (cells.text, cells.code)))
            .collect()
    }

    #[test]
    fn text_numbers_and_missing_values() {
        let text = "\u{feff}{\" note\": \"a\\nb\", \"icd\": \"I10\"}\r\n\n{\"icd\": 7, \" note\": null}\n{\"x\": []}";
        let cells = |text: &str, code: &str| (text.to_owned(), code.to_owned());
        assert_eq!(
            read(text.as_bytes()).unwrap(),
            [cells("a\nb", "I10"), cells("", "7"), cells("", "")]
        );
    }

    #[test]
    fn every_fault_is_a_sentence_with_a_place() {
        for (bytes, parts) in [
            (
                &b"{\"note\": \"a\", \"icd\": \"b\"}\n{\"note\": \n"[..],
                ["/d/rows.jsonl, line 2", "EOF"],
            ),
            (b"[1]\n", ["line 1", "not one JSON object"]),
            (
                b"{\"note\": \"a\", \"icd\": [\"I10\"]}",
                ["line 1", "`icd` is a list and should be text"],
            ),
            (
                b"{\"notes\": \"a\", \"icd\": \"b\"}",
                ["has no column `note`", "did you mean `notes`?"],
            ),
            (b"\n\xff\n", ["line 2", "not UTF-8"]),
        ] {
            let message = read(bytes).expect_err("this file is bad").to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
            assert!(!message.contains("column 1"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
