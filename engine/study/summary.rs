//! From answers to the report: baselines, measures, comparisons, and what the method section needs.
//!
//! Holds the gathering. It refuses to render and to judge by itself: reading answers, measuring and comparing are `evaluate`'s,
//! findings and sentences are `report`'s. Invariant: all systems of an evaluation are judged on the same rows.

use super::StudyError;
use super::predict::Answers;
use super::resolve::{Resolved, System};
use super::rows::{DataSet, DataSets};
use super::store::Store;
use super::train::TrainRecord;
use crate::data::icd10::{CodeStatus, CodeTree};
use crate::data::leaks;
use crate::data::titles::TitleLookup;
use crate::data::whole_file::write_whole;
use crate::evaluate::answer;
use crate::evaluate::baselines;
use crate::evaluate::confusion::Confusion;
use crate::evaluate::metrics::{Judged, judge, measure};
use crate::evaluate::prediction::{Finish, Prediction};
use crate::evaluate::resample::{RESAMPLES, Resampler};
use crate::evaluate::statistics::{Graded, Pair, compare};
use crate::machine::{self, Machine};
use crate::report::document::{
    self, CurvePoint, DataSummary, Ending, Hash, Leaks, Report, Role, SCHEMA, Training,
};
use crate::report::examples::{ExampleRow, ExampleSystem, choose};
use crate::report::{html, svg};
use crate::train::metrics;
use crate::train::session;
use medft_dsl::plan::{Data, Evaluate, Level, Model, Part, Plan, Task, Train, Weights};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rows shown with every system's answer.
const EXAMPLES: usize = 12;
/// Name of the rule that always gives the most frequent training label.
const MAJORITY: &str = "majority code";
/// Name of the rule that looks official titles up in the text.
const LOOKUP: &str = "title look-up";

/// An evaluate block and its systems' answers, in the order of the report.
pub struct Evaluation<'a> {
    /// The block.
    pub block: &'a Evaluate,
    /// Systems with their answers.
    pub answers: Vec<(System<'a>, Answers)>,
}

/// Everything that a report is made of.
pub struct Material<'a> {
    /// Files and keys.
    pub resolved: &'a Resolved<'a>,
    /// The recipe's text.
    pub text: &'a str,
    /// Train blocks with their records and folders.
    pub trainings: &'a [(&'a Train, TrainRecord, PathBuf)],
    /// Evaluate blocks.
    pub evaluations: &'a [Evaluation<'a>],
    /// The GPU that computes, if one does.
    pub gpu: Option<String>,
}

/// Gathers the report of a run.
///
/// # Errors
/// Data or metrics that cannot be read.
pub fn report(
    material: &Material,
    store: &mut Store,
    sets: &mut DataSets,
) -> Result<Report, StudyError> {
    let Material {
        resolved,
        text,
        trainings,
        evaluations,
        gpu,
    } = material;
    let plan = resolved.plan;
    let tree = CodeTree::shipped();
    let machine = Machine::inspect();
    let mut report = Report {
        schema: SCHEMA,
        recipe: plan.recipe.name.clone(),
        recipe_text: text.to_string(),
        question: question(text),
        created: machine::utc_now(),
        engine: machine.engine,
        machine: document::Machine {
            cpu: machine.cpu.unwrap_or_else(|| "unknown processor".into()),
            cores: machine.cores as u64,
            memory: machine.memory.unwrap_or(0),
            system: machine.system,
            gpu: gpu.clone(),
        },
        findings: Vec::new(),
        verdicts: Vec::new(),
        data: Vec::new(),
        trainings: Vec::new(),
        evaluations: Vec::new(),
        methods: Vec::new(),
        hashes: vec![Hash {
            what: "recipe".into(),
            hash: blake3::hash(text.as_bytes()).to_hex().to_string(),
        }],
    };
    let mut models: BTreeSet<&str> = BTreeSet::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for task in used_tasks(plan, resolved)? {
        let data = resolved.data(task)?;
        if seen.insert(&data.name) {
            let set = sets.get(resolved, store, data)?;
            report.data.push(data_summary(data, &set, tree));
            let name = &data.name;
            report.hashes.push(Hash {
                what: format!("rows of `{name}`"),
                hash: set.all.hash.clone(),
            });
            report.hashes.push(Hash {
                what: format!("split of `{name}`"),
                hash: set.split.hash.clone(),
            });
        }
    }
    for (train, record, folder) in *trainings {
        report.trainings.push(training(train, record, folder)?);
        let result = session::result_dir(train, folder);
        for file in ["adapter_model.safetensors", "model.safetensors"] {
            let path = result.join(file);
            if path.is_file() {
                let hash = store.fingerprint(&path)?;
                report.hashes.push(Hash {
                    what: format!("trained weights of `{}`", train.name),
                    hash,
                });
            }
        }
    }
    for evaluation in *evaluations {
        for (system, _) in &evaluation.answers {
            if models.insert(&system.model.name) {
                let hash = resolved.model_print(system.model).to_string();
                report.hashes.push(Hash {
                    what: format!("files of model `{}`", system.model.name),
                    hash,
                });
            }
        }
        let task = resolved.task(&evaluation.block.task)?;
        let set = sets.get(resolved, store, resolved.data(task)?)?;
        report
            .evaluations
            .push(Judge::new(material, evaluation, task, &set).evaluation());
    }
    report.conclude(plan);
    Ok(report)
}

