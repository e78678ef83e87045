//! `predict`: codes one note from stdin, or many from a file, with a system of a recipe.

use super::device::{DeviceArgs, with_backend};
use super::progress::Progress;
use super::recipe::{Recipe, RecipeArgs};
use super::run::blame;
use super::{Blame, Outcome, output};
use crate::backend::Backend;
use crate::study::coder::{Coded, Coder};
use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// Arguments of `predict`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Model or train block that codes [default: the first train block]
    #[arg(long, value_name = "NAME")]
    system: Option<String>,
    /// Folder with the results of `run`
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// Code many notes: one JSON object a line, {"text": "..."} and, if wanted, "id"; without it stdin is one note
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Note {
    #[serde(default)]
    id: Option<serde_json::Value>,
    text: String,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<serde_json::Value>,
    #[serde(flatten)]
    coded: &'a Coded,
}

/// Runs `predict`.
pub fn run(args: Args) -> Outcome {
    let recipe = args.recipe.check()?;
    with_backend!(args.device.open()?, backend => run_on(&args, &recipe, backend))
}

fn run_on<B: Backend>(args: &Args, recipe: &Recipe, backend: B) -> Outcome {
    let name = args.system.as_deref();
    let mut progress = Progress::default();
    let coder =
        Coder::load(backend, &recipe.plan, name, &args.out, &mut progress).map_err(blame)?;
    let print = |id: Option<serde_json::Value>, note: &str| -> Outcome {
        let coded = coder.code(note).map_err(blame)?;
        if args.json {
            return output::line(&serde_json::to_string(&Line { id, coded: &coded }).work()?);
        }
        let Coded {
            code,
            title,
            status,
            answer,
            ..
        } = &coded;
        let code = code.as_deref().unwrap_or("no code");
        let about = match (title, status) {
            (Some(title), Some("billable")) => title.clone(),
            (Some(title), Some(status)) => format!("{title} ({status})"),
            _ => format!("(answer: {answer:?})"),
        };
        let id = id.map_or(String::new(), |id| format!("{id}\t"));
        output::line(&format!("{id}{code}\t{about}"))
    };
    let Some(path) = &args.file else {
        let note = std::io::read_to_string(std::io::stdin())
            .context("stdin")
            .input()?;
        if note.trim().is_empty() {
            return Err(anyhow!(
                "stdin holds no note; pipe one in, or name a file with `--file`"
            ))
            .input();
        }
        return print(None, &note);
    };
    let shown = path.display();
    let file = std::fs::File::open(path)
        .with_context(|| shown.to_string())
        .input()?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| shown.to_string()).input()?;
        if line.trim().is_empty() {
            continue;
        }
        let expected = "a JSON object with a `text` was expected";
        let note: Note = serde_json::from_str(&line)
            .with_context(|| format!("{shown}, line {}: {expected}", number + 1))
            .input()?;
        print(note.id, &note.text)?;
    }
    Ok(())
}
