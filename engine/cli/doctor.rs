//! `doctor`: what would work on this machine.

use super::{Outcome, output};
use crate::machine::Machine;

/// Arguments of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Print an object
    #[arg(long)]
    json: bool,
}

/// Runs `doctor`.
pub fn run(args: Args) -> Outcome {
    let machine = Machine::inspect();
    if args.json {
        return output::json(&machine);
    }
    for line in machine.report() {
        output::line(&line)?;
    }
    Ok(())
}
