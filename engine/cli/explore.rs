//! `explore`: what the data block really holds, and one training example as the model sees it.

use super::progress::Progress;
use super::recipe::RecipeArgs;
use super::run::blame;
use super::{Blame, Outcome, output};
use crate::data::whole_file::write_whole;
use crate::report::exploration;
use crate::study::explore::explore;
use std::path::PathBuf;

/// Arguments of `explore`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Write a page of it to this file as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print an array with one object a data block
    #[arg(long)]
    json: bool,
}

/// Runs `explore`.
pub fn run(args: Args) -> Outcome {
    let recipe = args.recipe.check()?;
    let explored = explore(&recipe.plan, &mut Progress::default()).map_err(blame)?;
    if let Some(path) = &args.html {
        let page = exploration::page(&recipe.plan.recipe.name, &explored).work()?;
        write_whole(path, page.as_bytes()).work()?;
    }
    if args.json {
        return output::json(&explored);
    }
    for data in &explored {
        output::line(&crate::data::explore::render_text(&data.exploration))?;
        for example in &data.examples {
            output::line(&format!(
                "\none training example of `{}` for `{}`: {} tokens, of which those in [[ ]] are learnt\n{}[[{}]]",
                example.task, example.model, example.tokens, example.prompt, example.answer
            ))?;
        }
    }
    match &args.html {
        Some(path) => output::line(&format!("exploration: {}", path.display())),
        None => Ok(()),
    }
}
