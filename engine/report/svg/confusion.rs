//! Chapters taken for each other, as a heat map.

use super::{Anchor, Canvas, Figure};
use crate::report::document::{Evaluation, System};
use crate::report::format::{percent, share};

const LEFT: f64 = 58.0;
const TOP: f64 = 62.0;
const CELL: f64 = 21.0;

/// None without answers.
pub(super) fn figure(evaluation: &Evaluation, system: &System) -> Option<Figure> {
    let confusion = &system.chapters;
    let labels = &confusion.labels;
    if labels.is_empty() {
        return None;
    }
    let columns: Vec<&str> = labels.iter().map(String::as_str).chain(["none"]).collect();
    let size = (
        LEFT + CELL * columns.len() as f64,
        TOP + CELL * labels.len() as f64,
    );
    let mut canvas = Canvas::new((size.0 + 12.0).max(260.0), size.1 + 12.0);
    canvas.text(
        "tick",
        Anchor::Start,
        (LEFT, 14.0),
        "answered chapter",
        200.0,
    );
    canvas.text("tick", Anchor::Start, (4.0, TOP - 8.0), "gold", 50.0);
    for (at, label) in columns.iter().enumerate() {
        let (x, y) = (LEFT + CELL * (at as f64 + 0.5), TOP - 8.0);
        canvas.push(&format!(
            r#"<g transform="translate({x:.1} {y:.1}) rotate(-60)">"#
        ));
        canvas.text("small", Anchor::Start, (0.0, 3.0), label, 44.0);
        canvas.push("</g>");
    }
    let mut agreed = 0;
    let mut all = 0;
    for (line, (gold, counts)) in labels.iter().zip(&confusion.counts).enumerate() {
        let rows: u64 = counts.iter().sum();
        all += rows;
        let y = TOP + CELL * line as f64;
        canvas.text(
            "small",
            Anchor::End,
            (LEFT - 6.0, y + CELL / 2.0 + 3.0),
            gold,
            50.0,
        );
        canvas.line("grid", (LEFT, y), (size.0, y));
        for (at, (&count, answered)) in counts
            .iter()
            .zip(&columns)
            .enumerate()
            .filter(|(_, (count, _))| **count > 0)
        {
            let right = at == line;
            agreed += if right { count } else { 0 };
            let part = count as f64 / rows as f64;
            let x = LEFT + CELL * at as f64;
            let hint = format!(
                "gold {gold}, answered {answered}: {count} of {rows} ({})",
                percent(part)
            );
            let class = if right { "c0 cell" } else { "c1 cell" };
            canvas.rect(
                class,
                0.08 + 0.72 * part,
                (x + 0.5, y + 0.5),
                (CELL - 1.0, CELL - 1.0),
                &hint,
            );
            if count < 1000 {
                canvas.text(
                    "small",
                    Anchor::Middle,
                    (x + CELL / 2.0, y + CELL / 2.0 + 3.5),
                    &count.to_string(),
                    CELL,
                );
            }
        }
    }
    canvas.line("grid", (LEFT, size.1), (size.0, size.1));
    let caption = format!(
        "Chapters in `{}` as {} answers them: rows are gold chapters, the diagonal is right ({}), the last column holds answers without a code.",
        evaluation.name,
        system.name,
        share(agreed, all)
    );
    Some(canvas.finish(
        "chapters",
        &[&evaluation.name, &system.name],
        "Confusion by chapter",
        caption,
    ))
}
