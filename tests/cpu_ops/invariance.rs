//! What must hold bit for bit of the whole decoder: packing, neighbours, micro-batches, threads.
//!
//! Holds comparisons of the engine with itself; gradients that are summed in another order are compared within f32 sums.

use crate::draw::Draw;
use crate::near::{Near, U, roundings, same_bits};
use crate::tiny_model::{Model, adapters, batch, models};
use medft_dsl::plan::{Decode, Linear};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Packed, Pass, Target};
use medft_engine::generate::engine::{Answer, Generator, Request};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{Trained, Tuning};
use medft_engine::model::workspace::Workspace;
use std::collections::BTreeSet;

/// Lengths around the blocks of attention and of products.
const LENGTHS: [usize; 7] = [7, 64, 1, 65, 3, 130, 2];

const DROPOUT: f32 = 0.2;

/// The sequences `from..to` of a batch as a pass of their own.
fn part(whole: &Packed, from: usize, to: usize) -> Packed {
    let (first, last) = (whole.sequences[from], whole.sequences[to - 1]);
    let rows = first.start..last.start + last.len;
    let mut part = Packed {
        pass: Some(Pass {
            first_token: first.start as u64,
            ..Pass::default()
        }),
        ..Packed::default()
    };
    for s in &whole.sequences[from..to] {
        part.push(&whole.ids[s.start..s.start + s.len], 0, 0);
    }
    part.targets = whole
        .targets
        .iter()
        .filter(|t| rows.contains(&t.row))
        .map(|t| Target {
            row: t.row - rows.start,
            id: t.id,
        })
        .collect();
    part
}

/// The batch in passes of so many sequences.
fn passes(whole: &Packed, sequences: usize) -> Vec<Packed> {
    let n = whole.sequences.len();
    (0..n)
        .step_by(sequences)
        .map(|from| part(whole, from, (from + sequences).min(n)))
        .collect()
}

/// Losses and gradients of an optimizer step's passes.
fn train(
    decoder: &Decoder<Cpu>,
    trained: &Trained<Cpu>,
    dropout: f32,
    passes: &[Packed],
) -> (Vec<f32>, Vec<f32>) {
    let longest = passes.iter().map(Packed::tokens).max().unwrap_or(0);
    let mut ws = Workspace::new(&Cpu, &decoder.config, Some(trained), longest, true).unwrap();
    let targets = passes.iter().map(|p| p.targets.len()).sum();
    let (mut grads, mut losses, mut at) = (vec![0.0; trained.len()], vec![0.0; targets], 0);
    for pass in passes {
        let mut pass = pass.clone();
        pass.pass = Some(Pass {
            seed: 42,
            step: 3,
            first_target: at,
            loss_scale: 0.01,
            ..pass.pass.unwrap_or_default()
        });
        decoder.train_pass(
            &mut (),
            trained,
            &mut grads,
            dropout,
            &pass,
            &mut losses,
            &mut ws,
        );
        at += pass.targets.len();
    }
    (losses, grads)
}

fn logits(decoder: &Decoder<Cpu>, trained: Option<&Trained<Cpu>>, batch: &Packed) -> Vec<f32> {
    let n = batch.tokens();
    let mut ws = Workspace::new(&Cpu, &decoder.config, trained, n, false).unwrap();
    let mut logits = vec![0.0; batch.targets.len() * decoder.config.vocab];
    decoder.logits(trained, batch, None, &mut logits, 0, &mut ws);
    logits
}

/// Gradients that differ only in the order in which tokens were added: each tensor's difference is a few roundings of its sums. The terms
/// are not known here; the tensor's norm times ten stands for the sum of their absolute values.
fn assert_same_sums(what: &str, trained: &Trained<Cpu>, tokens: usize, got: &[f32], want: &[f32]) {
    for p in trained.parameters() {
        let range = p.slot.offset..p.slot.offset + p.slot.len;
        let square = |v: f64| v * v;
        let norm = want[range.clone()]
            .iter()
            .map(|w| square(f64::from(*w)))
            .sum::<f64>()
            .sqrt();
        let distance = got[range.clone()]
            .iter()
            .zip(&want[range])
            .map(|(g, w)| square(f64::from(*g) - f64::from(*w)))
            .sum::<f64>()
            .sqrt();
        let bound = 2.0 * roundings(tokens) * U * 10.0 * norm;
        assert!(
            distance <= bound,
            "{what}: {}: off by {distance:e}, bound {bound:e}, norm {norm:e}",
            p.name
        );
    }
}

fn for_each_model(test: impl Fn(&str, &Decoder<Cpu>)) {
    for Model { name, decoder } in models() {
        test(&name, &decoder);
    }
}

