//! Device memory that is freed when its owner goes.

use super::Device;
use crate::launch::{LaunchError, Ptr};
use bytemuck::Pod;
use cudarc::driver::result;

/// Device memory, freed when dropped.
pub struct Buffer<T> {
    pub(super) device: Device,
    pub(super) ptr: Ptr<T>,
    pub(super) len: usize,
}

impl<T> Buffer<T> {
    /// What it takes of the GPU's memory.
    pub(super) fn bytes(len: usize) -> usize {
        (len * size_of::<T>()).max(1)
    }

    /// Its address.
    pub fn ptr(&self) -> Ptr<T> {
        self.ptr
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T: Pod> Buffer<T> {
    /// A copy of its elements; waits for the stream.
    ///
    /// # Errors
    /// The driver's, those of earlier kernels among them.
    pub fn download(&self) -> Result<Vec<T>, LaunchError> {
        let mut to = vec![T::zeroed(); self.len];
        self.device.read(self.ptr, &mut to)?;
        Ok(to)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // The stream may still use the memory: cuMemFree waits for the device.
        self.device.0.counting.allocation();
        // SAFETY: allocated by `Device::alloc`, freed once.
        unsafe {
            let _ = self.device.bind();
            let _ = result::free_sync(self.ptr.address());
        }
        self.device.0.usage.freed(Self::bytes(self.len) as u64);
    }
}
