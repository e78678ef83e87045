//! Packed attention, forward and backward, in its portable and its Hopper form, against f64 on the bf16 inputs; bounds: `attention_reference`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod attention_reference;
mod gpu;

use attention_reference::{Packed, columns};
use gpu::{Random, f64s, poisoned, poisoned_f32};
use half::bf16;
use medft_kernels::attention::{self, Backward, Forward, Heads, Rope, Work, Works};
use medft_kernels::attention_hopper;
use medft_kernels::device::Device;
use medft_kernels::{Geometry, Gpu, Kernel, LaunchError, Launcher, Ptr, TensorMap};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Portable,
    Hopper,
}

/// Tests of both forms.
macro_rules! of_both_forms {
    ($($test:ident),* $(,)?) => {
        mod portable {
            $(#[test] fn $test() { super::$test(super::Form::Portable); })*
        }
        mod hopper {
            $(#[test] fn $test() { super::$test(super::Form::Hopper); })*
        }
    };
}

of_both_forms!(
    any_batch_is_within_rounding,
    lengths_around_the_tiles,
    sequences_of_one_token,
    large_logits,
    real_heads_and_many_tiles,
    a_sequence_is_bitwise_the_same_alone_and_packed,
    a_neighbour_full_of_nan_is_not_seen,
    twenty_runs_are_bitwise_equal,
    a_long_sequence,
);

impl Form {
    /// A GPU that has it.
    fn gpu(self) -> Option<&'static Device> {
        let device = gpu::gpu()?;
        if self == Form::Hopper && !device.gpu().hopper {
            eprintln!("skipped: {} is no Hopper GPU", device.gpu().name);
            return None;
        }
        Some(device)
    }

    fn dims(self) -> &'static [usize] {
        match self {
            Form::Portable => &[32, 64, 128],
            Form::Hopper => &[64, 128],
        }
    }

    /// Forward and backward.
    fn tiles(self) -> [usize; 2] {
        match self {
            Form::Portable => [attention::FORWARD_TILE, attention::BACKWARD_TILE],
            Form::Hopper => [attention_hopper::TILE; 2],
        }
    }

    fn forward(self, l: &impl Launcher, args: &Forward) {
        match self {
            Form::Portable => attention::forward(l, args),
            Form::Hopper => attention_hopper::forward(l, args),
        }
        .unwrap();
    }

    fn backward(self, l: &impl Launcher, args: &Backward) {
        match self {
            Form::Portable => attention::backward(l, args),
            Form::Hopper => attention_hopper::backward(l, args),
        }
        .unwrap();
    }
}

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
    fn new(queries: usize, keys: usize, dim: usize, lengths: &[usize], seed: u64) -> Self {
        Case {
            heads: Heads {
                queries,
                keys,
                dim,
                window: None,
            },
            lengths: lengths.to_vec(),
            deviation: 1.0,
            rope: true,
            seed,
        }
    }

    fn window(mut self, window: Option<u32>) -> Self {
        self.heads.window = window;
        self
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn wide(&self) -> usize {
        self.heads.queries * self.heads.dim
    }

    /// Rows of each sequence.
    fn rows(&self) -> Vec<Range<usize>> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - length..*end)
        });
        ends.collect()
    }
}

struct Inputs {
    qkv: Vec<bf16>,
    dout: Vec<bf16>,
    table: Vec<f32>,
    positions: Vec<u32>,
    scale: f32,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut random = Random(case.seed);
        let (h, width) = (&case.heads, case.heads.width());
        let rotated = (h.queries + h.keys) * h.dim;
        let deviation = |i: usize| [1.0, case.deviation][usize::from(i % width < rotated)];
        let qkv = (0..case.tokens() * width)
            .map(|i| bf16::from_f64(random.normal(deviation(i))))
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
            dout: random.bf16s(case.tokens() * case.wide(), 1.0),
            table,
            positions: case.lengths.iter().flat_map(|l| 0..*l as u32).collect(),
            scale: (1.0 / (h.dim as f64).sqrt()) as f32,
        }
    }

    fn part(&self, case: &Case, rows: Range<usize>) -> Self {
        let of = |all: &[bf16], width| all[rows.start * width..rows.end * width].to_vec();
        Inputs {
            qkv: of(&self.qkv, case.heads.width()),
            dout: of(&self.dout, case.wide()),
            table: self.table.clone(),
            positions: self.positions[rows.clone()].to_vec(),
            scale: self.scale,
        }
    }
}

struct Outputs {
    out: Vec<bf16>,
    lse: Vec<f32>,
    dqkv: Vec<bf16>,
}

