//! The checked plan: what a recipe means once every name, type and range has been checked.
//!
//! Holds plain data with every default filled in and every sweep expanded. It refuses to hold source
//! text, spans or anything about GPUs. Names in it always resolve: a newcomer would break that by
//! building a `Plan` by hand; build one with [`crate::check`].

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything a recipe describes. Blocks keep the order of the source text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The `recipe` block.
    pub recipe: Recipe,
    /// `data` blocks.
    pub data: Vec<Data>,
    /// `task` blocks.
    pub tasks: Vec<Task>,
    /// `model` blocks.
    pub models: Vec<Model>,
    /// `train` blocks, one for each combination of a sweep.
    pub trains: Vec<Train>,
    /// `evaluate` blocks.
    pub evaluates: Vec<Evaluate>,
    /// `compare` blocks.
    pub compares: Vec<Compare>,
}

/// The `recipe` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Names the folder under `runs/`.
    pub name: String,
    /// The seed every other seed defaults to.
    pub seed: u64,
    /// What the machine costs, if the recipe says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Rates>,
}

/// What time on the machine costs, in money, energy and carbon dioxide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Price of an hour of the machine.
    pub hour: f64,
    /// Unit of that price.
    pub currency: String,
    /// Mean power while it works, in watts.
    pub watts: f64,
    /// Carbon dioxide of its electricity, in grams a kWh.
    pub grid: f64,
    /// Notes over which a training is to pay off.
    pub notes: u64,
}

/// A `data` block: rows, the columns that matter, and how they are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Block name.
    pub name: String,
    /// Where the rows come from.
    pub source: Source,
    /// What the model reads.
    pub text: TextView,
    /// What is hidden in the text before anybody reads it.
    pub redact: Redact,
    /// Column with the gold code.
    pub code: String,
    /// How rows are divided.
    pub split: Split,
    /// Only the first `limit` rows, if given.
    pub limit: Option<u64>,
}

/// Where rows or weights lie. Paths are resolved against the folder of the file that names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[allow(missing_docs)]
pub enum Source {
    /// A file of a dataset repository on the hub.
    Hf {
        repo: String,
        file: String,
        revision: String,
    },
    /// Comma-separated values with a header line.
    Csv { path: PathBuf, delimiter: char },
    /// One JSON object a line.
    Jsonl { path: PathBuf },
}

/// The part of a row that the model reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[allow(missing_docs)]
pub enum TextView {
    /// A whole column.
    Column { column: String },
    /// Named sections of a SOAP note, in this order.
    Sections {
        column: String,
        sections: Vec<String>,
    },
}

/// What is replaced in the text before anybody reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redact {
    /// Nothing.
    None,
    /// Every ICD-10 code.
    Codes,
    /// Every ICD-10 code and every official title.
    Titles,
}

/// A level of the ICD-10-CM tree, finest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The whole code (`E11.65`).
    Code,
    /// The first three characters (`E11`).
    Category,
    /// A range of categories (`E08-E13`).
    Block,
    /// A chapter (`CH04`).
    Chapter,
}

/// Shares of the rows, drawn so that each label is spread alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Share of rows to train on, in (0, 1).
    pub train: f64,
    /// Share of rows to choose the checkpoint with.
    pub val: f64,
    /// Share of rows to report on.
    pub test: f64,
    /// Labels are spread alike at this level.
    pub by: Level,
    /// Seed of the draw.
    pub seed: u64,
}

/// A `task` block: how a row becomes a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Block name.
    pub name: String,
    /// Name of a data block.
    pub data: String,
    /// System message, if any.
    pub system: Option<String>,
    /// User message; `{{ text }}` is the row's text.
    pub user: String,
    /// Answer; `{{ code }}` is the gold code at `level`, `{{ title }}` its official title.
    pub answer: String,
    /// Tokens of prompt and answer together; the note is shortened to fit.
    pub max_tokens: u64,
    /// The level of the tree that is asked for.
    pub level: Level,
}

/// A `model` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Block name.
    pub name: String,
    /// Where the checkpoint lies.
    pub weights: Weights,
    /// How the linear layers are held in memory.
    pub precision: Precision,
    /// NF4 only: quantise the block scales, too (QLoRA, section 3).
    pub double_quant: bool,
}

/// Where a checkpoint lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[allow(missing_docs)]
pub enum Weights {
    /// A model repository on the hub.
    Hf { repo: String, revision: String },
    /// A folder with `config.json` and safetensors files.
    Dir { path: PathBuf },
}

