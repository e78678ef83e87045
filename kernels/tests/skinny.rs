//! Few-row products on the GPU: every epilogue, adapters, groups, bf16 and NF4 weights, against f64; and the promise that a row's bits do
//! not depend on the rows beside it or on the variant that was chosen.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "skinny/data.rs"]
mod data;
#[path = "gpu/mod.rs"]
mod gpu;

use data::{Case, Data, Kind, Storage, data};
use gpu::{Random, poisoned, poisoned_f32, relative, within};
use half::bf16;
use medft_kernels::device::Device;
use medft_kernels::linear::{Epilogue, Forward, Group, LowForward, NO_LOW};
use medft_kernels::nf4::{Absmax, Weights};
use medft_kernels::{LaunchError, Ptr, skinny};
use proptest::prelude::*;

/// Runs rows `from .. from + rows`; y and h, whole. `by` names a variant.
fn run(
    gpu: &Device,
    d: &Data,
    from: usize,
    rows: usize,
    by: Option<&str>,
) -> Result<(Vec<bf16>, Vec<bf16>), LaunchError> {
    let group = Group {
        rows,
        ..d.case.group()
    };
    let (k, n, on) = (group.inputs, group.columns(), &d.device);
    let y = poisoned(gpu, rows * n);
    let h = poisoned(gpu, rows * n / 2);
    let forward = Forward {
        group,
        x: on.x.ptr().at(from * k),
        weight: on.weight.ptr(),
        bias: if d.case.bias {
            on.bias.ptr()
        } else {
            Ptr::NULL
        },
        low: (group.low() > 0).then(|| LowForward {
            low: on.low.ptr().at(from * group.low()),
            b: on.b.ptr(),
        }),
        epilogue: match d.case.kind {
            Kind::Plain => Epilogue::None,
            Kind::Residual => Epilogue::Residual(on.residual.ptr().at(from * n)),
            Kind::Rope(head_dim, rotated) => Epilogue::Rope {
                table: on.table.ptr(),
                positions: on.positions.ptr().at(from),
                head_dim,
                rotated,
            },
            Kind::SwiGlu => Epilogue::SwiGlu(h.ptr()),
        },
        y: y.ptr(),
    };
    let weights = (d.case.storage != Storage::Bf16).then_some(&on.members[..]);
    match (by, weights) {
        (Some(name), _) => skinny::forward_by(gpu, &forward, weights, name)?,
        (None, Some(weights)) => skinny::forward_nf4(gpu, &forward, weights)?,
        (None, None) => skinny::forward_bf16(gpu, &forward)?,
    }
    Ok((y.download()?, h.download()?))
}

/// The product in f64 and the bound of its error in f32, before the epilogue's own.
fn exact(d: &Data, t: usize, n: usize) -> (f64, f64) {
    let group = d.case.group();
    let k = group.inputs;
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for i in 0..k {
        let term = d.x[t * k + i].to_f64() * f64::from(d.weight[n * k + i]);
        sum += term;
        magnitude += term.abs();
    }
    // f32 sums (KERNELS.md, section 5); under NF4 the codebook enters the tensor core as bf16: at most 2^-9 off, each.
    let mut bound = 2.0 * k as f64 * 2f64.powi(-24) * magnitude;
    if d.case.storage != Storage::Bf16 {
        bound += 2f64.powi(-9) * magnitude;
    }
    let mut first = 0;
    let member = d.case.outputs.iter().position(|outputs| {
        first += outputs;
        n < first
    });
    let at = group.low_at[member.unwrap()];
    if at != NO_LOW {
        for r in 0..group.rank {
            let term = d.low[t * group.low() + at as usize + r].to_f64()
                * d.b[n * group.rank + r].to_f64();
            sum += term;
            bound += 2.0 * group.rank as f64 * 2f64.powi(-24) * term.abs();
        }
    }
    if d.case.bias {
        sum += f64::from(d.bias[n]);
        bound += 2f64.powi(-23) * sum.abs();
    }
    (sum, bound)
}

