//! The `user` and `answer` texts of a recipe, with `{{ text }}`, `{{ code }}` and `{{ title }}` in them.
//!
//! Holds finding the placeholders and filling them. It refuses to be a template language: values are
//! inserted as they are and never looked at, so a note that contains `{{ code }}` keeps it.

use super::TextError;

/// A value of a row that a recipe's text can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// `{{ text }}`: the note.
    Text,
    /// `{{ code }}`: the gold code.
    Code,
    /// `{{ title }}`: the official title of the gold code.
    Title,
}

impl Placeholder {
    /// The name between the braces.
    pub fn name(self) -> &'static str {
        match self {
            Placeholder::Text => "text",
            Placeholder::Code => "code",
            Placeholder::Title => "title",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Placeholder::Text, Placeholder::Code, Placeholder::Title]
            .into_iter()
            .find(|placeholder| placeholder.name() == name)
    }
}

/// A recipe text, cut at its placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeText {
    /// What stands before each placeholder, and the placeholder.
    filled: Vec<(String, Placeholder)>,
    /// What stands after the last one.
    end: String,
}

impl RecipeText {
    /// Cuts `text` at its placeholders. Braces around anything but a lower-case word stay text.
    ///
    /// # Errors
    /// The name of the first placeholder that `allowed` does not list.
    pub fn parse(text: &str, allowed: &[Placeholder]) -> Result<Self, String> {
        let mut filled = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            literal += before;
            let Some((name, later)) = after.split_once("}}").and_then(as_name) else {
                // Step over one brace: of three, the last two may open a placeholder.
                literal.push('{');
                rest = &rest[before.len() + 1..];
                continue;
            };
            match Placeholder::named(name).filter(|placeholder| allowed.contains(placeholder)) {
                Some(placeholder) => filled.push((std::mem::take(&mut literal), placeholder)),
                None => return Err(name.to_owned()),
            }
            rest = later;
        }
        Ok(Self {
            filled,
            end: literal + rest,
        })
    }

    /// How often `placeholder` occurs.
    pub fn count(&self, placeholder: Placeholder) -> usize {
        self.filled
            .iter()
            .filter(|(_, found)| *found == placeholder)
            .count()
    }

    /// The text with every placeholder replaced by its `value`.
    ///
    /// # Errors
    /// What `value` fails with.
    pub fn fill<'a>(
        &self,
        value: impl Fn(Placeholder) -> Result<&'a str, TextError>,
    ) -> Result<String, TextError> {
        let mut out = String::new();
        for (before, placeholder) in &self.filled {
            out += before;
            out += value(*placeholder)?;
        }
        Ok(out + &self.end)
    }
}

/// `inside` as a name, if the braces hold one.
fn as_name<'a>((inside, later): (&'a str, &'a str)) -> Option<(&'a str, &'a str)> {
    let name = inside.trim_matches(' ');
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_name.then_some((name, later))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Placeholder; 3] = [Placeholder::Text, Placeholder::Code, Placeholder::Title];

    fn fill(text: &str) -> String {
        let text = RecipeText::parse(text, &ALL).unwrap();
        text.fill(|placeholder| {
            Ok(if placeholder == Placeholder::Text {
                "{{ code }}"
            } else {
                "E11"
            })
        })
        .unwrap()
    }

    #[test]
    fn values_are_inserted_and_never_read() {
        assert_eq!(
            fill("Note: {{ text }} -> {{code}}."),
            "Note: {{ code }} -> E11."
        );
        assert_eq!(fill("{{ title }}{{ text }}"), "E11{{ code }}");
    }

    #[test]
    fn other_braces_are_text() {
        for text in [
            "",
            "{",
            "{{",
            "{{ }}",
            "{{ 1 }} {{ Text }}",
            "}} {{",
            "{{ a b }}",
            "{{\n}}",
        ] {
            assert_eq!(fill(text), text);
        }
        assert_eq!(fill("{{{ code }}}"), "{E11}");
        assert_eq!(fill("{{ {{ code }}"), "{{ E11");
    }

    #[test]
    fn a_placeholder_that_is_not_allowed_is_named() {
        assert_eq!(
            RecipeText::parse("{{ code }}", &[Placeholder::Text]),
            Err("code".to_owned())
        );
        assert_eq!(
            RecipeText::parse("{{ note }}", &ALL),
            Err("note".to_owned())
        );
    }

    proptest! {
        #[test]
        fn text_without_placeholders_stays(text in "[{} a-z0-9\n]{0,40}") {
            if let Ok(parsed) = RecipeText::parse(&text, &[]) {
                prop_assert_eq!(parsed.fill(|_| unreachable!()).unwrap(), text);
            }
        }
    }
}
