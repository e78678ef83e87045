//! Decoder-only language models: configuration, checkpoints, forward and backward passes, adapters.

pub mod adapter;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod nf4;
pub mod pass;
pub mod philox;
pub mod trained;
pub mod workspace;
