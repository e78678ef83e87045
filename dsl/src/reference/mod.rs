//! The language explained, from the field table.
//!
//! Holds `help-recipe` for terminals and the reference page for the docs. It refuses to know a field
//! that is not in the table. `docs/recipe-language.md` is what [`reference_markdown`] returns.

use crate::diagnostic::Code;
use crate::nearest::nearest;
use crate::table::{BLOCKS, BlockSpec, CallSpec, FieldSpec};
use std::fmt::Write as _;

const LANGUAGE: &str = include_str!("language.md");

/// Help for a terminal: all blocks, or one topic (`train`, `train.adapter`, `lora`, or a code such as
/// `R0104`).
pub fn help_recipe(topic: Option<&str>) -> String {
    let Some(topic) = topic else {
        return overview();
    };
    if let Some(block) = BLOCKS.iter().find(|block| block.word == topic) {
        return block_help(block);
    }
    if let Some(code) = Code::ALL
        .iter()
        .find(|code| code.id().eq_ignore_ascii_case(topic))
    {
        return format!("{}: {}\n", code.id(), code.meaning());
    }
    let mut out = String::new();
    for block in &BLOCKS {
        for field in block.fields {
            if topic == field.name || topic.split_once('.') == Some((block.word, field.name)) {
                out.push_str(&field_help(block, field));
            }
        }
    }
    for call in calls().filter(|call| call.name == topic) {
        out.push_str(&call_help(call));
    }
    if !out.is_empty() {
        return out;
    }
    let fields = BLOCKS
        .iter()
        .flat_map(|block| block.fields)
        .map(|field| field.name);
    let topics = BLOCKS
        .iter()
        .map(|block| block.word)
        .chain(fields)
        .chain(calls().map(|call| call.name));
    let hint = nearest(topic, topics)
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default();
    format!("there is no topic `{topic}`{hint}\n\n{}", overview())
}

fn overview() -> String {
    let mut out =
        String::from("A recipe consists of blocks, `kind name { field = value ... }`:\n\n");
    for block in &BLOCKS {
        let _ = writeln!(out, "  {:<9} {}", block.word, block.help);
    }
    out.push_str(
        "\n`help-recipe BLOCK`, `help-recipe BLOCK.FIELD` and `help-recipe CALL` tell more.\n",
    );
    out
}

fn block_help(block: &BlockSpec) -> String {
    let mut out = format!(
        "{}\n\n{}\n\nFields:\n\n",
        block.help,
        indented(block.example)
    );
    out.push_str(&fields_help(block.fields));
    out
}

fn field_help(block: &BlockSpec, field: &'static FieldSpec) -> String {
    let mut out = format!(
        "`{}` in {}: {}\n",
        field.name,
        block.kind.a_block(),
        field.help
    );
    let _ = writeln!(
        out,
        "  value:   {}\n  default: {}",
        field.ty.describe(),
        field.describe_default()
    );
    for word in field.ty.words() {
        let _ = writeln!(out, "  `{}`: {}", word.word, word.help);
    }
    out.push('\n');
    field
        .ty
        .calls()
        .for_each(|call| out.push_str(&call_help(call)));
    out
}

fn call_help(call: &CallSpec) -> String {
    format!(
        "{}: {}\n\n{}\n",
        call.describe(),
        call.help,
        fields_help(call.params)
    )
}

fn fields_help(fields: &[FieldSpec]) -> String {
    let width = fields
        .iter()
        .map(|field| field.name.len())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for field in fields {
        let _ = writeln!(out, "  {:<width$}  {}", field.name, field.help);
        let _ = writeln!(
            out,
            "  {:<width$}  {}; default: {}",
            "",
            field.ty.describe(),
            field.describe_default()
        );
    }
    out
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every call of the table once, in order.
fn calls() -> impl Iterator<Item = &'static CallSpec> {
    let mut all: Vec<&'static CallSpec> = Vec::new();
    for field in BLOCKS.iter().flat_map(|block| block.fields) {
        for call in field.ty.calls() {
            let known = all
                .iter()
                .any(|known| known.name == call.name && known.help == call.help);
            if !known {
                all.push(call);
            }
        }
    }
    all.into_iter()
}

/// The reference page, in Markdown.
pub fn reference_markdown() -> String {
    let mut out = String::from("# The recipe language\n\n");
    out.push_str("<!-- Made from the field table in `dsl/`; a test keeps it so. Do not edit it here. -->\n\n");
    out.push_str(LANGUAGE);
    for block in &BLOCKS {
        let _ = write!(
            out,
            "\n## `{}`\n\n{}\n\n```\n{}\n```\n\n",
            block.word, block.help, block.example
        );
        out.push_str(&table("Field", block.fields));
        for field in block.fields {
            for call in field.ty.calls() {
                let _ = write!(
                    out,
                    "\n### `{} = {}(...)`\n\n{}\n\n",
                    field.name, call.name, call.help
                );
                out.push_str(&table("Argument", call.params));
            }
        }
    }
    out.push_str("\n## Errors and warnings\n\n| Code | Meaning |\n|---|---|\n");
    for code in Code::ALL {
        let _ = writeln!(out, "| {} | {} |", code.id(), code.meaning());
    }
    out
}

fn table(what: &str, fields: &'static [FieldSpec]) -> String {
    let mut out = format!("| {what} | Value | Default | Meaning |\n|---|---|---|---|\n");
    for field in fields {
        let words: Vec<String> = field
            .ty
            .words()
            .map(|word| format!("`{}`: {}", word.word, word.help))
            .collect();
        let words = if words.is_empty() {
            String::new()
        } else {
            format!(" ({})", words.join("; "))
        };
        let (value, default) = (field.ty.describe(), field.describe_default());
        let _ = writeln!(
            out,
            "| `{}` | {value} | {default} | {}{words} |",
            field.name, field.help
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_found_by_block_field_call_and_code() {
        assert!(help_recipe(None).contains("evaluate"));
        assert!(help_recipe(Some("train")).contains("learning rate over time"));
        assert!(help_recipe(Some("train.adapter")).contains("alpha / rank"));
        assert!(help_recipe(Some("lora")).contains("alpha / rank"));
        assert!(help_recipe(Some("r0104")).contains("no such argument"));
        assert!(help_recipe(Some("trian")).contains("did you mean `train`"));
    }

    #[test]
    fn the_examples_make_one_recipe() {
        let text = BLOCKS
            .iter()
            .map(|block| block.example)
            .collect::<Vec<_>>()
            .join("\n");
        let none = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let checked =
            crate::check(&crate::SourceFile::new("examples.rcp", text), &[], &none).unwrap();
        assert!(
            checked.warnings.is_empty(),
            "{}",
            checked.warnings.render(false)
        );
    }
}
