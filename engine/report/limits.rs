//! What the results do not say.
//!
//! Holds sentences that follow from the plan and the report. It refuses general advice: a limit stands here only where this run has it.

use super::document::{Evaluation, Report, Role};
use super::format::{count, share};
use crate::evaluate::groups::Division;
use crate::evaluate::statistics::Verdict;
use medft_dsl::plan::Plan;

/// The limits of a run, each a sentence or two.
pub(super) fn limits(plan: &Plan, report: &Report) -> Vec<String> {
    let mut limits = Vec::new();
    if !report.trainings.is_empty() {
        limits.push(
            "Each training was done once. The intervals cover the choice of test rows, not that of the seed, the order of rows or the \
             settings; a second training would give other numbers."
                .to_owned(),
        );
    }
    if plan.evaluates.iter().any(|e| e.decode.sample) {
        limits.push(
            "Answers were drawn at random, once a row: another seed gives other answers, which the intervals do not cover."
                .to_owned(),
        );
    }
    for evaluation in &report.evaluations {
        limits.extend(unseen(evaluation));
        limits.extend(open(evaluation));
    }
    for data in &report.data {
        if data.not_billable > 0 {
            limits.push(format!(
                "{} of the gold codes of `{}` are not billable in {}: the data were coded by another release, and answers by the newer one \
                 count as wrong there.",
                share(data.not_billable, data.rows),
                data.name,
                data.code_table
            ));
        }
        if data.leaks.gold_title > 0 {
            limits.push(format!(
                "The official title of the gold code stands in {} of the texts of `{}`: these rows can be solved by copying.",
                share(data.leaks.gold_title, data.leaks.rows),
                data.name
            ));
        }
    }
    limits.extend((!report.evaluations.is_empty()).then(|| {
        "All rows come from the data named above. What holds for other texts, clinics or languages was not measured.".to_owned()
    }));
    limits
}

/// How little the rows say of codes that training has not seen.
fn unseen(evaluation: &Evaluation) -> Option<String> {
    let tuned = evaluation.systems.iter().find(|s| s.role == Role::Tuned)?;
    let unseen = tuned
        .groups
        .iter()
        .filter(|g| g.by == Division::Seen && g.name == "unseen");
    let rows: u64 = unseen.map(|g| g.rows).sum();
    (10 * rows < evaluation.rows).then(|| {
        format!(
            "In `{}`, {} of {} rows have a code without a training row: the results say little of such codes.",
            evaluation.name,
            count(rows),
            count(evaluation.rows)
        )
    })
}

/// Comparisons that stayed open.
fn open(evaluation: &Evaluation) -> Option<String> {
    let asked = evaluation.pairs.iter().filter(|p| p.asked);
    let open = asked
        .filter(|p| p.verdict() == Verdict::NoDifferenceShown)
        .count() as u64;
    (open > 0).then(|| {
        format!(
            "In `{}`, {} of the comparisons asked for stayed open. That no difference was shown does not mean that there is none.",
            evaluation.name,
            count(open)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{plan, report};
    use super::*;

    #[test]
    fn limits_are_those_of_the_run() {
        let said = |plan: &Plan, report: &Report| limits(plan, report).join("\n");
        let all = said(&plan(), &report());
        assert!(
            all.contains("done once") && all.contains("not billable"),
            "{all}"
        );
        assert!(
            all.contains("60 of 1,536 rows have a code without"),
            "{all}"
        );
        assert!(!all.contains("drawn at random"), "{all}");
        let (mut sampled, mut bare) = (plan(), report());
        sampled.evaluates[0].decode.sample = true;
        bare.trainings.clear();
        bare.data.clear();
        let few = said(&sampled, &bare);
        assert!(
            few.contains("drawn at random") && !few.contains("done once"),
            "{few}"
        );
    }
}
