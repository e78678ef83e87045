//! medft-engine: fine-tunes and evaluates small language models on ICD-10 coding.
pub mod backend;
pub mod cli;
pub mod data;
pub mod evaluate;
pub mod generate;
pub mod machine;
pub mod model;
pub mod report;
pub mod study;
pub mod text;
pub mod train;

#[cfg(test)]
#[path = "../tests/support/shared.rs"]
mod shared;
