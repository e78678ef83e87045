//! A made-up run for tests, of the size and look of the original study. Its numbers mean nothing.

use super::cost::{Latency, cost};
use super::document::*;
use crate::evaluate::confusion::Confusion;
use crate::evaluate::errors::KINDS;
use crate::evaluate::groups::{Division, Group, wilson};
use crate::evaluate::metrics::{Averages, Errors, LEVELS, LevelMetrics, Metrics};
use crate::evaluate::resample::{Estimate, Resampled, Resampler};
use crate::evaluate::statistics::{Graded, compare};
use crate::text::audit::ExampleAudit;
use medft_dsl::plan::*;

const ROWS: u64 = 1536;
const RECIPE: &str = r#"recipe "size-vs-specialization" { seed = 42 }

use "medsynth.rcp"

model qwen_3b  { weights = hf("Qwen/Qwen2.5-3B-Instruct")              precision = bf16 }
model llama_8b { weights = hf("meta-llama/Meta-Llama-3.1-8B-Instruct") precision = nf4 }

train qwen_3b_lora { model = qwen_3b   adapter = lora(rank = 64, alpha = 128, dropout = 0.1) }

evaluate all { models = [llama_8b, qwen_3b, qwen_3b_lora]   decode = greedy(max_new = 32) }
compare verdict { of = all   baseline = llama_8b }
"#;

/// The tuned system of [`report`].
pub(super) fn tuned(report: &mut Report) -> &mut System {
    &mut report.evaluations[0].systems[2]
}

/// A concluded report.
pub(super) fn report() -> Report {
    let mut report = Report {
        schema: SCHEMA,
        recipe: "size-vs-specialization".into(),
        recipe_text: RECIPE.into(),
        question: Some(
            "Which codes better: a 3B model fine-tuned on the task, or an 8B model as it comes?"
                .into(),
        ),
        created: "2026-11-23T21:04:00Z".into(),
        engine: "0.1.0".into(),
        machine: Machine {
            cpu: "Intel Xeon Platinum 8480C".into(),
            cores: 16,
            memory: 128 << 30,
            system: "linux x86_64".into(),
            gpu: Some("NVIDIA H200, 139.8 GiB".into()),
        },
        rates: plan().recipe.cost,
        findings: Vec::new(),
        verdicts: Vec::new(),
        data: vec![data()],
        trainings: vec![training()],
        evaluations: vec![evaluation()],
        methods: Vec::new(),
        limits: Vec::new(),
        hashes: [
            "recipe",
            "data `medsynth`",
            "split of `medsynth`",
            "weights of `qwen_3b`",
            "adapter of `qwen_3b_lora`",
        ]
        .map(|what| Hash {
            what: what.into(),
            hash: blake3::hash(what.as_bytes()).to_hex().to_string(),
        })
        .to_vec(),
    };
    report.conclude(&plan());
    report
}

fn data() -> DataSummary {
    DataSummary {
        name: "medsynth".into(),
        rows: 10_238,
        dropped: 2,
        train: 7168,
        val: 1534,
        test: ROWS,
        clusters: 10_190,
        overlap: 0,
        labels: vec![
            (Level::Code, 2037),
            (Level::Category, 741),
            (Level::Block, 212),
            (Level::Chapter, 21),
        ],
        not_billable: 580,
        unknown: 3,
        code_table: "ICD-10-CM FY2026 (April)".into(),
        leaks: Leaks {
            rows: 10_238,
            gold_code: 12,
            any_code: 31,
            gold_title: 1320,
            title_words: 3210,
            lookup: 301,
        },
    }
}

