//! Packed attention for Hopper, forward and backward, against f64 on the bf16 inputs; bounds as in `attention.rs` (KERNELS.md, section 8).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "attention_reference/mod.rs"]
mod attention_reference;
#[path = "gpu/mod.rs"]
mod gpu;

use attention_reference as reference;
use gpu::{Random, f64s, poisoned, poisoned_f32, relative, within};
use half::bf16;
use medft_kernels::Launcher;
use medft_kernels::attention::{self, Backward, Forward, Heads, Rope, Work, Works};
use medft_kernels::attention_hopper::{self, TILE};
use medft_kernels::device::Device;
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

impl Case {
    fn new(queries: usize, keys: usize, dim: usize, lengths: Vec<usize>, seed: u64) -> Self {
        let heads = Heads {
            queries,
            keys,
            dim,
            window: None,
        };
        Case {
            heads,
            lengths,
            deviation: 1.0,
            rope: true,
            seed,
        }
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

struct Inputs {
    qkv: Vec<bf16>,
    dout: Vec<bf16>,
    table: Vec<f32>,
    positions: Vec<u32>,
    scale: f32,
}

/// A GPU that has these kernels.
fn hopper() -> Option<&'static Device> {
    let device = gpu::gpu()?;
    if !device.gpu().hopper {
        eprintln!("skipped: {} is no Hopper GPU", device.gpu().name);
        return None;
    }
    Some(device)
}

fn inputs(case: &Case) -> Inputs {
    let mut random = Random(case.seed);
    let (h, width) = (&case.heads, case.heads.width());
    let rotated = (h.queries + h.keys) * h.dim;
    let qkv = (0..case.tokens() * width)
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
    Inputs {
        qkv,
        dout: random.bf16s(case.tokens() * h.queries * h.dim, 1.0),
        table,
        positions: case.lengths.iter().flat_map(|l| 0..*l as u32).collect(),
        scale: (1.0 / (h.dim as f64).sqrt()) as f32,
    }
}

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

/// dqkv stays empty without `backward`.
fn run(device: &Device, case: &Case, i: &Inputs, backward: bool) -> Outputs {
    let (tokens, heads) = (case.tokens(), case.heads);
    let qkv = device.upload(&i.qkv).unwrap();
    let out = poisoned(device, tokens * heads.queries * heads.dim);
    let lse = poisoned_f32(device, heads.queries * tokens);
    let mut list = attention::work(&case.lengths, TILE);
    list.insert(list.len() / 2, bytemuck::Zeroable::zeroed()); // does nothing
    let list = device.upload::<Work>(&list).unwrap();
    let work = Works {
        items: list.ptr(),
        len: list.len(),
        tile: TILE,
    };
    let forward = Forward {
        heads,
        tokens,
        work,
        qkv: qkv.ptr(),
        scale: i.scale,
        out: out.ptr(),
        lse: lse.ptr(),
    };
    attention_hopper::forward(device, &forward).unwrap();
    let mut gradients = Vec::new();
    if backward {
        let dout = device.upload(&i.dout).unwrap();
        let (table, positions) = (
            device.upload(&i.table).unwrap(),
            device.upload(&i.positions).unwrap(),
        );
        let rope = case.rope.then_some(Rope {
            table: table.ptr(),
            positions: positions.ptr(),
        });
        let dqkv = poisoned(device, i.qkv.len());
        let delta = poisoned_f32(device, heads.queries * tokens);
        let backward = Backward {
            heads,
            tokens,
            work,
            qkv: qkv.ptr(),
            scale: i.scale,
            out: out.ptr(),
            lse: lse.ptr(),
            dout: dout.ptr(),
            delta: delta.ptr(),
            rope,
            dqkv: dqkv.ptr(),
        };
        attention_hopper::backward(device, &backward).unwrap();
        gradients = dqkv.download().unwrap();
    }
    Outputs {
        out: out.download().unwrap(),
        lse: lse.download().unwrap(),
        dqkv: gradients,
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a, v| a.max(v.abs()))
}

/// Relative norm and largest error of `got`, judged by those of the reference that rounds. `floor`: f32 noise where that reference is exact.
fn judge(
    what: &str,
    case: &Case,
    got: &[f64],
    want: &[f64],
    rounding: &[f64],
    most: f64,
    floor: f64,
) {
    let errors: Vec<f64> = rounding.iter().zip(want).map(|(r, w)| r - w).collect();
    let bound = 2.0 * largest(&errors) + floor;
    within(&format!("{what} of {case:?}"), got, want, |_| bound);
    let (mine, honest) = (relative(got, want), relative(rounding, want));
    assert!(
        mine <= most.max(2.0 * honest),
        "{what} of {case:?}: relative {mine:.2e} above {most:.0e} (rounding reference {honest:.2e})"
    );
}

fn compare(device: &Device, case: &Case, backward: bool) {
    let i = inputs(case);
    let got = run(device, case, &i, backward);
    let (h, scale) = (&case.heads, f64::from(i.scale));
    let (qkv, dout) = (f64s(&i.qkv), f64s(&i.dout));
    let (out, lse) = reference::forward(h, &case.lengths, &qkv, scale, false);
    let (out_rounded, _) = reference::forward(h, &case.lengths, &qkv, scale, true);
    let noise = 1e-5 * largest(&qkv);
    let got_lse: Vec<f64> = got.lse.iter().map(|v| f64::from(*v)).collect();
    within("lse", &got_lse, &lse, |_| 1e-4);
    judge(
        "out",
        case,
        &f64s(&got.out),
        &out,
        &out_rounded,
        4e-3,
        noise,
    );
    if !backward {
        return;
    }
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
    // dP - delta cancels: f32 noise of sums of `dim` products, times k or q.
    let noise = 1e-5 * largest(&dout) * largest(&qkv) * largest(&qkv) * scale;
    for (what, from, count) in [
        ("dq", 0, h.queries),
        ("dk", h.queries, h.keys),
        ("dv", h.queries + h.keys, h.keys),
    ] {
        let part = |of: &[f64]| {
            reference::columns(of, h.width(), 0, case.tokens(), from * h.dim, count * h.dim)
        };
        judge(
            what,
            case,
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
    let dim = prop::sample::select(vec![64usize, 128]);
    let lengths = prop::collection::vec(1usize..400, 1..4);
    (ratio, dim, lengths, any::<bool>(), any::<u64>()).prop_map(
        |((q, k), dim, lengths, rope, seed)| Case {
            rope,
            ..Case::new(q, k, dim, lengths, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, rng_seed: RngSeed::Fixed(8), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forward_of_any_batch(case in any_case()) {
        if let Some(device) = hopper() {
            compare(device, &case, false);
        }
    }

    #[test]
    fn backward_of_any_batch(case in any_case()) {
        if let Some(device) = hopper() {
            compare(device, &case, true);
        }
    }
}

fn around_the_tiles(backward: bool) {
    let Some(device) = hopper() else { return };
    let mut failed = Vec::new();
    for dim in [128, 64] {
        for length in [128, 1, 64, 65, 127, 129, 255, 256, 257, 641] {
            let case = Case::new(2, 1, dim, vec![length], length as u64);
            let one = std::panic::AssertUnwindSafe(|| compare(device, &case, backward));
            if std::panic::catch_unwind(one).is_err() {
                failed.push((dim, length));
            }
        }
    }
    assert!(failed.is_empty(), "(dim, length) {failed:?}");
}

#[test]
fn forward_of_lengths_around_the_tiles() {
    around_the_tiles(false);
}

#[test]
fn backward_of_lengths_around_the_tiles() {
    around_the_tiles(true);
}

/// More tiles than multiprocessors: blocks that take several, rings that go round.
fn many_tiles(backward: bool) {
    let Some(device) = hopper() else { return };
    for (queries, keys, dim) in [(16, 2, 128), (9, 3, 64)] {
        let lengths = (0..16).map(|i| 1 + 37 * i % 300).collect();
        compare(device, &Case::new(queries, keys, dim, lengths, 5), backward);
    }
}

#[test]
fn forward_of_many_tiles() {
    many_tiles(false);
}

#[test]
fn backward_of_many_tiles() {
    many_tiles(true);
}

fn large_logits(backward: bool) {
    let Some(device) = hopper() else { return };
    for dim in [64, 128] {
        compare(
            device,
            &Case {
                deviation: 5.0,
                ..Case::new(4, 2, dim, vec![150, 70, 1], 3)
            },
            backward,
        );
    }
}

#[test]
fn forward_of_large_logits() {
    large_logits(false);
}

#[test]
fn backward_of_large_logits() {
    large_logits(true);
}

#[test]
fn backward_of_a_sequence_is_bitwise_the_same_alone_and_packed() {
    let Some(device) = hopper() else { return };
    for dim in [64, 128] {
        let case = Case::new(4, 2, dim, vec![77, 300, 65], 9);
        let i = inputs(&case);
        let packed = run(device, &case, &i, true);
        let (width, o_width) = (case.heads.width(), case.heads.queries * dim);
        let mut start = 0;
        for &length in &case.lengths {
            let rows = start..start + length;
            let part = Inputs {
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
                &part,
                true,
            );
            assert!(
                packed.out[rows.start * o_width..rows.end * o_width] == alone.out,
                "out, {length} rows"
            );
            assert!(
                packed.dqkv[rows.start * width..rows.end * width] == alone.dqkv,
                "dqkv, {length} rows"
            );
            start += length;
        }
    }
}

fn twenty_runs(backward: bool) {
    let Some(device) = hopper() else { return };
    for dim in [64, 128] {
        let case = Case::new(16, 2, dim, vec![1000, 129, 517], 13);
        let i = inputs(&case);
        let first = run(device, &case, &i, backward).bits();
        for _ in 1..20 {
            assert!(
                run(device, &case, &i, backward).bits() == first,
                "dim {dim}"
            );
        }
    }
}

#[test]
fn forward_twenty_times_is_bitwise_equal() {
    twenty_runs(false);
}

#[test]
fn backward_twenty_times_is_bitwise_equal() {
    twenty_runs(true);
}

#[test]
fn a_neighbour_full_of_nan_is_not_seen() {
    let Some(device) = hopper() else { return };
    for dim in [64, 128] {
        let case = Case::new(4, 2, dim, vec![65, 70, 33, 193, 140], 11);
        let mut i = inputs(&case);
        let clean = run(device, &case, &i, true);
        let (width, o_width) = (case.heads.width(), case.heads.queries * dim);
        for rows in [65..135, 168..361] {
            i.qkv[rows.start * width..rows.end * width].fill(bf16::NAN);
            i.dout[rows.start * o_width..rows.end * o_width].fill(bf16::NAN);
        }
        let dirty = run(device, &case, &i, true);
        for rows in [0..65, 135..168, 361..501] {
            let (o, d) = (
                rows.start * o_width..rows.end * o_width,
                rows.start * width..rows.end * width,
            );
            assert!(
                clean.out[o.clone()] == dirty.out[o],
                "out, dim {dim}, rows {rows:?}"
            );
            assert!(
                clean.dqkv[d.clone()] == dirty.dqkv[d],
                "dqkv, dim {dim}, rows {rows:?}"
            );
        }
    }
}
