//! Adapters' skinny products and gradients, fully trained weights' gradients, and shadows, against f64.
#![allow(clippy::unwrap_used)]

#[path = "gpu/mod.rs"]
mod gpu;
#[path = "gpu/low_rank.rs"]
mod low_rank;

use gpu::{Random, gpu, poisoned, poisoned_f32, relative, within};
use half::bf16;
use low_rank::{DEVIATION, Masks, masks, random_group};
use medft_kernels::device::Device;
use medft_kernels::linear::{Group, NO_LOW};
use medft_kernels::lora::{self, Grads, Slots};
use medft_kernels::{Ptr, norm, weight_grad};
use proptest::prelude::*;

const BF16: f64 = 1.0 / 256.0;
const F32: f64 = 1.0 / 16_777_216.0;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// (got, wanted, sum of magnitudes): bf16 results of sums with `terms` terms.
fn check_bf16(what: &str, terms: usize, places: &[(f64, f64, f64)]) {
    let (got, want): (Vec<f64>, Vec<f64>) = places.iter().map(|p| (p.0, p.1)).unzip();
    within(what, &got, &want, |i| {
        BF16 * want[i].abs() + 2.0 * (terms + 4) as f64 * F32 * places[i].2 + 1e-30
    });
    if got.len() >= 64 {
        let error = relative(&got, &want);
        assert!(error <= 2.5e-3, "{what}: relative error {error}");
    }
}

/// The same for f32 results.
fn check_f32(what: &str, terms: usize, places: &[(f64, f64, f64)]) {
    let (got, want): (Vec<f64>, Vec<f64>) = places.iter().map(|p| (p.0, p.1)).unzip();
    within(what, &got, &want, |i| {
        2.0 * (terms + 4) as f64 * F32 * places[i].2 + 1e-30
    });
    if got.len() >= 64 {
        let error = relative(&got, &want);
        assert!(error <= 3e-5, "{what}: relative error {error}");
    }
}

fn sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()))
}

/// Adapted members: number, first low-rank column, first column of dy, outputs.
fn adapted(group: &Group) -> Vec<(usize, usize, usize, usize)> {
    let mut first = 0;
    let mut found = Vec::new();
    for m in 0..3 {
        if group.low_at[m] != NO_LOW {
            found.push((m, group.low_at[m] as usize, first, group.outputs[m]));
        }
        first += group.outputs[m];
    }
    found
}

struct Adapters {
    group: Group,
    masks: Option<Masks>,
    scale: f32,
    x: Vec<bf16>,
    dy: Vec<bf16>,
    a: Vec<bf16>,
    b: Vec<bf16>,
    low: Vec<bf16>,
    g: Vec<bf16>,
    ranks: [usize; 3],
}

impl Adapters {
    fn new(random: &mut Random, group: Group, masks: Option<Masks>) -> Self {
        let (t, k, n, low) = (group.rows, group.inputs, group.columns(), group.low());
        Adapters {
            group,
            masks,
            scale: 2.0 * random.unit() as f32 + 0.1,
            x: random.bf16s(t * k, 1.0),
            dy: random.bf16s(t * n, 1.0),
            a: random.bf16s(low * k, DEVIATION),
            b: random.bf16s(n * group.rank, DEVIATION),
            low: random.bf16s(t * low, 1.0),
            g: random.bf16s(t * low, 1.0),
            ranks: [0; 3].map(|_| group.rank.saturating_sub(random.below(16))),
        }
    }

    fn factor(&self, member: usize, row: usize, column: usize) -> f64 {
        self.masks
            .as_ref()
            .map_or(1.0, |m| m.factor(member, row, column))
    }

    fn down(&self, device: &Device) -> Vec<bf16> {
        let g = &self.group;
        let (x, a) = (
            device.upload(&self.x).unwrap(),
            device.upload(&self.a).unwrap(),
        );
        let drawn = self.masks.map(|m| m.draw(device, g));
        let low = poisoned(device, g.rows * g.low());
        lora::down(
            device,
            g,
            x.ptr(),
            a.ptr(),
            self.scale,
            drawn.as_ref().map(|d| &d.dropout),
            low.ptr(),
        )
        .unwrap();
        low.download().unwrap()
    }

    fn check_down(&self, device: &Device, rows: &[usize]) {
        let (g, got) = (&self.group, self.down(device));
        let mut places = Vec::new();
        for (m, at, ..) in adapted(g) {
            for &row in rows {
                for r in at..at + g.rank {
                    let (value, size) = sum((0..g.inputs).map(|k| {
                        self.factor(m, row, k)
                            * f64::from(self.scale)
                            * self.x[row * g.inputs + k].to_f64()
                            * self.a[r * g.inputs + k].to_f64()
                    }));
                    places.push((got[row * g.low() + r].to_f64(), value, size));
                }
            }
        }
        check_bf16(&format!("low of {g:?} {:?}", self.masks), g.inputs, &places);
    }

