//! Prompts and steps through the KV cache.

use super::against_cpu::{config, model, sequences};
use super::{assert_relative, gpu, packed};
use medft_dsl::plan::{Decode, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Packed, Slot, Target};
use medft_engine::generate::engine::{Generator, Request};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::workspace::{Largest, Workspace};
use std::collections::BTreeSet;

/// Logits after each token but the first `prompt`, one token at a time through the cache.
fn stepwise<B: Backend>(decoder: &Decoder<B>, rows: &[Vec<u32>], prompt: usize) -> Vec<f32> {
    let (backend, c) = (&decoder.backend, &decoder.config);
    let longest = rows.iter().map(Vec::len).max().unwrap();
    let mut cache = backend
        .cache(c.layers, rows.len(), longest, &c.heads)
        .unwrap();
    let largest = Largest {
        tokens: rows.len() * prompt.max(1),
        targets: rows.len(),
        training: false,
        cached: Some((rows.len(), longest)),
    };
    let mut ws = decoder.workspace(None, &largest).unwrap();
    let mut logits = backend.floats("logits", rows.len() * c.vocab).unwrap();
    let mut all = vec![Vec::new(); rows.len()];
    for t in prompt..longest {
        let mut batch = Packed::default();
        for (slot, row) in rows.iter().enumerate() {
            let (from, past) = if t == prompt { (0, 0) } else { (t - 1, t - 1) };
            let start = batch.push(&row[from..t], past, slot);
            batch.targets.push(Target {
                row: start + t - from - 1,
                id: 0,
            });
        }
        decoder.logits(
            None,
            &backend.upload(batch).unwrap(),
            Some(&mut cache),
            &mut logits,
            0,
            &mut ws,
        );
        let step = backend
            .read(
                &logits,
                Slot {
                    offset: 0,
                    len: rows.len() * c.vocab,
                },
            )
            .unwrap();
        for (all, step) in all.iter_mut().zip(step.chunks(c.vocab)) {
            all.extend_from_slice(step);
        }
    }
    all.concat()
}

#[test]
fn steps_through_the_cache_equal_a_whole_pass() {
    let Some(gpu) = gpu() else { return };
    for (dim, heads, precision, more) in [
        (64, (4, 2), Precision::Bf16, "qwen"),
        (128, (8, 1), Precision::Nf4, ""),
        (32, (4, 4), Precision::Bf16, "window"),
    ] {
        let dir = model(&config(dim, heads, 256, 448, 512, more), 1);
        let cpu = Decoder::load(Cpu, dir.path(), precision, true).unwrap();
        let decoder = Decoder::load(gpu.clone(), dir.path(), precision, true).unwrap();
        let rows = sequences(&[70, 70, 70], 512, 3);
        let got = stepwise(&decoder, &rows, 33);
        let want = stepwise(&cpu, &rows, 33);
        assert_relative(&format!("head size {dim} {more}"), &got, &want, 2.5e-2);
        let batch = packed(&rows, 33);
        let targets = batch.targets.len();
        let largest = Largest {
            tokens: batch.tokens(),
            targets,
            training: false,
            cached: None,
        };
        let mut ws = decoder.workspace(None, &largest).unwrap();
        let mut logits = gpu.floats("logits", targets * 512).unwrap();
        decoder.logits(
            None,
            &gpu.upload(batch).unwrap(),
            None,
            &mut logits,
            0,
            &mut ws,
        );
        let whole = gpu
            .read(
                &logits,
                Slot {
                    offset: 0,
                    len: targets * 512,
                },
            )
            .unwrap();
        assert_relative(
            &format!("head size {dim} {more}: whole pass"),
            &got,
            &whole,
            2.5e-2,
        );
    }
}