impl Outputs {
    /// The bits of some rows.
    fn bits(&self, case: &Case, rows: Range<usize>) -> Vec<u32> {
        let of = |all: &[bf16], width| -> Vec<u32> {
            let part = &all[rows.start * width..rows.end * width];
            part.iter().map(|v| u32::from(v.to_bits())).collect()
        };
        let mut bits = of(&self.out, case.wide());
        bits.extend(of(&self.dqkv, case.heads.width()));
        for head in self.lse.chunks_exact(case.tokens()) {
            bits.extend(head[rows.clone()].iter().map(|v| v.to_bits()));
        }
        bits
    }
}

fn run(form: Form, device: &Device, case: &Case, i: &Inputs) -> Outputs {
    run_on(form, device, device, case, i)
}

fn run_on(form: Form, l: &impl Launcher, device: &Device, case: &Case, i: &Inputs) -> Outputs {
    let (tokens, heads) = (case.tokens(), case.heads);
    let qkv = device.upload(&i.qkv).unwrap();
    let dout = device.upload(&i.dout).unwrap();
    let table = device.upload(&i.table).unwrap();
    let positions = device.upload(&i.positions).unwrap();
    let out = poisoned(device, tokens * case.wide());
    let dqkv = poisoned(device, i.qkv.len());
    let lse = poisoned_f32(device, heads.queries * tokens);
    let delta = poisoned_f32(device, heads.queries * tokens);
    let lists = form.tiles().map(|tile| {
        let mut list = attention::work(&case.lengths, tile);
        list.insert(list.len() / 2, bytemuck::Zeroable::zeroed()); // does nothing
        (device.upload::<Work>(&list).unwrap(), tile)
    });
    let [ahead, back] = lists.each_ref().map(|(list, tile)| Works {
        items: list.ptr(),
        len: list.len(),
        tile: *tile,
    });
    let forward = Forward {
        heads,
        tokens,
        work: ahead,
        qkv: qkv.ptr(),
        scale: i.scale,
        out: out.ptr(),
        lse: lse.ptr(),
    };
    form.forward(l, &forward);
    let backward = Backward {
        heads,
        tokens,
        work: back,
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
    };
    form.backward(l, &backward);
    Outputs {
        out: out.download().unwrap(),
        lse: lse.download().unwrap(),
        dqkv: dqkv.download().unwrap(),
    }
}

fn compare(form: Form, device: &Device, case: &Case) {
    compare_on(form, device, device, case);
}

fn compare_on(form: Form, l: &impl Launcher, device: &Device, case: &Case) {
    let i = Inputs::new(case);
    let got = run_on(form, l, device, case, &i);
    let (h, qkv) = (&case.heads, f64s(&i.qkv));
    let packed = Packed {
        heads: *h,
        lengths: &case.lengths,
        qkv: &qkv,
        scale: f64::from(i.scale),
    };
    let (out, dqkv) = (f64s(&got.out), f64s(&got.dqkv));
    let lse: Vec<f64> = got.lse.iter().map(|v| f64::from(*v)).collect();
    let (want, want_lse) = packed.forward();
    let what = |tensor| format!("{tensor} of {case:?}, {form:?}");
    want.judge(&what("out"), &out);
    let (value, bound): (Vec<f64>, Vec<f64>) = want_lse.into_iter().unzip();
    gpu::within(&what("lse"), &lse, &value, |i| bound[i]);
    let rope = case.rope.then_some((&i.table[..], &i.positions[..]));
    let wants = packed.backward(&f64s(&i.dout), &out, &lse, rope);
    let mut first = 0;
    for ((tensor, heads), want) in [("dq", h.queries), ("dk", h.keys), ("dv", h.keys)]
        .into_iter()
        .zip(&wants)
    {
        let (column, width) = (first * h.dim, heads * h.dim);
        let got = columns(&dqkv, h.width(), 0, case.tokens(), column, width);
        want.judge(&what(tensor), &got);
        first += heads;
    }
}

fn any_case(form: Form) -> impl Strategy<Value = Case> {
    let ratio = prop::sample::select(vec![(1, 1), (2, 1), (3, 3), (4, 2), (6, 2), (7, 1), (8, 1)]);
    let window = match form {
        Form::Portable => prop_oneof![2 => Just(None), 1 => (1u32..200).prop_map(Some)].boxed(),
        Form::Hopper => Just(None).boxed(),
    };
    let lengths = prop::collection::vec(1usize..300, 1..4);
    let dim = prop::sample::select(form.dims());
    (ratio, dim, window, lengths, any::<bool>(), any::<u64>()).prop_map(
        |((queries, keys), dim, window, lengths, rope, seed)| Case {
            rope,
            ..Case::new(queries, keys, dim, &lengths, seed).window(window)
        },
    )
}

