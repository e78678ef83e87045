//! `--device`: the one place that knows which backends there are.

use super::Failure;
use crate::backend::cpu::Cpu;
use clap::ValueEnum;

/// Where to compute.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    /// The GPU if this build and machine have one, else the CPU
    Auto,
    /// All cores
    Cpu,
    /// An NVIDIA GPU, or an error
    Cuda,
}

/// A device that is ready.
pub enum Opened {
    /// All cores.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::backend::cuda::Cuda),
}

impl DeviceArgs {
    /// Whether a GPU was asked for by name, so that none other than that will do.
    pub fn names_gpu(&self) -> bool {
        self.device == Device::Cuda
    }

    /// Opens the device, or says why there is none.
    pub fn open(&self) -> Result<Opened, Failure> {
        match self.device {
            #[cfg(feature = "cuda")]
            Device::Auto => match crate::backend::cuda::Cuda::open_usable() {
                Ok(cuda) => Ok(Opened::Cuda(cuda)),
                Err(e) => {
                    eprintln!("note: {e}; computing on the CPU");
                    Ok(Opened::Cpu(Cpu))
                }
            },
            #[cfg(not(feature = "cuda"))]
            Device::Auto => Ok(Opened::Cpu(Cpu)),
            Device::Cpu => Ok(Opened::Cpu(Cpu)),
            #[cfg(feature = "cuda")]
            Device::Cuda => match crate::backend::cuda::Cuda::open_usable() {
                Ok(cuda) => Ok(Opened::Cuda(cuda)),
                Err(e) => Err(Failure::Input(anyhow::anyhow!(
                    "`--device cuda`: {e}; `medft-engine doctor` says what this machine has, `--device cpu` computes without a GPU"
                ))),
            },
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => Err(Failure::Input(anyhow::anyhow!(
                "`--device cuda`: this build has no CUDA kernels; build with `--features cuda` (needs nvcc at build time only), or use `--device cpu`"
            ))),
        }
    }
}

/// `with_backend!(opened, backend => ...)`: the same work on whichever backend was opened.
macro_rules! with_backend {
    ($opened:expr, $backend:ident => $work:expr) => {
        match $opened {
            $crate::cli::device::Opened::Cpu($backend) => $work,
            #[cfg(feature = "cuda")]
            $crate::cli::device::Opened::Cuda($backend) => $work,
        }
    };
}
pub(super) use with_backend;
