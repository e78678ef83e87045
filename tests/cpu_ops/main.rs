//! Every op of the CPU backend against a plain f64 reference, and what must hold bit for bit.
//!
//! Holds the rooms: `near` is the arithmetic of the references and their bounds, `draw` the random inputs; the others test one family
//! each. It refuses tolerances found by trial. Invariant: a buffer that an op overwrites arrives full of NaN, and every buffer ends in NaN
//! that nobody may read or write.
// A test may panic and say why it skips.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod attention;
mod attention_reference;
mod cached;
mod draw;
mod dropout;
mod elementwise;
mod head;
mod invariance;
mod linear;
mod linear_reference;
mod near;
mod optimizer;
#[path = "../support/mod.rs"]
mod support;
mod tiny_model;
mod weights;
