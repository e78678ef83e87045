//! Packed attention, forward and backward, against f64 on the bf16 inputs.
//!
//! Bounds (KERNELS.md, section 8): O and the gradients by relative norm, LSE absolutely, and each tensor's largest error at most twice that
//! of a reference that rounds where the kernel must (P and dS as operands, O, the result).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "attention_reference/mod.rs"]
mod attention_reference;
#[path = "gpu/mod.rs"]
mod gpu;

use attention_reference as reference;
use gpu::{Random, f64s, poisoned, poisoned_f32, relative, within};
use half::bf16;
use medft_kernels::attention::{self, Backward, Forward, Heads, Rope, Work, Works};
use medft_kernels::device::Device;
use medft_kernels::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Debug, Clone)]
struct Case {
    heads: Heads,
    lengths: Vec<usize>,
    /// Of q and k; 1 makes scores of about 1.
    deviation: f64,
    rope: bool,
    seed: u64,
}

struct Inputs {
    qkv: Vec<bf16>,
    dout: Vec<bf16>,
    table: Vec<f32>,
    positions: Vec<u32>,
    scale: f32,
}

#[derive(PartialEq, Clone)]
struct Outputs {
    out: Vec<bf16>,
    lse: Vec<f32>,
    dqkv: Vec<bf16>,
}

impl Outputs {
    fn bits(&self) -> Vec<u32> {
        let halves = self.out.iter().chain(&self.dqkv);
        halves
            .map(|v| u32::from(v.to_bits()))
            .chain(self.lse.iter().map(|v| v.to_bits()))
            .collect()
    }
}

fn heads(queries: usize, keys: usize, dim: usize, window: Option<u32>) -> Heads {
    Heads {
        queries,
        keys,
        dim,
        window,
    }
}

fn inputs(case: &Case) -> Inputs {
    let mut random = Random(case.seed);
    let tokens: usize = case.lengths.iter().sum();
    let (h, width) = (&case.heads, case.heads.width());
    let rotated = (h.queries + h.keys) * h.dim;
    let qkv = (0..tokens * width)
        .map(|i| {
            let deviation = if i % width < rotated {
                case.deviation
            } else {
                1.0
            };
            bf16::from_f64(random.normal(deviation))
        })
        .collect();
    let longest = case.lengths.iter().copied().max().unwrap();
    let table = (0..longest * h.dim / 2)
        .flat_map(|i| {
            let (position, pair) = (i / (h.dim / 2), i % (h.dim / 2));
            let angle = position as f64 * 10000f64.powf(-2.0 * pair as f64 / h.dim as f64);
            [angle.cos() as f32, angle.sin() as f32]
        })
        .collect();
    let positions = case.lengths.iter().flat_map(|l| 0..*l as u32).collect();
    Inputs {
        qkv,
        dout: random.bf16s(tokens * h.queries * h.dim, 1.0),
        table,
        positions,
        scale: (1.0 / (h.dim as f64).sqrt()) as f32,
    }
}

fn run(device: &Device, case: &Case, i: &Inputs) -> Outputs {
    run_on(device, device, case, i)
}

fn run_on(l: &impl Launcher, device: &Device, case: &Case, i: &Inputs) -> Outputs {
    let tokens: usize = case.lengths.iter().sum();
    let qkv = device.upload(&i.qkv).unwrap();
    let dout = device.upload(&i.dout).unwrap();
    let table = device.upload(&i.table).unwrap();
    let positions = device.upload(&i.positions).unwrap();
    let out = poisoned(device, tokens * case.heads.queries * case.heads.dim);
    let dqkv = poisoned(device, i.qkv.len());
    let lse = poisoned_f32(device, case.heads.queries * tokens);
    let delta = poisoned_f32(device, case.heads.queries * tokens);
    let list = |tile| {
        let mut list = attention::work(&case.lengths, tile);
        list.push(bytemuck::Zeroable::zeroed()); // does nothing
        device.upload::<Work>(&list).unwrap()
    };
    let (forward, backward) = (
        list(attention::FORWARD_TILE),
        list(attention::BACKWARD_TILE),
    );
    let works = |list: &medft_kernels::device::Buffer<Work>, tile| Works {
        items: list.ptr(),
        len: list.len(),
        tile,
    };
    attention::forward(
        l,
        &Forward {
            heads: case.heads,
            tokens,
            work: works(&forward, attention::FORWARD_TILE),
            qkv: qkv.ptr(),
            scale: i.scale,
            out: out.ptr(),
            lse: lse.ptr(),
        },
    )
    .unwrap();
    attention::backward(
        l,
        &Backward {
            heads: case.heads,
            tokens,
            work: works(&backward, attention::BACKWARD_TILE),
            qkv: qkv.ptr(),
            scale: i.scale,
            out: out.ptr(),
            lse: lse.ptr(),
            dout: dout.ptr(),
            delta: delta.ptr(),
            rope: case.rope.then_some(Rope {
                table: table.ptr(),
                positions: positions.ptr(),
            }),
            dqkv: dqkv.ptr(),
        },
    )
    .unwrap();
    Outputs {
        out: out.download().unwrap(),
        lse: lse.download().unwrap(),
        dqkv: dqkv.download().unwrap(),
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a, v| a.max(v.abs()))
}

