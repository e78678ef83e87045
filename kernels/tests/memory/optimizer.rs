use crate::gpu::{Random, gpu, poisoned, poisoned_f32, within};
use crate::{bits, bits32, few, wide};
use half::bf16;
use medft_kernels::Ptr;
use medft_kernels::optimizer::{self, AdamWBuffers, AdamWStep, NORM_SCRATCH};
use proptest::prelude::*;

fn norm_of(x: &[f32]) -> Option<f32> {
    let gpu = gpu()?;
    let (device, out) = (gpu.upload(x).unwrap(), poisoned_f32(gpu, 1));
    let scratch = gpu.alloc::<f64>(NORM_SCRATCH).unwrap();
    gpu.fill(scratch.ptr(), 0xff, NORM_SCRATCH).unwrap();
    optimizer::norm(gpu, x.len(), device.ptr(), out.ptr(), scratch.ptr()).unwrap();
    Some(out.download().unwrap()[0])
}

fn check_norm(len: usize, scale: f64, seed: u64) {
    let x = Random(seed).f32s(len, scale);
    let want = x
        .iter()
        .map(|v| f64::from(*v) * f64::from(*v))
        .sum::<f64>()
        .sqrt();
    let Some(got) = norm_of(&x) else { return };
    within(
        &format!("norm of {len} at {scale}"),
        &[f64::from(got)],
        &[want],
        |_| 1e-7 * want,
    );
}

fn step(t: u64, max_norm: Option<f64>) -> AdamWStep {
    AdamWStep {
        lr: 3e-4,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        step: t,
        max_norm,
    }
}

fn check_adamw(len: usize, t: u64, max_norm: Option<f64>, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(seed);
    let scale = 10f64.powi(random.below(6) as i32 - 4);
    let (grads, values) = (random.f32s(len, scale), random.f32s(len, 0.05));
    let first = random.f32s(len, scale);
    let second: Vec<f32> = random.f32s(len, scale).into_iter().map(|v| v * v).collect();
    let norm = norm_of(&grads).unwrap();
    let device = |v: &[f32]| gpu.upload(v).unwrap();
    let (g, v, m, s, n) = (
        device(&grads),
        device(&values),
        device(&first),
        device(&second),
        device(&[norm]),
    );
    let shadow = poisoned(gpu, len);
    let buffers = AdamWBuffers {
        len,
        grads: g.ptr(),
        values: v.ptr(),
        first: m.ptr(),
        second: s.ptr(),
        shadow: shadow.ptr(),
        norm: n.ptr(),
    };
    let a = step(t, max_norm);
    optimizer::adamw(gpu, &a, &buffers).unwrap();
    let factor = max_norm.map_or(1.0, |max| (max / (f64::from(norm) + 1e-6)).min(1.0));
    let (bc1, bc2) = (1.0 - a.beta1.powf(t as f64), 1.0 - a.beta2.powf(t as f64));
    let (mut want_m, mut want_s, mut want_v) = (vec![], vec![], vec![]);
    let (mut bound_m, mut bound_v) = (vec![], vec![]);
    for i in 0..len {
        let (g, p) = (f64::from(grads[i]) * factor, f64::from(values[i]));
        let (m0, s0) = (f64::from(first[i]), f64::from(second[i]));
        let m = a.beta1 * m0 + (1.0 - a.beta1) * g;
        let s = a.beta2 * s0 + (1.0 - a.beta2) * g * g;
        let denominator = s.sqrt() / bc2.sqrt() + a.eps;
        let size = a.beta1 * m0.abs() + (1.0 - a.beta1) * g.abs();
        want_v.push(p * (1.0 - a.lr * a.weight_decay) - a.lr / bc1 * m / denominator);
        bound_m.push(5e-7 * size);
        bound_v.push(2e-7 * p.abs() + 2e-6 * a.lr / bc1 * size / denominator);
        want_m.push(m);
        want_s.push(s);
    }
    let what = |name: &str| format!("{name} of {len}, step {t}, max {max_norm:?}, seed {seed}");
    let v = v.download().unwrap();
    within(
        &what("first"),
        &wide(&m.download().unwrap()),
        &want_m,
        |i| bound_m[i],
    );
    within(
        &what("second"),
        &wide(&s.download().unwrap()),
        &want_s,
        |i| 5e-7 * want_s[i],
    );
    within(&what("values"), &wide(&v), &want_v, |i| bound_v[i]);
    let copies: Vec<bf16> = v.iter().map(|v| bf16::from_f32(*v)).collect();
    assert_eq!(
        bits(&shadow.download().unwrap()),
        bits(&copies),
        "{}",
        what("shadow")
    );
}

proptest! {
    #![proptest_config(few(16))]
    #[test]
    fn norm_equals_f64(len in 1usize..100_000, scale in prop::sample::select(vec![1.0, 1e-3, 1e-30, 1e25]), seed: u64) {
        check_norm(len, scale, seed);
    }

    #[test]
    fn adamw_equals_f64(len in 1usize..5000, t in 1u64..3000, clipped: bool, seed: u64) {
        check_adamw(len, t, clipped.then_some(1.0), seed);
    }
}

#[test]
fn lengths_at_edges() {
    for len in [1, 2, 3, 4, 5, 1023, 1024, 1025, 4096, 4_194_304 + 3] {
        check_norm(len, 1.0, 3);
    }
    for len in [1, 3, 4, 5, 1023, 1024, 1025] {
        check_adamw(len, 1, None, 9);
    }
    assert!(norm_of(&[]).is_none_or(|norm| norm == 0.0));
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    assert!(norm_of(&[1.0, f32::NAN]).unwrap().is_nan());
    assert_eq!(norm_of(&[1.0, f32::NEG_INFINITY]), Some(f32::INFINITY));
    for norm in [f32::NAN, f32::INFINITY] {
        for max_norm in [None, Some(1.0)] {
            let before = Random(1).f32s(1001, 1.0);
            let buffer = || gpu.upload(&before).unwrap();
            let (g, v, m, s, n) = (
                buffer(),
                buffer(),
                buffer(),
                buffer(),
                gpu.upload(&[norm]).unwrap(),
            );
            let buffers = AdamWBuffers {
                len: before.len(),
                grads: g.ptr(),
                values: v.ptr(),
                first: m.ptr(),
                second: s.ptr(),
                shadow: Ptr::NULL,
                norm: n.ptr(),
            };
            optimizer::adamw(gpu, &step(1, max_norm), &buffers).unwrap();
            for buffer in [v, m, s] {
                assert_eq!(bits32(&buffer.download().unwrap()), bits32(&before));
            }
        }
    }
}

#[test]
fn norm_repeats_bit_for_bit() {
    let x = Random(8).f32s(1_000_003, 1.0);
    let Some(first) = norm_of(&x) else { return };
    for _ in 0..20 {
        assert_eq!(norm_of(&x).map(f32::to_bits), Some(first.to_bits()));
    }
}
