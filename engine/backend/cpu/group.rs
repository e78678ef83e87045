//! A group of linear layers over one input: base products, biases and low-rank branches of each member.
//!
//! Holds the loop over the members. It refuses epilogues, which belong to the op.

use super::linear::{self, Columns, Layer, Source};
use super::low_rank::{Branch, part, part_mut};
use super::{Cpu, decoding, simd, vector};
use crate::backend::{Group, GroupWeight, Linear, Packed, Slot, Vector};

/// A member of a group: its linear layer, the layer's place if it is trained, and its branch, if it has one.
struct Member<'a> {
    layer: Layer<'a>,
    trained: Option<Slot>,
    branch: Option<Branch<'a>>,
    own: &'a Linear<'a, Cpu>,
}

/// The members of a group with their places in the group's output and low-rank buffers.
fn members<'a>(
    group: &'a Group<'a, Cpu>,
    values: &'a [f32],
    batch: &Packed,
    rows: usize,
) -> Vec<Member<'a>> {
    let rank = |m: &Linear<Cpu>| m.lora.map_or(0, |l| l.rank);
    let (inputs, pass) = (group.inputs, batch.pass.unwrap_or_default());
    let mut y = Columns {
        stride: group.outputs(),
        at: 0,
    };
    let mut low = Columns {
        stride: group.members.iter().map(rank).sum(),
        at: 0,
    };
    let mut members = Vec::with_capacity(group.members.len());
    for (i, own) in group.members.iter().enumerate() {
        let outputs = own.outputs;
        let (weight, trained) = match &group.weight {
            GroupWeight::Frozen(matrix) => (Source::Frozen(&matrix.parts()[i]), None),
            GroupWeight::Trained(slots) => {
                (Source::Trained(part(values, slots[i])), Some(slots[i]))
            }
        };
        let layer = Layer {
            weight,
            rows,
            inputs,
            outputs,
            y,
        };
        let branch = |lora| Branch {
            lora,
            rows,
            inputs,
            outputs,
            pass,
            low,
            y,
        };
        members.push(Member {
            layer,
            trained,
            branch: own.lora.as_ref().map(branch),
            own,
        });
        y.at += outputs;
        low.at += rank(own);
    }
    members
}

/// `y = x W^T + bias + low-rank branches`, `[rows, outputs]`; the branches' products of `A` stay in `low`.
pub fn forward(
    group: &Group<Cpu>,
    values: &[f32],
    batch: &Packed,
    rows: usize,
    x: &[f32],
    y: &mut [f32],
    low: &mut [f32],
) {
    let decoding = decoding(batch);
    let stride = group.outputs();
    let members = members(group, values, batch, rows);
    if decoding {
        let layers: Vec<Layer> = members.iter().map(|m| m.layer).collect();
        linear::decode(&layers, x, y);
    } else {
        members.iter().for_each(|m| m.layer.forward(x, y));
    }
    for Member {
        layer, branch, own, ..
    } in members
    {
        if let Some(bias) = &own.bias {
            let (bias, columns) = (vector(bias, values), layer.y.at..layer.y.at + own.outputs);
            let rows = y.chunks_exact_mut(stride).take(rows);
            rows.for_each(|y| simd::add(bias, &mut y[columns.clone()]));
        }
        match branch {
            Some(branch) if decoding => branch.decode(values, x, y),
            Some(branch) => branch.forward(values, x, y, low),
            None => {}
        }
    }
}

/// Gradients of what is trained are added to `grads`, that of the input is written to `dx`.
pub fn backward(
    group: &Group<Cpu>,
    values: &[f32],
    grads: &mut [f32],
    batch: &Packed,
    rows: usize,
    x: &[f32],
    low: &[f32],
    dy: &[f32],
    dx: Option<&mut Vec<f32>>,
) {
    let mut dx = dx.map(|dx| &mut dx[..rows * group.inputs]);
    if let Some(dx) = &mut dx {
        dx.fill(0.0);
    }
    for Member {
        layer,
        trained,
        branch,
        own,
    } in members(group, values, batch, rows)
    {
        if let Some(dx) = &mut dx {
            layer.backward_input(dy, dx);
        }
        if let Some(slot) = trained {
            layer.backward_weight(dy, x, part_mut(grads, slot));
        }
        if let Some(Vector::Trained(slot)) = own.bias {
            let (dbias, columns) = (part_mut(grads, slot), layer.y.at..layer.y.at + own.outputs);
            let rows = dy.chunks_exact(group.outputs()).take(rows);
            rows.for_each(|dy| simd::add(&dy[columns.clone()], dbias));
        }
        if let Some(branch) = branch {
            branch.backward(values, grads, x, low, dy, dx.as_deref_mut());
        }
    }
}
