//! Text to syntax tree.
//!
//! Holds the entry points of the parser and the state that travels with its input. It refuses to
//! know which blocks and fields exist. After an error it goes on with the next field or block, so
//! that one mistake hides no other; an offset in [`Problem::Report`] never moves backwards.

pub(crate) mod ast;
mod grammar;
mod lexeme;
mod recovery;

use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::source::{FileId, Span};
use ast::{Field, File, Value};
use nom::{IResult, Parser};
use nom_locate::LocatedSpan;
use std::cell::{Cell, RefCell};

/// Values and blocks may be nested this deeply.
const DEEPEST: usize = 24;
/// After this many errors the rest of a file is not looked at.
const MOST_ERRORS: usize = 100;

type Input<'a> = LocatedSpan<&'a str, &'a Session>;
type Parsed<'a, T> = IResult<Input<'a>, T, Problem>;

/// What the parsers of one text share.
struct Session {
    file: FileId,
    depth: Cell<usize>,
    comments: RefCell<Vec<Span>>,
    found: RefCell<Vec<Diagnostic>>,
}

impl Session {
    fn new(file: FileId) -> Self {
        Self {
            file,
            depth: Cell::new(0),
            comments: RefCell::default(),
            found: RefCell::default(),
        }
    }

    /// Records a comment, unless the parser looks at it a second time.
    fn comment(&self, start: usize, end: usize) {
        let mut comments = self.comments.borrow_mut();
        if comments.last().is_none_or(|last| last.start < start) {
            comments.push(Span::new(self.file, start, end));
        }
    }

    fn report(&self, diagnostic: Diagnostic) {
        self.found.borrow_mut().push(diagnostic);
    }

    fn exhausted(&self) -> bool {
        self.found.borrow().len() >= MOST_ERRORS
    }
}

/// Why a parser stopped.
#[derive(Debug)]
enum Problem {
    /// Another alternative may fit; never shown.
    Backtrack,
    /// An error for the user, and where to go on if that is known.
    Report {
        diagnostic: Box<Diagnostic>,
        resume: Option<usize>,
    },
}

impl<'a> nom::error::ParseError<Input<'a>> for Problem {
    fn from_error_kind(_: Input<'a>, _: nom::error::ErrorKind) -> Self {
        Problem::Backtrack
    }

    fn append(_: Input<'a>, _: nom::error::ErrorKind, first: Self) -> Self {
        first
    }
}

/// An error that no parser has put into words.
fn unreadable(span: Span) -> Diagnostic {
    Diagnostic::new(Code::Unexpected, span, "this cannot be read")
}

/// An error that no alternative can mend.
fn fail(diagnostic: Diagnostic) -> nom::Err<Problem> {
    nom::Err::Failure(Problem::Report {
        diagnostic: Box::new(diagnostic),
        resume: None,
    })
}

/// Parses a whole file. What could not be read is reported and left out.
pub(crate) fn parse_file(file: FileId, text: &str, sink: &mut Sink) -> File {
    let session = Session::new(file);
    let (items, damaged) = grammar::items(LocatedSpan::new_extra(text, &session));
    session
        .found
        .into_inner()
        .into_iter()
        .for_each(|d| sink.push(d));
    File {
        items,
        comments: session.comments.into_inner(),
        damaged,
    }
}

/// Parses `path = value`, the form of a `--set`.
pub(crate) fn parse_setting(file: FileId, text: &str) -> Result<Field, Box<Diagnostic>> {
    whole(file, text, grammar::field)
}

/// Parses one value, the form of a default.
pub(crate) fn parse_value(file: FileId, text: &str) -> Result<Value, Box<Diagnostic>> {
    whole(file, text, grammar::value)
}

fn whole<T>(
    file: FileId,
    text: &str,
    mut parser: fn(Input) -> Parsed<T>,
) -> Result<T, Box<Diagnostic>> {
    let session = Session::new(file);
    let parsed = parser
        .parse(LocatedSpan::new_extra(text, &session))
        .and_then(|(rest, value)| {
            let (rest, ()) = lexeme::trivia(rest)?;
            if rest.fragment().is_empty() {
                Ok(value)
            } else {
                Err(lexeme::expected(rest, "nothing more"))
            }
        });
    parsed.map_err(|error| match error {
        nom::Err::Error(Problem::Report { diagnostic, .. })
        | nom::Err::Failure(Problem::Report { diagnostic, .. }) => diagnostic,
        _ => Box::new(unreadable(Span::new(file, 0, text.len()))),
    })
}
