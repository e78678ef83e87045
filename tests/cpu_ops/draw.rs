//! Random inputs: values, ragged packs, and the flat buffer of trained values.
//!
//! Invariant: a seed and a shape give the same numbers, so a failing case can be run again.

use crate::near::TAIL;
use medft_engine::backend::{Packed, Slot};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of values.
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Draw(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[-size, size]`, one in sixteen zero.
    pub fn values(&mut self, len: usize, size: f32) -> Vec<f32> {
        let mut one = || {
            let value = self.0.random_range(-size..=size);
            if self.0.random_ratio(1, 16) {
                0.0
            } else {
                value
            }
        };
        (0..len).map(|_| one()).collect()
    }

    /// [`Draw::values`] with the tail that nobody may read.
    pub fn buffer(&mut self, len: usize, size: f32) -> Vec<f32> {
        let mut values = self.values(len, size);
        values.resize(len + TAIL, f32::NAN);
        values
    }

    /// Below `end`.
    pub fn index(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// Token ids below `vocab`.
    pub fn ids(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        (0..len).map(|_| self.index(vocab) as u32).collect()
    }
}

/// What an op must overwrite.
pub fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len + TAIL]
}

/// Sequence lengths of a pack: ones, odd ones, and the edges of blocks of 64.
pub fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let one = prop_oneof![
        Just(1),
        2usize..20,
        prop::sample::select(vec![63, 64, 65, 127, 128, 129])
    ];
    prop::collection::vec(one, 1..4)
}

/// Columns: small, odd, around 64 and 128, no multiple of 16.
pub fn columns() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 2, 7, 16, 33, 63, 64, 65, 100, 128, 129, 200])
}

/// Sequences without a past, of random tokens.
pub fn pack(draw: &mut Draw, lengths: &[usize], vocab: usize) -> Packed {
    let mut packed = Packed::default();
    for (slot, len) in lengths.iter().enumerate() {
        packed.push(&draw.ids(*len, vocab), 0, slot);
    }
    packed
}

/// Trained values or their gradients: slots with NaN between them.
#[derive(Clone, Default)]
pub struct Flat {
    /// The whole buffer.
    pub values: Vec<f32>,
    slots: Vec<Slot>,
}

impl Flat {
    /// Appends a tensor.
    pub fn push(&mut self, values: Vec<f32>) -> Slot {
        self.values.extend([f32::NAN; 3]);
        let slot = Slot {
            offset: self.values.len(),
            len: values.len(),
        };
        self.values.extend(values);
        self.slots.push(slot);
        slot
    }

    /// The same slots with other values.
    pub fn redrawn(&self, draw: &mut Draw) -> Flat {
        let mut other = Flat::default();
        for slot in &self.slots {
            other.push(draw.values(slot.len, 1.0));
        }
        other
    }

    /// A tensor.
    pub fn at(&self, slot: Slot) -> &[f32] {
        &self.values[slot.offset..slot.offset + slot.len]
    }

    /// Whether nothing was written between the slots.
    pub fn gaps_are_poisoned(&self) -> bool {
        let gap = |slot: &Slot| self.values[slot.offset - 3..slot.offset].iter();
        self.slots.iter().flat_map(gap).all(|v| v.is_nan())
    }
}
