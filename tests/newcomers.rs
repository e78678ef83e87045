//! What someone sees who uses the program for the first time: files as spreadsheets write them, what `check` says, and one sentence
//! with a way out for what is wrong.
#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use std::path::{Path, PathBuf};

struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty folder with a recipe that reads `notes.csv` there.
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/small");
        folder.write(
            "r.rcp",
            format!(
                r#"recipe "first" {{ seed = 1 }}
data notes {{ source = csv("notes.csv") text = column("note") code = column("icd10") }}
task coding {{ data = notes max_tokens = 256 }}
model small {{ weights = dir("{}") precision = f32 }}
train tuned {{ model = small adapter = lora(rank = 2) epochs = 2 batch = 4 eval_every = 5 }}
evaluate all {{ models = [tuned] decode = greedy(max_new = 8) }}
"#,
                small.display()
            ),
        );
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// `medft-engine ARGS` in the folder, offline: exit code, stdout, stderr.
    fn engine(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_medft-engine"));
        let command = command.current_dir(self.0.path()).args(args);
        let cache = self.path("cache");
        let offline = command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", cache);
        let output = offline.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        // Without the line in which a build with kernels says that there is no GPU for them.
        let quiet = |line: &&str| !line.ends_with("; computing on the CPU\n");
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr)
                .split_inclusive('\n')
                .filter(quiet)
                .collect(),
        )
    }

    /// `check` refuses with 2 and one line that says all of this, and `run` the same, before it has made anything but its store.
    #[track_caller]
    fn refused(&self, says: &[&str]) {
        for args in [&["check", "r.rcp"][..], &["run", "r.rcp", "--out", "out"]] {
            let (code, stdout, log) = self.engine(args);
            assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {log}");
            assert_eq!(log.lines().count(), 1, "{args:?}: {log}");
            for part in says {
                assert!(log.contains(part), "{args:?}: no `{part}` in {log}");
            }
        }
        assert!(!self.path("out/first").exists());
    }
}

/// Twenty notes, each with another code.
fn notes(separator: char) -> String {
    let codes = ["I10", "E11.65", "J45.20", "N39.0", "M54.50"];
    let row = |i: usize| {
        let word = ["cough", "fever", "pain", "thirst"][i % 4];
        format!(
            "\"Note {i}: {word} for {i} days, \"\"bad\"\"\"{separator}{}\n",
            codes[i % 5]
        )
    };
    format!("note{separator}icd10\n") + &(0..20).map(row).collect::<String>()
}

#[test]
fn csv_files_of_windows_and_spreadsheets_are_read() {
    let rows = |text: String| {
        let folder = Folder::new();
        folder.write("notes.csv", text);
        let (code, stdout, log) = folder.engine(&["check", "r.rcp", "--json"]);
        assert_eq!(code, 0, "{log}");
        let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        found["estimate"]["stages"][0]["work"].clone()
    };
    let plain = rows(notes(','));
    assert_eq!(plain["rows"], 14);
    assert_eq!(rows(format!("\u{feff}{}", notes(','))), plain);
    assert_eq!(rows(notes(',').replace('\n', "\r\n")), plain);
    assert_eq!(rows(notes(',').replace('\n', "\r")), plain);
}

#[test]
fn a_file_that_cannot_be_used_is_one_sentence_with_a_way_out() {
    let folder = Folder::new();
    let refused = |content: &[u8], says: &[&str]| {
        folder.write("notes.csv", content);
        folder.refused(says);
    };
    refused(b"", &["notes.csv has no rows", "check `source`"]);
    refused(b"note,icd10\n", &["no rows below its header line"]);
    refused(
        notes(';').as_bytes(),
        &["separated by ';', not by ','", "`delimiter = \";\"`"],
    );
    let utf16: Vec<u8> = notes(',')
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    refused(
        &[b"\xff\xfe", &utf16[..]].concat(),
        &["not UTF-8", "utf-16"],
    );
    refused(
        b"note,icd10\n,I10\n",
        &["1 have no text", "check `text` and `code`"],
    );
    refused(b"Note,ICD\na,I10\n", &["no column `note`", "`Note`"]);
    std::fs::remove_file(folder.path("notes.csv")).unwrap();
    std::fs::create_dir(folder.path("notes.csv")).unwrap();
    folder.refused(&["cannot read notes.csv", "check `source`"]);
}

