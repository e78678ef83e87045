//! ../shared/golden in bf16.
//!
//! The bounds follow from bf16. A stored value and a weight are rounded by at most 2^-9, 2^-9 / sqrt 3 = 1.1e-3 rms; on the way of a token a layer
//! stores or reads about 14 of them, and 12 more with adapters (A, B and their product at four groups), whose errors add like random ones:
//! an L-layer model's logits are off by 1.1e-3 sqrt(26 L + 4) of their norm, 1e-2 for three layers. Gradients go the way twice. Twice these
//! is the bound.

use super::{assert_relative, gpu, relative};
use crate::golden_files::{Fixtures, families, pack};
use medft_dsl::plan::Precision;
use medft_engine::backend::{AdamWStep, Backend, Packed, Pass, ROWS, Slot};
use medft_engine::model::adapter;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::workspace::Largest;

fn largest(batch: &Packed, training: bool) -> Largest {
    Largest {
        tokens: batch.tokens().next_multiple_of(ROWS),
        targets: batch.targets.len(),
        training,
        cached: None,
    }
}

const ROUNDING: f64 = 1.1e-3;

/// Rows of one optimizer step of a `[steps, rows, columns]` tensor.
fn of_step(rows: Vec<Vec<i64>>, step: usize) -> Vec<Vec<i64>> {
    let each = rows.len() / 3;
    rows[step * each..(step + 1) * each].to_vec()
}

fn mean(x: &[f32]) -> f64 {
    x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64
}

#[test]
fn every_family_in_bf16() {
    let Some(gpu) = gpu() else { return };
    for (name, dir) in families() {
        let fixtures = Fixtures::read(&dir.join("fixtures.safetensors"));
        let model = Decoder::load(gpu.clone(), &dir, Precision::Bf16, true).unwrap();
        let bound = 2.0 * ROUNDING * (26.0 * model.config.layers as f64 + 4.0).sqrt();
        let (ids, mask, labels) = (
            fixtures.i64_rows("input_ids"),
            fixtures.i64_rows("attention_mask"),
            fixtures.i64_rows("labels"),
        );
        let vocab = model.config.vocab;
        let adapter = adapter::read(&gpu, &model.config, &dir.join("adapter")).unwrap();
        let mut logit_rms = 0.0;
        for (which, trained) in [("base", None), ("lora", Some(&adapter))] {
            let batch = pack(&ids, &mask, None);
            let targets = batch.targets.len();
            let largest = largest(&batch, false);
            let mut ws = model.workspace(trained, &largest).unwrap();
            let mut logits = gpu.floats("logits", targets * vocab).unwrap();
            model.logits(
                trained,
                &gpu.upload(batch).unwrap(),
                None,
                &mut logits,
                0,
                &mut ws,
            );
            let got = gpu
                .read(
                    &logits,
                    Slot {
                        offset: 0,
                        len: targets * vocab,
                    },
                )
                .unwrap();
            let all = fixtures.f32_rows(&format!("{which}.logits"));
            let real = all
                .iter()
                .zip(mask.iter().flatten())
                .filter(|(_, m)| **m == 1);
            let want: Vec<f32> = real.flat_map(|(row, _)| row.clone()).collect();
            assert_relative(&format!("{name} {which}.logits"), &got, &want, bound);
            logit_rms =
                (want.iter().map(|w| f64::from(w * w)).sum::<f64>() / want.len() as f64).sqrt();

            let batch = pack(&ids, &mask, Some(&labels));
            let targets = batch.targets.len();
            let mut losses = gpu.floats("losses", targets).unwrap();
            model.losses(trained, &gpu.upload(batch).unwrap(), &mut losses, &mut ws);
            let loss = mean(
                &gpu.read(
                    &losses,
                    Slot {
                        offset: 0,
                        len: targets,
                    },
                )
                .unwrap(),
            );
            let want = f64::from(fixtures.f32(&format!("{which}.loss"))[0]);
            // A loss is off by the errors of two logits; their mean over the targets by less.
            let near = bound * logit_rms * (2.0 / targets as f64).sqrt();
            println!("{name} {which}.loss: {loss:.5} against {want:.5}, bound {near:.1e}");
            assert!(
                (loss - want).abs() <= near,
                "{name} {which}: loss {loss} against {want}, bound {near:e}"
            );
        }

        let mut trained = adapter;
        let len = trained.len();
        let all = Slot { offset: 0, len };
        let start = gpu.read(&trained.values, all).unwrap();
        let floats = |what| gpu.floats(what, len).unwrap();
        let (mut first, mut second) = (floats("first"), floats("second"));
        let rates = fixtures.f32("train.lr");
        for step in 0..3 {
            let of = |tensor: &str| of_step(fixtures.i64_rows(&format!("train.{tensor}")), step);
            let batch = pack(&of("input_ids"), &of("attention_mask"), Some(&of("labels")));
            let targets = batch.targets.len();
            let (mut grads, mut losses) = (floats("grads"), gpu.floats("losses", targets).unwrap());
            let mut ws = model
                .workspace(Some(&trained), &largest(&batch, true))
                .unwrap();
            let pass = Pass {
                loss_scale: 1.0 / targets as f32,
                ..Pass::default()
            };
            let batch = Packed {
                pass: Some(pass),
                ..batch
            };
            model.train_pass(
                &mut Default::default(),
                &trained,
                &mut grads,
                0.0,
                &gpu.upload(batch).unwrap(),
                &mut losses,
                &mut ws,
            );
            let loss = mean(
                &gpu.read(
                    &losses,
                    Slot {
                        offset: 0,
                        len: targets,
                    },
                )
                .unwrap(),
            );
            let want = f64::from(fixtures.f32("train.loss")[step]);
            assert!(
                (loss - want).abs() <= bound * logit_rms,
                "{name} step {step}: loss {loss} against {want}"
            );
            if step == 0 {
                let (mut got, mut want) = (Vec::new(), Vec::new());
                for p in trained.parameters() {
                    let (own, golden) = (
                        gpu.read(&grads, p.slot).unwrap(),
                        fixtures.f32(&format!("lora.grad.{}", p.name)),
                    );
                    println!("{name} {}: {:.2e}", p.name, relative(&own, &golden));
                    got.extend(own);
                    want.extend(golden);
                }
                assert_relative(&format!("{name} gradients"), &got, &want, 2.0 * bound);
            }
            let mut norm = gpu.floats("norm", 1).unwrap();
            gpu.norm(&grads, &mut norm);
            let adamw = AdamWStep {
                lr: f64::from(rates[step]),
                weight_decay: 0.01,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                step: step as u64 + 1,
                max_norm: Some(1.0),
            };
            gpu.adamw(
                &adamw,
                &grads,
                &norm,
                &mut trained.values,
                &mut first,
                &mut second,
            );
        }
        // Adam moves a weight by about its rate whatever the gradient's size, so small gradients' signs matter: compare the way gone.
        let end = gpu.read(&trained.values, all).unwrap();
        let want: Vec<f32> = trained
            .parameters()
            .iter()
            .flat_map(|p| fixtures.f32(&format!("train.final.{}", p.name)))
            .collect();
        let gone =
            |end: &[f32]| -> Vec<f32> { end.iter().zip(&start).map(|(e, s)| e - s).collect() };
        assert_relative(
            &format!("{name} way of three steps"),
            &gone(&end),
            &gone(&want),
            0.15,
        );
    }
}
