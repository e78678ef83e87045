//! What recipes mean: defaults, references, sweeps, `let`, `use`, `--set`, prompts, paths.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use medft_dsl::plan::*;
use medft_dsl::{Checked, Diagnostics, SourceFile, check, reference_markdown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

const SHORTEST: &str = r#"
data notes { source = csv("notes.csv")   text = "note"   code = "icd10" }
task coding { }
model small { weights = dir("models/small") }
train tuned { model = small }
evaluate all { models = [small, tuned] }
"#;

fn no_files(_: &Path) -> io::Result<String> {
    Err(io::ErrorKind::NotFound.into())
}

fn try_plan(text: &str, sets: &[&str]) -> Result<Checked, Diagnostics> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    check(
        &SourceFile::new("recipes/shortest.rcp", text),
        &sets,
        &no_files,
    )
}

fn plan(text: &str, sets: &[&str]) -> Plan {
    try_plan(text, sets)
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
        .plan
}

fn codes(text: &str, sets: &[&str]) -> Vec<&'static str> {
    try_plan(text, sets)
        .unwrap_err()
        .list()
        .iter()
        .map(|listed| listed.code.id())
        .collect()
}

/// SEED.md, section 6.
#[test]
fn every_default_is_the_seeds() {
    let plan = plan(SHORTEST, &[]);
    assert_eq!(
        plan.recipe,
        Recipe {
            name: "shortest".into(),
            seed: 42,
            cost: None,
        }
    );
    let split = Split {
        train: 0.70,
        val: 0.15,
        test: 0.15,
        by: Level::Code,
        seed: 42,
    };
    assert_eq!(
        plan.data,
        [Data {
            name: "notes".into(),
            source: Source::Csv {
                path: "recipes/notes.csv".into(),
                delimiter: ','
            },
            text: TextView::Column {
                column: "note".into()
            },
            redact: Redact::None,
            code: "icd10".into(),
            split,
            limit: None,
        }]
    );
    assert_eq!(
        plan.tasks,
        [Task {
            name: "coding".into(),
            data: "notes".into(),
            system: Some(
                "You are a medical coder. Answer with one ICD-10-CM code and nothing else.".into()
            ),
            user: "Assign the ICD-10-CM code of the main diagnosis.\n\n{{ text }}".into(),
            answer: "{{ code }}".into(),
            max_tokens: 512,
            level: Level::Code,
        }]
    );
    assert_eq!(
        plan.models,
        [Model {
            name: "small".into(),
            weights: Weights::Dir {
                path: "recipes/models/small".into()
            },
            precision: Precision::Bf16,
            double_quant: true,
        }]
    );
    let lora = Lora {
        rank: 64,
        alpha: 128.0,
        dropout: 0.1,
        targets: Linear::ALL.to_vec(),
        init: None,
    };
    assert_eq!(
        plan.trains,
        [Train {
            name: "tuned".into(),
            model: "small".into(),
            task: "coding".into(),
            adapter: Adapter::Lora(lora),
            optimizer: AdamW {
                lr: 2e-4,
                weight_decay: 0.01,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8
            },
            schedule: Schedule {
                kind: ScheduleKind::Cosine,
                warmup: 100
            },
            epochs: 3,
            max_steps: None,
            batch: 32,
            eval_batch: 64,
            micro_batch: None,
            clip: Some(1.0),
            log_every: 5,
            eval_every: 50,
            save_every: 200,
            keep: 3,
            stop: Some(EarlyStop {
                patience: 3,
                min_delta: 0.001
            }),
            shuffle: true,
            seed: 42,
        }]
    );
    let decode = Decode {
        sample: true,
        max_new: 256,
        temperature: 0.7,
        top_p: 0.9,
        top_k: 50,
        repetition_penalty: 1.1,
        seed: 42,
    };
    assert_eq!(
        plan.evaluates,
        [Evaluate {
            name: "all".into(),
            models: vec!["small".into(), "tuned".into()],
            task: "coding".into(),
            split: Part::Test,
            decode,
            batch: 48,
            limit: None,
            cache: true,
        }]
    );
}

