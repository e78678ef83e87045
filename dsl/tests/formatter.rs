//! Canonical layout: stable when run again, the same plan after, every comment kept.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use medft_dsl::plan::Plan;
use medft_dsl::{SourceFile, check, format};
use std::fs;
use std::path::{Path, PathBuf};

fn dsl() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn recipes(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dsl().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "rcp"))
        .collect();
    paths.sort();
    paths
}

fn plan(path: &Path, text: &str) -> Option<Plan> {
    check(&SourceFile::new(path, text), &[], &|path| {
        fs::read_to_string(path)
    })
    .ok()
    .map(|checked| checked.plan)
}

fn formatted(text: &str) -> String {
    format(&SourceFile::new("recipe.rcp", text))
        .unwrap_or_else(|errors| panic!("{}", errors.render(false)))
}

/// The comments of a text whose strings hold no `#`.
fn comments(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.find('#').map(|at| line[at..].trim_end()))
        .collect()
}

#[test]
fn every_recipe_we_own_is_formatted_and_stays_so() {
    for path in recipes("../recipes") {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(formatted(&text), text, "{}", path.display());
    }
}

#[test]
fn formatting_is_stable_and_keeps_plan_and_comments() {
    for path in [
        recipes("../recipes"),
        recipes("tests/format"),
        recipes("tests/diagnostics"),
    ]
    .concat()
    {
        let text = fs::read_to_string(&path).unwrap();
        // Without indentation and aligned columns, and with every list and call on several lines.
        let flat: String = text
            .lines()
            .map(|line| line.trim_start().to_string() + "\n")
            .collect();
        let tall = text
            .replace("(", "(\n")
            .replace(",", ",\n")
            .replace("{ ", "{\n");
        for text in [text, flat, tall] {
            let Ok(once) = format(&SourceFile::new(&path, text.as_str())) else {
                continue;
            };
            assert_eq!(formatted(&once), once, "{}", path.display());
            assert_eq!(plan(&path, &once), plan(&path, &text), "{}", path.display());
            assert_eq!(comments(&once), comments(&text), "{}", path.display());
            assert!(
                !once.lines().any(|line| line.ends_with(' ')),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn the_layout_is_as_before() {
    let path = dsl().join("tests/format/everything.rcp");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(dsl().join("tests/format"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        insta::assert_snapshot!("everything", formatted(&fs::read_to_string(path).unwrap()))
    });
}

#[test]
fn an_empty_text_stays_empty_and_errors_are_returned() {
    assert_eq!(formatted(" \n\n"), "");
    assert_eq!(formatted("# x"), "# x\n");
    let errors = format(&SourceFile::new("recipe.rcp", "model small {")).unwrap_err();
    assert_eq!(errors.list().len(), 1);
}