fn largest_error(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).fold(0.0, |a, (g, w)| {
        if (g - w).is_finite() {
            a.max((g - w).abs())
        } else {
            f64::INFINITY
        }
    })
}

/// Relative norm and largest error of `got`, judged by those of the reference that rounds. `floor`: f32 noise where that reference is exact.
fn judge(what: &str, got: &[f64], want: &[f64], rounding: &[f64], most: f64, floor: f64) {
    let (mine, honest) = (relative(got, want), relative(rounding, want));
    assert!(
        mine <= most.max(2.0 * honest),
        "{what}: relative {mine:.2e} above {most:.0e} (rounding reference {honest:.2e})"
    );
    let bound = 2.0 * largest_error(rounding, want) + floor;
    within(what, got, want, |_| bound);
}

fn compare(device: &Device, case: &Case) {
    compare_on(device, device, case);
}

fn compare_on(l: &impl Launcher, device: &Device, case: &Case) {
    let i = inputs(case);
    let got = run_on(l, device, case, &i);
    let (h, scale) = (&case.heads, f64::from(i.scale));
    let (qkv, dout) = (f64s(&i.qkv), f64s(&i.dout));
    let (out, lse) = reference::forward(h, &case.lengths, &qkv, scale, false);
    let (out_rounded, _) = reference::forward(h, &case.lengths, &qkv, scale, true);
    let noise = 1e-5 * largest(&qkv);
    judge("out", &f64s(&got.out), &out, &out_rounded, 4e-3, noise);
    let got_lse: Vec<f64> = got.lse.iter().map(|v| f64::from(*v)).collect();
    within("lse", &got_lse, &lse, |_| 1e-4);

    let mut want = reference::backward(h, &case.lengths, &qkv, &dout, scale, false);
    let mut rounding = reference::backward(h, &case.lengths, &qkv, &dout, scale, true);
    if case.rope {
        reference::rotate_back(h, &i.table, &i.positions, &mut want);
        reference::rotate_back(h, &i.table, &i.positions, &mut rounding);
    }
    rounding
        .iter_mut()
        .for_each(|v| *v = reference::rounded(*v));
    let got = f64s(&got.dqkv);
    let tokens = case.lengths.iter().sum();
    // dP - delta cancels: f32 noise of sums of `dim` products, times k or q.
    let noise = 1e-5 * largest(&dout) * largest(&qkv) * largest(&qkv) * scale;
    for (what, from, count) in [
        ("dq", 0, h.queries),
        ("dk", h.queries, h.keys),
        ("dv", h.queries + h.keys, h.keys),
    ] {
        let part =
            |of: &[f64]| reference::columns(of, h.width(), 0, tokens, from * h.dim, count * h.dim);
        judge(
            what,
            &part(&got),
            &part(&want),
            &part(&rounding),
            1e-2,
            noise,
        );
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let ratio = prop::sample::select(vec![(1, 1), (2, 1), (3, 3), (4, 2), (6, 2), (7, 1), (8, 1)]);
    let dim = prop::sample::select(vec![32usize, 64, 128]);
    let window = prop_oneof![2 => Just(None), 1 => (1u32..200).prop_map(Some)];
    let lengths = prop::collection::vec(1usize..180, 1..4);
    (ratio, dim, window, lengths, any::<bool>(), any::<u64>()).prop_map(
        |((queries, keys), dim, window, lengths, rope, seed)| Case {
            heads: heads(queries, keys, dim, window),
            lengths,
            deviation: 1.0,
            rope,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, rng_seed: RngSeed::Fixed(8), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_batch_is_within_rounding(case in any_case()) {
        if let Some(device) = gpu::gpu() {
            compare(device, &case);
        }
    }
}

#[test]
fn lengths_around_the_tiles() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        for length in [1, 63, 64, 65, 127, 128, 129] {
            compare(
                device,
                &Case {
                    heads: heads(2, 1, dim, None),
                    lengths: vec![length],
                    deviation: 1.0,
                    rope: true,
                    seed: length as u64,
                },
            );
        }
    }
}

#[test]
fn sequences_of_one_token() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        let case = Case {
            heads: heads(4, 2, dim, None),
            lengths: vec![1; 40],
            deviation: 1.0,
            rope: true,
            seed: 1,
        };
        compare(device, &case);
        let i = inputs(&case);
        let (got, h) = (run(device, &case, &i), &case.heads);
        for (t, row) in got.out.chunks_exact(h.queries * dim).enumerate() {
            for (head, o) in row.chunks_exact(dim).enumerate() {
                let v = t * h.width() + (h.queries + h.keys + head / 2) * dim;
                assert_eq!(o, &i.qkv[v..v + dim], "the only value, unchanged");
            }
        }
    }
}