#[test]
fn too_few_notes_stop_a_run_before_it_begins() {
    let folder = Folder::new();
    folder.write("notes.csv", "note,icd10\na,I10\n");
    let (code, _, log) = folder.engine(&["run", "r.rcp", "--out", "out"]);
    assert_eq!((code, log.lines().count()), (2, 1), "{log}");
    assert!(log.contains("no row for `val`; use more rows"), "{log}");
    assert!(!folder.path("out/first").exists());
}

#[test]
fn an_output_folder_that_cannot_be_made_is_named_with_out() {
    let folder = Folder::new();
    folder.write("notes.csv", notes(','));
    folder.write("taken", "a file");
    for out in ["taken", "taken/runs"] {
        let (code, _, log) = folder.engine(&["run", "r.rcp", "--out", out]);
        assert_eq!((code, log.lines().count()), (2, 1), "{log}");
        let said = format!("cannot keep results in {out}");
        assert!(log.contains(&said) && log.contains("`--out`"), "{log}");
    }
}

#[test]
fn check_estimates_the_whole_plan() {
    let folder = Folder::new();
    folder.write("notes.csv", notes(','));
    let (code, stdout, log) = folder.engine(&["check", "r.rcp", "--json"]);
    assert_eq!(code, 0, "{log}");
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let estimate = &found["estimate"];
    let stages = estimate["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tuned", "tuned", "small"]);
    // 14, 3 and 3 of 20 rows; 2 epochs of 4 steps, validated at step 5 and at the end.
    let (train, tuned, small) = (&stages[0]["work"], &stages[1]["work"], &stages[2]["work"]);
    assert_eq!((&train["rows"], &train["steps"]), (&14.into(), &8.into()));
    let tokens = |work: &serde_json::Value, what: &str| work[what].as_f64().unwrap();
    let example = tokens(train, "tokens") / 28.0;
    assert!((tokens(train, "validation") - 6.0 * example).abs() < 1e-6);
    let answer = tokens(tuned, "written") / 3.0;
    assert!((tokens(tuned, "read") - 3.0 * (example - answer)).abs() < 1e-6);
    assert_eq!(
        tokens(small, "written"),
        24.0,
        "as it comes: up to `max_new`"
    );
    let seconds: f64 = stages.iter().map(|s| s["seconds"].as_f64().unwrap()).sum();
    assert!((estimate["seconds"].as_f64().unwrap() - seconds).abs() < 1e-9);

    let (_, table, _) = folder.engine(&["check", "r.rcp"]);
    let total = table.lines().last().unwrap();
    assert!(
        total.starts_with("  total") && total.contains("GiB"),
        "{table}"
    );
}