/// Writes `report.json`, `report.html` and `plots/*.svg` into the run's folder.
///
/// # Errors
/// Whatever the disk says.
pub fn write(report: &Report, dir: &Path) -> Result<(), StudyError> {
    for figure in svg::figures(report) {
        write_whole(
            &dir.join("plots").join(figure.file_name()),
            figure.standalone().as_bytes(),
        )?;
    }
    write_whole(&dir.join("report.html"), html::page(report)?.as_bytes())?;
    write_whole(&dir.join("report.json"), report.to_json()?.as_bytes())?;
    Ok(())
}

fn used_tasks<'a>(plan: &'a Plan, resolved: &Resolved<'a>) -> Result<Vec<&'a Task>, StudyError> {
    let names = plan
        .trains
        .iter()
        .map(|t| &t.task)
        .chain(plan.evaluates.iter().map(|e| &e.task));
    names.map(|name| resolved.task(name)).collect()
}

/// The question in the recipe's head: what stands behind `# Question:`, else its first comment that asks one.
fn question(text: &str) -> Option<String> {
    let comments: Vec<&str> = text
        .lines()
        .map_while(|l| l.trim().strip_prefix('#'))
        .collect();
    let Some(first) = comments
        .iter()
        .position(|l| l.trim_start().starts_with("Question:"))
    else {
        return comments
            .iter()
            .map(|l| l.trim())
            .find(|l| l.ends_with('?'))
            .map(str::to_string);
    };
    let mut words = comments[first]
        .trim_start()
        .trim_start_matches("Question:")
        .trim()
        .to_string();
    // A continued line is indented further than the next entry.
    for line in comments[first + 1..]
        .iter()
        .take_while(|l| l.starts_with("   "))
    {
        words = format!("{words} {}", line.trim());
    }
    Some(words)
}

fn data_summary(data: &Data, set: &DataSet, tree: &CodeTree) -> DataSummary {
    let side = |part| set.split.rows_of(part).len() as u64;
    let labels = |level| {
        let all: BTreeSet<&str> = (0..set.all.rows.len())
            .map(|row| set.label(row, level))
            .collect();
        (level, all.len() as u64)
    };
    let billable = |code: &str| matches!(tree.status(code), CodeStatus::Billable);
    let audit = leaks::audit(&set.all.rows, tree);
    DataSummary {
        name: data.name.clone(),
        rows: set.all.rows.len() as u64,
        dropped: set.all.empty_text + set.all.empty_code,
        train: side(Part::Train),
        val: side(Part::Val),
        test: side(Part::Test),
        clusters: set.split.clusters.iter().collect::<BTreeSet<_>>().len() as u64,
        labels: [Level::Code, Level::Category, Level::Block, Level::Chapter]
            .map(labels)
            .to_vec(),
        not_billable: set
            .all
            .rows
            .iter()
            .filter(|row| !billable(&row.code))
            .count() as u64,
        code_table: tree.release().to_string(),
        leaks: Leaks {
            rows: audit.rows,
            gold_code: audit.gold_code,
            any_code: audit.any_code,
            gold_title: audit.gold_title,
            title_words: audit.title_words,
            lookup: audit.lookup,
        },
    }
}

fn training(train: &Train, record: &TrainRecord, folder: &Path) -> Result<Training, StudyError> {
    let outcome = &record.outcome;
    let points = metrics::read(&folder.join("metrics.jsonl"))?;
    let point = |m: metrics::Metric| CurvePoint {
        step: m.step,
        loss: m.loss,
        val_loss: m.val_loss,
        lr: m.lr,
    };
    Ok(Training {
        name: train.name.clone(),
        base: train.model.clone(),
        rows: record.rows as u64,
        truncated: record.cut_rows as u64,
        trained_values: outcome.trained_values as u64,
        steps: outcome.steps,
        tokens: outcome.tokens,
        seconds: outcome.seconds,
        peak_memory: record.peak_memory,
        curve: points.into_iter().map(point).collect(),
        best_step: outcome.best.map(|b| b.step),
        ending: match outcome.ending {
            session::Ending::Completed => Ending::Completed,
            session::Ending::EarlyStop { validations } => Ending::EarlyStop { validations },
            session::Ending::Interrupted => Ending::Interrupted,
        },
    })
}

