//! The prompts of a task.
//!
//! Holds the default prompts of each level and the placeholders that a prompt may and must have. It
//! refuses to fill anything in. In a plan every placeholder reads `{{ name }}`, with one blank.

use super::Checker;
use crate::diagnostic::{Code, Diagnostic};
use crate::nearest::nearest;
use crate::plan::Level;
use crate::source::Span;
use crate::table::describe::names;

/// What is asked for, in the words of the default prompts.
fn asked(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::Code => ("code", ""),
        Level::Category => ("category", " (three characters, such as E11)"),
        Level::Block => ("block", " (a range of categories, such as E08-E13)"),
        Level::Chapter => ("chapter", " (CH01 to CH22)"),
    }
}

/// The system message of a task that gives none.
pub(super) fn system(level: Level) -> String {
    let (what, form) = asked(level);
    format!("You are a medical coder. Answer with one ICD-10-CM {what}{form} and nothing else.")
}

/// The user's message of a task that gives none.
pub(super) fn user(level: Level) -> String {
    let (what, _) = asked(level);
    format!("Assign the ICD-10-CM {what} of the main diagnosis.\n\n{{{{ text }}}}")
}

/// A prompt's name and the placeholders that it knows; one of them is needed unless there are none.
pub(super) struct Prompt {
    pub(super) field: &'static str,
    pub(super) known: &'static [&'static str],
}

pub(super) const SYSTEM: Prompt = Prompt {
    field: "system",
    known: &[],
};
pub(super) const USER: Prompt = Prompt {
    field: "user",
    known: &["text"],
};
pub(super) const ANSWER: Prompt = Prompt {
    field: "answer",
    known: &["code", "title"],
};

impl Checker<'_> {
    /// Checks the placeholders of a prompt and writes each with one blank. Placeholders hold no
    /// escapes, so they are looked for in the source as well, where the caret goes.
    pub(super) fn placeholders(&mut self, prompt: &Prompt, text: &str, span: Span) -> String {
        let known = || prompt.known.iter().copied();
        let mut used = false;
        for place in in_source(self.sources.slice(span)) {
            let name = place.name;
            if known().any(|known| Some(known) == name) {
                used = true;
                continue;
            }
            let at = Span {
                start: span.start + place.start,
                end: span.start + place.end,
                ..span
            };
            let message = match name {
                Some(name) => format!(
                    "unknown placeholder `{{{{ {name} }}}}` in `{}`",
                    prompt.field
                ),
                None => format!("a placeholder in `{}` does not end", prompt.field),
            };
            let braced: Vec<String> = known().map(|name| format!("{{{{ {name} }}}}")).collect();
            let label = match prompt.known {
                [] => format!("`{}` takes no placeholders", prompt.field),
                _ => format!(
                    "`{}` takes {}",
                    prompt.field,
                    names(braced.iter().map(String::as_str))
                ),
            };
            let mut diagnostic =
                Diagnostic::new(Code::UnknownPlaceholder, at, message).label(label);
            if let Some(near) = name.and_then(|name| nearest(name, known())) {
                diagnostic = diagnostic.fix(
                    "a placeholder with a similar name exists",
                    at,
                    format!("{{{{ {near} }}}}"),
                );
            }
            if prompt.field == "user" && matches!(name, Some("code" | "title")) {
                diagnostic = diagnostic.help("it would give the answer away");
            }
            self.sink.push(diagnostic);
            used = true;
        }
        let plain = in_source(text);
        if !used && plain.is_empty() && !prompt.known.is_empty() {
            let wanted: Vec<String> = known().map(|name| format!("`{{{{ {name} }}}}`")).collect();
            let message = format!("`{}` lacks {}", prompt.field, wanted.join(" or "));
            let why = if prompt.field == "user" {
                "the model would not see the row's text"
            } else {
                "every answer would be the same"
            };
            self.sink
                .push(Diagnostic::new(Code::MissingPlaceholder, span, message).label(why));
        }
        plain
            .iter()
            .rev()
            .fold(text.to_string(), |mut text, place| {
                if let Some(name) = place.name {
                    text.replace_range(place.start..place.end, &format!("{{{{ {name} }}}}"));
                }
                text
            })
    }
}

struct Place<'a> {
    start: usize,
    end: usize,
    /// `None` if `}}` does not follow.
    name: Option<&'a str>,
}

fn in_source(text: &str) -> Vec<Place<'_>> {
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(start) = text
        .get(at..)
        .and_then(|rest| rest.find("{{"))
        .map(|found| at + found)
    {
        let inside = text.get(start + 2..).unwrap_or("");
        let place = match inside.find("}}") {
            Some(length) => {
                let name = inside.get(..length).map(str::trim);
                Place {
                    start,
                    end: start + length + 4,
                    name,
                }
            }
            None => Place {
                start,
                end: start + 2,
                name: None,
            },
        };
        at = place.end;
        places.push(place);
    }
    places
}
