//! Checked values, still under their names in the table.
//!
//! Holds what the checker hands to [`super::build`]. It refuses to hold anything unchecked: a
//! [`Record`] has exactly the fields of its table, with defaults filled in. A getter of the wrong
//! type is a fault of the table that the first test finds.

use crate::source::Span;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use std::path::PathBuf;

/// A value that fits its type.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) value: Val,
    /// Where it was written; the enclosing block or call for a default.
    pub(super) span: Span,
}

/// What a checked value is.
#[derive(Debug, Clone)]
pub(super) enum Val {
    Int(u64),
    Number(f64),
    Bool(bool),
    Text(String),
    Path(PathBuf),
    Char(char),
    Word(&'static str),
    /// The name of a block.
    Block(String),
    Call(&'static str, Record),
    List(Vec<Checked>),
}

/// The fields of a block or the arguments of a call.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    fields: Vec<(&'static str, Checked, bool)>,
}

impl Record {
    /// Adds a field; `given` unless the value is the default.
    pub(super) fn push(&mut self, name: &'static str, value: Checked, given: bool) {
        self.fields.push((name, value, given));
    }

    /// The field, unless it was left out and its default depends on the recipe.
    pub(super) fn get(&self, name: &str) -> Option<&Checked> {
        self.fields
            .iter()
            .find(|(n, ..)| *n == name)
            .map(|(_, value, _)| value)
    }

    /// Whether the recipe says it.
    pub(super) fn given(&self, name: &str) -> bool {
        self.fields.iter().any(|(n, _, given)| *n == name && *given)
    }

    fn value(&self, name: &str) -> Option<&Val> {
        self.get(name).map(|checked| &checked.value)
    }

    pub(super) fn int(&self, name: &str) -> Option<u64> {
        match self.value(name) {
            Some(Val::Int(n)) => Some(*n),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        match self.value(name) {
            Some(Val::Number(x)) => Some(*x),
            _ => None,
        }
    }

    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        match self.value(name) {
            Some(Val::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.value(name) {
            Some(Val::Text(text) | Val::Block(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        match self.value(name) {
            Some(Val::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    pub(super) fn char(&self, name: &str) -> Option<char> {
        match self.value(name) {
            Some(Val::Char(c)) => Some(*c),
            _ => None,
        }
    }

    pub(super) fn call(&self, name: &str) -> Option<(&'static str, &Record)> {
        match self.value(name) {
            Some(Val::Call(call, record)) => Some((call, record)),
            _ => None,
        }
    }

    pub(super) fn list(&self, name: &str) -> Option<&[Checked]> {
        match self.value(name) {
            Some(Val::List(items)) => Some(items),
            _ => None,
        }
    }

    /// A word as the plan's enum of the same words.
    pub(super) fn word<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        match self.value(name) {
            Some(Val::Word(word)) => as_enum(word),
            _ => None,
        }
    }
}

/// The variant that serde writes as `word`: the table and the plan share their words.
pub(super) fn as_enum<T: serde::de::DeserializeOwned>(word: &'static str) -> Option<T> {
    let deserializer: StrDeserializer<'static, Error> = word.into_deserializer();
    T::deserialize(deserializer).ok()
}
