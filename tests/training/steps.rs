//! The steps of a training: accumulation, order, their number, what is logged, what is learnt.

use crate::setup::{Bench, difference, lora, losses, metrics, rows, settings, tensors};
use medft_dsl::plan::{Adapter, Linear, Lora, Precision, ScheduleKind};
use medft_engine::train::TrainError;
use medft_engine::train::metrics::Metric;
use medft_engine::train::session::{Ending, Event};
use std::sync::atomic::AtomicBool;

const WEIGHTS: &str = "adapter/adapter_model.safetensors";

#[test]
fn accumulated_and_unpacked_steps_equal_whole_ones() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.adapter = Adapter::Lora(Lora {
        dropout: 0.1,
        ..lora()
    });
    let whole = tempfile::tempdir().unwrap();
    bench.run(&settings, whole.path());
    let (want, want_val) = losses(whole.path());
    assert_eq!(want.len(), 8);
    // One row a pass is the unpacked training; None packs as many as fit.
    for micro_batch in [1, 2, 3] {
        settings.micro_batch = Some(micro_batch);
        let out = tempfile::tempdir().unwrap();
        bench.run(&settings, out.path());
        let (got, got_val) = losses(out.path());
        let val = got_val.iter().zip(&want_val).map(|(g, w)| (g.1, w.1));
        for (got, want) in got.into_iter().zip(want.iter().copied()).chain(val) {
            let off = (got - want).abs() / want;
            assert!(off < 1e-6, "micro_batch {micro_batch}: {got} != {want}");
        }
        let (largest, mean) = difference(&whole.path().join(WEIGHTS), &out.path().join(WEIGHTS));
        println!(
            "micro_batch {micro_batch}: weights differ by {largest:.1e}, on average {mean:.1e}"
        );
        assert!(largest < 5e-6 && mean < 5e-8, "micro_batch {micro_batch}");
    }
}

#[test]
fn unshuffled_rows_are_seen_in_their_order_and_the_last_batch_is_smaller() {
    let bench = Bench::new();
    let mut settings = settings();
    (settings.shuffle, settings.max_steps) = (false, Some(6));
    let out = tempfile::tempdir().unwrap();
    bench.run(&settings, out.path());
    let seen: Vec<u64> = metrics(out.path())
        .iter()
        .filter_map(|m| m.loss.and(Some(m.tokens)))
        .collect();
    let batches = [0..3, 3..6, 6..9, 9..11, 0..3, 3..6];
    let mut want = Vec::new();
    for batch in batches {
        let tokens: usize = bench.train[batch].iter().map(|e| e.ids.len()).sum();
        want.push(want.last().unwrap_or(&0) + tokens as u64);
    }
    assert_eq!(seen, want);
}

#[test]
fn a_step_of_one_row_is_the_mean_over_its_own_targets() {
    // A batch of a long and a short answer weighs tokens, not rows.
    let mut bench = Bench::new();
    bench.train = rows(2, 9);
    bench.train[0].target_start = 1;
    let mut settings = settings();
    (settings.batch, settings.max_steps, settings.shuffle) = (2, Some(1), false);
    let loss = |bench: &Bench, batch: u64| {
        let out = tempfile::tempdir().unwrap();
        let mut settings = settings.clone();
        settings.batch = batch;
        bench.run(&settings, out.path());
        losses(out.path()).0[0]
    };
    let together = loss(&bench, 2);
    let counts: Vec<f64> = bench
        .train
        .iter()
        .map(|e| (e.ids.len() - e.target_start) as f64)
        .collect();
    let first = loss(&bench, 1);
    bench.train.remove(0);
    let second = loss(&bench, 1);
    let want = (first * counts[0] + second * counts[1]) / (counts[0] + counts[1]);
    assert!((together - want).abs() < 1e-6, "{together} != {want}");
}

#[test]
fn max_steps_ends_the_training_and_its_schedule() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.schedule.kind = ScheduleKind::Linear;
    (settings.epochs, settings.max_steps) = (100, Some(6));
    let out = tempfile::tempdir().unwrap();
    let outcome = bench.run(&settings, out.path());
    assert_eq!((outcome.steps, outcome.ending), (6, Ending::Completed));
    let rates: Vec<f64> = metrics(out.path())
        .iter()
        .filter_map(|m| m.loss.and(Some(m.lr)))
        .collect();
    let want = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25].map(|share| share * 5e-3);
    assert!(
        rates.iter().zip(want).all(|(r, w)| (r - w).abs() < 1e-15),
        "{rates:?}"
    );
}

