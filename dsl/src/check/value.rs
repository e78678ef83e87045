//! One value against its type.
//!
//! Holds types, ranges, lists and references. It refuses to know any block or field by name. Every
//! error names the field, and every level of nesting in a value uses up a level of the type, so
//! checking ends.

use super::Checker;
use super::record::{Checked, Val};
use super::scope::Found;
use super::wording::in_scope;
use crate::diagnostic::{Code, Diagnostic};
use crate::nearest::nearest;
use crate::source::Span;
use crate::syntax::ast::{Value, ValueKind, Word};
use crate::table::{Bound, Ty};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::rc::Rc;

/// A list in a `let` may be used many times; the bound keeps the plan small.
const LONGEST_LIST: usize = 1000;

/// The field or argument that a value is for, as errors name it.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) field: &'static str,
    pub(super) call: Option<&'a str>,
}

impl fmt::Display for Slot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.call {
            Some(call) => write!(f, "`{}` in `{call}(...)`", self.field),
            None => write!(f, "`{}`", self.field),
        }
    }
}

impl Checker<'_> {
    /// Checks one value; `None` once an error has been reported.
    pub(super) fn value(&mut self, slot: Slot, ty: &'static Ty, value: &Value) -> Option<Checked> {
        if self.sink.is_full() {
            return None;
        }
        if let ValueKind::Name(name) = &value.kind {
            return self.name(slot, ty, name, value.span);
        }
        let Some(form) = fitting(ty, &value.kind) else {
            let diagnostic = self.mismatch(slot, ty, value);
            self.sink.push(diagnostic);
            return None;
        };
        let checked = |value: Val, span| Some(Checked { value, span });
        let span = value.span;
        match (form, &value.kind) {
            (Ty::Int { low, high, .. }, ValueKind::Int(n)) => match u64::try_from(*n) {
                Ok(n) if (*low..=*high).contains(&n) => checked(Val::Int(n), span),
                _ => self.out_of_range(slot, ty, value),
            },
            (
                Ty::Number { low, high, .. },
                ValueKind::Int(_) | ValueKind::Float(_) | ValueKind::Percent(_),
            ) => {
                let x = match value.kind {
                    ValueKind::Int(n) => n as f64,
                    ValueKind::Float(x) | ValueKind::Percent(x) => x,
                    _ => return None,
                };
                match within(x, *low, *high) {
                    true => checked(Val::Number(x), span),
                    false => self.out_of_range(slot, ty, value),
                }
            }
            (Ty::Bool, ValueKind::Bool(b)) => checked(Val::Bool(*b), span),
            (Ty::Text { empty: false } | Ty::Path, ValueKind::Text(text))
                if text.trim().is_empty() =>
            {
                let message = format!("{slot} must not be empty");
                self.sink
                    .push(Diagnostic::new(Code::OutOfRange, span, message));
                None
            }
            (Ty::Text { .. }, ValueKind::Text(text)) => checked(Val::Text(text.clone()), span),
            (Ty::Path, ValueKind::Text(text)) => {
                let folder = self
                    .sources
                    .path(span.file)
                    .parent()
                    .unwrap_or(Path::new(""));
                checked(Val::Path(folder.join(text)), span)
            }
            (Ty::Char, ValueKind::Text(text)) => match (text.chars().next(), text.chars().nth(1)) {
                (Some(c), None) => checked(Val::Char(c), span),
                _ => self.out_of_range(slot, ty, value),
            },
            (Ty::Word { words, .. }, ValueKind::Text(text)) => {
                match words.iter().find(|w| w.word == text) {
                    Some(word) => checked(Val::Word(word.word), span),
                    None => self.unknown_name(slot, ty, text, span),
                }
            }
            (Ty::Block(_), ValueKind::Text(text)) => self.run(slot, ty, text, span),
            (Ty::Call(calls), ValueKind::Call(word, args)) => {
                self.call(slot, ty, calls, word, args, span)
            }
            (Ty::List(item), ValueKind::List(items)) => self.list(slot, item, items, span),
            _ => None,
        }
    }

    /// A bare word: one of the type's words, a block, a `let`, or a call without its parentheses.
    fn name(&mut self, slot: Slot, ty: &'static Ty, name: &str, span: Span) -> Option<Checked> {
        if let Some(word) = ty.words().find(|word| word.word == name) {
            return Some(Checked {
                value: Val::Word(word.word),
                span,
            });
        }
        if let Some(call) = ty.calls().find(|call| call.name == name) {
            let word = Word {
                text: name.to_string(),
                span,
            };
            return self.arguments(call, &word, &[], span);
        }
        if let Some(diagnostic) = self.lacks_brackets(slot, ty, name, span) {
            self.sink.push(diagnostic);
            return None;
        }
        let kinds = ty.blocks();
        match self.scope.find(name) {
            Found::Broken => None,
            Found::Let(value) => {
                let value = Rc::clone(value);
                match value.name() {
                    Some(name) if ty.takes_word(name) => self.name(slot, ty, name, value.span),
                    Some(name) => self.unknown_name(slot, ty, name, value.span),
                    None => self.value(slot, ty, &value),
                }
            }
            Found::Block(kind, name, _) if kinds.contains(&kind) => Some(Checked {
                value: Val::Block(name),
                span,
            }),
            Found::Block(kind, name, declared) => {
                let message = format!("{slot} cannot be `{name}`, {}", kind.a_block());
                let diagnostic = Diagnostic::new(Code::WrongBlock, span, message)
                    .label(format!("expected {}", ty.describe()))
                    .also(declared, format!("`{name}` is {}", kind.a_block()));
                let there = self.scope.blocks(&kinds);
                self.sink.push(match there.is_empty() {
                    true => diagnostic,
                    false => diagnostic.help(format!("in scope: {}", in_scope(&there))),
                });
                None
            }
            Found::Nothing => self.unknown_name(slot, ty, name, span),
        }
    }

    /// A string where a block is wanted: the name of one run of a sweep.
    fn run(&mut self, slot: Slot, ty: &'static Ty, text: &str, span: Span) -> Option<Checked> {
        let base = text.split('[').next().unwrap_or(text);
        let swept = self
            .scope
            .runs
            .get(base)
            .is_some_and(|runs| runs.iter().any(|run| run == text));
        if swept || base == text {
            let checked = self.name(slot, ty, base, span)?;
            return Some(if swept {
                Checked {
                    value: Val::Block(text.to_string()),
                    ..checked
                }
            } else {
                checked
            });
        }
        let runs = self.scope.runs.get(base).cloned().unwrap_or_default();
        if runs.is_empty()
            && matches!(self.scope.find(base), Found::Block(..))
            && self.sink.errors() > 0
        {
            return None;
        }
        let mut diagnostic = Diagnostic::new(
            Code::UnknownName,
            span,
            format!("{slot}: there is no run `{text}`"),
        );
        if !runs.is_empty() {
            diagnostic = diagnostic.help(format!("runs of `{base}`: {}", in_scope(&runs)));
        }
        self.sink.push(diagnostic);
        None
    }

    fn unknown_name(
        &mut self,
        slot: Slot,
        ty: &'static Ty,
        name: &str,
        span: Span,
    ) -> Option<Checked> {
        let kinds = ty.blocks();
        if self.scope.damaged && !kinds.is_empty() {
            return None;
        }
        let blocks = self.scope.blocks(&kinds);
        let words = ty
            .words()
            .map(|word| word.word)
            .chain(ty.calls().map(|call| call.name));
        let known = words.chain(blocks.iter().map(String::as_str));
        let near = nearest(name, known.chain(self.scope.lets()));
        let what = if kinds.is_empty() {
            "a word"
        } else {
            "a block"
        };
        let mut diagnostic = Diagnostic::new(
            Code::UnknownName,
            span,
            format!("unknown name `{name}` for {slot}"),
        )
        .label(format!("expected {}", ty.describe()))
        .near(what, near);
        if diagnostic.fix.is_none()
            && fitting(ty, &ValueKind::Text(String::new())).is_some()
            && kinds.is_empty()
        {
            diagnostic = diagnostic.fix("a text stands in quotes", span, format!("\"{name}\""));
        }
        if !blocks.is_empty() {
            diagnostic = diagnostic.help(format!("in scope: {}", in_scope(&blocks)));
        }
        self.sink.push(diagnostic);
        None
    }

    fn list(
        &mut self,
        slot: Slot,
        item: &'static Ty,
        items: &[Value],
        span: Span,
    ) -> Option<Checked> {
        if items.is_empty() {
            let message = format!("{slot} must not be empty");
            self.sink.push(
                Diagnostic::new(Code::OutOfRange, span, message).label("needs at least one item"),
            );
            return None;
        }
        if items.len() > LONGEST_LIST {
            let message = format!("{slot} lists more than {LONGEST_LIST} things");
            self.sink
                .push(Diagnostic::new(Code::OutOfRange, span, message));
            return None;
        }
        let mut first: HashMap<String, Span> = HashMap::new();
        let mut checked = Vec::with_capacity(items.len());
        for value in items {
            let Some(item) = self.value(slot, item, value) else {
                continue;
            };
            let key = match &item.value {
                Val::Text(text) | Val::Block(text) => Some(text.clone()),
                Val::Word(word) => Some(word.to_string()),
                _ => None,
            };
            if let Some(earlier) = key.and_then(|key| first.insert(key, value.span)) {
                let message = format!("{slot} lists the same thing twice");
                let again = Diagnostic::new(Code::Duplicate, value.span, message);
                self.sink
                    .push(again.label("here again").also(earlier, "first given here"));
                continue;
            }
            checked.push(item);
        }
        (checked.len() == items.len()).then_some(Checked {
            value: Val::List(checked),
            span,
        })
    }
}

