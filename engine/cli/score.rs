//! `score`: per-token log-probabilities and perplexity.

use super::model::{ModelArgs, read_ids, read_text};
use super::{Blame, Failure, Outcome, output};
use crate::generate::score::{Score, score};
use std::path::PathBuf;

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
    let model = args.model.load()?;
    let sequences = match (&args.input.text, &args.input.ids) {
        (Some(path), _) => vec![model.tokenizer()?.encode_plain(&read_text(path)?).input()?],
        (None, Some(path)) => read_ids(path)?,
        (None, None) => return Err(Failure::Said(2)),
    };
    let scores = score(&model.decoder, model.trained.as_ref(), &sequences).input()?;
    if args.json {
        return output::json(&scores);
    }
    for (
        i,
        Score {
            ids,
            logprobs,
            nll,
            perplexity,
        },
    ) in scores.iter().enumerate()
    {
        if args.input.text.is_some() {
            for (id, logprob) in ids.iter().skip(1).zip(logprobs) {
                let token = model.tokenizer()?.decode(&[*id], false).input()?;
                output::line(&format!("{logprob:>10.4}  {id:>7}  {token:?}"))?;
            }
        }
        output::line(&format!(
            "sequence {i}: {} tokens, mean negative log-likelihood {nll:.4}, perplexity {perplexity:.3}",
            ids.len()
        ))?;
    }
    Ok(())
}
