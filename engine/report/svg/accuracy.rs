//! Accuracy of every system at every level, with intervals.

use super::{Anchor, Canvas, Figure, Scale, color_class};
use crate::report::document::Evaluation;
use crate::report::format::{interval, level, percent};

const NAMES: f64 = 176.0;
const WIDTH: f64 = 720.0;
const GAP: f64 = 18.0;
const TOP: f64 = 34.0;
const LINE: f64 = 27.0;

/// One panel a level, one line a system.
pub(super) fn figure(evaluation: &Evaluation) -> Figure {
    let levels: Vec<_> = evaluation
        .systems
        .iter()
        .take(1)
        .flat_map(|s| s.metrics.levels.iter().map(|l| l.level))
        .collect();
    let bottom = TOP + LINE * evaluation.systems.len() as f64;
    let panel = (WIDTH - NAMES - GAP * levels.len() as f64) / levels.len().max(1) as f64;
    let mut canvas = Canvas::new(WIDTH + 8.0, bottom + 40.0);
    let y = |line: usize| TOP + LINE * (line as f64 + 0.5);
    for (line, system) in evaluation.systems.iter().enumerate() {
        canvas.text(
            "",
            Anchor::End,
            (NAMES - 4.0, y(line) + 4.0),
            &system.name,
            NAMES - 8.0,
        );
    }
    for (at, &of) in levels.iter().enumerate() {
        let left = NAMES + GAP + at as f64 * (panel + GAP);
        let x = Scale::new((0.0, 1.0), (left, left + panel));
        canvas.text("head", Anchor::Start, (left, TOP - 14.0), level(of), panel);
        for tick in [0.0, 0.5, 1.0] {
            canvas.line("grid", (x.at(tick), TOP - 4.0), (x.at(tick), bottom + 4.0));
            canvas.text(
                "tick",
                Anchor::Middle,
                (x.at(tick), bottom + 18.0),
                &format!("{:.0}", 100.0 * tick),
                40.0,
            );
        }
        for (line, system) in evaluation.systems.iter().enumerate() {
            let Some(measured) = system.at(of) else {
                continue;
            };
            let accuracy = measured.accuracy;
            let class = format!("{} whisker", color_class(line));
            canvas.line(
                &class,
                (x.at(accuracy.low), y(line)),
                (x.at(accuracy.high), y(line)),
            );
            let hint = format!(
                "{}, {}: {} (95 % interval {})",
                system.name,
                level(of),
                percent(accuracy.value),
                interval(accuracy)
            );
            canvas.mark(system.role, line, (x.at(accuracy.value), y(line)), &hint);
        }
    }
    canvas.text(
        "tick",
        Anchor::Middle,
        (NAMES + (WIDTH - NAMES) / 2.0, bottom + 36.0),
        "accuracy in percent",
        300.0,
    );
    let caption = format!(
        "Accuracy in `{}` at each level of the code tree, with 95 % bootstrap intervals. Discs are tuned models, rings models as they come, diamonds rules.",
        evaluation.name
    );
    canvas.finish(
        "accuracy",
        &[&evaluation.name],
        "Accuracy by level and system",
        caption,
    )
}
