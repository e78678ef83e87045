//! `cache`: the stored answers in an output folder.

use super::{Failure, Outcome, output};
use crate::report::format::count;
use crate::study::cache::{self, Stored};
use clap::Subcommand;
use std::path::PathBuf;

/// Arguments of `cache`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Folder of results
    #[arg(long, value_name = "FOLDER", default_value = "runs", global = true)]
    out: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Stored answers, and the runs that use them
    List,
    /// Delete the answers that no run's folder uses any more; trainings, splits and reports stay
    Prune {
        /// Also those that runs use: a run again decodes every row again
        #[arg(long)]
        all: bool,
    },
}

/// Runs `cache`.
pub fn run(args: Args) -> Outcome {
    let (found, done) = match args.what {
        What::List => (cache::list(&args.out), "stored"),
        What::Prune { all } => (cache::prune(&args.out, all), "deleted"),
    };
    let found = found.map_err(|e| Failure::of(e.is_input(), e))?;
    if args.json {
        return output::json(&found);
    }
    for stored in &found {
        output::line(&line(stored))?;
    }
    let (rows, size): (u64, u64) = (
        found.iter().map(|s| s.rows).sum(),
        found.iter().map(|s| s.bytes).sum(),
    );
    output::line(&format!(
        "{} files, {} answers, {} {done}",
        count(found.len() as u64),
        count(rows),
        mebibytes(size)
    ))
}

fn line(stored: &Stored) -> String {
    let users: Vec<&str> = stored.users.iter().map(String::as_str).collect();
    format!(
        "{}  {} answers  {}  {} days old  {}",
        stored.path.display(),
        count(stored.rows),
        mebibytes(stored.bytes),
        stored.days,
        if users.is_empty() {
            "no run".to_owned()
        } else {
            users.join(", ")
        }
    )
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
