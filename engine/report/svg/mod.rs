//! Figures as small, accessible SVG.
//!
//! Holds the canvas and the list of a report's figures; each figure has its file. Written by hand because four fixed figures in the page's own
//! type, colours and dark mode are shorter than steering a plotting crate to them. Invariant: every text is
//! escaped, and colours come from classes in `figure.css`, so that one figure serves light, dark and print.

mod accuracy;
mod confusion;
mod loss;
mod size;

use super::document::{Report, Role};
use serde::Serialize;
use std::fmt::Write;

/// Colours and type of figures, for the page and for standalone files.
pub(super) const STYLE: &str = include_str!("figure.css");

/// A figure of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// `loss`, `accuracy`, `size` or `chapters`.
    pub kind: &'static str,
    /// The training; or the evaluation, and for `chapters` the system.
    pub of: Vec<String>,
    /// What it shows, for the caption and for readers who cannot see it.
    pub caption: String,
    /// The `<svg>` element, without style.
    pub svg: String,
}

impl Figure {
    /// Name for a standalone file, such as `accuracy-all.svg`.
    pub fn file_name(&self) -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        };
        let of: String = self
            .of
            .iter()
            .flat_map(|name| std::iter::once('-').chain(name.chars().map(plain)))
            .collect();
        format!("{}{of}.svg", self.kind)
    }

    /// The text of a standalone file.
    pub fn standalone(&self) -> String {
        self.svg
            .replacen("</title>", &format!("</title>\n<style>{STYLE}</style>"), 1)
    }
}

/// All figures for which a report has something to draw: of each training, then of each evaluation (chapters of models only).
pub fn figures(report: &Report) -> Vec<Figure> {
    let mut figures: Vec<Figure> = report.trainings.iter().filter_map(loss::figure).collect();
    for evaluation in report
        .evaluations
        .iter()
        .filter(|e| e.rows > 0 && !e.systems.is_empty())
    {
        figures.push(accuracy::figure(evaluation));
        figures.extend(size::figure(evaluation));
        let models = evaluation
            .systems
            .iter()
            .filter(|system| system.role != Role::Baseline);
        figures.extend(models.filter_map(|system| confusion::figure(evaluation, system)));
    }
    figures
}

/// An `<svg>` element in the making. Coordinates are CSS pixels from the upper left.
struct Canvas {
    body: String,
    width: f64,
    height: f64,
}

