//! `data` and `task` blocks: shares that sum to 100%, prompts with their placeholders.

use super::super::Checker;
use super::super::prompt;
use super::super::record::{Checked, Record, Val};
use super::Building;
use crate::diagnostic::{Code, Diagnostic};
use crate::plan::{Data, Level, Plan, Source, Split, Task, TextView};
use crate::source::Span;
use crate::table::Kind;

impl Checker<'_> {
    pub(super) fn data(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let (_, shares) = record.call("split")?;
        let at = record.get("split")?.span;
        let split = Split {
            train: shares.number("train")?,
            val: shares.number("val")?,
            test: shares.number("test")?,
            by: shares.word("by")?,
            seed: shares.int("seed").unwrap_or(plan.recipe.seed),
        };
        self.check_shares(&split, shares, at);
        plan.data.push(Data {
            name: name.to_string(),
            source: source(record)?,
            text: view(record.get("text")?)?,
            redact: record.word("redact")?,
            code: column(record.get("code")?)?,
            split,
            limit: record.int("limit"),
        });
        Some(())
    }

    fn check_shares(&mut self, split: &Split, given: &Record, at: Span) {
        let sum = split.train + split.val + split.test;
        if (sum - 1.0).abs() < 1e-9 {
            return;
        }
        let percent = |x: f64| (x * 1e4).round() / 100.0;
        let share = |name: &str, x: f64| {
            let default = if given.given(name) {
                ""
            } else {
                " (the default)"
            };
            format!("{name} {}%{default}", percent(x))
        };
        let message = format!(
            "the shares of the split sum to {}% instead of 100%",
            percent(sum)
        );
        let parts = [
            share("train", split.train),
            share("val", split.val),
            share("test", split.test),
        ];
        self.sink
            .push(Diagnostic::new(Code::Shares, at, message).label(parts.join(", ")));
    }

    pub(super) fn task(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let level: Level = record.word("level")?;
        let system = match record.get("system").map(|s| (&s.value, s.span)) {
            None => Some(prompt::system(level)),
            Some((Val::Text(text), at)) => Some(self.placeholders(&prompt::SYSTEM, text, at)),
            Some(_) => None,
        };
        let user = match (record.text("user"), record.get("user")) {
            (Some(text), Some(at)) => self.placeholders(&prompt::USER, text, at.span),
            _ => prompt::user(level),
        };
        let answer = match record.given("answer") {
            true => self.placeholders(
                &prompt::ANSWER,
                record.text("answer")?,
                record.get("answer")?.span,
            ),
            false => record.text("answer")?.to_string(),
        };
        let data = self.block_or_only(block, "data", Kind::Data)?;
        let max_tokens = record.int("max_tokens")?;
        plan.tasks.push(Task {
            name: name.to_string(),
            data,
            system,
            user,
            answer,
            max_tokens,
            level,
        });
        Some(())
    }
}

fn source(record: &Record) -> Option<Source> {
    let (call, args) = record.call("source")?;
    Some(match call {
        "hf" => Source::Hf {
            repo: args.text("repo")?.to_string(),
            file: args.text("file")?.to_string(),
            revision: args.text("revision")?.to_string(),
        },
        "csv" => Source::Csv {
            path: args.path("path")?,
            delimiter: args.char("delimiter")?,
        },
        _ => Source::Jsonl {
            path: args.path("path")?,
        },
    })
}

fn column(value: &Checked) -> Option<String> {
    match &value.value {
        Val::Text(name) => Some(name.clone()),
        Val::Call(_, args) => args.text("name").map(str::to_string),
        _ => None,
    }
}

fn view(value: &Checked) -> Option<TextView> {
    match &value.value {
        Val::Call("sections", args) => {
            let name = |item: &Checked| match &item.value {
                Val::Text(name) => Some(name.clone()),
                _ => None,
            };
            let sections = args
                .list("sections")?
                .iter()
                .map(name)
                .collect::<Option<Vec<_>>>()?;
            Some(TextView::Sections {
                column: column(args.get("column")?)?,
                sections,
            })
        }
        _ => Some(TextView::Column {
            column: column(value)?,
        }),
    }
}
