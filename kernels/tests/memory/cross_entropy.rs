use crate::gpu::{Random, f64s, gpu, poisoned, poisoned_f32, within};
use crate::{bits, bits32, few, rounded, wide};
use half::bf16;
use medft_kernels::cross_entropy::{self, Chunk, Gradient, NO_TARGET};
use medft_kernels::linear::StepState;
use proptest::prelude::*;

struct Case {
    rows: usize,
    vocab: usize,
    stride: usize,
    d_stride: usize,
    scale: f32,
    logits: Vec<f32>,
    targets: Vec<u32>,
}

/// Rows of many kinds: usual, a target at p ~ 1, one at p ~ 0, huge logits, masked tokens, all equal. Columns beyond the vocabulary are NaN.
fn case(rows: usize, vocab: usize, stride: usize, d_stride: usize, seed: u64) -> Case {
    let mut random = Random(seed);
    let mut logits = vec![f32::NAN; rows * stride];
    let mut targets = vec![];
    for (r, row) in logits.chunks_mut(stride).enumerate() {
        let target = random.below(vocab);
        let (centre, deviation) = if r % 6 == 3 {
            (500.0, 60.0)
        } else {
            (5.0, 3.0)
        };
        for z in &mut row[..vocab] {
            *z = (centre + random.normal(deviation)) as f32;
        }
        match r % 6 {
            1 => row[target] = 45.0,
            2 => row[target] = -60.0,
            4 => row[..vocab]
                .iter_mut()
                .enumerate()
                .filter(|(c, _)| c % 3 == 0 && *c != target)
                .for_each(|(_, z)| *z = f32::NEG_INFINITY),
            5 => row[..vocab].fill(-7.25),
            _ => {}
        }
        targets.push(target as u32);
    }
    Case {
        rows,
        vocab,
        stride,
        d_stride,
        scale: 0.37,
        logits,
        targets,
    }
}

/// Where the losses begin.
const FIRST: u32 = 3;

struct Got {
    losses: Vec<f32>,
    lse: Vec<f32>,
    d: Vec<bf16>,
}

fn run(c: &Case, fused: bool) -> Option<Got> {
    let gpu = gpu()?;
    let (logits, targets) = (
        gpu.upload(&c.logits).unwrap(),
        gpu.upload(&c.targets).unwrap(),
    );
    let state = StepState {
        seed: 0,
        step: 0,
        first_token: 0,
        first_target: FIRST,
        loss_scale: c.scale,
    };
    let state = gpu.upload(&[state]).unwrap();
    let (losses, lse, d) = (
        poisoned_f32(gpu, FIRST as usize + c.rows),
        poisoned_f32(gpu, c.rows),
        poisoned(gpu, c.rows * c.d_stride),
    );
    let chunk = Chunk {
        rows: c.rows,
        vocab: c.vocab,
        logits: logits.ptr(),
        stride: c.stride,
        targets: targets.ptr(),
        state: state.ptr(),
    };
    let gradient = Gradient {
        d: d.ptr(),
        stride: c.d_stride,
    };
    if fused {
        cross_entropy::loss_and_gradient(gpu, &chunk, losses.ptr(), lse.ptr(), &gradient).unwrap();
    } else {
        cross_entropy::loss(gpu, &chunk, losses.ptr(), lse.ptr()).unwrap();
        cross_entropy::gradient(gpu, &chunk, lse.ptr(), &gradient).unwrap();
    }
    Some(Got {
        losses: losses.download().unwrap().split_off(FIRST as usize),
        lse: lse.download().unwrap(),
        d: d.download().unwrap(),
    })
}

