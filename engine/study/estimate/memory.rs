//! How much memory a stage takes, part by part, from the buffers that it will make; and what to set where that is too much.

use super::lengths::Known;
use super::shape::Shape;
use crate::backend::facts::{Facts, Passes};
use crate::backend::{Backend, ROWS};
use crate::generate::PASS_TOKENS;
use crate::model::workspace::Workspace;
use crate::train::division::{largest as largest_pass, usable};
use medft_dsl::plan::{Evaluate, Part, Precision, Task, Train};
use serde::Serialize;
use std::fmt;

/// Bytes that a stage takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The base model.
    pub weights: u64,
    /// Trained values; in training with their gradients and AdamW's two moments.
    pub trained: u64,
    /// The buffers of the largest pass.
    pub activations: u64,
    /// What ops borrow, the logits of a batch and its cache of keys and values.
    pub workspace: u64,
    /// All of it.
    pub total: u64,
}

impl Memory {
    fn new(weights: u64, trained: u64, activations: u64, workspace: u64) -> Self {
        let parts = [weights, trained, activations, workspace];
        Memory {
            weights,
            trained,
            activations,
            workspace,
            total: parts.into_iter().fold(0, u64::saturating_add),
        }
    }
}

/// A stage that does not fit into the memory that is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortage {
    /// `train` or `predict`.
    pub stage: &'static str,
    /// The train block, or the system that answers.
    pub name: String,
    /// Bytes that it takes.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Where, "GPU 0".
    pub device: String,
    /// Settings under which it would fit, with what it would take then.
    pub remedies: Vec<Remedy>,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// As a recipe says it: "`micro_batch = 4`".
    pub set: String,
    /// Bytes that the stage takes then.
    pub needed: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let doing = match self.stage {
            "train" => "training",
            _ => "predicting with",
        };
        let Shortage {
            name,
            needed,
            free,
            device,
            ..
        } = self;
        write!(
            f,
            "{doing} `{name}` needs {} on {device} and {} are free; ",
            gib(*needed),
            gib(*free)
        )?;
        let remedies = self.remedies.iter();
        let remedies: Vec<String> = remedies
            .map(|r| format!("{} ({})", r.set, gib(r.needed)))
            .collect();
        match &remedies[..] {
            [] => write!(
                f,
                "no smaller batch makes it fit: use a smaller model, or a device with more memory"
            ),
            [one] => write!(f, "set {one} or use a smaller model"),
            some => write!(f, "set {}", some.join(" or ")),
        }
    }
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / 1024_f64.powi(3))
}

/// The buffers of a stage on one device.
pub(super) struct Planner<'a, B: Backend> {
    pub(super) shape: &'a Shape,
    /// Counts the buffers of a pass.
    pub(super) backend: &'a B,
    /// Everything else that depends on the device.
    pub(super) device: &'a dyn Facts,
    pub(super) rows: &'a Known,
    pub(super) task: &'a Task,
}

