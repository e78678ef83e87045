//! The portable linear layers against f64: forward with every epilogue, backward with and without masks, bare products.
#![allow(clippy::unwrap_used)]

#[path = "gpu/mod.rs"]
mod gpu;
#[path = "gpu/low_rank.rs"]
mod low_rank;

use gpu::{Random, f64s, gpu, poisoned, poisoned_f32, relative, within};
use half::bf16;
use low_rank::{DEVIATION, Masks, masks, random_group};
use medft_kernels::Ptr;
use medft_kernels::device::Device;
use medft_kernels::gemm::{self, Output, Size};
use medft_kernels::linear::{Backward, Epilogue, Forward, Group, LowBackward, LowForward, NO_LOW};
use proptest::prelude::*;

const BF16: f64 = 1.0 / 256.0;
const F32: f64 = 1.0 / 16_777_216.0;
/// What the rounding of the output alone gives is 1.7e-3.
const FROBENIUS: f64 = 2.5e-3;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A sum in f64 and the sum of its terms' magnitudes.
#[derive(Clone, Copy, Default)]
struct Exact {
    value: f64,
    size: f64,
}

impl Exact {
    fn add(&mut self, a: f64, b: f64) {
        self.value += a * b;
        self.size += (a * b).abs();
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    None,
    Residual,
    Rope { head_dim: usize, rotated: usize },
    SwiGlu,
}

/// Host data of one forward call.
struct Layer {
    group: Group,
    kind: Kind,
    x: Vec<bf16>,
    w: Vec<bf16>,
    bias: Vec<f32>,
    low: Vec<bf16>,
    b: Vec<bf16>,
    residual: Vec<bf16>,
    table: Vec<f32>,
    positions: Vec<u32>,
}

const POSITIONS: usize = 40;

impl Layer {
    fn new(random: &mut Random, group: Group, kind: Kind, biased: bool) -> Self {
        let (t, k, n) = (group.rows, group.inputs, group.columns());
        let half = match kind {
            Kind::Rope { head_dim, .. } => head_dim / 2,
            _ => 0,
        };
        let table = (0..POSITIONS * half)
            .flat_map(|_| {
                let angle = random.unit() * 6.0;
                [angle.cos() as f32, angle.sin() as f32]
            })
            .collect();
        Layer {
            group,
            kind,
            x: random.bf16s(t * k, 1.0),
            w: random.bf16s(n * k, DEVIATION),
            bias: if biased {
                random.f32s(n, 1.0)
            } else {
                Vec::new()
            },
            low: random.bf16s(t * group.low(), 1.0),
            b: random.bf16s(n * group.rank, DEVIATION),
            residual: match kind {
                Kind::Residual => random.bf16s(t * n, 1.0),
                _ => Vec::new(),
            },
            table,
            positions: (0..t).map(|_| random.below(POSITIONS) as u32).collect(),
        }
    }

    /// Before the epilogue: element (row, column).
    fn product(&self, row: usize, column: usize) -> Exact {
        let g = &self.group;
        let mut sum = Exact::default();
        for k in 0..g.inputs {
            sum.add(
                self.x[row * g.inputs + k].to_f64(),
                self.w[column * g.inputs + k].to_f64(),
            );
        }
        let (member, _) = low_rank::member_of(g, column);
        if g.rank > 0 && g.low_at[member] != NO_LOW {
            let at = row * g.low() + g.low_at[member] as usize;
            for r in 0..g.rank {
                sum.add(
                    self.low[at + r].to_f64(),
                    self.b[column * g.rank + r].to_f64(),
                );
            }
        }
        if let Some(bias) = self.bias.get(column) {
            sum.add(f64::from(*bias), 1.0);
        }
        sum
    }

    /// After it: the value and its bound before the output's rounding.
    fn wanted(&self, row: usize, column: usize) -> (f64, f64) {
        let plain = self.product(row, column);
        let (value, size) = match self.kind {
            Kind::None | Kind::SwiGlu => (plain.value, plain.size),
            Kind::Residual => {
                let r = self.residual[row * self.group.columns() + column].to_f64();
                (plain.value + r, plain.size + r.abs())
            }
            Kind::Rope { head_dim, rotated } => {
                let (head, within) = (column / head_dim, column % head_dim);
                if head >= rotated {
                    (plain.value, plain.size)
                } else {
                    let half = head_dim / 2;
                    let pair = self.positions[row] as usize * half + within % half;
                    let (cos, sin) = (
                        f64::from(self.table[2 * pair]),
                        f64::from(self.table[2 * pair + 1]),
                    );
                    let (other, sin) = if within < half {
                        (self.product(row, column + half), -sin)
                    } else {
                        (self.product(row, column - half), sin)
                    };
                    (
                        plain.value * cos + other.value * sin,
                        plain.size * cos.abs() + other.size * sin.abs(),
                    )
                }
            }
        };
        let terms = (self.group.inputs + self.group.rank + 4) as f64;
        (value, 2.0 * terms * F32 * size)
    }