/// One evaluation on its way into the report.
struct Judge<'a> {
    trainings: &'a [(&'a Train, TrainRecord, PathBuf)],
    evaluation: &'a Evaluation<'a>,
    task: &'a Task,
    set: &'a DataSet,
    plan: &'a Plan,
    tree: &'static CodeTree,
    /// Places of the rows in the data set.
    rows: Vec<usize>,
    resampler: Resampler,
}

/// A rule's or model's answers, judged.
struct Entry {
    name: String,
    predictions: Vec<Prediction>,
    judged: Vec<Judged>,
    system: document::System,
}

impl<'a> Judge<'a> {
    fn new(
        material: &'a Material,
        evaluation: &'a Evaluation<'a>,
        task: &'a Task,
        set: &'a DataSet,
    ) -> Self {
        let plan = material.resolved.plan;
        let rows = set.side(evaluation.block.split, evaluation.block.limit);
        let clusters: Vec<u32> = rows.iter().map(|row| set.split.clusters[*row]).collect();
        let resampler = Resampler::new(&clusters, plan.recipe.seed, RESAMPLES);
        Judge {
            trainings: material.trainings,
            evaluation,
            task,
            set,
            plan,
            tree: CodeTree::shipped(),
            rows,
            resampler,
        }
    }

    fn evaluation(&self) -> document::Evaluation {
        let block = self.evaluation.block;
        let mut entries: Vec<Entry> = self
            .evaluation
            .answers
            .iter()
            .map(|(s, a)| self.model(s, a))
            .collect();
        entries.extend(self.rules());
        let pairs = self.pairs(&entries);
        let text = |row: &usize| &self.set.all.rows[*row];
        let rows: Vec<ExampleRow> = self
            .rows
            .iter()
            .map(|row| ExampleRow {
                id: &text(row).id,
                text: &text(row).text,
                title: &text(row).title,
            })
            .collect();
        let systems: Vec<ExampleSystem> = entries
            .iter()
            .map(|e| ExampleSystem {
                name: &e.name,
                predictions: &e.predictions,
                judged: &e.judged,
            })
            .collect();
        document::Evaluation {
            name: block.name.clone(),
            data: self.task.data.clone(),
            part: block.split,
            level: self.task.level,
            rows: self.rows.len() as u64,
            pairs,
            examples: choose(&rows, &systems, self.task.level, EXAMPLES),
            systems: entries.into_iter().map(|e| e.system).collect(),
        }
    }

    /// Reads the answers again (the reader may have changed since they were stored) and judges them.
    fn judged(&self, predictions: &[Prediction]) -> Vec<Judged> {
        let level = self.task.level;
        predictions
            .iter()
            .zip(&self.rows)
            .map(|(p, row)| {
                let outcome = answer::read(&p.answer, level, self.tree);
                judge(self.tree, &self.set.all.rows[*row].code, &outcome, level)
            })
            .collect()
    }

    fn entry(&self, name: &str, role: Role, predictions: Vec<Prediction>) -> Entry {
        let judged = self.judged(&predictions);
        let system = document::System {
            name: name.to_string(),
            role,
            model: String::new(),
            base: None,
            parameters: None,
            precision: None,
            trained_tokens: None,
            metrics: measure(&judged, self.task.level, &self.resampler),
            cut: predictions
                .iter()
                .filter(|p| p.finish == Finish::Length)
                .count() as u64,
            truncated: 0,
            same_as_base: None,
            seconds: 0.0,
            peak_memory: None,
            chapters: Confusion::of(&judged, Level::Chapter),
        };
        Entry {
            name: name.to_string(),
            predictions,
            judged,
            system,
        }
    }