#[test]
fn a_packed_sequence_is_a_sequence_alone() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let whole = batch(decoder, &LENGTHS, 2);
        let alone = passes(&whole, 1);
        let together = logits(decoder, Some(&trained), &whole);
        let apart: Vec<f32> = alone
            .iter()
            .flat_map(|p| logits(decoder, Some(&trained), p))
            .collect();
        same_bits(&format!("{name}: logits"), &together, &apart).unwrap();
        let (losses, grads) = train(decoder, &trained, 0.0, std::slice::from_ref(&whole));
        let (losses_alone, grads_alone) = train(decoder, &trained, 0.0, &alone);
        same_bits(&format!("{name}: losses"), &losses, &losses_alone).unwrap();
        assert_same_sums(name, &trained, whole.tokens(), &grads, &grads_alone);
    });
}

#[test]
fn micro_batches_see_the_same_dropout_masks() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let whole = batch(decoder, &LENGTHS, 2);
        let (losses, grads) = train(decoder, &trained, DROPOUT, std::slice::from_ref(&whole));
        let (without, _) = train(decoder, &trained, 0.0, std::slice::from_ref(&whole));
        assert!(losses != without, "{name}: dropout changes nothing");
        for rows in [1, 3] {
            let (l, g) = train(decoder, &trained, DROPOUT, &passes(&whole, rows));
            same_bits(
                &format!("{name}: losses in passes of {rows} rows"),
                &l,
                &losses,
            )
            .unwrap();
            assert_same_sums(name, &trained, whole.tokens(), &g, &grads);
        }
    });
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let whole = batch(decoder, &[300, 65, 1, 200], 2);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build()
                .unwrap()
                .install(|| train(decoder, &trained, DROPOUT, std::slice::from_ref(&whole)))
        };
        let (losses, grads) = on(1);
        for threads in [2, 3, 5] {
            let (l, g) = on(threads);
            same_bits(&format!("{name}: losses on {threads} threads"), &l, &losses).unwrap();
            same_bits(
                &format!("{name}: gradients on {threads} threads"),
                &g,
                &grads,
            )
            .unwrap();
        }
    });
}

#[test]
fn an_adapter_with_zero_b_changes_no_bit() {
    for_each_model(|name, decoder| {
        let mut trained = adapters(decoder, 1);
        for p in trained.parameters().to_vec() {
            if p.name.contains(".lora_B.") {
                Cpu.write(&mut trained.values, p.slot.offset, &vec![0.0; p.slot.len]);
            }
        }
        let whole = batch(decoder, &LENGTHS, 2);
        let (base, adapted) = (
            logits(decoder, None, &whole),
            logits(decoder, Some(&trained), &whole),
        );
        same_bits(name, &adapted, &base).unwrap();
    });
}

/// Decodes each row's prompt and then the answer that was drawn for it, up to `steps(row)` of its tokens, after which it leaves the batch;
/// returns the logits of every step, row by row.
fn forced_decoding(
    decoder: &Decoder<Cpu>,
    trained: &Trained<Cpu>,
    rows: &[(Vec<u32>, Vec<u32>)],
    steps: impl Fn(usize) -> usize,
) -> Vec<Vec<f32>> {
    let (config, vocab) = (&decoder.config, decoder.config.vocab);
    let longest = rows
        .iter()
        .map(|(p, a)| p.len() + a.len())
        .max()
        .unwrap_or(0);
    let total: usize = rows.iter().map(|(p, _)| p.len()).sum();
    let mut cache = Cpu
        .cache(config.layers, rows.len(), longest, &config.heads)
        .unwrap();
    let mut ws = Workspace::new(&Cpu, config, Some(trained), total.max(rows.len()), false).unwrap();
    let mut z = vec![0.0; rows.len() * vocab];
    let mut seen = vec![Vec::new(); rows.len()];
    let mut live: Vec<usize> = (0..rows.len()).collect();
    let mut step = 0;
    while !live.is_empty() {
        let mut packed = Packed::default();
        for (slot, row) in live.iter().enumerate() {
            let (prompt, answer) = &rows[*row];
            let start = match step {
                0 => packed.push(prompt, 0, slot) + prompt.len() - 1,
                _ => packed.push(&answer[step - 1..step], prompt.len() + step - 1, slot),
            };
            packed.targets.push(Target { row: start, id: 0 });
        }
        let cached = Some(&mut cache);
        decoder.logits(Some(trained), &packed, cached, &mut z, 0, &mut ws);
        for (row, z) in live.iter().zip(z.chunks(vocab)) {
            seen[*row].extend_from_slice(z);
        }
        step += 1;
        let stays = |slot: &usize| step <= steps(live[*slot]).min(rows[live[*slot]].1.len());
        let keep: Vec<usize> = (0..live.len()).filter(stays).collect();
        if keep.len() < live.len() {
            Cpu.cache_compact(&mut cache, &keep);
            live = keep.iter().map(|slot| live[*slot]).collect();
        }
    }
    seen
}

