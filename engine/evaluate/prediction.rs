//! `predictions/<system>.jsonl`: what a system answered, one line a row, and when an answer may be used again.
//!
//! Holds the record, the file and the cache key. It refuses to generate. Invariant: a line counts only once its line break is on
//! disk, so that a crash costs one row and never the file; everything that changes an answer is in [`Scope`] or the prompt.

use super::answer::Outcome;
pub use crate::generate::engine::Finish;
use medft_dsl::plan::{Decode, Precision};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Id of the row.
    pub row: String,
    /// Hash of everything but the prompt, see [`Scope::hash`].
    pub scope: String,
    /// Hash of the prompt, see [`Scope::prompt_hash`].
    pub prompt: String,
    /// The decoded answer.
    pub answer: String,
    /// What was read in it. Read the answer again before use: the level or the tree may have changed since.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Tokens of the answer.
    pub tokens: u64,
    /// Why it ended.
    pub finish: Finish,
    /// Seconds from the start of its batch to its last token.
    pub seconds: f64,
}

/// What an answer depends on besides its prompt.
#[derive(Debug, Clone, Serialize)]
pub struct Scope<'a> {
    /// Fingerprint of the base weights.
    pub weights: &'a str,
    /// Hash of the adapter, if any.
    pub adapter: Option<&'a str>,
    /// How the weights are held.
    pub precision: Precision,
    /// NF4 only.
    pub double_quant: bool,
    /// Decoding settings.
    pub decode: &'a Decode,
    /// Backend and version of the code that decodes, such as `cpu/2`: raised when the same inputs begin to give other answers.
    pub decoder: &'a str,
}

