//! Which comparisons of an evaluation the study asks for, and all of them.

use super::judge::{Entry, LOOKUP, MAJORITY};
use crate::evaluate::statistics::{Graded, Pair, compare};
use crate::report::document::Role;
use medft_dsl::plan::{Level, Plan};

/// Every pair of systems; asked for are those of the recipe, and each tuned system against its own base and the rules. `clusters` are the
/// groups of near-duplicates, row by row.
pub(super) fn pairs(
    plan: &Plan,
    evaluation: &str,
    level: Level,
    entries: &[Entry],
    clusters: &[u32],
) -> Vec<Pair> {
    let mut asked: Vec<(&str, &str)> = Vec::new();
    let models = || entries.iter().filter(|e| e.system.role != Role::Baseline);
    for block in plan.compares.iter().filter(|c| c.of == evaluation) {
        let first = models().next().map(|e| e.name.as_str());
        if let Some(baseline) = block.baseline.as_deref().or(first) {
            asked.extend(models().map(|e| (e.name.as_str(), baseline)));
        }
    }
    for entry in entries.iter().filter(|e| e.system.role == Role::Tuned) {
        let own = entry.system.base.as_deref();
        let others = own.into_iter().chain([MAJORITY, LOOKUP]);
        asked.extend(others.map(|other| (entry.name.as_str(), other)));
    }
    let right: Vec<Vec<bool>> = entries
        .iter()
        .map(|e| e.judged.iter().map(|j| j.right(level)).collect())
        .collect();
    let graded: Vec<Graded> = entries
        .iter()
        .zip(&right)
        .map(|(entry, right)| Graded {
            name: &entry.name,
            right,
            accuracy: &entry.accuracy,
        })
        .collect();
    compare(&graded, &asked, level, clusters)
}
