//! The sentences about values.
//!
//! Holds how a value and what was wanted instead are said. It refuses to decide what is wrong.

use super::Checker;
use super::record::Checked;
use super::scope::Found;
use super::value::{Slot, fitting};
use crate::diagnostic::{Code, Diagnostic};
use crate::source::Span;
use crate::syntax::ast::{Value, ValueKind};
use crate::syntax::parse_value;
use crate::table::Ty;

impl Checker<'_> {
    /// A value of the wrong type.
    pub(super) fn mismatch(&mut self, slot: Slot, ty: &'static Ty, value: &Value) -> Diagnostic {
        let found = self.describe(value);
        let wanted = ty.describe();
        let diagnostic = Diagnostic::new(
            Code::WrongType,
            value.span,
            format!("{slot} must be {wanted}, found {found}"),
        )
        .label(format!("expected {wanted}"));
        match &value.kind {
            ValueKind::Text(text) => match parse_value(value.span.file, text) {
                Ok(bare)
                    if bare
                        .name()
                        .map_or(fitting(ty, &bare.kind).is_some(), |n| ty.takes_word(n)) =>
                {
                    diagnostic.fix("this stands without quotes", value.span, text.clone())
                }
                _ => diagnostic,
            },
            kind if ty.item().is_some_and(|item| fitting(item, kind).is_some()) => {
                let list = format!("[{}]", self.sources.slice(value.span));
                diagnostic.fix("a list stands in brackets", value.span, list)
            }
            _ => diagnostic,
        }
    }

    /// A name that would fit if it stood in a list.
    pub(super) fn lacks_brackets(
        &mut self,
        slot: Slot,
        ty: &'static Ty,
        name: &str,
        span: Span,
    ) -> Option<Diagnostic> {
        let item = ty.item()?;
        let fits = match self.scope.find(name) {
            Found::Block(kind, ..) => item.blocks().contains(&kind),
            _ => item.takes_word(name),
        };
        let message = format!("{slot} must be {}, found `{name}`", ty.describe());
        let fix = "a list stands in brackets";
        fits.then(|| {
            Diagnostic::new(Code::WrongType, span, message).fix(fix, span, format!("[{name}]"))
        })
    }

    /// A value of the right type that is too small, too large or too long.
    pub(super) fn out_of_range(
        &mut self,
        slot: Slot,
        ty: &'static Ty,
        value: &Value,
    ) -> Option<Checked> {
        let message = format!(
            "{slot} must be {}, found {}",
            ty.describe(),
            self.describe(value)
        );
        self.sink.push(
            Diagnostic::new(Code::OutOfRange, value.span, message).label("outside the range"),
        );
        None
    }

    /// A value in the user's words, short.
    fn describe(&self, value: &Value) -> String {
        let text = self.sources.slice(value.span);
        let text = if text.len() > 40 {
            format!("{}...", text.chars().take(37).collect::<String>())
        } else {
            text.to_string()
        };
        match &value.kind {
            ValueKind::Int(_) | ValueKind::Float(_) => text,
            ValueKind::Percent(_) => format!("the percentage {text}"),
            ValueKind::Bytes => format!("the size {text}"),
            ValueKind::Duration => format!("the duration {text}"),
            ValueKind::Bool(_) | ValueKind::Name(_) => format!("`{text}`"),
            ValueKind::Text(_) => format!("the string {text}"),
            ValueKind::List(_) => "a list".to_string(),
            ValueKind::Call(word, _) => format!("`{}(...)`", word.text),
        }
    }
}

/// Names for "in scope: ...", not too many.
pub(super) fn in_scope(names: &[String]) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> = names
        .iter()
        .take(MOST)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
