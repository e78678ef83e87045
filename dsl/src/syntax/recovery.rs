//! Going on after an error.
//!
//! Holds where the parser takes up again: at the end of the broken field's line, at the block's end,
//! or at a place that the error names. It refuses to report anything twice. The parser always moves
//! forward here, so it ends on every text.

use super::grammar::starts_item;
use super::lexeme::{mark, span, string_end, word};
use super::{Input, Problem, unreadable};
use crate::diagnostic::Diagnostic;
use nom::multi::many0;
use nom::sequence::preceded;
use nom::{Input as _, Parser};

/// Reports an error in the field or item that starts at `start`; returns where the next may start.
pub(super) fn recover<'a>(start: Input<'a>, error: nom::Err<Problem>) -> Input<'a> {
    let here = start.location_offset();
    let (diagnostic, resume) = match error {
        nom::Err::Error(Problem::Report { diagnostic, resume })
        | nom::Err::Failure(Problem::Report { diagnostic, resume }) => (*diagnostic, resume),
        _ => (unreadable(span(start.take(0))), None),
    };
    let reached = diagnostic.primary.span.end.max(here);
    start.extra.report(diagnostic);
    let next = resume.map_or_else(
        || line_end(start.fragment(), reached - here),
        |at| at - here,
    );
    start.take_from(next.min(start.fragment().len()))
}

/// Steps over a closing brace that belongs to nothing.
pub(super) fn past_brace(input: Input) -> Input {
    mark('}').parse(input).map_or(input, |(rest, _)| rest)
}

/// An error after which the parser goes on right at `next`.
pub(super) fn resuming(diagnostic: Diagnostic, next: Input) -> nom::Err<Problem> {
    resuming_after(super::fail(diagnostic), next)
}

/// The same for an error that is already made.
pub(super) fn resuming_after(error: nom::Err<Problem>, next: Input) -> nom::Err<Problem> {
    error.map(|problem| match problem {
        Problem::Report { diagnostic, .. } => Problem::Report {
            diagnostic,
            resume: Some(next.location_offset()),
        },
        Problem::Backtrack => Problem::Backtrack,
    })
}

/// Whether a field or a top-level item starts here.
pub(super) fn starts_entry(input: Input) -> bool {
    starts_setting(input) || starts_item(input)
}

fn starts_setting(input: Input) -> bool {
    (word, many0(preceded(mark('.'), word)), mark('='))
        .parse(input)
        .is_ok()
}

/// Whether the list that should go on here was left open: the block ends, or another field or item
/// begins and no surplus `close` follows it in this block.
pub(super) fn unclosed(input: Input, close: char) -> bool {
    ended(input) || (starts_setting(input) && !closes(input.fragment(), close))
}

/// Whether the block ends here, so that nothing in it can go on.
pub(super) fn ended(input: Input) -> bool {
    input.fragment().is_empty() || input.fragment().starts_with('}') || starts_item(input)
}

/// Whether a `close` without its opening comes before the block ends.
fn closes(text: &str, close: char) -> bool {
    let mut depth = 0_usize;
    for (_, c) in Tokens::new(text) {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' if depth > 0 => depth -= 1,
            '}' | '{' => return false,
            c if c == close => return true,
            _ => {}
        }
    }
    false
}

/// The offset, at or after `reached`, of the line's end or of the brace that ends the block; line
/// ends inside brackets do not count.
fn line_end(text: &str, reached: usize) -> usize {
    let (mut brackets, mut braces) = (0_usize, 0_usize);
    for (at, c) in Tokens::new(text) {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets = brackets.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces > 0 => braces -= 1,
            '}' if at >= reached => return at,
            '\n' if at >= reached && brackets == 0 && braces == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// The characters of a text with their offsets, without those inside strings and comments.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = (usize, char);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let c = rest.chars().next()?;
        let at = self.at;
        let quotes = if rest.starts_with("\"\"\"") {
            "\"\"\""
        } else {
            "\""
        };
        let line = || rest.find('\n').unwrap_or(rest.len());
        self.at += match c {
            '#' => line().max(1),
            '"' => match rest
                .get(quotes.len()..)
                .and_then(|body| string_end(body, quotes))
            {
                Some(inside) => inside + 2 * quotes.len(),
                None if quotes.len() == 1 => line().max(1),
                None => rest.len(),
            },
            c => c.len_utf8(),
        };
        Some((at, c))
    }
}
