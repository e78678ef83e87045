//! Next tokens from logits: penalty, temperature, top-k, top-p, draw or greedy choice, as `engine/generate/sampler.rs` means them. `sample.cu`.
//!
//! A row's draw is a function of (seed, row, position) alone, and its sums are integers: its token does not depend on the rows beside it.

use crate::launch::{Geometry, Kernel, LaunchError, Launcher, Ptr};
use bytemuck::{Pod, Zeroable};

/// What [`choose`] writes for a row without a usable number.
pub const NO_TOKEN: u32 = u32::MAX;
/// Longest vocabulary.
pub const MAX_VOCAB: usize = 1 << 19;

/// Threads of a block.
const THREADS: u32 = 256;
/// Tokens of a block.
const CHUNK: usize = 4096;
/// Bins of a histogram, and histograms of a row.
const BINS: usize = 2048;
const HISTOGRAMS: usize = 5;
/// The stage after the histograms.
const MASS_STAGE: usize = HISTOGRAMS;
/// Bytes of a chunk's part and of a row's state.
const PART: usize = 24;
const STATE: usize = 64;

/// Settings of a decoding; the same for all rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Draw, or take the largest score (then only the penalty counts).
    pub sample: bool,
    /// Scores are divided by it.
    pub temperature: f32,
    /// Scores below the k-th largest are removed; 0: none.
    pub top_k: usize,
    /// The most probable tokens that reach it are kept; 1: all.
    pub top_p: f64,
    /// Seen tokens' scores are divided by it (multiplied, below 0).
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

/// Whose next token is chosen.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Row {
    /// The row's own number, whatever batch it is in.
    pub row: u64,
    /// Position of the token that is drawn.
    pub position: u32,
    /// First of its seen tokens in the flat list.
    pub seen_start: u32,
    /// Seen tokens, repeated or not; those outside the vocabulary are passed over.
    pub seen_len: u32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Row>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    logits: Ptr<f32>,
    rows: Ptr<Row>,
    seen: Ptr<u32>,
    out: Ptr<u32>,
    parts: u64,
    states: u64,
    masses: u64,
    counts: u64,
    done: u64,
    stride: u64,
    seed: u64,
    top_p: f64,
    penalty: f32,
    temperature: f32,
    vocab: u32,
    chunks: u32,
    top_k: u32,
    stage: u32,
    first: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Params>() == 128);

/// A batch of rows of logits.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Tokens.
    pub vocab: usize,
    /// `[rows, stride]`; become scores after penalty and temperature.
    pub logits: Ptr<f32>,
    /// Elements from one row to the next.
    pub stride: usize,
    /// `[rows]`.
    pub who: Ptr<Row>,
    /// Seen tokens of all rows.
    pub seen: Ptr<u32>,
}

/// Byte offsets in the scratch memory.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    states: usize,
    masses: usize,
    counts: usize,
    done: usize,
    bytes: usize,
}

fn layout(rows: usize, vocab: usize) -> Layout {
    let bins = rows * HISTOGRAMS * BINS;
    let states = rows * vocab.div_ceil(CHUNK) * PART;
    let masses = states + rows * STATE;
    let counts = masses + bins * 8;
    let done = counts + bins * 4;
    Layout {
        states,
        masses,
        counts,
        done,
        bytes: done + rows * (MASS_STAGE + 1) * 4,
    }
}

/// Bytes of scratch memory for so many rows; aligned to 16, contents unspecified.
pub fn scratch_bytes(rows: usize, vocab: usize) -> usize {
    layout(rows, vocab).bytes
}

fn geometry(blocks: usize) -> Geometry {
    Geometry {
        grid: [blocks as u32, 1, 1],
        block: THREADS,
        shared: 0,
    }
}

/// The histogram stages that the settings need.
fn stages(top_k: bool, top_p: bool) -> &'static [u32] {
    match (top_k, top_p) {
        (false, false) => &[],
        (true, false) => &[0, 1, 2],
        (false, true) => &[0, 3, 4],
        (true, true) => &[0, 1, 2, 3, 4],
    }
}

/// `out[i] =` the next token of row `i`, or [`NO_TOKEN`]; `scratch` holds [`scratch_bytes`].
///
/// # Errors
/// A vocabulary above [`MAX_VOCAB`], or the driver's refusal.
pub fn choose(
    l: &impl Launcher,
    batch: &Batch,
    settings: &Settings,
    scratch: Ptr<u8>,
    out: Ptr<u32>,
) -> Result<(), LaunchError> {
    let &Batch { rows, vocab, .. } = batch;
    if vocab > MAX_VOCAB || vocab == 0 {
        return Err(LaunchError::Unsupported(format!(
            "sampling from {vocab} tokens: the kernels take 1 to {MAX_VOCAB}"
        )));
    }
    let sample = settings.sample;
    let top_k = if sample && settings.top_k < vocab {
        settings.top_k as u32
    } else {
        0
    };
    let top_p = if sample && settings.top_p < 1.0 {
        settings.top_p
    } else {
        1.0
    };
    let stages = stages(top_k != 0, top_p < 1.0);
    let at = layout(rows, vocab);
    let histograms = |offset: usize| {
        if stages.is_empty() {
            0
        } else {
            scratch.at(offset).address()
        }
    };
    let chunks = vocab.div_ceil(CHUNK);
    let params = Params {
        logits: batch.logits,
        rows: batch.who,
        seen: batch.seen,
        out,
        parts: scratch.address(),
        states: scratch.at(at.states).address(),
        masses: histograms(at.masses),
        counts: histograms(at.counts),
        done: scratch.at(at.done).address(),
        stride: batch.stride as u64,
        seed: settings.seed,
        top_p,
        penalty: settings.repetition_penalty,
        temperature: if sample { settings.temperature } else { 1.0 },
        vocab: vocab as u32,
        chunks: chunks as u32,
        top_k,
        stage: 0,
        first: if stages.is_empty() {
            MASS_STAGE as u32
        } else {
            0
        },
        reserved: 0,
    };
    let launch = |name, blocks, stage| {
        let kernel = Kernel {
            family: "sample",
            name,
        };
        l.launch(kernel, geometry(blocks), &Params { stage, ..params })
    };
    launch("sample_scores", rows * chunks, 0)?;
    if !sample {
        return launch("sample_greedy", rows, 0);
    }
    for &stage in stages {
        launch("sample_histogram", rows * chunks, stage)?;
    }
    launch("sample_mass", rows * chunks, MASS_STAGE as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_laid_out_without_overlap_and_aligned() {
        let at = layout(3, 4097);
        assert_eq!(at.states, 3 * 2 * 24);
        assert_eq!(at.masses, at.states + 3 * 64);
        assert_eq!(at.counts, at.masses + 3 * 5 * 2048 * 8);
        assert_eq!(at.done, at.counts + 3 * 5 * 2048 * 4);
        assert_eq!(at.bytes, at.done + 3 * 6 * 4);
        assert!([at.states, at.masses, at.counts].iter().all(|x| x % 8 == 0));
    }

    #[test]
    fn the_first_histogram_is_shared() {
        assert_eq!(stages(true, true), [0, 1, 2, 3, 4]);
        assert_eq!(stages(false, true), [0, 3, 4]);
        assert!(stages(false, false).is_empty());
    }
}
