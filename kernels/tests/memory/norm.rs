use crate::gpu::{Random, f64s, gpu, poisoned, poisoned_f32, within};
use crate::{bits, bits32, few, rounded, wide};
use half::bf16;
use medft_kernels::norm;
use proptest::prelude::*;

const EPS: f32 = 1e-6;

struct Case {
    x: Vec<bf16>,
    gain: Vec<f32>,
    dy: Vec<bf16>,
    dx: Vec<bf16>,
    dgain: Vec<f32>,
}

struct Got {
    y: Vec<bf16>,
    rstd: Vec<f32>,
    dx: Vec<bf16>,
    dgain: Vec<f32>,
}

fn case(rows: usize, columns: usize, seed: u64) -> Case {
    let mut random = Random(seed);
    let n = rows * columns;
    Case {
        x: random.bf16s(n, 2.0),
        gain: random
            .f32s(columns, 0.3)
            .into_iter()
            .map(|g| g + 1.0)
            .collect(),
        dy: random.bf16s(n, 0.5),
        dx: random.bf16s(n, 1.0),
        dgain: random.f32s(columns, 1.0),
    }
}

fn run(rows: usize, columns: usize, c: &Case, trained: bool) -> Option<Got> {
    let gpu = gpu()?;
    let (x, gain) = (gpu.upload(&c.x).unwrap(), gpu.upload(&c.gain).unwrap());
    let (dy, dx) = (gpu.upload(&c.dy).unwrap(), gpu.upload(&c.dx).unwrap());
    let dgain = gpu.upload(&c.dgain).unwrap();
    let (y, rstd) = (poisoned(gpu, rows * columns), poisoned_f32(gpu, rows));
    let scratch = poisoned_f32(gpu, norm::column_sum_scratch(rows, columns));
    norm::forward(
        gpu,
        rows,
        columns,
        EPS,
        x.ptr(),
        gain.ptr(),
        y.ptr(),
        rstd.ptr(),
    )
    .unwrap();
    let gradient = trained.then(|| norm::GainGradient {
        dgain: dgain.ptr(),
        scratch: scratch.ptr(),
    });
    norm::backward(
        gpu,
        rows,
        columns,
        x.ptr(),
        rstd.ptr(),
        gain.ptr(),
        dy.ptr(),
        dx.ptr(),
        gradient,
    )
    .unwrap();
    Some(Got {
        y: y.download().unwrap(),
        rstd: rstd.download().unwrap(),
        dx: dx.download().unwrap(),
        dgain: dgain.download().unwrap(),
    })
}

fn check(rows: usize, columns: usize, seed: u64, trained: bool) {
    let c = case(rows, columns, seed);
    let Some(got) = run(rows, columns, &c, trained) else {
        return;
    };
    let what = |name: &str| format!("{name} of {rows} x {columns}, seed {seed}");
    let (x, dy, gain) = (f64s(&c.x), f64s(&c.dy), wide(&c.gain));
    let (mut rstds, mut y, mut dx, mut dx_path) = (vec![], vec![], vec![], vec![]);
    let mut dgain = wide(&c.dgain);
    let mut dgain_path: Vec<f64> = dgain.iter().map(|g| g.abs() * 1e-7).collect();
    for r in 0..rows {
        let at = r * columns;
        let (x, dy) = (&x[at..at + columns], &dy[at..at + columns]);
        let rstd =
            1.0 / (x.iter().map(|x| x * x).sum::<f64>() / columns as f64 + f64::from(EPS)).sqrt();
        rstds.push(rstd);
        let mean = (0..columns).map(|i| gain[i] * dy[i] * x[i]).sum::<f64>() / columns as f64;
        let pull = mean * rstd * rstd;
        for i in 0..columns {
            y.push(x[i] * rstd * gain[i]);
            let old = c.dx[at + i].to_f64();
            dx.push(old + rstd * (gain[i] * dy[i] - x[i] * pull));
            dx_path.push(
                1e-5 * (old.abs()
                    + rstd
                        * ((gain[i] * dy[i]).abs()
                            + (x[i] * pull).abs()
                            + x[i].abs() * rstd * 0.1)),
            );
            if trained {
                dgain[i] += x[i] * rstd * dy[i];
                // A sum of f32 products in chains of 16 and 128 partial sums.
                dgain_path[i] += 4e-6 * (x[i] * rstd * dy[i]).abs();
            }
        }
    }
    within(&what("rstd"), &wide(&got.rstd), &rstds, |i| 3e-6 * rstds[i]);
    within(&what("y"), &f64s(&got.y), &y, |i| {
        rounded(y[i], 1e-5 * y[i].abs())
    });
    within(&what("dx"), &f64s(&got.dx), &dx, |i| {
        rounded(dx[i], dx_path[i])
    });
    within(&what("dgain"), &wide(&got.dgain), &dgain, |i| dgain_path[i]);
}

