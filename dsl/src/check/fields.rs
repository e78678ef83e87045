//! A set of fields, or of a call's arguments, against its table.
//!
//! Holds what is unknown, given twice, missing or left to its default. It refuses to know any block or
//! field by name. A record comes out only if nothing in it is wrong.

use super::Checker;
use super::record::{Checked, Record, Val};
use super::value::Slot;
use crate::diagnostic::{Code, Diagnostic};
use crate::nearest::nearest;
use crate::source::Span;
use crate::syntax::ast::{Arg, Value, ValueKind, Word};
use crate::syntax::parse_value;
use crate::table::describe::names;
use crate::table::{CallSpec, Default, FieldSpec, Ty};

impl Checker<'_> {
    /// Checks a call against those that its field takes.
    pub(super) fn call(
        &mut self,
        slot: Slot,
        ty: &'static Ty,
        calls: &'static [CallSpec],
        word: &Word,
        args: &[Arg],
        span: Span,
    ) -> Option<Checked> {
        let Some(spec) = calls.iter().find(|call| call.name == word.text) else {
            let known = || calls.iter().map(|call| call.name);
            let message = format!("{slot} does not take `{}(...)`", word.text);
            let diagnostic = Diagnostic::new(Code::UnknownCall, word.span, message)
                .label(format!("expected {}", ty.describe()));
            self.sink
                .push(diagnostic.near("a call", nearest(&word.text, known())));
            return None;
        };
        self.arguments(spec, word, args, span)
    }

    /// Puts the arguments of a call, by position or by name, to its parameters.
    pub(super) fn arguments(
        &mut self,
        spec: &'static CallSpec,
        word: &Word,
        args: &[Arg],
        span: Span,
    ) -> Option<Checked> {
        let before = self.sink.errors();
        let mut given: Vec<Option<&Value>> = vec![None; spec.params.len()];
        let mut named = false;
        for (position, arg) in args.iter().enumerate() {
            let index = match &arg.name {
                Some(name) => {
                    named = true;
                    let Some(index) = spec.params.iter().position(|param| param.name == name.text)
                    else {
                        self.sink.push(unknown_argument(spec, name));
                        continue;
                    };
                    index
                }
                None if named => {
                    let message = format!(
                        "an argument of `{}(...)` without a name stands after a named one",
                        spec.name
                    );
                    self.sink.push(
                        Diagnostic::new(Code::Positional, arg.span(), message)
                            .label("name it, or put it first"),
                    );
                    continue;
                }
                None if position >= spec.params.len() => {
                    let most = spec.params.len();
                    let s = if most == 1 { "" } else { "s" };
                    let message = format!("`{}(...)` takes at most {most} argument{s}", spec.name);
                    let label = format!("takes {}", names(spec.params.iter().map(|p| p.name)));
                    self.sink
                        .push(Diagnostic::new(Code::Positional, arg.span(), message).label(label));
                    continue;
                }
                None => position,
            };
            let (Some(place), Some(param)) = (given.get_mut(index), spec.params.get(index)) else {
                continue;
            };
            if let Some(first) = place {
                let message = format!("`{}` in `{}(...)` is given twice", param.name, spec.name);
                let again =
                    Diagnostic::new(Code::Duplicate, arg.span(), message).label("here again");
                self.sink.push(again.also(first.span, "first given here"));
                continue;
            }
            *place = Some(&arg.value);
        }
        let whole = format!("`{}(...)`", spec.name);
        let record = self.fields(
            spec.params,
            &given,
            Some(spec.name),
            &whole,
            word.span,
            false,
        )?;
        (self.sink.errors() == before).then_some(Checked {
            value: Val::Call(spec.name, record),
            span,
        })
    }

    /// Checks what is given and fills in what is not. `at` is where a missing field is reported and
    /// a default is said to stand; `damaged` silences the former.
    pub(super) fn fields(
        &mut self,
        specs: &'static [FieldSpec],
        given: &[Option<&Value>],
        call: Option<&str>,
        whole: &str,
        at: Span,
        damaged: bool,
    ) -> Option<Record> {
        let before = self.sink.errors();
        let mut record = Record::default();
        for (spec, given) in specs.iter().zip(given) {
            let slot = Slot {
                field: spec.name,
                call,
            };
            let checked = match (given, &spec.default) {
                (Some(value), _) => self.value(slot, &spec.ty, value),
                (None, Default::Depends(_)) => None,
                (None, Default::Value(text)) => self.default(slot, &spec.ty, text, at),
                (None, Default::Required) if damaged => None,
                (None, Default::Required) => {
                    let message = format!("{whole} lacks `{}`: {}", spec.name, spec.help);
                    let help = format!("add `{} = ...`, {}", spec.name, spec.ty.describe());
                    self.sink
                        .push(Diagnostic::new(Code::Missing, at, message).help(help));
                    None
                }
            };
            if let Some(checked) = checked {
                record.push(spec.name, checked, given.is_some());
            }
        }
        (self.sink.errors() == before && !damaged).then_some(record)
    }

    fn default(&mut self, slot: Slot, ty: &'static Ty, text: &str, at: Span) -> Option<Checked> {
        match parse_value(at.file, text) {
            Ok(value) => self.value(slot, ty, &moved(value, at)),
            Err(fault) => {
                self.sink.push(*fault);
                None
            }
        }
    }
}

/// An argument that the call does not have.
pub(super) fn unknown_argument(spec: &'static CallSpec, name: &Word) -> Diagnostic {
    let known = || spec.params.iter().map(|param| param.name);
    let message = format!("unknown field `{}` in `{}(...)`", name.text, spec.name);
    Diagnostic::new(Code::UnknownArgument, name.span, message)
        .label(format!("`{}` takes {}", spec.name, names(known())))
        .near("a field", nearest(&name.text, known()))
}

/// The value as if all of it stood at `at`.
fn moved(mut value: Value, at: Span) -> Value {
    value.span = at;
    match &mut value.kind {
        ValueKind::List(items) => items
            .iter_mut()
            .for_each(|item| *item = moved(item.clone(), at)),
        ValueKind::Call(word, args) => {
            word.span = at;
            args.iter_mut()
                .for_each(|arg| arg.value = moved(arg.value.clone(), at));
        }
        _ => {}
    }
    value
}
