//! Full fine-tuning: gradients of every tensor against central differences, and a loss that falls.

use crate::setup::{Bench, losses, rows, settings, tensors};
use crate::support::{TINY, weights};
use medft_dsl::plan::{Adapter, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Packed, Slot};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{Trained, Tuning};
use medft_engine::model::workspace::Workspace;
use medft_engine::train::batch::passes;
use medft_engine::train::division::{AUTO_TOKENS, Division};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Every weight of a model as a trained value.
fn trainable(decoder: &Decoder<Cpu>) -> Trained<Cpu> {
    let mut trained = Trained::zeros(&Cpu, &decoder.config, Tuning::Full).unwrap();
    for p in trained.parameters().to_vec() {
        let values = decoder.values(&p.name).unwrap().unwrap();
        Cpu.write(&mut trained.values, p.slot.offset, &values);
    }
    trained
}

fn model(config: &str) -> (tempfile::TempDir, Decoder<Cpu>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights(config, 5)).unwrap();
    let decoder = Decoder::load(Cpu, dir.path(), Precision::F32, true).unwrap();
    (dir, decoder)
}

/// [`TINY`]: untied without biases; the same tied with q/k/v biases; and with biases everywhere.
fn configs() -> [String; 3] {
    let biased = r#""attention_bias": true, "mlp_bias": true, "hidden_act""#;
    [
        TINY.to_string(),
        TINY.replace("\"llama\"", "\"qwen2\"").replace(
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true",
        ),
        TINY.replace("\"hidden_act\"", biased),
    ]
}

fn sum(losses: Vec<f32>) -> f64 {
    losses.into_iter().map(f64::from).sum()
}

/// Sum of a batch's losses.
fn loss(
    decoder: &Decoder<Cpu>,
    trained: Option<&Trained<Cpu>>,
    batch: &Packed,
    ws: &mut Workspace<Cpu>,
) -> f64 {
    let mut losses = vec![0.0; batch.targets.len()];
    decoder.losses(trained, batch, &mut losses, ws);
    sum(losses)
}

/// Two directions of length 1 in a slot's values: that of its gradient, and one drawn by chance.
fn directions(grads: &[f32], slot: Slot, rng: &mut ChaCha8Rng) -> [Vec<f64>; 2] {
    let own: Vec<f64> = grads[slot.offset..slot.offset + slot.len]
        .iter()
        .map(|g| f64::from(*g))
        .collect();
    let chance = own.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
    [own, chance].map(|d: Vec<f64>| {
        let norm = d.iter().map(|x| x * x).sum::<f64>().sqrt();
        d.into_iter().map(|x| x / norm).collect()
    })
}

#[test]
fn gradients_of_every_tensor_equal_central_differences() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for config in configs() {
        let (_dir, decoder) = model(&config);
        let mut trained = trainable(&decoder);
        let rows = rows(5, 4);
        // The gradient of the sum of the losses.
        let batch = Packed {
            pass: None,
            ..passes(
                &rows.iter().collect::<Vec<_>>(),
                Division::Tokens(AUTO_TOKENS),
                0,
                0,
            )
            .remove(0)
        };
        let n = batch.tokens();
        let mut ws = Workspace::new(&Cpu, &decoder.config, Some(&trained), n, true).unwrap();
        let (mut grads, mut losses) = (vec![0.0; trained.len()], vec![0.0; batch.targets.len()]);
        decoder.train_pass(
            &mut (),
            &trained,
            &mut grads,
            0.0,
            &batch,
            &mut losses,
            &mut ws,
        );
        assert!((sum(losses) - loss(&decoder, None, &batch, &mut ws)).abs() < 1e-9);
        for parameter in trained.parameters().to_vec() {
            let slot = parameter.slot;
            for direction in directions(&grads, slot, &mut rng) {
                let along = |trained: &mut Trained<Cpu>, ws: &mut Workspace<Cpu>, by: f64| {
                    let before = Cpu.read(&trained.values, slot).unwrap();
                    let moved: Vec<f32> = before
                        .iter()
                        .zip(&direction)
                        .map(|(v, d)| v + (by * d) as f32)
                        .collect();
                    Cpu.write(&mut trained.values, slot.offset, &moved);
                    let loss = loss(&decoder, Some(trained), &batch, ws);
                    Cpu.write(&mut trained.values, slot.offset, &before);
                    loss
                };
                let mut slope = |h: f64| {
                    let (plus, minus) = (
                        along(&mut trained, &mut ws, h),
                        along(&mut trained, &mut ws, -h),
                    );
                    (plus - minus) / (2.0 * h)
                };
                // Richardson's step takes the h^2 term out, so that h may be large against float32's rounding.
                let h = 0.02;
                let numeric = (4.0 * slope(h) - slope(2.0 * h)) / 3.0;
                let own = &grads[slot.offset..slot.offset + slot.len];
                let exact: f64 = own
                    .iter()
                    .zip(&direction)
                    .map(|(g, d)| f64::from(*g) * d)
                    .sum();
                let bound = 3e-4 * (1.0 + exact.abs());
                assert!(
                    (numeric - exact).abs() < bound,
                    "{}: {exact} != {numeric} within {bound:e}",
                    parameter.name
                );
            }
        }
    }
}

#[test]
fn full_training_learns_and_its_result_is_a_model() {
    for config in configs() {
        let (dir, decoder) = model(&config);
        let bench = Bench {
            decoder,
            ..Bench::new()
        };
        let mut settings = settings();
        settings.adapter = Adapter::Full;
        settings.epochs = 20;
        let out = tempfile::tempdir().unwrap();
        let outcome = bench.run(&settings, out.path());
        let (train, val) = losses(out.path());
        assert!(train[train.len() - 1] < 0.5 * train[0], "{train:?}");

        // With the base's config.json beside it, it loads as a model of its own and has the best validation's loss.
        let result = out.path().join("model");
        std::fs::copy(dir.path().join("config.json"), result.join("config.json")).unwrap();
        let best = outcome.best.unwrap();
        assert!(val.contains(&(best.step, best.loss)));
        assert_eq!(val_loss(&result, &bench), best.loss);
        let names = tensors(&result.join("model.safetensors")).into_keys();
        assert!(names.eq(tensors(&dir.path().join("model.safetensors")).into_keys()));
    }
}

/// Mean validation loss of a model directory.
fn val_loss(dir: &Path, bench: &Bench) -> f64 {
    let decoder = Decoder::load(Cpu, dir, Precision::F32, true).unwrap();
    let (mut total, mut targets) = (0.0, 0);
    for rows in bench.val.chunks(4) {
        for pass in passes(
            &rows.iter().collect::<Vec<_>>(),
            Division::Tokens(AUTO_TOKENS),
            0,
            0,
        ) {
            let n = pass.tokens();
            let mut ws = Workspace::new(&Cpu, &decoder.config, None, n, false).unwrap();
            targets += pass.targets.len();
            total += loss(&decoder, None, &pass, &mut ws);
        }
    }
    total / f64::from(u32::try_from(targets).unwrap())
}
