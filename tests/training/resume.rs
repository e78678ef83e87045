//! A training that is stopped or killed anywhere ends with the bits of an undisturbed one.

use crate::setup::{Bench, assert_same, checkpoints, lora, settings};
use medft_dsl::plan::{Adapter, EarlyStop, Lora, Train};
use medft_engine::train::TrainError;
use medft_engine::train::session::Ending;
use std::sync::atomic::AtomicBool;

fn with_dropout() -> Train {
    let mut settings = settings();
    settings.adapter = Adapter::Lora(Lora {
        dropout: 0.2,
        ..lora()
    });
    settings
}

/// Stops at every step that has one after it, goes on, and compares all files.
fn stop_everywhere(bench: &Bench, settings: &Train) {
    let whole = tempfile::tempdir().unwrap();
    let outcome = bench.run(settings, whole.path());
    assert!(outcome.steps > 5);
    for at in 1..outcome.steps {
        let out = tempfile::tempdir().unwrap();
        let first = bench.run_until(settings, out.path(), at);
        assert_eq!((first.ending, first.steps), (Ending::Interrupted, at));
        assert!(!out.path().join("adapter").exists() && !out.path().join("model").exists());
        let second = bench.run(settings, out.path());
        assert_eq!(second.best, outcome.best);
        assert_eq!(second.ending, outcome.ending);
        assert_same(&format!("stopped at {at}"), out.path(), whole.path());
    }
}

#[test]
fn stopped_at_any_step_it_ends_with_the_same_bits() {
    stop_everywhere(&Bench::new(), &with_dropout());
}

#[test]
fn stopped_between_log_lines_it_logs_the_same_means() {
    let mut settings = with_dropout();
    (settings.log_every, settings.save_every) = (5, 100);
    stop_everywhere(&Bench::new(), &settings);
}

#[test]
fn stopped_before_an_early_end_it_ends_at_the_same_step() {
    let mut settings = with_dropout();
    settings.epochs = 30;
    settings.eval_every = 2;
    settings.optimizer.lr = 3e-2;
    settings.stop = Some(EarlyStop {
        patience: 2,
        min_delta: 0.01,
    });
    stop_everywhere(&Bench::new(), &settings);
}

#[test]
fn a_fully_trained_model_stopped_at_any_step_ends_with_the_same_bits() {
    let mut settings = settings();
    settings.adapter = Adapter::Full;
    stop_everywhere(&Bench::new(), &settings);
}

#[test]
fn stopped_many_times_it_ends_with_the_same_bits() {
    let (bench, settings) = (Bench::new(), with_dropout());
    let (whole, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    bench.run(&settings, whole.path());
    for at in [1, 2, 3, 6, 7] {
        bench.run_until(&settings, out.path(), at);
    }
    bench.run(&settings, out.path());
    assert_same("stopped five times", out.path(), whole.path());
}

/// Between `best/` and the checkpoint that knows of it, and with a metrics line that the kill cut.
#[test]
fn killed_after_the_best_weights_were_written_it_ends_with_the_same_bits() {
    let (bench, settings) = (Bench::new(), with_dropout());
    let whole = tempfile::tempdir().unwrap();
    bench.run(&settings, whole.path());
    for (kept, killed) in [(2, 3), (4, 6)] {
        let out = tempfile::tempdir().unwrap();
        let mut keeping = settings.clone();
        keeping.keep = 10;
        bench.run_until(&keeping, out.path(), killed);
        let newest = format!("checkpoints/step-{killed:06}");
        std::fs::remove_dir_all(out.path().join(newest)).unwrap();
        assert_eq!(
            checkpoints(out.path()).last().unwrap(),
            &format!("step-{kept:06}")
        );
        let metrics = out.path().join("metrics.jsonl");
        let text = std::fs::read_to_string(&metrics).unwrap();
        std::fs::write(&metrics, &text[..text.len() - 9]).unwrap();
        bench.run(&settings, out.path());
        assert_same(&format!("killed at {killed}"), out.path(), whole.path());
    }
}

#[test]
fn killed_before_its_first_checkpoint_it_starts_again() {
    let (bench, settings) = (Bench::new(), with_dropout());
    let (whole, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    bench.run(&settings, whole.path());
    bench.run_until(&settings, out.path(), 3);
    std::fs::remove_dir_all(out.path().join("checkpoints")).unwrap();
    bench.run(&settings, out.path());
    assert_same("from the start", out.path(), whole.path());
}

#[test]
fn killed_before_the_result_was_written_it_writes_the_same() {
    let (bench, settings) = (Bench::new(), with_dropout());
    let (whole, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    bench.run(&settings, whole.path());
    bench.run(&settings, out.path());
    std::fs::remove_dir_all(out.path().join("adapter")).unwrap();
    bench.run(&settings, out.path());
    assert_same("written again", out.path(), whole.path());
}

#[test]
fn what_a_kill_leaves_is_removed_and_other_folders_stay() {
    let (bench, settings) = (Bench::new(), settings());
    let out = tempfile::tempdir().unwrap();
    bench.run_until(&settings, out.path(), 2);
    let folder = out.path().join("checkpoints");
    for name in ["part-abc", "mine"] {
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("state.json"), "half").unwrap();
    }
    bench.run(&settings, out.path());
    assert_eq!(checkpoints(out.path()), ["mine", "step-000008"]);
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_an_error_that_names_it() {
    let (bench, settings) = (Bench::new(), settings());
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage, &str); 5] = [
        ("state.json", |_| b"{}".to_vec(), "not a checkpoint"),
        (
            "state.json",
            |b| replaced(b, "\"key\": \"key\"", "\"key\": \"k\""),
            "other settings",
        ),
        (
            "optimizer.safetensors",
            |b| b[..b.len() - 4].to_vec(),
            "truncated",
        ),
        (
            "optimizer.safetensors",
            |b| replaced(b, "\"second\"", "\"thirds\""),
            "`second`",
        ),
        ("adapter_model.safetensors", |_| Vec::new(), ""),
    ];
    for (file, damage, says) in damages {
        let out = tempfile::tempdir().unwrap();
        bench.run_until(&settings, out.path(), 3);
        let path = out.path().join("checkpoints/step-000003").join(file);
        std::fs::write(&path, damage(std::fs::read(&path).unwrap())).unwrap();
        let stop = AtomicBool::new(false);
        let error: TrainError = bench
            .session(&settings, out.path(), &stop, &mut |_| {})
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&path.display().to_string()) && text.contains(says),
            "{text}"
        );
    }
}

fn replaced(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|w| w == from.as_bytes())
        .unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}
