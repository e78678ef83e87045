//! One case of each op: random operands, the launch, and the comparison with f64 on the CPU. No test.

use crate::gpu::{self, Random, f64s, gpu, poisoned, poisoned_f32};
use crate::low_rank::Masks;
use half::bf16;
use medft_kernels::Ptr;
use medft_kernels::device::{Buffer, Device};
use medft_kernels::gemm_hopper::{self, Plain, Product, Tile};
use medft_kernels::linear::{
    Backward, Epilogue, Forward, Group, LowBackward, LowForward, NO_LOW, StepState,
};

pub const TILES: [Tile; 2] = [Tile::Pair256, Tile::Single128];
/// Half a unit in the last place of bf16, relative to the smallest number of a binade.
const HALF_ULP: f64 = 1.0 / 256.0;
const F32_ULP: f64 = 1.0 / 16_777_216.0;
/// Elements compared in a case, at most.
const SAMPLE: usize = 12_000;

pub fn hopper() -> Option<&'static Device> {
    gpu().filter(|d| medft_kernels::Launcher::gpu(*d).hopper)
}

/// A value and how far f32 sums may be from it.
#[derive(Clone, Copy)]
struct Sum {
    value: f64,
    slack: f64,
}

/// Dot products in f64; the bound is that of a sum of `n` f32 terms, twice.
#[derive(Default)]
struct Dots {
    value: f64,
    magnitude: f64,
    terms: usize,
}

impl Dots {
    fn add(&mut self, pairs: impl Iterator<Item = (f64, f64)>) {
        for (a, b) in pairs {
            self.value += a * b;
            self.magnitude += (a * b).abs();
            self.terms += 1;
        }
    }
    fn sum(&self) -> Sum {
        Sum {
            value: self.value,
            slack: 2.0 * self.terms as f64 * F32_ULP * self.magnitude,
        }
    }
}

/// Elements to compare: all, or a sample with the edges in it.
fn places(random: &mut Random, rows: usize, columns: usize) -> Vec<(usize, usize)> {
    if rows * columns <= SAMPLE {
        return (0..rows * columns)
            .map(|i| (i / columns, i % columns))
            .collect();
    }
    (0..SAMPLE)
        .map(|i| match i % 8 {
            0 => (rows - 1 - random.below(rows.min(3)), random.below(columns)),
            1 => (
                random.below(rows),
                columns - 1 - random.below(columns.min(9)),
            ),
            _ => (random.below(rows), random.below(columns)),
        })
        .collect()
}

fn compare(
    what: &str,
    got: &[bf16],
    columns: usize,
    at: &[(usize, usize)],
    want: impl Fn(usize, usize) -> Sum,
) {
    let got: Vec<f64> = at
        .iter()
        .map(|(r, c)| got[r * columns + c].to_f64())
        .collect();
    check(what, &got, at, HALF_ULP, 2.5e-3, want);
}

fn check(
    what: &str,
    got: &[f64],
    at: &[(usize, usize)],
    rounding: f64,
    frobenius: f64,
    want: impl Fn(usize, usize) -> Sum,
) {
    let sums: Vec<Sum> = at.iter().map(|(r, c)| want(*r, *c)).collect();
    let values: Vec<f64> = sums.iter().map(|s| s.value).collect();
    let bound = |i: usize| sums[i].slack + rounding * (sums[i].value.abs() + sums[i].slack) + 1e-30;
    let is_wrong = |i: &usize| got[*i].is_nan() || (got[*i] - values[*i]).abs() > bound(*i);
    if let Some(i) = (0..got.len()).find(is_wrong) {
        let wrong: Vec<_> = (0..got.len()).filter(is_wrong).map(|i| at[i]).collect();
        let some: Vec<_> = wrong.iter().step_by(wrong.len().div_ceil(12)).collect();
        panic!(
            "{what}: {} of {} wrong; first {:?}: got {} wanted {} bound {}; some of them {some:?}",
            wrong.len(),
            got.len(),
            at[i],
            got[i],
            values[i],
            bound(i)
        );
    }
    let relative = gpu::relative(got, &values);
    assert!(
        got.len() < 200 || relative <= frobenius,
        "{what}: relative error {relative}"
    );
}

/// A buffer of `rows` + 1 rows, whose last must stay poisoned.
struct Output(Buffer<bf16>, usize);

