//! What a launch consists of, free of any CUDA wrapper.

use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

/// An address in device memory, of elements of type `T`. Who hands it to an op keeps the memory alive until the stream has passed it.
#[repr(transparent)]
#[derive(Debug)]
pub struct Ptr<T> {
    address: u64,
    of: PhantomData<T>,
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}
// SAFETY: a u64 and nothing else.
unsafe impl<T> Zeroable for Ptr<T> {}
// SAFETY: transparent over a u64: no padding, every bit pattern is a value.
unsafe impl<T: 'static> Pod for Ptr<T> {}

impl<T> Ptr<T> {
    /// The address that stands for "none".
    pub const NULL: Self = Self::new(0);

    /// From a device address.
    pub const fn new(address: u64) -> Self {
        Ptr {
            address,
            of: PhantomData,
        }
    }

    /// The device address.
    pub const fn address(self) -> u64 {
        self.address
    }

    /// The address `elements` further on.
    pub const fn at(self, elements: usize) -> Self {
        Self::new(self.address + (elements * size_of::<T>()) as u64)
    }

    /// The same address, of other elements.
    pub const fn cast<U>(self) -> Ptr<U> {
        Ptr::new(self.address)
    }
}

/// Names a kernel: the file in `kernels/` and its `extern "C"` function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// File stem, as `gemm`.
    pub family: &'static str,
    /// Function, as `gemm_nt_128x128`.
    pub name: &'static str,
}

/// Shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
}

/// Facts of a GPU that geometry depends on; read from the device, never assumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// As "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability, as (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block can have, bytes.
    pub shared_per_block: u32,
    /// L2 cache, bytes.
    pub l2: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Whether the Hopper kernels (TMA, wgmma) are used: capability 9.0, a build that holds them, and not switched off by
    /// `MEDFT_PORTABLE=1`.
    pub hopper: bool,
}

/// A TMA descriptor (CUtensorMap), passed to a kernel by value.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);
// SAFETY: sixteen u64, 128 bytes, no padding at 64-byte alignment.
unsafe impl Zeroable for TensorMap {}
// SAFETY: as above.
unsafe impl Pod for TensorMap {}

/// Why a kernel could not be launched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LaunchError {
    /// The driver said no.
    #[error("{doing}: {message}")]
    Driver {
        /// What was asked.
        doing: String,
        /// The driver's words.
        message: String,
    },
    /// No memory left on the device.
    #[error("{needed} bytes of GPU memory were asked for and {free} are free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A kernel that this build or GPU does not have, or arguments that it cannot take.
    #[error("{0}")]
    Unsupported(String),
}

/// Whoever owns a CUDA context and a stream.
pub trait Launcher {
    /// Facts of its GPU.
    fn gpu(&self) -> &Gpu;

    /// Enqueues a kernel whose one parameter is the struct `params`.
    ///
    /// # Errors
    /// The driver's refusal.
    fn launch<P: Pod>(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        params: &P,
    ) -> Result<(), LaunchError>;

    /// A TMA descriptor of a row-major bf16 matrix `[rows, columns]` whose rows lie `stride` elements apart, read or written in boxes of
    /// `box_rows` x `box_columns`; `box_columns * 2` bytes are swizzled over 128 bytes when they are 128, else not. Reads outside give 0.
    ///
    /// # Errors
    /// The driver's refusal (alignment: 16 bytes; box sides at most 256), or a wrapper that has no TMA.
    fn tensor_map(
        &self,
        matrix: Ptr<half::bf16>,
        rows: usize,
        columns: usize,
        stride: usize,
        box_rows: u32,
        box_columns: u32,
    ) -> Result<TensorMap, LaunchError>;
}
