//! No text makes the language panic, hang, or format wrongly: random token soups and mutated recipes.
//!
//! `PROPTEST_CASES=200000` runs more than the default.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use medft_dsl::{SourceFile, check, format};
use proptest::prelude::*;
use std::io;
use std::path::Path;
use std::sync::LazyLock;

const TOKENS: &[&str] = &[
    "recipe",
    "data",
    "task",
    "model",
    "train",
    "evaluate",
    "compare",
    "let",
    "use",
    "sweep",
    "lora",
    "rank",
    "epochs",
    "greedy",
    "csv",
    "notes",
    "small",
    "tuned",
    "all",
    "none",
    "true",
    "x",
    "\"x\"",
    "\"a b\\n\"",
    "\"\"\"\n t\n\"\"\"",
    "\"",
    "\"\"\"",
    "\\",
    "{",
    "}",
    "{ ",
    " }",
    "[",
    "]",
    "(",
    ")",
    ",",
    "=",
    ".",
    "#",
    "# c\n",
    "\n",
    "\r\n",
    "\t",
    "1",
    "-2",
    "70%",
    "24GiB",
    "90s",
    "2e-4",
    "1_0",
    "1e999",
    "é",
    "\u{feff}",
    "\u{1b}[31m",
    "{{ text }}",
    "{{",
    "/",
    "\0",
    " = ",
    "🦀",
];

static RECIPES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        root.join("../recipes"),
        root.join("tests/format"),
        root.join("tests/diagnostics"),
    ];
    let files = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "rcp"));
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
});

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000)
}

fn soup() -> impl Strategy<Value = String> {
    let blank = prop_oneof![4 => Just(" "), 1 => Just("")];
    prop::collection::vec((prop::sample::select(TOKENS), blank), 0..60).prop_map(|parts| {
        parts
            .into_iter()
            .flat_map(|(token, blank)| [token, blank])
            .collect()
    })
}

#[derive(Debug, Clone)]
enum Mutation {
    Insert(&'static str),
    Replace(&'static str),
    Delete,
    Repeat,
}

fn mutated() -> impl Strategy<Value = String> {
    let token = || prop::sample::select(TOKENS);
    let mutation = prop_oneof![
        token().prop_map(Mutation::Insert),
        token().prop_map(Mutation::Replace),
        Just(Mutation::Delete),
        Just(Mutation::Repeat),
    ];
    let mutations =
        prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, mutation), 1..8);
    (any::<prop::sample::Index>(), mutations).prop_map(|(recipe, mutations)| {
        let mut letters: Vec<char> = recipe.get(RECIPES.as_slice()).chars().collect();
        for (place, length, mutation) in mutations {
            let start = if letters.is_empty() {
                0
            } else {
                place.index(letters.len())
            };
            let end = (start + length).min(letters.len());
            match mutation {
                Mutation::Insert(token) => drop(letters.splice(start..start, token.chars())),
                Mutation::Replace(token) => drop(letters.splice(start..end, token.chars())),
                Mutation::Delete => drop(letters.drain(start..end)),
                Mutation::Repeat => {
                    let part = letters[start..end].to_vec();
                    letters.splice(start..start, part);
                }
            }
        }
        letters.into_iter().collect()
    })
}

/// Every promise that holds for any text.
fn holds(text: &str, set: &str) {
    let loader = |path: &Path| match path.ends_with("shared.rcp") {
        true => Ok("use \"main.rcp\" let shared = 3".to_string()),
        false => Err(io::ErrorKind::NotFound.into()),
    };
    let source = SourceFile::new("main.rcp", text);
    let checked = check(&source, &[], &loader);
    match &checked {
        Ok(checked) => assert!(!checked.warnings.has_errors()),
        Err(errors) => {
            assert!(errors.has_errors());
            assert!(errors.render(false).ends_with("nothing was run\n"));
        }
    }
    if let Err(errors) = check(&source, &[set.to_string()], &loader) {
        errors.render(true);
        errors.list();
    }
    let Ok(once) = format(&source) else { return };
    let again = SourceFile::new("main.rcp", once.as_str());
    assert_eq!(format(&again).expect("formatted text parses"), once);
    let after = check(&again, &[], &loader);
    assert_eq!(checked.ok().map(|c| c.plan), after.ok().map(|c| c.plan));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn token_soups(text in soup(), set in soup()) {
        holds(&text, &set);
    }

    #[test]
    fn mutated_recipes(text in mutated(), set in "(tuned|all|recipe|x)(\\.[a-z_]{1,5}){0,3}=[a-z0-9\\[\\]().\"]{0,9}") {
        holds(&text, &set);
    }
}
