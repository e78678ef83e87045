//! `linear` and `linear_backward`: every form of weight, biases, adapters with dropout, epilogues, and the decoding step.

use crate::attention_reference::rotate;
use crate::draw::{Draw, Flat, columns, lengths, pack, poison};
use crate::dropout::{observed_mask, pass};
use crate::linear_reference::{Adapter, Before, Member, Reference};
use crate::near::{Near, agree, agree_exactly_long, exact, same_bits, untouched};
use crate::weights::{Form, Matrix, forms, stored};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{
    Backend, Dropout, Epilogue, Group, GroupWeight, Heads, Linear, LoraSlots, Packed, Slot, Vector,
};
use medft_engine::model::checkpoint::Dtype;
use proptest::prelude::*;

/// What a member is made of.
#[derive(Debug, Clone)]
struct Shape {
    outputs: usize,
    /// `None` is trained in f32; members of a group differ in the dtype of their file at most.
    form: Option<Form>,
    bias: Bias,
    rank: usize,
    dropout: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bias {
    None,
    Frozen,
    Trained,
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let bias = prop::sample::select(vec![Bias::None, Bias::Frozen, Bias::Trained]);
    let rank = prop::sample::select(vec![0, 1, 2, 8, 15, 16, 17, 32]);
    let stored = prop::sample::select(vec![Dtype::F32, Dtype::Bf16, Dtype::F16]);
    let one = (columns(), stored, bias, rank, any::<bool>());
    let members = prop::collection::vec(one, 1..4);
    (members, prop::option::weighted(0.8, forms())).prop_map(|(members, form)| {
        let shape = |(outputs, stored, bias, rank, dropout)| Shape {
            outputs,
            form: form.map(|form| Form { stored, ..form }),
            bias,
            rank,
            dropout,
        };
        members.into_iter().map(shape).collect()
    })
}

/// A member's places in the trained values.
struct Places {
    weight: Option<Slot>,
    bias: Option<Slot>,
    lora: Option<LoraSlots>,
}

/// A group with its reference.
struct Case {
    reference: Reference,
    /// The members' frozen weights, stacked.
    matrix: Option<Matrix>,
    values: Flat,
    places: Vec<Places>,
}

impl Case {
    fn new(draw: &mut Draw, shapes: &[Shape], inputs: usize, rows: usize, first: u64) -> Self {
        let mut case = Case {
            reference: Reference {
                rows,
                inputs,
                members: Vec::new(),
            },
            matrix: None,
            values: Flat::default(),
            places: Vec::new(),
        };
        let load = |tensors: &[_], form: Form| {
            Cpu.matrix(&mut (), tensors, form.precision, form.double_quant)
                .unwrap()
        };
        let mut tensors = Vec::new();
        for (stream, shape) in shapes.iter().enumerate() {
            let outputs = shape.outputs;
            let mut weight = draw.values(outputs * inputs, 0.2);
            if let Some(form) = shape.form {
                tensors.push(stored(&weight, &[outputs, inputs], form.stored));
                let alone = load(&tensors[stream..], form);
                weight = Cpu.matrix_values(&alone).unwrap();
            }
            let bias = (shape.bias != Bias::None).then(|| draw.values(outputs, 1.0));
            let trained_bias = bias.clone().filter(|_| shape.bias == Bias::Trained);
            let mut place = |values: Option<Vec<f32>>| values.map(|v| case.values.push(v));
            let mut places = Places {
                weight: place(shape.form.is_none().then(|| weight.clone())),
                bias: place(trained_bias),
                lora: None,
            };
            let dropout = shape.dropout.then_some(Dropout {
                p: 0.3,
                stream: stream as u32,
            });
            let adapter = (shape.rank > 0).then(|| Adapter {
                rank: shape.rank,
                scale: 1.7,
                a: draw.values(shape.rank * inputs, 0.3),
                b: draw.values(outputs * shape.rank, 0.3),
                mask: dropout.map(|d| observed_mask(d, pass(42, 7, first), rows, inputs)),
            });
            if let Some(adapter) = &adapter {
                places.lora = Some(LoraSlots {
                    a: case.values.push(adapter.a.clone()),
                    b: case.values.push(adapter.b.clone()),
                    rank: adapter.rank,
                    scale: adapter.scale,
                    dropout,
                });
            }
            case.places.push(places);
            case.reference.members.push(Member {
                outputs,
                weight,
                bias,
                adapter,
            });
        }
        case.matrix = shapes[0].form.map(|form| load(&tensors, form));
        case
    }