impl Output {
    fn new(d: &Device, rows: usize, columns: usize) -> Self {
        Output(poisoned(d, (rows + 1) * columns), columns)
    }
    fn read(&self, what: &str) -> Vec<bf16> {
        let mut all = self.0.download().unwrap();
        let guard = all.split_off(all.len() - self.1);
        assert!(
            guard.iter().all(|v| v.to_bits() == 0xffff),
            "{what}: written past the last row"
        );
        all
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    None,
    Residual,
    Rope { head_dim: usize, rotated: usize },
    SwiGlu,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub group: Group,
    pub bias: bool,
    pub kind: Kind,
    pub seed: u64,
}

pub fn group(
    rows: usize,
    inputs: usize,
    outputs: [usize; 3],
    rank: usize,
    adapted: [bool; 3],
) -> Group {
    let mut next = 0;
    let low_at = adapted.map(|yes| {
        if !yes || rank == 0 {
            return NO_LOW;
        }
        next += 1;
        (next - 1) * rank as u32
    });
    Group {
        rows,
        inputs,
        outputs,
        low_at,
        rank,
    }
}

fn member(g: &Group, column: usize) -> usize {
    let mut end = 0;
    (0..3)
        .find(|&m| {
            (end, column < end + g.outputs[m]) == (end, true) || {
                end += g.outputs[m];
                false
            }
        })
        .unwrap()
}

pub fn run_forward(d: &Device, c: &Case) {
    for tile in TILES {
        forward_case(d, c, tile);
    }
}

pub fn forward_case(d: &Device, c: &Case, tile: Tile) {
    let what = format!("{c:?} {tile:?}");
    let (g, mut random) = (c.group, Random(c.seed));
    let (rows, inputs, columns, low) = (g.rows, g.inputs, g.columns(), g.low());
    let x = random.bf16s(rows * inputs, 1.0);
    let w = random.bf16s(columns * inputs, 1.0 / (inputs as f64).sqrt());
    let (h, b) = (
        random.bf16s(rows * low, 1.0),
        random.bf16s(columns * g.rank, 0.3),
    );
    let bias = random.f32s(columns, 0.5);
    let residual = random.bf16s(rows * columns, 2.0);
    let positions: Vec<u32> = (0..rows).map(|_| random.below(300) as u32).collect();
    let head_dim = if let Kind::Rope { head_dim, .. } = c.kind {
        head_dim
    } else {
        32
    };
    let angles: Vec<f64> = (0..300 * head_dim / 2)
        .map(|_| random.unit() * 7.0)
        .collect();
    let table: Vec<f32> = angles
        .iter()
        .flat_map(|a| [a.cos() as f32, a.sin() as f32])
        .collect();
    let up = |v: &[bf16]| d.upload(v).unwrap();
    let (dx, dw, dh, db, dres) = (up(&x), up(&w), up(&h), up(&b), up(&residual));
    let (dbias, dtable, dpositions) = (
        d.upload(&bias).unwrap(),
        d.upload(&table).unwrap(),
        d.upload(&positions).unwrap(),
    );
    let (y, hidden) = (
        Output::new(d, rows, columns),
        Output::new(d, rows, columns / 2),
    );
    let f = Forward {
        group: g,
        x: dx.ptr(),
        weight: dw.ptr(),
        bias: if c.bias { dbias.ptr() } else { Ptr::NULL },
        low: (low > 0).then(|| LowForward {
            low: dh.ptr(),
            b: db.ptr(),
        }),
        epilogue: match c.kind {
            Kind::None => Epilogue::None,
            Kind::Residual => Epilogue::Residual(dres.ptr()),
            Kind::Rope { head_dim, rotated } => Epilogue::Rope {
                table: dtable.ptr(),
                positions: dpositions.ptr(),
                head_dim,
                rotated,
            },
            Kind::SwiGlu => Epilogue::SwiGlu(hidden.0.ptr()),
        },
        y: y.0.ptr(),
    };
    gemm_hopper::forward_with(d, &f, Some(tile)).unwrap();
    d.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));
    let (x, w, h, b, residual) = (f64s(&x), f64s(&w), f64s(&h), f64s(&b), f64s(&residual));
    let sum = |r: usize, n: usize| -> Sum {
        let mut dots = Dots::default();
        dots.add((0..inputs).map(|k| (x[r * inputs + k], w[n * inputs + k])));
        let m = member(&g, n);
        if low > 0 && g.low_at[m] != NO_LOW {
            let at = g.low_at[m] as usize;
            dots.add((0..g.rank).map(|k| (h[r * low + at + k], b[n * g.rank + k])));
        }
        if c.bias {
            dots.add([(f64::from(bias[n]), 1.0)].into_iter());
        }
        if c.kind == Kind::Residual {
            dots.add([(residual[r * columns + n], 1.0)].into_iter());
        }
        dots.sum()
    };
    let at = places(&mut random, rows, columns);
    compare(&what, &y.read(&what), columns, &at, |r, n| match c.kind {
        Kind::Rope { head_dim, rotated } if n < rotated * head_dim => {
            let (head, i) = (n / head_dim * head_dim, n % head_dim % (head_dim / 2));
            let (p, q) = (sum(r, head + i), sum(r, head + i + head_dim / 2));
            let at = positions[r] as usize * head_dim + 2 * i;
            let (cos, sin) = (f64::from(table[at]), f64::from(table[at + 1]));
            let value = if n % head_dim < head_dim / 2 {
                p.value * cos - q.value * sin
            } else {
                q.value * cos + p.value * sin
            };
            Sum {
                value,
                slack: p.slack + q.slack + 4.0 * F32_ULP * (p.value.abs() + q.value.abs()),
            }
        }
        _ => sum(r, n),
    });
    if c.kind == Kind::SwiGlu {
        let half = columns / 2;
        compare(
            &format!("h of {what}"),
            &hidden.read(&what),
            half,
            &places(&mut random, rows, half),
            |r, n| {
                let (gate, up) = (sum(r, n), sum(r, half + n));
                let silu = gate.value / (1.0 + (-gate.value).exp());
                let value = silu * up.value;
                Sum {
                    value,
                    slack: 1.1 * gate.slack * up.value.abs()
                        + silu.abs() * up.slack
                        + 64.0 * F32_ULP * value.abs(),
                }
            },
        );
    }
}

