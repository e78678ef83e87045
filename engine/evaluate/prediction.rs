//! A model's answer to one row, as it is stored.
//!
//! Holds one JSON line a row. It refuses to judge: what an answer means is worked out from its text whenever a report is made. Invariant: a
//! line that a crash cut is passed over, and the next line begins on a line of its own.

use crate::generate::engine::Finish;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The row's identity: a hash of its text.
    pub id: String,
    /// Hash of the prompt's tokens.
    pub prompt: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were cut from the end of the note.
    pub cut: usize,
    /// The answer without special tokens.
    pub answer: String,
    /// Tokens of the answer, the end token included.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Seconds from the start of its batch to its last token.
    pub seconds: f64,
}

/// Hash of a prompt's tokens.
pub fn prompt_hash(ids: &[u32]) -> String {
    let mut hasher = blake3::Hasher::new();
    for id in ids {
        hasher.update(&id.to_le_bytes());
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(24);
    hex
}

/// The complete lines of a file; none if it is not there.
///
/// # Errors
/// Whatever the disk says.
pub fn read(path: &Path) -> io::Result<Vec<Prediction>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The lines of a file that holds these.
pub fn lines(predictions: &[Prediction]) -> String {
    // A struct of strings and finite numbers always serialises.
    predictions
        .iter()
        .filter_map(|p| serde_json::to_string(p).ok())
        .map(|line| line + "\n")
        .collect()
}

/// Opens a file for appending, behind its last complete line.
///
/// # Errors
/// Whatever the disk says.
pub fn append(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    if end > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(id: &str) -> Prediction {
        Prediction {
            id: id.into(),
            prompt: prompt_hash(&[1, 2]),
            prompt_tokens: 2,
            cut: 0,
            answer: "E11.65".into(),
            tokens: 4,
            finish: Finish::Stop,
            seconds: 0.5,
        }
    }

    #[test]
    fn a_line_that_a_crash_cut_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let whole = lines(&[prediction("a"), prediction("b")]);
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        append(&path)
            .unwrap()
            .write_all(lines(&[prediction("c")]).as_bytes())
            .unwrap();
        let ids: Vec<String> = read(&path).unwrap().into_iter().map(|p| p.id).collect();
        assert_eq!(ids, ["a", "c"]);
    }
}
