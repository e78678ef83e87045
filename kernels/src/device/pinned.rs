//! Page-locked host memory: the GPU copies from it while the host goes on.
//!
//! Invariant: it is neither written nor freed while a copy still reads it.

use super::{Device, driver};
use crate::launch::{LaunchError, Ptr};
use bytemuck::Pod;
use cudarc::driver::{result, sys};
use std::ops::Range;

/// Page-locked host memory, freed when dropped.
pub struct Pinned<T> {
    device: Device,
    at: *mut T,
    len: usize,
    /// Passed once every copy of it is done.
    copied: sys::CUevent,
}
// SAFETY: plain memory, owned, and a driver handle.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: shared access only asks for facts.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The driver's.
    pub fn zeros(device: &Device, len: usize) -> Result<Self, LaunchError> {
        device.bind()?;
        let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(driver("making an event"))?;
        let mut pinned = Pinned {
            device: device.clone(),
            at: std::ptr::null_mut(),
            len,
            copied,
        };
        let bytes = (len * size_of::<T>()).max(1);
        device.0.counting.allocation();
        // SAFETY: freed once, in `drop`; zeroed before anyone reads it.
        unsafe {
            let at =
                result::malloc_host(bytes, 0).map_err(driver("reserving page-locked memory"))?;
            std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
            pinned.at = at.cast();
        }
        Ok(pinned)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every copy is done, so that [`Pinned::as_mut_slice`] would not wait.
    ///
    /// # Errors
    /// The driver's, those of earlier kernels among them.
    pub fn is_idle(&self) -> Result<bool, LaunchError> {
        self.device.passed(self.copied)
    }

    /// Its elements, to be written; waits until every copy is done.
    ///
    /// # Errors
    /// The driver's, those of earlier kernels among them.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], LaunchError> {
        self.device.wait_for(self.copied)?;
        // SAFETY: `len` initialised elements, aligned to a page, borrowed uniquely, and no copy reads them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at, self.len) })
    }

    /// Copies a range of it to the device, behind what the stream holds; returns at once.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn copy(&mut self, range: Range<usize>, to: Ptr<T>) -> Result<(), LaunchError> {
        // SAFETY: `len` initialised elements, only read until the event has passed.
        let all = unsafe { std::slice::from_raw_parts(self.at, self.len) };
        let from = &all[range];
        if from.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let stream = self.device.0.stream;
        // SAFETY: the caller owns `from.len()` elements at `to`; both handles are valid.
        unsafe {
            result::memcpy_htod_async(to.address(), from, stream)
                .map_err(driver("copying to the GPU"))?;
            result::event::record(self.copied, stream).map_err(driver("recording an event"))
        }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        self.device.0.counting.allocation();
        // SAFETY: made by `zeros`, freed once, and no copy reads it any more.
        unsafe {
            let _ = self.device.wait_for(self.copied);
            let _ = result::event::destroy(self.copied);
            if !self.at.is_null() {
                let _ = result::free_host(self.at.cast());
            }
        }
    }
}