#[test]
fn words_and_calls_reach_the_plan() {
    let text = r#"
        recipe "study-1" { seed = 7 }
        data d {
          source = hf("a/b", file = "c.csv")   text = sections(column(" Note"), ["Subjective", "Objective"])
          code = column("ICD10")   redact = titles   limit = 1_000
          split = stratified(0.5, 25%, test = 25%, by = chapter, seed = 9)
        }
        task t { level = category   system = none   user = "{{text}}?"   answer = "{{  title }}" }
        model m { weights = hf("a/b", revision = "v1")   precision = nf4   double_quant = false }
        train f {
          model = m   adapter = lora(8, 16, 0, targets = ["down_proj", q_proj], init = "old")
          optimizer = adamw(1e-3, beta2 = 0.95)   schedule = constant(warmup = 0)
          clip = none   stop = none   micro_batch = 4   max_steps = 10   shuffle = false   seed = 1
        }
        evaluate e { models = [m]   split = val   decode = greedy   cache = false }
        compare c { of = e }
    "#;
    let plan = plan(text, &[]);
    assert_eq!(
        plan.recipe,
        Recipe {
            name: "study-1".into(),
            seed: 7,
            cost: None,
        }
    );
    let data = &plan.data[0];
    assert_eq!(
        data.source,
        Source::Hf {
            repo: "a/b".into(),
            file: "c.csv".into(),
            revision: "main".into()
        }
    );
    let sections = vec!["Subjective".to_string(), "Objective".to_string()];
    assert_eq!(
        data.text,
        TextView::Sections {
            column: " Note".into(),
            sections
        }
    );
    assert_eq!(
        (data.redact, data.limit, data.code.as_str()),
        (Redact::Titles, Some(1000), "ICD10")
    );
    assert_eq!(
        data.split,
        Split {
            train: 0.5,
            val: 0.25,
            test: 0.25,
            by: Level::Chapter,
            seed: 9
        }
    );
    let task = &plan.tasks[0];
    assert_eq!(
        (task.system.as_deref(), task.level),
        (None, Level::Category)
    );
    assert_eq!(
        (task.user.as_str(), task.answer.as_str()),
        ("{{ text }}?", "{{ title }}")
    );
    let train = &plan.trains[0];
    let Adapter::Lora(lora) = &train.adapter else {
        panic!("no adapter")
    };
    assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 16.0, 0.0));
    assert_eq!(lora.targets, [Linear::QProj, Linear::DownProj]);
    assert_eq!(lora.init, Some(PathBuf::from("recipes/old")));
    assert_eq!((train.optimizer.lr, train.optimizer.beta2), (1e-3, 0.95));
    assert_eq!(
        train.schedule,
        Schedule {
            kind: ScheduleKind::Constant,
            warmup: 0
        }
    );
    assert_eq!(
        (train.clip, &train.stop, train.micro_batch),
        (None, &None, Some(4))
    );
    assert_eq!(
        (train.max_steps, train.shuffle, train.seed),
        (Some(10), false, 1)
    );
    let decode = &plan.evaluates[0].decode;
    assert_eq!(
        (
            decode.sample,
            decode.top_k,
            decode.repetition_penalty,
            decode.seed
        ),
        (false, 0, 1.0, 7)
    );
    assert_eq!(
        plan.compares,
        [Compare {
            name: "c".into(),
            of: "e".into(),
            baseline: None
        }]
    );
}

#[test]
fn every_level_has_prompts_of_its_own() {
    let prompts = |level| {
        let task = plan(SHORTEST, &[&format!("coding.level={level}")])
            .tasks
            .remove(0);
        (task.system.unwrap(), task.user)
    };
    assert!(prompts("category").0.contains("category (three characters"));
    assert!(prompts("block").0.contains("E08-E13"));
    assert!(
        prompts("chapter")
            .1
            .starts_with("Assign the ICD-10-CM chapter")
    );
}

#[test]
fn a_sweep_makes_a_run_for_each_combination() {
    let text = SHORTEST.replace(
        "train tuned { model = small }",
        "train tuned { model = small   sweep { lora.rank = [8, 16]   epochs = few } }   let few = [1, 2]",
    ) + "compare c { of = all   baseline = \"tuned[lora.rank=16,epochs=1]\" }";
    let swept = plan(&text, &[]);
    let names: Vec<&str> = swept
        .trains
        .iter()
        .map(|train| train.name.as_str())
        .collect();
    let expected = [
        "tuned[lora.rank=8,epochs=1]",
        "tuned[lora.rank=8,epochs=2]",
        "tuned[lora.rank=16,epochs=1]",
        "tuned[lora.rank=16,epochs=2]",
    ];
    assert_eq!(names, expected);
    assert_eq!(swept.evaluates[0].models[1..], expected);
    assert_eq!(swept.trains[2].epochs, 1);
    assert!(
        matches!(&swept.trains[2].adapter, Adapter::Lora(lora) if lora.rank == 16 && lora.alpha == 128.0)
    );

    let fixed = plan(&text.replace("16,epochs=1", "16"), &["tuned.epochs=5"]);
    assert_eq!(fixed.trains.len(), 2);
    assert_eq!(
        (fixed.trains[0].name.as_str(), fixed.trains[0].epochs),
        ("tuned[lora.rank=8]", 5)
    );
}