impl<B: Backend> Planner<'_, B> {
    /// A training as the recipe has it.
    pub(super) fn train(&self, train: &Train) -> Memory {
        self.train_as(train, train.micro_batch, self.shape.precision)
    }

    /// A system's answers to so many rows, as the recipe has it.
    pub(super) fn predict(&self, evaluate: &Evaluate, rows: u64) -> Memory {
        self.predict_as(evaluate, evaluate.batch.min(rows), self.shape.precision)
    }

    fn train_as(&self, train: &Train, micro_batch: Option<u64>, precision: Precision) -> Memory {
        let most = self.most_rows(train);
        match micro_batch.map(|rows| rows.min(most)) {
            Some(rows) => self.train_pass(self.tokens(rows), rows, precision),
            None => self.train_pass(self.auto_tokens(train, precision), most, precision),
        }
    }

    /// Tokens of the largest pass under `micro_batch = auto`, if as much is free when the training begins as is now.
    pub(super) fn auto_tokens(&self, train: &Train, precision: Precision) -> usize {
        let (room, rows) = (self.device.memory(), self.most_rows(train));
        let pass = |most: usize| self.tokens(rows).min(most).max(self.longest());
        let need = |most| self.train_pass(pass(most), rows, precision).total;
        pass(largest_pass(self.device.pass_tokens(), |most| {
            room.is_none_or(|room| need(most) <= usable(room.free))
        }))
    }

    /// With passes of so many tokens, of so many rows.
    fn train_pass(&self, tokens: usize, rows: u64, precision: Precision) -> Memory {
        let tokens = tokens.next_multiple_of(ROWS);
        let groups = self.shape.groups();
        let passes = Passes {
            training: true,
            tokens,
            targets: self.targets(rows).min(tokens),
            ..self.passes(&groups, precision)
        };
        Memory::new(
            self.shape.weights(self.device, precision),
            16 * self.shape.trained,
            self.activations(tokens, true),
            self.device.scratch_bytes(&passes),
        )
    }

    fn predict_as(&self, evaluate: &Evaluate, batch: u64, precision: Precision) -> Memory {
        let config = &self.shape.config;
        let slots = usize::try_from(batch).unwrap_or(MANY).clamp(1, MANY);
        let room = self.longest() + evaluate.decode.max_new.min(MANY as u64) as usize;
        let tokens = self.tokens(batch).min(PASS_TOKENS).max(self.longest());
        let groups = self.shape.groups();
        let passes = Passes {
            tokens: tokens.max(slots),
            targets: slots,
            cached: Some((slots, room)),
            ..self.passes(&groups, precision)
        };
        let cache = self
            .device
            .cache_bytes(config.layers, slots, room, &config.heads);
        let logits = 4 * (slots * config.vocab) as u64;
        Memory::new(
            self.shape.weights(self.device, precision),
            4 * self.shape.trained,
            self.activations(tokens.max(slots), false),
            cache + logits + self.device.scratch_bytes(&passes),
        )
    }

    fn passes<'g>(
        &'g self,
        groups: &'g [crate::backend::facts::GroupShape],
        precision: Precision,
    ) -> Passes<'g> {
        let config = &self.shape.config;
        Passes {
            groups,
            heads: &config.heads,
            hidden: config.hidden,
            vocab: config.vocab,
            precision,
            full: self.shape.full(),
            training: false,
            tokens: 0,
            targets: 0,
            cached: None,
        }
    }

    /// Bytes of the buffers of a pass.
    pub(super) fn activations(&self, tokens: usize, training: bool) -> u64 {
        let Shape { config, tuning, .. } = self.shape;
        let need = Workspace::need(self.backend, config, tuning.as_ref(), tokens, training);
        self.backend.arena_bytes(&need)
    }

    /// Rows of the largest step or validation, before it is divided into passes.
    fn most_rows(&self, train: &Train) -> u64 {
        let there = |part| self.rows.as_ref().map_or(u64::MAX, |m| m.rows(part));
        let step = train.batch.min(there(Part::Train));
        step.max(train.eval_batch.min(there(Part::Val)))
    }

    /// Tokens of the longest row.
    fn longest(&self) -> usize {
        let most = usize::try_from(self.task.max_tokens)
            .unwrap_or(MANY)
            .min(MANY);
        match self.rows {
            Ok(measured) => measured.longest.min(most),
            Err(_) => most,
        }
    }

    /// Tokens of the largest pass over so many rows.
    fn tokens(&self, rows: u64) -> usize {
        let rows = rows.min(MANY as u64) as f64;
        let longest = self.longest() as f64;
        let tokens = match self.rows {
            // Four standard deviations above the mean of rows that are drawn at random.
            Ok(m) => {
                (rows * (m.prompt + m.answer) + 4.0 * m.deviation * rows.sqrt()).min(rows * longest)
            }
            Err(_) => rows * longest,
        };
        tokens.clamp(1.0, MANY as f64) as usize
    }

    /// Rows of such a pass that have a target.
    fn targets(&self, rows: u64) -> usize {
        match self.rows {
            Ok(m) => rows
                .saturating_mul(m.longest_answer as u64)
                .min(MANY as u64) as usize,
            Err(_) => MANY,
        }
    }

    /// What to set so that a training fits.
    pub(super) fn train_remedies(&self, train: &Train, free: u64) -> Vec<Remedy> {
        let precision = self.shape.precision;
        let most = self.most_rows(train);
        let now = train.micro_batch.unwrap_or(most).min(most);
        let of = |rows| self.train_as(train, Some(rows), precision).total;
        let mut remedies = Vec::new();
        if let Some(rows) = largest(now, |rows| of(rows) <= free) {
            remedies.push(Remedy {
                set: format!("`micro_batch = {rows}`"),
                needed: of(rows),
            });
        }
        let nf4 = || self.train_as(train, train.micro_batch, Precision::Nf4);
        remedies.extend(self.quantised(nf4, free));
        let both = || self.train_as(train, Some(1), Precision::Nf4);
        self.or_both(remedies, "micro_batch", both, free)
    }

    /// What to set so that a prediction fits.
    pub(super) fn predict_remedies(
        &self,
        evaluate: &Evaluate,
        rows: u64,
        free: u64,
    ) -> Vec<Remedy> {
        let precision = self.shape.precision;
        let batch = evaluate.batch.min(rows);
        let of = |batch| self.predict_as(evaluate, batch, precision).total;
        let mut remedies = Vec::new();
        if let Some(batch) = largest(batch, |batch| of(batch) <= free) {
            remedies.push(Remedy {
                set: format!("`batch = {batch}`"),
                needed: of(batch),
            });
        }
        let nf4 = || self.predict_as(evaluate, batch, Precision::Nf4);
        remedies.extend(self.quantised(nf4, free));
        let both = || self.predict_as(evaluate, 1, Precision::Nf4);
        self.or_both(remedies, "batch", both, free)
    }

    /// 4-bit weights, where that fits and is not set. All weights cannot be trained in 4 bits.
    fn quantised(&self, of: impl Fn() -> Memory, free: u64) -> Option<Remedy> {
        if self.shape.precision == Precision::Nf4 || self.shape.full() {
            return None;
        }
        let needed = of().total;
        (needed <= free).then(|| Remedy {
            set: "`precision = nf4`".into(),
            needed,
        })
    }

    /// Where neither helps by itself: both.
    fn or_both(
        &self,
        remedies: Vec<Remedy>,
        batch: &str,
        of: impl Fn() -> Memory,
        free: u64,
    ) -> Vec<Remedy> {
        if !remedies.is_empty() {
            return remedies;
        }
        let both = self.quantised(of, free).map(|r| Remedy {
            set: format!("`{batch} = 1` and `precision = nf4`"),
            ..r
        });
        both.into_iter().collect()
    }
}

/// More tokens than the language allows (65,536 rows of 131,072): a bound, so that no product of sizes overflows.
const MANY: usize = 1 << 34;

/// The largest number from 1 up to below `most` that fits, if more is worse.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    let (mut low, mut high) = (0, most.min(MANY as u64));
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle
        } else {
            high = middle
        }
    }
    (low > 0).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_number_that_fits_is_found() {
        assert_eq!(largest(32, |n| n <= 5), Some(5));
        assert_eq!(largest(32, |_| true), Some(31));
        assert_eq!(largest(32, |_| false), None);
        assert_eq!(largest(1, |_| true), None);
    }
}