    fn check_up_backward(&self, device: &Device, rows: &[usize]) {
        let g = &self.group;
        let (dy, b) = (
            device.upload(&self.dy).unwrap(),
            device.upload(&self.b).unwrap(),
        );
        let out = poisoned(device, g.rows * g.low());
        lora::up_backward(device, g, dy.ptr(), b.ptr(), self.scale, out.ptr()).unwrap();
        let got = out.download().unwrap();
        let (n, mut places) = (g.columns(), Vec::new());
        for (_, at, first, outputs) in adapted(g) {
            for &row in rows {
                for r in 0..g.rank {
                    let (value, size) = sum((first..first + outputs).map(|o| {
                        f64::from(self.scale)
                            * self.dy[row * n + o].to_f64()
                            * self.b[o * g.rank + r].to_f64()
                    }));
                    places.push((got[row * g.low() + at + r].to_f64(), value, size));
                }
            }
        }
        check_bf16(&format!("g of {g:?}"), n, &places);
    }

    /// Gradients (dA, dB) of each adapted member, added to `before`.
    fn grads(&self, device: &Device, before: f32) -> Vec<(Vec<f32>, Vec<f32>)> {
        let g = &self.group;
        let (x, dy) = (
            device.upload(&self.x).unwrap(),
            device.upload(&self.dy).unwrap(),
        );
        let (low, gr) = (
            device.upload(&self.low).unwrap(),
            device.upload(&self.g).unwrap(),
        );
        let drawn = self.masks.map(|m| m.draw(device, g));
        let scratch = poisoned_f32(device, lora::scratch_len(g));
        let mut members = [None; 3];
        let mut buffers = Vec::new();
        for (m, _, _, outputs) in adapted(g) {
            let rank = self.ranks[m];
            let a = device.upload(&vec![before; rank * g.inputs]).unwrap();
            let b = device.upload(&vec![before; rank * outputs]).unwrap();
            members[m] = Some(Slots {
                a: a.ptr(),
                b: b.ptr(),
                rank,
            });
            buffers.push((a, b));
        }
        let args = Grads {
            x: x.ptr(),
            dy: dy.ptr(),
            low: low.ptr(),
            g: gr.ptr(),
            dropout: drawn.as_ref().map(|d| d.dropout),
            members,
            scratch: scratch.ptr(),
        };
        lora::grads(device, g, &args).unwrap();
        buffers
            .iter()
            .map(|(a, b)| (a.download().unwrap(), b.download().unwrap()))
            .collect()
    }

    fn check_grads(&self, device: &Device, columns: &[usize]) {
        let g = &self.group;
        let (before, low, n) = (0.5f32, g.low(), g.columns());
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for ((m, at, first, outputs), (a, b)) in
            adapted(g).into_iter().zip(self.grads(device, before))
        {
            let rank = self.ranks[m];
            for r in 0..rank {
                for &k in columns.iter().filter(|k| **k < g.inputs) {
                    let (value, size) = sum((0..g.rows).map(|t| {
                        self.factor(m, t, k)
                            * self.g[t * low + at + r].to_f64()
                            * self.x[t * g.inputs + k].to_f64()
                    }));
                    of_a.push((
                        f64::from(a[r * g.inputs + k]),
                        value + f64::from(before),
                        size + 0.5,
                    ));
                }
                for &o in columns.iter().filter(|o| **o < outputs) {
                    let (value, size) = sum((0..g.rows).map(|t| {
                        self.dy[t * n + first + o].to_f64() * self.low[t * low + at + r].to_f64()
                    }));
                    of_b.push((
                        f64::from(b[o * rank + r]),
                        value + f64::from(before),
                        size + 0.5,
                    ));
                }
            }
        }
        check_f32(&format!("dA of {g:?} {:?}", self.masks), g.rows, &of_a);
        check_f32(&format!("dB of {g:?}"), g.rows, &of_b);
    }
}

fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}

fn some(random: &mut Random, n: usize, count: usize) -> Vec<usize> {
    (0..count)
        .map(|_| random.below(n))
        .chain([0, n - 1])
        .collect()
}

