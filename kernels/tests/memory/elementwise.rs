use crate::gpu::{Random, f64s, gpu, poisoned, poisoned_f32, within};
use crate::{bits, few, rounded};
use half::bf16;
use medft_kernels::elementwise;
use proptest::prelude::*;

/// Gates from -100 to 100, zeros among them.
fn gates(random: &mut Random, len: usize) -> Vec<bf16> {
    (0..len)
        .map(|i| match i % 11 {
            0 => bf16::from_f64(random.normal(40.0)),
            1 => bf16::ZERO,
            _ => bf16::from_f64(random.normal(2.0)),
        })
        .collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn check_swiglu(rows: usize, inner: usize, seed: u64, in_place: bool) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(seed);
    let gate_up = gates(&mut random, rows * 2 * inner);
    let dh = random.bf16s(rows * inner, 0.5);
    let device = gpu.upload(&gate_up).unwrap();
    let h = poisoned(gpu, rows * inner);
    elementwise::swiglu(gpu, rows, inner, device.ptr(), h.ptr()).unwrap();
    let d = gpu.upload(&dh).unwrap();
    let (dgate_up, h_again) = if in_place {
        elementwise::swiglu_backward(
            gpu,
            rows,
            inner,
            device.ptr(),
            d.ptr(),
            device.ptr(),
            Some(d.ptr()),
        )
        .unwrap();
        (device.download().unwrap(), d.download().unwrap())
    } else {
        let out = poisoned(gpu, rows * 2 * inner);
        elementwise::swiglu_backward(gpu, rows, inner, device.ptr(), d.ptr(), out.ptr(), None)
            .unwrap();
        (out.download().unwrap(), h.download().unwrap())
    };
    let h = h.download().unwrap();
    assert_eq!(bits(&h), bits(&h_again));
    let (values, dh) = (f64s(&gate_up), f64s(&dh));
    let (mut want_h, mut want_d) = (vec![0.0; rows * inner], vec![0.0; 2 * rows * inner]);
    let mut path = vec![0.0; 2 * rows * inner];
    for r in 0..rows {
        for i in 0..inner {
            let (g, u, d) = (
                values[2 * r * inner + i],
                values[2 * r * inner + inner + i],
                dh[r * inner + i],
            );
            let s = sigmoid(g);
            want_h[r * inner + i] = g * s * u;
            want_d[2 * r * inner + i] = d * u * s * (1.0 + g * (1.0 - s));
            path[2 * r * inner + i] = 1e-6 * (d * u * s).abs() * (1.0 + (g * (1.0 - s)).abs());
            want_d[2 * r * inner + inner + i] = d * g * s;
            path[2 * r * inner + inner + i] = 1e-6 * (d * g * s).abs();
        }
    }
    let what = |name: &str| format!("{name} of {rows} x {inner}, seed {seed}");
    // 1e-35: what the sigmoid below -88 is worth.
    within(&what("h"), &f64s(&h), &want_h, |i| {
        rounded(want_h[i], 1e-6 * want_h[i].abs()) + 1e-35
    });
    within(&what("dgate_up"), &f64s(&dgate_up), &want_d, |i| {
        rounded(want_d[i], path[i]) + 1e-35
    });
}

proptest! {
    #![proptest_config(few(16))]
    #[test]
    fn swiglu_equals_f64(rows in 1usize..20, eighths in 1usize..120, seed: u64, in_place: bool) {
        check_swiglu(rows, 8 * eighths, seed, in_place);
    }

    #[test]
    fn flat_ops_take_any_length(len in 0usize..20_000, seed: u64) {
        check_flat(len, seed);
    }

    #[test]
    fn rows_move_and_come_back(total in 1usize..60, eighths in 1usize..200, seed: u64) {
        check_rows(total, 8 * eighths, seed);
    }
}

#[test]
fn swiglu_at_edges_and_real_widths() {
    for (rows, inner) in [
        (1, 8),
        (1, 4096),
        (2, 4104),
        (3, 1536),
        (2, 8192),
        (1, 11008),
        (1, 14336),
    ] {
        check_swiglu(rows, inner, 3, true);
    }
    let Some(gpu) = gpu() else { return };
    assert!(
        elementwise::swiglu(
            gpu,
            1,
            12,
            medft_kernels::Ptr::NULL,
            medft_kernels::Ptr::NULL
        )
        .is_err()
    );
}