    /// Output `h` of SwiGLU.
    fn gated(&self, row: usize, inner: usize) -> (f64, f64) {
        let (gate, up) = (
            self.wanted(row, inner),
            self.wanted(row, inner + self.group.columns() / 2),
        );
        let silu = gate.0 / (1.0 + (-gate.0).exp());
        let value = silu * up.0;
        // silu' lies in (-0.1, 1.1); exp and division cost a few f32 roundings.
        (
            value,
            1.1 * up.0.abs() * gate.1 + silu.abs() * up.1 + 64.0 * F32 * value.abs(),
        )
    }

    /// Runs on the GPU: y and, with SwiGLU, h.
    fn run(&self, device: &Device, size: Size) -> (Vec<bf16>, Vec<bf16>) {
        let (t, n) = (self.group.rows, self.group.columns());
        let (x, w) = (
            device.upload(&self.x).unwrap(),
            device.upload(&self.w).unwrap(),
        );
        let (low, b) = (
            device.upload(&self.low).unwrap(),
            device.upload(&self.b).unwrap(),
        );
        let bias = device.upload(&self.bias).unwrap();
        let residual = device.upload(&self.residual).unwrap();
        let table = device.upload(&self.table).unwrap();
        let positions = device.upload(&self.positions).unwrap();
        let (y, h) = (poisoned(device, t * n), poisoned(device, t * n / 2));
        let args = Forward {
            group: self.group,
            x: x.ptr(),
            weight: w.ptr(),
            bias: if self.bias.is_empty() {
                Ptr::NULL
            } else {
                bias.ptr()
            },
            low: (self.group.rank > 0).then_some(LowForward {
                low: low.ptr(),
                b: b.ptr(),
            }),
            epilogue: match self.kind {
                Kind::None => Epilogue::None,
                Kind::Residual => Epilogue::Residual(residual.ptr()),
                Kind::Rope { head_dim, rotated } => Epilogue::Rope {
                    table: table.ptr(),
                    positions: positions.ptr(),
                    head_dim,
                    rotated,
                },
                Kind::SwiGlu => Epilogue::SwiGlu(h.ptr()),
            },
            y: y.ptr(),
        };
        gemm::forward_sized(device, &args, size).unwrap();
        let gated = if self.kind == Kind::SwiGlu {
            h.download().unwrap()
        } else {
            Vec::new()
        };
        (y.download().unwrap(), gated)
    }

