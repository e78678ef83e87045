//! How many bytes of GPU memory are reserved, and how many were at most.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts what is reserved and freed.
#[derive(Default)]
pub(super) struct Usage {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Usage {
    pub fn reserved(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(now, Relaxed);
    }

    pub fn freed(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Relaxed);
    }

    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// The peak is what is reserved now.
    pub fn forget(&self) {
        self.peak.store(self.now.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Usage;

    #[test]
    fn the_peak_stays_until_it_is_forgotten() {
        let usage = Usage::default();
        usage.reserved(5);
        usage.reserved(7);
        usage.freed(5);
        assert_eq!(usage.peak(), 12);
        usage.forget();
        assert_eq!(usage.peak(), 7);
        usage.reserved(2);
        assert_eq!(usage.peak(), 9);
    }
}
