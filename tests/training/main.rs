//! Whole trainings of tiny models, as a recipe's train block runs them.
//!
//! `setup` is the bench that all other files work on.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../support/golden.rs"]
mod references;
#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod full;
mod golden;
mod resume;
mod setup;
mod steps;
mod stopping;