impl Scope<'_> {
    /// Hash of all settings, 64 hexadecimal digits.
    ///
    /// # Errors
    /// A temperature or another setting that is no number.
    pub fn hash(&self) -> Result<String, PredictionError> {
        let json = serde_json::to_vec(self).map_err(PredictionError::Settings)?;
        Ok(blake3::hash(&json).to_hex().to_string())
    }

    /// Hash of a prompt's token ids; with sampling also of the row's number, which seeds its draws.
    pub fn prompt_hash(&self, ids: &[u32], row: u64) -> String {
        let mut hasher = blake3::Hasher::new();
        for id in ids {
            hasher.update(&id.to_le_bytes());
        }
        if self.decode.sample {
            hasher.update(b"row").update(&row.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Why predictions could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum PredictionError {
    /// The disk.
    #[error("{path}: predictions cannot be read or written: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line in the middle of the file is no prediction.
    #[error(
        "{path}, line {line}: not a prediction of this program: {source}; remove the file to generate its answers again"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Settings that cannot be written down.
    #[error("the settings of a prediction cannot be hashed: {0}")]
    Settings(serde_json::Error),
}

/// The file of one system, open for appending.
pub struct PredictionLog {
    path: PathBuf,
    file: File,
    known: HashMap<(String, String), Prediction>,
}

impl PredictionLog {
    /// Opens or creates the file; a line that a crash cut is removed.
    ///
    /// # Errors
    /// Whatever the disk says, and a file that holds something else.
    pub fn open(path: &Path) -> Result<Self, PredictionError> {
        let io = |source| PredictionError::Io {
            path: path.to_path_buf(),
            source,
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io)?;
        }
        let (predictions, whole) = read_lines(path)?;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(io)?;
        file.set_len(whole).map_err(io)?;
        let known = predictions
            .into_iter()
            .map(|p| ((p.scope.clone(), p.prompt.clone()), p))
            .collect();
        Ok(PredictionLog {
            path: path.to_path_buf(),
            file,
            known,
        })
    }

    /// The stored answer to a prompt.
    pub fn get(&self, scope: &str, prompt: &str) -> Option<&Prediction> {
        self.known.get(&(scope.to_owned(), prompt.to_owned()))
    }

    /// Appends a prediction.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn push(&mut self, prediction: Prediction) -> Result<(), PredictionError> {
        let io = |source| PredictionError::Io {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(&prediction).map_err(|e| io(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io)?;
        self.known.insert(
            (prediction.scope.clone(), prediction.prompt.clone()),
            prediction,
        );
        Ok(())
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// Whatever the disk says.
    pub fn sync(&self) -> Result<(), PredictionError> {
        self.file.sync_all().map_err(|source| PredictionError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// The complete lines of a file; none if it is not there.
///
/// # Errors
/// Whatever the disk says, and a file that holds something else.
pub fn read(path: &Path) -> Result<Vec<Prediction>, PredictionError> {
    Ok(read_lines(path)?.0)
}

/// The complete lines, and their length in bytes.
fn read_lines(path: &Path) -> Result<(Vec<Prediction>, u64), PredictionError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(source) => {
            return Err(PredictionError::Io {
                path: path.to_path_buf(),
                source,
            });
        }
    };
    let whole = bytes
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    let parse = |(at, line)| {
        serde_json::from_slice(line).map_err(|source| PredictionError::Line {
            path: path.to_path_buf(),
            line: at + 1,
            source,
        })
    };
    let predictions = lines.enumerate().map(parse).collect::<Result<_, _>>()?;
    Ok((predictions, whole as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(sample: bool) -> Decode {
        Decode {
            sample,
            max_new: 32,
            temperature: 0.7,
            top_p: 0.9,
            top_k: 50,
            repetition_penalty: 1.1,
            seed: 42,
        }
    }

    fn scope(decode: &Decode) -> Scope<'_> {
        Scope {
            weights: "w",
            adapter: None,
            precision: Precision::Bf16,
            double_quant: false,
            decode,
            decoder: "cpu/1",
        }
    }

    fn prediction(row: &str, prompt: &str) -> Prediction {
        Prediction {
            row: row.into(),
            scope: "s".into(),
            prompt: prompt.into(),
            answer: "E11.65\n\"quoted\"".into(),
            outcome: Outcome::Code {
                code: "E11.65".into(),
                span: 0..6,
            },
            tokens: 5,
            finish: Finish::Length,
            seconds: 0.25,
        }
    }

    #[test]
    fn a_half_written_last_line_costs_one_row() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("predictions/base.jsonl");
        let mut log = PredictionLog::open(&path).expect("opens");
        log.push(prediction("a", "1")).expect("writes");
        log.push(prediction("b", "2")).expect("writes");
        let bytes = std::fs::read(&path).expect("reads");
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writes");
            let mut log = PredictionLog::open(&path).expect("a cut file opens");
            log.push(prediction("c", "3")).expect("writes");
            let found = read(&path).expect("reads");
            assert_eq!(found.last(), Some(&prediction("c", "3")));
            assert_eq!(
                found.len(),
                1 + usize::from(cut >= bytes.len() / 2),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn stored_answers_are_found_by_scope_and_prompt() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("base.jsonl");
        assert_eq!(read(&path).expect("no file is no rows"), []);
        PredictionLog::open(&path)
            .expect("opens")
            .push(prediction("a", "1"))
            .expect("writes");
        let log = PredictionLog::open(&path).expect("opens again");
        assert_eq!(log.get("s", "1"), Some(&prediction("a", "1")));
        assert_eq!(log.get("s", "2"), None);
        assert_eq!(log.get("t", "1"), None);
        let text = std::fs::read_to_string(&path).expect("reads");
        assert!(
            text.contains(r#""outcome":"code","code":"E11.65""#),
            "{text}"
        );
    }

    #[test]
    fn a_foreign_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("base.jsonl");
        std::fs::write(&path, "{\"row\": 1}\n").expect("writes");
        let error = read(&path).expect_err("not a prediction").to_string();
        assert!(
            error.contains("line 1") && error.contains("remove the file"),
            "{error}"
        );
    }

    #[test]
    fn every_setting_and_every_token_counts() {
        let (greedy, sampled) = (decode(false), decode(true));
        let base = scope(&greedy).hash().expect("hashes");
        assert_eq!(base, scope(&decode(false)).hash().expect("hashes"));
        let others = [
            Scope {
                weights: "v",
                ..scope(&greedy)
            },
            Scope {
                adapter: Some("w"),
                ..scope(&greedy)
            },
            Scope {
                precision: Precision::Nf4,
                ..scope(&greedy)
            },
            Scope {
                double_quant: true,
                ..scope(&greedy)
            },
            Scope {
                decoder: "cpu/2",
                ..scope(&greedy)
            },
            scope(&sampled),
        ];
        for other in &others {
            assert_ne!(base, other.hash().expect("hashes"), "{other:?}");
        }
        let greedy = scope(&greedy);
        assert_eq!(
            greedy.prompt_hash(&[1, 2], 0),
            greedy.prompt_hash(&[1, 2], 9)
        );
        assert_ne!(
            greedy.prompt_hash(&[1, 2], 0),
            greedy.prompt_hash(&[1, 258], 0)
        );
        let sampled = scope(&sampled);
        assert_ne!(
            sampled.prompt_hash(&[1, 2], 0),
            sampled.prompt_hash(&[1, 2], 9)
        );
    }
}
