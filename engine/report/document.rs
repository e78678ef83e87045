//! `report.json`: everything that a report says.
//!
//! Holds plain data. It refuses to render. Invariant: findings, verdicts, methods and limits are derived by [`Report::conclude`] from the other
//! fields and the plan, never written by hand.

use super::cost::{Cost, Latency};
use super::{findings, limits, methods};
use crate::evaluate::confusion::Confusion;
use crate::evaluate::groups::Group;
use crate::evaluate::metrics::{LevelMetrics, Metrics};
use crate::evaluate::statistics::{Pair, Verdict};
use crate::text::audit::ExampleAudit;
use medft_dsl::plan::{Level, Part, Plan, Precision, Rates};
use serde::{Deserialize, Serialize};

/// Version of the fields below; raised when an old reader would misread a new file.
pub const SCHEMA: u32 = 2;

/// A run's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the recipe.
    pub recipe: String,
    /// The recipe as it was run.
    pub recipe_text: String,
    /// The question that the recipe asks, in words, if it says so.
    pub question: Option<String>,
    /// When the run ended, in UTC, ISO 8601.
    pub created: String,
    /// Version of the engine.
    pub engine: String,
    /// Where it ran.
    pub machine: Machine,
    /// The recipe's rates, if it has some.
    pub rates: Option<Rates>,
    /// What a reader must know first; the gravest first.
    pub findings: Vec<Finding>,
    /// What the comparisons show.
    pub verdicts: Vec<Conclusion>,
    /// Data blocks.
    pub data: Vec<DataSummary>,
    /// Trainings.
    pub trainings: Vec<Training>,
    /// Evaluate blocks.
    pub evaluations: Vec<Evaluation>,
    /// How it was done.
    pub methods: Vec<Paragraph>,
    /// What the results do not say.
    pub limits: Vec<String>,
    /// Hashes of what went in and came out.
    pub hashes: Vec<Hash>,
}

/// Where a run took place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Cores that the run could use.
    pub cores: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Operating system and architecture.
    pub system: String,
    /// The GPU that the run used, if any.
    pub gpu: Option<String>,
}

/// How grave a finding is, gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The result does not mean what it seems to mean.
    Severe,
    /// Read the result with this in mind.
    Warning,
    /// Good to know.
    Note,
}

/// Something that a reader must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// One line.
    pub title: String,
    /// The numbers behind it.
    pub detail: String,
    /// What to do.
    pub remedy: String,
}

/// What a comparison shows, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclusion {
    /// Name of the evaluate block.
    pub evaluation: String,
    /// Better, worse or nothing.
    pub verdict: Verdict,
    /// The sentence.
    pub sentence: String,
}

/// A paragraph under a heading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paragraph {
    /// The heading.
    pub title: String,
    /// The text.
    pub text: String,
}

/// A data block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataSummary {
    /// Block name.
    pub name: String,
    /// Rows that can be used.
    pub rows: u64,
    /// Rows left out for want of a text or a code.
    pub dropped: u64,
    /// Rows on the sides of the split.
    pub train: u64,
    /// Rows to choose checkpoints with.
    pub val: u64,
    /// Rows to report on.
    pub test: u64,
    /// Groups of equal or nearly equal texts, which never cross sides.
    pub clusters: u64,
    /// Rows on the test side whose text, or a near-duplicate of it, stands on another side, too.
    pub overlap: u64,
    /// Number of labels at each level.
    pub labels: Vec<(Level, u64)>,
    /// Rows whose code is not valid for a claim in the code table's fiscal year: a parent, retired or unknown.
    pub not_billable: u64,
    /// Of these, rows whose code never was in ICD-10-CM.
    #[serde(default)]
    pub unknown: u64,
    /// The code table, such as `ICD-10-CM FY2026 (April)`.
    pub code_table: String,
    /// How much of the answer stands in the text.
    pub leaks: Leaks,
}

/// The leak audit: counts of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leaks {
    /// Rows audited.
    pub rows: u64,
    /// The gold code stands in the text.
    pub gold_code: u64,
    /// Some code stands in the text.
    pub any_code: u64,
    /// The gold code's official title stands in the text, word for word.
    pub gold_title: u64,
    /// All content words of that title stand in the text.
    pub title_words: u64,
    /// A look-up of official titles in the text finds the gold code.
    pub lookup: u64,
}

/// A train block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Block name.
    pub name: String,
    /// Model block that it starts from.
    pub base: String,
    /// Training rows.
    pub rows: u64,
    /// Training rows whose note was shortened.
    pub truncated: u64,
    /// What its examples look like as tokens; `None` in a training of an earlier version.
    pub audit: Option<ExampleAudit>,
    /// Trained values.
    pub trained_values: u64,
    /// Steps done.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds over all sessions.
    pub seconds: f64,
    /// Most bytes in use meanwhile, if that is known: of the GPU where `machine.gpu` names one (what this program reserved there, without
    /// kernels' code and the driver's own), else of the process.
    pub peak_memory: Option<u64>,
    /// Logged losses.
    pub curve: Vec<CurvePoint>,
    /// Step of the weights that were kept.
    pub best_step: Option<u64>,
    /// Why it ended.
    pub ending: Ending,
}

/// Why a training ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ending {
    /// All steps done.
    Completed,
    /// No improvement for so many validations.
    EarlyStop {
        /// Validations without improvement.
        validations: u64,
    },
    /// The loss was no number.
    Diverged {
        /// At this step.
        step: u64,
    },
    /// Stopped from outside.
    Interrupted,
}