#[test]
fn large_logits() {
    let Some(device) = gpu::gpu() else { return };
    for (dim, window) in [(32, None), (64, Some(50)), (128, None)] {
        compare(
            device,
            &Case {
                heads: heads(4, 2, dim, window),
                lengths: vec![150, 70],
                deviation: 5.0,
                rope: true,
                seed: 3,
            },
        );
    }
}

#[test]
fn windows_at_the_edges_of_tiles() {
    let Some(device) = gpu::gpu() else { return };
    for window in [1, 2, 31, 32, 33, 63, 64, 65, 128, 129, 1000] {
        compare(
            device,
            &Case {
                heads: heads(2, 1, 64, Some(window)),
                lengths: vec![300, 5],
                deviation: 1.0,
                rope: false,
                seed: u64::from(window),
            },
        );
    }
}

#[test]
fn real_heads() {
    let Some(device) = gpu::gpu() else { return };
    for (queries, keys, dim) in [(16, 2, 128), (32, 8, 128), (9, 3, 64)] {
        compare(
            device,
            &Case {
                heads: heads(queries, keys, dim, None),
                lengths: vec![97, 131],
                deviation: 1.0,
                rope: true,
                seed: 5,
            },
        );
    }
}

/// The GPU, said to have the shared memory of a 4090 or 5090.
struct Small<'a>(&'a Device, Gpu);

impl Launcher for Small<'_> {
    fn gpu(&self) -> &Gpu {
        &self.1
    }
    fn launch<P: bytemuck::Pod>(
        &self,
        kernel: Kernel,
        geometry: Geometry,
        params: &P,
    ) -> Result<(), LaunchError> {
        assert!(geometry.shared <= self.1.shared_per_block);
        self.0.launch(kernel, geometry, params)
    }
    fn tensor_map(
        &self,
        _: Ptr<bf16>,
        _: usize,
        _: usize,
        _: usize,
        _: u32,
        _: u32,
    ) -> Result<TensorMap, LaunchError> {
        unreachable!("no TMA before sm_90")
    }
}

#[test]
fn a_gpu_with_little_shared_memory() {
    let Some(device) = gpu::gpu() else { return };
    let mut gpu = device.gpu().clone();
    gpu.shared_per_block = 99 << 10;
    let small = Small(device, gpu);
    for (window, lengths) in [(None, vec![129, 1, 300]), (Some(33), vec![161, 64])] {
        let case = Case {
            heads: heads(4, 2, 128, window),
            lengths,
            deviation: 1.0,
            rope: true,
            seed: 41,
        };
        compare_on(&small, device, &case);
    }
}

