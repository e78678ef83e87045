//! The decoder against Transformers + PEFT in float64 (../shared/golden): logits, loss, gradients, three optimizer steps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

#[path = "support/golden.rs"]
mod golden_files;
mod support;

use golden_files::pack;
use medft_dsl::plan::Precision;
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{AdamWStep, Backend, Pass};
use medft_engine::model::adapter;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::workspace::Workspace;
use safetensors::SafeTensors;

struct Fixtures(Vec<u8>);

impl Fixtures {
    fn load(dir: &std::path::Path) -> Self {
        Fixtures(std::fs::read(dir.join("fixtures.safetensors")).unwrap())
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file
            .tensor(name)
            .unwrap_or_else(|_| panic!("{name}"))
            .data()
            .to_vec();
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// Rows of a `[rows, columns]` tensor, or of one layer of a `[steps, rows, columns]` one.
    fn i64_rows(&self, name: &str, step: Option<usize>) -> Vec<Vec<i64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let columns = *tensor.shape().last().unwrap();
        let all: Vec<i64> = tensor
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let rows: Vec<Vec<i64>> = all.chunks(columns).map(<[i64]>::to_vec).collect();
        match step {
            None => rows,
            Some(s) => {
                let per = tensor.shape()[1];
                rows[s * per..(s + 1) * per].to_vec()
            }
        }
    }
}

/// The fixture's rows where the mask is 1, back to back.
fn real_rows(values: &[f32], mask: &[Vec<i64>], columns: usize) -> Vec<f32> {
    let flat = mask.iter().flatten();
    values
        .chunks(columns)
        .zip(flat)
        .filter(|(_, m)| **m == 1)
        .flat_map(|(v, _)| v.to_vec())
        .collect()
}

fn assert_close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let (mut worst, mut at, mut count) = (0.0, 0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let d = (g - w).abs();
        if d > bound || d.is_nan() {
            count += 1;
        }
        if d > worst || d.is_nan() {
            (worst, at) = (d, i);
        }
    }
    println!("{what}: largest difference {worst:.2e} of {bound:.1e}");
    assert!(
        count == 0,
        "{what}: {count} of {} differ; worst {worst:e} at {at}: {} != {}",
        got.len(),
        got[at],
        want[at]
    );
}

fn mean(x: &[f32]) -> f32 {
    x.iter().sum::<f32>() / x.len() as f32
}

fn family(name: &str) {
    let Some(dir) = support::shared(&format!("golden/{name}")) else {
        return;
    };
    let fixtures = Fixtures::load(&dir);
    let model = Decoder::load(Cpu, &dir, Precision::F32, true).unwrap();
    let (ids, mask) = (
        fixtures.i64_rows("input_ids", None),
        fixtures.i64_rows("attention_mask", None),
    );
    let labels = fixtures.i64_rows("labels", None);
    let vocab = model.config.vocab;
    let adapter = adapter::read(&Cpu, &model.config, &dir.join("adapter")).unwrap();

    for (which, trained) in [("base", None), ("lora", Some(&adapter))] {
        let batch = pack(&ids, &mask, None);
        let tokens = batch.tokens();
        let mut ws = Workspace::new(&Cpu, &model.config, trained, tokens, false).unwrap();
        let mut logits = vec![0.0; batch.targets.len() * vocab];
        model.logits(trained, &batch, None, &mut logits, 0, &mut ws);
        let want = real_rows(&fixtures.f32(&format!("{which}.logits")), &mask, vocab);
        assert_close(&format!("{name} {which}.logits"), &logits, &want, 5e-5);
        let batch = pack(&ids, &mask, Some(&labels));
        let mut losses = vec![0.0; batch.targets.len()];
        model.losses(trained, &batch, &mut losses, &mut ws);
        assert_close(
            &format!("{name} {which}.loss"),
            &[mean(&losses)],
            &fixtures.f32(&format!("{which}.loss")),
            1e-5,
        );
    }

    let mut trained = adapter;
    let mut ws = Workspace::new(&Cpu, &model.config, Some(&trained), 256, true).unwrap();
    let (mut first, mut second) = (vec![0.0; trained.len()], vec![0.0; trained.len()]);
    let rates = fixtures.f32("train.lr");
    for step in 0..3 {
        let mut batch = pack(
            &fixtures.i64_rows("train.input_ids", Some(step)),
            &fixtures.i64_rows("train.attention_mask", Some(step)),
            Some(&fixtures.i64_rows("train.labels", Some(step))),
        );
        let targets = batch.targets.len();
        batch.pass = Some(Pass {
            loss_scale: 1.0 / targets as f32,
            ..Pass::default()
        });
        let (mut grads, mut losses) = (vec![0.0; trained.len()], vec![0.0; targets]);
        model.train_pass(
            &mut (),
            &trained,
            &mut grads,
            0.0,
            &batch,
            &mut losses,
            &mut ws,
        );
        assert_close(
            &format!("{name} loss {step}"),
            &[mean(&losses)],
            &fixtures.f32("train.loss")[step..=step],
            1e-5,
        );
        if step == 0 {
            for p in trained.parameters() {
                let want = fixtures.f32(&format!("lora.grad.{}", p.name));
                assert_close(
                    &format!("{name} grad {}", p.name),
                    &Cpu.read(&grads, p.slot).unwrap(),
                    &want,
                    1e-5,
                );
            }
        }
        let mut norm = vec![0.0];
        Cpu.norm(&grads, &mut norm);
        let want = fixtures.f32("train.grad_norm")[step];
        assert!(
            (norm[0] - want).abs() < 1e-4,
            "{name}: gradient norm {} != {want}",
            norm[0]
        );
        let adamw = AdamWStep {
            lr: f64::from(rates[step]),
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            step: step as u64 + 1,
            max_norm: Some(1.0),
        };
        let values = &mut trained.values;
        Cpu.adamw(&adamw, &grads, &norm, values, &mut first, &mut second);
    }
    let (mut sum, mut n) = (0.0, 0);
    for p in trained.parameters() {
        let (got, want) = (
            Cpu.read(&trained.values, p.slot).unwrap(),
            fixtures.f32(&format!("train.final.{}", p.name)),
        );
        assert_close(&format!("{name} final {}", p.name), &got, &want, 2.5e-5);
        sum += got
            .iter()
            .zip(&want)
            .map(|(g, w)| f64::from((g - w).abs()))
            .sum::<f64>();
        n += got.len();
    }
    println!(
        "{name}: mean difference after training {:.2e}",
        sum / n as f64
    );
    assert!(sum / (n as f64) < 1e-7);
}

#[test]
fn llama() {
    family("llama");
}

#[test]
fn mistral() {
    family("mistral");
}

#[test]
fn mistral_window() {
    family("mistral-window");
}

#[test]
fn qwen2() {
    family("qwen2");
}