#[test]
fn metrics_hold_logged_steps_validations_and_the_last_step() {
    let bench = Bench::new();
    let mut settings = settings();
    (settings.log_every, settings.eval_every) = (5, 3);
    let out = tempfile::tempdir().unwrap();
    let mut events: Vec<Metric> = Vec::new();
    let mut observe = |event| {
        if let Event::Step { metric, .. } = event {
            events.push(metric);
        }
    };
    let stop = AtomicBool::new(false);
    bench
        .session(&settings, out.path(), &stop, &mut observe)
        .unwrap();
    let lines = metrics(out.path());
    let kind = |m: &Metric| (m.step, m.loss.is_some(), m.val_loss.is_some());
    let want = [
        (3, false, true),
        (5, true, false),
        (6, false, true),
        (8, true, false),
        (8, false, true),
    ];
    assert_eq!(lines.iter().map(kind).collect::<Vec<_>>(), want);
    // The observer hears the mean since the last line, at every step.
    assert_eq!(events.len(), 8);
    assert_eq!(lines[1].loss, events[4].loss);
    assert_eq!(lines[3].loss, events[7].loss);
    assert_eq!(lines[3].epoch, 2.0);
    assert!(
        lines
            .iter()
            .all(|m| m.grad_norm.is_some() == m.loss.is_some())
    );
    let tokens: usize = bench.train.iter().map(|e| e.ids.len()).sum();
    assert_eq!(lines[3].tokens, 2 * tokens as u64);

    // The mean of five steps, from a run that logs them all.
    settings.log_every = 1;
    let every = tempfile::tempdir().unwrap();
    bench.run(&settings, every.path());
    let mean = losses(every.path()).0[..5].iter().sum::<f64>() / 5.0;
    assert!((lines[1].loss.unwrap() - mean).abs() < 1e-12);
}

#[test]
fn the_loss_falls_with_every_kind_of_adapter_and_base() {
    let some = vec![Linear::VProj, Linear::DownProj];
    for (precision, targets) in [
        (Precision::F32, Linear::ALL.to_vec()),
        (Precision::F32, some.clone()),
        (Precision::Bf16, some),
        (Precision::Nf4, Linear::ALL.to_vec()),
    ] {
        let what = format!("{precision:?} {targets:?}");
        let bench = Bench::with(precision);
        let mut settings = settings();
        settings.adapter = Adapter::Lora(Lora { targets, ..lora() });
        settings.epochs = 40;
        let out = tempfile::tempdir().unwrap();
        bench.run(&settings, out.path());
        let losses = losses(out.path()).0;
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        println!("{what}: {first:.3} to {last:.3}");
        assert!(last < 0.5 * first, "{what}: {first} to {last}");
    }
}

#[test]
fn only_the_targets_are_trained_and_written() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.adapter = Adapter::Lora(Lora {
        targets: vec![Linear::QProj, Linear::GateProj],
        ..lora()
    });
    let out = tempfile::tempdir().unwrap();
    bench.run(&settings, out.path());
    let names: Vec<String> = tensors(&out.path().join(WEIGHTS)).into_keys().collect();
    assert_eq!(names.len(), 2 * 2 * 2);
    assert!(
        names
            .iter()
            .all(|n| n.contains("q_proj") || n.contains("gate_proj"))
    );
}

#[test]
fn a_diverging_training_is_an_error_and_keeps_its_checkpoints() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.optimizer.lr = 1e30;
    (settings.schedule.warmup, settings.save_every) = (2, 1);
    let out = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let error = bench
        .session(&settings, out.path(), &stop, &mut |_| {})
        .unwrap_err();
    assert!(
        matches!(error, TrainError::Diverged { step: 3, .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("`tiny_lora`") && text.contains("lower `lr`"),
        "{text}"
    );
    assert!(out.path().join("checkpoints/step-000002").is_dir());
    assert!(!out.path().join("adapter").exists());
}

#[test]
fn a_training_without_rows_is_an_error() {
    let mut bench = Bench::new();
    bench.train.clear();
    let out = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let error = bench.session(&settings(), out.path(), &stop, &mut |_| {});
    assert!(matches!(error, Err(TrainError::NoRows { .. })));
}
