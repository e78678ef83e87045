//! `score`: per-token log-probabilities and perplexity.

use super::device::with_backend;
use super::model::{ModelArgs, read_ids, read_text};
use super::{Blame, Failure, Outcome, output};
use crate::backend::Backend;
use crate::generate::score::score;
use anyhow::Error;
use std::path::{Path, PathBuf};

/// Arguments of `score`.
#[derive(clap::Args)]
#[command(
    after_help = "nll is the mean over the tokens after the first, natural log; perplexity is e to its power."
)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    /// Print an array with one object a sequence: ids, logprobs, nll, perplexity
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// Text to score as one sequence; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// JSON array of token-id arrays
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

/// Runs `score`.
pub fn run(args: Args) -> Outcome {
    let Input { text, ids } = &args.input;
    let (path, sequences) = match (text, ids) {
        (Some(path), _) => (path, None),
        (None, Some(path)) => (path, Some(read_ids(path)?)),
        (None, None) => return Err(Failure::Said(2)),
    };
    with_backend!(args.model.device.open()?, backend => run_on(&args, backend, path, sequences))
}

fn run_on<B: Backend>(
    args: &Args,
    backend: B,
    path: &Path,
    sequences: Option<Vec<Vec<u32>>>,
) -> Outcome {
    let model = args.model.load(backend)?;
    let sequences = match sequences {
        Some(ids) => ids,
        None => vec![model.tokenizer()?.encode_plain(&read_text(path)?).input()?],
    };
    let scores = score(&model.decoder, model.trained.as_ref(), &sequences).map_err(|e| {
        Failure::of(
            e.is_input(),
            Error::new(e).context(path.display().to_string()),
        )
    })?;
    if args.json {
        return output::json(&scores);
    }
    for (i, score) in scores.iter().enumerate() {
        if let Some(tokenizer) = &model.tokenizer {
            for (id, logprob) in score.ids.iter().skip(1).zip(&score.logprobs) {
                let token = tokenizer.decode(&[*id], false).input()?;
                output::line(&format!("{logprob:>10.4}  {id:>7}  {token:?}"))?;
            }
        }
        let (n, nll, perplexity) = (score.ids.len(), score.nll, score.perplexity);
        output::line(&format!(
            "sequence {i}: {n} tokens, mean negative log-likelihood {nll:.4}, perplexity {perplexity:.3}"
        ))?;
    }
    Ok(())
}