/// How the linear layers are held in memory. Arithmetic on the CPU is always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 4-bit NormalFloat in blocks of 64, bitsandbytes' layout.
    Nf4,
}

/// A `train` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Block name; a sweep appends its settings, as in `qwen_lora[lora.rank=8]`.
    pub name: String,
    /// Name of a model block.
    pub model: String,
    /// Name of a task block.
    pub task: String,
    /// What is trained.
    pub adapter: Adapter,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Passes over the training rows.
    pub epochs: u64,
    /// Ends the training earlier, if given.
    pub max_steps: Option<u64>,
    /// Rows in one optimizer step.
    pub batch: u64,
    /// Rows in one validation batch.
    pub eval_batch: u64,
    /// Rows of one forward and backward pass; `None` is `auto`.
    pub micro_batch: Option<u64>,
    /// Largest global gradient norm; `None` is no clipping.
    pub clip: Option<f64>,
    /// Steps between log lines.
    pub log_every: u64,
    /// Steps between validations.
    pub eval_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints kept besides the best one.
    pub keep: u64,
    /// Early stopping on validation loss.
    pub stop: Option<EarlyStop>,
    /// New row order every epoch.
    pub shuffle: bool,
    /// Seed of initialisation, order and dropout.
    pub seed: u64,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Adapter {
    /// Low-rank adapters (arXiv:2106.09685) with PEFT's meaning.
    Lora(Lora),
    /// Every weight of the model.
    Full,
}

/// Settings of a LoRA adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rank r.
    pub rank: u64,
    /// The adapter's output is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Dropout on the adapter's input, in [0, 1).
    pub dropout: f64,
    /// The adapted linear layers, without repetition, in the order of [`Linear`].
    pub targets: Vec<Linear>,
    /// Continue from the PEFT adapter in this folder.
    pub init: Option<PathBuf>,
}

/// The seven linear layers of a decoder block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Linear {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Linear {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Linear; 7] = [
        Linear::QProj,
        Linear::KProj,
        Linear::VProj,
        Linear::OProj,
        Linear::GateProj,
        Linear::UpProj,
        Linear::DownProj,
    ];

    /// The name in Hugging Face checkpoints (`q_proj`).
    pub fn name(self) -> &'static str {
        match self {
            Linear::QProj => "q_proj",
            Linear::KProj => "k_proj",
            Linear::VProj => "v_proj",
            Linear::OProj => "o_proj",
            Linear::GateProj => "gate_proj",
            Linear::UpProj => "up_proj",
            Linear::DownProj => "down_proj",
        }
    }
}

/// AdamW (arXiv:1711.05101) with PyTorch's meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// Learning rate over time, with Transformers' meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up.
    pub warmup: u64,
}

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine down to zero.
    Cosine,
    /// A line down to zero.
    Linear,
    /// The peak rate throughout.
    Constant,
}

/// Early stopping on validation loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// Validations without improvement before the training ends.
    pub patience: u64,
    /// What counts as an improvement of the loss.
    pub min_delta: f64,
}

/// An `evaluate` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    /// Block name.
    pub name: String,
    /// Names of model blocks (zero-shot) and train blocks (tuned), sweeps expanded.
    pub models: Vec<String>,
    /// Name of a task block.
    pub task: String,
    /// Which rows.
    pub split: Part,
    /// How an answer is decoded.
    pub decode: Decode,
    /// Rows decoded together.
    pub batch: u64,
    /// Only the first `limit` rows, if given.
    pub limit: Option<u64>,
    /// Reuse predictions whose inputs are all unchanged.
    pub cache: bool,
}

/// A side of the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Training rows.
    Train,
    /// Validation rows.
    Val,
    /// Test rows.
    Test,
}

/// How an answer is decoded, with Transformers' meaning of every field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Draw from the distribution; otherwise take the most probable token.
    pub sample: bool,
    /// Most new tokens.
    pub max_new: u64,
    /// Logits are divided by it.
    pub temperature: f64,
    /// Smallest set of tokens whose probability reaches it.
    pub top_p: f64,
    /// Only the k most probable tokens; 0 is all.
    pub top_k: u64,
    /// Logits of tokens seen before are divided (positive) or multiplied (negative) by it.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

/// A `compare` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    /// Block name.
    pub name: String,
    /// Name of an evaluate block.
    pub of: String,
    /// The system that the others are compared with; the first one if `None`.
    pub baseline: Option<String>,
}
