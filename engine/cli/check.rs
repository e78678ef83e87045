//! `check`: is the recipe right, do the files that it names work, and what will a run need?

use super::device::{DeviceArgs, with_backend};
use super::recipe::RecipeArgs;
use super::run::blame;
use super::{Outcome, output};
use crate::study::estimate::{Estimate, Work, estimate};
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
    let plan = &recipe.plan;
    let estimate =
        with_backend!(args.device.open()?, backend => estimate(plan, &backend)).map_err(blame)?;
    if args.json {
        return output::json(&Checked { plan, estimate });
    }
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
    for line in table(&estimate) {
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
    let mut lines = vec![
        "estimated for this machine, from nothing done yet; times can turn out half or twice as long:"
            .to_string(),
    ];
    let mut rows = vec![["stage", "name", "memory", "time", "work"].map(str::to_string)];
    let unknown = || "?".to_string();
    for stage in &estimate.stages {
        let work = stage.work.as_ref().map(describe);
        rows.push([
            stage.stage.to_string(),
            stage.name.clone(),
            stage.memory.map_or_else(unknown, size),
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
    if estimate.stages.len() > lacking {
        let (memory, time) = (size(estimate.memory), about(estimate.seconds));
        rows.push(["total".to_string(), String::new(), memory, time, note]);
    } else {
        lines[0] = "memory and time could not be estimated:".to_string();
    }
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [0, 1, 2, 3].map(width);
    for [stage, name, memory, time, work] in &rows {
        let [a, b, c, d] = widths;
        lines.push(format!(
            "  {stage:a$}  {name:b$}  {memory:>c$}  {time:>d$}  {work}"
        ));
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
    format!("{:.2} GiB", bytes as f64 / 1024_f64.powi(3))
}
