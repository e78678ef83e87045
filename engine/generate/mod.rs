//! From prompts to answers: batches over a KV cache, sampling, stopping; and the scores of given tokens.

pub mod engine;
pub mod sampler;
pub mod score;
