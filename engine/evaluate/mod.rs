//! From answers to numbers: code in an answer, measures on the code tree, intervals and tests.
//!
//! Everything here is plain data in, plain data out; the tree comes in through [`codes::Codes`].

pub mod answer;
pub mod baselines;
pub mod calibration;
pub mod codes;
pub mod confusion;
pub mod errors;
pub mod groups;
pub mod metrics;
pub mod paired;
pub mod prediction;
pub mod resample;
pub mod statistics;
mod tree;