#[test]
fn overrides_reach_fields_arguments_and_the_seed() {
    let plan = plan(
        SHORTEST,
        &[
            "seed=7",
            "tuned.epochs=1",
            "tuned.lora.rank=8",
            "tuned.adapter.alpha=16",
            "tuned.cosine.warmup=0",
            "all.decode=greedy(max_new=4)",
            "all.greedy.max_new=5",
            "notes.split.train=60%",
            "notes.stratified.val=25%",
            "small.weights=dir(\"elsewhere\")",
        ],
    );
    assert_eq!(
        (plan.recipe.seed, plan.trains[0].seed, plan.trains[0].epochs),
        (7, 7, 1)
    );
    assert!(
        matches!(&plan.trains[0].adapter, Adapter::Lora(lora) if lora.rank == 8 && lora.alpha == 16.0)
    );
    assert_eq!(plan.trains[0].schedule.warmup, 0);
    assert_eq!(
        (
            plan.evaluates[0].decode.sample,
            plan.evaluates[0].decode.max_new
        ),
        (false, 5)
    );
    assert_eq!(
        (plan.data[0].split.train, plan.data[0].split.val),
        (0.6, 0.25)
    );
    // A path on the command line is relative to where the command is typed.
    assert_eq!(
        plan.models[0].weights,
        Weights::Dir {
            path: "elsewhere".into()
        }
    );
    assert_eq!(codes(SHORTEST, &["all.greedy.max_new=5"]), ["R0209"]);
    let named = SHORTEST.to_string() + "recipe \"tuned\" { seed = 1 }";
    assert_eq!(
        self::plan(&named, &["recipe.seed=3", "tuned.epochs=1", "seed=4"]).recipe,
        Recipe {
            name: "tuned".into(),
            seed: 4,
            cost: None,
        }
    );
}

#[test]
fn lets_stand_for_values_words_blocks_and_lists() {
    let text = SHORTEST
        .replace("[small, tuned]", "systems")
        .replace("{ model = small }", "{ model = base   adapter = adapter   epochs = n }")
        + "let systems = [base, tuned]  let base = b2  let b2 = small  let adapter = lora(rank = r, targets = t)
           let r = 4  let t = [v_proj, q_proj]  let n = 9";
    let plan = plan(&text, &[]);
    assert_eq!(plan.evaluates[0].models, ["small", "tuned"]);
    assert_eq!(
        (plan.trains[0].model.as_str(), plan.trains[0].epochs),
        ("small", 9)
    );
    assert!(
        matches!(&plan.trains[0].adapter, Adapter::Lora(lora) if lora.rank == 4 && lora.targets.len() == 2)
    );
}

#[test]
fn used_files_bring_blocks_and_paths_of_their_own() {
    let loader = |path: &Path| match path.to_str() {
        Some("recipes/shared/data.rcp") => Ok("use \"../shared/model.rcp\"\n".to_string()
            + r#"data notes { source = jsonl("notes.jsonl") text = "note" code = "icd10" }"#),
        Some("recipes/shared/model.rcp") | Some("recipes/shared/../shared/model.rcp") => Ok(
            r#"model small { weights = dir("/abs/small") }  model unused { weights = dir("x") }"#
                .to_string(),
        ),
        other => panic!("asked for {other:?}"),
    };
    let text = "use \"shared/data.rcp\" use \"shared/model.rcp\" task t { } evaluate e { models = [small] }";
    let checked = check(&SourceFile::new("recipes/main.rcp", text), &[], &loader).unwrap();
    assert!(
        checked.warnings.is_empty(),
        "{}",
        checked.warnings.render(false)
    );
    assert_eq!(
        checked.plan.data[0].source,
        Source::Jsonl {
            path: "recipes/shared/notes.jsonl".into()
        }
    );
    assert_eq!(
        checked.plan.models[0].weights,
        Weights::Dir {
            path: "/abs/small".into()
        }
    );
}

#[test]
fn strings_and_comments_read_as_written() {
    let text = SHORTEST.replace(
        "task coding { }",
        "task coding { # a task\n  user = \"\"\"\n    Code this: \\\"x\\\"\n\n      {{ text }}\n    \"\"\"   # done\n}",
    );
    assert_eq!(
        plan(&text, &[]).tasks[0].user,
        "Code this: \"x\"\n\n  {{ text }}"
    );
    let crlf = plan(&text.replace('\n', "\r\n"), &[]);
    assert_eq!(crlf.tasks[0].user, "Code this: \"x\"\n\n  {{ text }}");
}

#[test]
fn the_plan_survives_json() {
    let plan = plan(SHORTEST, &[]);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn the_shipped_recipes_check_without_warnings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let checked = check(&SourceFile::new(&path, text), &[], &|path| {
            fs::read_to_string(path)
        });
        let checked = checked.unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        let shared = path.ends_with("medsynth.rcp") && !path.ends_with("smollm2_medsynth.rcp");
        assert!(
            shared || checked.warnings.is_empty(),
            "{}",
            checked.warnings.render(false)
        );
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} recipes in {}", folder.display());
}

