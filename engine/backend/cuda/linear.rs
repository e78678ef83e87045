//! Linear layers with their adapters: which kernel takes them, and what has to be made ready for it.
//!
//! Invariant: the kernel of a decoding step is chosen by the kind of batch, so that a row's bits do not depend on its neighbours.

use super::matrix::Stored;
use super::memory::{Act, Float};
use super::{Batch, Cuda};
use crate::backend::{Epilogue, Group, GroupWeight, Linear, Vector};
use crate::model::nf4::BLOCK;
use half::bf16;
use medft_kernels::dropout::{self, Draw};
use medft_kernels::linear::{self, LowBackward, LowForward, MEMBERS, NO_LOW};
use medft_kernels::lora::{self, Slots};
use medft_kernels::{LaunchError, Launcher, Ptr, gemm, gemm_hopper, norm, skinny, weight_grad};

/// Rows up to which a decoding step takes the kernels that read each weight once, straight from memory.
pub const FEW: usize = 64;

/// Padded ranks are multiples of it: the depth of one tensor-core instruction.
const RANK: usize = 16;

/// Columns of an adapter of this rank in the low-rank buffer.
pub fn low_columns(rank: usize) -> usize {
    rank.next_multiple_of(RANK)
}

/// A group of members with these (outputs, true ranks; 0 without an adapter), as the kernels see it.
pub fn kernel_group(
    rows: usize,
    inputs: usize,
    members: impl Iterator<Item = (usize, usize)>,
) -> linear::Group {
    let mut group = linear::Group {
        rows,
        inputs,
        outputs: [0; MEMBERS],
        low_at: [NO_LOW; MEMBERS],
        rank: 0,
    };
    for (i, (outputs, rank)) in members.enumerate() {
        group.outputs[i] = outputs;
        if rank > 0 {
            group.low_at[i] = group.low() as u32;
            group.rank = low_columns(rank);
        }
    }
    group
}

/// Scratch of the forward product: A, B, biases, dropout's masks, and the weights in bf16 if they lie in another form.
pub fn forward_bytes(g: &linear::Group, wide: bool, dropout: bool) -> [usize; 5] {
    [
        a_bytes(g),
        b_bytes(g),
        4 * g.columns(),
        mask_bytes(g, dropout),
        wide_bytes(g, wide),
    ]
}

/// Scratch of the backward pass: A, B, the gradient of the low-rank product, partial sums, masks and weights as above.
pub fn backward_bytes(g: &linear::Group, wide: bool, trained: bool, dropout: bool) -> [usize; 6] {
    let adapters = if g.rank > 0 { lora::scratch_len(g) } else { 0 };
    let own = g.outputs.iter().map(|outputs| {
        let weight = match trained {
            true => weight_grad::scratch_len(gradient(g.rows, *outputs, g.inputs)),
            false => 0,
        };
        weight.max(norm::column_sum_scratch(g.rows, *outputs))
    });
    let partials = own.fold(adapters, usize::max);
    let up = 2 * g.rows * g.low();
    [
        a_bytes(g),
        b_bytes(g),
        up,
        4 * partials,
        mask_bytes(g, dropout),
        wide_bytes(g, wide),
    ]
}

fn a_bytes(g: &linear::Group) -> usize {
    2 * g.low() * g.inputs
}

fn b_bytes(g: &linear::Group) -> usize {
    2 * g.columns() * g.rank
}

fn mask_bytes(g: &linear::Group, dropout: bool) -> usize {
    if dropout { 4 * dropout::kept_len(g) } else { 0 }
}

fn wide_bytes(g: &linear::Group, wide: bool) -> usize {
    if wide { 2 * g.columns() * g.inputs } else { 0 }
}

/// A group as the kernels see it.
struct Shape {
    group: linear::Group,
    scale: f32,
    /// What draws the masks, and the factor of what they keep.
    dropout: Option<(Draw, f32)>,
}

fn shape(group: &Group<Cuda>, batch: &Batch, rows: usize) -> Shape {
    let member = |m: &Linear<Cuda>| (m.outputs, m.lora.map_or(0, |l| l.rank));
    let mut shape = Shape {
        group: kernel_group(rows, group.inputs, group.members.iter().map(member)),
        scale: 0.0,
        dropout: None,
    };
    for (i, member) in group.members.iter().enumerate() {
        let Some(lora) = &member.lora else { continue };
        shape.scale = lora.scale;
        if let Some(dropout) = &lora.dropout {
            let draw = Draw {
                threshold: dropout.threshold(),
                state: batch.state,
                streams: [0; MEMBERS],
            };
            let (draw, _) = shape.dropout.get_or_insert((draw, dropout.keep_scale()));
            draw.streams[i] = dropout.stream;
        }
    }
    shape
}

