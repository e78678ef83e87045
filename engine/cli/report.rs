//! `report`: renders a run again, or puts several side by side.

use super::{Blame, Failure, Outcome, output};
use crate::data::whole_file::write_whole;
use crate::report::document::Report;
use crate::report::{comparison, text};
use crate::study::summary;
use anyhow::{Context, anyhow};
use std::path::{Path, PathBuf};

/// Arguments of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Run folders (runs/RECIPE/ID), or recipe folders (runs/RECIPE) for their latest run
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Several runs: write the comparison as HTML to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `report`.
pub fn run(args: Args) -> Outcome {
    let found = args
        .runs
        .iter()
        .map(|run| find(run))
        .collect::<Result<Vec<_>, _>>()?;
    let (dirs, reports): (Vec<PathBuf>, Vec<Report>) = found.into_iter().unzip();
    if args.json {
        return output::json(&reports);
    }
    if let ([dir], [report], None) = (dirs.as_slice(), reports.as_slice(), &args.html) {
        summary::write(report, dir).work()?;
        output::line(&text::table(report))?;
        return output::line(&format!("report: {}", dir.join("report.html").display()));
    }
    output::line(&comparison::text(&reports))?;
    if let Some(path) = &args.html {
        write_whole(path, comparison::html(&reports).work()?.as_bytes()).work()?;
        output::line(&format!("comparison: {}", path.display()))?;
    }
    Ok(())
}

/// The run in a folder, or the latest one below it.
fn find(path: &Path) -> Result<(PathBuf, Report), Failure> {
    let dir = if path.join("report.json").is_file() {
        path.to_path_buf()
    } else {
        latest(path)?
    };
    let file = dir.join("report.json");
    let text = std::fs::read_to_string(&file)
        .with_context(|| file.display().to_string())
        .input()?;
    let report = Report::from_json(&text)
        .with_context(|| file.display().to_string())
        .input()?;
    Ok((dir, report))
}

fn latest(path: &Path) -> Result<PathBuf, Failure> {
    let no_run = || {
        let path = path.display();
        format!("{path} is no run's folder; name one that `run` made, such as runs/quickstart")
    };
    let entries = std::fs::read_dir(path).with_context(no_run).input()?;
    let finished = entries.flatten().filter_map(|entry| {
        let time = entry
            .path()
            .join("report.json")
            .metadata()
            .ok()?
            .modified()
            .ok()?;
        Some((time, entry.path()))
    });
    let newest = finished.max().map(|(_, dir)| dir);
    newest.ok_or_else(|| {
        Failure::Input(anyhow!(
            "{}: no finished run in this folder; `run` a recipe first",
            path.display()
        ))
    })
}