#[test]
fn check_warns_of_a_plan_that_does_not_fit_and_says_what_would() {
    let folder = Folder::new();
    let recipe = std::fs::read_to_string(folder.path("r.rcp")).unwrap();
    // Without its rows a step is taken to be as long as it may be.
    let large = recipe
        .replace("max_tokens = 256", "max_tokens = 131072")
        .replace("batch = 4", "batch = 65536 micro_batch = 65536");
    folder.write("r.rcp", large);
    let (code, table, log) = folder.engine(&["check", "r.rcp"]);
    assert_eq!(code, 0, "{log}");
    assert!(table.contains("adapter+optimizer  activations  workspace"));
    let warning = log.lines().find(|l| l.contains("training `tuned`"));
    let warning = warning.unwrap_or_else(|| panic!("{log}"));
    assert!(warning.starts_with("warning: "), "{warning}");
    assert!(warning.contains(" on CPU and ") && warning.contains(" are free; "));
    let (code, stdout, _) = folder.engine(&["check", "r.rcp", "--json"]);
    assert_eq!(code, 0);
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let (estimate, memory) = (
        &found["estimate"],
        &found["estimate"]["stages"][0]["memory"],
    );
    let short = &estimate["shortages"][0];
    assert_eq!(
        (&short["name"], &short["needed"]),
        (&"tuned".into(), &memory["total"])
    );
    let parts = ["weights", "trained", "activations", "workspace"];
    let sum: u64 = parts.iter().map(|p| memory[p].as_u64().unwrap()).sum();
    assert_eq!(memory["total"], sum);
}

#[test]
fn check_says_what_it_cannot_estimate_and_why() {
    let folder = Folder::new();
    let (code, table, log) = folder.engine(&["check", "r.rcp"]);
    assert_eq!(code, 0, "{log}");
    assert!(table.contains("notes.csv is not there"), "{table}");
    let recipe = std::fs::read_to_string(folder.path("r.rcp")).unwrap();
    let hub = recipe
        .replace("csv(\"notes.csv\")", "hf(\"org/notes\", file = \"a.csv\")")
        .replacen(
            "model small",
            "model far { weights = hf(\"org/far\") }\nmodel small",
            1,
        )
        .replace("[tuned]", "[tuned, far]");
    folder.write("r.rcp", hub);
    let (code, table, log) = folder.engine(&["check", "r.rcp"]);
    assert_eq!(code, 0, "{log}");
    assert!(table.contains("could not be estimated"), "{table}");
    for reason in [
        "`a.csv` of data set `org/notes` is not downloaded yet",
        "model `org/far` is not downloaded yet",
    ] {
        assert!(table.contains(reason), "{table}");
    }
}

#[test]
fn notes_to_code_are_checked_before_the_model_loads() {
    let folder = Folder::new();
    folder.write("notes.csv", notes(','));
    let refused = |content: &str, says: &str| {
        folder.write("n.jsonl", content);
        let (code, stdout, log) = folder.engine(&["predict", "r.rcp", "--file", "n.jsonl"]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{log}");
        assert!(log.contains(says), "{log}");
    };
    refused(
        "{\"text\": \"a\"}\n{\"text\": \" \"}\n",
        "line 2: `text` is empty",
    );
    refused("{\"text\": \"a\"}\nb\n", "line 2: a JSON object");
    refused("\n", "holds no notes");
    refused("\u{feff}{\"text\": \"a\"}\n", "`tuned` is not trained yet");
}

#[test]
fn check_compares_the_weights_with_config_json_without_loading_them() {
    let folder = Folder::new();
    folder.write("notes.csv", notes(','));
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/quickstart/small");
    std::fs::create_dir(folder.path("model")).unwrap();
    for file in std::fs::read_dir(&small).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path("model").join(file.file_name())).unwrap();
    }
    let recipe = std::fs::read_to_string(folder.path("r.rcp")).unwrap();
    folder.write("r.rcp", recipe.replace(small.to_str().unwrap(), "model"));
    let config = std::fs::read_to_string(small.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for (field, wrong, says) in [
        (
            "num_hidden_layers",
            16_777_216,
            "`model.layers.16777215.input_layernorm.weight` is missing",
        ),
        ("intermediate_size", 16_777_216, "config.json asks for"),
    ] {
        let mut config = config.clone();
        config[field] = wrong.into();
        folder.write("model/config.json", config.to_string());
        let (code, stdout, log) = folder.engine(&["check", "r.rcp"]);
        assert_eq!(
            (code, stdout.as_str(), log.lines().count()),
            (2, "", 1),
            "{log}"
        );
        assert!(log.contains(says), "{log}");
    }
}
