//! Validation: the best weights are the result, and their age ends the training.

use crate::setup::{Bench, checkpoints, losses, settings};
use medft_dsl::plan::{EarlyStop, Train};
use medft_engine::train::session::{Ending, Event};
use std::sync::atomic::AtomicBool;

/// Settings under which the validation loss falls, then rises.
fn overfitting() -> Train {
    let mut settings = settings();
    settings.epochs = 12;
    settings.optimizer.lr = 3e-2;
    (settings.eval_every, settings.save_every, settings.keep) = (2, 2, 1000);
    settings
}

#[test]
fn the_best_weights_are_the_result_and_not_the_last() {
    let bench = Bench::new();
    let out = tempfile::tempdir().unwrap();
    let outcome = bench.run(&overfitting(), out.path());
    let val = losses(out.path()).1;
    let best = outcome.best.unwrap();
    let lowest = val
        .iter()
        .copied()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert_eq!((best.step, best.loss), lowest);
    assert!(
        best.step < outcome.steps,
        "the last weights are the best; nothing is tested"
    );

    let weights = |dir: &str| {
        let path = out.path().join(dir).join("adapter_model.safetensors");
        std::fs::read(path).unwrap()
    };
    let result = weights("adapter");
    assert!(result == weights(&format!("checkpoints/step-{:06}", best.step)));
    assert!(result != weights(&format!("checkpoints/step-{:06}", outcome.steps)));
}

#[test]
fn without_validation_rows_the_last_weights_are_the_result() {
    let mut bench = Bench::new();
    bench.val.clear();
    let out = tempfile::tempdir().unwrap();
    let outcome = bench.run(&overfitting(), out.path());
    assert_eq!(outcome.best, None);
    let last = format!("checkpoints/step-{:06}", outcome.steps);
    let weights = |dir: &str| {
        let path = out.path().join(dir).join("adapter_model.safetensors");
        std::fs::read(path).unwrap()
    };
    assert!(weights("adapter") == weights(&last));
}

/// Transformers' `EarlyStoppingCallback` over these validation losses: the step at which it stops. Its Trainer compares with the best
/// metric before this validation, and takes any improvement as the new best.
fn transformers(losses: &[(u64, f64)], patience: u64, threshold: f64) -> Option<u64> {
    let (mut best, mut count) = (None::<f64>, 0);
    for (step, loss) in losses {
        if best.is_none_or(|best| *loss < best && (loss - best).abs() > threshold) {
            count = 0;
        } else {
            count += 1;
        }
        if best.is_none_or(|best| *loss < best) {
            best = Some(*loss);
        }
        if count >= patience {
            return Some(*step);
        }
    }
    None
}

#[test]
fn early_stopping_counts_as_transformers_does() {
    let bench = Bench::new();
    let mut settings = overfitting();
    let out = tempfile::tempdir().unwrap();
    let steps = bench.run(&settings, out.path()).steps;
    let val = losses(out.path()).1;
    let mut ends = std::collections::BTreeSet::new();
    for patience in [1, 2, 3, 5] {
        for min_delta in [0.0, 0.01, 0.05, 0.3, 100.0] {
            settings.stop = Some(EarlyStop {
                patience,
                min_delta,
            });
            let out = tempfile::tempdir().unwrap();
            let outcome = bench.run(&settings, out.path());
            let want = transformers(&val, patience, min_delta).filter(|s| *s < steps);
            assert_eq!(
                outcome.steps,
                want.unwrap_or(steps),
                "{patience} {min_delta}"
            );
            let ending = match want {
                Some(_) => Ending::EarlyStop {
                    validations: patience,
                },
                None => Ending::Completed,
            };
            assert_eq!(outcome.ending, ending);
            ends.insert(outcome.steps);
        }
    }
    assert!(ends.len() > 3, "all ended alike: {ends:?}");
}

#[test]
fn the_latest_checkpoints_are_kept() {
    let bench = Bench::new();
    for (keep, want) in [
        (0, vec!["step-000008"]),
        (1, vec!["step-000008"]),
        (2, vec!["step-000006", "step-000008"]),
        (
            9,
            vec!["step-000002", "step-000004", "step-000006", "step-000008"],
        ),
    ] {
        let mut settings = settings();
        settings.keep = keep;
        let out = tempfile::tempdir().unwrap();
        let mut saved = Vec::new();
        let mut observe = |event| {
            if let Event::Saved { path } = event {
                assert!(path.join("state.json").is_file());
                saved.push(path);
            }
        };
        let stop = AtomicBool::new(false);
        bench
            .session(&settings, out.path(), &stop, &mut observe)
            .unwrap();
        assert_eq!(saved.len(), 4);
        assert_eq!(checkpoints(out.path()), want, "keep = {keep}");
    }
}
