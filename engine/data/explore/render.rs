//! An exploration as plain text for a terminal, about 100 columns wide.
//!
//! Findings come first. It refuses colours and box drawing: the text also goes to files and mails.
//! Invariant: every number shown is one of [`Exploration`], none is computed anew except shares.

use super::findings::percent;
use super::{CodeCount, Exploration, Spread};
use medft_dsl::plan::Level;
use std::fmt::{self, Write};

/// The exploration as text.
pub fn render_text(data: &Exploration) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, data);
    text
}

fn write_all(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(out, "data `{}`: {}", data.name, data.path.display())?;
    writeln!(
        out,
        "{} rows read, {} usable, hash {:.16}",
        data.read, data.rows, data.hash
    )?;
    findings(out, data)?;
    labels(out, data)?;
    codes(out, data)?;
    lengths(out, data)?;
    texts(out, data)?;
    leaks(out, data)
}

fn findings(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(out, "\nFindings")?;
    if data.findings.is_empty() {
        writeln!(out, "  none")?;
    }
    for (number, finding) in (1..).zip(&data.findings) {
        writeln!(out, "  {number}. {}", finding.sentence)?;
        writeln!(out, "     -> {}", finding.remedy)?;
    }
    Ok(())
}

fn labels(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(out, "\nLabels        different   most frequent")?;
    for labels in &data.labels {
        let share = percent(labels.most_rows, data.rows);
        let level = level_name(labels.level);
        writeln!(
            out,
            "  {level:<12}{:>9}   {} ({} rows, {share})",
            labels.labels, labels.most, labels.most_rows
        )?;
    }
    let shown: Vec<String> = data
        .rows_per_label
        .iter()
        .take(8)
        .map(|(rows, labels)| format!("{labels} codes with {rows}"))
        .collect();
    let more = if data.rows_per_label.len() > 8 {
        ", .."
    } else {
        ""
    };
    writeln!(out, "  rows a code: {}{more}", shown.join(", "))
}

fn codes(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(out, "\nCodes in {}", data.release)?;
    writeln!(
        out,
        "  {:<22}{:>9} rows {:>8}",
        "billable",
        data.billable,
        percent(data.billable, data.rows)
    )?;
    let kinds = [
        ("parents, not billable", &data.parents),
        ("retired", &data.retired),
        ("unknown", &data.unknown),
    ];
    for (name, CodeCount { rows, examples, .. }) in kinds {
        let examples = examples.join(", ");
        writeln!(
            out,
            "  {name:<22}{rows:>9} rows {:>8}   {examples}",
            percent(*rows, data.rows)
        )?;
    }
    Ok(())
}

fn lengths(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(
        out,
        "\n{:<22}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}",
        "Length of a text", "mean", "min", "5 %", "25 %", "median", "75 %", "95 %", "max"
    )?;
    let mut row = |name: &str, spread: &Spread| {
        let Spread {
            mean,
            min,
            p5,
            p25,
            p50,
            p75,
            p95,
            max,
        } = spread;
        write!(
            out,
            "  {name:<20}{mean:>8.0}{min:>8}{p5:>8}{p25:>8}{p50:>8}{p75:>8}{p95:>8}{max:>8}"
        )
    };
    row("characters", &data.chars)?;
    row("\n  words", &data.words)?;
    for model in &data.tokens {
        row(&format!("\n  tokens, {}", model.model), &model.tokens)?;
    }
    writeln!(out)?;
    for model in &data.tokens {
        let share = percent(model.over, data.rows);
        writeln!(
            out,
            "  over {} tokens of {}: {} rows ({share})",
            model.max_tokens, model.model, model.over
        )?;
    }
    Ok(())
}

fn texts(out: &mut String, data: &Exploration) -> fmt::Result {
    writeln!(out, "\nTexts")?;
    writeln!(out, "  {:>7} dropped: no text", data.empty_text)?;
    writeln!(out, "  {:>7} dropped: no code", data.empty_code)?;
    for (section, rows) in &data.lacking {
        writeln!(out, "  {rows:>7} lack the section {section}")?;
    }
    if data.hidden_codes + data.hidden_titles > 0 {
        writeln!(
            out,
            "  {:>7} codes and {} titles hidden",
            data.hidden_codes, data.hidden_titles
        )?;
    }
    writeln!(
        out,
        "  {:>7} repeat an earlier text, {} nearly",
        data.equal, data.near
    )?;
    writeln!(
        out,
        "  {:>7} have a text that also stands under another code",
        data.contradicted
    )?;
    writeln!(
        out,
        "  {:>6.1}% is the best accuracy that these labels allow",
        100.0 * data.ceiling
    )
}

fn leaks(out: &mut String, data: &Exploration) -> fmt::Result {
    let leaks = &data.leaks;
    writeln!(out, "\nThe answer in the text")?;
    for (count, what) in [
        (leaks.gold_code, "the gold code stands in the text"),
        (leaks.any_code, "any ICD-10-CM code does"),
        (
            leaks.gold_title,
            "the official title of the gold code does, word for word",
        ),
        (leaks.title_words, "all content words of that title do"),
        (
            leaks.lookup,
            "right by a plain look-up of all billable titles",
        ),
        (
            leaks.lookup_labels,
            "right by a look-up of the titles of these labels",
        ),
    ] {
        writeln!(out, "  {:>8}  {what}", percent(count, leaks.rows))?;
    }
    Ok(())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Code => "code",
        Level::Category => "category",
        Level::Block => "block",
        Level::Chapter => "chapter",
    }
}
