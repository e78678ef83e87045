//! The types of the table in words.
//!
//! Holds the sentences that errors and the reference page use for one type. It refuses to know about
//! values. The words complete "expected ...".

use super::{Bound, CallSpec, Default, FieldSpec, Kind, Ty};

impl Ty {
    /// What a value may be, with range and unit.
    pub(crate) fn describe(&self) -> String {
        match self {
            Ty::Int { low, high, unit } => {
                let range = match (low, high) {
                    (0, &u64::MAX) => "an integer, 0 or more".to_string(),
                    (low, &u64::MAX) => format!("an integer, {} or more", grouped(*low)),
                    (low, high) => {
                        format!("an integer from {} to {}", grouped(*low), grouped(*high))
                    }
                };
                if unit.is_empty() {
                    range
                } else {
                    format!("{range} ({unit})")
                }
            }
            Ty::Number { low, high, share } => {
                let what = if *share {
                    "a fraction or percentage"
                } else {
                    "a number"
                };
                let low = match low {
                    Bound::None => String::new(),
                    Bound::Including(low) => format!(" from {low}"),
                    Bound::Excluding(low) => format!(" above {low}"),
                };
                let high = match high {
                    Bound::None => String::new(),
                    Bound::Including(high) => format!(" up to {high}"),
                    Bound::Excluding(high) => format!(" below {high}"),
                };
                format!(
                    "{what}{low}{}{high}",
                    if low.is_empty() || high.is_empty() {
                        ""
                    } else {
                        " and"
                    }
                )
            }
            Ty::Bool => "`true` or `false`".to_string(),
            Ty::Text { .. } => "a string".to_string(),
            Ty::Path => "a path in quotes".to_string(),
            Ty::Char => "a string of one character".to_string(),
            Ty::Word { words, .. } => either(words.iter().map(|w| format!("`{}`", w.word))),
            Ty::Block([kind]) => format!("the name of {}", kind.a_block()),
            Ty::Block(kinds) => format!("the name of a {} block", blocks(kinds)),
            Ty::Call(calls) => either(calls.iter().map(CallSpec::describe)),
            Ty::List(Ty::Block(kinds)) => format!("a list of {} blocks", blocks(kinds)),
            Ty::List(Ty::Text { .. }) => "a list of strings".to_string(),
            Ty::List(item) => format!("a list of {}", item.describe()),
            Ty::OneOf(types) => either(types.iter().map(Ty::describe)),
        }
    }
}

impl CallSpec {
    /// `lora(...)`.
    pub(crate) fn describe(&self) -> String {
        format!("`{}(...)`", self.name)
    }
}

impl FieldSpec {
    /// The default as the reference page shows it.
    pub(crate) fn describe_default(&self) -> String {
        match self.default {
            Default::Required => "required".to_string(),
            Default::Value(value) => format!("`{value}`"),
            Default::Depends(words) => words.to_string(),
        }
    }
}

impl Kind {
    /// "a `train` block".
    pub(crate) fn a_block(self) -> String {
        let word = self.word();
        let article = if word.starts_with('e') { "an" } else { "a" };
        format!("{article} `{word}` block")
    }

    /// Names of the fields, in backticks.
    pub(crate) fn field_names(self) -> String {
        names(self.spec().fields.iter().map(|f| f.name))
    }
}

/// "`a`, `b`, `c`".
pub(crate) fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn blocks(kinds: &[Kind]) -> String {
    either(kinds.iter().map(|kind| format!("`{}`", kind.word())))
}

/// "a, b or c".
fn either(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    match parts.pop() {
        Some(last) if !parts.is_empty() => format!("{} or {last}", parts.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// 131072 as 131,072.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
