//! The same seed gives the same bits, run after run.

use super::against_cpu::{config, model, sequences};
use super::gpu;
use medft_dsl::plan::{AdamW, Adapter, Linear, Lora, Precision, Schedule, ScheduleKind, Train};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Slot};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained};
use medft_engine::text::example::Example;
use medft_engine::train::division::{AUTO_TOKENS, Division};
use medft_engine::train::snapshot::State;
use medft_engine::train::step::Stepper;

pub fn settings(dropout: f64, micro_batch: Option<u64>) -> Train {
    Train {
        name: "t".into(),
        model: "m".into(),
        task: "t".into(),
        adapter: Adapter::Lora(Lora {
            rank: 8,
            alpha: 16.0,
            dropout,
            targets: Linear::ALL.to_vec(),
            init: None,
        }),
        optimizer: AdamW {
            lr: 1e-3,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        },
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 0,
        },
        epochs: 1,
        max_steps: None,
        batch: 4,
        eval_batch: 4,
        micro_batch,
        clip: Some(1.0),
        log_every: 1,
        eval_every: 1,
        save_every: 1,
        keep: 1,
        stop: None,
        shuffle: false,
        seed: 5,
    }
}

/// Losses of each step, and the adapter at the end.
/// The recipe's, or that of a device which has little memory.
pub fn division(settings: &Train) -> Division {
    let auto = Division::Tokens(AUTO_TOKENS);
    settings.micro_batch.map_or(auto, Division::Rows)
}

fn train<B: Backend>(decoder: &Decoder<B>, settings: &Train, steps: usize) -> (Vec<f64>, Vec<f32>) {
    let backend = &decoder.backend;
    let shape = LoraShape {
        rank: 8,
        alpha: 16.0,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    let trained = Trained::new_lora(backend, &decoder.config, shape, 5).unwrap();
    let len = trained.len();
    let mut state = State::new(backend, trained, "k").unwrap();
    let mut stepper = Stepper::new(decoder, settings, division(settings), len).unwrap();
    // The answer repeats the prompt's first tokens: something to learn.
    let rows: Vec<Example> = sequences(&vec![24; 4 * steps], decoder.config.vocab, 3)
        .into_iter()
        .map(|mut ids| {
            let first: Vec<u32> = ids[..6].to_vec();
            ids.extend(first);
            Example {
                ids,
                target_start: 24,
                cut: 0,
            }
        })
        .collect();
    let losses = rows
        .chunks(4)
        .map(|rows| {
            let stepped = stepper
                .step(&mut state, &rows.iter().collect::<Vec<_>>(), 1e-3)
                .unwrap();
            state.progress.step += 1;
            stepped.loss
        })
        .collect();
    (
        losses,
        backend
            .read(&state.trained.values, Slot { offset: 0, len })
            .unwrap(),
    )
}

#[test]
fn twenty_trainings_have_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 512, "qwen"), 1);
    let decoder = Decoder::load(gpu, dir.path(), Precision::Bf16, true).unwrap();
    let first = train(&decoder, &settings(0.1, None), 5);
    for run in 1..20 {
        let again = train(&decoder, &settings(0.1, None), 5);
        assert!(first == again, "run {run} differs");
    }
}

#[test]
fn micro_batches_see_the_same_masks() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(64, (4, 2), 256, 448, 512, "qwen"), 1);
    let decoder = Decoder::load(gpu, dir.path(), Precision::Bf16, true).unwrap();
    let (whole, parts) = (
        train(&decoder, &settings(0.2, None), 6),
        train(&decoder, &settings(0.2, Some(1)), 6),
    );
    for (w, p) in whole.0.iter().zip(&parts.0) {
        assert!((w - p).abs() <= 5e-3 * w, "{:?} {:?}", whole.0, parts.0);
    }
}

#[test]
fn two_hundred_steps_follow_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let dir = model(&config(32, (4, 2), 128, 256, 256, "qwen"), 1);
    let cpu = Decoder::load(Cpu, dir.path(), Precision::F32, true).unwrap();
    let decoder = Decoder::load(gpu, dir.path(), Precision::Bf16, true).unwrap();
    let (want, got) = (
        train(&cpu, &settings(0.1, None), 200).0,
        train(&decoder, &settings(0.1, None), 200).0,
    );
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    for (part, (w, g)) in want.chunks(20).zip(got.chunks(20)).enumerate() {
        let (w, g) = (mean(w), mean(g));
        println!(
            "steps {}..{}: {w:.4} on the CPU, {g:.4} on the GPU",
            20 * part,
            20 * part + 20
        );
        assert!(
            (w - g).abs() <= 0.01 * w,
            "steps {}..: {w} against {g}",
            20 * part
        );
    }
}
