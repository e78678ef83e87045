//! `check`: is the recipe right, and what will it need?

use super::device::{DeviceArgs, with_backend};
use super::recipe::RecipeArgs;
use super::{Outcome, output};
use crate::study::estimate::{Need, needs};
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
    needs: Vec<Need>,
}

/// Runs `check`.
pub fn run(args: Args) -> Outcome {
    let recipe = args.recipe.check()?;
    let plan = &recipe.plan;
    let needs = with_backend!(args.device.open()?, backend => needs(plan, &backend));
    if args.json {
        return output::json(&Checked { plan, needs });
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
    output::line("memory, and time for 1,000 tokens on this machine (estimated):")?;
    let width = needs
        .iter()
        .map(|n| n.name.chars().count())
        .max()
        .unwrap_or(0);
    for need in &needs {
        output::line(&format!("  {:width$}  {}", need.name, describe(need)))?;
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

fn describe(need: &Need) -> String {
    let Some(bytes) = need.bytes() else {
        return "not on this machine yet, so its needs are unknown".to_string();
    };
    let mut parts = vec![
        format!("{} of memory", size(bytes)),
        format!("weights {}", size(need.weights.unwrap_or(0))),
    ];
    if let (Some(optimizer), Some(activations)) = (need.optimizer, need.activations) {
        parts.push(format!("adapter and optimizer {}", size(optimizer)));
        parts.push(format!("activations {}", size(activations)));
    }
    if let Some(seconds) = need.seconds_per_1000_tokens {
        parts.push(format!("{seconds:.2} s"));
    }
    parts.join(", ")
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib < 1024.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}