    fn check(&self, device: &Device, rows: &[usize], columns: &[usize]) {
        let (y, h) = self.run(device, Size::Auto);
        for size in [Size::Small, Size::Large, Size::Wide] {
            let (again, gated) = self.run(device, size);
            assert!(
                bits(&y) == bits(&again) && bits(&h) == bits(&gated),
                "tiles give different bits: {size:?} {:?} {:?}",
                self.group,
                self.kind
            );
        }
        let n = self.group.columns();
        compare(
            &format!("y of {:?} {:?}", self.group, self.kind),
            rows,
            columns,
            |r, c| (y[r * n + c].to_f64(), self.wanted(r, c)),
        );
        if self.kind == Kind::SwiGlu {
            let inner: Vec<usize> = columns.iter().copied().filter(|c| *c < n / 2).collect();
            compare(&format!("h of {:?}", self.group), rows, &inner, |r, c| {
                (h[r * n / 2 + c].to_f64(), self.gated(r, c))
            });
        }
    }
}

/// Compares (got, (wanted, bound before rounding)) at the given places, element by element and as a whole.
fn compare(
    what: &str,
    rows: &[usize],
    columns: &[usize],
    at: impl Fn(usize, usize) -> (f64, (f64, f64)),
) {
    let (mut got, mut want, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
    for &r in rows {
        for &c in columns {
            let (g, (w, bound)) = at(r, c);
            got.push(g);
            want.push(w);
            bounds.push(BF16 * w.abs() + bound + 1e-30);
        }
    }
    within(what, &got, &want, |i| bounds[i]);
    if got.len() >= 64 {
        let error = relative(&got, &want);
        assert!(error <= FROBENIUS, "{what}: relative error {error}");
    }
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
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

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn forward_is_the_rounded_sum(seed in any::<u64>(), kind in 0usize..4, biased in any::<bool>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let mut group = random_group(&mut random);
        let kind = match kind {
            0 => Kind::None,
            1 => Kind::Residual,
            2 => {
                let head_dim = [16, 32, 48, 64, 128][random.below(5)];
                let (queries, keys) = (1 + random.below(4), 1 + random.below(2));
                group.outputs = [queries * head_dim, keys * head_dim, keys * head_dim];
                Kind::Rope { head_dim, rotated: queries + keys }
            }
            _ => {
                let inner = 8 * (1 + random.below(20));
                group.outputs = [inner, inner, 0];
                Kind::SwiGlu
            }
        };
        low_rank::settle(&mut random, &mut group);
        let layer = Layer::new(&mut random, group, kind, biased);
        layer.check(device, &all(group.rows), &all(group.columns()));
    }

    #[test]
    fn backward_is_the_rounded_masked_sum(seed in any::<u64>(), dropped in any::<bool>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let mut group = random_group(&mut random);
        low_rank::settle(&mut random, &mut group);
        let masks = dropped.then(|| masks(&mut random));
        Downhill::new(&mut random, group, masks).check(device, &all(group.rows), &all(group.inputs));
    }

    #[test]
    fn bare_products(seed in any::<u64>()) {
        let Some(device) = gpu() else { return Ok(()) };
        let mut random = Random(seed);
        let m = [1, 2, 31, 64, 65, 130][random.below(6)];
        let (n, k) = (8 * (1 + random.below(30)), 8 * (1 + random.below(30)));
        let (ldx, ldw_nt, ldw_nn) = (k + 8 * random.below(3), k + 8 * random.below(3), n + 8 * random.below(3));
        let x = random.bf16s(m * ldx, 1.0);
        for transposed in [true, false] {
            let (ldw, w) = if transposed {
                (ldw_nt, random.bf16s(n * ldw_nt, 1.0))
            } else {
                (ldw_nn, random.bf16s(k * ldw_nn, 1.0))
            };
            let wanted = |r: usize, c: usize| {
                let mut sum = Exact::default();
                for i in 0..k {
                    let at = if transposed { c * ldw + i } else { i * ldw + c };
                    sum.add(x[r * ldx + i].to_f64(), w[at].to_f64());
                }
                (sum.value, 2.0 * k as f64 * F32 * sum.size)
            };
            let (dx, dw) = (device.upload(&x).unwrap(), device.upload(&w).unwrap());
            let (y, y32) = (poisoned(device, m * n), poisoned_f32(device, m * n));
            let shape = gemm::Shape { m, n, k };
            for out in [Output::Bf16(y.ptr()), Output::F32(y32.ptr())] {
                if transposed {
                    gemm::plain_nt(device, shape, dx.ptr(), ldx, dw.ptr(), ldw, out).unwrap();
                } else {
                    gemm::plain_nn(device, shape, dx.ptr(), ldx, dw.ptr(), ldw, out).unwrap();
                }
            }
            let (y, y32) = (y.download().unwrap(), y32.download().unwrap());
            compare("bf16 product", &all(m), &all(n), |r, c| (y[r * n + c].to_f64(), wanted(r, c)));
            let got: Vec<f64> = y32.iter().map(|v| f64::from(*v)).collect();
            let want: Vec<(f64, f64)> = (0..m * n).map(|i| wanted(i / n, i % n)).collect();
            let values: Vec<f64> = want.iter().map(|w| w.0).collect();
            within("f32 product", &got, &values, |i| want[i].1 + 1e-30);
        }
    }
}

/// Host data of one backward call.
struct Downhill {
    group: Group,
    dy: Vec<bf16>,
    w: Vec<bf16>,
    g: Vec<bf16>,
    a: Vec<bf16>,
    masks: Option<Masks>,
}

impl Downhill {
    fn new(random: &mut Random, group: Group, masks: Option<Masks>) -> Self {
        let (t, k, n) = (group.rows, group.inputs, group.columns());
        Downhill {
            group,
            dy: random.bf16s(t * n, 1.0),
            w: random.bf16s(n * k, DEVIATION),
            g: random.bf16s(t * group.low(), 1.0),
            a: random.bf16s(group.low() * k, DEVIATION),
            masks,
        }
    }

    fn wanted(&self, row: usize, column: usize) -> (f64, f64) {
        let g = &self.group;
        let (n, k) = (g.columns(), g.inputs);
        let mut sum = Exact::default();
        for i in 0..n {
            sum.add(
                self.dy[row * n + i].to_f64(),
                self.w[i * k + column].to_f64(),
            );
        }
        for (m, &at) in g.low_at.iter().enumerate() {
            if at == NO_LOW || g.rank == 0 {
                continue;
            }
            let factor = self
                .masks
                .as_ref()
                .map_or(1.0, |masks| masks.factor(m, row, column));
            for r in at as usize..at as usize + g.rank {
                sum.add(
                    self.g[row * g.low() + r].to_f64() * factor,
                    self.a[r * k + column].to_f64(),
                );
            }
        }
        (sum.value, 2.0 * (n + g.low() + 4) as f64 * F32 * sum.size)
    }

    fn run(&self, device: &Device, size: Size) -> Vec<bf16> {
        let g = &self.group;
        let (dy, w) = (
            device.upload(&self.dy).unwrap(),
            device.upload(&self.w).unwrap(),
        );
        let (low, a) = (
            device.upload(&self.g).unwrap(),
            device.upload(&self.a).unwrap(),
        );
        let drawn = self.masks.map(|m| m.draw(device, g));
        let dx = poisoned(device, g.rows * g.inputs);
        let args = Backward {
            group: *g,
            dy: dy.ptr(),
            weight: w.ptr(),
            low: (g.rank > 0).then_some(LowBackward {
                g: low.ptr(),
                a: a.ptr(),
                dropout: drawn.as_ref().map(|d| d.dropout),
            }),
            dx: dx.ptr(),
        };
        gemm::backward_sized(device, &args, size).unwrap();
        dx.download().unwrap()
    }

    fn check(&self, device: &Device, rows: &[usize], columns: &[usize]) {
        let dx = self.run(device, Size::Auto);
        for size in [Size::Small, Size::Large, Size::Wide] {
            assert!(
                bits(&dx) == bits(&self.run(device, size)),
                "tiles give different bits: {size:?} {:?}",
                self.group
            );
        }
        let k = self.group.inputs;
        let what = format!("dx of {:?}, dropout {}", self.group, self.masks.is_some());
        compare(&what, rows, columns, |r, c| {
            (dx[r * k + c].to_f64(), self.wanted(r, c))
        });
    }
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

/// The four models' layers at a few rows, sampled.
#[test]
fn real_models_shapes() {
    let Some(device) = gpu() else { return };
    let mut random = Random(11);
    let rope = |heads| Kind::Rope {
        head_dim: 128,
        rotated: heads,
    };
    let layers = [
        (group(150, 2048, [2048, 256, 256], 64), rope(18)),
        (group(129, 4096, [4096, 1024, 1024], 16), rope(40)),
        (group(130, 2048, [11008, 11008, 0], 64), Kind::SwiGlu),
        (group(131, 11008, [2048, 0, 0], 64), Kind::Residual),
        (group(1, 3072, [8192, 8192, 0], 32), Kind::SwiGlu),
        (group(7, 14336, [4096, 0, 0], 64), Kind::Residual),
        // Tiny test models.
        (
            group(33, 64, [64, 32, 32], 16),
            Kind::Rope {
                head_dim: 32,
                rotated: 3,
            },
        ),
        (group(257, 144, [160, 0, 0], 16), Kind::None),
        (group(65, 576, [1536, 1536, 0], 16), Kind::SwiGlu),
    ];
    for (group, kind) in layers {
        let layer = Layer::new(&mut random, group, kind, matches!(kind, Kind::Rope { .. }));
        let (rows, columns) = (
            some(&mut random, group.rows, 20),
            some(&mut random, group.columns(), 30),
        );
        layer.check(device, &rows, &columns);
        let masks = Some(masks(&mut random));
        let columns = some(&mut random, group.inputs, 30);
        Downhill::new(&mut random, group, masks).check(device, &rows, &columns);
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let Some(device) = gpu() else { return };
    let mut random = Random(5);
    let whole = Layer::new(
        &mut random,
        group(300, 328, [256, 128, 128], 32),
        Kind::None,
        true,
    );
    let (y, _) = whole.run(device, Size::Large);
    let n = whole.group.columns();
    for rows in [1, 2, 16, 63, 64, 65, 127, 128, 129, 299] {
        let part = Layer {
            group: Group {
                rows,
                ..whole.group
            },
            x: whole.x[..rows * 328].to_vec(),
            low: whole.low[..rows * whole.group.low()].to_vec(),
            w: whole.w.clone(),
            bias: whole.bias.clone(),
            b: whole.b.clone(),
            residual: Vec::new(),
            table: Vec::new(),
            positions: Vec::new(),
            kind: Kind::None,
        };
        let (some, _) = part.run(device, Size::Auto);
        assert!(bits(&some) == bits(&y[..rows * n]), "{rows} rows");
    }
}

#[test]
fn repeated_runs_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let mut random = Random(6);
    let group = group(517, 328, [256, 128, 136], 64);
    let layer = Layer::new(&mut random, group, Kind::Residual, true);
    let masks = Some(masks(&mut random));
    let down = Downhill::new(&mut random, group, masks);
    let (y, dx) = (
        layer.run(device, Size::Large).0,
        down.run(device, Size::Large),
    );
    assert!(f64s(&y).iter().all(|v| v.is_finite()));
    for _ in 0..20 {
        assert!(bits(&layer.run(device, Size::Large).0) == bits(&y));
        assert!(bits(&down.run(device, Size::Large)) == bits(&dx));
    }
}
