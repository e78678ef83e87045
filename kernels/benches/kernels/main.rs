//! Times every op at the shapes of the four models, beside ceilings measured in the same run.
//!
//!     cargo bench -p medft-kernels --features cuda --bench kernels                       # all, about 2 minutes
//!     cargo bench -p medft-kernels --features cuda --bench kernels -- attention_hopper   # a part of the names
//!     ... -- --measurement-time 0.1 --warm-up-time 0.02                                  # quicker
//!
//! Names are `family/op .../model`. Lines that begin with `>` hold GPU time, rates and the part of the ceiling; criterion's own lines compare with the
//! run before. `benches/RESULTS.md` has the figures of record.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

mod attention;
mod bench;
mod gemm;
mod lora;
mod memory;
mod models;
mod nf4;
mod sample;

use medft_kernels::device::Device;

fn main() {
    let gpu = match Device::open(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("nothing is timed: {e}");
            return;
        }
    };
    let mut bench = bench::Bench::new(gpu);
    gemm::all(&mut bench);
    attention::all(&mut bench);
    lora::all(&mut bench);
    memory::all(&mut bench);
    nf4::all(&mut bench);
    sample::all(&mut bench);
}
