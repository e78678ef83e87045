//! Settings from outside a block: `--set name.field=value`, and the axes of a sweep.
//!
//! Holds how a dotted path finds its field or argument and how the value is put there. It refuses to
//! check the value, which happens with the rest of the block. Parsed text is changed, never text.

use super::Checker;
use super::fields::unknown_argument;
use super::scope::{Declared, Found};
use super::unknown_field;
use super::wording::in_scope;
use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::nearest::nearest;
use crate::source::{SourceFile, SourceMap};
use crate::syntax::ast::{Arg, Block, Entry, Field, Path, Value, ValueKind, Word};
use crate::syntax::{parse_setting, parse_value};
use crate::table::{CallSpec, Default, FieldSpec, Kind};

/// Parses the texts of `--set`; each is a file of its own in messages.
pub(super) fn parse_all(texts: &[String], sources: &mut SourceMap, sink: &mut Sink) -> Vec<Field> {
    let mut settings = Vec::with_capacity(texts.len());
    for text in texts {
        let file = sources.add(SourceFile::new("--set", text.as_str()));
        match parse_setting(file, text) {
            Ok(setting) => settings.push(setting),
            Err(problem) => sink.push(problem.help("the form is `--set block.field=value`")),
        }
    }
    settings
}

impl Checker<'_> {
    /// Puts a `--set` into its block; `field=value` alone is meant for the recipe.
    pub(super) fn override_with(&mut self, setting: Field, blocks: &mut Vec<Declared>) {
        let Path { first, rest } = &setting.path;
        let seeds = Kind::Recipe
            .spec()
            .fields
            .iter()
            .any(|field| field.name == first.text);
        let (of_recipe, path) = match rest.split_first() {
            Some((next, rest)) => (
                first.text == "recipe",
                Path {
                    first: next.clone(),
                    rest: rest.to_vec(),
                },
            ),
            None if seeds => (true, setting.path.clone()),
            None => return self.sink.push(self.unknown_target(&setting.path)),
        };
        if of_recipe && !blocks.iter().any(|block| block.kind == Kind::Recipe) {
            blocks.push(unwritten_recipe(first));
        }
        let meant = |block: &&mut Declared| match block.kind {
            Kind::Recipe => of_recipe,
            _ => !of_recipe && block.name == first.text,
        };
        match blocks.iter_mut().find(meant) {
            Some(found) => {
                if let Err(problem) = self.set(found.kind, &mut found.block, &path, setting.value) {
                    self.sink.push(*problem);
                }
            }
            None if self.scope.damaged => {}
            None => self.sink.push(self.unknown_target(&setting.path)),
        }
    }

    fn unknown_target(&self, path: &Path) -> Diagnostic {
        let first = &path.first;
        let kinds = [
            Kind::Data,
            Kind::Task,
            Kind::Model,
            Kind::Train,
            Kind::Evaluate,
            Kind::Compare,
        ];
        let blocks = self.scope.blocks(&kinds);
        let message = match path.rest.is_empty() {
            true => format!(
                "`{}` is no field of the `recipe` block; other settings are `block.field`",
                first.text
            ),
            false => format!("`{}` names no block of this recipe", first.text),
        };
        let known = blocks.iter().map(String::as_str).chain(["recipe", "seed"]);
        Diagnostic::new(Code::BadOverride, first.span, message)
            .near("something", nearest(&first.text, known))
            .help(format!("blocks of this recipe: {}", in_scope(&blocks)))
    }

    /// Gives a field, or an argument of its call, another value; an axis of a sweep over the same
    /// place gives way.
    pub(super) fn set(
        &mut self,
        kind: Kind,
        block: &mut Block,
        path: &Path,
        value: Value,
    ) -> Result<(), Box<Diagnostic>> {
        let target = self.target(kind, block, path)?;
        self.drop_axis(kind, block, &target);
        let value = match target.argument {
            None => value,
            Some(argument) => argument.with(path, value),
        };
        match written(block, target.field.name) {
            Some(place) => *place = value,
            None => {
                let first = Word {
                    text: target.field.name.to_string(),
                    span: path.first.span,
                };
                let path = Path {
                    first,
                    rest: Vec::new(),
                };
                block.entries.push(Entry::Field(Field {
                    span: path.first.span,
                    path,
                    value,
                }));
            }
        }
        Ok(())
    }

    /// Finds the place that a path names: `field`, `field.argument` or `call.argument`.
    pub(super) fn target(
        &mut self,
        kind: Kind,
        block: &mut Block,
        path: &Path,
    ) -> Result<Target, Box<Diagnostic>> {
        let first = &path.first;
        let fields = kind.spec().fields;
        let by_call =
            |field: &&'static FieldSpec| field.ty.calls().any(|call| call.name == first.text);
        let named = fields.iter().find(|field| field.name == first.text);
        let Some(field) = named.or_else(|| fields.iter().find(by_call)) else {
            let whole = Path {
                first: first.clone(),
                rest: Vec::new(),
            };
            let calls = fields.iter().flat_map(|field| field.ty.calls());
            let near = nearest(&first.text, calls.map(|call| call.name));
            return Err(unknown_field(kind, &whole).near("a call", near).into());
        };
        let argument = match path.rest.as_slice() {
            [] if named.is_some() => {
                return Ok(Target {
                    field,
                    argument: None,
                });
            }
            [argument] => argument,
            _ => {
                return Err(no_place(
                    path,
                    format!(
                        "write `{0}`, or `{0}` and one argument of its call",
                        field.name
                    ),
                ));
            }
        };
        let current = written(block, field.name).map(|value| value.clone());
        let Some((word, args)) = self.call_in(field, current, first) else {
            return Err(no_place(
                path,
                format!("`{}` is no call here, so it has no arguments", field.name),
            ));
        };
        let called = field.ty.calls().find(|call| call.name == word.text);
        let Some(call) = called.filter(|call| named.is_some() || call.name == first.text) else {
            return Err(no_place(
                path,
                format!("`{}` is `{}` here", field.name, word.text),
            ));
        };
        match call
            .params
            .iter()
            .position(|param| param.name == argument.text)
        {
            Some(index) => Ok(Target {
                field,
                argument: Some(Argument {
                    call,
                    index,
                    word,
                    args,
                }),
            }),
            None => Err(unknown_argument(call, argument).into()),
        }
    }

    /// The call that stands in a field: directly, through a `let`, as a bare word, or by default.
    fn call_in(
        &mut self,
        field: &FieldSpec,
        current: Option<Value>,
        at: &Word,
    ) -> Option<(Word, Vec<Arg>)> {
        let value = match (current, &field.default) {
            (Some(value), _) => value,
            (None, Default::Value(text)) => parse_value(at.span.file, text).ok()?,
            (None, _) => return None,
        };
        let value = match value.name().map(|name| self.scope.find(name)) {
            Some(Found::Let(found)) => Value::clone(found),
            _ => value,
        };
        match value.kind {
            ValueKind::Call(word, args) => Some((word, args)),
            ValueKind::Name(text) => Some((
                Word {
                    text,
                    span: value.span,
                },
                Vec::new(),
            )),
            _ => None,
        }
    }
}

