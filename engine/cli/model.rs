//! The flags that name a model, and the files of text and token ids, shared by `score`, `generate` and `tokenize`.

use super::device::DeviceArgs;
use super::{Blame, Failure};
use crate::backend::Backend;
use crate::model::adapter;
use crate::model::decoder::Decoder;
use crate::model::trained::Trained;
use crate::study::models::held_otherwise;
use crate::text::tokenizer::Tokenizer;
use anyhow::{Context, anyhow};
use clap::ValueEnum;
use medft_dsl::plan::Precision;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which model, and how it is held.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Model directory: config.json, safetensors, tokenizer
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// PEFT adapter directory
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How the linear layers are held in memory; without it f32, or bf16 on a GPU
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// [`Precision`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    /// 32-bit floats
    F32,
    /// bfloat16
    Bf16,
    /// 4-bit NormalFloat, double-quantised
    Nf4,
}

/// A loaded model with its adapter and, where the directory has one, its tokenizer.
pub struct Loaded<B: Backend> {
    /// The base model.
    pub decoder: Decoder<B>,
    /// The adapter.
    pub trained: Option<Trained<B>>,
    /// The tokenizer; none for directories that hold token models only.
    pub tokenizer: Option<Tokenizer>,
    dir: PathBuf,
}

impl ModelArgs {
    /// Loads what the flags name.
    pub fn load<B: Backend>(&self, backend: B) -> Result<Loaded<B>, Failure> {
        let precision = match self.precision {
            None => backend.held_as(Precision::F32),
            Some(PrecisionArg::F32) => Precision::F32,
            Some(PrecisionArg::Bf16) => Precision::Bf16,
            Some(PrecisionArg::Nf4) => Precision::Nf4,
        };
        let held = backend.held_as(precision);
        if held != precision {
            let model = self.model.display().to_string();
            eprintln!("note: {}", held_otherwise(&model, precision, held));
        }
        let decoder = Decoder::load(backend, &self.model, held, true)
            .map_err(|e| Failure::of(e.is_input(), e))?;
        let read = |dir: &PathBuf| adapter::read(&decoder.backend, &decoder.config, dir);
        let trained = self.adapter.as_ref().map(read).transpose();
        let trained = trained.map_err(|e| Failure::of(e.is_input(), e))?;
        let has_tokenizer = self.model.join("tokenizer.json").is_file();
        let tokenizer = has_tokenizer
            .then(|| Tokenizer::load(&self.model))
            .transpose()
            .input()?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_fits(decoder.config.vocab).input()?;
        }
        Ok(Loaded {
            decoder,
            trained,
            tokenizer,
            dir: self.model.clone(),
        })
    }
}

impl<B: Backend> Loaded<B> {
    /// The tokenizer, or a sentence about what is missing.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Failure::Input(anyhow!(
                "{}: no tokenizer.json in this directory, so text cannot be read; give token ids with `--ids FILE`",
                self.dir.display()
            ))
        })
    }

    /// Tokens that end an answer.
    pub fn end_ids(&self) -> Result<BTreeSet<u32>, Failure> {
        match &self.tokenizer {
            Some(tokenizer) => Ok(tokenizer.end_ids().clone()),
            None => crate::text::tokenizer::end_ids(&self.dir).input(),
        }
    }
}

/// Reads token ids: a JSON array of arrays, or one array.
pub fn read_ids(path: &Path) -> Result<Vec<Vec<u32>>, Failure> {
    let text = read_text(path)?;
    let ids = serde_json::from_str::<Vec<Vec<u32>>>(&text)
        .or_else(|e| serde_json::from_str(&text).map(|one| vec![one]).or(Err(e)))
        .context("a JSON array of token-id arrays was expected, such as [[1, 2, 3]]")
        .and_then(|ids| match ids.is_empty() {
            true => Err(anyhow!("holds no sequences")),
            false => Ok(ids),
        });
    ids.with_context(|| path.display().to_string()).input()
}

/// Reads a text file; `-` is stdin.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin())
            .context("stdin")
            .input();
    }
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .input()
}
