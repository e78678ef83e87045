//! Rows of a CSV file: header line, RFC 4180 quotes, any ASCII delimiter, LF or CRLF, with or
//! without a byte-order mark.
//!
//! Streams: one record is in memory at a time. It refuses ragged rows, bad quotes and bytes that
//! are not UTF-8, each with its line. Invariant: the text of a cell is passed on untouched.

use super::columns::find_column;
use super::quotes::{BadQuote, QuoteWatch};
use super::{Cells, RowsError};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The wanted cells of every record of the file at `path`.
pub(super) fn open(
    path: &Path,
    delimiter: char,
    columns: Cells<&str>,
) -> Result<impl Iterator<Item = Result<Cells<String>, RowsError>> + use<>, RowsError> {
    let file = File::open(path).map_err(|source| RowsError::Read {
        path: path.to_owned(),
        source,
    })?;
    records(file, path.to_owned(), delimiter, columns)
}

/// The same from any stream; `path` is for messages.
pub(super) fn records<R: Read>(
    stream: R,
    path: PathBuf,
    delimiter: char,
    columns: Cells<&str>,
) -> Result<impl Iterator<Item = Result<Cells<String>, RowsError>> + use<R>, RowsError> {
    let byte = u8::try_from(delimiter)
        .ok()
        .filter(|byte| byte.is_ascii() && !b"\"\r\n".contains(byte));
    let Some(byte) = byte else {
        return Err(RowsError::Delimiter { path, delimiter });
    };
    let mut stream = BufReader::new(stream);
    let begin = stream.fill_buf().map_err(|source| RowsError::Read {
        path: path.clone(),
        source,
    })?;
    if let Some(used) = other_delimiter(begin, byte) {
        return Err(RowsError::OtherDelimiter {
            path,
            delimiter,
            used,
        });
    }
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(byte)
        .from_reader(QuoteWatch::new(stream, byte));
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(str::to_owned).collect(),
        Err(error) => return Err(explain(&path, error)),
    };
    if header.is_empty() {
        return Err(RowsError::NoRows {
            path,
            header: false,
        });
    }
    let text = find_column(&path, &header, columns.text)?;
    let code = find_column(&path, &header, columns.code)?;
    Ok(reader.into_records().map(move |record| {
        let record = record.map_err(|error| explain(&path, error))?;
        let cell = |at| record.get(at).unwrap_or_default().to_owned();
        Ok(Cells {
            text: cell(text),
            code: cell(code),
        })
    }))
}

/// What the header is separated by, if it is not separated by `delimiter`: Excel writes semicolons where the comma is decimal.
fn other_delimiter(begin: &[u8], delimiter: u8) -> Option<char> {
    let header = begin.split(|byte| b"\r\n".contains(byte)).next()?;
    if header.contains(&delimiter) {
        return None;
    }
    let used = b";\t,|".iter().find(|other| header.contains(other))?;
    Some(char::from(*used))
}

