//! How often the host asked for memory or waited: a step of training or decoding must do neither.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a device was asked for since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Memory reserved or freed, on the device or page-locked.
    pub allocations: u64,
    /// Graphs made: the driver keeps some memory for each.
    pub graphs: u64,
    /// Calls that wait for the GPU, or may: copies from pageable memory do where they are large.
    pub waits: u64,
    /// Time spent in them.
    pub waited: Duration,
    /// Kernels and graphs launched.
    pub launches: u64,
}

/// The counters while they count.
#[derive(Default)]
pub(super) struct Counting {
    allocations: AtomicU64,
    graphs: AtomicU64,
    waits: AtomicU64,
    waited: AtomicU64,
    launches: AtomicU64,
}

impl Counting {
    pub fn now(&self) -> Counters {
        Counters {
            allocations: self.allocations.load(Relaxed),
            graphs: self.graphs.load(Relaxed),
            waits: self.waits.load(Relaxed),
            waited: Duration::from_nanos(self.waited.load(Relaxed)),
            launches: self.launches.load(Relaxed),
        }
    }

    pub fn allocation(&self) {
        self.allocations.fetch_add(1, Relaxed);
    }

    pub fn graph(&self) {
        self.graphs.fetch_add(1, Relaxed);
    }

    pub fn launch(&self) {
        self.launches.fetch_add(1, Relaxed);
    }

    /// Counts and times a call that waits.
    pub fn wait<T>(&self, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = call();
        self.waits.fetch_add(1, Relaxed);
        self.waited
            .fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
        result
    }
}
