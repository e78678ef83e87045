//! Rows for the reader to look at.
//!
//! Holds the choice of a few rows and their excerpts. It refuses to choose by result alone: half of the rows are those on which systems
//! disagree, the rest any, both spread evenly over the data. Invariant: the same rows give the same examples.

use super::document::{Example, ExampleAnswer};
use crate::evaluate::metrics::Judged;
use crate::evaluate::prediction::Prediction;
use medft_dsl::plan::Level;
use std::collections::BTreeSet;

/// Characters of a text that are shown.
const EXCERPT: usize = 320;

/// A row's text and label.
#[derive(Debug, Clone, Copy)]
pub struct ExampleRow<'a> {
    /// Id of the row.
    pub id: &'a str,
    /// What the model read.
    pub text: &'a str,
    /// Official title of the gold code.
    pub title: &'a str,
}

/// A system's answers, in the order of the rows.
#[derive(Debug, Clone, Copy)]
pub struct ExampleSystem<'a> {
    /// The system.
    pub name: &'a str,
    /// Its answers.
    pub predictions: &'a [Prediction],
    /// The same, judged.
    pub judged: &'a [Judged],
}

/// Chooses at most `wanted` rows and puts the answers side by side.
pub fn choose(
    rows: &[ExampleRow],
    systems: &[ExampleSystem],
    level: Level,
    wanted: usize,
) -> Vec<Example> {
    let right =
        |row: usize, system: &ExampleSystem| system.judged.get(row).is_some_and(|j| j.right(level));
    let disputed: Vec<usize> = (0..rows.len())
        .filter(|&row| {
            let verdicts: BTreeSet<bool> =
                systems.iter().map(|system| right(row, system)).collect();
            verdicts.len() > 1
        })
        .collect();
    let mut chosen: BTreeSet<usize> = spread(&disputed, wanted / 2).collect();
    let others: Vec<usize> = (0..rows.len())
        .filter(|row| !chosen.contains(row))
        .collect();
    chosen.extend(spread(&others, wanted.saturating_sub(chosen.len())));
    let example = |at: usize| {
        let row = rows.get(at)?;
        let answer = |system: &ExampleSystem| {
            let prediction = system.predictions.get(at)?;
            Some(ExampleAnswer {
                system: system.name.to_owned(),
                answer: prediction.answer.clone(),
                code: prediction.outcome.code().map(str::to_owned),
                right: right(at, system),
            })
        };
        let gold = systems.iter().find_map(|system| system.judged.get(at));
        Some(Example {
            row: row.id.to_owned(),
            excerpt: excerpt(row.text),
            gold: gold.map_or_else(String::new, |judged| judged.gold(level).to_owned()),
            title: row.title.to_owned(),
            answers: systems.iter().filter_map(answer).collect(),
        })
    };
    chosen.into_iter().filter_map(example).collect()
}

/// At most `wanted` of `from`, evenly spread.
fn spread(from: &[usize], wanted: usize) -> impl Iterator<Item = usize> + '_ {
    let wanted = wanted.min(from.len());
    (0..wanted).filter_map(move |i| from.get(i * from.len() / wanted).copied())
}

fn excerpt(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(EXCERPT) {
        Some((end, _)) => words.get(..end).unwrap_or_default().trim_end().to_owned() + " …",
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::answer;
    use crate::evaluate::baselines::predict;
    use crate::evaluate::codes::small_tree::SmallTree;
    use crate::evaluate::metrics::judge;

    #[test]
    fn disputed_rows_come_first_and_texts_are_cut_at_a_character() {
        let text = "ä ".repeat(400);
        let rows: Vec<String> = (0..20).map(|i| format!("row{i}")).collect();
        let read = |code: fn(usize) -> &'static str| {
            let mut row = 0;
            let found = predict(
                "s",
                rows.iter().map(|r| (r.as_str(), "")),
                Level::Code,
                &SmallTree,
                |_| {
                    row += 1;
                    Some(code(row - 1).to_owned())
                },
            );
            let judged = found.iter().map(|p| {
                judge(
                    &SmallTree,
                    "I10",
                    &answer::read(&p.answer, Level::Code, &SmallTree),
                    Level::Code,
                )
            });
            let judged: Vec<Judged> = judged.collect();
            (found, judged)
        };
        let (a, b) = (
            read(|_| "I10"),
            read(|row| if row == 13 { "F32.A" } else { "I10" }),
        );
        let system = |name, (predictions, judged)| ExampleSystem {
            name,
            predictions,
            judged,
        };
        let systems = [system("a", (&a.0, &a.1)), system("b", (&b.0, &b.1))];
        let texts: Vec<ExampleRow> = rows
            .iter()
            .map(|id| ExampleRow {
                id,
                text: &text,
                title: "Hypertension",
            })
            .collect();
        let found = choose(&texts, &systems, Level::Code, 4);
        assert_eq!(found.len(), 4);
        let disputed = found
            .iter()
            .find(|e| e.row == "row13")
            .expect("the only disputed row is shown");
        assert_eq!(disputed.gold, "I10");
        let right: Vec<bool> = disputed.answers.iter().map(|a| a.right).collect();
        assert_eq!(right, [true, false]);
        assert!(disputed.excerpt.ends_with('…') && disputed.excerpt.chars().count() <= EXCERPT + 2);
        assert!(choose(&[], &systems, Level::Code, 4).is_empty());
        assert_eq!(choose(&texts, &[], Level::Code, 4).len(), 4);
    }
}
