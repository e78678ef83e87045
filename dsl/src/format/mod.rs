//! Canonical layout.
//!
//! Holds what the parts of the formatter share: the text, the comments, the output. It refuses to
//! change the order or the spelling of anything, or to judge meaning. A comment is printed exactly once:
//! every comment before an offset is printed before what stands there.

mod block;
mod value;

use crate::check::{LARGEST, too_large};
use crate::diagnostic::{Diagnostics, Sink};
use crate::source::{SourceFile, SourceMap, Span};
use crate::syntax::parse_file;

/// Lines are kept within this many characters where the text allows it.
const WIDTH: usize = 110;
/// One level of indentation.
const INDENT: usize = 2;
/// Between fields on one line.
const GAP: &str = "   ";

/// Brings a recipe into canonical layout: order, spelling and comments stay, blanks and line breaks
/// follow rules. Formatting twice changes nothing.
///
/// # Errors
/// The syntax errors of the text, if there are any. Names and types are not looked at.
pub fn format(source: &SourceFile) -> Result<String, Diagnostics> {
    let mut sources = SourceMap::default();
    let mut sink = Sink::default();
    let id = sources.add(source.clone());
    if let Some(problem) = too_large(Span::new(id, 0, 0), source.text.len(), LARGEST) {
        sink.push(problem);
        return Err(sink.finish(sources));
    }
    let file = parse_file(id, &source.text, &mut sink);
    if sink.errors() > 0 {
        return Err(sink.finish(sources));
    }
    let mut printer = Printer {
        text: &source.text,
        comments: &file.comments,
        printed: 0,
        out: String::new(),
    };
    printer.items(&file.items);
    printer.comments_before(source.text.len(), 0);
    Ok(printer.out)
}

struct Printer<'a> {
    text: &'a str,
    comments: &'a [Span],
    /// How many of the comments are in `out`.
    printed: usize,
    out: String,
}

impl<'a> Printer<'a> {
    fn slice(&self, span: Span) -> &'a str {
        self.text.get(span.start..span.end).unwrap_or("")
    }

    /// Prints every comment before `offset` that is left, on lines of their own.
    fn comments_before(&mut self, offset: usize, indent: usize) {
        while let Some(comment) = self.comments.get(self.printed).filter(|c| c.start < offset) {
            self.blank_line_as_before(comment.start);
            self.line(indent, self.slice(*comment));
            self.printed += 1;
        }
    }

    /// Ends the line, with the comment that stands behind `end` on the same line, if one does.
    fn end_line(&mut self, end: usize) {
        let next = self.comments.get(self.printed);
        if let Some(comment) =
            next.filter(|c| self.text.get(end..c.start).is_some_and(is_same_line))
        {
            self.out.push_str("  ");
            self.out.push_str(self.slice(*comment));
            self.printed += 1;
        }
        self.out.push('\n');
    }

    /// Keeps one of the blank lines that stood before `offset`, but none at the start of a block.
    fn blank_line_as_before(&mut self, offset: usize) {
        if self.blank_before(offset)
            && !self.out.is_empty()
            && !self.out.ends_with("{\n")
            && !self.out.ends_with("\n\n")
        {
            self.out.push('\n');
        }
    }

    fn blank_before(&self, offset: usize) -> bool {
        let before = self.text.get(..offset).unwrap_or("");
        let blanks = before.len() - before.trim_end().len();
        before
            .get(before.len() - blanks..)
            .unwrap_or("")
            .matches('\n')
            .count()
            > 1
    }

    /// Whether a comment lies between two offsets.
    fn has_comment(&self, start: usize, end: usize) -> bool {
        let first = self
            .comments
            .partition_point(|comment| comment.start < start);
        self.comments
            .get(first)
            .is_some_and(|comment| comment.start < end)
    }

    /// Whether a line break lies between two offsets.
    fn breaks(&self, start: usize, end: usize) -> bool {
        self.text.get(start..end).unwrap_or("").contains('\n')
    }

    fn indent(&mut self, indent: usize) {
        self.out.extend(std::iter::repeat_n(' ', indent));
    }

    fn line(&mut self, indent: usize, text: &str) {
        self.indent(indent);
        self.out.push_str(text);
        self.out.push('\n');
    }
}

/// Nothing but blanks, and the comma after an item.
fn is_same_line(between: &str) -> bool {
    !between.contains('\n')
        && between
            .trim_matches(|c: char| c.is_whitespace() || c == ',')
            .is_empty()
}

/// Characters, as columns of a terminal.
fn width(text: &str) -> usize {
    text.chars().count()
}
