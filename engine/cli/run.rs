//! `run`: everything that a recipe describes.

use super::device::{DeviceArgs, with_backend};
use super::progress::Progress;
use super::recipe::RecipeArgs;
use super::{Blame, Failure, Outcome, output};
use crate::study::StudyError;
use crate::study::run::{Finished, Study};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Folder for results
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// Only go on with a run that has begun: an error if there is none with these settings, data and models. Without it, `run` goes on
    /// where it can and begins where it must
    #[arg(long)]
    resume: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `run`.
pub fn run(args: Args) -> Outcome {
    let recipe = args.recipe.check()?;
    let must_fit = args.device.names_gpu();
    let device = args.device.open()?;
    let stop = stop_on_ctrl_c()?;
    let study = Study {
        plan: &recipe.plan,
        text: &recipe.text,
        out: &args.out,
        must_resume: args.resume,
        must_fit,
    };
    let mut progress = Progress::default();
    let finished = with_backend!(device, backend => study.run(backend, &stop, &mut progress));
    let finished = finished.map_err(blame)?;
    let Finished {
        dir,
        report,
        nothing_to_do,
    } = &finished;
    if *nothing_to_do {
        eprintln!(
            "nothing to do: this recipe, its data and its models are unchanged since the last run"
        );
    }
    if args.json {
        return output::json(report);
    }
    output::line(&crate::report::text::table(report))?;
    output::line(&format!("report: {}", dir.join("report.html").display()))
}

/// Whose fault a study's error is.
pub fn blame(error: StudyError) -> Failure {
    match error {
        StudyError::Interrupted => {
            eprintln!("{error}");
            Failure::Said(130)
        }
        StudyError::TooLarge(shortages) => {
            for shortage in shortages {
                eprintln!("error: {shortage}");
            }
            Failure::Said(2)
        }
        e if e.is_input() => Failure::Input(e.into()),
        e => Failure::Work(e.into()),
    }
}

/// The first Ctrl-C asks the work to stop at the next safe place, the second ends the process.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nfinishing the current step; press Ctrl-C again to stop at once");
    })
    .work()?;
    Ok(stop)
}
