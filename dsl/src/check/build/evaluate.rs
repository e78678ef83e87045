//! `evaluate` and `compare` blocks: sweeps expanded, and a baseline that is among the systems.

use super::super::Checker;
use super::super::record::Val;
use super::super::wording::in_scope;
use super::Building;
use crate::diagnostic::{Code, Diagnostic};
use crate::plan::{Compare, Decode, Evaluate, Plan};
use crate::table::Kind;

impl Checker<'_> {
    pub(super) fn evaluate(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let (call, decode) = record.call("decode")?;
        let mut models = Vec::new();
        for item in record.list("models")? {
            let Val::Block(system) = &item.value else {
                return None;
            };
            for run in self
                .scope
                .runs
                .get(system)
                .map_or(std::slice::from_ref(system), Vec::as_slice)
            {
                if models.contains(run) {
                    let message = format!("`models` lists `{run}` twice");
                    self.sink
                        .push(Diagnostic::new(Code::Duplicate, item.span, message));
                } else {
                    models.push(run.clone());
                }
            }
        }
        let sample = call == "sample";
        plan.evaluates.push(Evaluate {
            name: name.to_string(),
            models,
            task: self.block_or_only(block, "task", Kind::Task)?,
            split: record.word("split")?,
            decode: Decode {
                sample,
                max_new: decode.int("max_new")?,
                temperature: if sample {
                    decode.number("temperature")?
                } else {
                    1.0
                },
                top_p: if sample { decode.number("top_p")? } else { 1.0 },
                top_k: if sample { decode.int("top_k")? } else { 0 },
                repetition_penalty: decode.number("repetition_penalty")?,
                seed: decode.int("seed").unwrap_or(plan.recipe.seed),
            },
            batch: record.int("batch")?,
            limit: record.int("limit"),
            cache: record.bool("cache")?,
        });
        Some(())
    }

    pub(super) fn compare(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let of = record.text("of")?.to_string();
        let baseline = record.text("baseline").map(str::to_string);
        let evaluate = plan.evaluates.iter().find(|evaluate| evaluate.name == of);
        if let (Some(baseline), Some(Evaluate { models, .. })) = (&baseline, evaluate)
            && !models.contains(baseline)
        {
            let message = format!(
                "the baseline `{baseline}` is not one of the systems that `{of}` evaluates"
            );
            let at = record.get("baseline")?.span;
            let diagnostic = Diagnostic::new(Code::NotEvaluated, at, message)
                .help(format!("systems of `{of}`: {}", in_scope(models)));
            self.sink.push(match self.scope.runs.get(baseline) {
                Some(_) => diagnostic.label("a sweep: name one of its runs in quotes"),
                None => diagnostic,
            });
        }
        plan.compares.push(Compare {
            name: name.to_string(),
            of,
            baseline,
        });
        Some(())
    }
}