fn group(rows: usize, inputs: usize, outputs: [usize; 3], rank: usize) -> Group {
    let mut group = Group {
        rows,
        inputs,
        outputs,
        low_at: [NO_LOW; 3],
        rank,
    };
    low_rank::adapt(&mut group, [true; 3]);
    group
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn low_rank_products_and_gradients(seed in any::<u64>(), dropped in any::<bool>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let mut group = random_group(&mut random);
        low_rank::settle(&mut random, &mut group);
        let masks = dropped.then(|| masks(&mut random));
        let adapters = Adapters::new(&mut random, group, masks);
        adapters.check_down(device, &all(group.rows));
        adapters.check_up_backward(device, &all(group.rows));
        adapters.check_grads(device, &all(256));
    }

    #[test]
    fn shadows_are_rounded_and_padded(seed in any::<u64>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let mut group = random_group(&mut random);
        low_rank::settle(&mut random, &mut group);
        let adapters = Adapters::new(&mut random, group, None);
        let (k, rank) = (group.inputs, group.rank);
        let values = random.f32s(3 * 128 * (k + 160) + 1, 1.0);
        let flat = device.upload(&values).unwrap();
        let (mut at, mut members) = (1, [None; 3]);
        let mut want_a = vec![0.0f32; group.low() * k];
        let mut want_b = vec![0.0f32; group.columns() * rank];
        for (m, low_at, first, outputs) in adapted(&group) {
            let r = adapters.ranks[m];
            let (a, b) = (at, at + r * k);
            at = b + r * outputs;
            members[m] = Some(Slots { a: flat.ptr().at(a), b: flat.ptr().at(b), rank: r });
            want_a[low_at * k..][..r * k].copy_from_slice(&values[a..b]);
            for o in 0..outputs {
                want_b[(first + o) * rank..][..r].copy_from_slice(&values[b + o * r..][..r]);
            }
        }
        let (a, b) = (poisoned(device, want_a.len()), poisoned(device, want_b.len()));
        lora::pack(device, &group, members, a.ptr(), b.ptr()).unwrap();
        let rounded = |v: &[f32]| -> Vec<bf16> { v.iter().map(|x| bf16::from_f32(*x)).collect() };
        prop_assert_eq!(a.download().unwrap(), rounded(&want_a));
        prop_assert_eq!(b.download().unwrap(), rounded(&want_b));
    }

    #[test]
    fn weights_and_biases_gradients(seed in any::<u64>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let rows = [1, 31, 32, 33, 129, 600, 1100][random.below(7)];
        let (m, n) = (8 * (1 + random.below(20)), 8 * (1 + random.below(20)));
        let lda = m + 8 * random.below(3);
        let shape = weight_grad::Shape { rows, m, n };
        let ldb = n + 8 * random.below(3);
        check_weight_grad(device, &mut random, shape, [lda, ldb]);

        let (a, before) = (random.bf16s(rows * m, 1.0), random.f32s(m, 1.0));
        let (dense, out) = (device.upload(&a).unwrap(), device.upload(&before).unwrap());
        let scratch = poisoned_f32(device, norm::column_sum_scratch(rows, m));
        norm::column_sum(device, rows, m, m, dense.ptr(), out.ptr(), scratch.ptr()).unwrap();
        let got = out.download().unwrap();
        let places: Vec<_> = (0..m).map(|c| {
            let (value, size) = sum((0..rows).map(|t| a[t * m + c].to_f64()));
            let old = f64::from(before[c]);
            (f64::from(got[c]), value + old, size + old.abs())
        }).collect();
        check_f32("dbias", rows, &places);
    }
}

fn check_weight_grad(
    device: &Device,
    random: &mut Random,
    shape: weight_grad::Shape,
    [lda, ldb]: [usize; 2],
) {
    let weight_grad::Shape { rows, m, n } = shape;
    let (a, b) = (random.bf16s(rows * lda, 1.0), random.bf16s(rows * ldb, 1.0));
    let before = random.f32s(m * n, 1.0);
    let (da, db) = (device.upload(&a).unwrap(), device.upload(&b).unwrap());
    let out = device.upload(&before).unwrap();
    let scratch = poisoned_f32(device, weight_grad::scratch_len(shape));
    weight_grad::weight_grad(
        device,
        shape,
        da.ptr(),
        lda,
        db.ptr(),
        ldb,
        out.ptr(),
        scratch.ptr(),
    )
    .unwrap();
    let got = out.download().unwrap();
    let mut places = Vec::new();
    for i in some(random, m, 40) {
        for j in some(random, n, 40) {
            let (value, size) =
                sum((0..rows).map(|t| a[t * lda + i].to_f64() * b[t * ldb + j].to_f64()));
            let old = f64::from(before[i * n + j]);
            places.push((f64::from(got[i * n + j]), value + old, size + old.abs()));
        }
    }
    check_f32(&format!("dW {shape:?}"), rows, &places);
}

