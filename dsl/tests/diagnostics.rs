//! Every code has a recipe that provokes it in `diagnostics/`, and the message is kept as a snapshot
//! beside it. Lines `# --set x=y` at the head of a recipe are its overrides.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use medft_dsl::{Code, Diagnostics, SourceFile, check};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics")
}

/// Reads beside the fixtures; `endless-N.rcp` uses `endless-(N+1).rcp`.
fn load(path: &Path) -> io::Result<String> {
    let name = path
        .file_stem()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    match name
        .strip_prefix("endless-")
        .and_then(|n| n.parse::<u32>().ok())
    {
        Some(n) => Ok(format!("use \"endless-{}.rcp\"", n + 1)),
        None if name == "no-such-file" => {
            Err(io::Error::new(io::ErrorKind::NotFound, "no such file"))
        }
        None => fs::read_to_string(folder().join(path)),
    }
}

fn diagnose(path: &Path) -> Diagnostics {
    let text = fs::read_to_string(path).unwrap();
    let sets: Vec<String> = text
        .lines()
        .map_while(|line| line.strip_prefix("# --set ").map(str::to_string))
        .collect();
    let name = path.file_name().unwrap();
    match check(&SourceFile::new(name, text), &sets, &load) {
        Ok(checked) => checked.warnings,
        Err(errors) => errors,
    }
}

fn fixtures() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "rcp"));
    paths.sort();
    paths
}

#[test]
fn every_fixture_renders_as_before() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder());
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for path in fixtures() {
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            let found = diagnose(&path);
            insta::assert_snapshot!(name.clone(), found.render(false));
            let id = name.split('_').next().unwrap();
            assert!(
                found.list().iter().any(|listed| listed.code.id() == id),
                "{name} does not give {id}"
            );
        }
    });
}

#[test]
fn every_code_has_a_fixture() {
    let covered: BTreeSet<String> = fixtures()
        .iter()
        .map(|p| p.file_name().unwrap().to_str().unwrap()[..5].to_string())
        .collect();
    for code in Code::ALL {
        assert!(
            covered.contains(code.id()),
            "{} ({}) has no fixture",
            code.id(),
            code.meaning()
        );
    }
}

#[test]
fn errors_are_listed_in_source_order_with_their_places() {
    let found = diagnose(&folder().join("R0104_unknown_argument.rcp"));
    let listed = found.list();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[0].line, listed[0].column), (6, 31));
    assert_eq!(listed[0].message, "unknown field `alhpa` in `lora(...)`");
    assert!(listed[0].line < listed[1].line);
    assert!(found.has_errors());
}