pub fn run_backward(d: &Device, g: Group, p: f64, seed: u64) {
    for tile in TILES {
        backward_case(d, g, p, seed, tile);
    }
}

pub fn backward_case(d: &Device, g: Group, p: f64, seed: u64, tile: Tile) {
    let what = format!("backward {g:?} p {p} seed {seed} {tile:?}");
    let mut random = Random(seed);
    let (rows, inputs, columns, low) = (g.rows, g.inputs, g.columns(), g.low());
    let dy = random.bf16s(rows * columns, 1.0);
    let w = random.bf16s(columns * inputs, 1.0 / (columns as f64).sqrt());
    let (gr, a) = (
        random.bf16s(rows * low, 1.0),
        random.bf16s(low * inputs, 0.3),
    );
    let masks = (p > 0.0).then(|| Masks {
        state: StepState {
            seed: 0x0123_4567_89ab_cdef,
            step: 77,
            first_token: (1 << 32) - 5,
            first_target: 0,
            loss_scale: 1.0,
        },
        threshold: (p * 65536.0).round() as u32,
        streams: [11, 5, 1 << 20],
    });
    let up = |v: &[bf16]| d.upload(v).unwrap();
    let (ddy, dw, dg, da) = (up(&dy), up(&w), up(&gr), up(&a));
    let drawn = masks.map(|m| m.draw(d, &g));
    let dx = Output::new(d, rows, inputs);
    let b = Backward {
        group: g,
        dy: ddy.ptr(),
        weight: dw.ptr(),
        low: (low > 0).then(|| LowBackward {
            g: dg.ptr(),
            a: da.ptr(),
            dropout: drawn.as_ref().map(|d| d.dropout),
        }),
        dx: dx.0.ptr(),
    };
    gemm_hopper::backward_with(d, &b, Some(tile)).unwrap();
    d.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));
    let (dy, w, gr, a) = (f64s(&dy), f64s(&w), f64s(&gr), f64s(&a));
    let at = places(&mut random, rows, inputs);
    compare(&what, &dx.read(&what), inputs, &at, |r, c| {
        let mut dots = Dots::default();
        dots.add((0..columns).map(|n| (dy[r * columns + n], w[n * inputs + c])));
        for m in 0..3 {
            let scale = masks.map_or(1.0, |masks| masks.factor(m, r, c));
            if low == 0 || g.low_at[m] == NO_LOW || scale == 0.0 {
                continue;
            }
            let first = g.low_at[m] as usize;
            dots.add((first..first + g.rank).map(|k| (gr[r * low + k] * scale, a[k * inputs + c])));
        }
        dots.sum()
    });
}

pub fn plain_case(d: &Device, rows: usize, inputs: usize, outputs: usize, tile: Tile, seed: u64) {
    let what = format!("plain {rows} x {inputs} x {outputs} {tile:?}");
    let mut random = Random(seed);
    let (x, w) = (
        random.bf16s(rows * inputs, 1.0),
        random.bf16s(outputs * inputs, 1.0 / (inputs as f64).sqrt()),
    );
    let (dx, dw) = (d.upload(&x).unwrap(), d.upload(&w).unwrap());
    let (narrow, wide) = (
        Output::new(d, rows, outputs),
        poisoned_f32(d, rows * outputs + 64),
    );
    for y in [Product::Bf16(narrow.0.ptr()), Product::F32(wide.ptr())] {
        let plain = Plain {
            rows,
            inputs,
            outputs,
            x: dx.ptr(),
            weight: dw.ptr(),
            y,
        };
        gemm_hopper::plain_nt_with(d, &plain, Some(tile)).unwrap();
    }
    d.synchronize().unwrap_or_else(|e| panic!("{what}: {e}"));
    let (x, w) = (f64s(&x), f64s(&w));
    let sum = |r: usize, n: usize| {
        let mut dots = Dots::default();
        dots.add((0..inputs).map(|k| (x[r * inputs + k], w[n * inputs + k])));
        dots.sum()
    };
    let at = places(&mut random, rows, outputs);
    compare(&what, &narrow.read(&what), outputs, &at, sum);
    let wide = wide.download().unwrap();
    assert!(
        wide[rows * outputs..].iter().all(|v| v.is_nan()),
        "{what}: written past the end"
    );
    let got: Vec<f64> = at
        .iter()
        .map(|(r, c)| f64::from(wide[r * outputs + c]))
        .collect();
    check(&what, &got, &at, 0.0, 3e-5, sum);
}
