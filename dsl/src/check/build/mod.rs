//! Checked records to plan types.
//!
//! Holds the mapping field by field, and the checks that need more than one field; a file for each
//! group of blocks. It refuses to check types and ranges, which the table has settled. A record that
//! lacks a field of its table is a fault of this room, and the first test finds it.

mod data;
mod evaluate;
mod train;

use super::Checker;
use super::record::Record;
use super::scope::Declared;
use super::wording::in_scope;
use crate::diagnostic::{Code, Diagnostic};
use crate::plan::{Model, Plan, Precision, Rates, Recipe, Weights};
use crate::source::Span;
use crate::table::Kind;
use std::path::Path;

/// A plan without blocks; a recipe without a `recipe` block is named after its file.
pub(super) fn empty(path: &Path) -> Plan {
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let name: String = stem
        .chars()
        .map(|c| if fits(c) { c } else { '_' })
        .take(80)
        .collect();
    let name = if name.is_empty() {
        "recipe".to_string()
    } else {
        name
    };
    let recipe = Recipe {
        name,
        seed: 42,
        cost: None,
    };
    let (data, tasks, models) = (Vec::new(), Vec::new(), Vec::new());
    Plan {
        recipe,
        data,
        tasks,
        models,
        trains: Vec::new(),
        evaluates: Vec::new(),
        compares: Vec::new(),
    }
}

/// A block on its way into the plan.
struct Building<'a> {
    name: &'a str,
    at: Span,
    record: &'a Record,
}

impl Checker<'_> {
    /// Adds a checked block to the plan under `name`.
    pub(super) fn add(
        &mut self,
        plan: &mut Plan,
        declared: &Declared,
        name: &str,
        record: &Record,
    ) {
        let block = Building {
            name,
            at: declared.span,
            record,
        };
        let built = match declared.kind {
            Kind::Recipe => recipe(plan, &block),
            Kind::Data => self.data(plan, &block),
            Kind::Task => self.task(plan, &block),
            Kind::Model => self.model(plan, &block),
            Kind::Train => self.train(plan, &block),
            Kind::Evaluate => self.evaluate(plan, &block),
            Kind::Compare => self.compare(plan, &block),
        };
        debug_assert!(
            built.is_some() || self.sink.errors() > 0,
            "table and plan disagree about {name}"
        );
    }

    fn model(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let (call, args) = record.call("weights")?;
        let weights = match call {
            "hf" => Weights::Hf {
                repo: args.text("repo")?.to_string(),
                revision: args.text("revision")?.to_string(),
            },
            _ => Weights::Dir {
                path: args.path("path")?,
            },
        };
        let precision: Precision = record.word("precision")?;
        if precision != Precision::Nf4 && record.given("double_quant") {
            let at = record.get("double_quant")?.span;
            let message = "`double_quant` has no effect unless `precision = nf4`";
            self.sink.push(Diagnostic::new(Code::NoEffect, at, message));
        }
        let double_quant = record.bool("double_quant")?;
        plan.models.push(Model {
            name: name.to_string(),
            weights,
            precision,
            double_quant,
        });
        Some(())
    }

    /// The block that a field names, or the only one of its kind.
    fn block_or_only(&mut self, block: &Building, field: &str, kind: Kind) -> Option<String> {
        if let Some(name) = block.record.text(field) {
            return Some(name.to_string());
        }
        let all = match self.scope.only(kind) {
            Ok(name) => return Some(name),
            Err(_) if self.scope.damaged => return None,
            Err(all) => all,
        };
        let message = match all.len() {
            0 => format!(
                "`{}` needs a `{field}` block, and there is none",
                block.name
            ),
            n => format!(
                "`{}` leaves `{field}` out, and there are {n} {field} blocks",
                block.name
            ),
        };
        let help = match all.is_empty() {
            true => {
                format!("write a `{field}` block; `medft-engine help-recipe {field}` shows one")
            }
            false => format!("add `{field} = ...`, one of {}", in_scope(&all)),
        };
        self.sink
            .push(Diagnostic::new(Code::Ambiguous, block.at, message).help(help));
        None
    }
}

fn recipe(plan: &mut Plan, block: &Building) -> Option<()> {
    if !block.name.is_empty() {
        plan.recipe.name = block.name.to_string();
    }
    plan.recipe.seed = block.record.int("seed")?;
    if let Some((_, rates)) = block.record.call("cost") {
        plan.recipe.cost = Some(Rates {
            hour: rates.number("hour")?,
            currency: rates.text("currency")?.to_owned(),
            watts: rates.number("watts")?,
            grid: rates.number("grid")?,
            notes: rates.int("notes")?,
        });
    }
    Some(())
}
