//! One revision of one repository: its place in the cache and its files on the hub.
//!
//! Wraps `hf-hub`, and with `download` is the only file that names it besides the repository's type. It
//! refuses to trust a download's bytes. Invariant: files are fetched by commit, so one snapshot
//! folder never mixes two revisions.

use super::digest::{Digest, differs};
use super::download::{Broken, download};
use super::{DownloadProgress, Hub, HubError, Snapshot};
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
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
    api: Arc<ApiRepo>,
    /// A download without a byte for so long has stalled.
    patience: Duration,
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
        let store = |error| self.place.cannot_store(&what, &error);
        let mut size = 0;
        // Not the crate's own retries: after a connection that fails at once they begin at byte 0
        // of a file that already has bytes. Each call of ours takes the place from the file.
        let mut retries = RETRIES;
        let path = loop {
            match download(&self.api, file, self.patience, progress, &mut size) {
                Ok(path) => break path,
                Err(Broken::Hub(ApiError::IoError(error))) if retries > 0 && is_network(&error) => {
                    retries -= 1;
                }
                Err(Broken::Hub(error)) if retries > 0 && cannot_continue(&error) => {
                    retries = 0;
                    self.begin_anew(file)
                        .map_err(|e| self.place.explain(&what, e))?;
                }
                Err(Broken::Hub(error)) => return Err(self.place.explain(&what, error)),
                Err(Broken::Stalled) => {
                    return Err(HubError::Stalled {
                        what: self.place.name(&what),
                        seconds: self.patience.as_secs_f64(),
                    });
                }
            }
        };
        // The crate appends whatever comes, also if a proxy cut it or ignored where to begin.
        let blob = path.canonicalize().map_err(store)?;
        let found = blob.metadata().map_err(store)?.len();
        let problem = if found != size {
            Some(format!("{found} bytes instead of {size}"))
        } else {
            match Digest::named_by(&blob) {
                Some(digest) => differs(&digest, &blob).map_err(store)?,
                None => None,
            }
        };
        let Some(problem) = problem else {
            return Ok(path);
        };
        for stale in [blob, path] {
            std::fs::remove_file(stale).map_err(store)?;
        }
        Err(HubError::Damaged {
            what: self.place.name(&what),
            problem,
        })
    }

    /// Removes what an earlier download of the file left, since it cannot be continued.
    fn begin_anew(&self, file: &str) -> Result<(), ApiError> {
        let place = self.place;
        let found = place.client()?.metadata(&self.api.url(file))?;
        let cache = place.cache(&self.snapshot.commit);
        let part = cache.blob_path(found.etag()).with_extension("part");
        Ok(std::fs::remove_file(part)?)
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

    /// A file in the cache.
    pub(super) fn cached_file(&self, file: &str) -> Option<PathBuf> {
        let path = self.cached()?.dir.join(file);
        path.exists().then_some(path)
    }

    /// Asks the hub for the commit and its files.
    pub(super) fn remote(&self) -> Result<Remote<'_>, HubError> {
        if self.hub.offline {
            return Err(HubError::Offline {
                what: self.name("a file"),
                cache: self.hub.cache.clone(),
            });
        }
        let patience = self.hub.patience()?;
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
            api: Arc::new(api),
            patience,
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
        Ok(self.client()?.repo(self.at(revision)))
    }

    fn client(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.hub.cache.clone()))
            .with_endpoint(self.hub.endpoint.clone())
            .with_token(self.hub.token.clone())
            .build()
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

/// Whether what an earlier download left is at least as long as the file: killed between its last byte and its renaming,
/// or of something else.
fn cannot_continue(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(error) => matches!(**error, ureq::Error::StatusCode(416)),
        _ => false,
    }
}
