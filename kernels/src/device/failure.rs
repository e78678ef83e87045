//! What can go wrong with a GPU, in words.

use crate::launch::LaunchError;
use cudarc::driver::{DriverError, result, sys};

/// Why there is no GPU to use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoDevice {
    /// libcuda is not installed.
    #[error("no NVIDIA driver is installed (libcuda was not found)")]
    NoDriver,
    /// The driver found none, or not the one that was asked for.
    #[error("the NVIDIA driver shows no GPU {0}")]
    NoGpu(i32),
    /// The GPU is too old for the kernels.
    #[error(
        "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer"
    )]
    TooOld {
        /// Its name.
        name: String,
        /// Compute capability, first part.
        major: u32,
        /// Second part.
        minor: u32,
    },
    /// Anything else the driver says.
    #[error(transparent)]
    Driver(#[from] LaunchError),
}

/// What the driver says, for `map_err`.
pub(super) fn driver(doing: &str) -> impl FnOnce(DriverError) -> LaunchError + '_ {
    move |e| LaunchError::Driver {
        doing: doing.to_string(),
        message: words(&e),
    }
}

/// Too little memory for so many bytes; the context is bound.
pub(super) fn out_of_memory(needed: usize) -> LaunchError {
    LaunchError::OutOfMemory {
        needed: needed as u64,
        free: result::mem_get_info().map_or(0, |m| m.0 as u64),
    }
}

/// In words, with its name.
pub(super) fn words(e: &DriverError) -> String {
    let remedy = remedy(e.0);
    match e.error_string() {
        Ok(text) => format!("{} ({:?}){remedy}", text.to_string_lossy(), e.0),
        Err(_) => format!("{:?}{remedy}", e.0),
    }
}

/// What to do about errors that are not the caller's.
fn remedy(code: sys::CUresult) -> &'static str {
    use sys::CUresult as Code;
    match code {
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_LAUNCH_FAILED => {
            "; a kernel of this program failed, please report it; run the same command again to go on from what was finished"
        }
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "; the GPU's hardware failed: look at `nvidia-smi -q`, and reset the GPU or use another one"
        }
        Code::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "; the system ends kernels that run long on a GPU with a screen: use a GPU without one"
        }
        Code::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "; another process has the GPU to itself: `nvidia-smi` lists it"
        }
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | Code::CUDA_ERROR_SYSTEM_NOT_READY => {
            "; the driver was changed or is not ready: restart the machine"
        }
        _ => "",
    }
}
