//! `head_loss` with and without its backward pass, and `head_logits`.

use crate::draw::{Draw, Flat, pack, poison};
use crate::near::{Near, ONE, agree, agree_exactly_long, exact, same_bits, untouched};
use crate::weights::{Form, Matrix, forms, frozen};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, HeadBackward, Packed, Pass, Slot, Target, Weight};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// Rows in front of those that an op writes.
const BEFORE: usize = 2;

/// The part that an op wrote; it must have left the rest as it was.
fn between(buffer: &[f32], at: usize, len: usize) -> Vec<f32> {
    untouched("before", &buffer[..at]).unwrap();
    untouched("behind", &buffer[at + len..]).unwrap();
    buffer[at..at + len].to_vec()
}

/// A head and the hidden states of a batch.
struct Case {
    matrix: Option<Matrix>,
    values: Flat,
    slot: Option<Slot>,
    weight: Vec<f32>,
    batch: Packed,
    hidden: usize,
    vocab: usize,
    x: Vec<f32>,
}

impl Case {
    /// `form` of the weight, trained if `None`; a row has a target with probability `targets` / 8.
    fn new(
        draw: &mut Draw,
        form: Option<Form>,
        [hidden, vocab]: [usize; 2],
        lengths: &[usize],
        targets: usize,
        size: f32,
    ) -> Self {
        let matrix = form.map(|form| frozen(draw, vocab, hidden, form));
        let mut values = Flat::default();
        let (weight, slot) = match &matrix {
            Some(matrix) => (Cpu.matrix_values(matrix).unwrap(), None),
            None => {
                let weight = draw.values(vocab * hidden, 0.3);
                (weight.clone(), Some(values.push(weight)))
            }
        };
        let mut batch = pack(draw, lengths, vocab);
        for row in 0..batch.tokens() {
            if draw.index(8) < targets {
                let id = draw.index(vocab) as u32;
                batch.targets.push(Target { row, id });
            }
        }
        let x = draw.buffer(batch.tokens() * hidden, size);
        Case {
            matrix,
            values,
            slot,
            weight,
            batch,
            hidden,
            vocab,
            x,
        }
    }

