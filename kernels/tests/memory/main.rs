//! The memory-bound kernels against f64 on the CPU: norm, elementwise, embed, cross_entropy, optimizer, sample.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

#[path = "../gpu/mod.rs"]
mod gpu;

mod cross_entropy;
mod elementwise;
mod embed;
mod norm;
mod optimizer;
mod sample;
mod sample_golden;

use half::bf16;

/// Half a unit in the last place of bf16 at this value: the error of one rounding to nearest.
fn half_ulp(x: f64) -> f64 {
    2f64.powi(x.abs().max(1e-38).log2().floor() as i32 - 8)
}

/// The error of one rounding to bf16 after an f32 path with the absolute error `path`.
fn rounded(x: f64, path: f64) -> f64 {
    half_ulp(x.abs() + path) + path
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn bits32(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// What proptest does here: few cases (each talks to the GPU), nothing written to disk.
fn few(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        failure_persistence: None,
        ..Default::default()
    }
}
