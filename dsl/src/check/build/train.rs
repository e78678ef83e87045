//! `train` blocks: what cannot be trained in 4 bit, and parts larger than the whole.

use super::super::Checker;
use super::super::record::{Checked, Record, Val, as_enum};
use super::Building;
use crate::diagnostic::{Code, Diagnostic};
use crate::plan::{AdamW, Adapter, EarlyStop, Linear, Lora, Plan, Precision, Schedule, Train};
use crate::table::Kind;

impl Checker<'_> {
    pub(super) fn train(&mut self, plan: &mut Plan, block: &Building) -> Option<()> {
        let Building { name, record, .. } = block;
        let (_, optimizer) = record.call("optimizer")?;
        let (schedule, shape) = record.call("schedule")?;
        let train = Train {
            name: name.to_string(),
            model: record.text("model")?.to_string(),
            task: self.block_or_only(block, "task", Kind::Task)?,
            adapter: adapter(record)?,
            optimizer: AdamW {
                lr: optimizer.number("lr")?,
                weight_decay: optimizer.number("weight_decay")?,
                beta1: optimizer.number("beta1")?,
                beta2: optimizer.number("beta2")?,
                eps: optimizer.number("eps")?,
            },
            schedule: Schedule {
                kind: as_enum(schedule)?,
                warmup: shape.int("warmup")?,
            },
            epochs: record.int("epochs")?,
            max_steps: record.int("max_steps"),
            batch: record.int("batch")?,
            eval_batch: record.int("eval_batch")?,
            micro_batch: record.int("micro_batch"),
            clip: record.number("clip"),
            log_every: record.int("log_every")?,
            eval_every: record.int("eval_every")?,
            save_every: record.int("save_every")?,
            keep: record.int("keep")?,
            stop: match record.call("stop") {
                Some((_, early)) => Some(EarlyStop {
                    patience: early.int("patience")?,
                    min_delta: early.number("min_delta")?,
                }),
                None => None,
            },
            shuffle: record.bool("shuffle")?,
            seed: record.int("seed").unwrap_or(plan.recipe.seed),
        };
        self.check_train(plan, &train, record)?;
        plan.trains.push(train);
        Some(())
    }

    fn check_train(&mut self, plan: &Plan, train: &Train, record: &Record) -> Option<()> {
        let model = plan.models.iter().find(|model| model.name == train.model);
        if train.adapter == Adapter::Full
            && model.is_some_and(|model| model.precision == Precision::Nf4)
        {
            let message = format!(
                "`adapter = full` cannot train `{}`, whose weights are 4-bit",
                train.model
            );
            let conflict = Diagnostic::new(Code::Conflict, record.get("adapter")?.span, message);
            let help = format!(
                "use `adapter = lora(...)`, or `precision = bf16` in `model {}`",
                train.model
            );
            self.sink.push(
                conflict
                    .also(record.get("model")?.span, "a model in nf4")
                    .help(help),
            );
        }
        if train.micro_batch.is_some_and(|micro| micro > train.batch) {
            let at = record.get("micro_batch")?.span;
            let message = format!(
                "`micro_batch` is larger than `batch`, which is {}",
                train.batch
            );
            self.sink.push(
                Diagnostic::new(Code::Conflict, at, message)
                    .label("a part cannot exceed the whole"),
            );
        }
        Some(())
    }
}

fn adapter(record: &Record) -> Option<Adapter> {
    let Some((_, lora)) = record.call("adapter") else {
        return Some(Adapter::Full);
    };
    let mut targets = match lora.list("targets") {
        None => Linear::ALL.to_vec(),
        Some(items) => {
            let linear = |item: &Checked| match item.value {
                Val::Word(word) => as_enum(word),
                _ => None,
            };
            items.iter().map(linear).collect::<Option<Vec<Linear>>>()?
        }
    };
    targets.sort();
    Some(Adapter::Lora(Lora {
        rank: lora.int("rank")?,
        alpha: lora.number("alpha")?,
        dropout: lora.number("dropout")?,
        targets,
        init: lora.path("init"),
    }))
}
