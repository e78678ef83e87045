//! `help-recipe`: the recipe language, from its table.

use super::{Outcome, output};

/// Arguments of `help-recipe`.
#[derive(clap::Args)]
pub struct Args {
    /// A block, field or call, such as `train`, `batch` or `lora`
    topic: Option<String>,
}

/// Runs `help-recipe`.
pub fn run(args: Args) -> Outcome {
    output::line(&medft_dsl::help_recipe(args.topic.as_deref()))
}