    fn model(&self, system: &System, answers: &Answers) -> Entry {
        let role = if system.train.is_some() {
            Role::Tuned
        } else {
            Role::ZeroShot
        };
        let mut entry = self.entry(system.name, role, answers.predictions.clone());
        let base = system.train.map(|_| system.model.name.clone());
        let own = base
            .as_ref()
            .and_then(|b| self.evaluation.answers.iter().find(|(s, _)| s.name == *b));
        let same = |(_, base): &(System, Answers)| {
            let pairs = base.predictions.iter().zip(&answers.predictions);
            pairs.filter(|(a, b)| a.answer == b.answer).count() as u64
        };
        // Rows from the log of an earlier run cost nothing now: the time is that of as many decoded rows.
        let share = self.rows.len() as f64 / answers.decoded.max(1) as f64;
        entry.system = document::System {
            model: origin(system.model),
            same_as_base: own.map(same),
            base,
            parameters: Some(answers.parameters),
            precision: Some(system.model.precision),
            trained_tokens: system.train.and_then(|t| self.trained_tokens(t)),
            truncated: answers.cut_rows as u64,
            seconds: answers.seconds * share,
            peak_memory: answers.peak_memory,
            ..entry.system
        };
        entry
    }

    fn trained_tokens(&self, train: &Train) -> Option<u64> {
        let found = self.trainings.iter().find(|(t, ..)| t.name == train.name);
        found.map(|(_, record, _)| record.outcome.tokens)
    }

    /// The baselines that cost nothing.
    fn rules(&self) -> Vec<Entry> {
        let level = self.task.level;
        let train = self.set.split.rows_of(Part::Train);
        let majority = baselines::majority(train.iter().map(|row| self.set.label(*row, level)));
        let lookup = TitleLookup::billable(self.tree);
        let texts = || {
            let row = |row: &usize| &self.set.all.rows[*row];
            self.rows
                .iter()
                .map(move |r| (row(r).id.as_str(), row(r).text.as_str()))
        };
        let always = |_: &str| majority.map(str::to_string);
        let look = |text: &str| {
            lookup
                .predict(text)
                .map(|id| self.tree.code(id).to_string())
        };
        vec![
            self.entry(
                MAJORITY,
                Role::Baseline,
                baselines::predict(MAJORITY, texts(), level, self.tree, always),
            ),
            self.entry(
                LOOKUP,
                Role::Baseline,
                baselines::predict(LOOKUP, texts(), level, self.tree, look),
            ),
        ]
    }

    /// The comparisons that the recipe asks for, and each tuned system against its own base and the rules.
    fn pairs(&self, entries: &[Entry]) -> Vec<Pair> {
        let mut wanted: Vec<(&str, &str)> = Vec::new();
        let models = || entries.iter().filter(|e| e.system.role != Role::Baseline);
        for block in self
            .plan
            .compares
            .iter()
            .filter(|c| c.of == self.evaluation.block.name)
        {
            let first = models().next().map(|e| e.name.as_str());
            if let Some(baseline) = block.baseline.as_deref().or(first) {
                wanted.extend(models().map(|e| (e.name.as_str(), baseline)));
            }
        }
        for entry in entries.iter().filter(|e| e.system.role == Role::Tuned) {
            let own = entry.system.base.as_deref();
            wanted.extend(
                own.into_iter()
                    .chain([MAJORITY, LOOKUP])
                    .map(|b| (entry.name.as_str(), b)),
            );
        }
        let mut seen = BTreeSet::new();
        wanted.retain(|(system, baseline)| system != baseline && seen.insert((*system, *baseline)));
        let level = self.task.level;
        let right: Vec<(&str, Vec<bool>)> = entries
            .iter()
            .map(|e| {
                (
                    e.name.as_str(),
                    e.judged.iter().map(|j| j.right(level)).collect(),
                )
            })
            .collect();
        let graded = |name: &str| {
            let found = right.iter().find(|(n, _)| *n == name)?;
            Some(Graded {
                name: found.0,
                right: &found.1,
            })
        };
        let pairs: Vec<(Graded, Graded)> = wanted
            .iter()
            .filter_map(|(system, baseline)| Some((graded(system)?, graded(baseline)?)))
            .collect();
        compare(&pairs, level, &self.resampler)
    }
}

/// Where a model comes from, in words.
fn origin(model: &Model) -> String {
    match &model.weights {
        Weights::Hf { repo, .. } => repo.clone(),
        Weights::Dir { path } => path
            .file_name()
            .map_or(String::new(), |n| n.to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::question;

    #[test]
    fn the_question_is_read_over_its_lines() {
        let text =
            "# Question:  which is\n#            better?\n# Run:       it\nrecipe \"x\" {}\n";
        assert_eq!(question(text).as_deref(), Some("which is better?"));
        assert_eq!(
            question("# About this.\n# Which codes better: a or b?\n").as_deref(),
            Some("Which codes better: a or b?")
        );
        assert_eq!(question("recipe \"x\" {}\n# Why?\n"), None);
    }
}
