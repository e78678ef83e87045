//! The answers of an evaluation, judged: every system and every rule on the same rows.

use super::pairs::pairs;
use super::table::{Table, table};
use super::{Evaluation, Material};
use crate::data::icd10::CodeTree;
use crate::data::titles::TitleLookup;
use crate::evaluate::answer;
use crate::evaluate::baselines;
use crate::evaluate::confusion::Confusion;
use crate::evaluate::groups::groups;
use crate::evaluate::metrics::{Judged, Measured, judge, measure};
use crate::evaluate::prediction::{Finish, Prediction};
use crate::evaluate::resample::{RESAMPLES, Resampled, Resampler};
use crate::report::cost::{cost, latency};
use crate::report::document::{self, Role};
use crate::report::examples::{ExampleRow, ExampleSystem, choose};
use crate::study::predict::Answers;
use crate::study::resolve::System;
use crate::study::rows::DataSet;
use crate::study::train::TrainRecord;
use medft_dsl::plan::{Level, Model, Part, Plan, Task, Train, Weights};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Rows shown with every system's answer.
const EXAMPLES: usize = 12;
/// Name of the rule that always gives the most frequent training label.
pub(super) const MAJORITY: &str = "majority code";
/// Name of the rule that looks official titles up in the text.
pub(super) const LOOKUP: &str = "title look-up";

/// One evaluation on its way into the report.
pub(super) struct Judge<'a> {
    trainings: &'a [(&'a Train, TrainRecord, PathBuf)],
    evaluation: &'a Evaluation<'a>,
    task: &'a Task,
    set: &'a DataSet,
    plan: &'a Plan,
    tree: &'static CodeTree,
    /// Places of the rows in the data set.
    rows: Vec<usize>,
    /// Their groups of near-duplicates.
    clusters: Vec<u32>,
    /// Training rows with each row's gold label.
    trained: Vec<u64>,
    resampler: Resampler,
}

/// A rule's or model's answers, judged.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) predictions: Vec<Prediction>,
    pub(super) judged: Vec<Judged>,
    pub(super) accuracy: Resampled,
    pub(super) system: document::System,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        material: &'a Material,
        evaluation: &'a Evaluation<'a>,
        task: &'a Task,
        set: &'a DataSet,
    ) -> Self {
        let plan = material.resolved.plan;
        let rows = set.side(evaluation.block.split, evaluation.block.limit);
        let clusters: Vec<u32> = rows.iter().map(|row| set.split.clusters[*row]).collect();
        let resampler = Resampler::new(&clusters, plan.recipe.seed, RESAMPLES);
        let mut frequency: BTreeMap<&str, u64> = BTreeMap::new();
        for row in set.split.rows_of(Part::Train) {
            *frequency.entry(set.label(row, task.level)).or_default() += 1;
        }
        let trained = |row: &usize| frequency.get(set.label(*row, task.level)).copied();
        let trained = rows.iter().map(|row| trained(row).unwrap_or(0)).collect();
        Judge {
            trainings: material.trainings,
            evaluation,
            task,
            set,
            plan,
            tree: CodeTree::shipped(),
            rows,
            clusters,
            trained,
            resampler,
        }
    }

    /// What the report says of the evaluation, and all its answers.
    pub(super) fn evaluation(&self) -> (document::Evaluation, Table) {
        let block = self.evaluation.block;
        let mut entries: Vec<Entry> = self
            .evaluation
            .answers
            .iter()
            .map(|(s, a)| self.model(s, a))
            .collect();
        entries.extend(self.rules());
        let pairs = pairs(
            self.plan,
            &block.name,
            self.task.level,
            &entries,
            &self.clusters,
        );
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
        let table = table(&block.name, self.task.level, &entries);
        let evaluation = document::Evaluation {
            name: block.name.clone(),
            data: self.task.data.clone(),
            part: block.split,
            level: self.task.level,
            rows: self.rows.len() as u64,
            pairs,
            examples: choose(&rows, &systems, self.task.level, EXAMPLES),
            systems: entries.into_iter().map(|e| e.system).collect(),
        };
        (evaluation, table)
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
        let Measured { metrics, accuracy } = measure(&judged, self.task.level, &self.resampler);
        let system = document::System {
            name: name.to_string(),
            role,
            model: String::new(),
            base: None,
            parameters: None,
            precision: None,
            trained_tokens: None,
            metrics,
            groups: groups(&judged, self.task.level, &self.trained),
            cut: predictions
                .iter()
                .filter(|p| p.finish == Finish::Length)
                .count() as u64,
            truncated: 0,
            same_as_base: None,
            foreign: 0,
            latency: None,
            cost: None,
            seconds: 0.0,
            peak_memory: None,
            chapters: Confusion::of(&judged, Level::Chapter),
        };
        Entry {
            name: name.to_string(),
            predictions,
            judged,
            accuracy,
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
            foreign: self.foreign(&answers.predictions),
            base,
            parameters: Some(answers.parameters),
            precision: Some(system.model.precision),
            trained_tokens: system
                .train
                .and_then(|t| Some(self.training(t)?.outcome.tokens)),
            truncated: answers.cut_rows as u64,
            seconds: answers.seconds * share,
            latency: latency(answers.predictions.iter().map(|p| p.seconds)),
            cost: self.plan.recipe.cost.as_ref().and_then(|rates| {
                let training = system.train.and_then(|t| self.training(t));
                let training = training.map(|record| record.outcome.seconds);
                cost(
                    rates,
                    answers.seconds * share,
                    self.rows.len() as u64,
                    training,
                )
            }),
            peak_memory: answers.peak_memory,
            ..entry.system
        };
        entry
    }

    /// Rows whose answer is missing or was stored for another row.
    fn foreign(&self, predictions: &[Prediction]) -> u64 {
        let own = predictions.iter().zip(&self.rows);
        let own = own.filter(|(p, row)| p.row == self.set.all.rows[**row].id);
        (self.rows.len() - own.count()) as u64
    }

    fn training(&self, train: &Train) -> Option<&TrainRecord> {
        let found = self.trainings.iter().find(|(t, ..)| t.name == train.name);
        found.map(|(_, record, _)| record)
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
