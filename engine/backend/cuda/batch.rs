//! A packed batch on the GPU: every table that kernels look up, copied over at once.
//!
//! Invariant: all tables are of 32-bit words and lie in one buffer, each at a multiple of 16 bytes.

use crate::backend::Packed;
use medft_kernels::attention::{self, Work, Works};
use medft_kernels::decode::Place;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::{LaunchError, Ptr};
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of attention's tiles: each kernel takes the list of its size.
const TILES: [usize; 2] = [64, 128];

/// Buffers of earlier batches, used again: once the largest batch was seen, a step allocates nothing.
pub type Pool = Arc<Mutex<Vec<Buffer<u32>>>>;

/// A batch that kernels can read.
pub struct Batch {
    /// As the engine made it.
    pub packed: Packed,
    /// Token ids, `[T]`.
    pub ids: Ptr<u32>,
    /// Position of each row in its sequence, `[T]`.
    pub positions: Ptr<u32>,
    /// One more than the largest position.
    pub context: usize,
    /// Rows with a target, `[targets]`, and their tokens.
    pub target_rows: Ptr<u32>,
    /// The tokens that should follow them.
    pub target_ids: Ptr<u32>,
    /// Sequences as the KV cache sees them.
    pub places: Ptr<Place>,
    /// Whether every sequence has one new token behind what the cache holds.
    pub decoding: bool,
    works: [Works; TILES.len()],
    memory: Option<Buffer<u32>>,
    pool: Pool,
}

impl Batch {
    /// Copies the batch's tables to the GPU.
    pub fn upload(device: &Device, pool: &Pool, packed: Packed) -> Result<Self, LaunchError> {
        let positions: Vec<u32> = packed
            .sequences
            .iter()
            .flat_map(|s| s.past..s.past + s.len)
            .map(|p| p as u32)
            .collect();
        let context = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let places: Vec<Place> = packed
            .sequences
            .iter()
            .map(|s| Place {
                slot: s.slot as u32,
                past: s.past as u32,
                start: s.start as u32,
                length: s.len as u32,
            })
            .collect();
        let lengths: Vec<usize> = packed.sequences.iter().map(|s| s.len).collect();
        let lists = TILES.map(|tile| attention::work(&lengths, tile));
        let target_rows: Vec<u32> = packed.targets.iter().map(|t| t.row as u32).collect();
        let target_ids: Vec<u32> = packed.targets.iter().map(|t| t.id).collect();

        let mut tables = Tables::default();
        let ids = tables.push(&packed.ids);
        let positions = tables.push(&positions);
        let target_rows = tables.push(&target_rows);
        let target_ids = tables.push(&target_ids);
        let places = tables.push(bytemuck::cast_slice(&places));
        let works = lists
            .each_ref()
            .map(|list| tables.push(bytemuck::cast_slice(list)));

        let memory = take(device, pool, tables.words.len())?;
        let start = memory.ptr();
        device.write(start, &tables.words)?;
        Ok(Batch {
            ids: start.at(ids),
            positions: start.at(positions),
            context,
            target_rows: start.at(target_rows),
            target_ids: start.at(target_ids),
            places: start.at(places).cast(),
            decoding: packed.sequences.iter().all(|s| s.len == 1 && s.past > 0),
            works: std::array::from_fn(|i| Works {
                items: start.at(works[i]).cast::<Work>(),
                len: lists[i].len(),
                tile: TILES[i],
            }),
            packed,
            memory: Some(memory),
            pool: pool.clone(),
        })
    }

    /// Attention's work list in tiles of this many rows.
    pub fn works(&self, tile: usize) -> Result<Works, LaunchError> {
        let found = self.works.iter().find(|w| w.tile == tile).copied();
        found.ok_or_else(|| {
            LaunchError::Unsupported(format!("no work list in tiles of {tile} rows"))
        })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Later batches write to it behind everything that reads it now: there is one stream.
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.extend(self.memory.take());
    }
}

/// Tables on their way into one buffer.
#[derive(Default)]
struct Tables {
    words: Vec<u32>,
}

impl Tables {
    /// Appends a table; gives its first word.
    fn push(&mut self, table: &[u32]) -> usize {
        let at = self.words.len();
        self.words.extend_from_slice(table);
        self.words
            .resize(self.words.len().next_multiple_of(4).max(4), 0);
        at
    }
}

/// The smallest pooled buffer that is large enough, or a new one.
fn take(device: &Device, pool: &Pool, len: usize) -> Result<Buffer<u32>, LaunchError> {
    let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
    let fitting = (0..pool.len()).filter(|i| pool[*i].len() >= len);
    match fitting.min_by_key(|i| pool[*i].len()) {
        Some(i) => Ok(pool.swap_remove(i)),
        None => device.alloc(len.next_power_of_two()),
    }
}
