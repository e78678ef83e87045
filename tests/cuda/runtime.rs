//! What a step asks of the driver: nothing but launches, planned memory, and the same bits launched or replayed.

use super::against_cpu::{config, model, sequences};
use super::same_bits::{division, settings};
use super::{gpu, packed};
use medft_dsl::plan::{Adapter, Linear, Precision, Train};
use medft_engine::backend::cuda::{Cuda, Recording};
use medft_engine::backend::{Backend, Packed, Pass, Slot};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained, Tuning};
use medft_engine::model::workspace::Largest;
use medft_engine::text::example::Example;
use medft_engine::train::batch::Extent;
use medft_engine::train::snapshot::State;
use medft_engine::train::step::Stepper;

fn trained(decoder: &Decoder<Cuda>, full: bool) -> Trained<Cuda> {
    let backend = &decoder.backend;
    if full {
        let mut trained = Trained::zeros(backend, &decoder.config, Tuning::Full).unwrap();
        for p in trained.parameters().to_vec() {
            let values = decoder.values(&p.name).unwrap().unwrap();
            backend.write(&mut trained.values, p.slot.offset, &values);
        }
        return trained;
    }
    let shape = LoraShape {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    Trained::new_lora(backend, &decoder.config, shape, 5).unwrap()
}

/// Losses and gradients of passes of other tokens, other masks and other factors, each launched or, from the third on, replayed.
fn passes(decoder: &Decoder<Cuda>, full: bool, replay: bool) -> Vec<Vec<f32>> {
    let backend = &decoder.backend;
    let mut trained = trained(decoder, full);
    let len = trained.len();
    let largest = Largest {
        tokens: 256,
        targets: 256,
        training: true,
        cached: None,
    };
    let mut ws = decoder.workspace(Some(&trained), &largest).unwrap();
    let mut losses = backend.floats("losses", 1024).unwrap();
    let mut grads = backend.floats("grads", len).unwrap();
    let mut recording = Recording::default();
    let mut all = vec![];
    for step in 0..6u64 {
        // Never the same lengths, and always as many rows, targets and tiles once they are filled up.
        let lengths = [100 - step as usize, 60, 41 + 2 * step as usize];
        let batch = Packed {
            pass: Some(Pass {
                seed: 7,
                step,
                first_token: 100 * step,
                first_target: 3 + step as usize,
                loss_scale: 0.01 * (1 + step) as f32,
            }),
            ..packed(&sequences(&lengths, decoder.config.vocab, step), 20)
        };
        let targets = batch.targets.len();
        let batch = backend.upload(batch).unwrap();
        let mut fresh = Recording::default();
        let before = backend.device().counters();
        decoder.train_pass(
            if replay { &mut recording } else { &mut fresh },
            &trained,
            &mut grads,
            0.2,
            &batch,
            &mut losses,
            &mut ws,
        );
        let launches = backend.device().counters().launches - before.launches;
        let expected = if full { 3 } else { 1 };
        assert!(
            if replay && step > 2 {
                launches <= expected
            } else {
                launches > 20
            },
            "step {step}: {launches} launches, replay {replay}"
        );
        let read = |from: &_, offset, len| backend.read(from, Slot { offset, len }).unwrap();
        all.push(read(&losses, 3 + step as usize, targets));
        all.push(read(&grads, 0, len));
        // The next pass is not to find what it would write.
        backend.zero(&mut losses);
        backend.zero(&mut grads);
        let changed: Vec<f32> = read(&trained.values, 0, 64)
            .iter()
            .map(|v| v * 1.01)
            .collect();
        backend.write(&mut trained.values, 0, &changed);
    }
    all
}

#[test]
fn a_replayed_pass_has_the_bits_of_a_launched_one() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 512, "qwen"), 1);
    for (precision, full) in [
        (Precision::Bf16, false),
        (Precision::Nf4, false),
        (Precision::Bf16, true),
    ] {
        let decoder = Decoder::load(gpu.clone(), dir.path(), precision, true).unwrap();
        let launched = passes(&decoder, full, false);
        assert!(launched.iter().flatten().all(|v| v.is_finite()));
        assert!(launched.iter().all(|part| part.iter().any(|v| *v != 0.0)));
        assert!(
            launched == passes(&decoder, full, true),
            "{precision:?}, full {full}"
        );
    }
}

