//! The CUDA kernels of medft-engine and what launches them.
//!
//! Each module is one kernel family: a parameter struct that the device code shares, the launch geometry, and one function an op. They are
//! written against [`Launcher`], so that whoever owns a CUDA context can drive them; [`device::Device`] is the engine's own, over cudarc.
//! Invariant: every launch goes to one stream in call order, and no op waits, allocates or synchronises.

pub mod attention;
pub mod attention_hopper;
pub mod cross_entropy;
#[cfg(feature = "cust")]
pub mod cust_launcher;
pub mod decode;
#[cfg(feature = "cuda")]
pub mod device;
pub mod dropout;
pub mod elementwise;
pub mod embed;
pub mod gemm;
pub mod gemm_hopper;
pub mod launch;
pub mod linear;
pub mod lora;
pub mod nf4;
pub mod norm;
pub mod optimizer;
pub mod sample;
pub mod skinny;
pub mod weight_grad;

/// Machine code of each kernel family, from `build.rs`.
#[cfg(feature = "cuda")]
pub mod fatbins {
    include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
}

pub use launch::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
