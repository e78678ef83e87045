//! generate
pub mod sampler;
