//! From prompts to answers: batches over a KV cache, sampling, stopping.

pub mod engine;
pub mod sampler;
pub mod score;