    fn head(&self) -> Weight<'_, Cpu> {
        match (&self.matrix, self.slot) {
            (Some(matrix), _) => Weight::Frozen(matrix),
            (None, Some(slot)) => Weight::Trained(slot),
            (None, None) => unreachable!("a head is frozen or trained"),
        }
    }

    /// Losses, written behind [`BEFORE`] others.
    fn loss(&self, loss_scale: f32, backward: Option<HeadBackward<Cpu>>) -> Vec<f32> {
        let (head, values) = (self.head(), &self.values.values);
        let pass = Pass {
            first_target: BEFORE,
            loss_scale,
            ..Pass::default()
        };
        let batch = Packed {
            pass: Some(pass),
            ..self.batch.clone()
        };
        let mut losses = poison(BEFORE + self.batch.targets.len());
        Cpu.head_loss(
            &head,
            values,
            &batch,
            self.hidden,
            self.vocab,
            &self.x,
            &mut losses,
            backward,
        );
        between(&losses, BEFORE, self.batch.targets.len())
    }

    /// Logits, written behind [`BEFORE`] other rows.
    fn logits(&self) -> Vec<f32> {
        let (head, values, vocab) = (self.head(), &self.values.values, self.vocab);
        let (x, mut logits) = (&self.x, poison((BEFORE + self.batch.targets.len()) * vocab));
        Cpu.head_logits(
            &head,
            values,
            &self.batch,
            self.hidden,
            vocab,
            x,
            &mut logits,
            BEFORE,
        );
        between(&logits, BEFORE * vocab, self.batch.targets.len() * vocab)
    }

    /// Logits `[targets, vocab]`.
    fn want_logits(&self) -> Vec<Near> {
        let (weight, hidden) = (exact(&self.weight), self.hidden);
        let mut logits = Vec::new();
        for target in &self.batch.targets {
            let x = exact(&self.x[target.row * hidden..(target.row + 1) * hidden]);
            let one = |w: &[Near]| Near::dot(x.iter().copied().zip(w.iter().copied()));
            logits.extend(weight.chunks(hidden).map(one));
        }
        logits
    }

    fn check(&self, draw: &mut Draw, loss_scale: f32) -> Result<(), TestCaseError> {
        let (hidden, vocab, batch) = (self.hidden, self.vocab, &self.batch);
        let mut dx = poison(batch.tokens() * hidden);
        let before = self.values.redrawn(draw);
        let mut grads = before.clone();
        let losses = self.loss(loss_scale, None);
        let backward = HeadBackward {
            dx: &mut dx,
            grads: &mut grads.values,
        };
        let again = self.loss(loss_scale, Some(backward));
        same_bits("losses with a backward pass", &again, &losses)?;

        let mut z = self.want_logits();
        let mut want_losses = Vec::new();
        for (target, z) in batch.targets.iter().zip(z.chunks_mut(vocab)) {
            // The shift cancels, so it is exact; its one rounding in the sum is not.
            let top = z.iter().fold(f64::NEG_INFINITY, |top, z| top.max(z.value));
            let wanted = z[target.id as usize];
            z.iter_mut().for_each(|z| *z = (*z - Near::real(top)).exp());
            let sum = Near::dot(z.iter().map(|e| (*e, ONE)));
            want_losses.push(Near::real(top).rounded() + sum.ln() - wanted);
            let scale = Near::exact(loss_scale);
            z.iter_mut().for_each(|z| *z = *z * (scale / sum));
            let own = &mut z[target.id as usize];
            *own = *own - scale;
        }
        agree_exactly_long("losses", &losses, &want_losses)?;

        let weight = exact(&self.weight);
        let mut want = vec![Near::real(0.0); batch.tokens() * hidden];
        for (target, dz) in batch.targets.iter().zip(z.chunks(vocab)) {
            for i in 0..hidden {
                let terms = (0..vocab).map(|v| (dz[v], weight[v * hidden + i]));
                want[target.row * hidden + i] = Near::dot(terms);
            }
        }
        agree("dx", &dx, &want)?;
        if let Some(slot) = self.slot {
            let element = |at: usize| {
                let (v, i) = (at / hidden, at % hidden);
                let term = |(t, target): (usize, &Target)| {
                    (
                        z[t * vocab + v],
                        Near::exact(self.x[target.row * hidden + i]),
                    )
                };
                let terms = batch.targets.iter().enumerate().map(term);
                Near::dot(terms.chain([(Near::exact(before.at(slot)[at]), ONE)]))
            };
            let want: Vec<Near> = (0..vocab * hidden).map(element).collect();
            agree_exactly_long("dW", grads.at(slot), &want)?;
        }
        prop_assert!(grads.gaps_are_poisoned());
        Ok(())
    }
}

fn vocabularies() -> impl Strategy<Value = usize> {
    prop_oneof![7usize..100, Just(1023), Just(3000)]
}

fn hiddens() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 7, 33, 64, 72, 100])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// `size` 100 makes logits of several hundred.
    #[test]
    fn loss_and_gradients(
        form in prop::option::weighted(0.7, forms()), hidden in hiddens(), vocab in vocabularies(),
        lengths in prop::collection::vec(1usize..20, 1..4), targets in 0usize..9,
        size in prop::sample::select(vec![1.0f32, 100.0]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let case = Case::new(draw, form, [hidden, vocab], &lengths, targets, size);
        case.check(draw, 0.037)?;
    }

    #[test]
    fn logits(
        form in prop::option::weighted(0.7, forms()), hidden in hiddens(), vocab in vocabularies(),
        rows in 1usize..18, decoding: bool, seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let mut case = Case::new(draw, form, [hidden, vocab], &vec![1; rows], 6, 1.0);
        for s in &mut case.batch.sequences {
            s.past = if decoding { 5 } else { 0 };
        }
        agree_exactly_long("logits", &case.logits(), &case.want_logits())?;
    }
}

/// 8 Mi logits are one chunk: 150 targets of a vocabulary of 70,001 are two.
#[test]
fn more_targets_than_one_chunk_of_logits() {
    let draw = &mut Draw::new(5);
    let case = Case::new(draw, None, [3, 70_001], &[150], 8, 1.0);
    assert_eq!(case.batch.targets.len(), 150);
    case.check(draw, 1.0).unwrap();
}
