//! The op set on an NVIDIA GPU: bf16 activations, f32 sums and statistics, kernels of the crate `medft-kernels`.
//!
//! Ops enqueue kernels on one stream and return; the first error of any of them is kept and told by the next op that waits.
//! Invariant: nothing here waits for the GPU except `finish`, `read`, `sample` and loading.

mod attention;
mod batch;
pub mod facts;
mod head;
mod linear;
mod loader;
mod matrix;
mod memory;
mod ops;
mod recording;
mod rope;

use super::*;
use crate::backend::facts::Passes;
pub use attention::Cache;
pub use batch::Batch;
pub use loader::Loader;
use matrix::{LoadError, Matrix, Stored};
pub use medft_kernels::device::{Device, NoDevice};
use medft_kernels::linear as kernels;
use medft_kernels::{LaunchError, Launcher, Ptr, elementwise, sample};
use memory::{Act, Arena, Float, Scratch};
pub use recording::Recording;
use rope::RopeTable;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One GPU. A clone is the same one.
#[derive(Clone)]
pub struct Cuda(Arc<Inner>);

struct Inner {
    device: Device,
    scratch: Mutex<Scratch>,
    rope: Mutex<RopeTable>,
    batches: batch::Pool,
    fault: Mutex<Option<BackendError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// Opens a GPU.
    ///
    /// # Errors
    /// No driver, no GPU, or one that is too old.
    pub fn open() -> Result<Self, NoDevice> {
        Ok(Cuda(Arc::new(Inner {
            device: Device::open(0)?,
            scratch: Mutex::default(),
            rope: Mutex::default(),
            batches: batch::Pool::default(),
            fault: Mutex::default(),
        })))
    }

    /// The device below.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        lock(&self.0.scratch)
    }

    fn rope(&self, heads: &Heads, context: usize) -> Result<Ptr<f32>, LaunchError> {
        lock(&self.0.rope).get(heads, context)
    }

    /// Room for what ops borrow and for the tables that they look up.
    fn make_room(&self, passes: &Passes) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let (_, room) = passes.cached.unwrap_or_default();
        lock(&self.0.rope).reserve(d, passes.heads, passes.tokens.max(room))?;
        let words = batch::words(passes.tokens, passes.targets);
        self.0.batches.reserve(d, words)?;
        self.scratch().reserve(d, facts::borrowed(passes))
    }

    /// The most bytes that ops borrowed so far, and how many they can.
    pub fn borrowed(&self) -> (usize, usize) {
        let scratch = self.scratch();
        (scratch.most(), scratch.len())
    }

    /// A vector's address.
    fn vector(&self, vector: &Vector<Cuda>, values: &Float) -> Ptr<f32> {
        match vector {
            Vector::Frozen(float, slot) => float.ptr().at(slot.offset),
            Vector::Trained(slot) => values.ptr().at(slot.offset),
        }
    }

    /// Rounds trained values to bf16.
    fn round(&self, values: &Float, slot: Slot, to: Ptr<half::bf16>) -> Result<(), LaunchError> {
        elementwise::to_bf16(&self.0.device, slot.len, values.ptr().at(slot.offset), to)
    }

    /// Keeps the first error of an op.
    fn attempt(&self, op: impl FnOnce() -> Result<(), LaunchError>) {
        if let Err(e) = op() {
            let error = self.error("scratch memory of a kernel", e);
            lock(&self.0.fault).get_or_insert(error);
        }
    }

    fn error(&self, what: &'static str, error: LaunchError) -> BackendError {
        match error {
            LaunchError::OutOfMemory { needed, free } => BackendError::OutOfMemory {
                device: format!("GPU {}", self.0.device.ordinal()),
                what,
                needed,
                free,
                remedies: "set a smaller `micro_batch` (to train) or `batch` (to evaluate) or `precision = nf4`, or end what else holds memory there (`nvidia-smi` lists it)"
                    .into(),
            },
            LaunchError::Driver { doing, message } => BackendError::Device { doing, message },
            LaunchError::Unsupported(message) => BackendError::Device {
                doing: "choosing a kernel".into(),
                message,
            },
        }
    }

    fn zero_range(&self, x: &Float) {
        self.attempt(|| elementwise::clear(&self.0.device, x.len(), x.ptr()));
    }

    /// The next token of each row, or [`sample::NO_TOKEN`].
    fn choose(
        &self,
        sampling: &Sampling,
        rows: &[SampleRow],
        vocab: usize,
        logits: &Float,
    ) -> Result<Vec<u32>, LaunchError> {
        let d = &self.0.device;
        let settings = sample::Settings {
            sample: sampling.sample,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: sampling.seed,
        };
        let mut seen: Vec<u32> = Vec::new();
        let who: Vec<sample::Row> = rows
            .iter()
            .map(|row| {
                let seen_start = seen.len() as u32;
                if sampling.repetition_penalty != 1.0 {
                    seen.extend_from_slice(row.seen);
                }
                sample::Row {
                    row: row.stream.row,
                    position: row.stream.position,
                    seen_start,
                    seen_len: seen.len() as u32 - seen_start,
                    reserved: 0,
                }
            })
            .collect();
        let mut scratch = self.scratch();
        let sizes = [
            size_of_val(&who[..]),
            size_of_val(&seen[..]),
            sample::scratch_bytes(rows.len(), vocab),
            4 * rows.len(),
        ];
        let [who_at, seen_at, work, out] = scratch.take(sizes)?;
        d.write(who_at.cast(), &who)?;
        d.write(seen_at.cast(), &seen)?;
        let batch = sample::Batch {
            rows: rows.len(),
            vocab,
            logits: logits.ptr(),
            stride: vocab,
            who: who_at.cast(),
            seen: seen_at.cast(),
        };
        sample::choose(d, &batch, &settings, work, out.cast())?;
        let mut chosen = vec![0u32; rows.len()];
        d.read(out.cast(), &mut chosen)?;
        Ok(chosen)
    }

    /// Operations a second of a large product.
    fn measure(&self) -> Result<f64, LaunchError> {
        const N: usize = 4096;
        let d = &self.0.device;
        let of = |len| d.alloc::<half::bf16>(len);
        let (x, weight, y) = (of(N * N)?, of(N * N)?, of(N * N)?);
        // Not zeros: they would take less power. The bit pattern is 0.0142 of one sign.
        d.fill(x.ptr(), 0x3c, N * N)?;
        d.fill(weight.ptr(), 0x3c, N * N)?;
        let forward = kernels::Forward {
            group: kernels::Group {
                rows: N,
                inputs: N,
                outputs: [N, 0, 0],
                low_at: [kernels::NO_LOW; kernels::MEMBERS],
                rank: 0,
            },
            x: x.ptr(),
            weight: weight.ptr(),
            bias: Ptr::NULL,
            low: None,
            epilogue: kernels::Epilogue::None,
            y: y.ptr(),
        };
        self.product(&forward)?;
        let milliseconds = d.time(|| (0..8).try_for_each(|_| self.product(&forward)))?;
        Ok(8.0 * 2.0 * (N as f64).powi(3) / (1e-3 * f64::from(milliseconds)))
    }
}
