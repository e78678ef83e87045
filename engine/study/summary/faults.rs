//! The original study's faults, injected one at a time into a small study: each is named by a finding, and an undisturbed study has none.
//!
//! The notes, models, split and training examples are the quickstart's; the answers are made up, because it takes no model to look for
//! faults.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::evaluate::answer::Outcome;
use crate::evaluate::prediction::{Finish, Prediction};
use crate::report::document::Finding;
use crate::study::observer::StudyEvent;
use crate::study::rows::{DataSet, DataSets};
use crate::text::audit::audit;
use crate::text::example::{Example, Renderer};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use crate::train::metrics::Metric;
use crate::train::session::{Ending, Outcome as TrainOutcome};
use crate::train::snapshot::Best;
use medft_dsl::plan::{Level, Part};
use medft_dsl::{SourceFile, check};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/quickstart");

/// What a study left behind, to be disturbed before the report is made.
struct Study {
    plan: Plan,
    set: DataSet,
    examples: Vec<Example>,
    record: TrainRecord,
    curve: Vec<Metric>,
    base: Answers,
    tuned: Answers,
}

fn plan() -> Plan {
    let text = format!(
        r#"recipe "small" {{ seed = 42 }}
data notes {{
  source = csv("{QUICKSTART}/notes.csv")   text = column("note")   code = column("icd10")
  split  = stratified(train = 70%, val = 15%, test = 15%)
}}
task coding {{ data = notes   max_tokens = 512 }}
model small {{ weights = dir("{QUICKSTART}/small")   precision = f32 }}
train tuned {{ model = small }}
evaluate all {{ models = [small, tuned]   decode = greedy(max_new = 16) }}
compare verdict {{ of = all   baseline = small }}
"#
    );
    let checked = check(&SourceFile::new("small.rcp", &text), &[], &|path| {
        std::fs::read_to_string(path)
    });
    checked.unwrap().plan
}

/// Answers to all test rows; `right` says which of them are.
fn answers(set: &DataSet, rows: &[usize], right: impl Fn(usize) -> bool) -> Answers {
    let one = |(at, row): (usize, &usize)| {
        let row = &set.all.rows[*row];
        let answer = if right(at) {
            row.code.clone()
        } else {
            "Z99.89".into()
        };
        Prediction {
            row: row.id.clone(),
            scope: String::new(),
            prompt: row.id.clone(),
            answer,
            outcome: Outcome::Unparsed,
            tokens: 6,
            finish: Finish::Stop,
            seconds: 0.1,
        }
    };
    Answers {
        predictions: rows.iter().enumerate().map(one).collect(),
        seconds: 1.0,
        decoded: rows.len(),
        peak_memory: None,
        parameters: 1_000_000,
        cut_rows: 0,
    }
}

fn curve() -> Vec<Metric> {
    let point = |step: u64| Metric {
        step,
        epoch: step as f64 / 27.0,
        loss: Some(2.0 / step as f64),
        val_loss: step.is_multiple_of(4).then_some(2.5 / step as f64),
        lr: 2e-4,
        grad_norm: None,
        tokens: 100 * step,
        seconds: step as f64,
    };
    (1..=20).map(point).collect()
}

/// The findings of a study that `disturb` disturbs.
fn findings(disturb: impl FnOnce(&mut Study)) -> Vec<Finding> {
    let out = tempfile::tempdir().unwrap();
    let mut store = Store::open(out.path()).unwrap();
    let mut silent = |_: StudyEvent| {};
    let mut study = {
        let plan = plan();
        let resolved = Resolved::find(&plan, "cpu", &mut store, &mut silent).unwrap();
        let mut sets = DataSets::default();
        sets.get(&resolved, &store, &plan.data[0]).unwrap();
        let set = sets.take(&plan.data[0].name).unwrap();
        let model = std::path::Path::new(QUICKSTART).join("small");
        let (template, tokenizer) = (
            ChatTemplate::load(&model).unwrap(),
            Tokenizer::load(&model).unwrap(),
        );
        let renderer = Renderer::new(&plan.tasks[0], &template, &tokenizer).unwrap();
        let examples = renderer
            .examples(&set.rows(Part::Train, Level::Code))
            .unwrap();
        let rows = set.side(Part::Test, None);
        let record = TrainRecord {
            outcome: TrainOutcome {
                ending: Ending::Completed,
                steps: 20,
                tokens: 2000,
                seconds: 20.0,
                best: Some(Best {
                    step: 20,
                    loss: 0.1,
                }),
                trained_values: 1000,
            },
            rows: examples.len(),
            val_rows: set.side(Part::Val, None).len(),
            targets: 0,
            cut_rows: 0,
            cut_tokens: 0,
            peak_memory: None,
            notices: Vec::new(),
            audit: None,
        };
        Study {
            examples,
            record,
            curve: curve(),
            base: answers(&set, &rows, |at| at % 10 == 0),
            tuned: answers(&set, &rows, |at| at % 10 > 1),
            set,
            plan,
        }
    };
    disturb(&mut study);
    let Study {
        plan,
        set,
        examples,
        mut record,
        curve,
        base,
        tuned,
    } = study;
    let model = std::path::Path::new(QUICKSTART).join("small");
    let tokenizer = Tokenizer::load(&model).unwrap();
    record.audit = Some(audit(&examples, &tokenizer, tokenizer.end_ids()));
    let folder = out.path().join("train");
    let lines: Vec<String> = curve
        .iter()
        .map(|m| serde_json::to_string(m).unwrap())
        .collect();
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
    let resolved = Resolved::find(&plan, "cpu", &mut store, &mut silent).unwrap();
    let mut sets = DataSets::default();
    sets.put(&plan.data[0].name, set);
    let block = &plan.evaluates[0];
    let systems = resolved.systems(block).unwrap();
    let material = Material {
        resolved: &resolved,
        text: "",
        trainings: &[(&plan.trains[0], record, folder)],
        evaluations: &[Evaluation {
            block,
            answers: systems.into_iter().zip([base, tuned]).collect(),
        }],
        gpu: None,
    };
    let (report, _) = report(&material, &mut store, &mut sets).unwrap();
    report.findings
}

