//! What a training's tokens look like, counted: the faults that no loss curve shows.
//!
//! Holds counts over finished examples. It refuses to know how they were made, so that a fault of the renderer or of a chat template
//! shows as well.

use super::example::Example;
use super::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Counts over the examples of a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExampleAudit {
    /// Examples.
    pub examples: u64,
    /// Whose last learnt token does not end an answer.
    pub endless: u64,
    /// That begin with the same special token twice.
    pub begun_twice: u64,
    /// Tokens of all examples.
    pub tokens: u64,
    /// Of these, tokens that are learnt.
    pub targets: u64,
}

/// Counts. `ends` are the tokens at which generation stops.
pub fn audit(examples: &[Example], tokenizer: &Tokenizer, ends: &BTreeSet<u32>) -> ExampleAudit {
    let count = |wanted: &dyn Fn(&Example) -> bool| examples.iter().filter(|e| wanted(e)).count();
    let twice = |ids: &[u32]| matches!(ids, [a, b, ..] if a == b && tokenizer.is_special(*a));
    let targets = |e: &Example| e.ids.len().saturating_sub(e.target_start);
    ExampleAudit {
        examples: examples.len() as u64,
        endless: count(&|e| e.ids.last().is_none_or(|last| !ends.contains(last))) as u64,
        begun_twice: count(&|e| twice(&e.ids)) as u64,
        tokens: examples.iter().map(|e| e.ids.len() as u64).sum(),
        targets: examples.iter().map(|e| targets(e) as u64).sum(),
    }
}
