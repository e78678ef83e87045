//! Reading and checking a recipe, shared by every command that takes one.

use super::{Blame, Failure, output};
use anyhow::Context;
use medft_dsl::plan::Plan;
use medft_dsl::{Checked, SourceFile};
use std::path::PathBuf;

/// A recipe and its overrides.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// The recipe (.rcp)
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Override a field, such as `qwen_3b_lora.epochs=1`; may be repeated
    #[arg(long = "set", value_name = "BLOCK.FIELD=VALUE")]
    pub overrides: Vec<String>,
}

/// A recipe that checks.
pub struct Recipe {
    /// Its text.
    pub text: String,
    /// What it means.
    pub plan: Plan,
}

impl RecipeArgs {
    /// Reads and checks the recipe; errors and warnings go to stderr.
    pub fn check(&self) -> Result<Recipe, Failure> {
        let read = std::fs::read_to_string(&self.recipe);
        let text = read
            .with_context(|| format!("cannot read the recipe {}", self.recipe.display()))
            .input()?;
        let source = SourceFile::new(&self.recipe, &text);
        match medft_dsl::check(&source, &self.overrides, &|path| {
            std::fs::read_to_string(path)
        }) {
            Ok(Checked { plan, warnings }) => {
                if !warnings.is_empty() {
                    eprintln!("{}", warnings.render(output::colors()));
                }
                Ok(Recipe { text, plan })
            }
            Err(diagnostics) => {
                eprintln!("{}", diagnostics.render(output::colors()));
                Err(Failure::Said(2))
            }
        }
    }
}