fn training() -> Training {
    let point = |step: u64| {
        let t = step as f64;
        let loss = 0.55 + 2.6 * (-t / 70.0).exp() - t / 2400.0 + 0.05 * (t * 1.7).sin();
        let val = 0.72
            + 2.1 * (-t / 80.0).exp()
            + if step > 450 {
                (t - 450.0) / 1500.0
            } else {
                0.0
            };
        CurvePoint {
            step,
            loss: Some(loss),
            val_loss: step.is_multiple_of(50).then_some(val),
            lr: 2e-4 * (1.0 - t / 672.0),
        }
    };
    Training {
        name: "qwen_3b_lora".into(),
        base: "qwen_3b".into(),
        rows: 7168,
        truncated: 118,
        audit: Some(ExampleAudit {
            examples: 7168,
            tokens: 9_000_000,
            targets: 60_000,
            ..ExampleAudit::default()
        }),
        trained_values: 119_734_272,
        steps: 600,
        tokens: 26_112_000,
        seconds: 2710.0,
        peak_memory: Some(41 << 30),
        curve: (1..=120).map(|i| point(5 * i)).collect(),
        best_step: Some(450),
        ending: Ending::EarlyStop { validations: 3 },
    }
}

fn evaluation() -> Evaluation {
    let system = |name: &str, role, accuracy: [f64; 4], model: &str, size: u64| {
        let sized = (role != Role::Baseline).then_some(size);
        System {
            name: name.into(),
            role,
            model: model.into(),
            base: (role == Role::Tuned).then(|| "qwen_3b".into()),
            parameters: sized,
            precision: sized.map(|n| {
                if n > 5_000_000_000 {
                    Precision::Nf4
                } else {
                    Precision::Bf16
                }
            }),
            trained_tokens: (role == Role::Tuned).then_some(26_112_000),
            metrics: metrics(accuracy, u64::from(role == Role::ZeroShot) * 38),
            groups: groups(accuracy[0]),
            cut: u64::from(role == Role::ZeroShot) * 9,
            truncated: u64::from(role != Role::Baseline) * 25,
            same_as_base: (role == Role::Tuned).then_some(97),
            foreign: 0,
            latency: (role != Role::Baseline).then_some(Latency { p50: 1.2, p95: 1.9 }),
            cost: cost(
                &plan().recipe.cost.unwrap_or_else(|| unreachable!()),
                if role == Role::Baseline { 0.4 } else { 61.0 },
                ROWS,
                (role == Role::Tuned).then_some(2710.0),
            ),
            seconds: if role == Role::Baseline { 0.4 } else { 61.0 },
            peak_memory: sized.map(|n| 2 * n + (3 << 30)),
            chapters: chapters(accuracy[3]),
        }
    };
    let systems = vec![
        system(
            "llama_8b",
            Role::ZeroShot,
            [0.331, 0.587, 0.702, 0.811],
            "meta-llama/Meta-Llama-3.1-8B-Instruct",
            8_030_261_248,
        ),
        system(
            "qwen_3b",
            Role::ZeroShot,
            [0.208, 0.433, 0.568, 0.702],
            "Qwen/Qwen2.5-3B-Instruct",
            3_085_938_688,
        ),
        system(
            "qwen_3b_lora",
            Role::Tuned,
            [0.412, 0.634, 0.733, 0.838],
            "Qwen/Qwen2.5-3B-Instruct",
            3_085_938_688,
        ),
        system(
            "title look-up",
            Role::Baseline,
            [0.029, 0.061, 0.098, 0.17],
            "",
            0,
        ),
        system(
            "majority code",
            Role::Baseline,
            [0.001, 0.005, 0.02, 0.11],
            "",
            0,
        ),
    ];
    let answer = |system: &str, answer: &str, code: Option<&str>, right| ExampleAnswer {
        system: system.into(),
        answer: answer.into(),
        code: code.map(str::to_owned),
        right,
    };
    let example = |row: &str, excerpt: &str, gold: &str, title: &str, wrong: &str| Example {
        row: row.into(),
        excerpt: excerpt.into(),
        gold: gold.into(),
        title: title.into(),
        answers: vec![
            answer(
                "llama_8b",
                &format!("The ICD-10-CM code is **{wrong}**, since the visit"),
                Some(wrong),
                false,
            ),
            answer(
                "qwen_3b",
                "I would need more information to assign a code",
                None,
                false,
            ),
            answer("qwen_3b_lora", gold, Some(gold), true),
            answer("title look-up", "", None, false),
            answer("majority code", "E78.4", Some("E78.4"), false),
        ],
    };
    let examples = vec![
        example(
            "5f0c",
            "[doctor]: Good morning. How are you feeling today? [patient]: Not well, doctor. My sugar has been over 300 all week, and I am \
            thirsty all the time. …",
            "E11.65",
            "Type 2 diabetes mellitus with hyperglycemia",
            "E11.9",
        ),
        example(
            "9b11",
            "[doctor]: So tell me about the knee. [patient]: I twisted it at football, the left one, and it popped. …",
            "S83.512A",
            "Sprain of anterior cruciate ligament of left knee, initial encounter",
            "S83.511A",
        ),
    ];
    let pairs = pairs(&systems);
    Evaluation {
        name: "all".into(),
        data: "medsynth".into(),
        part: Part::Test,
        level: Level::Code,
        rows: ROWS,
        systems,
        pairs,
        examples,
    }
}

