//! What a backend can fail at, as sentences for people.

/// Why a backend could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The tensor's numbers cannot be used.
    #[error("{file}: tensor `{tensor}` {problem}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The device has too little memory.
    #[error(
        "{what} needs {} on {device} and {} are free; {remedies}",
        gib(*.needed),
        gib(*.free)
    )]
    OutOfMemory {
        /// The device's name, "GPU 0".
        device: String,
        /// What the memory is for, "the activations of a batch".
        what: &'static str,
        /// Bytes asked for.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// What to do about it: "set `precision = nf4` or end other programs".
        remedies: String,
    },
    /// The device or its driver failed.
    #[error("{doing}: {message}")]
    Device {
        /// What was being done.
        doing: String,
        /// What the driver said.
        message: String,
    },
    /// Nothing is left to choose from.
    #[error(
        "no next token: none of {vocab} logits is a usable number (they are NaN, infinite or masked); check the weights with `medft-engine score`"
    )]
    NoToken {
        /// Length of the row.
        vocab: usize,
    },
}

impl BackendError {
    /// Whether weights or settings are to be changed, rather than that the device failed.
    pub fn is_input(&self) -> bool {
        match self {
            BackendError::Tensor { .. }
            | BackendError::NoToken { .. }
            | BackendError::OutOfMemory { .. } => true,
            BackendError::Device { .. } => false,
        }
    }
}

/// Bytes for people.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_a_sentence_with_two_remedies() {
        let error = BackendError::OutOfMemory {
            device: "GPU 0".into(),
            what: "a training pass",
            needed: (27.4 * 1024f64.powi(3)) as u64,
            free: (22.1 * 1024f64.powi(3)) as u64,
            remedies: "set `micro_batch = auto` or `precision = nf4`".into(),
        };
        assert_eq!(
            error.to_string(),
            "a training pass needs 27.4 GiB on GPU 0 and 22.1 GiB are free; set `micro_batch = auto` or `precision = nf4`"
        );
        assert!(error.is_input());
    }
}
