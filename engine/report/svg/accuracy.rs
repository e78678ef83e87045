//! Accuracy of every system at every level, with intervals.

use super::{Anchor, Canvas, Figure, Scale, color_class};
use crate::report::document::Evaluation;
use crate::report::format::{interval, level, percent};

const NAMES: f64 = 170.0;
const PANEL: f64 = 236.0;
const GAP: f64 = 44.0;
const TOP: f64 = 34.0;
const LINE: f64 = 24.0;
const FOOT: f64 = 34.0;
/// Panels side by side.
const ABREAST: usize = 2;

/// One panel a level, one line a system.
pub(super) fn figure(evaluation: &Evaluation) -> Figure {
    let systems = &evaluation.systems;
    let measured = systems
        .first()
        .map_or(&[] as &[_], |system| &system.metrics.levels);
    let height = TOP + LINE * systems.len() as f64 + FOOT;
    let lines_of_panels = measured.len().div_ceil(ABREAST) as f64;
    let mut canvas = Canvas::new(
        NAMES + (PANEL + GAP) * ABREAST as f64,
        height * lines_of_panels + 10.0,
    );
    for (at, of) in measured.iter().map(|measured| measured.level).enumerate() {
        let left = NAMES + GAP / 2.0 + (at % ABREAST) as f64 * (PANEL + GAP);
        let top = (at / ABREAST) as f64 * height + TOP;
        let bottom = top + LINE * systems.len() as f64;
        let x = Scale::new((0.0, 1.0), (left, left + PANEL));
        canvas.text(
            "head",
            Anchor::Start,
            (left, top - 12.0),
            &format!("{}, percent right", level(of)),
            PANEL,
        );
        for tick in x.ticks(5) {
            canvas.line("grid", (x.at(tick), top - 3.0), (x.at(tick), bottom + 3.0));
            canvas.text(
                "tick",
                Anchor::Middle,
                (x.at(tick), bottom + 17.0),
                &format!("{:.0}", 100.0 * tick),
                40.0,
            );
        }
        for (line, system) in systems.iter().enumerate() {
            let y = top + LINE * (line as f64 + 0.5);
            if at % ABREAST == 0 {
                canvas.text(
                    "",
                    Anchor::End,
                    (NAMES - 4.0, y + 4.0),
                    &system.name,
                    NAMES - 8.0,
                );
            }
            let Some(accuracy) = system.at(of).map(|measured| measured.accuracy) else {
                continue;
            };
            let class = format!("{} whisker", color_class(line));
            canvas.line(&class, (x.at(accuracy.low), y), (x.at(accuracy.high), y));
            let (value, range) = (percent(accuracy.value), interval(accuracy));
            let hint = format!(
                "{}, {}: {value} (95 % interval {range})",
                system.name,
                level(of)
            );
            canvas.mark(system.role, line, (x.at(accuracy.value), y), &hint);
        }
    }
    let caption = format!(
        "Accuracy in `{}` at each level of the code tree, with 95 % bootstrap intervals. Discs are tuned models, rings models as they come, \
         diamonds rules.",
        evaluation.name
    );
    canvas.finish(
        "accuracy",
        &[&evaluation.name],
        "Accuracy by level and system",
        caption,
    )
}
