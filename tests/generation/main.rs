//! Decoding and scoring: against Transformers, one row against many, and the frequencies of draws.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../support/golden.rs"]
mod references;
#[path = "../support/mod.rs"]
mod support;

mod batches;
mod draws;
mod setup;
mod transformers;
