//! Looking through weights for NaN while a model loads: `cargo bench --bench loading`.
//!
//! One tensor of 128 MiB from a mapped file that is in the page cache, so memory is the bound.

// Inputs are made here; a bench that cannot make them has nothing to measure.
#![allow(clippy::unwrap_used)]
// `criterion_main` writes functions without documentation.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medft_engine::model::checkpoint::open_file;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const BYTES: usize = 128 << 20;

fn check_finite(c: &mut Criterion) {
    let mut group = c.benchmark_group("check_finite");
    group
        .sample_size(20)
        .throughput(Throughput::Bytes(BYTES as u64));
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        // 0x3d3d is about 0.05 in each of the three.
        let bytes = vec![0x3d; BYTES];
        let view = TensorView::new(dtype, vec![BYTES * 8 / dtype.bitsize()], &bytes).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        safetensors::serialize_to_file([("weight", view)], None, file.path()).unwrap();
        let tensor = open_file(file.path()).unwrap().remove(0);
        group.bench_function(format!("{dtype:?}"), |b| {
            b.iter(|| tensor.check_finite().unwrap())
        });
    }
    group.finish();
}

criterion_group!(benches, check_finite);
criterion_main!(benches);
