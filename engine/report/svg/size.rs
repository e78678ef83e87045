//! Size of a model against its accuracy.

use super::{Anchor, Canvas, Figure, Scale, color_class};
use crate::report::document::{Evaluation, Role, System};
use crate::report::format::{interval, level, parameters, percent};

const LEFT: f64 = 56.0;
const RIGHT: f64 = 520.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 290.0;
const LABELS: f64 = 184.0;
/// Pixels between two labels.
const LINE: f64 = 15.0;

/// None unless at least two models have a known size.
pub(super) fn figure(evaluation: &Evaluation) -> Option<Figure> {
    let asked = evaluation.level;
    let sized: Vec<(usize, &System, f64)> = evaluation
        .systems
        .iter()
        .enumerate()
        .filter_map(|(number, system)| {
            Some((
                number,
                system,
                (system.parameters.filter(|&n| n > 0)? as f64).log10(),
            ))
        })
        .collect();
    if sized.len() < 2 {
        return None;
    }
    let sizes = || sized.iter().map(|(_, _, size)| *size);
    let (least, most) = (sizes().reduce(f64::min)?, sizes().reduce(f64::max)?);
    let highs = evaluation
        .systems
        .iter()
        .filter_map(|s| Some(s.at(asked)?.accuracy.high));
    let highest = highs.reduce(f64::max)?.max(0.01);
    let x = Scale::new((least - 0.15, most + 0.15), (LEFT, RIGHT));
    let y = Scale::new((0.0, highest * 1.05), (BOTTOM, TOP));

    let mut canvas = Canvas::new(RIGHT + LABELS, BOTTOM + 46.0);
    canvas.vertical_axis(&y, (LEFT, RIGHT), |tick| {
        format!("{} %", (tick * 1e4).round() / 100.0)
    });
    canvas.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    let mut drawn = f64::NEG_INFINITY;
    let mut sorted: Vec<f64> = sizes().collect();
    sorted.sort_by(f64::total_cmp);
    for size in sorted {
        if x.at(size) - drawn > 52.0 {
            drawn = x.at(size);
            canvas.line("axis", (drawn, BOTTOM), (drawn, BOTTOM + 4.0));
            canvas.text(
                "tick",
                Anchor::Middle,
                (drawn, BOTTOM + 18.0),
                &parameters(10_f64.powf(size).round() as u64),
                60.0,
            );
        }
    }
    canvas.text(
        "tick",
        Anchor::Middle,
        ((LEFT + RIGHT) / 2.0, BOTTOM + 38.0),
        "parameters (logarithmic)",
        300.0,
    );
    canvas.text(
        "tick",
        Anchor::Start,
        (6.0, 16.0),
        &format!("accuracy ({})", level(asked)),
        300.0,
    );

    let mut labels: Vec<(f64, usize, &System)> = Vec::new();
    for (number, system) in evaluation
        .systems
        .iter()
        .enumerate()
        .filter(|(_, s)| s.role == Role::Baseline)
    {
        let at = y.at(system.accuracy(asked));
        canvas.line(
            &format!("{} rule", color_class(number)),
            (LEFT, at),
            (RIGHT, at),
        );
        labels.push((at, number, system));
    }
    for (_, system, size) in &sized {
        let base = system
            .base
            .as_deref()
            .and_then(|base| sized.iter().find(|(_, other, _)| other.name == base));
        if let Some((_, base, base_size)) = base {
            canvas.line(
                "link",
                (x.at(*base_size), y.at(base.accuracy(asked))),
                (x.at(*size), y.at(system.accuracy(asked))),
            );
        }
    }
    for (number, system, size) in &sized {
        let Some(measured) = system.at(asked) else {
            continue;
        };
        let accuracy = measured.accuracy;
        let at = (x.at(*size), y.at(accuracy.value));
        canvas.line(
            &format!("{} whisker", color_class(*number)),
            (at.0, y.at(accuracy.low)),
            (at.0, y.at(accuracy.high)),
        );
        canvas.mark(
            system.role,
            *number,
            at,
            &format!(
                "{}: {} (95 % interval {})",
                system.name,
                percent(accuracy.value),
                interval(accuracy)
            ),
        );
        labels.push((at.1, *number, system));
    }
    // Labels keep the order of the points and step aside, first downwards, then up from the axis.
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut places: Vec<f64> = labels.iter().map(|label| label.0).collect();
    for i in 1..places.len() {
        places[i] = places[i].max(places[i - 1] + LINE);
    }
    let mut lowest = BOTTOM + LINE / 2.0;
    for place in places.iter_mut().rev() {
        *place = place.min(lowest);
        lowest = *place - LINE;
    }
    for ((_, number, system), place) in labels.into_iter().zip(places) {
        canvas.mark(system.role, number, (RIGHT + 16.0, place), &system.name);
        canvas.text(
            "",
            Anchor::Start,
            (RIGHT + 28.0, place + 4.0),
            &system.name,
            LABELS - 34.0,
        );
    }
    let caption = format!(
        "Size of the models in `{}` against accuracy, judged by {}, with 95 % bootstrap intervals; dotted lines lead from a model as it comes to its tuned form, dashed lines are rules without a model.",
        evaluation.name,
        level(asked)
    );
    Some(canvas.finish(
        "size",
        &[&evaluation.name],
        "Size against accuracy",
        caption,
    ))
}
