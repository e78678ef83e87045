//! The page: one HTML file that needs nothing else.
//!
//! Holds the filling of `template.html`. It refuses to compute: numbers come from the report, figures from `svg`. Invariant: everything that
//! a user or a model wrote is escaped; only our own figures and styles enter as they are.

use super::document::{Report, ReportError};
use super::svg;
use super::{format, text};
use crate::evaluate::resample::Estimate;
use crate::evaluate::statistics::{p_value, signed_points};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value, context};
use std::collections::BTreeMap;

/// The text of `report.html`.
///
/// # Errors
/// None in practice: the page's template is built in and tested.
pub fn page(report: &Report) -> Result<String, ReportError> {
    let parts: Vec<&str> = report.evaluations.iter().map(text::part).collect();
    let figures = serde_json::to_value(svg::figures(report))?;
    let page = context! { report => value(serde_json::to_value(report)?), figures => value(figures), parts };
    fill("template.html", include_str!("template.html"), page)
}

/// Fills a template with a page's styles, and with our way to write numbers.
pub(super) fn fill(name: &str, template: &str, page: Value) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.add_filter("percent", format::percent);
    environment.add_filter("share", format::share);
    environment.add_filter("count", format::count);
    environment.add_filter("parameters", format::parameters);
    environment.add_filter("seconds", format::seconds);
    environment.add_filter("bytes", format::bytes);
    environment.add_filter("p_value", p_value);
    environment.add_filter("prose", |text: &str| prose(text));
    environment.add_filter("fixed", |value: f64, digits: usize| {
        format!("{value:.digits$}")
    });
    environment.add_filter("signed", |value: f64| {
        format!("{value:+.2}").replace('-', "−")
    });
    environment.add_filter("points", signed_points);
    environment.add_filter("interval", |low: f64, high: f64| {
        format::interval(Estimate {
            value: 0.0,
            low,
            high,
        })
    });
    let style = Value::from_safe_string(
        concat!(include_str!("page.css"), include_str!("svg/figure.css")).to_owned(),
    );
    let script = Value::from_safe_string(include_str!("sort.html").to_owned());
    Ok(environment.render_named_str(name, template, context! { style, script, ..page })?)
}

/// JSON for a template: what minijinja's `serde` feature would do.
pub(super) fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => truth.into(),
        Json::Number(number) => match number.as_u64() {
            Some(whole) => whole.into(),
            None => number.as_f64().into(),
        },
        Json::String(text) => text.into(),
        Json::Array(items) => items.into_iter().map(value).collect(),
        Json::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields
                .into_iter()
                .map(|(key, field)| (key, value(field)))
                .collect();
            fields.into()
        }
    }
}

/// Escapes a sentence and sets what stands between backticks as code.
fn prose(text: &str) -> Value {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        let part = svg::escape(part);
        if at % 2 == 1 {
            html += &format!("<code>{part}</code>");
        } else {
            html += &part;
        }
    }
    Value::from_safe_string(html)
}

#[cfg(test)]
mod tests {
    use super::super::document::Report;
    use super::super::fixture::{plan, report};
    use super::*;

    /// Set `MEDFT_REPORT_DIR` to look at the page and its figures.
    #[test]
    fn a_whole_report() {
        let report = report();
        let html = page(&report).expect("renders");
        for said in [
            "Findings",
            "size-vs-specialization",
            "qwen_3b_lora",
            "McNemar",
            "Methods",
            "E11.65",
            "<svg",
            "recipe &quot;size",
        ] {
            assert!(html.contains(said), "{said} is missing");
        }
        for outside in ["src=\"http", "href=\"http", "url(", "@import"] {
            assert!(
                !html.contains(outside),
                "{outside}: the page must need nothing else"
            );
        }
        if let Ok(dir) = std::env::var("MEDFT_REPORT_DIR") {
            let dir = std::path::Path::new(&dir);
            std::fs::write(dir.join("report.html"), &html).expect("writes");
            std::fs::write(
                dir.join("report.json"),
                report.to_json().expect("serialises"),
            )
            .expect("writes");
            let compared =
                super::super::comparison::html(&[report.clone(), report.clone()]).expect("renders");
            std::fs::write(dir.join("comparison.html"), compared).expect("writes");
            for figure in svg::figures(&report) {
                std::fs::write(dir.join(figure.file_name()), figure.standalone()).expect("writes");
            }
        }
    }

    #[test]
    fn nothing_written_by_others_becomes_markup() {
        let mut report = report();
        let evil = "<script>alert(\"x\")</script>";
        report.recipe = evil.into();
        report.recipe_text = evil.into();
        report.question = Some(evil.into());
        report.evaluations[0].name = evil.into();
        report.evaluations[0].systems[0].name = evil.into();
        report.evaluations[0].examples[0].answers[0].answer = evil.into();
        report.trainings[0].name = evil.into();
        report.conclude(&plan());
        let html = page(&report).expect("renders");
        assert!(!html.contains("<script>alert"), "unescaped");
        assert!(html.contains("&lt;script&gt;alert"));
    }

    #[test]
    fn bare_and_odd_reports_render() {
        let mut bare = report();
        bare.trainings.clear();
        bare.data.clear();
        bare.evaluations.clear();
        bare.question = None;
        bare.conclude(&plan());
        page(&bare).expect("a run that only checked its data");

        let mut one = report();
        one.evaluations[0].systems.truncate(1);
        one.evaluations[0].systems[0].name = "a_very_long_name_".repeat(20);
        one.evaluations[0].pairs.clear();
        one.evaluations[0].examples.clear();
        one.conclude(&plan());
        page(&one).expect("one system");

        let mut empty = report();
        empty.evaluations[0].rows = 0;
        for system in &mut empty.evaluations[0].systems {
            system.metrics = Default::default();
            system.seconds = 0.0;
            system.chapters = Default::default();
        }
        empty.conclude(&plan());
        let html = page(&empty).expect("no rows");
        assert!(html.contains("has no rows") && !html.contains("NaN"));

        let mut diverged = report();
        for point in &mut diverged.trainings[0].curve {
            point.loss = point.loss.map(|_| f64::NAN);
            point.val_loss = Some(f64::INFINITY);
        }
        diverged.conclude(&plan());
        let html = page(&diverged).expect("a training without a loss");
        assert!(!html.contains("NaN") && !html.contains(">inf"));
    }

    #[test]
    fn a_report_survives_its_file() {
        let report = report();
        let json = report.to_json().expect("serialises");
        assert_eq!(Report::from_json(&json).expect("reads"), report);
        let newer = json.replacen("\"schema\": 2", "\"schema\": 3", 1);
        let error = Report::from_json(&newer)
            .expect_err("another schema")
            .to_string();
        assert!(error.contains("schema 3"), "{error}");
        assert!(Report::from_json("[]").is_err());
    }

    #[test]
    fn a_lost_loss_survives_its_file() {
        let mut report = report();
        report.trainings[0].curve[0].loss = Some(f64::NAN);
        let json = report.to_json().expect("serialises");
        assert_eq!(
            Report::from_json(&json).expect("reads").trainings[0].curve[0].loss,
            None
        );
    }
}
