//! `embed`, `rmsnorm`, `swiglu` with their backward passes, `clear` and `add`.

use crate::draw::{Draw, Flat, columns, pack, poison};
use crate::near::{Near, ONE, agree, agree_exactly_long, exact, same_bits, untouched};
use crate::weights::{forms, frozen};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Vector, Weight};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn embed(
        form in prop::option::of(forms()), vocab in 7usize..300, hidden in columns(), tokens in 1usize..130, seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let batch = pack(draw, &[tokens], vocab);
        let matrix = form.map(|form| frozen(draw, vocab, hidden, form));
        let mut values = Flat::default();
        let (table, weight) = match &matrix {
            Some(m) => (Cpu.matrix_values(m).unwrap(), Weight::Frozen(m)),
            None => {
                let table = draw.values(vocab * hidden, 1.0);
                (table.clone(), Weight::Trained(values.push(table)))
            }
        };
        let mut x = poison(tokens * hidden);
        Cpu.embed(&weight, &values.values, &batch, hidden, &mut x);
        let row = |id: &u32| table[*id as usize * hidden..(*id as usize + 1) * hidden].to_vec();
        let want: Vec<f32> = batch.ids.iter().flat_map(row).collect();
        same_bits("x", &x[..want.len()], &want)?;
        untouched("x", &x[want.len()..])?;
    }

    /// Few ids, so that many tokens share a row.
    #[test]
    fn embed_backward(vocab in 7usize..20, hidden in columns(), tokens in 1usize..130, seed: u64) {
        let draw = &mut Draw::new(seed);
        let batch = pack(draw, &[tokens], vocab);
        let dx = draw.buffer(tokens * hidden, 1.0);
        let mut grads = Flat::default();
        let table = grads.push(draw.values(vocab * hidden, 1.0));
        let before = grads.at(table).to_vec();
        Cpu.embed_backward(table, &mut grads.values, &batch, hidden, &dx);
        let want: Vec<Near> = (0..vocab * hidden).map(|at| {
            let (id, column) = (at / hidden, at % hidden);
            let of_id = (0..tokens).filter(|t| batch.ids[*t] as usize == id);
            let terms = of_id.map(|t| (Near::exact(dx[t * hidden + column]), ONE));
            Near::dot(terms.chain([(Near::exact(before[at]), ONE)]))
        }).collect();
        agree_exactly_long("dtable", grads.at(table), &want)?;
        prop_assert!(grads.gaps_are_poisoned());
    }

    #[test]
    fn rmsnorm(
        trained: bool, hidden in columns(), rows in 1usize..66,
        size in prop::sample::select(vec![1e-6f32, 1.0, 1e3]), eps in prop::sample::select(vec![1e-5f32, 1e-6]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let gain_values = draw.values(hidden, 2.0);
        let mut values = Flat::default();
        let slot = values.push(gain_values.clone());
        let gain = if trained { Vector::Trained(slot) } else { Vector::Frozen(&gain_values, medft_engine::backend::Slot { offset: 0, len: gain_values.len() }) };
        let x = draw.buffer(rows * hidden, size);
        let (mut y, mut rstd) = (poison(rows * hidden), poison(rows));
        Cpu.rmsnorm(&gain, &values.values, eps, rows, hidden, &x, &mut y, &mut rstd);
        let (gain_near, inputs) = (exact(&gain_values), exact(&x[..rows * hidden]));
        let width = Near::real(hidden as f64);
        let want_rstd: Vec<Near> = inputs.chunks(hidden).map(|x| {
            ONE / (Near::dot(x.iter().map(|x| (*x, *x))) / width + Near::exact(eps)).sqrt()
        }).collect();
        let want: Vec<Near> = inputs.iter().enumerate()
            .map(|(i, x)| *x * want_rstd[i / hidden] * gain_near[i % hidden]).collect();
        agree("rstd", &rstd, &want_rstd)?;
        agree("y", &y, &want)?;

        let (dy, before) = (draw.buffer(rows * hidden, 1.0), draw.buffer(rows * hidden, 1.0));
        let mut dx = before.clone();
        let gain_before = values.redrawn(draw);
        let mut grads = gain_before.clone();
        Cpu.rmsnorm_backward(&gain, &values.values, &mut grads.values, rows, hidden, &x, &rstd, &dy, &mut dx);
        let dy = exact(&dy[..rows * hidden]);
        let want: Vec<Near> = (0..rows * hidden).map(|at| {
            let (row, column) = (at / hidden, at % hidden);
            let (x, dy, r) = (&inputs[row * hidden..], &dy[row * hidden..], Near::exact(rstd[row]));
            let pull = Near::dot((0..hidden).map(|i| (x[i] * gain_near[i], dy[i]))) * r * r / width;
            Near::exact(before[at]) + r * (gain_near[column] * dy[column] - x[column] * pull)
        }).collect();
        agree("dx", &dx, &want)?;
        let want: Vec<Near> = (0..hidden).map(|column| {
            let terms = (0..rows).map(|t| (inputs[t * hidden + column] * Near::exact(rstd[t]), dy[t * hidden + column]));
            let old = Near::exact(gain_before.at(slot)[column]);
            if trained { Near::dot(terms.chain([(old, ONE)])) } else { old }
        }).collect();
        agree_exactly_long("dgain", grads.at(slot), &want)?;
        prop_assert!(grads.gaps_are_poisoned());
    }

    /// Gates far outside the range of `exp`, too.
    #[test]
    fn swiglu(inner in columns(), rows in 1usize..66, size in prop::sample::select(vec![1.0f32, 20.0, 300.0]), seed: u64) {
        let draw = &mut Draw::new(seed);
        let gate_up = draw.buffer(rows * 2 * inner, size);
        let dh = draw.buffer(rows * inner, 1.0);
        let (mut h, mut d) = (poison(rows * inner), poison(rows * 2 * inner));
        Cpu.swiglu(rows, inner, &gate_up, &mut h);
        Cpu.swiglu_backward(rows, inner, &gate_up, &dh, &mut d);
        let mut want_h = Vec::new();
        let mut want_d = vec![ONE; rows * 2 * inner];
        for at in 0..rows * inner {
            let (row, column) = (at / inner, at % inner);
            let gate_at = row * 2 * inner + column;
            let (gate, up, dh) = (Near::exact(gate_up[gate_at]), Near::exact(gate_up[gate_at + inner]), Near::exact(dh[at]));
            // Where e^-g is beyond f32, any quotient below the smallest normal number will do.
            let sig = (ONE / (ONE + (-gate).exp())).may_underflow();
            want_h.push(gate * sig * up);
            want_d[gate_at] = dh * up * sig * (ONE + gate * (ONE - sig));
            want_d[gate_at + inner] = dh * gate * sig;
        }
        agree("h", &h, &want_h)?;
        agree("dgate_up", &d, &want_d)?;
    }

    #[test]
    fn clear_and_add(hidden in columns(), rows in 1usize..300, seed: u64) {
        let draw = &mut Draw::new(seed);
        let n = rows * hidden;
        let (dy, before) = (draw.buffer(n, 1.0), draw.buffer(n, 1.0));
        let mut dx = before.clone();
        Cpu.add(rows, hidden, &dy, &mut dx);
        let want: Vec<f32> = (0..n).map(|i| before[i] + dy[i]).collect();
        same_bits("dx", &dx[..n], &want)?;
        untouched("dx", &dx[n..])?;
        let mut x = poison(n);
        Cpu.clear(rows, hidden, &mut x);
        same_bits("x", &x[..n], &vec![0.0; n])?;
        untouched("x", &x[n..])?;
    }
}
