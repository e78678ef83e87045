//! What a plan has to know of the CPU. The shares were measured on SmolLM2-135M (benches/RESULTS.md); other models and machines may take
//! half or twice as long.

use super::{Cpu, gemm, linear, loss};
use crate::backend::Heads;
use crate::backend::facts::{Facts, MatrixShape, Memory, Passes, Rates};
use medft_dsl::plan::Precision;
use std::time::Instant;

impl Facts for Cpu {
    fn rates(&self) -> Rates {
        Rates {
            product: product(),
            pass: 0.8,
            // Dot products, not matrix products.
            decode: 0.21,
            decode_fixed: 2.0,
            weights: f64::INFINITY,
            memory: 2e10,
            layer: 0.0,
        }
    }

    fn memory(&self) -> Option<Memory> {
        crate::machine::memory()
    }

    fn forget_peak(&self) {
        crate::machine::reset_peak_memory();
    }

    fn peak(&self) -> Option<u64> {
        crate::machine::peak_memory()
    }

    fn held_as(&self, precision: Precision) -> Precision {
        precision
    }

    /// Larger passes leave the caches and are no faster.
    fn pass_tokens(&self) -> usize {
        1024
    }

    fn matrix_bytes(&self, matrix: MatrixShape, precision: Precision, double_quant: bool) -> u64 {
        let values = (matrix.rows * matrix.inputs) as u64;
        match precision {
            // A bf16 checkpoint stays as it is stored: the numbers are the same.
            Precision::F32 => values * matrix.stored.min(4) as u64,
            Precision::Bf16 => 2 * values,
            Precision::Nf4 => crate::model::nf4::bytes(values, double_quant),
        }
    }

    fn cache_bytes(&self, layers: usize, slots: usize, capacity: usize, heads: &Heads) -> u64 {
        (4 * 2 * layers * slots * capacity * heads.keys * heads.dim) as u64
    }

    fn scratch_bytes(&self, p: &Passes) -> u64 {
        // A chunk of the head's logits and, going back, its inputs and their gradient; a widened block of a weight; the sampler's sorted row.
        let rows = p.targets.min((loss::CHUNK / p.vocab.max(1)).max(1));
        let head = 4 * rows * p.vocab + 8 * p.targets * p.hidden;
        let sampler = p.cached.map_or(0, |(slots, _)| 4 * slots * p.vocab);
        (head + sampler + 4 * linear::BLOCK) as u64
    }
}

/// Operations a second of a product.
fn product() -> f64 {
    const N: usize = 768;
    let (a, mut c) = (vec![1.0; N * N], vec![0.0; N * N]);
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let began = Instant::now();
        gemm::gemm(
            [N, N, N],
            1.0,
            gemm::View::rows(&a, N),
            gemm::View::rows(&a, N),
            0.0,
            &mut c,
            N,
        );
        best = best.min(began.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / best.max(1e-9)
}