impl Cuda {
    pub(super) fn linear_forward(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        batch: &Batch,
        rows: usize,
        x: &Act,
        epilogue: Epilogue<Cuda>,
        y: &mut Act,
        low: &mut Act,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let shape = shape(group, batch, rows);
        let g = shape.group;
        let few = batch.decoding && rows <= FEW;
        let stored = stored(group);
        let direct = few
            && match stored {
                Some(Stored::Bf16(_)) => true,
                Some(Stored::Nf4(_)) => g.inputs.is_multiple_of(BLOCK),
                None => false,
            };
        let wide = !direct && !matches!(stored, Some(Stored::Bf16(_)));
        let mut scratch = self.scratch();
        let sizes = forward_bytes(&g, wide, shape.dropout.is_some());
        let [a, b, bias, masks, weight] = scratch.take(sizes)?;
        let (a, b) = (a.cast::<bf16>(), b.cast::<bf16>());
        let adapted = g.rank > 0;
        if adapted {
            lora::pack(d, &g, slots(group, values), a, b)?;
            if few {
                skinny::down(d, &g, x.ptr(), a, shape.scale, low.ptr())?;
            } else {
                let dropout = self.masks(&shape, masks.cast())?;
                let dropout = dropout.as_ref();
                lora::down(d, &g, x.ptr(), a, shape.scale, dropout, low.ptr())?;
            }
        }
        let mut forward = linear::Forward {
            group: g,
            x: x.ptr(),
            weight: Ptr::NULL,
            bias: self.bias(group, values, bias.cast())?,
            low: adapted.then_some(LowForward { low: low.ptr(), b }),
            epilogue: match epilogue {
                Epilogue::None => linear::Epilogue::None,
                Epilogue::Residual(from) => linear::Epilogue::Residual(from.ptr()),
                Epilogue::SwiGlu(h) => linear::Epilogue::SwiGlu(h.ptr()),
                Epilogue::Rope(heads) => linear::Epilogue::Rope {
                    table: self.rope(heads, batch.context)?,
                    positions: batch.positions,
                    head_dim: heads.dim,
                    rotated: heads.queries + heads.keys,
                },
            },
            y: y.ptr(),
        };
        match (stored, direct) {
            (Some(Stored::Nf4(weights)), true) => return skinny::forward_nf4(d, &forward, weights),
            (Some(Stored::Bf16(weight)), true) => {
                forward.weight = weight;
                return skinny::forward_bf16(d, &forward);
            }
            _ => forward.weight = self.wide(group, values, weight.cast())?,
        }
        self.product(&forward)
    }

    /// Draws a group's masks into scratch, anew in the backward pass: kept from the forward pass they would be an eighth of a byte an element of
    /// every adapter's input.
    fn masks(&self, shape: &Shape, kept: Ptr<u32>) -> Result<Option<linear::Dropout>, LaunchError> {
        let Some((draw, keep_scale)) = shape.dropout else {
            return Ok(None);
        };
        dropout::draw(&self.0.device, &shape.group, &draw, kept)?;
        Ok(Some(linear::Dropout { kept, keep_scale }))
    }

    /// `y = epilogue(x W^T ...)`, by the Hopper kernel if it takes the shape.
    pub(super) fn product(&self, forward: &linear::Forward) -> Result<(), LaunchError> {
        let d = &self.0.device;
        if gemm_hopper::supports_forward(d.gpu(), forward) {
            gemm_hopper::forward(d, forward)
        } else {
            gemm::forward(d, forward)
        }
    }

