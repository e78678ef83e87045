//! A group of linear layers with adapters, straight from the formulas.
//!
//! Holds `y = x W^T + bias + low B^T`, `low = scale * m x A^T`, and their gradients; m is the dropout mask, 0 or 1 / (1 - p).

use crate::near::{Near, ONE, exact};

/// One layer.
pub struct Member {
    pub outputs: usize,
    /// `[outputs, inputs]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
    pub adapter: Option<Adapter>,
}

/// A low-rank adapter.
pub struct Adapter {
    pub rank: usize,
    pub scale: f32,
    /// `[rank, inputs]`.
    pub a: Vec<f32>,
    /// `[outputs, rank]`.
    pub b: Vec<f32>,
    /// `[rows, inputs]`; `None` without dropout.
    pub mask: Option<Vec<f32>>,
}

/// Layers that read the same x.
pub struct Reference {
    pub rows: usize,
    pub inputs: usize,
    pub members: Vec<Member>,
}

/// Gradients of one member; `+=` of what was there is left to the caller's first term.
pub struct Gradients {
    pub weight: Vec<Near>,
    pub bias: Vec<Near>,
    pub a: Vec<Near>,
    pub b: Vec<Near>,
}

/// What stands in the gradients before.
pub struct Before<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub a: &'a [f32],
    pub b: &'a [f32],
}

impl Adapter {
    fn dropped(&self, x: &[Near]) -> Vec<Near> {
        match &self.mask {
            None => x.to_vec(),
            Some(mask) => x
                .iter()
                .zip(mask)
                .map(|(x, m)| *x * Near::exact(*m))
                .collect(),
        }
    }
}

impl Reference {
    pub fn outputs(&self) -> usize {
        self.members.iter().map(|m| m.outputs).sum()
    }

    pub fn ranks(&self) -> usize {
        self.members
            .iter()
            .map(|m| m.adapter.as_ref().map_or(0, |a| a.rank))
            .sum()
    }

    /// `(y, low)` before the epilogue.
    pub fn forward(&self, x: &[f32]) -> (Vec<Near>, Vec<Near>) {
        let x = exact(x);
        let (rows, inputs, outputs, ranks) = (self.rows, self.inputs, self.outputs(), self.ranks());
        let mut y = vec![Near::real(0.0); rows * outputs];
        let mut low = vec![Near::real(0.0); rows * ranks];
        let (mut y_at, mut low_at) = (0, 0);
        for m in &self.members {
            let weight = exact(&m.weight);
            for t in 0..rows {
                for o in 0..m.outputs {
                    let (x, w) = (&x[t * inputs..], &weight[o * inputs..]);
                    let mut sum = Near::dot((0..inputs).map(|i| (x[i], w[i])));
                    if let Some(bias) = &m.bias {
                        sum = sum + Near::exact(bias[o]);
                    }
                    y[t * outputs + y_at + o] = sum;
                }
            }
            if let Some(adapter) = &m.adapter {
                let (x, a, b) = (adapter.dropped(&x), exact(&adapter.a), exact(&adapter.b));
                let rank = adapter.rank;
                for t in 0..rows {
                    let own = &mut low[t * ranks + low_at..t * ranks + low_at + rank];
                    for (r, low) in own.iter_mut().enumerate() {
                        let (x, a) = (&x[t * inputs..], &a[r * inputs..]);
                        *low = Near::dot((0..inputs).map(|i| (x[i], a[i])))
                            * Near::exact(adapter.scale);
                    }
                    for o in 0..m.outputs {
                        let terms = (0..rank).map(|r| (own[r], b[o * rank + r]));
                        let y = &mut y[t * outputs + y_at + o];
                        *y = Near::dot(terms.chain([(*y, ONE)]));
                    }
                }
                low_at += rank;
            }
            y_at += m.outputs;
        }
        (y, low)
    }

    /// `dx` and every member's gradients, from the `low` that the forward pass left.
    pub fn backward(
        &self,
        x: &[f32],
        low: &[f32],
        dy: &[f32],
        before: &[Before],
    ) -> (Vec<Near>, Vec<Gradients>) {
        let (x, low, dy) = (exact(x), exact(low), exact(dy));
        let (rows, inputs, outputs, ranks) = (self.rows, self.inputs, self.outputs(), self.ranks());
        let (mut y_at, mut low_at) = (0, 0);
        let mut dx = vec![Near::real(0.0); rows * inputs];
        let mut all = Vec::new();
        for (m, before) in self.members.iter().zip(before) {
            let dy = |t: usize, o: usize| dy[t * outputs + y_at + o];
            let weight = exact(&m.weight);
            for t in 0..rows {
                for i in 0..inputs {
                    let terms = (0..m.outputs).map(|o| (dy(t, o), weight[o * inputs + i]));
                    let dx = &mut dx[t * inputs + i];
                    *dx = Near::dot(terms.chain([(*dx, ONE)]));
                }
            }
            // `before + sum over rows of left * right`, `[lefts, rights]`.
            let over_rows = |lefts: usize,
                             rights: usize,
                             before: &[f32],
                             left: &dyn Fn(usize, usize) -> Near,
                             right: &dyn Fn(usize, usize) -> Near| {
                let element = |at: usize| {
                    let (l, r) = (at / rights, at % rights);
                    let terms = (0..rows).map(|t| (left(t, l), right(t, r)));
                    Near::dot(terms.chain([(Near::exact(before[at]), ONE)]))
                };
                (0..lefts * rights)
                    .take(before.len())
                    .map(element)
                    .collect()
            };
            let mut g = Gradients {
                weight: over_rows(m.outputs, inputs, before.weight, &dy, &|t, i| {
                    x[t * inputs + i]
                }),
                bias: over_rows(m.outputs, 1, before.bias, &dy, &|_, _| ONE),
                a: Vec::new(),
                b: Vec::new(),
            };
            if let Some(adapter) = &m.adapter {
                let (rank, scale) = (adapter.rank, Near::exact(adapter.scale));
                let (x, a, b) = (adapter.dropped(&x), exact(&adapter.a), exact(&adapter.b));
                let at = low_at;
                g.b = over_rows(m.outputs, rank, before.b, &dy, &|t, r| {
                    low[t * ranks + at + r]
                });
                let mut dlow = vec![Near::real(0.0); rows * rank];
                for t in 0..rows {
                    for r in 0..rank {
                        let terms = (0..m.outputs).map(|o| (dy(t, o), b[o * rank + r]));
                        dlow[t * rank + r] = Near::dot(terms) * scale;
                    }
                }
                g.a = over_rows(
                    rank,
                    inputs,
                    before.a,
                    &|t, r| dlow[t * rank + r],
                    &|t, i| x[t * inputs + i],
                );
                for t in 0..rows {
                    for i in 0..inputs {
                        let terms = (0..rank).map(|r| (dlow[t * rank + r], a[r * inputs + i]));
                        let mask = adapter.mask.as_ref().map_or(1.0, |m| m[t * inputs + i]);
                        let dx = &mut dx[t * inputs + i];
                        *dx = *dx + Near::dot(terms) * Near::exact(mask);
                    }
                }
                low_at += rank;
            }
            y_at += m.outputs;
            all.push(g);
        }
        (dx, all)
    }
}
