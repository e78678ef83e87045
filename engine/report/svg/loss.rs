//! Training and validation loss over the steps.

use super::{Anchor, Canvas, Figure, Scale};
use crate::report::document::Training;
use crate::report::format::count;

const LEFT: f64 = 56.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 256.0;

/// The curve of one training; none if no loss was ever a number.
pub(super) fn figure(training: &Training) -> Option<Figure> {
    let points = |of: fn(&crate::report::document::CurvePoint) -> Option<f64>| -> Vec<(f64, f64)> {
        let finite = training
            .curve
            .iter()
            .filter_map(|p| Some((p.step as f64, of(p)?)));
        finite.filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (train, val) = (points(|p| p.loss), points(|p| p.val_loss));
    let all = || train.iter().chain(&val);
    let highest = all().map(|p| p.1).reduce(f64::max)?;
    let last = training.curve.iter().map(|p| p.step).max()? as f64;
    let x = Scale::new((0.0, last.max(1.0)), (LEFT, RIGHT));
    let y = Scale::new((0.0, highest.max(1e-9) * 1.04), (BOTTOM, TOP));

    let mut canvas = Canvas::new(RIGHT + 20.0, BOTTOM + 46.0);
    canvas.vertical_axis(&y, (LEFT, RIGHT), |tick| {
        format!("{}", (tick * 1e6).round() / 1e6)
    });
    canvas.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    for tick in x.ticks(6) {
        canvas.text(
            "tick",
            Anchor::Middle,
            (x.at(tick), BOTTOM + 17.0),
            &count(tick as u64),
            80.0,
        );
    }
    canvas.text(
        "tick",
        Anchor::Middle,
        ((LEFT + RIGHT) / 2.0, BOTTOM + 38.0),
        "optimizer step",
        200.0,
    );
    canvas.text(
        "tick",
        Anchor::Start,
        (6.0, 16.0),
        "loss per target token",
        200.0,
    );
    if let Some(best) = training.best_step {
        let at = x.at(best as f64);
        canvas.line("c2 rule", (at, TOP), (at, BOTTOM));
        let anchor = if best as f64 > last / 2.0 {
            Anchor::End
        } else {
            Anchor::Start
        };
        let label = format!("kept: step {}", count(best));
        canvas.text("tick", anchor, (at, TOP - 6.0), &label, 160.0);
    }
    let place = |points: &[(f64, f64)]| {
        points
            .iter()
            .map(|&(step, loss)| (x.at(step), y.at(loss)))
            .collect::<Vec<_>>()
    };
    canvas.polyline("c0 faint", &place(&train));
    canvas.polyline("c1 strong", &place(&val));
    for (&(step, loss), point) in val.iter().zip(place(&val)) {
        canvas.mark(
            super::Role::Tuned,
            1,
            point,
            &format!("step {step}: validation loss {loss:.4}"),
        );
    }
    for (at, class, name) in [
        (0.0, "c0 faint", "training"),
        (96.0, "c1 strong", "validation"),
    ] {
        let left = LEFT + 110.0 + at;
        canvas.polyline(class, &[(left, 12.0), (left + 20.0, 12.0)]);
        canvas.text("tick", Anchor::Start, (left + 26.0, 16.0), name, 80.0);
    }
    let ended = match (train.last(), val.iter().map(|p| p.1).reduce(f64::min)) {
        (Some(train), Some(val)) => format!(
            "training loss ended at {:.3}, validation loss was {val:.3} at best",
            train.1
        ),
        (Some(train), None) => format!(
            "training loss ended at {:.3}; there was no validation",
            train.1
        ),
        (None, _) => "only validation loss was logged".to_owned(),
    };
    let lost = training
        .curve
        .iter()
        .filter(|p| p.loss.or(p.val_loss).is_none_or(|loss| !loss.is_finite()))
        .count();
    let lost = if lost > 0 {
        format!(" {lost} logged losses were no numbers and are not drawn.")
    } else {
        String::new()
    };
    let caption = format!(
        "Loss of {} over {} steps: {ended}.{lost}",
        training.name,
        count(last as u64)
    );
    Some(canvas.finish(
        "loss",
        &[&training.name],
        "Training and validation loss",
        caption,
    ))
}