/// Where a path leads: a field of a block, or an argument of the call in that field.
pub(super) struct Target {
    pub(super) field: &'static FieldSpec,
    pub(super) argument: Option<Argument>,
}

/// A parameter of a call, and the call as it stands.
pub(super) struct Argument {
    call: &'static CallSpec,
    index: usize,
    word: Word,
    args: Vec<Arg>,
}

impl Target {
    /// Names the place, however its path was written.
    pub(super) fn key(&self) -> (&'static str, Option<usize>) {
        (
            self.field.name,
            self.argument.as_ref().map(|argument| argument.index),
        )
    }
}

impl Argument {
    /// The call with another value for this argument.
    fn with(mut self, path: &Path, value: Value) -> Value {
        let name = self
            .call
            .params
            .get(self.index)
            .map_or("", |param| param.name);
        let named = |arg: &Arg| arg.name.as_ref().is_some_and(|word| word.text == name);
        let at = self.args.iter().position(named).or_else(|| {
            let positional = self
                .args
                .get(self.index)
                .is_some_and(|arg| arg.name.is_none());
            positional.then_some(self.index)
        });
        let span = path.span();
        match at.and_then(|at| self.args.get_mut(at)) {
            Some(arg) => arg.value = value,
            None => self.args.push(Arg {
                name: Some(Word {
                    text: name.to_string(),
                    span,
                }),
                value,
            }),
        }
        self.word.text = self.call.name.to_string();
        Value {
            kind: ValueKind::Call(self.word, self.args),
            span,
        }
    }
}

/// The value of a field, if the block gives one.
fn written<'a>(block: &'a mut Block, name: &str) -> Option<&'a mut Value> {
    block.entries.iter_mut().find_map(|entry| match entry {
        Entry::Field(field) if field.path.rest.is_empty() && field.path.first.text == name => {
            Some(&mut field.value)
        }
        _ => None,
    })
}

fn no_place(path: &Path, reason: String) -> Box<Diagnostic> {
    let message = format!("`{}` names no place to put a value", path.text());
    Diagnostic::new(Code::BadSweep, path.span(), message)
        .label(reason)
        .into()
}

/// A recipe block for a `--set` when the file has none.
fn unwritten_recipe(at: &Word) -> Declared {
    let kind = Word {
        text: Kind::Recipe.word().to_string(),
        span: at.span,
    };
    let block = Block {
        kind,
        name: None,
        entries: Vec::new(),
        span: at.span,
        damaged: false,
    };
    Declared {
        kind: Kind::Recipe,
        name: String::new(),
        span: at.span,
        block,
    }
}