#[test]
fn an_undisturbed_study_has_no_finding() {
    assert_eq!(findings(|_| {}), []);
}

/// A fault: what happened, the title of the finding that must name it, and how it comes about.
type Fault = (&'static str, &'static str, fn(&mut Study));

const FAULTS: [Fault; 16] = [
    (
        "sides drawn apart from each other",
        "stand on two sides of the split",
        |study| {
            let (from, to) = (
                study.set.split.rows_of(Part::Train),
                study.set.side(Part::Test, None),
            );
            for (train, test) in from.into_iter().zip(to).take(9) {
                let text = study.set.all.rows[train].text.to_uppercase();
                study.set.all.rows[test].text = text;
            }
        },
    ),
    (
        "the code stands in the note",
        "name their own diagnosis",
        |study| {
            for row in study.set.all.rows.iter_mut().step_by(5) {
                row.text += &format!(" Assessment: {}.", row.code);
            }
        },
    ),
    (
        "the answer's end is not trained",
        "never learnt to stop",
        |study| {
            study
                .examples
                .iter_mut()
                .for_each(|e| e.ids.truncate(e.ids.len() - 1));
        },
    ),
    ("the begin token comes twice", "begin twice", |study| {
        study
            .examples
            .iter_mut()
            .for_each(|e| e.ids.insert(0, e.ids[0]));
    }),
    (
        "the whole prompt carries loss",
        "learns its prompts",
        |study| {
            study.examples.iter_mut().for_each(|e| e.target_start = 1);
        },
    ),
    ("answers run into the limit", "were cut off", |study| {
        study
            .tuned
            .predictions
            .iter_mut()
            .for_each(|p| p.finish = Finish::Length);
    }),
    (
        "the adapter is not applied",
        "answers exactly as its base does",
        |study| {
            study.tuned.predictions = study.base.predictions.clone();
        },
    ),
    (
        "notes are cut",
        "notes of the training were shortened",
        |study| {
            study.record.cut_rows = study.record.rows / 2;
        },
    ),
    (
        "asked notes are cut",
        "notes of `all` were shortened",
        |study| {
            study.tuned.cut_rows = 40;
        },
    ),
    (
        "validation rows are the test",
        "measures on validation rows",
        |study| {
            study.plan.evaluates[0].split = Part::Val;
            let rows = study.set.side(Part::Val, None);
            study.base = answers(&study.set, &rows, |at| at % 10 == 0);
            study.tuned = answers(&study.set, &rows, |at| at % 10 > 1);
        },
    ),
    (
        "a crashed training is evaluated",
        "did not end well",
        |study| {
            study.record.outcome.ending = Ending::Interrupted;
        },
    ),
    ("the loss is lost", "was no number", |study| {
        study.curve[7].loss = None;
        study.curve[7].val_loss = None;
    }),
    (
        "fine-tuning made it worse",
        "below its own zero-shot",
        |study| {
            std::mem::swap(&mut study.base, &mut study.tuned);
        },
    ),
    (
        "answers of another run are reused",
        "are not its own",
        |study| {
            study.tuned.predictions.rotate_left(1);
        },
    ),
    (
        "a pattern breaks gold codes",
        "are not valid for a claim",
        |study| {
            for row in study.set.all.rows.iter_mut().step_by(16) {
                row.code.truncate(4);
            }
        },
    ),
    ("too few rows", "is small", |study| {
        study.plan.evaluates[0].limit = Some(12);
        study.base.predictions.truncate(12);
        study.tuned.predictions.truncate(12);
        study.tuned.predictions[2] = study.base.predictions[2].clone();
        for at in 5..12 {
            study.tuned.predictions[at].answer = study.base.predictions[at].answer.clone();
        }
    }),
];

#[test]
fn every_fault_of_the_original_study_is_named() {
    for (what, title, disturb) in FAULTS {
        let found = findings(disturb);
        let named = found.iter().find(|finding| finding.title.contains(title));
        let titles: Vec<&str> = found.iter().map(|f| f.title.as_str()).collect();
        let finding = named.unwrap_or_else(|| panic!("{what}: only {titles:?}"));
        assert!(
            finding.remedy.len() > 20 && finding.detail.len() > 10,
            "{what}: {finding:?}"
        );
    }
}
