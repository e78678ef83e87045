//! The stored answers in an output folder: which runs use them, and what can go.
//!
//! Holds the looking and the deleting. It refuses to touch trainings and splits. Invariant: answers that a run's folder names are only
//! deleted when all are.

use super::StudyError;
use super::predict::Answers;
use super::store::Store;
use crate::evaluate::prediction::Prediction;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file of stored answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// The file.
    pub path: PathBuf,
    /// Answers in it.
    pub rows: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Whole days since it was last written.
    pub days: u64,
    /// The runs that use them, as `RECIPE/ID EVALUATION/SYSTEM`.
    pub users: BTreeSet<String>,
}

/// The stored answers in an output folder, the largest first.
///
/// # Errors
/// A folder without results, or one that another process works in.
pub fn list(out: &Path) -> Result<Vec<Stored>, StudyError> {
    let dir = out.join(".store");
    let entries = std::fs::read_dir(&dir).map_err(|e| StudyError::unreadable(&dir, e))?;
    let _lock = Store::open(out)?;
    let users = users(out);
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let (is_log, is_stage) = (name.starts_with("answers-"), name.starts_with("predict-"));
        let Some(meta) = entry.metadata().ok().filter(|_| is_log || is_stage) else {
            continue;
        };
        let (scopes, rows) = if is_log {
            log(&entry.path())
        } else {
            stage(&entry.path())
        };
        let age = meta
            .modified()
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        found.push(Stored {
            path: entry.path(),
            rows,
            bytes: meta.len(),
            days: age.map_or(0, |age| age.as_secs() / 86_400),
            users: scopes
                .iter()
                .filter_map(|s| users.get(s))
                .flatten()
                .cloned()
                .collect(),
        });
    }
    found.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    Ok(found)
}

/// Deletes the answers that no run uses, or all of them; gives what was deleted.
///
/// # Errors
/// As [`list`], and whatever the disk says.
pub fn prune(out: &Path, all: bool) -> Result<Vec<Stored>, StudyError> {
    let mut found = list(out)?;
    found.retain(|stored| all || stored.users.is_empty());
    let _lock = Store::open(out)?;
    for Stored { path, .. } in &found {
        std::fs::remove_file(path).map_err(|e| StudyError::io(path, e))?;
    }
    Ok(found)
}

/// Users by scope, from the predictions in runs' folders: `RECIPE/ID/predictions/EVALUATION/SYSTEM.jsonl`.
fn users(out: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let below = |dir: PathBuf| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let name = |path: &Path| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for recipe in below(out.to_path_buf())
        .into_iter()
        .filter(|p| !p.ends_with(".store"))
    {
        for run in below(recipe.clone()) {
            for evaluation in below(run.join("predictions")) {
                for file in below(evaluation.clone()) {
                    let user = format!(
                        "{}/{} {}/{}",
                        name(&recipe),
                        name(&run),
                        name(&evaluation),
                        name(&file)
                    );
                    for scope in log(&file).0 {
                        users.entry(scope).or_default().insert(user.clone());
                    }
                }
            }
        }
    }
    users
}

/// The scopes of a file of lines, and its lines. All lines of a file have one scope; the first that can be read tells it.
fn log(path: &Path) -> (BTreeSet<String>, u64) {
    let (mut scope, mut rows) = (None, 0);
    for line in File::open(path)
        .into_iter()
        .flat_map(|f| BufReader::new(f).lines())
        .map_while(Result::ok)
    {
        rows += 1;
        if scope.is_none() {
            scope = serde_json::from_str::<Prediction>(&line)
                .ok()
                .map(|p| p.scope);
        }
    }
    (scope.into_iter().collect(), rows)
}

/// The scopes and rows of a complete stage.
fn stage(path: &Path) -> (BTreeSet<String>, u64) {
    let answers: Option<Answers> = std::fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let predictions = answers.map_or_else(Vec::new, |answers| answers.predictions);
    let rows = predictions.len() as u64;
    (predictions.into_iter().map(|p| p.scope).collect(), rows)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::evaluate::answer::Outcome;
    use crate::evaluate::prediction::{Finish, PredictionLog};

    #[test]
    fn only_answers_without_a_run_are_pruned() {
        let out = tempfile::tempdir().unwrap();
        let write = |place: &str, scope: &str, rows: usize| {
            let mut log = PredictionLog::open(&out.path().join(place)).unwrap();
            for row in 0..rows {
                log.push(Prediction {
                    row: row.to_string(),
                    scope: scope.into(),
                    prompt: row.to_string(),
                    answer: "I10".into(),
                    outcome: Outcome::Unparsed,
                    tokens: 1,
                    finish: Finish::Stop,
                    seconds: 0.1,
                })
                .unwrap();
            }
        };
        assert!(list(out.path()).unwrap_err().is_input(), "no results yet");
        write(".store/answers-used.jsonl", "used", 3);
        write(".store/answers-left.jsonl", "left", 2);
        write("study/1a2b/predictions/all/base.jsonl", "used", 3);
        std::fs::write(out.path().join(".store/split-x.json"), "{}").unwrap();
        let found = list(out.path()).unwrap();
        let seen: Vec<(u64, Vec<&str>)> = found
            .iter()
            .map(|s| (s.rows, s.users.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(seen, [(3, vec!["study/1a2b all/base"]), (2, vec![])]);
        let gone = prune(out.path(), false).unwrap();
        assert!(gone.len() == 1 && gone[0].path.ends_with("answers-left.jsonl"));
        assert_eq!(prune(out.path(), true).unwrap().len(), 1);
        assert!(list(out.path()).unwrap().is_empty());
        assert!(
            out.path().join(".store/split-x.json").is_file(),
            "splits stay"
        );
    }
}
