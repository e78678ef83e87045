//! The statistics of dropout masks, seen from outside: through an adapter that is the identity.
//!
//! Holds `observed_mask`, which the references use, too. That the backward pass uses the same mask is `linear`'s test: its reference has
//! only this one.

use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{
    Backend, Dropout, Epilogue, Group, GroupWeight, Linear, LoraSlots, Packed, Pass, Slot,
};

/// The factors `[rows, columns]` by which an adapter's input is multiplied, in a pass.
pub fn observed_mask(dropout: Dropout, pass: Pass, rows: usize, columns: usize) -> Vec<f32> {
    // A = 1, B = 0, W = 0: `low` is dropout(x), and x is all ones.
    let mut values = vec![0.0; columns * columns + 2 * columns];
    for i in 0..columns {
        values[i * columns + i] = 1.0;
    }
    let slot = |offset, len| Slot { offset, len };
    let lora = LoraSlots {
        a: slot(0, columns * columns),
        b: slot(columns * columns, columns),
        rank: columns,
        scale: 1.0,
        dropout: Some(dropout),
    };
    let weight = GroupWeight::Trained(vec![slot(columns * columns + columns, columns)]);
    let group = Group {
        inputs: columns,
        weight,
        members: vec![Linear {
            bias: None,
            outputs: 1,
            lora: Some(lora),
        }],
    };
    let mut batch = Packed {
        pass: Some(pass),
        ..Packed::default()
    };
    batch.push(&vec![0; rows], 0, 0);
    let (x, mut y, mut low) = (
        vec![1.0; rows * columns],
        vec![0.0; rows],
        vec![0.0; rows * columns],
    );
    let none = Epilogue::None;
    Cpu.linear(&group, &values, &batch, rows, &x, none, &mut y, &mut low);
    low
}

const ROWS: usize = 1024;
const COLUMNS: usize = 256;

fn mask(p: f32, [seed, step, first_token]: [u64; 3], stream: u32) -> Vec<f32> {
    observed_mask(
        Dropout { p, stream },
        pass(seed, step, first_token),
        ROWS,
        COLUMNS,
    )
}

/// The pass of a step, by what its masks follow.
pub fn pass(seed: u64, step: u64, first_token: u64) -> Pass {
    Pass {
        seed,
        step,
        first_token,
        ..Pass::default()
    }
}

#[test]
fn kept_values_are_scaled_and_their_share_is_one_minus_p() {
    for p in [0.05f32, 0.1, 0.5, 0.9] {
        let mask = mask(p, [42, 3, 0], 5);
        let scale = 1.0 / (1.0 - p);
        assert!(mask.iter().all(|m| *m == 0.0 || *m == scale), "p = {p}");
        let n = mask.len() as f64;
        let share = mask.iter().filter(|m| **m != 0.0).count() as f64 / n;
        let (q, p) = (1.0 - f64::from(p), f64::from(p));
        let sigma = (p * q / n).sqrt();
        assert!(
            (share - q).abs() < 5.0 * sigma,
            "p = {p}: kept {share}, {q} wanted, sigma {sigma:e}"
        );
    }
}

/// Correlation of two masks' kept values: of independent ones it is 0 with standard deviation 1 / sqrt(n).
fn assert_uncorrelated(what: &str, a: &[f32], b: &[f32], p: f64) {
    let kept = |m: &f32| f64::from(u8::from(*m != 0.0)) - (1.0 - p);
    let sum: f64 = a.iter().zip(b).map(|(a, b)| kept(a) * kept(b)).sum();
    let n = a.len() as f64;
    let correlation = sum / n / (p * (1.0 - p));
    assert!(
        correlation.abs() < 5.0 / n.sqrt(),
        "{what}: correlation {correlation:e}, sigma {:e}",
        1.0 / n.sqrt()
    );
}

#[test]
fn projections_steps_seeds_tokens_and_columns_are_uncorrelated() {
    let p = 0.4;
    let base = mask(p, [42, 3, 0], 5);
    for (what, seed, step, stream, first_token) in [
        ("next projection", 42, 3, 6, 0),
        ("other layer", 42, 3, 5 + 7, 0),
        ("next step", 42, 4, 5, 0),
        ("seed", 43, 3, 5, 0),
        ("seed and step exchanged", 3, 42, 5, 0),
        ("seed and step flipped in one bit", 43, 2, 5, 0),
        ("next token", 42, 3, 5, 1),
        ("other half of the step", 42, 3, 5, ROWS as u64),
        ("tokens beyond 32 bits", 42, 3, 5, 1 << 32),
    ] {
        let other = mask(p, [seed, step, first_token], stream);
        assert_uncorrelated(what, &base, &other, f64::from(p));
    }
    for shift in [1, 2, 4, 16] {
        assert_uncorrelated("columns", &base[shift..], &base, f64::from(p));
    }
}

#[test]
fn a_mask_follows_its_token_whatever_pass_it_is_in() {
    let d = Dropout { p: 0.2, stream: 3 };
    let whole = observed_mask(d, pass(1, 2, 10), 64, 33);
    for from in [1, 7, 63] {
        let part = observed_mask(d, pass(1, 2, 10 + from as u64), 64 - from, 33);
        assert_eq!(whole[from * 33..], part[..], "from row {from}");
    }
}
