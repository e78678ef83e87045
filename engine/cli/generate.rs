//! `generate`: continues a prompt or a conversation.

use super::device::with_backend;
use super::model::{ModelArgs, read_ids};
use super::tokenize::{Chat, read_chat};
use super::{Blame, Failure, Outcome, output};
use crate::backend::Backend;
use crate::generate::engine::{Finish, Generator, Request};
use crate::text::template::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use anyhow::Error;
use medft_dsl::plan::Decode;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `generate`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    decode: DecodeArgs,
    /// Print an object with text, ids and finish (an array for several prompts)
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// JSON list of {"role", "content"} messages, answered through the model's chat template
    #[arg(long, value_name = "FILE")]
    chat: Option<PathBuf>,
    /// JSON array of token-id arrays to continue
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

/// How tokens are chosen; the defaults are those of recipes.
#[derive(clap::Args)]
pub struct DecodeArgs {
    /// Always take the most probable token
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "top_k"])]
    greedy: bool,
    /// Logits are divided by it
    #[arg(long, default_value_t = 0.7, value_parser = positive)]
    temperature: f64,
    /// Smallest set of tokens whose probability reaches it
    #[arg(long, default_value_t = 0.9, value_parser = share)]
    top_p: f64,
    /// Only the k most probable tokens; 0 is all
    #[arg(long, default_value_t = 50)]
    top_k: u64,
    /// Penalty on tokens seen before; 1 is none [default: 1.1, with --greedy 1]
    #[arg(long, value_parser = positive)]
    repetition_penalty: Option<f64>,
    /// Seed of the draws
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Most new tokens
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=32_768))]
    max_new_tokens: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && f64::is_finite(value) => Ok(value),
        _ => Err("a number above 0 was expected".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("a number above 0 and up to 1 was expected".into()),
    }
}

impl DecodeArgs {
    /// The settings as a recipe would have them.
    pub fn settings(&self) -> Decode {
        let penalty = if self.greedy { 1.0 } else { 1.1 };
        Decode {
            sample: !self.greedy,
            max_new: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty.unwrap_or(penalty),
            seed: self.seed,
        }
    }
}

#[derive(Serialize)]
struct Generated {
    /// The answer without special tokens; null where the directory has no tokenizer.
    text: Option<String>,
    /// New tokens, the end token included.
    ids: Vec<u32>,
    finish: Finish,
}

/// Runs `generate`.
pub fn run(args: Args) -> Outcome {
    let Input { chat, ids, .. } = &args.input;
    // Files are read before the weights: what is wrong with them is said at once.
    let chat = chat.as_deref().map(read_chat).transpose()?;
    let ids = ids.as_deref().map(read_ids).transpose()?;
    with_backend!(args.model.device.open()?, backend => run_on(&args, backend, chat, ids))
}

fn run_on<B: Backend>(
    args: &Args,
    backend: B,
    chat: Option<Chat>,
    ids: Option<Vec<Vec<u32>>>,
) -> Outcome {
    let model = args.model.load(backend)?;
    let prompts = match (&args.input.prompt, chat, ids) {
        (Some(text), ..) => vec![model.tokenizer()?.encode_plain(text).input()?],
        (_, Some(chat), _) => {
            let tokenizer = model.tokenizer()?;
            let rendered = chat.render(&ChatTemplate::load(&args.model.model).input()?)?;
            vec![tokenizer.encode_rendered(&rendered).input()?]
        }
        (_, _, Some(ids)) => ids,
        (None, None, None) => return Err(Failure::Said(2)),
    };
    let (settings, end_ids) = (args.decode.settings(), model.end_ids()?);
    let generator = Generator {
        decoder: &model.decoder,
        trained: model.trained.as_ref(),
        settings: &settings,
        end_ids: &end_ids,
    };
    let requests: Vec<Request> = (0..)
        .zip(&prompts)
        .map(|(row, prompt)| Request { row, prompt })
        .collect();
    let answers = generator
        .answer(&requests)
        .map_err(|e| Failure::of(e.is_input(), Error::new(e).context(args.input.name())))?;
    let mut results = Vec::new();
    for answer in answers {
        let decode = |t: &Tokenizer| t.decode(&answer.ids, true);
        let text = model.tokenizer.as_ref().map(decode).transpose().input()?;
        results.push(Generated {
            text,
            ids: answer.ids,
            finish: answer.finish,
        });
    }
    if args.json {
        return match results.as_slice() {
            [one] => output::json(one),
            many => output::json(&many),
        };
    }
    for result in results {
        output::line(&result.text.unwrap_or_else(|| format!("{:?}", result.ids)))?;
    }
    Ok(())
}

impl Input {
    /// Where the prompts come from, for messages.
    fn name(&self) -> String {
        match self.chat.as_ref().or(self.ids.as_ref()) {
            Some(path) => path.display().to_string(),
            None => "--prompt".into(),
        }
    }
}
