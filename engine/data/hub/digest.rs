//! Whether a downloaded file is the one that the hub described.
//!
//! The cache names a blob by the hub's ETag, which is the SHA-256 of a file in LFS and git's own name (SHA-1) of a small one. Another
//! server may send another ETag: then there is nothing to check against, and only the size is known.

use ring::digest::{Algorithm, Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What a blob's name promises of its bytes.
pub(super) struct Digest {
    kind: &'static str,
    algorithm: &'static Algorithm,
    hex: String,
}

impl Digest {
    /// The promise in the name of a blob, if it is one.
    pub(super) fn named_by(blob: &Path) -> Option<Digest> {
        let hex = blob.file_name()?.to_str()?.to_ascii_lowercase();
        let (kind, algorithm) = match hex.len() {
            64 => ("SHA-256", &SHA256),
            40 => ("git SHA-1", &SHA1_FOR_LEGACY_USE_ONLY),
            _ => return None,
        };
        let is_hex = hex.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then_some(Digest {
            kind,
            algorithm,
            hex,
        })
    }
}

/// What is wrong with the bytes of `file`; nothing if they are those that were promised.
pub(super) fn differs(promised: &Digest, file: &Path) -> io::Result<Option<String>> {
    let mut stream = File::open(file)?;
    let mut context = Context::new(promised.algorithm);
    if promised.algorithm == &SHA1_FOR_LEGACY_USE_ONLY {
        context.update(format!("blob {}\0", stream.metadata()?.len()).as_bytes());
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => context.update(&buffer[..n]),
        }
    }
    let found = context.finish();
    let found: String = found.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let Digest { kind, hex, .. } = promised;
    Ok((found != *hex).then(|| format!("{kind} {found} instead of {hex}")))
}