/// Set UPDATE_REFERENCE=1 to write the page anew.
#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recipe-language.md");
    let made = reference_markdown();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "docs/recipe-language.md is old; run the test with UPDATE_REFERENCE=1"
    );
}

#[test]
fn many_warnings_hide_no_error() {
    let block = |i: usize| format!("model m{i} {{ weights = dir(\"x\")   double_quant = true }}\n");
    let text: String = (0..300).map(block).collect();
    assert_eq!(plan(&text, &[]).models.len(), 300);
    assert_eq!(
        codes(&(text + "model z { weights = 3 }"), &[]).last(),
        Some(&"R0201")
    );
}

/// Each of these would take minutes if some step were quadratic.
#[test]
fn hostile_texts_are_read_in_linear_time() {
    let many = |part: &str| part.repeat(200_000 / part.len());
    let numbered =
        |count: usize, part: &dyn Fn(usize) -> String| (0..count).map(part).collect::<String>();
    let chain = numbered(5_000, &|i| format!("let a{i} = a{}\n", i + 1));
    let users = numbered(3_000, &|i| format!("model m{i} {{ precision = a{i} }}"));
    let cycles = numbered(8_000, &|i| {
        format!("let a{i} = [a{}, a0]\n", (i + 1) % 8_000)
    });
    let strangers = numbered(6_000, &|i| {
        format!("train t{i} {{ model = no_such_model_{i} }}\n")
    });
    let uses = |list: &str| {
        let blocks = numbered(900, &|i| format!("evaluate e{i} {{ models = l }}\n"));
        format!("{SHORTEST} let l = [{list}]\n{blocks}")
    };
    for text in [
        many("["),
        many("a("),
        many("a { "),
        many("{{"),
        many("\""),
        many("\"\"\" "),
        many("# x\n"),
        many("x = "),
        many("}"),
        format!("let a = [{}", many("b, ")),
        format!("let a = f({}", many("b = 1, ")),
        format!("let a = f({}", many("b = 1 ")),
        format!("data d {{ text = \"{}\" }}", many("{{ ")),
        format!("data d {{ {} }}", many("x = [1 2]\n")),
        format!("task t {{ user = \"{}\" }}", many("{{ x }} ")),
        many("model m { weights = dir(\"x\") }\n"),
        many("train t { model = zzz }\n"),
        chain + &users,
        cycles,
        strangers,
        uses(&many("small, ")),
        uses(&"zzz, ".repeat(1000)),
        uses(&numbered(200, &|i| format!("m{i}, ")))
            + &numbered(200, &|i| format!("model m{i} {{ weights = dir(\"x\") }} ")),
    ] {
        let start = Instant::now();
        if let Err(errors) = try_plan(&text, &[]) {
            errors.render(true);
        }
        let taken = start.elapsed();
        let head: String = text.chars().take(20).collect();
        assert!(
            taken < Duration::from_secs(20),
            "{taken:?} for a text of {} bytes like {head:?}",
            text.len()
        );
    }
}

#[test]
fn costs_are_what_the_recipe_says() {
    let cost =
        r#"recipe "r" { cost = rates(hour = 2.5, watts = 700, grid = 380, notes = 100000) }"#;
    let rates = plan(&format!("{SHORTEST}{cost}"), &[]).recipe.cost.unwrap();
    assert_eq!((rates.hour, rates.watts, rates.grid), (2.5, 700.0, 380.0));
    assert_eq!((rates.notes, rates.currency.as_str()), (100_000, "USD"));
}