#[test]
fn a_sequence_is_bitwise_the_same_alone_and_packed() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        let case = Case {
            heads: heads(4, 2, dim, None),
            lengths: vec![77, 200, 65],
            deviation: 1.0,
            rope: true,
            seed: 9,
        };
        let i = inputs(&case);
        let packed = run(device, &case, &i);
        let tokens: usize = case.lengths.iter().sum();
        let (width, o_width) = (case.heads.width(), case.heads.queries * dim);
        let mut start = 0;
        for &length in &case.lengths {
            let rows = start..start + length;
            let alone = Inputs {
                qkv: i.qkv[rows.start * width..rows.end * width].to_vec(),
                dout: i.dout[rows.start * o_width..rows.end * o_width].to_vec(),
                table: i.table.clone(),
                positions: i.positions[rows.clone()].to_vec(),
                scale: i.scale,
            };
            let alone = run(
                device,
                &Case {
                    lengths: vec![length],
                    ..case.clone()
                },
                &alone,
            );
            let part = Outputs {
                out: packed.out[rows.start * o_width..rows.end * o_width].to_vec(),
                dqkv: packed.dqkv[rows.start * width..rows.end * width].to_vec(),
                lse: (0..case.heads.queries)
                    .flat_map(|h| {
                        packed.lse[h * tokens + rows.start..h * tokens + rows.end].to_vec()
                    })
                    .collect(),
            };
            assert!(part.bits() == alone.bits(), "dim {dim}, {length} rows");
            start += length;
        }
    }
}

#[test]
fn a_neighbour_full_of_nan_is_not_seen() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        let case = Case {
            heads: heads(4, 2, dim, None),
            lengths: vec![65, 70, 33],
            deviation: 1.0,
            rope: true,
            seed: 11,
        };
        let mut i = inputs(&case);
        let clean = run(device, &case, &i);
        let (width, o_width) = (case.heads.width(), case.heads.queries * dim);
        i.qkv[65 * width..135 * width].fill(bf16::NAN);
        i.dout[65 * o_width..135 * o_width].fill(bf16::NAN);
        let dirty = run(device, &case, &i);
        for rows in [0..65, 135..168] {
            assert!(
                clean.out[rows.start * o_width..rows.end * o_width]
                    == dirty.out[rows.start * o_width..rows.end * o_width]
            );
            assert!(
                clean.dqkv[rows.start * width..rows.end * width]
                    == dirty.dqkv[rows.start * width..rows.end * width]
            );
        }
    }
}

#[test]
fn twenty_runs_are_bitwise_equal() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        let case = Case {
            heads: heads(16, 2, dim, None),
            lengths: vec![1000, 129, 517],
            deviation: 1.0,
            rope: true,
            seed: 13,
        };
        let i = inputs(&case);
        let first = run(device, &case, &i).bits();
        for _ in 1..20 {
            assert!(run(device, &case, &i).bits() == first, "dim {dim}");
        }
    }
}

/// The shape of a training step: some rows of one head against f64.
#[test]
fn a_long_sequence_by_samples() {
    let Some(device) = gpu::gpu() else { return };
    let case = Case {
        heads: heads(16, 2, 128, None),
        lengths: vec![1500, 548],
        deviation: 1.0,
        rope: false,
        seed: 17,
    };
    let i = inputs(&case);
    let got = run(device, &case, &i);
    let (h, qkv) = (&case.heads, f64s(&i.qkv));
    let (start, length, head, dim) = (1500, 548, 11, 128);
    let part = |of: &[f64], c: usize, start, len| {
        reference::columns(of, h.width(), start, len, c * dim, dim)
    };
    let (k, v) = (part(&qkv, 17, start, length), part(&qkv, 19, start, length));
    let q = part(&qkv, head, start + 500, 48);
    let s = reference::Sequence {
        q: &q,
        k: &k,
        v: &v,
        past: 500,
        dim,
        scale: f64::from(i.scale),
        window: None,
    };
    let ((want, _), (rounding, _)) = (s.forward(false), s.forward(true));
    let out = f64s(&got.out);
    let mine = reference::columns(&out, h.queries * dim, start + 500, 48, head * dim, dim);
    judge("out", &mine, &want, &rounding, 4e-3, 1e-5);
    let (mut dq, mut dq_rounded) = (vec![0.0; q.len()], vec![0.0; q.len()]);
    let mut rest = vec![0.0; k.len()];
    let dout = f64s(&i.dout);
    let dout = reference::columns(&dout, h.queries * dim, start + 500, 48, head * dim, dim);
    s.backward(&dout, false, &mut dq, &mut rest.clone(), &mut rest);
    s.backward(&dout, true, &mut dq_rounded, &mut rest.clone(), &mut rest);
    let dqkv = f64s(&got.dqkv);
    judge(
        "dq",
        &part(&dqkv, head, start + 500, 48),
        &dq,
        &dq_rounded,
        1e-2,
        1e-5,
    );
}
