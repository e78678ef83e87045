//! From answers to numbers: code in an answer, measures on the code tree, intervals and tests.
//!
//! Everything here is plain data in, plain data out; the tree comes in through [`codes::Codes`].

pub mod answer;
pub mod baselines;
pub mod codes;
pub mod confusion;
pub mod metrics;
pub mod prediction;
pub mod resample;
pub mod statistics;
mod tree;
