//! What bad input gets: code 2, one sentence that names the file, nothing on stdout.

use crate::support::{TINY, shared};
use crate::{file, run, text, tiny};
use std::path::PathBuf;

/// A command that ends with 2, one line on stderr that holds all of `says`, and nothing on stdout.
pub fn refused(args: &[&str], says: &[&str]) {
    let (code, stdout, stderr) = run(args);
    assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in says {
        assert!(stderr.contains(part), "{args:?}: no `{part}` in {stderr}");
    }
    assert!(!stderr.contains("os error 2): "), "said twice: {stderr}");
}

#[test]
fn a_directory_that_is_no_model_is_named() {
    let (dir, model, ids) = tiny("[[1, 2]]");
    let score = |model: &str, says: &[&str]| {
        refused(&["score", "--model", model, "--ids", &ids, "--json"], says);
        refused(
            &["generate", "--model", model, "--ids", &ids, "--json"],
            says,
        );
    };
    score(
        "/no/such/model",
        &["/no/such/model/config.json", "No such file"],
    );
    let config = format!("{model}/config.json");
    std::fs::write(&config, "{ \"model_type\": ").unwrap();
    score(&model, &[&config, "not valid JSON", "line 1"]);
    std::fs::write(&config, TINY.replace("37", "38")).unwrap();
    score(&model, &["model.safetensors", "embed_tokens", "37", "38"]);
    std::fs::write(&config, TINY).unwrap();
    let weights = format!("{model}/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    score(&model, &[&weights, "truncated"]);
    std::fs::remove_file(&weights).unwrap();
    score(&model, &[&text(dir.path()), "model.safetensors"]);
    std::fs::remove_file(&config).unwrap();
    score(&model, &[&config, "needs a config.json"]);
}

#[test]
fn ids_that_cannot_be_read_are_named() {
    let (dir, model, good) = tiny("[[1, 2]]");
    for (name, content, says) in [
        (
            "vocab.json",
            "[[1], [2, 37]]",
            "sequence 1 holds token id 37",
        ),
        ("empty.json", "[[1, 2], []]", "sequence 1 is empty"),
        ("none.json", "[]", "no sequences"),
        ("broken.json", "[[1, 2], [3", "line 1 column 11"),
        ("words.json", "[[\"one\"]]", "line 1"),
        ("negative.json", "[[-1]]", "array of token-id arrays"),
        ("object.json", "{\"ids\": [1]}", "array of token-id arrays"),
        ("large.json", "[[4294967296]]", "array of token-id arrays"),
    ] {
        let ids = file(&dir, name, content);
        for command in ["score", "generate"] {
            refused(
                &[command, "--model", &model, "--ids", &ids, "--json"],
                &[&ids, says],
            );
        }
    }
    let missing = format!("{good}.not");
    refused(
        &["score", "--model", &model, "--ids", &missing],
        &[&missing, "No such file"],
    );
}

#[test]
fn conversations_that_cannot_be_read_are_named() {
    let Some(root) = shared("tokenizers/qwen2.5") else {
        return;
    };
    let (model, dir) = (text(&root), tempfile::tempdir().unwrap());
    for (name, content, says) in [
        (
            "role.json",
            r#"[{"role": "doctor", "content": "x"}]"#,
            "`doctor`",
        ),
        ("content.json", r#"[{"role": "user"}]"#, "`content`"),
        (
            "object.json",
            r#"{"role": "user", "content": "x"}"#,
            "list of messages",
        ),
        ("broken.json", r#"[{"role": "user""#, "line 1"),
    ] {
        let chat = file(&dir, name, content);
        refused(
            &["tokenize", "--model", &model, "--chat", &chat, "--json"],
            &[&chat, says],
        );
    }
    let chat = file(&dir, "chat.json", r#"[{"role": "user", "content": "x"}]"#);
    refused(
        &["tokenize", "--model", "/no/such", "--chat", &chat],
        &["/no/such"],
    );
    let missing = format!("{chat}.not");
    refused(
        &["tokenize", "--model", &model, "--chat", &missing],
        &[&missing, "No such file"],
    );
    // A template that raises: Mistral's wants roles in turns.
    let mistral: PathBuf = root.with_file_name("mistral-v0.3");
    let turns = r#"[{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]"#;
    let chat = file(&dir, "turns.json", turns);
    refused(
        &["tokenize", "--model", &text(&mistral), "--chat", &chat],
        &["mistral-v0.3", "alternate"],
    );
}

#[test]
fn text_without_a_tokenizer_points_to_ids() {
    let (dir, model, _) = tiny("[[1]]");
    let note = file(&dir, "note.txt", "A cough.");
    let chat = file(&dir, "chat.json", r#"[{"role": "user", "content": "x"}]"#);
    refused(
        &["score", "--model", &model, "--text", &note],
        &[&model, "tokenizer.json", "--ids"],
    );
    refused(
        &["generate", "--model", &model, "--prompt", "A cough."],
        &[&model, "--ids"],
    );
    refused(
        &["generate", "--model", &model, "--chat", &chat],
        &[&model, "--ids"],
    );
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let (Some(llama), Some(qwen)) = (shared("golden/llama"), shared("golden/qwen2")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ids = file(&dir, "ids.json", "[[1, 2]]");
    let (model, adapter) = (text(&llama), text(&qwen.join("adapter")));
    let args = ["score", "--model", &model, "--ids", &ids, "--adapter"];
    let with = |adapter: &str, says: &[&str]| {
        refused(&[args.as_slice(), &[adapter]].concat(), says);
    };
    with(
        &adapter,
        &[
            &adapter,
            "adapter_model.safetensors",
            "lora_",
            "trained for this model",
        ],
    );
    with(&model, &[&model, "adapter_config.json"]);
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let (dir, model, ids) = tiny("[[1, 2]]");
    let note = file(&dir, "note.txt", "A cough.");
    let cuda = [
        "score", "--model", &model, "--ids", &ids, "--device", "cuda",
    ];
    if cfg!(not(feature = "cuda")) {
        refused(&cuda, &["--device cuda", "--features cuda", "--device cpu"]);
    }
    let generate = ["generate", "--model", &model, "--ids", &ids];
    for args in [
        vec!["score", "--model", &model, "--ids", &ids, "--text", &note],
        vec!["score", "--model", &model],
        vec!["score", "--ids", &ids],
        [generate.as_slice(), &["--prompt", "x"]].concat(),
        [generate.as_slice(), &["--greedy", "--temperature", "0.5"]].concat(),
        [generate.as_slice(), &["--temperature", "0"]].concat(),
        [generate.as_slice(), &["--temperature", "nan"]].concat(),
        [generate.as_slice(), &["--top-p", "1.5"]].concat(),
        [generate.as_slice(), &["--top-k", "-1"]].concat(),
        [generate.as_slice(), &["--max-new-tokens", "0"]].concat(),
        [generate.as_slice(), &["--max-new-tokens", "99999999999"]].concat(),
        [generate.as_slice(), &["--precision", "int8"]].concat(),
    ] {
        let (code, stdout, stderr) = run(&args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
}
