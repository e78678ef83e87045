//! Passes as CUDA graphs: hundreds of launches become one. Decoding steps and a training's passes alike.
//!
//! A pass is run as it is the first two times that its kind comes (kernels are loaded), recorded the third time and replayed from then on.
//! Invariant: everything in a record that changes from pass to pass is read from device memory; what cannot be is in its [`Key`].

use super::{Batch, Cache, Cuda, lock};
use medft_kernels::LaunchError;
use medft_kernels::device::Graph;
use std::collections::HashMap;

/// Passes of a kind before it is recorded.
const WARM: u32 = 2;

/// Kinds that are recorded at most: the first to come a third time are the frequent ones. The driver keeps some kilobytes a launch.
const MOST: usize = 64;

/// What a record is good for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    targets: usize,
    /// Of attention's work lists.
    entries: [usize; 2],
    /// Tokens that attention over the cache expects at most.
    longest: usize,
    /// Where the batch's tables, RoPE's table and the scratch memory lie.
    addresses: [u64; 3],
}

/// The kinds of passes seen so far.
#[derive(Default)]
pub struct Recording {
    seen: HashMap<Key, Seen>,
    graphs: usize,
}

enum Seen {
    Times(u32),
    Recorded(Graph),
}

impl Cuda {
    /// Runs a pass's ops, or replays them.
    pub(super) fn recorded(
        &self,
        recording: &mut Recording,
        batch: &Batch,
        cache: Option<&mut Cache>,
        ops: impl FnOnce(Option<&mut Cache>),
    ) {
        let key = Key {
            rows: batch.packed.tokens(),
            targets: batch.packed.targets.len(),
            entries: batch.entries(),
            longest: cache.as_ref().map_or(0, |cache| cache.longest(batch)),
            addresses: [
                batch.ids.address(),
                lock(&self.0.rope).address(),
                self.scratch().address(),
            ],
        };
        let seen = recording.seen.entry(key).or_insert(Seen::Times(0));
        match seen {
            Seen::Times(times) if *times < WARM || recording.graphs == MOST => {
                *times += 1;
                ops(cache);
            }
            Seen::Times(_) => match self.0.device.record(|| {
                ops(cache);
                Ok::<(), LaunchError>(())
            }) {
                Ok(graph) => {
                    self.attempt(|| graph.launch());
                    *seen = Seen::Recorded(graph);
                    recording.graphs += 1;
                }
                Err(e) => self.attempt(|| Err(e)),
            },
            Seen::Recorded(graph) => {
                if let Some(cache) = cache {
                    cache.note(batch);
                }
                self.attempt(|| graph.launch());
            }
        }
    }
}