/// A line of `metrics.jsonl`. JSON has no NaN: a loss that is no number is written as `null` and read as `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u64,
    /// Mean loss of the target tokens since the last point.
    pub loss: Option<f64>,
    /// Mean loss of the validation targets.
    pub val_loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
}

/// An evaluate block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Block name.
    pub name: String,
    /// Data block.
    pub data: String,
    /// Which side of the split.
    pub part: Part,
    /// The level that was asked for, and at which systems are compared.
    pub level: Level,
    /// Rows.
    pub rows: u64,
    /// Systems, in the order of the recipe, baselines last.
    pub systems: Vec<System>,
    /// Comparisons.
    pub pairs: Vec<Pair>,
    /// Rows with every system's answer.
    pub examples: Vec<Example>,
}

/// What a system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A model as it comes.
    ZeroShot,
    /// A fine-tuned model.
    Tuned,
    /// A rule that costs nothing.
    Baseline,
}

/// A system's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// Name of the model or train block, or of the rule.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Where the weights come from, such as `Qwen/Qwen2.5-3B-Instruct`; empty for a rule.
    pub model: String,
    /// The zero-shot system of the same model: name of its model block. Tuned systems only.
    pub base: Option<String>,
    /// Values in the model.
    pub parameters: Option<u64>,
    /// How its weights are held.
    pub precision: Option<Precision>,
    /// Tokens of its training.
    pub trained_tokens: Option<u64>,
    /// Measures with intervals.
    pub metrics: Metrics,
    /// Accuracy by chapter, by training rows with the code, seen against unseen.
    pub groups: Vec<Group>,
    /// Answers that ended at `max_new` tokens.
    pub cut: u64,
    /// Rows whose note was shortened to fit.
    pub truncated: u64,
    /// Tuned systems: rows with the same answer, letter for letter, as their base.
    pub same_as_base: Option<u64>,
    /// Rows without an answer of their own: missing, or stored for another row.
    pub foreign: u64,
    /// How long an answer takes in a full batch; models only.
    pub latency: Option<Latency>,
    /// What a thousand notes cost; models only, if the recipe has rates.
    pub cost: Option<Cost>,
    /// Seconds of generation.
    pub seconds: f64,
    /// Most bytes in use meanwhile, if that is known: of the GPU where `machine.gpu` names one (what this program reserved there, without
    /// kernels' code and the driver's own), else of the process.
    pub peak_memory: Option<u64>,
    /// Chapters taken for each other.
    pub chapters: Confusion,
}

/// A row with every system's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Id of the row.
    pub row: String,
    /// Beginning of the text.
    pub excerpt: String,
    /// Gold label.
    pub gold: String,
    /// Its official title.
    pub title: String,
    /// One of each system.
    pub answers: Vec<ExampleAnswer>,
}

/// A system's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleAnswer {
    /// The system.
    pub system: String,
    /// As it was written.
    pub answer: String,
    /// The code that was read in it.
    pub code: Option<String>,
    /// Whether that is right at the asked level.
    pub right: bool,
}

/// A hash of something that went in or came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash {
    /// What, such as ``adapter of `qwen_3b_lora` ``.
    pub what: String,
    /// In hexadecimal.
    pub hash: String,
}

/// A `report.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not a report.
    #[error("not a report of this program: {0}; run the recipe again to write a new one")]
    Json(#[from] serde_json::Error),
    /// From another version.
    #[error(
        "the report has schema {found}, and this version reads schema {SCHEMA}; render it with the version that wrote it"
    )]
    Schema {
        /// The number in the file.
        found: u64,
    },
    /// The page could not be filled.
    #[error("the report's page could not be rendered: {0}")]
    Template(#[from] minijinja::Error),
}

impl Report {
    /// Derives findings, verdicts, methods and limits from the rest and the plan that was run.
    pub fn conclude(&mut self, plan: &Plan) {
        self.findings = findings::find(self);
        self.verdicts = self.conclusions();
        self.methods = methods::methods(plan, self);
        self.limits = limits::limits(plan, self);
    }

    fn conclusions(&self) -> Vec<Conclusion> {
        let pairs = self
            .evaluations
            .iter()
            .flat_map(|e| e.pairs.iter().map(move |pair| (e, pair)))
            .filter(|(_, pair)| pair.asked);
        let conclude = |(evaluation, pair): (&Evaluation, &Pair)| Conclusion {
            evaluation: evaluation.name.clone(),
            verdict: pair.verdict(),
            sentence: pair.sentence(),
        };
        pairs.map(conclude).collect()
    }

    /// The text of `report.json`.
    ///
    /// # Errors
    /// None in practice: every field can be written as JSON.
    pub fn to_json(&self) -> Result<String, ReportError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads the text of a `report.json`.
    ///
    /// # Errors
    /// Another schema, or something else.
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let Head { schema } = serde_json::from_str(text)?;
        if schema != u64::from(SCHEMA) {
            return Err(ReportError::Schema { found: schema });
        }
        Ok(serde_json::from_str(text)?)
    }
}

impl Evaluation {
    /// The system of that name.
    pub fn system(&self, name: &str) -> Option<&System> {
        self.systems.iter().find(|system| system.name == name)
    }
}

impl System {
    /// Measures at one level, if it was measured.
    pub fn at(&self, level: Level) -> Option<&LevelMetrics> {
        self.metrics
            .levels
            .iter()
            .find(|measured| measured.level == level)
    }

    /// Accuracy at one level; 0 if it was not measured.
    pub fn accuracy(&self, level: Level) -> f64 {
        self.at(level)
            .map_or(0.0, |measured| measured.accuracy.value)
    }

    /// Rows a second.
    pub fn rows_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.metrics.rows as f64 / self.seconds)
    }
}