/// The part of a type that takes values of this form.
pub(super) fn fitting(ty: &'static Ty, kind: &ValueKind) -> Option<&'static Ty> {
    let fits = match (ty, kind) {
        (Ty::OneOf(types), _) => return types.iter().find_map(|ty| fitting(ty, kind)),
        (Ty::Int { .. }, ValueKind::Int(_)) => true,
        (Ty::Number { .. }, ValueKind::Int(_) | ValueKind::Float(_)) => true,
        (Ty::Number { share, .. }, ValueKind::Percent(_)) => *share,
        (Ty::Bool, ValueKind::Bool(_)) => true,
        (Ty::Text { .. } | Ty::Path | Ty::Char | Ty::Block(_), ValueKind::Text(_)) => true,
        (Ty::Word { quoted, .. }, ValueKind::Text(_)) => *quoted,
        (Ty::Call(_), ValueKind::Call(..)) => true,
        (Ty::List(_), ValueKind::List(_)) => true,
        _ => false,
    };
    fits.then_some(ty)
}

fn within(x: f64, low: Bound, high: Bound) -> bool {
    let above = match low {
        Bound::None => true,
        Bound::Including(low) => x >= low,
        Bound::Excluding(low) => x > low,
    };
    let below = match high {
        Bound::None => true,
        Bound::Including(high) => x <= high,
        Bound::Excluding(high) => x < high,
    };
    above && below
}
