//! Decoding steps as CUDA graphs: some hundred launches become one.
//!
//! A step is run as it is the first two times (kernels are loaded, scratch grows to its size), recorded the third time and replayed from then on.
//! Invariant: everything in a record that changes from step to step is read from device memory; what cannot be is in its [`Key`].

use super::{Batch, Cache, Cuda, lock};
use medft_kernels::LaunchError;
use medft_kernels::device::Graph;
use std::collections::HashMap;

/// Steps of a kind before it is recorded.
const WARM: u32 = 2;

/// What a record is good for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Sequences of the batch.
    rows: usize,
    /// Tokens that attention expects at most.
    longest: usize,
    /// Where the batch's tables, RoPE's table and the scratch memory lie.
    addresses: [u64; 3],
}

/// The kinds of steps seen so far.
#[derive(Default)]
pub struct Recording {
    seen: HashMap<Key, Seen>,
}

enum Seen {
    Times(u32),
    Recorded(Graph),
}

impl Cuda {
    /// Runs a decoding step's ops, or replays them.
    pub(super) fn recorded(
        &self,
        recording: &mut Recording,
        batch: &Batch,
        cache: &mut Cache,
        ops: impl FnOnce(&mut Cache),
    ) {
        let key = Key {
            rows: batch.packed.sequences.len(),
            longest: cache.longest(batch),
            addresses: [
                batch.ids.address(),
                lock(&self.0.rope).address(),
                self.scratch().address(),
            ],
        };
        let seen = recording.seen.entry(key).or_insert(Seen::Times(0));
        match seen {
            Seen::Times(times) if *times < WARM => {
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
                }
                Err(e) => self.attempt(|| Err(e)),
            },
            Seen::Recorded(graph) => {
                cache.note(batch);
                self.attempt(|| graph.launch());
            }
        }
    }
}
