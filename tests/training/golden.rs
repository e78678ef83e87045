//! The session against Transformers + PEFT in float64: three AdamW steps of every family.

use crate::references::{Fixtures, families};
use crate::setup::{Bench, metrics, settings, tensors};
use medft_dsl::plan::{AdamW, Adapter, Linear, Lora, Precision, Schedule, ScheduleKind};
use medft_engine::backend::cpu::Cpu;
use medft_engine::model::decoder::Decoder;
use medft_engine::text::example::Example;
use medft_engine::train::session::Ending;

/// The fixture's batches as rows in their order.
fn examples(fixtures: &Fixtures) -> Vec<Example> {
    let sequences = fixtures.sequences("train.input_ids", "train.attention_mask");
    sequences
        .into_iter()
        .zip(fixtures.i64_rows("train.labels"))
        .map(|(ids, labels)| {
            let target_start = labels.iter().position(|l| *l >= 0).unwrap();
            let targets = labels[target_start..ids.len()].iter().copied();
            assert!(targets.eq(ids[target_start..].iter().map(|id| i64::from(*id))));
            Example {
                ids,
                target_start,
                cut: 0,
            }
        })
        .collect()
}

#[test]
fn three_steps_of_every_family_equal_transformers() {
    for (family, dir) in families() {
        let fixtures = Fixtures::read(&dir.join("fixtures.safetensors"));
        let bench = Bench {
            decoder: Decoder::load(Cpu, &dir, Precision::F32, true).unwrap(),
            train: examples(&fixtures),
            val: Vec::new(),
        };
        let mut settings = settings();
        settings.adapter = Adapter::Lora(Lora {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Linear::ALL.to_vec(),
            init: Some(dir.join("adapter")),
        });
        settings.optimizer = AdamW {
            lr: 1e-3,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        };
        settings.schedule = Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 1,
        };
        (settings.batch, settings.shuffle) = (2, false);
        (settings.epochs, settings.max_steps) = (4, Some(10));

        let out = tempfile::tempdir().unwrap();
        let outcome = bench.run_until(&settings, out.path(), 3);
        assert_eq!(outcome.ending, Ending::Interrupted);
        let lines = metrics(out.path());
        for (step, line) in lines.iter().enumerate() {
            for (name, got, bound) in [
                ("lr", Some(line.lr), 1e-10),
                ("loss", line.loss, 1e-5),
                ("grad_norm", line.grad_norm, 1e-4),
            ] {
                let want = f64::from(fixtures.f32(&format!("train.{name}"))[step]);
                let off = (got.unwrap() - want).abs();
                assert!(
                    off <= bound,
                    "{family} step {step} {name}: {got:?} != {want}"
                );
            }
        }
        assert_eq!(lines.len(), 3);

        let (mut sum, mut count) = (0.0, 0.0);
        let checkpoint = out.path().join("checkpoints/step-000003");
        for (name, got) in tensors(&checkpoint.join("adapter_model.safetensors")) {
            let want = fixtures.f32(&format!("train.final.{name}"));
            assert_eq!(got.len(), want.len(), "{family} {name}");
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let d = (g - w).abs();
                // Adam magnifies gradients near zero; float32 torch is off by 5e-6 (the golden README).
                assert!(d <= 2.5e-5, "{family} {name}[{i}]: {g} != {w}");
                sum += f64::from(d);
                count += 1.0;
            }
        }
        let mean = sum / count;
        println!("{family}: mean difference of the weights {mean:.1e}");
        assert!(mean < 1e-7, "{family}: mean difference {mean:e}");
    }
}
