//! `check`: is the recipe right, do the files that it names work, and what will a run need?

use super::device::{DeviceArgs, with_backend};
use super::recipe::RecipeArgs;
use super::run::blame;
use super::{Failure, Outcome, output};
use crate::study::estimate::{Estimate, Work, estimate, gib};
use crate::study::models::as_held;
use medft_dsl::plan::Plan;
use serde::Serialize;

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the resolved plan and its needs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked<'a> {
    plan: &'a Plan,
    estimate: Estimate,
}

/// Runs `check`.
pub fn run(args: Args) -> Outcome {
    let recipe = args.recipe.check()?;
    let device = args.device.open()?;
    let (plan, notices, estimate) = with_backend!(device, backend => {
        let (plan, notices) = as_held(&recipe.plan, &backend);
        let estimate = estimate(&plan, &backend);
        (plan, notices, estimate)
    });
    let (plan, estimate) = (&plan, estimate.map_err(blame)?);
    for notice in notices {
        eprintln!("note: {notice}");
    }
    let (sentences, outcome) = verdict(&estimate, args.device.names_gpu());
    if args.json {
        output::json(&Checked { plan, estimate })?;
    } else {
        print(plan, &estimate)?;
    }
    for sentence in sentences {
        eprintln!("{sentence}");
    }
    outcome
}

/// What to say of stages that do not fit, and how to end: who names a GPU asks whether it fits there, all others are warned.
fn verdict(estimate: &Estimate, names_gpu: bool) -> (Vec<String>, Outcome) {
    let word = if names_gpu { "error" } else { "warning" };
    let sentences = estimate.shortages.iter();
    let sentences: Vec<String> = sentences.map(|s| format!("{word}: {s}")).collect();
    let outcome = match names_gpu && !sentences.is_empty() {
        true => Err(Failure::Said(2)),
        false => Ok(()),
    };
    (sentences, outcome)
}

fn print(plan: &Plan, estimate: &Estimate) -> Outcome {
    output::line(&format!(
        "recipe `{}` checks: {}",
        plan.recipe.name,
        counts(plan)
    ))?;
    for train in &plan.trains {
        let epochs = train.epochs;
        output::line(&format!(
            "  train    {}: `{}` on `{}`, {epochs} epochs, {} rows a step",
            train.name, train.model, train.task, train.batch
        ))?;
    }
    for evaluate in &plan.evaluates {
        output::line(&format!(
            "  evaluate {}: {}",
            evaluate.name,
            evaluate.models.join(", ")
        ))?;
    }
    for line in table(estimate) {
        output::line(&line)?;
    }
    Ok(())
}

fn counts(plan: &Plan) -> String {
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    [
        many(plan.data.len(), "data block"),
        many(plan.models.len(), "model"),
        many(plan.trains.len(), "training"),
        many(plan.evaluates.len(), "evaluation"),
        many(plan.compares.len(), "comparison"),
    ]
    .join(", ")
}

/// The stages with what each needs, and their sum.
fn table(estimate: &Estimate) -> Vec<String> {
    let room = estimate.room.map_or(String::new(), |room| {
        format!(" ({} free of {})", gib(room.free), gib(room.total))
    });
    let mut lines = vec![format!(
        "estimated for {}{room}, from nothing done yet; memory in GiB; times can turn out half or twice as long:",
        estimate.device
    )];
    let heads = [
        "stage",
        "name",
        "weights",
        "adapter+optimizer",
        "activations",
        "workspace",
        "memory",
        "time",
        "work",
    ];
    let mut rows = vec![heads.map(str::to_string)];
    for stage in &estimate.stages {
        let work = stage.work.as_ref().map(describe);
        let unknown = || "?".to_string();
        let memory = match &stage.memory {
            Some(m) => [m.weights, m.trained, m.activations, m.workspace, m.total].map(size),
            None => ["?"; 5].map(str::to_string),
        };
        let [weights, trained, activations, workspace, total] = memory;
        rows.push([
            stage.stage.to_string(),
            stage.name.clone(),
            weights,
            trained,
            activations,
            workspace,
            total,
            stage.seconds.map_or_else(unknown, about),
            work.or(stage.unknown.clone()).unwrap_or_default(),
        ]);
    }
    let known = estimate.stages.iter().filter(|s| s.seconds.is_some());
    let lacking = estimate.stages.len() - known.count();
    let note = match lacking {
        0 => "one stage runs after the other: memory is that of the largest".to_string(),
        n => format!(
            "at least: {n} of {} stages could not be estimated",
            estimate.stages.len()
        ),
    };
    if estimate.stages.iter().any(|s| s.memory.is_some()) {
        let mut total = [(); 9].map(|()| String::new());
        total[0] = "total".to_string();
        total[6] = gib(estimate.memory);
        total[7] = match lacking == estimate.stages.len() {
            true => "?".to_string(),
            false => about(estimate.seconds),
        };
        total[8] = note;
        rows.push(total);
    } else {
        lines[0] = "memory and time could not be estimated:".to_string();
    }
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    for row in &rows {
        let mut line = String::new();
        for (column, (text, width)) in row.iter().zip(widths).enumerate() {
            // Names to the left, numbers to the right; the last column is as long as it is.
            line += &match column {
                0 | 1 => format!("  {text:width$}"),
                8 => format!("  {text}"),
                _ => format!("  {text:>width$}"),
            };
        }
        lines.push(line.trim_end().to_string());
    }
    lines
}

