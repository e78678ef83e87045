//! evaluate
pub mod prediction;
