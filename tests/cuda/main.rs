//! The whole decoder on the GPU: against the golden numbers, against the CPU backend, and against itself.
//!
//! Needs feature `cuda` and a GPU; without a GPU every test says that it is skipped (`MEDFT_REQUIRE_GPU=1` makes that a failure).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

#[path = "../support/golden.rs"]
mod golden_files;
#[path = "../support/mod.rs"]
mod support;

mod against_cpu;
mod decoding;
mod golden;
mod loading;
mod runtime;
mod same_bits;

use medft_engine::backend::cuda::Cuda;
use medft_engine::backend::{Backend, Packed, Target};

/// The GPU, if there is one, with a stream of its own: tests run side by side, and what is recorded on one stream must not meet another's ops.
pub fn gpu() -> Option<Cuda> {
    match Cuda::open() {
        Ok(gpu) => {
            eprintln!("{}", gpu.name());
            Some(gpu)
        }
        Err(e) if std::env::var_os("MEDFT_REQUIRE_GPU").is_none() => {
            eprintln!("skipped: {e}");
            None
        }
        Err(e) => panic!("MEDFT_REQUIRE_GPU is set: {e}"),
    }
}

/// `||got - want|| / ||want||`; infinite where something is not finite.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter()
            .zip(want)
            .map(|(g, w)| f(f64::from(*g), f64::from(*w)))
            .sum()
    };
    let (error, norm) = (sum(&|g, w| (g - w) * (g - w)), sum(&|_, w| w * w));
    if !error.is_finite() {
        return f64::INFINITY;
    }
    (error / norm.max(1e-30)).sqrt()
}

/// Fails where `got` is further from `want` than `bound`, relative to all of `want`.
pub fn assert_relative(what: &str, got: &[f32], want: &[f32], bound: f64) {
    let error = relative(got, want);
    println!("{what}: relative error {error:.2e} of {bound:.1e}");
    assert!(
        error <= bound,
        "{what}: relative error {error:e}, bound {bound:e}"
    );
}

/// Sequences back to back; every token but the first of each is a target, or only those from `first_target` on.
pub fn packed(sequences: &[Vec<u32>], first_target: usize) -> Packed {
    let mut packed = Packed::default();
    for (slot, ids) in sequences.iter().enumerate() {
        let start = packed.push(ids, 0, slot);
        for t in first_target.max(1)..ids.len() {
            packed.targets.push(Target {
                row: start + t - 1,
                id: ids[t],
            });
        }
    }
    packed
}
