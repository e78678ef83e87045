//! A run that is killed at random moments ends with the bits of an undisturbed one.
//!
//! `MEDFT_KILLS=10 cargo test --release --test killed_runs` is the long form; `MEDFT_KILL_SEED`, which every run prints, repeats its moments.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, UNIX_EPOCH};

fn command(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medft-engine"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "recipes/quickstart.rcp", "--out"])
        .arg(out)
        .args([
            "--set",
            "small_lora.max_steps=24",
            "--set",
            "small_lora.save_every=4",
        ])
        .args(["--set", "small_lora.eval_every=10", "--set", "all.limit=20"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The only folder in `dir`.
fn only(dir: &Path) -> PathBuf {
    let all: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

/// The adapter's bytes and every answer of a finished run.
fn results(out: &Path) -> (Vec<u8>, Vec<String>) {
    let run = only(&out.join("quickstart"));
    let adapter =
        std::fs::read(run.join("train/small_lora/adapter/adapter_model.safetensors")).unwrap();
    let mut answers = Vec::new();
    for system in ["large", "small", "small_lora"] {
        let text =
            std::fs::read_to_string(run.join(format!("predictions/all/{system}.jsonl"))).unwrap();
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            answers.push(format!("{system} {} {}", value["id"], value["answer"]));
        }
    }
    (adapter, answers)
}

#[test]
fn a_killed_run_ends_with_the_bits_of_an_undisturbed_one() {
    let number = |name| std::env::var(name).ok().map(|n| n.parse().unwrap());
    let kills: u64 = number("MEDFT_KILLS").unwrap_or(3);
    let seed: u64 = number("MEDFT_KILL_SEED")
        .unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("MEDFT_KILL_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    let began = Instant::now();
    assert!(command(&plain).status().unwrap().success());
    let whole = began.elapsed();
    let plain = results(&plain);
    let same = |out: &Path| {
        let (adapter, answers) = results(out);
        assert!(adapter == plain.0, "the adapters differ, seed {seed}");
        assert_eq!(answers, plain.1, "seed {seed}");
    };
    let (mut killed, mut folder) = (0, 0);
    let mut out = dir.path().join("killed-0");
    while killed < kills {
        let moment = whole.mul_f64(random.random_range(0.01..1.0));
        let mut child = command(&out).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        let ending = child.wait().unwrap();
        println!("folder {folder}, after {moment:.2?} of {whole:.2?}: {ending}");
        if ending.success() {
            // What earlier kills had left was done before this one: the next one needs a run to kill.
            same(&out);
            folder += 1;
            out = dir.path().join(format!("killed-{folder}"));
        } else {
            assert_eq!(ending.code(), None, "it failed by itself, seed {seed}");
            killed += 1;
        }
    }
    assert!(command(&out).status().unwrap().success());
    same(&out);
}
