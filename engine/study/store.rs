//! The artifact store: results of stages, each under the hash of everything it depends on.
//!
//! Holds paths, locks and fingerprints of files. It refuses to know what a stage does. Layout under the output folder (`runs/`):
//! `.store/train-KEY/`, `.store/predict-KEY.jsonl`, `.store/split-KEY.json`, `.store/fingerprints.json`; a run's folder links to its
//! trainings. Invariant: one process at a time works in an output folder.

use super::StudyError;
use crate::data::whole_file::write_whole;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The results of stages in one output folder.
pub struct Store {
    root: PathBuf,
    prints: BTreeMap<PathBuf, Print>,
    /// Held while this process works here.
    _lock: File,
}

/// A file's hash, valid while its size and time stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Print {
    bytes: u64,
    nanos: u128,
    hash: String,
}

/// A hash of everything that `parts` says, in 24 hexadecimal digits.
pub fn key(parts: &impl Serialize) -> String {
    // Plain data with string keys always serialises.
    let text = serde_json::to_vec(parts).unwrap_or_default();
    short(blake3::hash(&text))
}

fn short(hash: blake3::Hash) -> String {
    let mut hex = hash.to_hex().to_string();
    hex.truncate(24);
    hex
}

impl Store {
    /// Opens the store in an output folder, which is made if it is not there.
    ///
    /// # Errors
    /// When another process works there, or the disk refuses.
    pub fn open(out: &Path) -> Result<Self, StudyError> {
        let root = out.join(".store");
        let refused = |source| StudyError::Out {
            out: out.to_path_buf(),
            source,
        };
        std::fs::create_dir_all(&root).map_err(refused)?;
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(StudyError::Busy {
                    out: out.to_path_buf(),
                });
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(refused(e)),
        }
        // A damaged list only costs the time to hash again.
        let prints = std::fs::read(root.join("fingerprints.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Ok(Store {
            root,
            prints,
            _lock: lock,
        })
    }

    /// The place of a stage's file or folder.
    pub fn place(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// BLAKE3 of a file's bytes; looked up if its size and time have not changed since it was last read.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fingerprint(&mut self, path: &Path) -> Result<String, StudyError> {
        let io = |e| StudyError::unreadable(path, e);
        let path = path.canonicalize().map_err(io)?;
        let meta = path.metadata().map_err(io)?;
        let changed = meta
            .modified()
            .ok()
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let (bytes, nanos) = (meta.len(), changed.map_or(0, |d| d.as_nanos()));
        if let Some(print) = self.prints.get(&path)
            && (print.bytes, print.nanos) == (bytes, nanos)
        {
            return Ok(print.hash.clone());
        }
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(&path).map_err(io)?;
        std::io::copy(&mut file, &mut hasher).map_err(io)?;
        let hash = short(hasher.finalize());
        self.prints.insert(
            path,
            Print {
                bytes,
                nanos,
                hash: hash.clone(),
            },
        );
        write_whole(
            &self.root.join("fingerprints.json"),
            &serde_json::to_vec(&self.prints).unwrap_or_default(),
        )?;
        Ok(hash)
    }
}