/// The crate's error as a sentence with a place.
fn explain(path: &Path, error: ::csv::Error) -> RowsError {
    let path = path.to_owned();
    let line = error.position().map_or(1, ::csv::Position::line);
    match error.into_kind() {
        ::csv::ErrorKind::Utf8 { .. } => RowsError::NotUtf8 { path, line },
        ::csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => RowsError::Ragged {
            path,
            line,
            found: len,
            needed: expected_len,
        },
        ::csv::ErrorKind::Io(source) => {
            match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(&BadQuote::Unclosed { line }) => RowsError::UnclosedQuote { path, line },
                Some(&BadQuote::Stray { line }) => RowsError::StrayQuote { path, line },
                None => RowsError::Read { path, source },
            }
        }
        // Seeking, serialising and deserialising: never asked for here.
        other => RowsError::Read {
            path,
            source: std::io::Error::other(format!("{other:?}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Pairs = Vec<(String, String)>;

    fn read(bytes: &[u8], delimiter: char) -> Result<Pairs, RowsError> {
        let columns = Cells {
            text: "note",
            code: "icd",
        };
        let cells = records(bytes, PathBuf::from("/d/rows.csv"), delimiter, columns)?;
        cells
            .map(|cells| cells.map(|cells| (cells.text, cells.code)))
            .collect()
    }

    fn error(bytes: &[u8]) -> String {
        read(bytes, ',').expect_err("this file is bad").to_string()
    }

    fn pairs(expected: &[(&str, &str)]) -> Pairs {
        expected
            .iter()
            .map(|(text, code)| (text.to_string(), code.to_string()))
            .collect()
    }

    #[test]
    fn marks_line_ends_quotes_and_delimiters() {
        let expected = pairs(&[("a, \"b\"\nc", "I10"), ("d", "E11.65")]);
        let plain = "icd,note\nI10,\"a, \"\"b\"\"\nc\"\nE11.65,d\n";
        assert_eq!(read(plain.as_bytes(), ',').unwrap(), expected);
        let marked = "\u{feff}\"icd\",note\r\n\r\nI10,\"a, \"\"b\"\"\nc\"\r\nE11.65,d";
        assert_eq!(read(marked.as_bytes(), ',').unwrap(), expected);
        assert_eq!(
            read(b"note;x;icd\n1,5;;I10\n", ';').unwrap(),
            pairs(&[("1,5", "I10")])
        );
    }

    #[test]
    fn every_fault_is_a_sentence_with_a_place() {
        for (bytes, parts) in [
            (
                &b"note,icd\na,b\nc\n"[..],
                [
                    "/d/rows.csv, line 3",
                    "the header has 2 cells and this row 1",
                ],
            ),
            (b"note,icd\na,b,c\n", ["line 2", "this row 3"]),
            (b"note,icd\na,\"b\nc,d\n", ["line 2", "never closed"]),
            (
                b"note,icd\na,\"b\"c\n",
                ["line 2", "text follows a closing quote"],
            ),
            (b"note,icd\na,b\n\xff,c\n", ["line 3", "not UTF-8"]),
            (b"\xff\xfen\0o\0t\0e\0\n", ["line 1", "not UTF-8"]),
            (
                b"nots,icd\na,b\n",
                [
                    "has no column `note`; it has `nots`, `icd`",
                    "did you mean `nots`?",
                ],
            ),
            (
                b"note,note,icd\na,b,c\n",
                ["more than one column `note`", "rename"],
            ),
            (b"", ["/d/rows.csv", "has no rows"]),
            (
                "\u{feff}note;icd\n\"a, \"\"b\"\"\";I10\n".as_bytes(),
                ["separated by ';'", "`delimiter = \";\"`"],
            ),
            (
                b"note\ticd\na\tI10\n",
                ["separated by '\\t'", "`delimiter = \"\\t\"`"],
            ),
        ] {
            let message = error(bytes);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        assert!(
            read(b"note,icd\n", '—')
                .unwrap_err()
                .to_string()
                .contains("one ASCII character")
        );
    }

    proptest! {
        #[test]
        fn mutated_bytes_never_panic(
            edits in prop::collection::vec((0_usize..80, any::<u8>()), 0..8),
            cut in 0_usize..80,
        ) {
            let mut bytes = b"\xEF\xBB\xBFnote,icd\r\n\"a \"\"quoted\"\" note\nof lines\",E11.65\r\nplain,I10\n".to_vec();
            for (at, byte) in edits {
                if let Some(old) = bytes.get_mut(at) { *old = byte; }
            }
            bytes.truncate(cut.max(1));
            let _ = read(&bytes, ',');
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, ';');
        }

        #[test]
        fn what_a_writer_quotes_is_read_back(cells in prop::collection::vec(("[a-z\",;\n\ré ]{0,12}", "[A-Z0-9.]{1,8}"), 1..10)) {
            let mut writer = ::csv::Writer::from_writer(Vec::new());
            writer.write_record(["note", "icd"]).unwrap();
            for (text, code) in &cells { writer.write_record([text, code]).unwrap(); }
            prop_assert_eq!(read(&writer.into_inner().unwrap(), ',').unwrap(), cells);
        }
    }
}