fn pairs(systems: &[System]) -> Vec<crate::evaluate::statistics::Pair> {
    let clusters: Vec<u32> = (0..ROWS as u32).collect();
    let resampler = Resampler::new(&clusters, 42, 400);
    let right = |s: &System| -> Vec<bool> {
        let below = s.accuracy(Level::Code) * ROWS as f64;
        (0..ROWS)
            .map(|row| ((row * 7919 % ROWS) as f64) < below && row % 9 > 0)
            .collect()
    };
    let right: Vec<Vec<bool>> = systems.iter().map(right).collect();
    let drawn: Vec<Resampled> = right.iter().map(|right| resampler.share(right)).collect();
    let graded: Vec<Graded> = systems
        .iter()
        .zip(right.iter().zip(&drawn))
        .map(|(system, (right, accuracy))| Graded {
            name: &system.name,
            right,
            accuracy,
        })
        .collect();
    let asked = [
        ("qwen_3b_lora", "llama_8b"),
        ("qwen_3b_lora", "qwen_3b"),
        ("qwen_3b", "llama_8b"),
    ];
    compare(&graded, &asked, Level::Code, &clusters)
}

fn metrics(accuracy: [f64; 4], unparsed: u64) -> Metrics {
    let estimate = |value: f64| {
        let half = 1.96 * (value * (1.0 - value) / ROWS as f64).sqrt();
        Estimate {
            value,
            low: (value - half).max(0.0),
            high: value + half,
        }
    };
    let averages = |value: f64| Averages {
        precision: estimate(value * 1.04),
        recall: estimate(value),
        f1: estimate(value * 0.97),
    };
    let level = |(level, value): (Level, f64)| LevelMetrics {
        level,
        classes: 900,
        accuracy: estimate(value),
        macro_average: averages(value * 0.7),
        micro: averages(value),
        weighted: averages(value * 0.9),
    };
    Metrics {
        rows: ROWS,
        unparsed,
        invalid: unparsed / 3,
        expired: 7,
        expired_near: 2,
        non_billable: 3 * unparsed,
        errors: KINDS
            .map(|kind| Errors {
                kind,
                rows: 11 + 13 * (kind as u64 % 5),
            })
            .to_vec(),
        levels: LEVELS.into_iter().zip(accuracy).map(level).collect(),
        hierarchical: averages(accuracy.iter().sum::<f64>() / 4.0),
    }
}

fn groups(accuracy: f64) -> Vec<Group> {
    let group = |(by, name, rows): (Division, &str, u64)| Group {
        by,
        name: name.to_owned(),
        rows,
        accuracy: wilson((accuracy * rows as f64) as u64, rows),
    };
    [
        (Division::Chapter, "CH04", 210),
        (Division::Chapter, "CH19", 1326),
        (Division::Frequency, "0", 60),
        (Division::Frequency, "5–9", 1476),
        (Division::Seen, "seen", 1476),
        (Division::Seen, "unseen", 60),
    ]
    .map(group)
    .to_vec()
}