fn any_batch_is_within_rounding(form: Form) {
    let Some(device) = form.gpu() else { return };
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 24,
        rng_seed: RngSeed::Fixed(8),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let judged = runner.run(&any_case(form), |case| {
        compare(form, device, &case);
        Ok(())
    });
    judged.unwrap();
}

fn lengths_around_the_tiles(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        for length in [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 385] {
            compare(
                form,
                device,
                &Case::new(2, 1, dim, &[length], length as u64),
            );
        }
    }
}

fn sequences_of_one_token(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        let case = Case::new(4, 2, dim, &[1; 40], 1);
        compare(form, device, &case);
        let (i, h) = (Inputs::new(&case), &case.heads);
        let got = run(form, device, &case, &i);
        for (t, row) in got.out.chunks_exact(case.wide()).enumerate() {
            for (head, o) in row.chunks_exact(dim).enumerate() {
                let v = t * h.width() + (h.queries + h.keys + head / 2) * dim;
                assert_eq!(o, &i.qkv[v..v + dim], "the only value, unchanged");
            }
        }
    }
}

fn large_logits(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        let case = Case::new(4, 2, dim, &[150, 70, 1], 3);
        let deviation = 5.0;
        compare(form, device, &Case { deviation, ..case });
    }
}

/// More tiles than multiprocessors: Hopper's blocks take several, and their rings go round.
fn real_heads_and_many_tiles(form: Form) {
    let Some(device) = form.gpu() else { return };
    let lengths: Vec<usize> = (0..16).map(|i| 1 + 37 * i % 300).collect();
    compare(form, device, &Case::new(16, 2, 128, &lengths, 5));
    compare(form, device, &Case::new(9, 3, 64, &lengths, 6));
    compare(form, device, &Case::new(32, 8, 128, &[97, 131], 7));
}

fn a_sequence_is_bitwise_the_same_alone_and_packed(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        let case = Case::new(4, 2, dim, &[77, 300, 65], 9);
        let i = Inputs::new(&case);
        let packed = run(form, device, &case, &i);
        for rows in case.rows() {
            let one = Case {
                lengths: vec![rows.len()],
                ..case.clone()
            };
            let alone = run(form, device, &one, &i.part(&case, rows.clone()));
            assert!(
                packed.bits(&case, rows.clone()) == alone.bits(&one, 0..rows.len()),
                "dim {dim}, rows {rows:?}"
            );
        }
    }
}

/// Every other sequence is NaN, or infinite: in front of, behind, and inside the tiles of the rest.
fn a_neighbour_full_of_nan_is_not_seen(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        for foul in [bf16::NAN, bf16::INFINITY] {
            let case = Case::new(4, 2, dim, &[65, 70, 33, 193, 140, 30], 11);
            let mut i = Inputs::new(&case);
            let clean = run(form, device, &case, &i);
            for rows in case.rows().into_iter().skip(1).step_by(2) {
                let (width, wide) = (case.heads.width(), case.wide());
                i.qkv[rows.start * width..rows.end * width].fill(foul);
                i.dout[rows.start * wide..rows.end * wide].fill(foul);
            }
            let dirty = run(form, device, &case, &i);
            for rows in case.rows().into_iter().step_by(2) {
                assert!(
                    clean.bits(&case, rows.clone()) == dirty.bits(&case, rows.clone()),
                    "dim {dim}, {foul} beside rows {rows:?}"
                );
            }
        }
    }
}

fn twenty_runs_are_bitwise_equal(form: Form) {
    let Some(device) = form.gpu() else { return };
    for &dim in form.dims() {
        let case = Case::new(16, 2, dim, &[1000, 129, 517], 13);
        let i = Inputs::new(&case);
        let bits = || run(form, device, &case, &i).bits(&case, 0..case.tokens());
        let first = bits();
        for _ in 1..20 {
            assert!(bits() == first, "dim {dim}");
        }
    }
}

fn a_long_sequence(form: Form) {
    let Some(device) = form.gpu() else { return };
    compare(form, device, &Case::new(2, 1, 128, &[1500, 548], 17));
}

#[test]
fn windows_at_the_edges_of_tiles() {
    let Some(device) = gpu::gpu() else { return };
    for window in [1, 2, 31, 32, 33, 63, 64, 65, 128, 129, 1000] {
        let case = Case::new(2, 1, 64, &[300, 5], u64::from(window)).window(Some(window));
        compare(
            Form::Portable,
            device,
            &Case {
                rope: false,
                ..case
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
    for (window, lengths) in [(None, [129, 1, 300]), (Some(33), [161, 64, 2])] {
        let case = Case::new(4, 2, 128, &lengths, 41).window(window);
        compare_on(Form::Portable, &small, device, &case);
    }
}
