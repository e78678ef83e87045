//! All answers of an evaluation as one CSV table, for readers' own statistics.
//!
//! Holds the columns. Invariant: a line a row and system, in the order of the report.

use super::judge::Entry;
use medft_dsl::plan::Level;

/// Columns; `docs/report.md` explains them.
const COLUMNS: [&str; 15] = [
    "row",
    "system",
    "role",
    "gold",
    "answer",
    "code",
    "validity",
    "error",
    "code_right",
    "category_right",
    "block_right",
    "chapter_right",
    "tokens",
    "finish",
    "seconds",
];

/// A file of the run's folder.
pub struct Table {
    /// Name of the evaluate block.
    pub evaluation: String,
    /// Its text.
    pub csv: Vec<u8>,
}

/// The table of an evaluation. A level below the one asked for is an empty cell.
pub(super) fn table(evaluation: &str, asked: Level, entries: &[Entry]) -> Table {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
    for entry in entries {
        for (prediction, judged) in entry.predictions.iter().zip(&entry.judged) {
            let right = |level: Level| {
                if level < asked {
                    return String::new();
                }
                u8::from(judged.right(level)).to_string()
            };
            let gold = judged.gold(asked);
            let code = judged.predicted(asked).or(prediction.outcome.code());
            lines.push(vec![
                prediction.row.clone(),
                entry.name.clone(),
                word(&entry.system.role),
                gold.to_owned(),
                prediction.answer.clone(),
                code.unwrap_or_default().to_owned(),
                word(&judged.validity),
                judged.error.map_or(String::new(), |error| word(&error)),
                right(Level::Code),
                right(Level::Category),
                right(Level::Block),
                right(Level::Chapter),
                prediction.tokens.to_string(),
                word(&prediction.finish),
                format!("{:.4}", prediction.seconds),
            ]);
        }
    }
    for line in lines {
        // Writing to memory cannot fail, and every line has as many cells.
        let _ = csv.write_record(line);
    }
    Table {
        evaluation: evaluation.to_owned(),
        csv: csv.into_inner().unwrap_or_default(),
    }
}

/// A variant's name as JSON has it; of one with fields, its own name.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}