/// Rows of these lengths, the last quarter of each learnt.
fn examples(lengths: &[usize], vocab: usize, seed: u64) -> Vec<Example> {
    let rows = sequences(lengths, vocab, seed).into_iter();
    let example = |ids: Vec<u32>| Example {
        target_start: ids.len() - ids.len() / 4,
        ids,
        cut: 0,
    };
    rows.map(example).collect()
}

fn of(rows: &[Example]) -> Vec<&Example> {
    rows.iter().collect()
}

fn of_kind(full: bool, micro_batch: Option<u64>) -> Train {
    let settings = settings(if full { 0.0 } else { 0.1 }, micro_batch);
    match full {
        true => Train {
            adapter: Adapter::Full,
            ..settings
        },
        false => settings,
    }
}

#[test]
fn a_step_neither_allocates_nor_waits() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 512, "qwen"), 1);
    let decoder = Decoder::load(gpu.clone(), dir.path(), Precision::Bf16, true).unwrap();
    for (full, micro_batch) in [(false, None), (false, Some(2)), (true, Some(3))] {
        let settings = of_kind(full, micro_batch);
        let steps: Vec<Vec<Example>> = (0..24)
            .map(|step: usize| {
                let length = |row: usize| 20 + (37 * step + 11 * row) % (30 + 7 * step);
                let rows = 4 + step % 5;
                let lengths: Vec<usize> = (0..rows).map(length).collect();
                examples(&lengths, decoder.config.vocab, step as u64)
            })
            .collect();
        let extents = steps
            .iter()
            .map(|rows| Extent::of(&of(rows), division(&settings)));
        let extent = extents.fold(Extent::default(), Extent::max);
        let trained = trained(&decoder, full);
        let len = trained.len();
        let mut state = State::new(&gpu, trained, "k").unwrap();
        let mut stepper = Stepper::new(&decoder, &settings, division(&settings), len).unwrap();
        stepper.reserve(&state.trained, extent).unwrap();
        // Losses and norm are read behind the step, each by one read.
        let read = || gpu.read(&state.trained.values, Slot { offset: 0, len: 1 });
        let before = gpu.device().counters();
        read().unwrap();
        let reads = 2 * (gpu.device().counters().waits - before.waits);
        for (step, rows) in steps.iter().enumerate() {
            let before = gpu.device().counters();
            let stepped = stepper.step(&mut state, &of(rows), 1e-3).unwrap();
            state.progress.step += 1;
            let after = gpu.device().counters();
            assert!(stepped.loss > 0.0 && after.launches > before.launches);
            let asked = (
                after.allocations - before.allocations,
                after.waits - before.waits,
            );
            assert!(
                step < 3 || asked == (0, reads),
                "step {step}, full {full}, micro batch {micro_batch:?}: {asked:?} allocations and waits, {reads} of reads"
            );
        }
        let graphs = gpu.device().counters().graphs;
        assert!(graphs > 0, "ragged batches never came alike");
    }
}

#[test]
fn ops_borrow_what_the_plan_says() {
    let dir = model(&config(64, (4, 2), 256, 448, 512, "qwen"), 1);
    for (precision, full) in [
        (Precision::Bf16, false),
        (Precision::Nf4, false),
        (Precision::Bf16, true),
    ] {
        let Some(gpu) = gpu() else { return };
        let decoder = Decoder::load(gpu.clone(), dir.path(), precision, true).unwrap();
        let settings = of_kind(full, None);
        let trained = trained(&decoder, full);
        let len = trained.len();
        let mut state = State::new(&gpu, trained, "k").unwrap();
        let mut stepper = Stepper::new(&decoder, &settings, division(&settings), len).unwrap();
        // Full to the last row and target.
        let rows = examples(&[64; 8], decoder.config.vocab, 3);
        stepper.step(&mut state, &of(&rows), 1e-3).unwrap();
        let (most, planned) = gpu.borrowed();
        assert_eq!(most, planned, "{precision:?}, full {full}");
    }
}