fn chapters(accuracy: f64) -> Confusion {
    let labels: Vec<String> = (1..=21).map(|chapter| format!("CH{chapter:02}")).collect();
    let row = |gold: usize| {
        let rows = 40 + (gold * 37) % 60;
        let mut counts = vec![0; labels.len() + 1];
        counts[gold] = (accuracy * rows as f64) as u64;
        for error in 0..rows as u64 - counts[gold] {
            counts[(gold * 5 + error as usize * error as usize * 3 + 17) % 22] += 1;
        }
        counts
    };
    Confusion {
        counts: (0..labels.len()).map(row).collect(),
        labels,
    }
}

/// The plan of [`report`].
pub(super) fn plan() -> Plan {
    let model = |name: &str, repo: &str, precision| Model {
        name: name.into(),
        weights: Weights::Hf {
            repo: repo.into(),
            revision: "main".into(),
        },
        precision,
        double_quant: true,
    };
    Plan {
        recipe: Recipe {
            name: "size-vs-specialization".into(),
            seed: 42,
            cost: Some(Rates {
                hour: 3.0,
                currency: "USD".into(),
                watts: 650.0,
                grid: 380.0,
                notes: 100_000,
            }),
        },
        data: vec![Data {
            name: "medsynth".into(),
            source: Source::Hf {
                repo: "Ahmad0067/MedSynth".into(),
                file: "MedSynth_huggingface_final.csv".into(),
                revision: "main".into(),
            },
            text: TextView::Column {
                column: "Dialogue".into(),
            },
            redact: Redact::None,
            code: "ICD10".into(),
            split: Split {
                train: 0.7,
                val: 0.15,
                test: 0.15,
                by: Level::Code,
                seed: 42,
            },
            limit: None,
        }],
        tasks: vec![Task {
            name: "icd10".into(),
            data: "medsynth".into(),
            system: Some(
                "You are a medical coder. Answer with one ICD-10-CM code and nothing else.".into(),
            ),
            user: "Assign the ICD-10-CM code of the main diagnosis.\n\n{{ text }}".into(),
            answer: "{{ code }}".into(),
            max_tokens: 2048,
            level: Level::Code,
        }],
        models: vec![
            model("qwen_3b", "Qwen/Qwen2.5-3B-Instruct", Precision::Bf16),
            model(
                "llama_8b",
                "meta-llama/Meta-Llama-3.1-8B-Instruct",
                Precision::Nf4,
            ),
        ],
        trains: vec![train()],
        evaluates: vec![Evaluate {
            name: "all".into(),
            models: ["llama_8b", "qwen_3b", "qwen_3b_lora"]
                .map(str::to_owned)
                .to_vec(),
            task: "icd10".into(),
            split: Part::Test,
            decode: Decode {
                sample: false,
                max_new: 32,
                temperature: 1.0,
                top_p: 1.0,
                top_k: 0,
                repetition_penalty: 1.0,
                seed: 42,
            },
            batch: 48,
            limit: None,
            cache: true,
        }],
        compares: vec![Compare {
            name: "verdict".into(),
            of: "all".into(),
            baseline: Some("llama_8b".into()),
        }],
    }
}

fn train() -> Train {
    Train {
        name: "qwen_3b_lora".into(),
        model: "qwen_3b".into(),
        task: "icd10".into(),
        adapter: Adapter::Lora(Lora {
            rank: 64,
            alpha: 128.0,
            dropout: 0.1,
            targets: Linear::ALL.to_vec(),
            init: None,
        }),
        optimizer: AdamW {
            lr: 2e-4,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        },
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 100,
        },
        epochs: 3,
        max_steps: None,
        batch: 32,
        eval_batch: 32,
        micro_batch: None,
        clip: Some(1.0),
        log_every: 5,
        eval_every: 50,
        save_every: 200,
        keep: 3,
        stop: Some(EarlyStop {
            patience: 3,
            min_delta: 0.001,
        }),
        shuffle: true,
        seed: 42,
    }
}