    pub(super) fn linear_gradients(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        grads: &Float,
        batch: &Batch,
        rows: usize,
        x: &Act,
        low: &Act,
        dy: &Act,
        dx: Option<&mut Act>,
    ) -> Result<(), LaunchError> {
        let d = &self.0.device;
        let shape = shape(group, batch, rows);
        let g = shape.group;
        let (k, n) = (g.inputs, g.columns());
        let wide = !matches!(stored(group), Some(Stored::Bf16(_)));
        let trained = matches!(group.weight, GroupWeight::Trained(_));
        let mut scratch = self.scratch();
        let sizes = backward_bytes(&g, wide, trained, shape.dropout.is_some());
        let [a, b, up, partials, masks, weight] = scratch.take(sizes)?;
        let dropout = self.masks(&shape, masks.cast())?;
        let (a, b, up, partials) = (
            a.cast::<bf16>(),
            b.cast::<bf16>(),
            up.cast::<bf16>(),
            partials.cast::<f32>(),
        );
        if g.rank > 0 {
            lora::pack(d, &g, slots(group, values), a, b)?;
            lora::up_backward(d, &g, dy.ptr(), b, shape.scale, up)?;
            lora::grads(
                d,
                &g,
                &lora::Grads {
                    x: x.ptr(),
                    dy: dy.ptr(),
                    low: low.ptr(),
                    g: up,
                    dropout,
                    members: slots(group, grads),
                    scratch: partials,
                },
            )?;
        }
        let mut column = 0;
        for (i, member) in group.members.iter().enumerate() {
            let dy = dy.ptr().at(column);
            if let GroupWeight::Trained(slots) = &group.weight {
                let to = grads.ptr().at(slots[i].offset);
                let shape = gradient(rows, member.outputs, k);
                weight_grad::weight_grad(d, shape, dy, n, x.ptr(), k, to, partials)?;
            }
            if let Some(Vector::Trained(slot)) = &member.bias {
                let to = grads.ptr().at(slot.offset);
                norm::column_sum(d, rows, member.outputs, n, dy, to, partials)?;
            }
            column += member.outputs;
        }
        let Some(dx) = dx else { return Ok(()) };
        self.input_gradient(&linear::Backward {
            group: g,
            dy: dy.ptr(),
            weight: self.wide(group, values, weight.cast())?,
            low: (g.rank > 0).then_some(LowBackward { g: up, a, dropout }),
            dx: dx.ptr(),
        })
    }

    /// `dx = dy W` and the adapters' part, by the Hopper kernel if it takes the shape.
    pub(super) fn input_gradient(&self, backward: &linear::Backward) -> Result<(), LaunchError> {
        let d = &self.0.device;
        if gemm_hopper::supports_backward(d.gpu(), backward) {
            gemm_hopper::backward(d, backward)
        } else {
            gemm::backward(d, backward)
        }
    }

    /// A group's weights in bf16: where they lie, or made in `scratch`.
    fn wide(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        scratch: Ptr<bf16>,
    ) -> Result<Ptr<bf16>, LaunchError> {
        match &group.weight {
            GroupWeight::Frozen(matrix) => matrix.in_bf16(&self.0.device, scratch),
            GroupWeight::Trained(slots) => {
                let mut at = 0;
                for slot in slots {
                    self.round(values, *slot, scratch.at(at))?;
                    at += slot.len;
                }
                Ok(scratch)
            }
        }
    }

    /// A group's bias `[N]`: where it lies, if the members' biases lie one after the other, else copied to `scratch` (zero where a member has
    /// none); NULL if no member has one.
    fn bias(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        scratch: Ptr<f32>,
    ) -> Result<Ptr<f32>, LaunchError> {
        let d = &self.0.device;
        let at = |m: &Linear<Cuda>| m.bias.as_ref().map(|bias| self.vector(bias, values));
        if group.members.iter().all(|m| m.bias.is_none()) {
            return Ok(Ptr::NULL);
        }
        let first = group.members.first().and_then(at).unwrap_or(Ptr::NULL);
        let mut end = first;
        let in_place = group.members.iter().all(|m| {
            let here = end.address();
            end = end.at(m.outputs);
            at(m).is_some_and(|bias| bias.address() == here)
        });
        // Kernels read it 16 bytes at a time.
        if in_place && first.address().is_multiple_of(16) {
            return Ok(first);
        }
        let mut to = scratch;
        for member in &group.members {
            match at(member) {
                Some(bias) => d.copy(to, bias, member.outputs)?,
                None => d.fill(to, 0, member.outputs)?,
            }
            to = to.at(member.outputs);
        }
        Ok(scratch)
    }
}

/// Where a group's adapters stand in a flat buffer of values or gradients.
fn slots(group: &Group<Cuda>, flat: &Float) -> [Option<Slots>; MEMBERS] {
    let mut slots = [None; MEMBERS];
    for (slot, member) in slots.iter_mut().zip(&group.members) {
        *slot = member.lora.as_ref().map(|lora| Slots {
            a: flat.ptr().at(lora.a.offset),
            b: flat.ptr().at(lora.b.offset),
            rank: lora.rank,
        });
    }
    slots
}

/// The shape of a weight's gradient.
pub fn gradient(rows: usize, outputs: usize, inputs: usize) -> weight_grad::Shape {
    weight_grad::Shape {
        rows,
        m: outputs,
        n: inputs,
    }
}

/// A group's frozen weights.
fn stored<'a>(group: &Group<'a, Cuda>) -> Option<Stored<'a>> {
    match &group.weight {
        GroupWeight::Frozen(matrix) => Some(matrix.stored()),
        GroupWeight::Trained(_) => None,
    }
}
