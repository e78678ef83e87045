//! The words of the grammar: blanks and comments, words, numbers, strings.
//!
//! Holds nom parsers that take one token each, after the blanks before it. It refuses to know how
//! tokens combine. Every comment is recorded once, however often its text is looked at.

use super::ast::{Text, Value, ValueKind, Word};
use super::recovery::resuming;
use super::{Input, Parsed, Problem, fail};
use crate::diagnostic::{Code, Diagnostic};
use crate::source::Span;
use nom::branch::alt;
use nom::bytes::complete::{tag, take_till, take_while, take_while1};
use nom::character::complete::{char, one_of, satisfy};
use nom::combinator::{opt, recognize, value as always};
use nom::multi::fold_many0;
use nom::sequence::{pair, preceded};
use nom::{Input as _, Parser};

/// Blanks and comments.
pub(super) fn trivia(input: Input) -> Parsed<()> {
    let blank = always((), take_while1(char::is_whitespace));
    fold_many0(alt((blank, comment)), || (), |(), ()| ()).parse(input)
}

fn comment(input: Input) -> Parsed<()> {
    let (rest, text) = recognize(pair(char('#'), take_till(|c| c == '\n'))).parse(input)?;
    let start = text.location_offset();
    text.extra
        .comment(start, start + text.fragment().trim_end().len());
    Ok((rest, ()))
}

/// One punctuation mark.
pub(super) fn mark<'a>(mark: char) -> impl Parser<Input<'a>, Output = Input<'a>, Error = Problem> {
    preceded(trivia, recognize(char(mark)))
}

/// Letters, digits and `_`, not starting with a digit.
pub(super) fn word(input: Input) -> Parsed<Word> {
    let body = recognize(pair(satisfy(starts_word), take_while(continues_word)));
    let (rest, text) = preceded(trivia, body).parse(input)?;
    Ok((
        rest,
        Word {
            text: text.fragment().to_string(),
            span: span(text),
        },
    ))
}

pub(super) fn starts_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn continues_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Where a token lies.
pub(super) fn span(token: Input) -> Span {
    let start = token.location_offset();
    Span::new(token.extra.file, start, start + token.fragment().len())
}

/// An integer, a float, or one of them with `%` or a unit.
pub(super) fn number(input: Input) -> Parsed<Value> {
    fn digits(input: Input) -> Parsed<Input> {
        take_while1(|c: char| c.is_ascii_digit() || c == '_').parse(input)
    }
    let fraction = opt(preceded(char('.'), digits));
    let exponent = opt((one_of("eE"), opt(one_of("+-")), digits));
    let (rest, body) = recognize((opt(one_of("+-")), digits, fraction, exponent)).parse(input)?;
    let (rest, unit_text) = alt((tag("%"), take_while(continues_word))).parse(rest)?;
    let whole = Span {
        end: span(unit_text).end,
        ..span(body)
    };
    let bad = |what: String| fail(Diagnostic::new(Code::BadNumber, whole, what));
    let plain: String = body.fragment().chars().filter(|c| *c != '_').collect();
    let amount: f64 = plain
        .parse()
        .map_err(|_| bad(format!("`{plain}` is not a number")))?;
    if !amount.is_finite() {
        return Err(bad(format!("`{plain}` is too large for a number")));
    }
    let kind = match *unit_text.fragment() {
        "" if plain.contains(['.', 'e', 'E']) => ValueKind::Float(amount),
        "" => ValueKind::Int(
            plain
                .parse()
                .map_err(|_| bad(format!("`{plain}` is too large for a number")))?,
        ),
        "%" => ValueKind::Percent(amount / 100.0),
        unit if BYTES.contains(&unit) => ValueKind::Bytes,
        unit if SECONDS.contains(&unit) => ValueKind::Duration,
        unit => {
            let message = format!("unknown unit `{unit}` after a number");
            let known = format!(
                "units are %, {} and {}",
                BYTES.join(", "),
                SECONDS.join(", ")
            );
            return Err(fail(
                Diagnostic::new(Code::BadNumber, span(unit_text), message).help(known),
            ));
        }
    };
    Ok((rest, Value { kind, span: whole }))
}

