//! model
pub mod nf4;
pub mod philox;
