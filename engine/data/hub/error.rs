//! What can go wrong between the engine and the hub, in sentences with a way out.
//!
//! Invariant: every message names the repository, and the page, folder or variable to look at.

use std::path::PathBuf;

/// What can go wrong with the hub.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum HubError {
    #[error("cannot download {what}: the hub at {endpoint} does not answer ({problem}); check the connection, HTTPS_PROXY and HF_ENDPOINT, or put the files into {}", cache.display())]
    NoAnswer {
        what: String,
        endpoint: String,
        problem: String,
        cache: PathBuf,
    },
    #[error(
        "cannot download {what}: the hub wants to know who asks (401) and there is no token; open {page}, accept the licence if there is one, make a token at https://huggingface.co/settings/tokens and set HF_TOKEN (a misspelt name gets this answer, too)"
    )]
    NoToken { what: String, page: String },
    #[error(
        "cannot download {what}: the hub refuses the token ({status}); accept the licence on {page} with the account of the token in HF_TOKEN, and see that the token may read gated repositories"
    )]
    Refused {
        what: String,
        page: String,
        status: u16,
    },
    #[error("{what} is not on the hub (404); check its name, file and revision on {page}")]
    NotFound { what: String, page: String },
    #[error("cannot download {what}: the hub answers with status {status}; try again later")]
    Status { what: String, status: u16 },
    #[error("{what} is not in the cache {} and HF_HUB_OFFLINE is set; unset it, or download the files where there is a connection", cache.display())]
    Offline { what: String, cache: PathBuf },
    #[error(
        "{what} has no {needed}; this engine reads Hugging Face checkpoints with safetensors weights and a tokenizer.json"
    )]
    Unsuitable { what: String, needed: String },
    #[error("cannot store {what} in {}: {problem}; check that it is writable and the disk has room", cache.display())]
    Cache {
        what: String,
        cache: PathBuf,
        problem: String,
    },
    #[error("{what} arrived damaged ({problem}) and was deleted; run again to download it anew")]
    Damaged { what: String, problem: String },
    #[error(
        "cannot download {what}: no byte came for {seconds} s; check the connection and run again, which goes on from where it stopped (MEDFT_HUB_TIMEOUT sets the seconds)"
    )]
    Stalled { what: String, seconds: f64 },
    #[error("MEDFT_HUB_TIMEOUT is `{found}`; a number of seconds above 0 was expected, such as 60")]
    Timeout { found: String },
    #[error("another process is downloading {what}; wait for it, then run again")]
    Busy { what: String },
}