const BYTES: &[&str] = &["B", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"];
const SECONDS: &[&str] = &["ms", "s", "m", "h", "d"];

/// `"..."` with escapes on one line, or `"""..."""` over several, without their common indentation.
pub(super) fn text(input: Input) -> Parsed<Text> {
    let (input, ()) = trivia(input)?;
    let (body, open) = alt((tag("\"\"\""), tag("\""))).parse(input)?;
    let triple = open.fragment().len() == 3;
    let Some(length) = string_end(body.fragment(), open.fragment()) else {
        let end = if triple {
            span(open).end
        } else {
            span(open).end + line_end(body.fragment())
        };
        let remedy = if triple {
            "end it with `\"\"\"`"
        } else {
            "end it with `\"`, or use `\"\"\"` for several lines"
        };
        let open = Span { end, ..span(open) };
        let diagnostic =
            Diagnostic::new(Code::OpenString, open, "this string does not end").help(remedy);
        // Go on at the braces that the string swallowed at the end of its line.
        let line = body
            .fragment()
            .get(..line_end(body.fragment()))
            .unwrap_or("");
        let next = match triple {
            true => body.fragment().len(),
            false => line
                .trim_end_matches(|c: char| c == '}' || c.is_whitespace())
                .len(),
        };
        return Err(resuming(diagnostic, body.take_from(next)));
    };
    let (rest, raw) = body.take_split(length);
    let (rest, _) = rest.take_split(open.fragment().len());
    let lines = if triple {
        dedent(raw.fragment())
    } else {
        raw.fragment().to_string()
    };
    let value = unescape(&lines).map_err(|escape| {
        let at = span(raw).start + raw.fragment().find(&escape).unwrap_or(0);
        let place = Span {
            start: at,
            end: at + escape.len(),
            ..span(raw)
        };
        let message = format!("unknown escape `{escape}` in a string");
        let known = r#"strings know \n, \t, \r, \" and \\; write \\ for a backslash"#;
        fail(Diagnostic::new(Code::BadEscape, place, message).help(known))
    })?;
    let whole = Span {
        end: rest.location_offset(),
        ..span(open)
    };
    Ok((rest, Text { value, span: whole }))
}

/// The length of a string's inside, up to its closing quotes.
pub(super) fn string_end(body: &str, quotes: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' if quotes.len() == 1 => return None,
            '"' if body.get(at..).is_some_and(|rest| rest.starts_with(quotes)) => return Some(at),
            _ => {}
        }
    }
    None
}

fn line_end(body: &str) -> usize {
    body.find('\n').map_or(body.len(), |at| {
        body.get(..at).unwrap_or("").trim_end().len()
    })
}

/// Drops the first line if it is blank, the last one if it is blank, and the indentation that all
/// other lines share.
fn dedent(raw: &str) -> String {
    let raw = raw.replace("\r\n", "\n");
    let mut lines: Vec<&str> = raw.split('\n').collect();
    if lines.len() == 1 {
        return raw;
    }
    let inline = lines.first().is_some_and(|first| !first.trim().is_empty());
    if !inline {
        lines.remove(0);
    }
    if lines.last().is_some_and(|last| last.trim().is_empty()) {
        lines.pop();
    }
    let indented = lines
        .iter()
        .skip(usize::from(inline))
        .filter(|line| !line.trim().is_empty());
    let indent = indented
        .map(|line| line.len() - line.trim_start_matches([' ', '\t']).len())
        .min()
        .unwrap_or(0);
    let cut = |(index, line): (usize, &&str)| match index {
        0 if inline => line.to_string(),
        _ => line.get(indent..).unwrap_or("").to_string(),
    };
    lines
        .iter()
        .enumerate()
        .map(cut)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Replaces escapes; an unknown one is the error.
fn unescape(raw: &str) -> Result<String, String> {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(c @ ('"' | '\\')) => out.push(c),
            other => return Err(other.map_or("\\".to_string(), |c| format!("\\{c}"))),
        }
    }
    Ok(out)
}

/// The token that stands here, in the user's words, and its place.
pub(super) fn found(input: Input) -> (String, Span) {
    let input = trivia(input).map_or(input, |(rest, ())| rest);
    let here = Span {
        end: input.location_offset(),
        ..span(input)
    };
    match input.fragment().chars().next() {
        None => ("the end of the text".to_string(), here),
        Some('"') => (
            "a string".to_string(),
            Span {
                end: here.end + 1,
                ..here
            },
        ),
        Some(c) if continues_word(c) => {
            let length = input
                .fragment()
                .find(|c| !continues_word(c))
                .unwrap_or(input.fragment().len());
            let text = input.fragment().get(..length).unwrap_or("");
            (
                format!("`{text}`"),
                Span {
                    end: here.end + length,
                    ..here
                },
            )
        }
        Some(c) => (
            format!("`{c}`"),
            Span {
                end: here.end + c.len_utf8(),
                ..here
            },
        ),
    }
}

/// An error that says what would have been taken here.
pub(super) fn expected(input: Input, what: &str) -> nom::Err<Problem> {
    let (found, span) = found(input);
    let diagnostic = Diagnostic::new(
        Code::Unexpected,
        span,
        format!("expected {what}, found {found}"),
    );
    fail(diagnostic.label(format!("expected {what}")))
}
