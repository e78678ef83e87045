//! GPU memory of the engine: arenas that buffers are carved from, and scratch that ops borrow.
//!
//! Invariant: a buffer keeps the allocation that it lies in alive. Scratch is handed out by one launch sequence at a time: the stream orders
//! its uses, so two ops never hold it together.

use crate::backend::Need;
use half::bf16;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::{LaunchError, Ptr};
use std::sync::Arc;

/// Every buffer starts at a multiple of it: what the driver gives, and more than any kernel needs.
pub const ALIGNMENT: usize = 256;

/// Elements of `T` somewhere in GPU memory.
pub struct Region<T> {
    ptr: Ptr<T>,
    len: usize,
    /// Keeps the memory.
    _memory: Arc<Buffer<u8>>,
}

/// Activations, bf16.
pub type Act = Region<bf16>;
/// Trained values, gradients, statistics, f32.
pub type Float = Region<f32>;

impl<T> Region<T> {
    /// Memory of its own.
    pub fn alloc(device: &Device, len: usize) -> Result<Self, LaunchError> {
        let memory = device.alloc::<u8>(len * size_of::<T>())?;
        Ok(Region {
            ptr: memory.ptr().cast(),
            len,
            _memory: Arc::new(memory),
        })
    }

    /// Its address.
    pub fn ptr(&self) -> Ptr<T> {
        self.ptr
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// One allocation, carved from its start.
pub struct Arena {
    memory: Arc<Buffer<u8>>,
    used: usize,
}

impl Arena {
    /// Bytes that these buffers take.
    pub fn bytes(need: &Need) -> usize {
        let acts = need.acts.iter().map(|len| padded::<bf16>(*len));
        let floats = need.floats.iter().map(|len| padded::<f32>(*len));
        acts.chain(floats).sum()
    }

    /// Room for exactly these buffers.
    pub fn new(device: &Device, need: &Need) -> Result<Self, LaunchError> {
        Ok(Arena {
            memory: Arc::new(device.alloc(Self::bytes(need))?),
            used: 0,
        })
    }

    /// The next `len` elements.
    ///
    /// # Panics
    /// If the arena was made for other buffers.
    pub fn carve<T>(&mut self, len: usize) -> Region<T> {
        let ptr = self.memory.ptr().at(self.used).cast();
        self.used += padded::<T>(len);
        assert!(
            self.used <= self.memory.len(),
            "an arena of {} bytes is asked for {}",
            self.memory.len(),
            self.used
        );
        Region {
            ptr,
            len,
            _memory: self.memory.clone(),
        }
    }
}

/// Bytes of `len` elements with what fills them up to the next buffer.
fn padded<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGNMENT)
}

/// Bytes that [`Scratch::take`] takes for these.
pub fn taken(bytes: &[usize]) -> usize {
    bytes.iter().map(|b| padded::<u8>(*b)).sum()
}

/// Memory that ops use between their kernels, reserved before the first of them: an op that wants more fails.
#[derive(Default)]
pub struct Scratch {
    memory: Option<Buffer<u8>>,
    /// The most that was taken at once.
    most: usize,
}

impl Scratch {
    /// Where it lies now.
    pub fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |m| m.ptr().address())
    }

    /// Bytes that there are.
    pub fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, Buffer::len)
    }

    /// The most bytes that were taken at once.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Makes room for so many bytes; what is larger stays.
    pub fn reserve(&mut self, device: &Device, bytes: usize) -> Result<(), LaunchError> {
        if self.len() < bytes {
            // Freeing waits for what still uses the old one.
            self.memory = None;
            self.memory = Some(device.alloc(bytes)?);
        }
        Ok(())
    }

    /// Space for these numbers of bytes, each at a fresh [`ALIGNMENT`] boundary; what stood there before is lost.
    pub fn take<const N: usize>(&mut self, bytes: [usize; N]) -> Result<[Ptr<u8>; N], LaunchError> {
        let (total, planned) = (taken(&bytes), self.len());
        if planned < total {
            return Err(LaunchError::Unsupported(format!(
                "an op borrows {total} bytes and the plan has {planned}: this is a bug, please report it"
            )));
        }
        self.most = self.most.max(total);
        let start = self.memory.as_ref().map_or(Ptr::NULL, Buffer::ptr);
        let mut at = 0;
        Ok(bytes.map(|b| {
            let ptr = start.at(at);
            at += padded::<u8>(b);
            ptr
        }))
    }
}
