//! An answer depends on its own prompt, settings and row number alone; where it ends; what cannot be read.

use crate::setup::{answers, greedy, load, prompts, sampling};
use crate::support::tiny_model;
use medft_dsl::plan::{Decode, Linear};
use medft_engine::backend::cpu::Cpu;
use medft_engine::generate::GenerateError;
use medft_engine::generate::engine::{Answer, Finish, Generator, Request};
use medft_engine::generate::score::score;
use medft_engine::model::trained::{LoraShape, Trained};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

fn ids(answers: &[Answer]) -> Vec<&[u32]> {
    answers.iter().map(|a| a.ids.as_slice()).collect()
}

#[test]
fn a_batch_of_unequal_lengths_answers_as_its_rows_alone() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let shape = LoraShape {
        rank: 3,
        alpha: 6.0,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    let mut adapter = Trained::new_lora(&Cpu, &decoder.config, shape, 1).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for value in &mut adapter.values {
        *value += rng.random_range(-0.2..0.2);
    }
    let mut prompts = prompts(12, 6);
    prompts[3].truncate(1);
    for (settings, trained) in [
        (greedy(20), None),
        (greedy(20), Some(&adapter)),
        (sampling(), None),
        (sampling(), Some(&adapter)),
    ] {
        // Several end tokens, so that rows leave the batch at different steps.
        let ends = [2, 5, 9];
        let together = answers(&decoder, trained, &settings, &ends, &prompts);
        let end_ids = BTreeSet::from(ends);
        let generator = Generator {
            decoder: &decoder,
            trained,
            settings: &settings,
            end_ids: &end_ids,
        };
        for ((row, prompt), want) in (0..).zip(&prompts).zip(&together) {
            let alone = &generator.answer(&[Request { row, prompt }]).unwrap()[0];
            assert_eq!(
                (&alone.ids, alone.finish),
                (&want.ids, want.finish),
                "row {row}"
            );
        }
        let lengths: BTreeSet<usize> = together.iter().map(|a| a.ids.len()).collect();
        assert!(lengths.len() > 2, "all rows ended together: {lengths:?}");
    }
}

#[test]
fn an_answer_is_its_rows_and_seeds_own() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let same = vec![prompts(1, 8).remove(0); 6];
    let settings = sampling();
    let first = answers(&decoder, None, &settings, &[], &same);
    let again = answers(&decoder, None, &settings, &[], &same);
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(ids(&first).into_iter().collect::<BTreeSet<_>>().len(), 6);
    let other = Decode {
        seed: 43,
        ..settings
    };
    assert_ne!(
        ids(&first),
        ids(&answers(&decoder, None, &other, &[], &same))
    );
}

#[test]
fn an_answer_stops_at_any_of_the_end_tokens() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let prompts = prompts(1, 9);
    let free = answers(&decoder, None, &greedy(12), &[], &prompts);
    assert_eq!((free[0].ids.len(), free[0].finish), (12, Finish::Length));
    for at in [0, 1, 5, 11] {
        let end = free[0].ids[at];
        let first = free[0].ids.iter().position(|id| *id == end).unwrap();
        // Two more, which do not come: neither position in the list nor company matters.
        let never = (0..37).filter(|id| !free[0].ids.contains(id));
        let mut ends: Vec<u32> = never.take(2).collect();
        ends.insert(at % 3, end);
        let stopped = answers(&decoder, None, &greedy(12), &ends, &prompts);
        assert_eq!(stopped[0].ids, free[0].ids[..=first]);
        assert_eq!(stopped[0].finish, Finish::Stop);
    }
    for max_new in [0, 1, 2] {
        let short = answers(&decoder, None, &greedy(max_new), &[], &prompts);
        assert_eq!(
            short[0].ids,
            free[0].ids[..usize::try_from(max_new).unwrap()]
        );
        assert_eq!(short[0].finish, Finish::Length);
    }
}

#[test]
fn more_prompts_than_one_pass_holds_are_answered_alike() {
    // 1,024 tokens are read at once; 60 prompts of the tiny model's 128 positions are several passes.
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let prompts: Vec<Vec<u32>> = (0..60)
        .map(|i| (0..20 + i).map(|_| rng.random_range(0..37)).collect())
        .collect();
    let together = answers(&decoder, None, &greedy(3), &[], &prompts);
    for (prompt, want) in prompts.iter().zip(&together).step_by(7) {
        let alone = answers(
            &decoder,
            None,
            &greedy(3),
            &[],
            std::slice::from_ref(prompt),
        );
        assert_eq!(alone[0].ids, want.ids);
    }
    let scores = score(&decoder, None, &prompts).unwrap();
    for (prompt, want) in prompts.iter().zip(&scores).step_by(7) {
        let alone = score(&decoder, None, std::slice::from_ref(prompt)).unwrap();
        assert_eq!(alone[0], *want);
    }
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_row() {
    let dir = tiny_model(4);
    let decoder = load(dir.path());
    let error = |sequences: &[Vec<u32>]| score(&decoder, None, sequences).unwrap_err();
    assert!(matches!(
        error(&[vec![1], vec![]]),
        GenerateError::Empty { row: 1 }
    ));
    let unknown = error(&[vec![1, 36], vec![1], vec![0, 37]]);
    assert!(matches!(
        unknown,
        GenerateError::Token {
            row: 2,
            id: 37,
            vocab: 37
        }
    ));
    let single = score(&decoder, None, &[vec![7]]).unwrap();
    assert_eq!((single[0].logprobs.len(), single[0].perplexity), (0, 1.0));
    assert!(single[0].nll == 0.0 && single[0].nll.is_sign_positive());
    assert_eq!(score(&decoder, None, &[]).unwrap(), []);
    assert_eq!(answers(&decoder, None, &greedy(3), &[], &[]), []);
}
