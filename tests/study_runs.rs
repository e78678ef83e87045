//! Whole runs of the quickstart, cut short: what is reused, what is said, which exit code.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use medft_dsl::{SourceFile, check};
use medft_engine::backend::cpu::Cpu;
use medft_engine::study::StudyError;
use medft_engine::study::observer::{Observer, StudyEvent};
use medft_engine::study::run::Study;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// `medft-engine ARGS` in the repository's folder: exit code, stdout, stderr.
fn engine(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medft-engine"));
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Four training steps and five test rows.
const SHORT: [&str; 4] = ["--set", "small_lora.max_steps=4", "--set", "all.limit=5"];

fn run(out: &Path, more: &[&str]) -> (i32, String, String) {
    let mut args = vec![
        "run",
        "recipes/quickstart.rcp",
        "--out",
        out.to_str().unwrap(),
    ];
    args.extend(SHORT);
    args.extend(more);
    engine(&args)
}

#[test]
fn a_second_run_does_nothing_and_a_changed_decoding_does_not_train_again() {
    let out = tempfile::tempdir().unwrap();
    let (code, first, log) = run(out.path(), &[]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("train    small_lora  to do"), "{log}");
    assert!(
        first.contains("majority code") && first.contains("title look-up"),
        "{first}"
    );

    let (code, second, log) = run(out.path(), &[]);
    assert_eq!(code, 0);
    assert!(log.contains("nothing to do"), "{log}");
    assert_eq!(first, second);

    let (code, _, log) = run(out.path(), &["--set", "all.greedy.max_new=3"]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("train    small_lora  done"), "{log}");
    assert!(log.contains("predict  large       to do"), "{log}");

    let (code, _, log) = run(out.path(), &["--set", "small_lora.lr=1e-3"]);
    assert_eq!(code, 2, "an unknown field: {log}");
    let (code, _, log) = run(out.path(), &["--set", "small_lora.adamw.lr=1e-3"]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("train    small_lora  to do"), "{log}");
    assert!(
        log.contains("predict  large       done"),
        "only the tuned model changes: {log}"
    );
}

#[test]
fn resume_goes_on_with_a_run_and_never_begins_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("runs");
    let (code, _, log) = run(&out, &["--resume"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("nothing to resume"), "{log}");
    assert!(!out.exists(), "nothing is made");

    let (code, first, log) = run(&out, &[]);
    assert_eq!(code, 0, "{log}");
    // As a kill before the report leaves it.
    let runs = std::fs::read_dir(out.join("quickstart")).unwrap();
    let begun = runs.map(|e| e.unwrap().path()).next().unwrap();
    std::fs::remove_file(begun.join("run.key")).unwrap();
    let (code, second, log) = run(&out, &["--resume"]);
    assert_eq!((code, second), (0, first), "{log}");
    assert!(log.contains("train    small_lora  done"), "{log}");

    let (code, _, log) = run(&out, &["--resume", "--set", "all.greedy.max_new=3"]);
    assert_eq!(code, 2, "{log}");
    assert!(log.contains(begun.to_str().unwrap()), "{log}");
}

#[test]
fn a_run_leaves_what_the_architecture_promises() {
    let out = tempfile::tempdir().unwrap();
    let (code, stdout, log) = run(out.path(), &["--json"]);
    assert_eq!(code, 0, "{log}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["evaluations"][0]["rows"], 5);
    let dir = std::fs::read_dir(out.path().join("quickstart"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for name in [
        "recipe.rcp",
        "plan.json",
        "environment.json",
        "report.html",
        "report.json",
        "plots",
        "predictions/all/small_lora.jsonl",
        "predictions/all.csv",
        "train/small_lora/metrics.jsonl",
        "train/small_lora/adapter/adapter_config.json",
        "train/small_lora/adapter/adapter_model.safetensors",
    ] {
        assert!(dir.join(name).exists(), "{name}");
    }
    let (code, again, _) = engine(&["report", dir.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&again).unwrap()[0],
        report
    );
}

#[test]
fn wrong_input_is_a_sentence_and_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("runs");
    let recipe = dir.path().join("r.rcp");
    let base = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/quickstart.rcp"),
    )
    .unwrap();
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart");
    let base = base.replace("../data/quickstart", quickstart.to_str().unwrap());
    let cases = [
        ("notes.csv\")", "no_notes.csv\")", "no_notes.csv"),
        ("column(\"note\")", "column(\"nope\")", "nope"),
        ("quickstart/small\")", "quickstart/tiny\")", "tiny"),
        ("epochs = 4", "epochs = -1", "epochs"),
        ("max_tokens = 512", "max_tokens = 24", "max_tokens"),
    ];
    for (from, to, named) in cases {
        let text = base.replacen(from, to, 1);
        assert_ne!(text, base, "{from}");
        std::fs::write(&recipe, text).unwrap();
        let (code, stdout, log) = engine(&[
            "run",
            recipe.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ]);
        assert_eq!(code, 2, "{to}: {log}");
        assert!(log.contains(named), "{to}: {log}");
        assert!(
            stdout.is_empty() && !log.contains("panicked"),
            "{to}: {log}"
        );
    }
    let (code, _, log) = engine(&["run", "recipes/no_such.rcp"]);
    assert_eq!(code, 2);
    assert!(log.contains("no_such.rcp"), "{log}");
    if cfg!(not(feature = "cuda")) {
        let (code, _, log) = engine(&["run", "recipes/quickstart.rcp", "--device", "cuda"]);
        assert_eq!(code, 2);
        assert!(log.contains("no CUDA kernels"), "{log}");
    }
}

struct Deaf;

impl Observer for Deaf {
    fn event(&mut self, _: StudyEvent) {}
}

#[test]
fn a_run_that_has_to_fit_and_does_not_is_refused_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    // All rows are answered together, with room for 32,768 tokens each: hundreds of GiB of keys and values.
    let row = |i| {
        format!(
            "seen on day {i} for complaint {} of {},E11.9\n",
            i * 7919,
            i * 31
        )
    };
    let rows: String = (0..20_000).map(row).collect();
    std::fs::write(dir.path().join("notes.csv"), format!("note,icd10\n{rows}")).unwrap();
    let text = format!(
        r#"recipe "large" {{ seed = 1 }}
data notes {{ source = csv("{}/notes.csv") text = column("note") code = column("icd10") split = stratified(train = 1%, val = 1%, test = 98%) }}
task coding {{ data = notes max_tokens = 256 }}
model small {{ weights = dir("{}/data/quickstart/small") precision = f32 }}
evaluate all {{ models = [small] task = coding batch = 65536 decode = greedy(max_new = 32768) }}
"#,
        dir.path().display(),
        env!("CARGO_MANIFEST_DIR"),
    );
    let file = SourceFile::new("r.rcp", &text);
    let checked = check(&file, &[], &|path| std::fs::read_to_string(path));
    let plan = checked
        .unwrap_or_else(|d| panic!("{}", d.render(false)))
        .plan;
    let out = dir.path().join("runs");
    let study = Study {
        plan: &plan,
        text: &text,
        out: &out,
        must_resume: false,
        must_fit: true,
    };
    let error = study
        .run(Cpu, &AtomicBool::new(false), &mut Deaf)
        .err()
        .unwrap();
    let said = error.to_string();
    assert!(
        error.is_input() && matches!(error, StudyError::TooLarge(_)),
        "{said}"
    );
    assert!(said.starts_with("predicting with `small` needs "), "{said}");
    assert!(said.contains(" are free; set `batch = "), "{said}");
    assert!(!out.join("large").exists(), "nothing is made but the store");
}

#[test]
fn an_exploration_is_a_page_with_the_learnt_tokens_marked() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("data.html");
    let (code, said, log) = engine(&[
        "explore",
        "recipes/quickstart.rcp",
        "--html",
        page.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{log}");
    assert!(said.contains("exploration: "), "{said}");
    let html = std::fs::read_to_string(page).unwrap();
    for part in [
        "<mark>",
        "Labels over the tree",
        "tokens of <code>small</code>",
        "label ceiling",
    ] {
        assert!(html.contains(part), "{part} is missing");
    }
    assert!(!html.contains("src=\"http") && !html.contains("NaN"));
}