fn check_flat(len: usize, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(seed);
    let (dy, dx) = (random.bf16s(len, 1.0), random.bf16s(len, 1.0));
    let (from, to) = (gpu.upload(&dy).unwrap(), gpu.upload(&dx).unwrap());
    elementwise::add(gpu, len, from.ptr(), to.ptr()).unwrap();
    let want: Vec<bf16> = dx
        .iter()
        .zip(&dy)
        .map(|(x, y)| bf16::from_f32(x.to_f32() + y.to_f32()))
        .collect();
    assert_eq!(
        bits(&to.download().unwrap()),
        bits(&want),
        "add of {len}, seed {seed}"
    );

    let values: Vec<f32> = (0..len)
        .map(|i| match i % 7 {
            0 => f32::INFINITY,
            1 => -0.0,
            2 => f32::from_bits((random.bits() as u32) & 0x7f7f_ffff), // subnormal to huge
            _ => random.normal(3.0) as f32,
        })
        .collect();
    let (wide, narrow, back) = (
        gpu.upload(&values).unwrap(),
        poisoned(gpu, len),
        poisoned_f32(gpu, len),
    );
    elementwise::to_bf16(gpu, len, wide.ptr(), narrow.ptr()).unwrap();
    elementwise::to_f32(gpu, len, narrow.ptr(), back.ptr()).unwrap();
    let want: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    assert_eq!(
        bits(&narrow.download().unwrap()),
        bits(&want),
        "to_bf16 of {len}, seed {seed}"
    );
    let back = back.download().unwrap();
    assert!(
        back.iter()
            .zip(&want)
            .all(|(b, w)| b.to_bits() == w.to_f32().to_bits()),
        "to_f32 of {len}"
    );

    // One element behind the range stays as it was.
    let padded = poisoned(gpu, len + 1);
    elementwise::clear(gpu, len, padded.ptr()).unwrap();
    let cleared = bits(&padded.download().unwrap());
    assert!(
        cleared[..len].iter().all(|b| *b == 0) && cleared[len] == 0xffff,
        "clear of {len}"
    );
    let padded = poisoned_f32(gpu, len + 1);
    elementwise::clear(gpu, len, padded.ptr()).unwrap();
    let cleared = padded.download().unwrap();
    assert!(
        cleared[..len].iter().all(|b| b.to_bits() == 0) && cleared[len].is_nan(),
        "clear of {len} f32"
    );
}

fn check_rows(total: usize, columns: usize, seed: u64) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(seed);
    let x = random.bf16s(total * columns, 1.0);
    let rows: Vec<u32> = (0..total as u32).filter(|_| random.below(3) == 0).collect();
    let (device, index) = (gpu.upload(&x).unwrap(), gpu.upload(&rows).unwrap());
    let (out, back) = (
        poisoned(gpu, rows.len() * columns),
        poisoned(gpu, total * columns),
    );
    elementwise::gather_rows(
        gpu,
        rows.len(),
        columns,
        device.ptr(),
        index.ptr(),
        out.ptr(),
    )
    .unwrap();
    elementwise::scatter_rows(
        gpu,
        rows.len(),
        total,
        columns,
        out.ptr(),
        index.ptr(),
        back.ptr(),
    )
    .unwrap();
    let (out, back) = (out.download().unwrap(), back.download().unwrap());
    for (i, row) in rows.iter().enumerate() {
        let from = *row as usize * columns;
        assert_eq!(
            bits(&out[i * columns..(i + 1) * columns]),
            bits(&x[from..from + columns]),
            "row {row}"
        );
    }
    for row in 0..total {
        let at = row * columns..(row + 1) * columns;
        let want = if rows.contains(&(row as u32)) {
            bits(&x[at.clone()])
        } else {
            vec![0; columns]
        };
        assert_eq!(
            bits(&back[at]),
            want,
            "row {row} of {total} x {columns}, seed {seed}"
        );
    }
}
