//! One revision of one repository: its place in the cache and its files on the hub.
//!
//! Wraps `hf-hub`, and is the only file that names it besides the repository's type. It refuses to
//! trust a download's length. Invariant: files are fetched by commit, so one snapshot folder never
//! mixes two revisions.

use super::{DownloadProgress, Hub, HubError, Snapshot};
use hf_hub::api::Progress;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

/// A broken connection is tried again this often; each time the download continues where it broke.
const RETRIES: usize = 3;
/// The hub answers the first question within this time, or does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A revision of a repository.
pub(super) struct Place<'h> {
    pub(super) hub: &'h Hub,
    pub(super) repo: &'h str,
    pub(super) revision: &'h str,
    pub(super) kind: RepoType,
}

/// A revision that the hub has resolved to a commit.
pub(super) struct Remote<'p> {
    place: &'p Place<'p>,
    api: ApiRepo,
    /// Where the commit's files are or will be.
    pub(super) snapshot: Snapshot,
    /// The files of the commit.
    pub(super) files: BTreeSet<String>,
}

impl Remote<'_> {
    /// A file, from the cache or the hub.
    pub(super) fn get(
        &self,
        file: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let path = self.snapshot.dir.join(file);
        if path.exists() {
            return Ok(path);
        }
        let what = format!("the file `{file}`");
        let mut size = 0;
        // Not the crate's own retries: after a connection that fails at once they begin at byte 0
        // of a file that already has bytes. Each call of ours takes the place from the file.
        let mut retries = RETRIES;
        let path = loop {
            let forward = Forward {
                progress: &mut *progress,
                size: &mut size,
            };
            match self.api.download_with_progress(file, forward) {
                Ok(path) => break path,
                Err(ApiError::IoError(error)) if retries > 0 && is_network(&error) => retries -= 1,
                Err(error) => return Err(self.place.explain(&what, error)),
            }
        };
        // The crate appends whatever comes, also if a proxy cut it or ignored where to begin.
        let blob = path
            .canonicalize()
            .map_err(|error| self.place.cannot_store(&what, &error))?;
        let found = blob
            .metadata()
            .map_err(|error| self.place.cannot_store(&what, &error))?
            .len();
        if found != size {
            for stale in [blob, path] {
                std::fs::remove_file(stale)
                    .map_err(|error| self.place.cannot_store(&what, &error))?;
            }
            return Err(HubError::Size {
                what: self.place.name(&what),
                found,
                needed: size,
            });
        }
        Ok(path)
    }

    /// Writes down what the revision stands for: the crate did so for the commit only, and the next
    /// look-up of `main` starts here.
    pub(super) fn remember(&self) -> Result<(), HubError> {
        let stored = self
            .place
            .cache(self.place.revision)
            .create_ref(&self.snapshot.commit);
        stored.map_err(|error| self.place.cannot_store("the revision", &error))
    }
}

