//! Errors and warnings with their places.
//!
//! Holds what a message consists of and the list that a check collects. It refuses to know the
//! grammar or the field table. A [`Diagnostics`] is sorted in source order and carries its own texts,
//! so it can be rendered after everything else is gone.

mod code;
mod render;

pub use code::Code;

use crate::source::{SourceMap, Span};
use std::collections::HashSet;
use std::path::PathBuf;

/// No more errors, and no more warnings, than these are kept: a text of nothing but errors stays cheap.
const MOST: usize = 200;

/// A place with a few words beside its caret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Label {
    pub(crate) span: Span,
    pub(crate) text: String,
}

/// Text that would put it right.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Fix {
    pub(crate) title: String,
    pub(crate) span: Span,
    pub(crate) replacement: String,
}

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Diagnostic {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) primary: Label,
    pub(crate) secondary: Option<Label>,
    pub(crate) help: Option<String>,
    pub(crate) fix: Option<Fix>,
}

impl Diagnostic {
    pub(crate) fn new(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            primary: Label {
                span,
                text: String::new(),
            },
            secondary: None,
            help: None,
            fix: None,
        }
    }

    /// The words beside the caret.
    pub(crate) fn label(mut self, text: impl Into<String>) -> Self {
        self.primary.text = text.into();
        self
    }

    /// A second place: the other half of the story.
    pub(crate) fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.secondary = Some(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// What to do about it, in words.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// What to do about it, as a patch of the source.
    pub(crate) fn fix(
        mut self,
        title: impl Into<String>,
        span: Span,
        replacement: impl Into<String>,
    ) -> Self {
        self.fix = Some(Fix {
            title: title.into(),
            span,
            replacement: replacement.into(),
        });
        self
    }

    /// Offers `name` in place of the primary span, if there is one.
    pub(crate) fn near(self, what: &str, name: Option<&str>) -> Self {
        let span = self.primary.span;
        match name {
            Some(name) => self.fix(format!("{what} with a similar name exists"), span, name),
            None => self,
        }
    }
}

/// Collects what a check finds; equal findings are kept once.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    found: Vec<Diagnostic>,
    seen: HashSet<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Sink {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.seen.contains(&diagnostic) {
            return;
        }
        let count = match diagnostic.code.is_warning() {
            true => &mut self.warnings,
            false => &mut self.errors,
        };
        *count += 1;
        if *count <= MOST {
            self.seen.insert(diagnostic.clone());
            self.found.push(diagnostic);
        }
    }

    /// How many errors were pushed so far; unchanged means that a step went well.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Whether further errors would not be shown, so that the checker need not look for them.
    pub(crate) fn is_full(&self) -> bool {
        self.errors >= MOST
    }

    pub(crate) fn finish(mut self, sources: SourceMap) -> Diagnostics {
        let full = self.is_full();
        self.found.sort_by_key(|d| (d.primary.span, d.code));
        Diagnostics {
            found: self.found,
            full,
            sources,
        }
    }
}

/// One line of [`Diagnostics::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The stable code.
    pub code: Code,
    /// The sentence, names in backticks.
    pub message: String,
    /// The file as the user named it; `--set` for an override.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Errors, or warnings, in source order, with the texts they point into.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", self.render(false))]
pub struct Diagnostics {
    found: Vec<Diagnostic>,
    full: bool,
    sources: SourceMap,
}

impl Diagnostics {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|d| !d.code.is_warning())
    }

    /// Code, message and place of each, in source order.
    pub fn list(&self) -> Vec<Listed> {
        self.found
            .iter()
            .map(|d| {
                let (line, column) = self.sources.line_column(d.primary.span);
                let file = self.sources.path(d.primary.span.file).to_path_buf();
                Listed {
                    code: d.code,
                    message: d.message.clone(),
                    file,
                    line,
                    column,
                }
            })
            .collect()
    }

    /// The text for people, in the manner of rustc, with a last line that counts the errors.
    pub fn render(&self, color: bool) -> String {
        render::render(self, color)
    }
}
