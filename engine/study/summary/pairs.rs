//! Which systems of an evaluation are compared, and the comparisons.

use super::judge::{Entry, LOOKUP, MAJORITY};
use crate::evaluate::resample::Resampler;
use crate::evaluate::statistics::{Graded, Pair, compare};
use crate::report::document::Role;
use medft_dsl::plan::{Level, Plan};
use std::collections::BTreeSet;

/// The comparisons that the recipe asks for, and each tuned system against its own base and the rules.
pub(super) fn pairs(
    plan: &Plan,
    evaluation: &str,
    level: Level,
    entries: &[Entry],
    resampler: &Resampler,
) -> Vec<Pair> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let models = || entries.iter().filter(|e| e.system.role != Role::Baseline);
    for block in plan.compares.iter().filter(|c| c.of == evaluation) {
        let first = models().next().map(|e| e.name.as_str());
        if let Some(baseline) = block.baseline.as_deref().or(first) {
            wanted.extend(models().map(|e| (e.name.as_str(), baseline)));
        }
    }
    for entry in entries.iter().filter(|e| e.system.role == Role::Tuned) {
        let own = entry.system.base.as_deref();
        wanted.extend(
            own.into_iter()
                .chain([MAJORITY, LOOKUP])
                .map(|b| (entry.name.as_str(), b)),
        );
    }
    let mut seen = BTreeSet::new();
    wanted.retain(|(system, baseline)| system != baseline && seen.insert((*system, *baseline)));
    let right: Vec<(&str, Vec<bool>)> = entries
        .iter()
        .map(|e| {
            (
                e.name.as_str(),
                e.judged.iter().map(|j| j.right(level)).collect(),
            )
        })
        .collect();
    let graded = |name: &str| {
        let found = right.iter().find(|(n, _)| *n == name)?;
        Some(Graded {
            name: found.0,
            right: &found.1,
        })
    };
    let pairs: Vec<(Graded, Graded)> = wanted
        .iter()
        .filter_map(|(system, baseline)| Some((graded(system)?, graded(baseline)?)))
        .collect();
    compare(&pairs, level, resampler)
}
