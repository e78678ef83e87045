//! One primary context, two wrappers: kernels launched through cudarc and through `cust` read the same memory and write the same bits.
//!
//! Links libcuda (feature `cust`): kernels/README.md says how it is built.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod gpu;

use cust::context::Context;
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use gpu::{Random, poisoned, poisoned_f32};
use half::bf16;
use medft_kernels::cust_launcher::CustLauncher;
use medft_kernels::device::Device;
use medft_kernels::linear::{Epilogue, Forward, Group, LowForward};
use medft_kernels::{Gpu, LaunchError, Launcher, Ptr, gemm, gemm_hopper, norm};

/// What `cust` users hold. Its context is the primary one, as is that of `Device`.
fn theirs(device: &Device) -> (Context, Stream) {
    cust::init(cust::CudaFlags::empty()).unwrap();
    let context = Context::new(cust::device::Device::get_device(0).unwrap()).unwrap();
    assert_eq!(
        context.as_raw() as usize,
        device.raw().0 as usize,
        "two contexts"
    );
    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    assert_ne!(
        stream.as_inner() as usize,
        device.raw().1 as usize,
        "one stream"
    );
    (context, stream)
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn both_see_the_same_gpu() {
    let Some(device) = gpu::gpu() else { return };
    let (context, stream) = theirs(device);
    let launcher = CustLauncher::new(&context, &stream).unwrap();
    let want = Gpu {
        hopper: false,
        ..device.gpu().clone()
    };
    assert_eq!(launcher.gpu(), &want);
}

#[test]
fn norm_has_the_same_bits() {
    let Some(device) = gpu::gpu() else { return };
    let (context, stream) = theirs(device);
    let launcher = CustLauncher::new(&context, &stream).unwrap();
    for (rows, columns) in [(1, 576), (301, 2048), (129, 4096)] {
        let mut random = Random(7);
        let x = device.upload(&random.bf16s(rows * columns, 1.0)).unwrap();
        let gain = device.upload(&random.f32s(columns, 1.0)).unwrap();
        let run = |l: &dyn Fn(Ptr<bf16>, Ptr<f32>)| {
            let (y, rstd) = (poisoned(device, rows * columns), poisoned_f32(device, rows));
            device.synchronize().unwrap();
            l(y.ptr(), rstd.ptr());
            (bits(&y.download().unwrap()), rstd.download().unwrap())
        };
        let ours = run(&|y, rstd| {
            norm::forward(device, rows, columns, 1e-6, x.ptr(), gain.ptr(), y, rstd).unwrap()
        });
        let theirs = run(&|y, rstd| {
            norm::forward(&launcher, rows, columns, 1e-6, x.ptr(), gain.ptr(), y, rstd).unwrap();
            stream.synchronize().unwrap();
        });
        assert!(
            ours.1.iter().all(|r| r.is_finite() && *r > 0.0),
            "rstd was not written"
        );
        assert!(ours == theirs, "norm {rows} x {columns}: different bits");
    }
}

/// A product with more than 48 KB of shared memory a block, adapters and a residual; its result in memory that `cust` reserved.
#[test]
fn products_have_the_same_bits() {
    let Some(device) = gpu::gpu() else { return };
    let (context, stream) = theirs(device);
    let launcher = CustLauncher::new(&context, &stream).unwrap();
    for rows in [5, 1000] {
        let mut random = Random(11);
        let group = Group {
            rows,
            inputs: 576,
            outputs: [576, 192, 192],
            low_at: [0, 16, 32],
            rank: 16,
        };
        let (n, k) = (group.columns(), group.inputs);
        let mut upload =
            |len: usize, deviation| device.upload(&random.bf16s(len, deviation)).unwrap();
        let (x, w, residual) = (
            upload(rows * k, 1.0),
            upload(n * k, 0.05),
            upload(rows * n, 1.0),
        );
        let (low, b) = (upload(rows * group.low(), 0.3), upload(n * group.rank, 0.3));
        let forward = |y| Forward {
            group,
            x: x.ptr(),
            weight: w.ptr(),
            bias: Ptr::NULL,
            low: Some(LowForward {
                low: low.ptr(),
                b: b.ptr(),
            }),
            epilogue: Epilogue::Residual(residual.ptr()),
            y,
        };
        let y = poisoned(device, rows * n);
        gemm::forward(device, &forward(y.ptr())).unwrap();
        let ours = bits(&y.download().unwrap());

        let y = DeviceBuffer::from_slice(&vec![0xffff_u16; rows * n]).unwrap();
        gemm::forward(&launcher, &forward(Ptr::new(y.as_device_ptr().as_raw()))).unwrap();
        stream.synchronize().unwrap();
        let mut theirs = vec![0; rows * n];
        cust::memory::CopyDestination::copy_to(&*y, &mut theirs).unwrap();
        assert!(
            ours.iter().all(|v| !bf16::from_bits(*v).is_nan()),
            "not every element was written"
        );
        assert!(ours == theirs, "product of {rows} rows: different bits");
    }
}

#[test]
fn hopper_kernels_are_refused_in_words() {
    let Some(device) = gpu::gpu() else { return };
    let (context, stream) = theirs(device);
    let launcher = CustLauncher::new(&context, &stream).unwrap();
    let plain = gemm_hopper::Plain {
        rows: 128,
        inputs: 64,
        outputs: 128,
        x: Ptr::new(256),
        weight: Ptr::new(256),
        y: gemm_hopper::Product::F32(Ptr::new(256)),
    };
    assert!(!gemm_hopper::supports_plain(launcher.gpu(), &plain));
    assert!(matches!(
        gemm_hopper::plain_nt(&launcher, &plain),
        Err(LaunchError::Unsupported(_))
    ));
    match launcher.tensor_map(Ptr::new(256), 1, 64, 64, 1, 64) {
        Err(e @ LaunchError::Unsupported(_)) => {
            assert!(e.to_string().contains("cuTensorMapEncodeTiled"), "{e}")
        }
        other => panic!("{other:?}"),
    }
}

/// Kernels of one wrapper read what the other's wrote: one address space.
#[test]
fn a_chain_may_cross_wrappers() {
    let Some(device) = gpu::gpu() else { return };
    let (context, stream) = theirs(device);
    let launcher = CustLauncher::new(&context, &stream).unwrap();
    let (rows, columns) = (64, 2048);
    let mut random = Random(3);
    let x = device.upload(&random.bf16s(rows * columns, 2.0)).unwrap();
    let gain = device.upload(&random.f32s(columns, 1.0)).unwrap();
    let rstd = poisoned_f32(device, rows);
    let (middle, out, twice) = (
        poisoned(device, rows * columns),
        poisoned(device, rows * columns),
        poisoned(device, rows * columns),
    );
    let step = |l: &Device, from: Ptr<bf16>, to: Ptr<bf16>| {
        norm::forward(l, rows, columns, 1e-6, from, gain.ptr(), to, rstd.ptr()).unwrap()
    };
    step(device, x.ptr(), middle.ptr());
    step(device, middle.ptr(), twice.ptr());
    device.synchronize().unwrap();
    norm::forward(
        &launcher,
        rows,
        columns,
        1e-6,
        middle.ptr(),
        gain.ptr(),
        out.ptr(),
        rstd.ptr(),
    )
    .unwrap();
    stream.synchronize().unwrap();
    assert!(bits(&out.download().unwrap()) == bits(&twice.download().unwrap()));
}
