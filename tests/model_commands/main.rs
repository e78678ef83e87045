//! `score`, `generate`, `tokenize` and `doctor` as a user or a program calls them: what they print.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

mod devices;
mod refusals;

use assert_cmd::Command;
use refusals::refused;
use serde_json::{Value, json};
use std::path::Path;
use support::{TINY, shared, tiny_model, weights};

fn engine(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medft-engine"));
    command.args(args).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Exit code, stdout and stderr, without the line in which a build with kernels says that there is no GPU for them.
fn run(args: &[&str]) -> (i32, String, String) {
    let (code, stdout, stderr) = run_and_listen(args);
    let quiet = |line: &&str| !line.ends_with("; computing on the CPU\n");
    (
        code,
        stdout,
        stderr.split_inclusive('\n').filter(quiet).collect(),
    )
}

/// Exit code, stdout and stderr.
fn run_and_listen(args: &[&str]) -> (i32, String, String) {
    let output = engine(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// The JSON of a command that succeeds and prints nothing else.
fn json_of(args: &[&str]) -> Value {
    let (code, stdout, stderr) = run(args);
    assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
    serde_json::from_str(&stdout).unwrap()
}

/// A file's path.
fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The tiny model and a file of ids for it.
fn tiny(ids: &str) -> (tempfile::TempDir, String, String) {
    let dir = tiny_model(4);
    let (model, ids) = (text(dir.path()), file(&dir, "ids.json", ids));
    (dir, model, ids)
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap();
    values.iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn score_prints_an_object_a_sequence() {
    let (_dir, model, ids) = tiny("[[1, 2, 3, 4], [5], [6, 7]]");
    for device in ["auto", "cpu"] {
        for precision in ["f32", "bf16", "nf4"] {
            let scores = json_of(&[
                "score",
                "--model",
                &model,
                "--ids",
                &ids,
                "--json",
                "--precision",
                precision,
                "--device",
                device,
            ]);
            let scores = scores.as_array().unwrap();
            assert_eq!(scores.len(), 3);
            let keys: Vec<&String> = scores[0].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["ids", "logprobs", "nll", "perplexity"]);
            assert_eq!(scores[0]["ids"], json!([1, 2, 3, 4]));
            let logprobs = numbers(&scores[0]["logprobs"]);
            assert_eq!(logprobs.len(), 3);
            let nll = -logprobs.iter().sum::<f64>() / 3.0;
            assert!((scores[0]["nll"].as_f64().unwrap() - nll).abs() < 1e-5);
            assert!((scores[0]["perplexity"].as_f64().unwrap() - nll.exp()).abs() < 1e-3);
            assert_eq!(scores[1]["logprobs"], json!([]));
        }
    }
}

#[test]
fn score_applies_the_adapter() {
    let Some(golden) = shared("golden/llama") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ids = file(&dir, "ids.json", "[[5, 17, 33, 2, 9]]");
    let (model, adapter) = (text(&golden), text(&golden.join("adapter")));
    let base = json_of(&["score", "--model", &model, "--ids", &ids, "--json"]);
    let tuned = json_of(&[
        "score",
        "--model",
        &model,
        "--ids",
        &ids,
        "--json",
        "--adapter",
        &adapter,
    ]);
    assert_ne!(base[0]["logprobs"], tuned[0]["logprobs"]);
    assert_eq!(base[0]["ids"], tuned[0]["ids"]);
}

#[test]
fn generate_prints_an_object_or_an_array() {
    let (dir, model, many) = tiny("[[1, 2, 3], [4, 5, 6, 7, 8]]");
    let one = file(&dir, "one.json", "[[4, 5, 6, 7, 8]]");
    let flat = file(&dir, "flat.json", "[4, 5, 6, 7, 8]");
    let answer = |ids: &str, more: &[&str]| {
        let first = [
            "generate",
            "--model",
            &model,
            "--ids",
            ids,
            "--json",
            "--max-new-tokens",
            "6",
        ];
        json_of(&[first.as_slice(), more].concat())
    };
    let single = answer(&one, &["--greedy"]);
    let keys: Vec<&String> = single.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text", "ids", "finish"]);
    assert_eq!(single["text"], Value::Null);
    let ids = single["ids"].as_array().unwrap();
    let stopped = ids.last() == Some(&json!(2));
    assert_eq!(single["finish"], if stopped { "stop" } else { "length" });
    assert!(stopped || ids.len() == 6);
    assert_eq!(answer(&flat, &["--greedy"]), single);
    let both = answer(&many, &["--greedy"]);
    assert_eq!(both.as_array().unwrap().len(), 2);
    assert_eq!(both[1], single);

    let sampled = |seed| {
        answer(
            &one,
            &[
                "--temperature",
                "1.5",
                "--top-k",
                "0",
                "--top-p",
                "1",
                "--seed",
                seed,
            ],
        )
    };
    assert_eq!(sampled("1"), sampled("1"));
    let draws: Vec<Value> = ["1", "2", "3", "4"].map(sampled).to_vec();
    assert!(draws.iter().any(|d| *d != draws[0]));
}

#[test]
fn generate_stops_at_any_end_token_of_generation_config() {
    let (dir, model, ids) = tiny("[[1, 2, 3]]");
    let args = [
        "generate",
        "--model",
        &model,
        "--ids",
        &ids,
        "--json",
        "--greedy",
        "--max-new-tokens",
        "5",
    ];
    file(&dir, "generation_config.json", r#"{"eos_token_id": []}"#);
    let free = json_of(&args);
    assert_eq!(
        (free["ids"].as_array().unwrap().len(), &free["finish"]),
        (5, &json!("length"))
    );
    let second = free["ids"][1].as_u64().unwrap();
    let never = (0..37).find(|id| !free["ids"].as_array().unwrap().contains(&json!(id)));
    let ends = json!({"eos_token_id": [never, second]}).to_string();
    file(&dir, "generation_config.json", &ends);
    let stopped = json_of(&args);
    assert_eq!(stopped["finish"], "stop");
    assert_eq!(
        stopped["ids"].as_array().unwrap().last(),
        Some(&json!(second))
    );
}

/// A model with Qwen2.5's tokenizer: random weights of two small layers, the vocabulary padded as released.
fn qwen() -> Option<tempfile::TempDir> {
    let from = shared("tokenizers/qwen2.5")?;
    let config = TINY
        .replace("\"vocab_size\": 37", "\"vocab_size\": 151936")
        .replace(
            "\"tie_word_embeddings\": false",
            "\"tie_word_embeddings\": true",
        );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights(&config, 4)).unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    Some(dir)
}

#[test]
fn text_goes_through_the_models_tokenizer_and_template() {
    let Some(dir) = qwen() else { return };
    let model = text(dir.path());
    let note = file(&dir, "note.txt", "A cough.");
    let scores = json_of(&["score", "--model", &model, "--text", &note, "--json"]);
    let ids = scores[0]["ids"].as_array().unwrap().len();
    assert_eq!(scores[0]["logprobs"].as_array().unwrap().len() + 1, ids);
    let (code, lines, _) = run(&["score", "--model", &model, "--text", &note]);
    assert_eq!((code, lines.lines().count()), (0, ids));

    let chat = file(
        &dir,
        "chat.json",
        r#"[{"role": "user", "content": "A cough."}]"#,
    );
    for input in [["--prompt", "A cough."], ["--chat", &chat]] {
        let args = [
            "generate",
            "--model",
            &model,
            "--greedy",
            "--max-new-tokens",
            "3",
            "--json",
        ];
        let answer = json_of(&[args.as_slice(), &input].concat());
        assert!(answer["text"].is_string());
        assert!(answer["ids"].as_array().unwrap().len() <= 3);
    }
    refused(
        &[
            "score",
            "--model",
            &model,
            "--text",
            &file(&dir, "empty.txt", ""),
        ],
        &["empty.txt", "is empty"],
    );
    refused(
        &["generate", "--model", &model, "--prompt", ""],
        &["--prompt", "is empty"],
    );
}

#[test]
fn tokenize_prints_the_template_and_its_ids() {
    let Some(root) = shared("tokenizers") else {
        return;
    };
    let bytes = std::fs::read(root.join("chat_examples.json")).unwrap();
    let examples: Value = serde_json::from_slice(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (tokenizer, expected) in examples["templates"].as_object().unwrap() {
        let model = text(&root.join(tokenizer));
        if !Path::new(&model).is_dir() {
            continue;
        }
        for (name, messages) in examples["conversations"].as_object().unwrap() {
            let case = &expected["cases"][format!("{name}.generate")];
            if !case["text"].is_string() {
                continue;
            }
            let chat = file(&dir, "chat.json", &messages.to_string());
            let got = json_of(&["tokenize", "--model", &model, "--chat", &chat, "--json"]);
            assert_eq!(got["text"], case["text"], "{tokenizer} {name}");
            assert_eq!(got["ids"], case["ids"], "{tokenizer} {name}");
            assert_eq!(got.as_object().unwrap().len(), 2);
        }
    }
}

#[test]
fn stdin_is_read_for_a_dash() {
    let (_dir, model, _) = tiny("[]");
    let mut command = engine(&["score", "--model", &model, "--ids", "-", "--json"]);
    let output = command.write_stdin("[[1, 2]]").output().unwrap();
    assert!(output.status.success());
    let scores: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(scores[0]["ids"], json!([1, 2]));
}

#[test]
fn doctor_prints_an_object() {
    let found = json_of(&["doctor", "--json"]);
    let graphics = &found["graphics"];
    assert!(graphics["gpus"].is_array(), "{found}");
    assert_eq!(graphics["kernels"].is_object(), cfg!(feature = "cuda"));
}
