//! A packed batch on the GPU: every table that kernels look up, copied over at once from page-locked memory.
//!
//! Invariants: all tables are of 32-bit words and lie in one buffer, each at a multiple of 16 bytes. A training's batch is filled up to sizes
//! that come again, so that a recorded pass serves for many batches.

use crate::backend::{Packed, Pass, ROWS, Target};
use bytemuck::{Pod, Zeroable};
use medft_kernels::attention::{self, Work, Works};
use medft_kernels::cross_entropy::NO_TARGET;
use medft_kernels::decode::Place;
use medft_kernels::device::{Buffer, Device, Pinned};
use medft_kernels::linear::StepState;
use medft_kernels::{LaunchError, Ptr};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rows of attention's tiles: each kernel takes the list of its size.
const TILES: [usize; 2] = [64, 128];

/// Targets and entries of work lists are filled up to multiples of these. A row of logits costs some microseconds at most, an entry less.
const TARGETS: usize = 64;
const WORKS: usize = 16;

/// Copies on their way to the GPU: the host prepares so many batches before it waits for the first, and the GPU has work until then.
const STAGES: usize = 32;

/// Memory of batches, used again: once the largest is known, nothing is allocated.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    /// Words of each.
    words: usize,
    /// On the GPU, those that no batch holds. Later batches write to them behind everything that reads them now: there is one stream.
    device: Vec<Buffer<u32>>,
    /// Page-locked, in the order of their use.
    stages: VecDeque<Pinned<u32>>,
}

impl Memory {
    fn reserve(&mut self, device: &Device, words: usize) -> Result<(), LaunchError> {
        if self.words >= words {
            return Ok(());
        }
        let words = words.next_power_of_two();
        // What is smaller goes first; where this fails, nothing is there and it is asked for again.
        *self = Memory::default();
        let on_device = vec![device.alloc(words)?];
        let stages = (0..STAGES).map(|_| Pinned::zeros(device, words));
        *self = Memory {
            words,
            stages: stages.collect::<Result<_, _>>()?,
            device: on_device,
        };
        Ok(())
    }

    /// Copies `from` to the GPU while the host goes on.
    fn copy(&mut self, from: &[u32], to: Ptr<u32>) -> Result<(), LaunchError> {
        let Some(mut stage) = self.stages.pop_front() else {
            return Ok(());
        };
        let staged = stage
            .as_mut_slice()
            .map(|words| words[..from.len()].copy_from_slice(from));
        let copied = staged.and_then(|()| stage.copy(0..from.len(), to));
        self.stages.push_back(stage);
        copied
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for batches of so many words.
    pub fn reserve(&self, device: &Device, words: usize) -> Result<(), LaunchError> {
        self.lock().reserve(device, words)
    }

    /// Copies words to the GPU, behind what it is doing, while the host goes on.
    pub fn copy(&self, device: &Device, from: &[u32], to: Ptr<u32>) -> Result<(), LaunchError> {
        let mut memory = self.lock();
        memory.reserve(device, from.len())?;
        memory.copy(from, to)
    }
}

/// Words of the tables of a batch of at most so many tokens and targets, filled up.
pub fn words(tokens: usize, targets: usize) -> usize {
    let (tokens, targets) = filled(tokens, targets);
    let lists = TILES.map(|tile| 4 * (tokens.div_ceil(tile) + tokens + WORKS));
    // Ids, positions and places; a multiple of 4 words each.
    2 * tokens + 2 * targets + 4 * tokens + lists.iter().sum::<usize>() + 4 * 8
}

/// Tokens and targets of a training's batch, filled up.
pub fn filled(tokens: usize, targets: usize) -> (usize, usize) {
    (
        tokens.next_multiple_of(ROWS),
        targets.next_multiple_of(TARGETS),
    )
}

/// Fills a batch up: the rows are a sequence of their own without a target, so their gradient is 0; the targets repeat the last one's row, and
/// have no loss.
fn fill(packed: &mut Packed) {
    let (tokens, targets) = filled(packed.tokens(), packed.targets.len());
    if tokens > packed.tokens() {
        packed.push(&vec![0; tokens - packed.tokens()], 0, 0);
    }
    let row = packed.targets.last().map_or(0, |t| t.row);
    packed
        .targets
        .resize(targets, Target { row, id: NO_TARGET });
}

/// A batch that kernels can read.
pub struct Batch {
    /// As the engine made it, filled up.
    pub packed: Packed,
    /// What tells it from other passes.
    pub state: Ptr<StepState>,
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
    pub fn upload(device: &Device, pool: &Pool, mut packed: Packed) -> Result<Self, LaunchError> {
        if packed.pass.is_some() {
            fill(&mut packed);
        }
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
        let lists = TILES.map(|tile| {
            let mut list = attention::work(&lengths, tile);
            if packed.pass.is_some() {
                list.resize(list.len().next_multiple_of(WORKS), Zeroable::zeroed());
            }
            list
        });
        let target_rows: Vec<u32> = packed.targets.iter().map(|t| t.row as u32).collect();
        let target_ids: Vec<u32> = packed.targets.iter().map(|t| t.id).collect();

        let mut tables = Tables::default();
        let state = tables.push(&[state(packed.pass.unwrap_or_default())]);
        let ids = tables.push(&packed.ids);
        let positions = tables.push(&positions);
        let target_rows = tables.push(&target_rows);
        let target_ids = tables.push(&target_ids);
        let works = lists.each_ref().map(|list| tables.push(list));
        // Last, because their number differs between batches that are alike otherwise.
        let places = tables.push(&places);

        let mut pooled = pool.lock();
        pooled.reserve(device, tables.words.len())?;
        let memory = match pooled.device.pop() {
            Some(memory) => memory,
            None => device.alloc(pooled.words)?,
        };
        let start = memory.ptr();
        pooled.copy(&tables.words, start)?;
        drop(pooled);
        Ok(Batch {
            state: start.at(state).cast(),
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

    /// Entries of the work lists.
    pub fn entries(&self) -> [usize; TILES.len()] {
        self.works.map(|w| w.len)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut pool = self.pool.lock();
        let words = pool.words;
        pool.device
            .extend(self.memory.take().filter(|m| m.len() == words));
    }
}

fn state(pass: Pass) -> StepState {
    StepState {
        seed: pass.seed,
        step: pass.step,
        first_token: pass.first_token,
        first_target: pass.first_target as u32,
        loss_scale: pass.loss_scale,
    }
}

/// Tables on their way into one buffer.
#[derive(Default)]
struct Tables {
    words: Vec<u32>,
}

impl Tables {
    /// Appends a table of whole words; gives its first word.
    fn push<T: Pod>(&mut self, table: &[T]) -> usize {
        let at = self.words.len();
        self.words.extend_from_slice(bytemuck::cast_slice(table));
        self.words
            .resize(self.words.len().next_multiple_of(4).max(4), 0);
        at
    }
}
