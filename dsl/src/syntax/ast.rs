//! The syntax tree: what was written, before anything is known about its meaning.
//!
//! Holds plain nodes with spans. It refuses to hold comments (they are a separate list in
//! [`File`]) and to know the field table. Entries keep the order of the text.

use crate::source::Span;

/// A parsed file.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) items: Vec<Item>,
    /// From `#` to the end of the line, in order.
    pub(crate) comments: Vec<Span>,
    /// A top-level item could not be read, so that names may be missing.
    pub(crate) damaged: bool,
}

/// A top-level item.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Use {
        path: Text,
        span: Span,
    },
    Let {
        name: Word,
        value: Value,
        span: Span,
    },
    Block(Block),
}

impl Item {
    pub(crate) fn span(&self) -> Span {
        match self {
            Item::Use { span, .. } | Item::Let { span, .. } => *span,
            Item::Block(block) => block.span,
        }
    }
}

/// `kind name { entries }`, or `sweep { entries }` inside another block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) kind: Word,
    pub(crate) name: Option<Name>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) span: Span,
    /// An entry could not be read, so that fields may be missing.
    pub(crate) damaged: bool,
}

/// A block's name: a bare word, or a string for `recipe`.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Word(Word),
    Text(Text),
}

impl Name {
    pub(crate) fn text(&self) -> &str {
        match self {
            Name::Word(word) => &word.text,
            Name::Text(text) => &text.value,
        }
    }

    pub(crate) fn span(&self) -> Span {
        match self {
            Name::Word(word) => word.span,
            Name::Text(text) => text.span,
        }
    }
}

/// What stands in a block.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Field(Field),
    Block(Block),
}

impl Entry {
    pub(crate) fn span(&self) -> Span {
        match self {
            Entry::Field(field) => field.span,
            Entry::Block(block) => block.span,
        }
    }
}

/// `path = value`; only sweeps and `--set` use more than one word.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) path: Path,
    pub(crate) value: Value,
    pub(crate) span: Span,
}

/// Words joined by dots.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) first: Word,
    pub(crate) rest: Vec<Word>,
}

impl Path {
    /// The whole path as written, without blanks.
    pub(crate) fn text(&self) -> String {
        self.rest
            .iter()
            .fold(self.first.text.clone(), |text, word| {
                text + "." + &word.text
            })
    }

    pub(crate) fn span(&self) -> Span {
        let end = self.rest.last().unwrap_or(&self.first).span.end;
        Span {
            end,
            ..self.first.span
        }
    }
}

/// A bare word.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// A string, without quotes and escapes; the span holds the quotes.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub(crate) value: String,
    pub(crate) span: Span,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) kind: ValueKind,
    pub(crate) span: Span,
}

impl Value {
    /// The word, if the value is nothing but a word.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// What a value is written as.
#[derive(Debug, Clone)]
pub(crate) enum ValueKind {
    Int(i128),
    Float(f64),
    /// `70%` as 0.7.
    Percent(f64),
    /// `24GiB`. No field takes one yet, so only its form is known.
    Bytes,
    /// `90s`. As for bytes.
    Duration,
    Bool(bool),
    Text(String),
    /// A word: a choice, a block or a `let`.
    Name(String),
    List(Vec<Value>),
    Call(Word, Vec<Arg>),
}

/// An argument of a call.
#[derive(Debug, Clone)]
pub(crate) struct Arg {
    pub(crate) name: Option<Word>,
    pub(crate) value: Value,
}

impl Arg {
    pub(crate) fn span(&self) -> Span {
        let start = self
            .name
            .as_ref()
            .map_or(self.value.span.start, |name| name.span.start);
        Span {
            start,
            ..self.value.span
        }
    }
}