impl Place<'_> {
    /// The snapshot in the cache: `refs/<revision>` names its commit, or the revision is one.
    pub(super) fn cached(&self) -> Option<Snapshot> {
        let repo = Repo::new(self.repo.to_owned(), self.kind).folder_name();
        let reference = self.hub.cache.join(repo).join("refs").join(self.revision);
        let commit =
            std::fs::read_to_string(reference).unwrap_or_else(|_| self.revision.to_owned());
        Some(self.snapshot(commit.trim())).filter(|snapshot| snapshot.dir.is_dir())
    }

    /// Asks the hub for the commit and its files.
    pub(super) fn remote(&self) -> Result<Remote<'_>, HubError> {
        if self.hub.offline {
            return Err(HubError::Offline {
                what: self.name("a file"),
                cache: self.hub.cache.clone(),
            });
        }
        let info = self
            .info()
            .map_err(|error| self.explain("the list of files", error))?;
        let api = self
            .api(&info.sha)
            .map_err(|error| self.explain("the list of files", error))?;
        let files = info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect();
        Ok(Remote {
            place: self,
            api,
            snapshot: self.snapshot(&info.sha),
            files,
        })
    }

    fn info(&self) -> Result<RepoInfo, ApiError> {
        let request = self.api(self.revision)?.info_request();
        let mut answer = request
            .config()
            .timeout_global(Some(PATIENCE))
            .build()
            .call()
            .map_err(Box::new)?;
        Ok(answer.body_mut().read_json().map_err(Box::new)?)
    }

    fn api(&self, revision: &str) -> Result<ApiRepo, ApiError> {
        let api = ApiBuilder::from_cache(Cache::new(self.hub.cache.clone()))
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.clone())
            .build()?;
        Ok(api.repo(self.at(revision)))
    }

    fn cache(&self, revision: &str) -> CacheRepo {
        Cache::new(self.hub.cache.clone()).repo(self.at(revision))
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.to_owned(), self.kind, revision.to_owned())
    }

    fn snapshot(&self, commit: &str) -> Snapshot {
        Snapshot {
            dir: self.cache(commit).pointer_path(commit),
            commit: commit.to_owned(),
        }
    }

    pub(super) fn lacks(&self, needed: &str) -> HubError {
        match self.kind {
            RepoType::Model => HubError::Unsuitable {
                what: self.name("the model"),
                needed: needed.to_owned(),
            },
            _ => HubError::NotFound {
                what: self.name(&format!("the file `{needed}`")),
                page: self.page(),
            },
        }
    }

    fn page(&self) -> String {
        format!("{}/{}", self.hub.endpoint, self.at(self.revision).url())
    }

    /// For messages: the file `x.csv` of the data set `a/b` at `main`.
    fn name(&self, what: &str) -> String {
        match self.kind {
            RepoType::Model => format!("{what} of `{}` at `{}`", self.repo, self.revision),
            RepoType::Dataset | RepoType::Space => format!(
                "{what} of the data set `{}` at `{}`",
                self.repo, self.revision
            ),
        }
    }

    fn cannot_store(&self, what: &str, problem: &io::Error) -> HubError {
        let (what, cache) = (self.name(what), self.hub.cache.clone());
        HubError::Cache {
            what,
            cache,
            problem: problem.to_string(),
        }
    }

    /// The crate's error as a sentence.
    fn explain(&self, what: &str, error: ApiError) -> HubError {
        let (what_named, page) = (self.name(what), self.page());
        let problem = match error {
            ApiError::LockAcquisition(_) => return HubError::Busy { what: what_named },
            ApiError::IoError(error) if !is_network(&error) => {
                return self.cannot_store(what, &error);
            }
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(401) if self.hub.token.is_none() => {
                    return HubError::NoToken {
                        what: what_named,
                        page,
                    };
                }
                ureq::Error::StatusCode(status @ (401 | 403)) => {
                    return HubError::Refused {
                        what: what_named,
                        page,
                        status,
                    };
                }
                ureq::Error::StatusCode(404) => {
                    return HubError::NotFound {
                        what: what_named,
                        page,
                    };
                }
                ureq::Error::StatusCode(status) => {
                    return HubError::Status {
                        what: what_named,
                        status,
                    };
                }
                other => other.to_string(),
            },
            other => other.to_string(),
        };
        let (endpoint, cache) = (self.hub.endpoint.clone(), self.hub.cache.clone());
        HubError::NoAnswer {
            what: what_named,
            endpoint,
            problem,
            cache,
        }
    }
}

/// Whether an I/O error during a download came from the connection and not from the disk.
fn is_network(error: &io::Error) -> bool {
    let kinds = [
        ErrorKind::ConnectionReset,
        ErrorKind::ConnectionAborted,
        ErrorKind::ConnectionRefused,
        ErrorKind::BrokenPipe,
        ErrorKind::UnexpectedEof,
        ErrorKind::TimedOut,
    ];
    kinds.contains(&error.kind())
        || error
            .get_ref()
            .is_some_and(|inner| inner.is::<ureq::Error>())
}

/// Hands the crate's progress on, and keeps the size.
struct Forward<'p> {
    progress: &'p mut dyn DownloadProgress,
    size: &'p mut u64,
}

impl Progress for Forward<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        *self.size = size as u64;
        self.progress.started(filename, *self.size);
    }

    fn update(&mut self, size: usize) {
        self.progress.advanced(size as u64);
    }

    fn finish(&mut self) {
        self.progress.finished();
    }
}