/// Prompts of unequal lengths, one of a single token, with forced answers.
fn prompts(vocab: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let draw = &mut Draw::new(8);
    (0..17)
        .map(|i| {
            let len = [5, 1, 64, 33, 2, 65, 17][i % 7];
            (draw.ids(len, vocab), draw.ids(4 + i % 5, vocab))
        })
        .collect()
}

#[test]
fn an_answers_logits_do_not_depend_on_the_rows_beside_it() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let rows = prompts(decoder.config.vocab);
        let alone: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                forced_decoding(decoder, &trained, std::slice::from_ref(row), |_| 99).remove(0)
            })
            .collect();
        for size in [3, 8, 17] {
            // Every third row leaves after two steps, so that slots move.
            let steps = |row: usize| if row.is_multiple_of(3) { 2 } else { 99 };
            let together = forced_decoding(decoder, &trained, &rows[..size], steps);
            for (row, (got, want)) in together.iter().zip(&alone).enumerate() {
                let what = format!("{name}: row {row} of {size}");
                same_bits(&what, got, &want[..got.len()]).unwrap();
            }
        }
    });
}

#[test]
fn cached_decoding_is_a_full_forward_pass() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let rows = prompts(decoder.config.vocab);
        let cached = forced_decoding(decoder, &trained, &rows, |_| 99);
        for (row, ((prompt, answer), got)) in rows.iter().zip(&cached).enumerate() {
            let ids = [&prompt[..], answer].concat();
            let mut whole = Packed::default();
            whole.push(&ids, 0, 0);
            whole.targets = (prompt.len() - 1..ids.len())
                .map(|row| Target { row, id: 0 })
                .collect();
            let want = logits(decoder, Some(&trained), &whole);
            // The same formulas in f32 with other orders of sums, through every product of every layer.
            let top = want.iter().fold(0.0f32, |top, z| top.max(z.abs()));
            let products = 8 * decoder.config.layers;
            let error = roundings(decoder.config.inner) * products as f64 * U * f64::from(top);
            let want: Vec<Near> = want
                .iter()
                .map(|z| Near {
                    value: f64::from(*z),
                    error,
                })
                .collect();
            crate::near::agree_exactly_long(&format!("{name}: row {row}"), got, &want).unwrap();
        }
    });
}

fn settings(sample: bool) -> Decode {
    Decode {
        sample,
        max_new: 12,
        temperature: 0.8,
        top_p: 0.9,
        top_k: 20,
        repetition_penalty: 1.1,
        seed: 5,
    }
}

#[test]
fn an_answer_does_not_depend_on_its_batch() {
    for_each_model(|name, decoder| {
        let trained = adapters(decoder, 1);
        let rows = prompts(decoder.config.vocab);
        // Enough end tokens that answers end at different steps.
        let end_ids: BTreeSet<u32> = (0..decoder.config.vocab as u32).step_by(12).collect();
        for sample in [false, true] {
            let generator = Generator {
                decoder,
                trained: Some(&trained),
                settings: &settings(sample),
                end_ids: &end_ids,
            };
            let requests: Vec<Request> = rows
                .iter()
                .enumerate()
                .map(|(i, (prompt, _))| Request {
                    row: i as u64,
                    prompt,
                })
                .collect();
            let answers = |size: usize| -> Vec<(Vec<u32>, _)> {
                let plain = |a: Answer| (a.ids, a.finish);
                let batches = requests.chunks(size);
                let all = batches.flat_map(|batch| generator.answer(batch).unwrap());
                all.map(plain).collect()
            };
            let alone = answers(1);
            for size in [3, 8, 17] {
                assert_eq!(answers(size), alone, "{name}: batches of {size}");
            }
        }
    });
}

/// Each activation buffer once: an adapter adds its low-rank products, training one set of what is kept for every layer.
#[test]
fn the_need_of_a_pass_is_counted() {
    for_each_model(|name, decoder| {
        let config = &decoder.config;
        let trained = adapters(decoder, 1);
        let need = |tuning, tokens, training| {
            let need = Workspace::need(&Cpu, config, tuning, tokens, training);
            Cpu.arena_bytes(&need)
        };
        let adapted = need(Some(trained.tuning()), 10, true);
        let full = need(Some(&Tuning::Full), 10, true);
        let low = 4 * 10 * config.layers * 5 * Linear::ALL.len();
        assert_eq!(adapted - full, low as u64, "{name}");
        assert_eq!(need(None, 20, true), 2 * full, "{name}");

        let heads = &config.heads;
        let layer = heads.qkv() + heads.queries * (heads.dim + 1) + 2 + 2 * config.inner;
        let kept = (config.layers - 1) * (layer + 2 * config.hidden);
        let gradients = 2 * config.hidden + heads.qkv() + heads.queries * heads.dim;
        let more = kept + gradients + 3 * config.inner;
        assert_eq!(full - need(None, 10, false), 4 * 10 * more as u64, "{name}");
    });
}