    fn group(&self) -> Group<'_, Cpu> {
        let member = |i: usize| {
            let (own, places) = (&self.reference.members[i], &self.places[i]);
            Linear {
                bias: match (&own.bias, places.bias) {
                    (_, Some(slot)) => Some(Vector::Trained(slot)),
                    (Some(bias), None) => {
                        let len = bias.len();
                        Some(Vector::Frozen(bias, Slot { offset: 0, len }))
                    }
                    (None, None) => None,
                },
                outputs: own.outputs,
                lora: places.lora,
            }
        };
        Group {
            inputs: self.reference.inputs,
            weight: match &self.matrix {
                Some(matrix) => GroupWeight::Frozen(matrix),
                None => GroupWeight::Trained(self.places.iter().flat_map(|p| p.weight).collect()),
            },
            members: (0..self.places.len()).map(member).collect(),
        }
    }
}

/// Runs the forward pass; returns y and low with their tails.
fn forward(
    case: &Case,
    batch: &Packed,
    x: &Vec<f32>,
    epilogue: Epilogue<Cpu>,
) -> (Vec<f32>, Vec<f32>) {
    let r = &case.reference;
    let (mut y, mut low) = (poison(r.rows * r.outputs()), poison(r.rows * r.ranks()));
    let (group, values) = (case.group(), &case.values.values);
    Cpu.linear(&group, values, batch, r.rows, x, epilogue, &mut y, &mut low);
    (y, low)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forward_and_backward(
        shapes in shapes(), inputs in columns(), lengths in lengths(), residual: bool, want_dx: bool,
        first_token in prop::sample::select(vec![0, 1, 1000, u64::from(u32::MAX)]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let batch = Packed { pass: Some(pass(42, 7, first_token)), ..pack(draw, &lengths, 7) };
        let rows = batch.tokens();
        let case = Case::new(draw, &shapes, inputs, rows, first_token);
        let r = &case.reference;
        let x = draw.buffer(rows * inputs, 1.0);
        let added = draw.buffer(rows * r.outputs(), 1.0);
        let epilogue = if residual { Epilogue::Residual(&added) } else { Epilogue::None };
        let (y, low) = forward(&case, &batch, &x, epilogue);
        let (mut want, want_low) = r.forward(&x[..rows * inputs]);
        if residual {
            for (want, added) in want.iter_mut().zip(&added) {
                *want = *want + Near::exact(*added);
            }
        }
        agree("y", &y, &want)?;
        agree("low", &low, &want_low)?;

        let dy = draw.buffer(rows * r.outputs(), 1.0);
        let before = case.values.redrawn(draw);
        let mut grads = before.clone();
        let mut dx = poison(rows * inputs);
        Cpu.linear_backward(
            &case.group(), &case.values.values, &mut grads.values, &batch, rows, &x, &low, &dy,
            want_dx.then_some(&mut dx),
        );
        let slice = |slot: Option<Slot>| slot.map_or(&[][..], |s| before.at(s));
        let earlier: Vec<Before> = case.places.iter().map(|p| Before {
            weight: slice(p.weight),
            bias: slice(p.bias),
            a: slice(p.lora.map(|l| l.a)),
            b: slice(p.lora.map(|l| l.b)),
        }).collect();
        let (want_x, wanted) = r.backward(&x[..rows * inputs], &low[..want_low.len()], &dy[..want.len()], &earlier);
        if want_dx {
            agree("dx", &dx, &want_x)?;
        } else {
            untouched("dx", &dx)?;
        }
        for (i, (place, want)) in case.places.iter().zip(&wanted).enumerate() {
            for (name, slot, want) in [
                ("dW", place.weight, &want.weight),
                ("dbias", place.bias, &want.bias),
                ("dA", place.lora.map(|l| l.a), &want.a),
                ("dB", place.lora.map(|l| l.b), &want.b),
            ] {
                if let Some(slot) = slot {
                    agree_exactly_long(&format!("member {i}: {name}"), grads.at(slot), want)?;
                }
            }
        }
        prop_assert!(grads.gaps_are_poisoned());
    }

    /// q, k and v with rotated queries and keys.
    #[test]
    fn rope_epilogue(
        form in prop::option::of(forms()), keys in 1usize..3, ratio in 1usize..5,
        dim in prop::sample::select(vec![32, 64]), lengths in lengths(), past in 0usize..300, seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let heads = Heads {
            queries: keys * ratio, keys, dim, window: None,
            inv_freq: (0..dim / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / dim as f64)).collect(),
        };
        let member = |heads: usize| Shape { outputs: heads * dim, form, bias: Bias::Frozen, rank: 4, dropout: false };
        let mut batch = pack(draw, &lengths, 7);
        for s in &mut batch.sequences {
            s.past = past;
        }
        let rows = batch.tokens();
        let case = Case::new(draw, &[member(keys * ratio), member(keys), member(keys)], 33, rows, 0);
        let x = draw.buffer(rows * 33, 1.0);
        let (y, _) = forward(&case, &batch, &x, Epilogue::Rope(&heads));
        let (mut want, _) = case.reference.forward(&x[..rows * 33]);
        rotate(&heads, &batch.sequences, 1.0, &mut want);
        agree("y", &y, &want)?;
    }

    /// gate and up stay in y, and the buffer beside it gets what `swiglu` makes of them.
    #[test]
    fn swiglu_epilogue(
        form in prop::option::of(forms()), inner in columns(), inputs in columns(), lengths in lengths(),
        rank in prop::sample::select(vec![0, 4]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let member = Shape { outputs: inner, form, bias: Bias::Frozen, rank, dropout: false };
        let batch = pack(draw, &lengths, 7);
        let rows = batch.tokens();
        let case = Case::new(draw, &[member.clone(), member], inputs, rows, 0);
        let x = draw.buffer(rows * inputs, 1.0);
        let (mut h, mut want_h) = (poison(rows * inner), poison(rows * inner));
        let (y, _) = forward(&case, &batch, &x, Epilogue::SwiGlu(&mut h));
        agree("y", &y, &case.reference.forward(&x[..rows * inputs]).0)?;
        Cpu.swiglu(rows, inner, &y, &mut want_h);
        same_bits("h", &h, &want_h)?;
    }

    /// One new token a sequence, behind what the cache holds.
    #[test]
    fn decoding_step(
        shapes in shapes(), inputs in columns(), rows in 1usize..18, residual: bool, seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let shapes: Vec<Shape> = shapes.into_iter().map(|s| Shape { dropout: false, ..s }).collect();
        let mut batch = Packed::default();
        for slot in 0..rows {
            let past = 1 + draw.index(50);
            batch.push(&[0], past, slot);
        }
        let case = Case::new(draw, &shapes, inputs, rows, 0);
        let x = draw.buffer(rows * inputs, 1.0);
        let added = draw.buffer(rows * case.reference.outputs(), 1.0);
        let epilogue = if residual { Epilogue::Residual(&added) } else { Epilogue::None };
        let (y, _) = forward(&case, &batch, &x, epilogue);
        let (mut want, _) = case.reference.forward(&x[..rows * inputs]);
        if residual {
            want.iter_mut().zip(exact(&added)).for_each(|(want, added)| *want = *want + added);
        }
        agree("y", &y, &want)?;
    }
}

/// A training batch of one-token sequences once took the decoding step's path, which knows no dropout and leaves `low` as it was.
#[test]
fn one_token_sequences_of_a_training_batch_are_not_a_decoding_step() {
    let draw = &mut Draw::new(1);
    let shape = Shape {
        outputs: 9,
        form: None,
        bias: Bias::None,
        rank: 4,
        dropout: true,
    };
    let batch = Packed {
        pass: Some(pass(42, 7, 0)),
        ..pack(draw, &[1, 1, 1], 7)
    };
    let case = Case::new(draw, &[shape], 16, 3, 0);
    let x = draw.buffer(3 * 16, 1.0);
    let (y, low) = forward(&case, &batch, &x, Epilogue::None);
    let (want, want_low) = case.reference.forward(&x[..3 * 16]);
    agree("low", &low, &want_low).unwrap();
    agree("y", &y, &want).unwrap();
}
