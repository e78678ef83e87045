//! The command line: one file a subcommand; it parses arguments and prints, and decides nothing else.
//!
//! stdout is the answer, stderr the talk. Invariant: a failure is one sentence and an exit code: 1 the work failed, 2 the
//! user's input is wrong, 130 interrupted.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cache;
mod check;
mod device;
mod doctor;
mod explore;
mod fmt;
mod generate;
mod help_recipe;
mod model;
mod output;
mod predict;
mod progress;
mod recipe;
mod report;
mod run;
mod score;
mod tokenize;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Fine-tunes and evaluates small language models on ICD-10 coding, from one recipe.
#[derive(Parser)]
#[command(name = "medft-engine", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that a recipe describes; finished stages are reused
    Run(run::Args),
    /// Check a recipe, and say what it will need; nothing is run
    Check(check::Args),
    /// Statistics and findings of a recipe's data
    Explore(explore::Args),
    /// Bring a recipe into canonical layout
    Fmt(fmt::Args),
    /// Explain the recipe language: all blocks, or one block or field
    HelpRecipe(help_recipe::Args),
    /// Code one note from stdin, or many from a file, with a model of a recipe
    Predict(predict::Args),
    /// Render a run's report again, or compare several runs
    Report(report::Args),
    /// Look at stored answers, or delete those that no run uses
    Cache(cache::Args),
    /// Continue a prompt or a conversation
    Generate(generate::Args),
    /// Log-probabilities and perplexity of a text
    Score(score::Args),
    /// Render a conversation through a model's chat template
    Tokenize(tokenize::Args),
    /// What would work on this machine, and what to do where something would not
    Doctor(doctor::Args),
}

/// Why a command ends with another code than 0.
enum Failure {
    /// The user's input is wrong: code 2.
    Input(anyhow::Error),
    /// The work failed: code 1.
    Work(anyhow::Error),
    /// Already said: only the code is left.
    Said(u8),
}

impl Failure {
    /// The user's input if `input`, else the work.
    fn of(input: bool, error: impl Into<anyhow::Error>) -> Self {
        let whose = if input { Failure::Input } else { Failure::Work };
        whose(error.into())
    }
}

type Outcome = Result<(), Failure>;

/// Says whose fault an error is.
trait Blame<T> {
    /// The user's input.
    fn input(self) -> Result<T, Failure>;
    /// The work.
    fn work(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Blame<T> for Result<T, E> {
    fn input(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::Input(e.into()))
    }

    fn work(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::Work(e.into()))
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(args),
        Command::Explore(args) => explore::run(args),
        Command::Fmt(args) => fmt::run(args),
        Command::HelpRecipe(args) => help_recipe::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Report(args) => report::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    let (code, error) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Said(code)) => return ExitCode::from(code),
        Err(Failure::Work(error)) => (1, error),
        Err(Failure::Input(error)) => (2, error),
    };
    eprintln!("error: {}", output::sentence(&error));
    ExitCode::from(code)
}