fn check(c: &Case, fused: bool) {
    let Some(got) = run(c, fused) else { return };
    let what = |name: &str| {
        format!(
            "{name} of {} x {} (strides {}, {}), fused {fused}",
            c.rows, c.vocab, c.stride, c.d_stride
        )
    };
    let (mut losses, mut lses) = (vec![], vec![]);
    for r in 0..c.rows {
        let z = wide(&c.logits[r * c.stride..r * c.stride + c.vocab]);
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        let target = c.targets[r] as usize;
        losses.push(lse - z[target]);
        lses.push(lse);
        let d = f64s(&got.d[r * c.d_stride..(r + 1) * c.d_stride]);
        let scale = f64::from(c.scale);
        let p: Vec<f64> = z.iter().map(|z| (z - lse).exp()).collect();
        let want: Vec<f64> = (0..c.d_stride)
            .map(|i| {
                if i < c.vocab {
                    scale * (p[i] - f64::from(u8::from(i == target)))
                } else {
                    0.0
                }
            })
            .collect();
        // p: the error of an f32 lse near this size, and 2 ulp of the exponential of a difference of up to 90.
        let relative = 4e-6 + lse.abs() * 1e-7;
        within(&what(&format!("gradient of row {r}")), &d, &want, |i| {
            if i >= c.vocab {
                0.0
            } else {
                rounded(want[i], scale * relative * p[i]) + 1e-37
            }
        });
    }
    within(&what("losses"), &wide(&got.losses), &losses, |i| {
        5e-6 + 3e-7 * losses[i].abs()
    });
    within(&what("lse"), &wide(&got.lse), &lses, |i| {
        5e-6 + 3e-7 * lses[i].abs()
    });
}

fn both(rows: usize, vocab: usize, stride: usize, d_stride: usize, seed: u64) {
    let c = case(rows, vocab, stride, d_stride, seed);
    check(&c, true);
    check(&c, false);
}

proptest! {
    #![proptest_config(few(12))]
    #[test]
    fn cross_entropy_equals_f64(rows in 1usize..10, vocab in 1usize..9000, pad in 0usize..3, d_pad in 0usize..9, seed: u64) {
        // pad 0: rows as they come; 1: to a multiple of 8; 2: one more than that.
        let to = |pad| match pad { 0 => vocab, 1 => vocab.next_multiple_of(8), _ => vocab.next_multiple_of(8) + 1 };
        both(rows, vocab, to(pad), if d_pad < 6 { vocab.next_multiple_of(8) } else { vocab + d_pad }, seed);
    }
}

#[test]
fn cross_entropy_at_edges() {
    for vocab in [1, 2, 3, 4, 5, 4095, 4096, 4097, 16383, 16384, 16385] {
        both(
            6,
            vocab,
            vocab.next_multiple_of(4),
            vocab.next_multiple_of(8),
            13,
        );
    }
}

#[test]
fn cross_entropy_of_real_vocabularies() {
    for vocab in [32_000, 49_152, 100_002, 128_256, 151_936] {
        both(
            6,
            vocab,
            vocab.next_multiple_of(8),
            vocab.next_multiple_of(8),
            17,
        );
    }
    both(2, 58_117, 58_117, 58_120, 19); // rows that are not aligned, and do not fit into shared memory
}

#[test]
fn nan_and_infinity_reach_the_loss() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut c = case(3, 5000, 5000, 5000, 1);
        c.logits[5000 + 77] = bad;
        for fused in [true, false] {
            let Some(got) = run(&c, fused) else { return };
            assert!(
                got.losses[1].is_nan() && !got.losses[0].is_nan() && !got.losses[2].is_nan(),
                "{bad}: {:?}",
                got.losses
            );
            assert!(got.d[5000..10_000].iter().any(|d| d.is_nan()));
        }
    }
}

#[test]
fn a_row_without_a_target_gets_no_loss_and_no_gradient() {
    for vocab in [4097, 49_152] {
        let mut c = case(
            4,
            vocab,
            vocab.next_multiple_of(8),
            vocab.next_multiple_of(8),
            3,
        );
        let Some(want) = run(&c, true) else { return };
        c.targets[2] = NO_TARGET;
        for fused in [true, false] {
            let got = run(&c, fused).unwrap();
            let mut rows = got
                .d
                .chunks(c.d_stride)
                .zip(want.d.chunks(c.d_stride))
                .enumerate();
            assert!(got.losses[2].is_nan(), "poison stays");
            assert!(rows.all(|(row, (got, want))| match row {
                2 => got.iter().all(|d| d.to_f32() == 0.0),
                _ => !fused || bits(got) == bits(want),
            }));
        }
    }
}

#[test]
fn cross_entropy_repeats_bit_for_bit() {
    let c = case(150, 30_001, 30_004, 30_008, 23);
    let Some(first) = run(&c, true) else { return };
    for _ in 0..20 {
        let again = run(&c, true).unwrap();
        assert_eq!(bits32(&again.losses), bits32(&first.losses));
        assert_eq!(bits(&again.d), bits(&first.d));
    }
}
