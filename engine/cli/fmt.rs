//! `fmt`: canonical layout of recipes.

use super::{Blame, Failure, Outcome, output};
use crate::data::whole_file::write_whole;
use anyhow::Context;
use medft_dsl::SourceFile;
use std::path::PathBuf;

/// Arguments of `fmt`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipes to format in place
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    /// Change nothing; exit with 1 if a recipe would change
    #[arg(long)]
    check: bool,
}

/// Runs `fmt`.
pub fn run(args: Args) -> Outcome {
    let (mut changed, mut broken) = (false, false);
    for path in &args.recipes {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the recipe {}", path.display()))
            .input()?;
        let formatted = match medft_dsl::format(&SourceFile::new(path, &text)) {
            Ok(formatted) => formatted,
            Err(diagnostics) => {
                eprint!("{}", diagnostics.render(super::output::colors()));
                broken = true;
                continue;
            }
        };
        if formatted != text {
            changed = true;
            let verb = if args.check {
                "would change"
            } else {
                "formatted"
            };
            output::line(&format!("{verb} {}", path.display()))?;
            if !args.check {
                write_whole(path, formatted.as_bytes()).work()?;
            }
        }
    }
    match (broken, changed && args.check) {
        (true, _) => Err(Failure::Said(2)),
        (false, true) => Err(Failure::Said(1)),
        (false, false) => Ok(()),
    }
}
