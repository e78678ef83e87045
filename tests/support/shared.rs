//! Where the founders' files lie: the one way to them, for tests of the crate and beside it.

use std::path::{Path, PathBuf};

/// A path in ../shared, or `None` with a line on stderr where it is not there.
#[allow(dead_code, clippy::print_stderr)]
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("MEDFT_SHARED")
        .map_or_else(beside, PathBuf::from)
        .join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there; set MEDFT_SHARED", path.display());
    None
}