fn describe(work: &Work) -> String {
    match work {
        Work::Train {
            rows,
            steps,
            tokens,
            validation,
        } => format!(
            "{rows} rows, {steps} steps, {} tokens, and {} to validate",
            thousands(*tokens),
            thousands(*validation)
        ),
        Work::Predict {
            rows,
            read,
            written,
        } => format!(
            "{rows} rows, {} tokens read, up to {} written",
            thousands(*read),
            thousands(*written)
        ),
    }
}

/// Two digits are all that an estimate has.
fn about(seconds: f64) -> String {
    let (minutes, hours) = (seconds / 60.0, seconds / 3600.0);
    if seconds < 5.0 {
        "a few s".to_string()
    } else if seconds < 90.0 {
        format!("about {:.0} s", (seconds / 5.0).ceil() * 5.0)
    } else if minutes < 90.0 {
        format!("about {minutes:.0} min")
    } else if hours < 10.0 {
        format!("about {hours:.1} h")
    } else {
        format!("about {hours:.0} h")
    }
}

fn thousands(tokens: f64) -> String {
    match tokens {
        t if t >= 1e6 => format!("{:.1} M", t / 1e6),
        t if t >= 1e4 => format!("{:.0} k", t / 1e3),
        t => format!("{t:.0}"),
    }
}

fn size(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1024_f64.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::estimate::{Remedy, Shortage};

    /// As on a GPU that is too small.
    fn too_large() -> Estimate {
        let gib = |gib: f64| (gib * 1024_f64.powi(3)) as u64;
        Estimate {
            device: "GPU 0, NVIDIA H100 80GB HBM3".into(),
            room: None,
            stages: Vec::new(),
            seconds: 0.0,
            memory: gib(27.4),
            shortages: vec![Shortage {
                stage: "train",
                name: "qwen_lora".into(),
                needed: gib(27.4),
                free: gib(22.1),
                device: "GPU 0".into(),
                remedies: vec![
                    Remedy {
                        set: "`micro_batch = 4`".into(),
                        needed: gib(21.0),
                    },
                    Remedy {
                        set: "`precision = nf4`".into(),
                        needed: gib(19.5),
                    },
                ],
            }],
        }
    }

    #[test]
    fn a_plan_that_does_not_fit_the_gpu_that_was_named_is_an_error_with_two_remedies() {
        let (said, outcome) = verdict(&too_large(), true);
        assert_eq!(
            said,
            [
                "error: training `qwen_lora` needs 27.40 GiB on GPU 0 and 22.10 GiB are free; set `micro_batch = 4` (21.00 GiB) or `precision = nf4` (19.50 GiB)"
            ]
        );
        assert!(matches!(outcome, Err(Failure::Said(2))));
    }

    #[test]
    fn a_plan_that_does_not_fit_elsewhere_is_a_warning() {
        let (said, outcome) = verdict(&too_large(), false);
        assert!(said[0].starts_with("warning: training `qwen_lora` needs 27.40 GiB"));
        assert!(outcome.is_ok());
    }
}
