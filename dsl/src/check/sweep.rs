//! `sweep { }`: one train block for each combination of values.
//!
//! Holds the axes and their product. It refuses to check values: each run is checked like a block that
//! was written out. The last axis varies fastest, and every run has its own name.

use super::Checker;
use super::scope::{Declared, Found};
use super::setting::Target;
use crate::diagnostic::{Code, Diagnostic};
use crate::source::Span;
use crate::syntax::ast::{Block, Entry, Field, Path, Value, ValueKind};
use crate::table::Kind;
use std::collections::{HashMap, HashSet};

/// All sweeps of a recipe together; more runs are surely a mistake.
const MOST_RUNS: usize = 256;

struct Axis {
    path: Path,
    values: Vec<Value>,
}

impl Checker<'_> {
    /// The runs of a block: itself, or one for each combination of its sweep, with their names.
    pub(super) fn runs(&mut self, declared: &Declared) -> Vec<(String, Block)> {
        let single = |block: Block| vec![(declared.name.clone(), block)];
        let mut base = declared.block.clone();
        if declared.kind != Kind::Train {
            return single(base);
        }
        let (sweeps, entries) = base.entries.into_iter().partition(is_sweep);
        base.entries = entries;
        let before = self.sink.errors();
        let axes = self.axes(&mut base, sweeps);
        if self.sink.errors() > before {
            base.damaged = true;
            return single(base);
        }
        let mut runs = vec![(String::new(), base)];
        for axis in &axes {
            let mut next = Vec::with_capacity(runs.len() * axis.values.len());
            for (name, block) in &runs {
                for value in &axis.values {
                    next.push(self.with_setting(name, block, &axis.path, value));
                }
            }
            runs = next;
        }
        self.report_equal_names(&runs, declared.span);
        let named = |(axes, block): (String, Block)| match axes.is_empty() {
            true => (declared.name.clone(), block),
            false => (format!("{}[{axes}]", declared.name), block),
        };
        runs.into_iter().map(named).collect()
    }

    /// A run with one more setting, in its name and in its block.
    fn with_setting(
        &mut self,
        name: &str,
        block: &Block,
        path: &Path,
        value: &Value,
    ) -> (String, Block) {
        let mut block = block.clone();
        if let Err(problem) = self.set(Kind::Train, &mut block, path, value.clone()) {
            self.sink.push(*problem);
            block.damaged = true;
        }
        let comma = if name.is_empty() { "" } else { "," };
        let value = self.folder_name(value.span);
        (format!("{name}{comma}{}={value}", path.text()), block)
    }

    /// Checks that every axis names a place, once, and has values; and that there are not too many runs.
    fn axes(&mut self, base: &mut Block, sweeps: Vec<Entry>) -> Vec<Axis> {
        let (mut axes, mut first, mut runs) = (Vec::new(), HashMap::new(), 1_usize);
        let earlier_runs: usize = self.scope.runs.values().map(Vec::len).sum();
        for entry in sweeps {
            let Entry::Block(sweep) = entry else { continue };
            base.damaged |= sweep.damaged;
            for entry in sweep.entries {
                let Entry::Field(Field { path, value, .. }) = entry else {
                    let message = "a `sweep` holds lists of values and nothing else";
                    self.sink
                        .push(Diagnostic::new(Code::BadSweep, entry.span(), message));
                    continue;
                };
                let key = match self.target(Kind::Train, base, &path) {
                    Ok(target) => target.key(),
                    Err(problem) => {
                        self.sink.push(*problem);
                        continue;
                    }
                };
                if let Some(earlier) = first.insert(key, path.span()) {
                    let message = format!("`{}` is swept twice", path.text());
                    let again =
                        Diagnostic::new(Code::Duplicate, path.span(), message).label("here again");
                    self.sink.push(again.also(earlier, "first given here"));
                    continue;
                }
                let Some(values) = self.values_of(&path, &value) else {
                    continue;
                };
                runs = runs.saturating_mul(values.len());
                if runs.saturating_add(earlier_runs) > MOST_RUNS {
                    let message = format!("the sweeps of a recipe have at most {MOST_RUNS} runs");
                    self.sink
                        .push(Diagnostic::new(Code::BadSweep, value.span, message));
                }
                axes.push(Axis { path, values });
            }
        }
        axes
    }

    fn values_of(&mut self, path: &Path, value: &Value) -> Option<Vec<Value>> {
        let list = match value.name().map(|name| self.scope.find(name)) {
            Some(Found::Let(found)) => Value::clone(found),
            Some(Found::Broken) => return None,
            _ => value.clone(),
        };
        match list.kind {
            ValueKind::List(values) if !values.is_empty() => Some(values),
            _ => {
                let message = format!(
                    "the values of `{}` stand in a list with at least one item",
                    path.text()
                );
                let help = format!("write `{} = [..., ...]`", path.text());
                self.sink
                    .push(Diagnostic::new(Code::BadSweep, value.span, message).help(help));
                None
            }
        }
    }

    /// A value as part of a folder's name: its text without blanks and separators.
    fn folder_name(&self, span: Span) -> String {
        let fits = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '%' | '=' | '+' | '(' | ')')
        };
        let text = self
            .sources
            .slice(span)
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '"');
        text.map(|c| if fits(c) { c } else { '_' }).collect()
    }

    fn report_equal_names(&mut self, runs: &[(String, Block)], at: Span) {
        let mut seen = HashSet::new();
        if let Some((name, _)) = runs.iter().find(|(name, _)| !seen.insert(name)) {
            let message =
                format!("two runs of this sweep have the same settings or name: `{name}`");
            self.sink
                .push(Diagnostic::new(Code::Duplicate, at, message));
        }
    }

    /// Takes an axis out of the block's sweep, because a `--set` decides its value.
    pub(super) fn drop_axis(&mut self, kind: Kind, block: &mut Block, target: &Target) {
        let mut sweeps: Vec<Entry> = Vec::new();
        block.entries.retain(|entry| {
            let sweep = is_sweep(entry);
            if sweep {
                sweeps.push(entry.clone());
            }
            !sweep
        });
        for mut entry in sweeps {
            if let Entry::Block(sweep) = &mut entry {
                sweep.entries.retain(|axis| match axis {
                    Entry::Field(axis) => self
                        .target(kind, block, &axis.path)
                        .map_or(true, |t| t.key() != target.key()),
                    Entry::Block(_) => true,
                });
            }
            block.entries.push(entry);
        }
    }
}

fn is_sweep(entry: &Entry) -> bool {
    matches!(entry, Entry::Block(block) if block.kind.text == "sweep")
}
