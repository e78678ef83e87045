//! Launches that were recorded to be replayed.

use super::{Device, driver};
use crate::launch::LaunchError;
use cudarc::driver::{result, sys};

/// A recorded sequence of launches.
pub struct Graph {
    pub(super) device: Device,
    pub(super) exec: sys::CUgraphExec,
}
// SAFETY: a driver handle.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Enqueues all of it.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(&self) -> Result<(), LaunchError> {
        self.device.bind()?;
        self.device.0.counting.launch();
        // SAFETY: both handles are valid.
        unsafe { result::graph::launch(self.exec, self.device.0.stream) }
            .map_err(driver("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `Device::record`, destroyed once.
        unsafe {
            let _ = self.device.bind();
            let _ = result::graph::exec_destroy(self.exec);
        }
    }
}
