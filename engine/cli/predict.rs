//! `predict`: codes one note from stdin, or many from a file, with a system of a recipe.

use super::device::{DeviceArgs, with_backend};
use super::model::read_text;
use super::progress::Progress;
use super::recipe::{Recipe, RecipeArgs};
use super::run::blame;
use super::{Blame, Failure, Outcome, output};
use crate::backend::Backend;
use crate::study::coder::{Coded, Coder};
use crate::study::models::as_held;
use crate::study::observer::{Observer, StudyEvent};
use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    // Notes are read before the weights: what is wrong with them is said at once.
    let notes = match &args.file {
        Some(path) => read_notes(path)?,
        None => vec![read_stdin()?],
    };
    with_backend!(args.device.open()?, backend => run_on(&args, &recipe, notes, backend))
}

fn run_on<B: Backend>(args: &Args, recipe: &Recipe, notes: Vec<Note>, backend: B) -> Outcome {
    let name = args.system.as_deref();
    let mut progress = Progress::default();
    let (plan, notices) = as_held(&recipe.plan, &backend);
    for notice in notices {
        progress.event(StudyEvent::Notice(notice));
    }
    let coder = Coder::load(backend, &plan, name, &args.out, &mut progress).map_err(blame)?;
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
    for Note { id, text } in notes {
        print(id, &text)?;
    }
    Ok(())
}

fn read_stdin() -> Result<Note, Failure> {
    let text = read_text(Path::new("-"))?;
    if text.trim().is_empty() {
        return Err(anyhow!(
            "stdin holds no note; pipe one in, or name a file with `--file`"
        ))
        .input();
    }
    Ok(Note { id: None, text })
}

/// The notes of a JSON-lines file, a byte-order mark and blank lines left out.
fn read_notes(path: &Path) -> Result<Vec<Note>, Failure> {
    let text = read_text(path)?;
    let shown = path.display();
    let mut notes = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let expected = "a JSON object with a `text` was expected";
        let note: Note = serde_json::from_str(line)
            .with_context(|| format!("{shown}, line {number}: {expected}"))
            .input()?;
        if note.text.trim().is_empty() {
            return Err(anyhow!("{shown}, line {number}: `text` is empty")).input();
        }
        notes.push(note);
    }
    if notes.is_empty() {
        return Err(anyhow!(
            "{shown} holds no notes; one JSON object a line was expected, such as {{\"text\": \"...\"}}"
        ))
        .input();
    }
    Ok(notes)
}
