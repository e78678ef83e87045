//! From answers to the report: baselines, measures, comparisons, and what the method section needs.
//!
//! Holds the gathering. It refuses to render and to judge by itself: reading answers, measuring and comparing are `evaluate`'s,
//! findings and sentences are `report`'s. Invariant: all systems of an evaluation are judged on the same rows.

mod data;
#[cfg(test)]
mod faults;
mod judge;
mod pairs;
mod question;
mod table;
mod training;

use super::StudyError;
use super::predict::Answers;
use super::resolve::{Resolved, System};
use super::rows::DataSets;
use super::store::Store;
use super::train::TrainRecord;
use crate::data::icd10::CodeTree;
use crate::data::whole_file::write_whole;
use crate::machine::{self, Machine};
use crate::report::document::{self, Hash, Report, SCHEMA};
use crate::report::{html, svg};
use crate::train::session;
use judge::Judge;
use medft_dsl::plan::{Evaluate, Plan, Task, Train};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
pub use table::Table;

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

/// Gathers the report of a run, and its answers as tables.
///
/// # Errors
/// Data or metrics that cannot be read.
pub fn report(
    material: &Material,
    store: &mut Store,
    sets: &mut DataSets,
) -> Result<(Report, Vec<Table>), StudyError> {
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
        question: question::question(text),
        created: machine::utc_now(),
        engine: machine.engine,
        machine: document::Machine {
            cpu: machine.cpu.unwrap_or_else(|| "unknown processor".into()),
            cores: machine.cores as u64,
            memory: machine.memory.unwrap_or(0),
            system: machine.system,
            gpu: gpu.clone(),
        },
        rates: plan.recipe.cost.clone(),
        findings: Vec::new(),
        verdicts: Vec::new(),
        data: Vec::new(),
        trainings: Vec::new(),
        evaluations: Vec::new(),
        methods: Vec::new(),
        limits: Vec::new(),
        hashes: vec![Hash {
            what: "recipe".into(),
            hash: blake3::hash(text.as_bytes()).to_hex().to_string(),
        }],
    };
    let mut tables = Vec::new();
    let mut models: BTreeSet<&str> = BTreeSet::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for task in used_tasks(plan, resolved)? {
        let data = resolved.data(task)?;
        if seen.insert(&data.name) {
            let set = sets.get(resolved, store, data)?;
            report.data.push(data::summary(data, &set, tree));
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
        report
            .trainings
            .push(training::summary(train, record, folder)?);
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
        let (evaluation, table) = Judge::new(material, evaluation, task, &set).evaluation();
        report.evaluations.push(evaluation);
        tables.push(table);
    }
    report.conclude(plan);
    Ok((report, tables))
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

/// Writes `predictions/EVALUATION.csv` into the run's folder.
///
/// # Errors
/// Whatever the disk says.
pub fn write_tables(tables: &[Table], dir: &Path) -> Result<(), StudyError> {
    for Table { evaluation, csv } in tables {
        let path = dir.join("predictions").join(format!("{evaluation}.csv"));
        write_whole(&path, csv)?;
    }
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