/// Enough tiles for the 256-row kernel; sides that no tile divides.
#[test]
fn large_weights_gradients() {
    let Some(device) = gpu() else { return };
    let mut random = Random(24);
    for (rows, m, n) in [(300, 4104, 1032), (65, 2048, 2048)] {
        check_weight_grad(
            device,
            &mut random,
            weight_grad::Shape { rows, m, n },
            [m, n],
        );
    }
}

#[test]
fn real_models_shapes() {
    let Some(device) = gpu() else { return };
    let mut random = Random(21);
    let groups = [
        (group(700, 2048, [2048, 256, 256], 64), true),
        (group(2100, 2048, [2048, 256, 256], 16), false),
        (group(300, 2048, [11008, 11008, 0], 64), true),
        (group(130, 14336, [4096, 0, 0], 128), true),
        (group(9000, 256, [128, 64, 64], 128), true),
    ];
    for (group, dropped) in groups {
        let masks = dropped.then(|| masks(&mut random));
        let adapters = Adapters::new(&mut random, group, masks);
        let rows = some(&mut random, group.rows, 12);
        adapters.check_down(device, &rows);
        adapters.check_up_backward(device, &rows);
        adapters.check_grads(device, &some(&mut random, 2048, 12));
    }
}

#[test]
fn repeated_runs_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let mut random = Random(22);
    let masks = Some(masks(&mut random));
    let adapters = Adapters::new(&mut random, group(1500, 576, [576, 192, 192], 64), masks);
    let (low, grads) = (adapters.down(device), adapters.grads(device, 0.0));
    for _ in 0..20 {
        assert!(adapters.down(device) == low);
        assert!(adapters.grads(device, 0.0) == grads);
    }
}

/// The 64-row and 128-row tiles, and the products without dropout for few rows, give a row the same bits.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(device) = gpu() else { return };
    let mut random = Random(23);
    for dropped in [false, true] {
        let masks = dropped.then(|| masks(&mut random));
        // Enough rows for the 128-row tile on any GPU.
        let whole = Adapters::new(&mut random, group(20_000, 72, [64, 64, 64], 32), masks);
        let low = whole.down(device);
        for rows in [1, 64, 65, 129, 5000] {
            let part = Adapters {
                group: Group {
                    rows,
                    ..whole.group
                },
                x: whole.x[..rows * 72].to_vec(),
                a: whole.a.clone(),
                ..Adapters::new(&mut random, whole.group, masks)
            };
            let part = Adapters {
                scale: whole.scale,
                ..part
            };
            assert!(
                part.down(device) == low[..rows * whole.group.low()],
                "{rows} rows, dropout {dropped}"
            );
        }
    }
}

/// Nothing to do is not an error.
#[test]
fn no_rows_and_no_adapters() {
    let Some(device) = gpu() else { return };
    let empty = group(0, 64, [64, 0, 0], 16);
    let none = Group {
        low_at: [NO_LOW; 3],
        rows: 4,
        ..empty
    };
    for g in [empty, none] {
        lora::down(device, &g, Ptr::NULL, Ptr::NULL, 1.0, None, Ptr::NULL).unwrap();
        lora::up_backward(device, &g, Ptr::NULL, Ptr::NULL, 1.0, Ptr::NULL).unwrap();
    }
    device.synchronize().unwrap();
}

/// Every bit of a plane, by the Philox on the CPU.
#[test]
fn masks_are_those_of_philox() {
    let Some(device) = gpu() else { return };
    let mut random = Random(25);
    for inputs in [8, 40, 256, 264] {
        let (g, masks) = (group(37, inputs, [8, 0, 16], 16), masks(&mut random));
        let kept = masks.draw(device, &g).kept.download().unwrap();
        let words = inputs.div_ceil(256) * 8;
        for (plane, (m, ..)) in adapted(&g).into_iter().enumerate() {
            for (row, c) in (0..g.rows).flat_map(|r| (0..inputs).map(move |c| (r, c))) {
                let word = kept[(plane * g.rows + row) * words + c / 32];
                let bit = 16 * (c % 2) + 4 * (c % 8 / 2) + c % 32 / 8;
                let want = masks.factor(m, row, c) > 0.0;
                assert_eq!(
                    word >> bit & 1 == 1,
                    want,
                    "member {m}, row {row}, column {c}"
                );
            }
        }
    }
}
