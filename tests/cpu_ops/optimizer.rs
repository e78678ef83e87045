//! `adamw`, `norm`, `zero`, `write` and `read`.

use crate::draw::Draw;
use crate::near::{Near, ONE, agree_exactly_long, exact, same_bits};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{AdamWStep, Backend, Slot};
use proptest::prelude::*;

/// Around one task's share of an elementwise op.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        1usize..100,
        prop::sample::select(vec![16_383, 16_384, 16_385, 50_001])
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn adamw(
        n in sizes(), step in prop::sample::select(vec![1u64, 2, 10, 1000, 100_000]),
        weight_decay in prop::sample::select(vec![0.0, 0.01, 0.1]), lr in prop::sample::select(vec![0.0, 2e-4, 0.1]),
        norm in prop::sample::select(vec![0.0f32, 0.5, 2.7]), max_norm in prop::sample::select(vec![None, Some(1.0)]), size in prop::sample::select(vec![1e-4f32, 1.0]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let s = AdamWStep { lr, weight_decay, beta1: 0.9, beta2: 0.999, eps: 1e-8, step, max_norm };
        let (grads, before, first_before) = (draw.values(n, size), draw.values(n, 1.0), draw.values(n, size));
        let second_before: Vec<f32> = draw.values(n, size).iter().map(|v| v * v).collect();
        let (mut values, mut first, mut second) = (before.clone(), first_before.clone(), second_before.clone());
        Cpu.adamw(&s, &grads, &vec![norm], &mut values, &mut first, &mut second);
        let clip = max_norm.map_or(1.0, |max| (max / (f64::from(norm) + 1e-6)).min(1.0));

        let number = |v: f64| Near::real(v).rounded();
        let t = step as f64;
        let (mut want, mut want_first, mut want_second) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let g = Near::exact(grads[i]) * number(clip);
            let (m, v) = (Near::exact(first_before[i]), Near::exact(second_before[i]));
            let m = m + (g - m) * number(1.0 - s.beta1);
            let v = v * number(s.beta2) + g * g * number(1.0 - s.beta2);
            let denominator = v.sqrt() / number((1.0 - s.beta2.powf(t)).sqrt()) + number(s.eps);
            let update = number(lr / (1.0 - s.beta1.powf(t))) * m / denominator;
            want.push(Near::exact(before[i]) * number(1.0 - lr * weight_decay) - update);
            want_first.push(m);
            want_second.push(v);
        }
        agree_exactly_long("first moment", &first, &want_first)?;
        agree_exactly_long("second moment", &second, &want_second)?;
        agree_exactly_long("values", &values, &want)?;
    }

    #[test]
    fn norm(n in sizes(), size in prop::sample::select(vec![1e-20f32, 1.0, 1e20]), seed: u64) {
        let x = Draw::new(seed).values(n, size);
        let want = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        // Squares of f32 are exact in f64; the sums round n times, and the result once more to f32.
        let bound = (n as f64 * f64::EPSILON + f64::from(f32::EPSILON) / 2.0) * want;
        let mut out = vec![f32::NAN];
        Cpu.norm(&x, &mut out);
        let got = f64::from(out[0]);
        prop_assert!((got - want).abs() <= bound, "{got} is not {want} within {bound:e}");
    }

    #[test]
    fn write_read_zero(n in sizes(), seed: u64) {
        let draw = &mut Draw::new(seed);
        let (mut x, part) = (Cpu.floats("x", n).unwrap(), draw.values(n / 2, 1.0));
        prop_assert!(x.len() == n && x.iter().all(|v| v.to_bits() == 0));
        let offset = n - part.len();
        Cpu.write(&mut x, offset, &part);
        same_bits("read", &Cpu.read(&x, Slot { offset, len: part.len() }).unwrap(), &part)?;
        same_bits("before it", &Cpu.read(&x, Slot { offset: 0, len: offset }).unwrap(), &vec![0.0; offset])?;
        Cpu.zero(&mut x);
        same_bits("zero", &x, &vec![0.0; n])?;
    }
}

/// Zero gradients and moments: nothing but the decay happens, and nothing is divided by zero.
#[test]
fn adamw_of_nothing_decays() {
    let s = AdamWStep {
        lr: 0.5,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        step: 1,
        max_norm: None,
    };
    let (mut values, mut first, mut second) = (vec![2.0], vec![0.0], vec![0.0]);
    let (grads, norm) = (vec![0.0], vec![0.0]);
    Cpu.adamw(&s, &grads, &norm, &mut values, &mut first, &mut second);
    let want = [exact(&[2.0])[0] * Near::real(0.95).rounded() - ONE * Near::real(0.0)];
    agree_exactly_long("values", &values, &want).unwrap();
    assert_eq!((first[0], second[0]), (0.0, 0.0));
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let s = AdamWStep {
        lr: 0.5,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        step: 3,
        max_norm: None,
    };
    for norm in [f32::NAN, f32::INFINITY] {
        let (mut values, mut first, mut second) = (vec![2.0; 9], vec![0.5; 9], vec![0.25; 9]);
        let grads = vec![norm; 9];
        Cpu.adamw(
            &s,
            &grads,
            &vec![norm],
            &mut values,
            &mut first,
            &mut second,
        );
        let unchanged = (vec![2.0; 9], vec![0.5; 9], vec![0.25; 9]);
        assert_eq!((values, first, second), unchanged, "norm {norm}");
    }
}