proptest! {
    #![proptest_config(few(16))]
    #[test]
    fn norm_equals_f64(rows in 1usize..20, eighths in 1usize..300, seed: u64, trained: bool) {
        check(rows, 8 * eighths, seed, trained);
    }
}

#[test]
fn norm_at_edges_and_real_widths() {
    for (rows, columns) in [
        (1, 8),
        (3, 576),
        (4, 2048),
        (5, 2048),
        (2, 2056),
        (3, 3072),
        (2, 4096),
        (1, 8192),
        (2, 8200),
        (1, 32768),
    ] {
        check(rows, columns, 7, true);
    }
    for rows in [127, 128, 129, 521] {
        check(rows, 264, 11, true);
    }
}

#[test]
fn norm_of_huge_tiny_and_zero_rows() {
    let Some(gpu) = gpu() else { return };
    let columns = 64;
    let mut x = vec![bf16::from_f32(1e15); columns];
    x.extend(vec![bf16::from_f32(1e-15); columns]);
    x.extend(vec![bf16::ZERO; columns]);
    let (x, gain) = (
        gpu.upload(&x).unwrap(),
        gpu.upload(&vec![1f32; columns]).unwrap(),
    );
    let (y, rstd) = (poisoned(gpu, 3 * columns), poisoned_f32(gpu, 3));
    norm::forward(
        gpu,
        3,
        columns,
        EPS,
        x.ptr(),
        gain.ptr(),
        y.ptr(),
        rstd.ptr(),
    )
    .unwrap();
    let y = f64s(&y.download().unwrap());
    for (row, want) in [1.0, 1e-12, 0.0].into_iter().enumerate() {
        let row = &y[row * columns..(row + 1) * columns];
        within("a constant row", row, &vec![want; columns], |_| {
            0.01 * want + 1e-30
        });
    }
}

#[test]
fn norm_repeats_bit_for_bit() {
    let c = case(300, 1000, 5);
    let Some(first) = run(300, 1000, &c, true) else {
        return;
    };
    for _ in 0..20 {
        let again = run(300, 1000, &c, true).unwrap();
        assert_eq!(bits(&again.y), bits(&first.y));
        assert_eq!(bits(&again.dx), bits(&first.dx));
        assert_eq!(bits32(&again.dgain), bits32(&first.dgain));
    }
}

#[test]
fn column_sums_of_a_part_of_a_row() {
    let Some(gpu) = gpu() else { return };
    let (rows, stride, columns, at) = (131, 80, 24, 40);
    let mut random = Random(3);
    let dy = random.bf16s(rows * stride, 1.0);
    let before = random.f32s(columns, 1.0);
    let (device, sum) = (gpu.upload(&dy).unwrap(), gpu.upload(&before).unwrap());
    let scratch = poisoned_f32(gpu, norm::column_sum_scratch(rows, columns));
    norm::column_sum(
        gpu,
        rows,
        columns,
        stride,
        device.ptr().at(at),
        sum.ptr(),
        scratch.ptr(),
    )
    .unwrap();
    let column = |c: usize| (0..rows).map(move |r| r * stride + at + c);
    let want: Vec<f64> = (0..columns)
        .map(|c| f64::from(before[c]) + column(c).map(|i| dy[i].to_f64()).sum::<f64>())
        .collect();
    within(
        "column sums",
        &wide(&sum.download().unwrap()),
        &want,
        |_| 2e-4,
    );
}
