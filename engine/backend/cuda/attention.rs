//! Attention inside a batch and over the KV cache: the Hopper kernels where they take the shape, else the portable ones.

use super::memory::{Act, Float};
use super::{Batch, Cuda};
use crate::backend::Heads;
use half::bf16;
use medft_kernels::attention::{self, Backward, Forward, Rope};
use medft_kernels::decode::{self, Cached, Compact};
use medft_kernels::device::{Buffer, Device};
use medft_kernels::{LaunchError, Launcher, Ptr, attention_hopper};

/// Positions that are stored together: a slot's capacity is a multiple of it.
pub const PAGE: usize = 64;

/// Keys and values of all layers, `[layer, slot, key head, capacity, dim]` each.
pub struct Cache {
    keys: Buffer<bf16>,
    values: Buffer<bf16>,
    layers: usize,
    slots: usize,
    capacity: usize,
    heads: attention::Heads,
    /// Tokens in each slot.
    lengths: Vec<u32>,
    /// What a move reads: slots to keep, and their lengths.
    table: Buffer<u32>,
}

/// Heads as the kernels see them.
pub fn kernel_heads(heads: &Heads) -> attention::Heads {
    attention::Heads {
        queries: heads.queries,
        keys: heads.keys,
        dim: heads.dim,
        window: heads.window.map(|w| w as u32),
    }
}

fn scale(heads: &Heads) -> f32 {
    (1.0 / (heads.dim as f64).sqrt()) as f32
}

impl Cache {
    /// Room for `slots` sequences of `capacity` tokens.
    pub fn new(
        device: &Device,
        layers: usize,
        slots: usize,
        capacity: usize,
        shape: &Heads,
    ) -> Result<Self, LaunchError> {
        let capacity = capacity.next_multiple_of(PAGE);
        let len = layers * slots * shape.keys * capacity * shape.dim;
        Ok(Cache {
            keys: device.alloc(len)?,
            values: device.alloc(len)?,
            layers,
            slots,
            capacity,
            heads: kernel_heads(shape),
            lengths: vec![0; slots],
            table: device.alloc(2 * slots)?,
        })
    }

    /// Moves slot `keep[i]` to `i`.
    pub fn compact(&mut self, device: &Device, keep: &[usize]) -> Result<(), LaunchError> {
        self.lengths = keep.iter().map(|slot| self.lengths[*slot]).collect();
        let keep: Vec<u32> = keep.iter().map(|slot| *slot as u32).collect();
        device.write(self.table.ptr(), &keep)?;
        device.write(self.table.ptr().at(self.slots), &self.lengths)?;
        let compact = Compact {
            heads: self.heads,
            cache: self.of_layer(0),
            layers: self.layers,
            layer_stride: self.layer_stride(),
            keep: self.table.ptr(),
            lengths: self.table.ptr().at(self.slots),
            count: keep.len(),
        };
        decode::compact(device, &compact)
    }

    /// Takes down how long the batch makes its sequences.
    pub fn note(&mut self, batch: &Batch) {
        for s in &batch.packed.sequences {
            self.lengths[s.slot] = (s.past + s.len) as u32;
        }
    }

    /// Tokens that the kernels are to expect at most: whole chunks, so that a recorded step serves until the next chunk begins.
    pub fn longest(&self, batch: &Batch) -> usize {
        batch
            .context
            .next_multiple_of(decode::CHUNK)
            .min(self.capacity)
    }

    /// Elements of one layer's keys.
    fn layer_stride(&self) -> usize {
        self.slots * self.heads.keys * self.capacity * self.heads.dim
    }

    fn of_layer(&self, layer: usize) -> decode::Cache {
        let at = layer * self.layer_stride();
        decode::Cache {
            keys: self.keys.ptr().at(at),
            values: self.values.ptr().at(at),
            capacity: self.capacity,
        }
    }
}

impl Cuda {
    pub(super) fn attend(
        &self,
        shape: &Heads,
        batch: &Batch,
        qkv: &Act,
        out: Ptr<bf16>,
        lse: Ptr<f32>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let hopper = attention_hopper::supports(d.gpu(), &kernel_heads(shape));
        let forward = Forward {
            heads: kernel_heads(shape),
            tokens: batch.packed.tokens(),
            work: batch.works(if hopper {
                attention_hopper::TILE
            } else {
                attention::FORWARD_TILE
            })?,
            qkv: qkv.ptr(),
            scale: scale(shape),
            out,
            lse,
        };
        if hopper {
            attention_hopper::forward(d, &forward)
        } else {
            attention::forward(d, &forward)
        }
    }

    pub(super) fn attend_backward(
        &self,
        shape: &Heads,
        batch: &Batch,
        qkv: &Act,
        out: &Act,
        lse: &Float,
        dout: &Act,
        dqkv: &mut Act,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let tokens = batch.packed.tokens();
        let mut scratch = self.scratch();
        let [delta] = scratch.take([4 * shape.queries * tokens])?;
        let hopper = attention_hopper::supports(d.gpu(), &kernel_heads(shape));
        let backward = Backward {
            heads: kernel_heads(shape),
            tokens,
            work: batch.works(if hopper {
                attention_hopper::TILE
            } else {
                attention::BACKWARD_TILE
            })?,
            qkv: qkv.ptr(),
            scale: scale(shape),
            out: out.ptr(),
            lse: lse.ptr(),
            dout: dout.ptr(),
            delta: delta.cast(),
            rope: Some(Rope {
                table: self.rope(shape, batch.context)?,
                positions: batch.positions,
            }),
            dqkv: dqkv.ptr(),
        };
        if hopper {
            attention_hopper::backward(d, &backward)
        } else {
            attention::backward(d, &backward)
        }
    }

    pub(super) fn attend_cached(
        &self,
        shape: &Heads,
        batch: &Batch,
        layer: usize,
        cache: &mut super::Cache,
        qkv: &Act,
        out: &mut Act,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let sequences = &batch.packed.sequences;
        if layer == 0 {
            cache.note(batch);
        }
        let heads = cache.heads;
        let longest = cache.longest(batch);
        let mut scratch = self.scratch();
        let partial = 4 * decode::scratch_len(&heads, sequences.len(), longest);
        let [partial, lse] = scratch.take([partial, 4 * shape.queries * batch.packed.tokens()])?;
        let cached = Cached {
            heads,
            scale: scale(shape),
            tokens: batch.packed.tokens(),
            qkv: qkv.ptr(),
            places: batch.places,
            sequences: sequences.len(),
            longest_new: sequences.iter().map(|s| s.len).max().unwrap_or(0),
            longest,
            cache: cache.of_layer(layer),
            work: batch.works(attention::FORWARD_TILE)?,
            partial: partial.cast(),
            out: out.ptr(),
        };
        if sequences.iter().all(|s| s.past == 0) {
            // Nothing is cached yet: the rows attend to the batch itself.
            decode::append(d, &cached)?;
            return self.attend(shape, batch, qkv, out.ptr(), lse.cast());
        }
        decode::append_and_attend(d, &cached)
    }
}
