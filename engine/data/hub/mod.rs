//! Files of the Hugging Face hub: a data set's file, or a model's snapshot.
//!
//! Looks into the local cache first (the layout of `huggingface_hub`, shared with Python), then
//! downloads through `hf-hub`, resuming what was begun. Around that crate it adds what it lacks:
//! `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, pinned commits in the cache, a check of size and
//! hash, an end to waiting, and errors that say what to do. It refuses pickled weights: safetensors only. Invariant: a path
//! that is returned points into `snapshots/<commit>/`, so the commit names the bytes.

mod digest;
mod download;
mod error;
mod place;

pub use error::HubError;

use hf_hub::RepoType;
use medft_dsl::plan::Source;
use place::Place;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const OPTIONAL: [&str; 3] = [
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// A download without a byte for so long has stalled.
const PATIENCE: Duration = Duration::from_secs(60);

/// Told how a download goes. Nothing is called for what is in the cache.
pub trait DownloadProgress {
    /// A file of `bytes` bytes begins, or begins again after its connection broke.
    fn started(&mut self, file: &str, bytes: u64);
    /// `bytes` more bytes are here. When a download continues, the first call counts what was here
    /// before.
    fn advanced(&mut self, bytes: u64);
    /// The file is complete.
    fn finished(&mut self);
}

impl DownloadProgress for () {
    fn started(&mut self, _: &str, _: u64) {}
    fn advanced(&mut self, _: u64) {}
    fn finished(&mut self) {}
}

/// A model's files in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds `config.json`, `tokenizer.json`, the weights and, if the repository has them, the
    /// other wanted files.
    pub dir: PathBuf,
    /// The commit that the revision stands for.
    pub commit: String,
}

/// Where files come from and where they are kept. Not `Debug`: the token stays out of logs.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    /// Seconds as the user wrote them.
    timeout: Option<String>,
}

impl Hub {
    /// The hub as the environment describes it, with the meaning that Python's `huggingface_hub`
    /// gives to `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE` and `XDG_CACHE_HOME`; `MEDFT_HUB_TIMEOUT` is ours.
    pub fn from_env() -> Hub {
        Hub::from_vars(|name| std::env::var(name).ok())
    }

    /// The same for any variables.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Hub {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let home = || std::env::home_dir().unwrap_or_default().join(".cache");
        let root = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            var("XDG_CACHE_HOME")
                .map_or_else(home, PathBuf::from)
                .join("huggingface")
        });
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| root.join("token"), PathBuf::from);
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let offline = var("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Hub {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: var("HF_HUB_CACHE").map_or_else(|| root.join("hub"), PathBuf::from),
            token: token
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            timeout: var("MEDFT_HUB_TIMEOUT"),
        }
    }

    /// How long a download may go without a byte.
    fn patience(&self) -> Result<Duration, HubError> {
        let Some(seconds) = &self.timeout else {
            return Ok(PATIENCE);
        };
        let parsed = seconds.trim().parse().ok().filter(|s| *s > 0.0);
        parsed
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .ok_or_else(|| HubError::Timeout {
                found: seconds.clone(),
            })
    }

    /// The folder that downloads are kept in.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Whether there is a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The file of a source: its own path, or that of the hub's file.
    pub fn source_file(
        &self,
        source: &Source,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        match source {
            Source::Csv { path, .. } | Source::Jsonl { path } => Ok(path.clone()),
            Source::Hf {
                repo,
                file,
                revision,
            } => self.dataset_file(repo, file, revision, progress),
        }
    }

    /// The file of a source if it needs no download; never asks the hub.
    pub fn cached_source_file(&self, source: &Source) -> Option<PathBuf> {
        match source {
            Source::Csv { path, .. } | Source::Jsonl { path } => {
                path.exists().then(|| path.clone())
            }
            Source::Hf {
                repo,
                file,
                revision,
            } => self.dataset(repo, revision).cached_file(file),
        }
    }

    fn dataset<'h>(&'h self, repo: &'h str, revision: &'h str) -> Place<'h> {
        Place {
            hub: self,
            repo,
            revision,
            kind: RepoType::Dataset,
        }
    }

    /// A file of a data set, from the cache or the hub.
    pub fn dataset_file(
        &self,
        repo: &str,
        file: &str,
        revision: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let place = self.dataset(repo, revision);
        if let Some(path) = place.cached_file(file) {
            return Ok(path);
        }
        let remote = place.remote()?;
        if !remote.files.contains(file) {
            return Err(place.lacks(file));
        }
        let path = remote.get(file, progress)?;
        remote.remember()?;
        Ok(path)
    }

    /// The folder of a model that is complete in the cache; never asks the hub.
    pub fn cached_model(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let place = Place {
            hub: self,
            repo,
            revision,
            kind: RepoType::Model,
        };
        let snapshot = place.cached()?;
        is_complete(&snapshot.dir).then_some(snapshot.dir)
    }

    /// Everything of a model that the engine reads, from the cache or the hub.
    pub fn model(
        &self,
        repo: &str,
        revision: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Snapshot, HubError> {
        let place = Place {
            hub: self,
            repo,
            revision,
            kind: RepoType::Model,
        };
        if let Some(snapshot) = place.cached().filter(|snapshot| is_complete(&snapshot.dir)) {
            return Ok(snapshot);
        }
        let remote = place.remote()?;
        let has = |file: &str| remote.files.contains(file);
        let weights = if has(INDEX) { INDEX } else { SINGLE };
        let required = [CONFIG, TOKENIZER, weights];
        if let Some(lacking) = required.into_iter().find(|file| !has(file)) {
            return Err(place.lacks(lacking));
        }
        let wanted = required
            .into_iter()
            .chain(OPTIONAL.into_iter().filter(|file| has(file)));
        for file in wanted {
            remote.get(file, progress)?;
        }
        if weights == INDEX {
            let index = remote.snapshot.dir.join(INDEX);
            for shard in shards(&index).ok_or_else(|| place.lacks("readable weight map"))? {
                remote.get(&shard, progress)?;
            }
        }
        remote.remember()?;
        Ok(remote.snapshot)
    }
}

/// Whether a cached snapshot has all that [`Hub::model`] promises.
fn is_complete(dir: &Path) -> bool {
    let has = |file: &str| dir.join(file).exists();
    let index = dir.join(INDEX);
    let weights = if index.exists() {
        shards(&index).is_some_and(|shards| shards.iter().all(|shard| has(shard)))
    } else {
        has(SINGLE)
    };
    weights && has(CONFIG) && has(TOKENIZER)
}

/// The files that an index names; `None` if it is not an index of files beside it.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let files = index.get("weight_map")?.as_object()?.values();
    let shards: Option<BTreeSet<String>> =
        files.map(|file| file.as_str().map(str::to_owned)).collect();
    // A checkpoint is data from strangers: it may not name files outside its folder.
    shards.filter(|shards| {
        shards
            .iter()
            .all(|shard| !shard.contains(['/', '\\']) && shard != "..")
    })
}