/// y after the epilogue with its bound, the output's rounding included.
fn wanted(d: &Data, t: usize, n: usize) -> (f64, f64) {
    let (v, e) = exact(d, t, n);
    let columns = d.case.group().columns();
    let (value, error) = match d.case.kind {
        Kind::Residual => (v + d.residual[t * columns + n].to_f64(), e),
        Kind::Rope(dim, rotated) if n < dim * rotated => {
            let (half, within_head) = (dim / 2, n % dim);
            let other = if within_head < half {
                n + half
            } else {
                n - half
            };
            let (u, f) = exact(d, t, other);
            let at = 2 * (d.positions[t] as usize * half + within_head % half);
            let (cos, sin) = (f64::from(d.table[at]), f64::from(d.table[at + 1]));
            let turned = if within_head < half {
                v * cos - u * sin
            } else {
                v * cos + u * sin
            };
            (turned, e + f + 2f64.powi(-22) * (v.abs() + u.abs()))
        }
        _ => (v, e),
    };
    (value, error + 2f64.powi(-8) * (value.abs() + error) + 1e-30)
}

fn wanted_h(d: &Data, t: usize, i: usize) -> (f64, f64) {
    let inner = d.case.outputs[0];
    let ((g, e), (u, f)) = (exact(d, t, i), exact(d, t, inner + i));
    let silu = g / (1.0 + (-g).exp());
    let value = silu * u;
    let error = 1.1 * e * (u.abs() + f) + f * silu.abs() + 2f64.powi(-20) * value.abs();
    (value, error + 2f64.powi(-8) * (value.abs() + error) + 1e-30)
}