/// Where a text is anchored.
#[derive(Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    fn new(width: f64, height: f64) -> Self {
        Canvas {
            body: String::new(),
            width,
            height,
        }
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.push(&format!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        self.push(&format!(
            r#"<polyline class="{class}" points="{}"/>"#,
            points.join(" ")
        ));
    }

    fn rect(
        &mut self,
        class: &str,
        opacity: f64,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        hint: &str,
    ) {
        let hint = escape(hint);
        self.push(&format!(
            r#"<rect class="{class}" fill-opacity="{opacity:.2}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"><title>{hint}</title></rect>"#
        ));
    }

    /// A system's point: a disc for tuned ones, a ring for zero-shot ones, a diamond for rules.
    fn mark(&mut self, role: Role, color: usize, (x, y): (f64, f64), hint: &str) {
        let (class, hint) = (color_class(color), escape(hint));
        let shape = match role {
            Role::Tuned => format!(r#"circle class="{class} solid" cx="{x:.1}" cy="{y:.1}" r="4""#),
            Role::ZeroShot => {
                format!(r#"circle class="{class} ring" cx="{x:.1}" cy="{y:.1}" r="3.6""#)
            }
            Role::Baseline => format!(
                r#"path class="{class} solid" d="M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}Z""#,
                y - 4.5,
                x + 4.5,
                y + 4.5,
                x - 4.5
            ),
        };
        let element = shape.split(' ').next().unwrap_or_default();
        self.push(&format!("<{shape}><title>{hint}</title></{element}>"));
    }

    /// Text that is cut with an ellipsis at about `room` pixels.
    fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str, room: f64) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (shown, full) = (escape(&fit(text, room)), escape(text));
        let hint = if shown == full {
            String::new()
        } else {
            format!("<title>{full}</title>")
        };
        self.push(&format!(r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{shown}{hint}</text>"#));
    }

    /// Grid, ticks and numbers of a vertical axis.
    fn vertical_axis(
        &mut self,
        scale: &Scale,
        (left, right): (f64, f64),
        label: impl Fn(f64) -> String,
    ) {
        for tick in scale.ticks(5) {
            let y = scale.at(tick);
            self.line("grid", (left, y), (right, y));
            self.text(
                "tick",
                Anchor::End,
                (left - 6.0, y + 4.0),
                &label(tick),
                60.0,
            );
        }
    }

    fn push(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn finish(self, kind: &'static str, of: &[&str], title: &str, caption: String) -> Figure {
        let Canvas {
            body,
            width,
            height,
        } = self;
        let (title, alt) = (escape(title), escape(&caption));
        let mut svg = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" aria-label="{alt}">
<title>{title}</title>
<desc>{alt}</desc>
{body}</svg>"#
        );
        Figure {
            kind,
            of: of.iter().map(|&name| name.to_owned()).collect(),
            caption,
            svg,
        }
    }
}

/// A linear map of values to pixels.
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    /// Maps `from` to `to`; a range of no width is widened. Values must be finite.
    fn new(from: (f64, f64), to: (f64, f64)) -> Self {
        let from = if from.1 > from.0 {
            from
        } else {
            (from.0 - 0.5, from.0 + 0.5)
        };
        Scale { from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.to.0 + (value - self.from.0) / (self.from.1 - self.from.0) * (self.to.1 - self.to.0)
    }

    /// About `wanted` round values inside the range.
    fn ticks(&self, wanted: u32) -> Vec<f64> {
        let raw = (self.from.1 - self.from.0) / f64::from(wanted);
        let power = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|m| m * power)
            .find(|&s| s >= raw)
            .unwrap_or(raw);
        let first = (self.from.0 / step - 1e-9).ceil();
        let tick = |i: u32| (first + f64::from(i)) * step;
        (0..=2 * wanted)
            .map(tick)
            .take_while(|&t| t <= self.from.1 + 1e-9 * step)
            .collect()
    }
}

/// The eight series colours in turn.
fn color_class(number: usize) -> String {
    format!("c{}", number % 8)
}

/// Cuts a text to about `room` pixels at 12 px type.
fn fit(text: &str, room: f64) -> String {
    let most = (room / 6.6).max(1.0) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::report;
    use super::*;

    #[test]
    fn every_figure_has_words_and_no_stray_number() {
        let figures = figures(&report());
        let names: Vec<String> = figures.iter().map(Figure::file_name).collect();
        assert_eq!(
            names[..3],
            ["loss-qwen_3b_lora.svg", "accuracy-all.svg", "size-all.svg"]
        );
        for figure in &figures {
            assert!(
                figure.svg.contains("<title>") && figure.svg.contains("<desc>"),
                "{:?}",
                figure.of
            );
            assert!(
                !figure.svg.contains("NaN") && !figure.svg.contains("inf\""),
                "{:?}",
                figure.of
            );
            assert!(figure.standalone().contains("prefers-color-scheme"));
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            Scale::new((0.0, 1.0), (0.0, 100.0)).ticks(5),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(
            Scale::new((3.0, 3.0), (0.0, 100.0)).ticks(2),
            [2.5, 3.0, 3.5]
        );
        assert_eq!(
            Scale::new((130.0, 900.0), (0.0, 1.0)).ticks(4),
            [200.0, 400.0, 600.0, 800.0]
        );
    }

    #[test]
    fn names_cannot_break_out() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.text("tick", Anchor::Start, (0.0, 0.0), "<script>\"&", 900.0);
        let figure = canvas.finish("x", &["../a b"], "<t>", "\"c\"".into());
        assert!(
            figure.svg.contains("&lt;script&gt;&quot;&amp;")
                && figure.svg.contains("aria-label=\"&quot;c&quot;\"")
        );
        assert_eq!(figure.file_name(), "x-.._a_b.svg");
    }
}
