//! The op set on an NVIDIA GPU: bf16 activations, f32 sums and statistics, kernels of the crate `medft-kernels`.
//!
//! Ops enqueue kernels on one stream and return; the first error of any of them is kept and told by the next op that waits.
//! Invariant: nothing here waits for the GPU except `finish`, `read`, `sample` and loading.

mod attention;
mod batch;
mod head;
mod linear;
mod matrix;
mod memory;
mod ops;
mod rope;

use super::*;
pub use attention::Cache;
pub use batch::Batch;
use matrix::{LoadError, Matrix, Stored};
pub use medft_kernels::device::{Device, NoDevice};
use medft_kernels::device::Buffer;
use medft_kernels::linear::StepState;
use medft_kernels::{LaunchError, Launcher, Ptr, elementwise};
use memory::{Act, Arena, Float, Scratch};
use rope::RopeTable;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One GPU. A clone is the same one.
#[derive(Clone)]
pub struct Cuda(Arc<Inner>);

struct Inner {
    device: Device,
    scratch: Mutex<Scratch>,
    rope: Mutex<RopeTable>,
    state: Mutex<State>,
    batches: batch::Pool,
    fault: Mutex<Option<BackendError>>,
}

/// What dropout kernels read, and what was written there last.
struct State {
    written: Option<StepState>,
    device: Buffer<StepState>,
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
        let device = Device::open(0)?;
        let state = State {
            written: None,
            device: device.alloc(1)?,
        };
        Ok(Cuda(Arc::new(Inner {
            device,
            scratch: Mutex::default(),
            rope: Mutex::default(),
            state: Mutex::new(state),
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
        lock(&self.0.rope).get(&self.0.device, heads, context)
    }

    /// What names the masks of this step, on the GPU.
    fn step_state(&self, dropout: &Dropout, first_token: u64) -> Result<Ptr<StepState>, LaunchError> {
        let now = StepState {
            seed: dropout.seed,
            step: dropout.step,
            first_token,
            reserved: 0,
        };
        let mut state = lock(&self.0.state);
        if state.written != Some(now) {
            self.0.device.write(state.device.ptr(), &[now])?;
            state.written = Some(now);
        }
        Ok(state.device.ptr())
    }

    /// A vector's address.
    fn vector(&self, vector: &Vector<Cuda>, values: &Float) -> Ptr<f32> {
        match vector {
            Vector::Frozen(float) => float.ptr(),
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
                remedies: "set `micro_batch = auto` (or a smaller number) or `precision = nf4`".into(),
            },
            LaunchError::Driver { doing, message } => BackendError::Device { doing, message },
            LaunchError::Unsupported(message) => BackendError::Device {
                doing: "choosing a kernel".into(),
                message,
            },
        }
    }

    fn alloc(&self, what: &'static str, len: usize) -> Result<Float, BackendError> {
        Float::alloc(&self.0.device, len).map_err(|e| self.error(what, e))
    }
}