/// Compares up to `samples` elements of the first `rows` rows with f64.
fn check(gpu: &Device, d: &Data, rows: usize, samples: usize) {
    let case = d.case;
    let (y, h) = run(gpu, d, 0, rows, None).unwrap();
    let n = case.group().columns();
    let mut r = Random(rows as u64 ^ 0x5A5A);
    let mut compare =
        |what: &str, got: &[bf16], width: usize, f: fn(&Data, usize, usize) -> (f64, f64)| {
            let chosen: Vec<usize> = if got.len() <= samples {
                (0..got.len()).collect()
            } else {
                (0..samples).map(|_| r.below(got.len())).collect()
            };
            let want: Vec<(f64, f64)> = chosen.iter().map(|i| f(d, i / width, i % width)).collect();
            let got_all: Vec<f64> = got.iter().map(|v| v.to_f64()).collect();
            assert!(
                got_all.iter().all(|v| v.is_finite()),
                "{what} {case:?}: poison left at {:?}",
                got_all.iter().position(|v| !v.is_finite())
            );
            let picked: Vec<f64> = chosen.iter().map(|i| got_all[*i]).collect();
            let values: Vec<f64> = want.iter().map(|w| w.0).collect();
            within(
                &format!("{what} of {rows} rows, {case:?}"),
                &picked,
                &values,
                |i| want[i].1,
            );
            if chosen.len() >= 256 {
                let error = relative(&picked, &values);
                assert!(error <= 3e-3, "{what} {case:?}: relative error {error}");
            }
        };
    compare("y", &y, n, wanted);
    if case.kind == Kind::SwiGlu {
        compare("h", &h, n / 2, wanted_h);
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        Just(Kind::Plain),
        Just(Kind::Residual),
        (1usize..5, 0usize..4).prop_map(|(sixteens, heads)| Kind::Rope(16 * sixteens, heads)),
        Just(Kind::SwiGlu)
    ];
    let storage = prop_oneof![
        Just(Storage::Bf16),
        Just(Storage::Nf4),
        Just(Storage::Nf4Double)
    ];
    let members = (1usize..12, 0usize..6, 0usize..6);
    (
        1usize..40,
        1usize..90,
        members,
        0usize..9,
        any::<[bool; 3]>(),
        any::<bool>(),
        kind,
        storage,
    )
        .prop_map(
            |(rows, eighths, (a, b, c), sixteens, adapted, bias, kind, storage)| {
                let inputs = if storage == Storage::Bf16 {
                    8 * eighths
                } else {
                    64 * (eighths / 6 + 1)
                };
                let mut outputs = [8 * a, 8 * b, if b == 0 { 0 } else { 8 * c }];
                match kind {
                    Kind::SwiGlu => outputs = [8 * a, 8 * a, 0],
                    Kind::Rope(dim, heads) => outputs[0] = (dim * heads).max(8),
                    _ => {}
                }
                Case {
                    rows,
                    inputs,
                    outputs,
                    rank: 16 * sixteens,
                    adapted,
                    bias,
                    kind,
                    storage,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_and_epilogue_agrees_with_f64(case in cases(), seed: u64) {
        let Some(gpu) = gpu::gpu() else { return Ok(()) };
        check(gpu, &data(gpu, case, seed), case.rows, 600);
    }
}

const PLAIN: Case = Case {
    rows: 1,
    inputs: 2048,
    outputs: [2048, 0, 0],
    rank: 0,
    adapted: [false; 3],
    bias: false,
    kind: Kind::Plain,
    storage: Storage::Bf16,
};

/// The decode step of Qwen2.5-3B, Llama-3.1-8B and a 14336-wide down projection, and edges of K.
fn model_shapes() -> Vec<Case> {
    let qkv = Case {
        outputs: [2048, 256, 256],
        kind: Kind::Rope(128, 18),
        bias: true,
        rank: 64,
        adapted: [true, false, true],
        ..PLAIN
    };
    let qkv_8b = Case {
        inputs: 4096,
        outputs: [4096, 1024, 1024],
        kind: Kind::Rope(128, 40),
        rank: 64,
        adapted: [true; 3],
        ..PLAIN
    };
    vec![
        qkv,
        Case {
            kind: Kind::Residual,
            ..PLAIN
        },
        Case {
            outputs: [5504, 5504, 0],
            kind: Kind::SwiGlu,
            rank: 16,
            adapted: [true, true, false],
            ..PLAIN
        },
        Case {
            inputs: 11008,
            kind: Kind::Residual,
            rank: 128,
            adapted: [true, false, false],
            ..PLAIN
        },
        Case {
            storage: Storage::Nf4Double,
            ..qkv_8b
        },
        Case {
            inputs: 14336,
            outputs: [1024, 0, 0],
            storage: Storage::Nf4Double,
            kind: Kind::Residual,
            ..PLAIN
        },
        Case {
            inputs: 4096,
            outputs: [2048, 2048, 0],
            storage: Storage::Nf4,
            kind: Kind::SwiGlu,
            ..PLAIN
        },
        Case {
            inputs: 8,
            outputs: [8, 0, 0],
            ..PLAIN
        },
        Case {
            inputs: 504,
            outputs: [40, 0, 0],
            ..PLAIN
        },
        Case {
            inputs: 520,
            outputs: [40, 0, 0],
            ..PLAIN
        },
        Case {
            inputs: 64,
            outputs: [8, 0, 0],
            storage: Storage::Nf4,
            ..PLAIN
        },
        Case {
            inputs: 64 * 17,
            outputs: [24, 0, 0],
            storage: Storage::Nf4Double,
            ..PLAIN
        },
        Case {
            inputs: 64 * 31,
            outputs: [24, 0, 0],
            storage: Storage::Nf4Double,
            ..PLAIN
        },
    ]
}

#[test]
fn model_shapes_agree_with_f64() {
    let Some(gpu) = gpu::gpu() else { return };
    for (i, case) in model_shapes().into_iter().enumerate() {
        let d = data(gpu, Case { rows: 48, ..case }, i as u64);
        for rows in [1, 4, 13, 48] {
            check(gpu, &d, rows, 300);
        }
    }
}

/// Every variant, and every number of rows around a row, gives that row the same bits.
#[test]
fn a_row_does_not_feel_its_neighbours() {
    let Some(gpu) = gpu::gpu() else { return };
    for (i, case) in model_shapes().into_iter().enumerate() {
        let d = data(gpu, Case { rows: 70, ..case }, 100 + i as u64);
        let n = case.group().columns();
        let (y, h) = run(gpu, &d, 0, 70, None).unwrap();
        let same = |what: String, from: usize, rows: usize, got: &(Vec<bf16>, Vec<bf16>)| {
            let bits = |v: &[bf16]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(
                bits(&got.0) == bits(&y[from * n..(from + rows) * n]),
                "{what}: y of rows {from}..+{rows} differs, {case:?}"
            );
            assert!(
                bits(&got.1) == bits(&h[from * n / 2..(from + rows) * n / 2]),
                "{what}: h of rows {from}..+{rows} differs, {case:?}"
            );
        };
        for (from, rows) in [
            (0, 1),
            (5, 1),
            (69, 1),
            (3, 2),
            (2, 4),
            (0, 7),
            (11, 8),
            (1, 9),
            (17, 16),
            (4, 31),
            (20, 48),
            (0, 64),
        ] {
            same(
                "chosen".into(),
                from,
                rows,
                &run(gpu, &d, from, rows, None).unwrap(),
            );
        }
        for name in skinny::variants(case.storage != Storage::Bf16) {
            for (from, rows) in [(9, 1), (6, 5), (13, 14), (3, 40)] {
                match run(gpu, &d, from, rows, Some(name)) {
                    Ok(got) => same(name.into(), from, rows, &got),
                    Err(LaunchError::Unsupported(_)) => {}
                    Err(e) => panic!("{name}: {e}"),
                }
            }
        }
    }
}

#[test]
fn twenty_runs_are_bitwise_equal() {
    let Some(gpu) = gpu::gpu() else { return };
    for case in model_shapes().into_iter().take(7) {
        let d = data(gpu, Case { rows: 5, ..case }, 7);
        let bits = |(y, h): (Vec<bf16>, Vec<bf16>)| {
            y.iter().chain(&h).map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let first = bits(run(gpu, &d, 0, 5, None).unwrap());
        for _ in 1..20 {
            assert!(first == bits(run(gpu, &d, 0, 5, None).unwrap()), "{case:?}");
        }
    }
}

#[test]
fn down_agrees_with_f64_and_rows_are_independent() {
    let Some(gpu) = gpu::gpu() else { return };
    for (rows, inputs, low_at, rank) in [
        (1, 2048, [0, 64, 128], 64),
        (5, 4096, [0, NO_LOW, 16], 16),
        (16, 14336, [0, NO_LOW, NO_LOW], 128),
        (33, 72, [NO_LOW, 0, NO_LOW], 16),
        (3, 8, [0, NO_LOW, NO_LOW], 48),
    ] {
        let group = Group {
            rows,
            inputs,
            outputs: [8, 8, 8],
            low_at,
            rank,
        };
        let (mut r, width, scale) = (Random(rows as u64), group.low(), 0.37f32);
        let (x, a) = (r.bf16s(rows * inputs, 1.0), r.bf16s(width * inputs, 0.05));
        let (dx, da, low) = (
            gpu.upload(&x).unwrap(),
            gpu.upload(&a).unwrap(),
            poisoned(gpu, rows * width),
        );
        skinny::down(gpu, &group, dx.ptr(), da.ptr(), scale, low.ptr()).unwrap();
        let got = low.download().unwrap();
        let exact = |i: usize| {
            let (t, n) = (i / width, i % width);
            let terms = (0..inputs).map(|k| {
                x[t * inputs + k].to_f64() * a[n * inputs + k].to_f64() * f64::from(scale)
            });
            terms.fold((0.0, 0.0), |(sum, magnitude), term| {
                (sum + term, magnitude + term.abs())
            })
        };
        let want: Vec<(f64, f64)> = (0..rows * width).map(exact).collect();
        let values: Vec<f64> = want.iter().map(|w| w.0).collect();
        within(
            &format!("down {rows} x {inputs}"),
            &gpu::f64s(&got),
            &values,
            |i| {
                2f64.powi(-8) * want[i].0.abs()
                    + 2.0 * inputs as f64 * 2f64.powi(-24) * want[i].1
                    + 1e-30
            },
        );
        let alone = poisoned(gpu, width);
        let t = rows - 1;
        skinny::down(
            gpu,
            &Group { rows: 1, ..group },
            dx.ptr().at(t * inputs),
            da.ptr(),
            scale,
            alone.ptr(),
        )
        .unwrap();
        assert!(
            alone.download().unwrap() == got[t * width..],
            "a row alone differs"
        );
    }
}

#[test]
fn logits_are_f32() {
    let Some(gpu) = gpu::gpu() else { return };
    for (rows, hidden, vocab) in [
        (1, 2048, 4099),
        (3, 64, 320),
        (17, 1024, 1003),
        (48, 2048, 257),
    ] {
        let mut r = Random(vocab as u64);
        let (x, w) = (r.bf16s(rows * hidden, 1.0), r.bf16s(vocab * hidden, 0.03));
        let (dx, dw, out) = (
            gpu.upload(&x).unwrap(),
            gpu.upload(&w).unwrap(),
            poisoned_f32(gpu, rows * vocab),
        );
        skinny::logits(gpu, rows, hidden, vocab, dx.ptr(), dw.ptr(), out.ptr()).unwrap();
        let got: Vec<f64> = out
            .download()
            .unwrap()
            .iter()
            .map(|v| f64::from(*v))
            .collect();
        assert!(got.iter().all(|v| v.is_finite()));
        let chosen: Vec<usize> = (0..800).map(|_| r.below(got.len())).collect();
        let exact = |i: &usize| {
            let terms = (0..hidden)
                .map(|k| x[i / vocab * hidden + k].to_f64() * w[i % vocab * hidden + k].to_f64());
            terms.fold((0.0, 0.0), |(sum, magnitude), term| {
                (sum + term, magnitude + term.abs())
            })
        };
        let want: Vec<(f64, f64)> = chosen.iter().map(exact).collect();
        let values: Vec<f64> = want.iter().map(|w| w.0).collect();
        let picked: Vec<f64> = chosen.iter().map(|i| got[*i]).collect();
        within(
            &format!("logits {rows} x {hidden} x {vocab}"),
            &picked,
            &values,
            |i| 2.0 * hidden as f64 * 2f64.powi(-24) * want[i].1 + 1e-30,
        );
        assert!(relative(&picked, &values) <= 3e-5);
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let Some(gpu) = gpu::gpu() else { return };
    let refused = |case: Case| {
        let d = Case {
            storage: Storage::Bf16,
            ..case
        };
        let d = data(gpu, d, 1);
        let weights = [Weights {
            packed: Ptr::NULL,
            absmax: Absmax::Plain(Ptr::NULL),
        }];
        let forward = Forward {
            group: case.group(),
            x: d.device.x.ptr(),
            weight: Ptr::NULL,
            bias: Ptr::NULL,
            low: None,
            epilogue: Epilogue::None,
            y: Ptr::NULL,
        };
        matches!(
            skinny::forward_nf4(gpu, &forward, &weights),
            Err(LaunchError::Unsupported(_))
        )
    };
    assert!(
        refused(Case {
            inputs: 72,
            outputs: [8, 0, 0],
            ..PLAIN
        }),
        "blocks cross rows"
    );
    assert!(
        refused(Case {
            inputs: 64,
            outputs: [8, 8, 0],
            ..PLAIN
        }),
        "two members, one matrix"
    );
}