fn answers<B: Backend>(
    decoder: &Decoder<B>,
    prompts: &[Vec<u32>],
    settings: &Decode,
) -> Vec<Vec<u32>> {
    let none = BTreeSet::from([7]);
    let generator = Generator {
        decoder,
        trained: None,
        settings,
        end_ids: &none,
    };
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(row, prompt)| Request {
            row: row as u64,
            prompt,
        })
        .collect();
    generator
        .answer(&requests)
        .unwrap()
        .into_iter()
        .map(|a| a.ids)
        .collect()
}

#[test]
fn rows_of_a_batch_answer_as_if_alone() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 64, "qwen"), 1);
    let decoder = Decoder::load(gpu, dir.path(), Precision::Bf16, true).unwrap();
    let prompts = sequences(&[5, 40, 1, 17, 130, 64, 9], 64, 3);
    for sample in [false, true] {
        let settings = Decode {
            sample,
            max_new: 24,
            temperature: 0.9,
            top_p: 0.95,
            top_k: 20,
            repetition_penalty: 1.1,
            seed: 4,
        };
        let together = answers(&decoder, &prompts, &settings);
        let generator = |row: usize| {
            let none = BTreeSet::from([7]);
            let generator = Generator {
                decoder: &decoder,
                trained: None,
                settings: &settings,
                end_ids: &none,
            };
            generator
                .answer(&[Request {
                    row: row as u64,
                    prompt: &prompts[row],
                }])
                .unwrap()[0]
                .ids
                .clone()
        };
        for (row, answer) in together.iter().enumerate() {
            assert_eq!(*answer, generator(row), "row {row}, sampling {sample}");
        }
    }
}

#[test]
fn greedy_answers_of_the_quickstart_model_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    let dir = std::env::var_os("MEDFT_QUICKSTART")
        .map_or(
            concat!(env!("CARGO_MANIFEST_DIR"), "/data/quickstart").into(),
            std::path::PathBuf::from,
        )
        .join("small");
    let cpu = Decoder::load(Cpu, &dir, Precision::Bf16, true).unwrap();
    let decoder = Decoder::load(gpu, &dir, Precision::Bf16, true).unwrap();
    let prompts = sequences(&[20, 33, 64, 100], 2000, 8);
    let settings = Decode {
        sample: false,
        max_new: 24,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        seed: 0,
    };
    let (want, got) = (
        answers(&cpu, &prompts, &settings),
        answers(&decoder, &prompts, &settings),
    );
    for ((prompt, want), got) in prompts.iter().zip(want).zip(got) {
        let Some(at) = (0..want.len().min(got.len())).find(|i| want[*i] != got[*i]) else {
            continue;
        };
        // Where they part, the CPU's two scores must be so near that bf16 decides: within twice the error of two logits (golden.rs).
        let seen: Vec<u32> = prompt.iter().chain(&want[..at]).copied().collect();
        let mut batch = Packed::default();
        batch.push(&seen, 0, 0);
        let row = seen.len() - 1;
        batch.targets.push(Target { row, id: 0 });
        let mut ws = Workspace::new(&cpu.backend, &cpu.config, None, seen.len(), false).unwrap();
        let mut logits = vec![0.0; cpu.config.vocab];
        cpu.logits(None, &batch, None, &mut logits, 0, &mut ws);
        let score = |id: u32| f64::from(logits[id as usize]);
        let margin = score(want[at]) - score(got[at]);
        let square: f64 = logits.iter().map(|l| f64::from(l * l)).sum();
        let rms = (square / logits.len() as f64).sqrt();
        let bound = 4.0 * 1.1e-3 * (14.0 * cpu.config.layers as f64 + 4.0).sqrt() * rms;
        println!(
            "token {at}: {} against {}, margin {margin:.4} of {bound:.4}",
            got[at], want[at]
        );
        assert!(
            margin <= bound,
            "token {at} of the answer to {} tokens: {} instead of {}, margin {margin}, bound {bound}",
            prompt.len(),
            got[at],
            want[at]
        );
    }
}
