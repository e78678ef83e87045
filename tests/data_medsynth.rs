//! The figures of `shared/data/medsynth/README.md`, counted again by our own code on the 500
//! genuine notes.
//!
//! Skips, and says so, where the shared folder is not there.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // tests

mod support;

use medft_dsl::plan::{Data, Level, Redact, Source, Split, TextView};
use medft_engine::data::explore::{Tokens, explore, render_text};
use medft_engine::data::icd10::CodeTree;
use medft_engine::data::leaks::audit;
use medft_engine::data::near::clusters;
use medft_engine::data::rows::{Rows, read_rows};
use medft_engine::data::split::SplitTable;
use medft_engine::data::titles::TitleLookup;
use std::path::PathBuf;

fn shared(file: &str) -> Option<PathBuf> {
    support::shared(&format!("data/medsynth/{file}"))
}

fn notes(text: TextView, redact: Redact) -> Option<Rows> {
    let path = shared("medsynth-notes-500.csv")?;
    let data = Data {
        name: "notes".into(),
        source: Source::Csv {
            path: path.clone(),
            delimiter: ',',
        },
        text,
        redact,
        code: "ICD10".into(),
        split: split(),
        limit: None,
    };
    Some(read_rows(&data, &path, CodeTree::shipped()).unwrap())
}

fn split() -> Split {
    Split {
        train: 0.7,
        val: 0.15,
        test: 0.15,
        by: Level::Category,
        seed: 42,
    }
}

fn whole() -> TextView {
    TextView::Column {
        column: "Note".into(),
    }
}

fn sections(names: &[&str]) -> TextView {
    TextView::Sections {
        column: " Note".into(),
        sections: names.iter().map(|name| name.to_string()).collect(),
    }
}

/// The data set's own descriptions, which the README's title figures rest on; a few official titles
/// have changed since.
fn descriptions() -> Vec<String> {
    let path = shared("medsynth-notes-500.csv").unwrap();
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader
        .records()
        .map(|record| record.unwrap()[3].to_owned())
        .collect()
}

#[test]
fn the_leaks_of_the_notes_are_those_of_the_readme() {
    let Some(mut rows) = notes(whole(), Redact::None) else {
        return;
    };
    let tree = CodeTree::shipped();
    assert_eq!(rows.rows.len(), 500);

    let official = audit(&rows.rows, tree);
    for (row, title) in rows.rows.iter_mut().zip(descriptions()) {
        row.title = title;
    }
    let described = audit(&rows.rows, tree);
    assert_eq!(described.gold_code, 97); // 19.4 %
    // The README's 27.2 % are 136 rows. Ours are one more: `F05.8` and `S94.20A` begin like codes,
    // but are none.
    assert_eq!(described.any_code, 137);
    assert_eq!(described.gold_title, 362); // 72.4 %
    assert_eq!(described.title_words, 446); // 89.2 %
    assert_eq!(described.lookup, 318); // 63.6 %
    // With official titles of today instead of the data's descriptions.
    assert_eq!((official.gold_title, official.title_words), (355, 438));
}

#[test]
fn the_look_up_with_the_descriptions_as_labels_gets_72_percent() {
    let Some(rows) = notes(whole(), Redact::None) else {
        return;
    };
    let tree = CodeTree::shipped();
    let titles = descriptions();
    let gold: Vec<_> = rows
        .rows
        .iter()
        .map(|row| tree.parse(&row.code).unwrap())
        .collect();
    let lookup =
        TitleLookup::from_titles(gold.iter().copied().zip(titles.iter().map(String::as_str)));
    let start = std::time::Instant::now();
    let hits = rows
        .rows
        .iter()
        .zip(&gold)
        .filter(|(row, gold)| lookup.predict(&row.text) == Some(**gold));
    assert_eq!(hits.count(), 360); // 72.0 %
    assert!(
        start.elapsed().as_secs_f64() < 1.0,
        "500 notes took {:?}",
        start.elapsed()
    );
}

#[test]
fn subjective_and_objective_leave_three_percent_to_the_look_up() {
    let Some(rows) = notes(sections(&["Subjective", "Objective"]), Redact::None) else {
        return;
    };
    assert_eq!(
        rows.lacking,
        [("Subjective".to_owned(), 0), ("Objective".to_owned(), 0)]
    );
    let found = audit(&rows.rows, CodeTree::shipped());
    assert_eq!((found.rows, found.lookup), (500, 15)); // 3.0 %
}

#[test]
fn every_note_has_its_four_sections() {
    let names = ["Subjective", "Objective", "Assessment", "Plan"];
    let Some(rows) = notes(sections(&names), Redact::None) else {
        return;
    };
    assert!(
        rows.lacking.iter().all(|(_, lacking)| *lacking == 0),
        "{:?}",
        rows.lacking
    );
    let whole = notes(whole(), Redact::None).unwrap();
    let length = |rows: &Rows| rows.rows.iter().map(|row| row.text.len()).sum::<usize>();
    let kept = length(&rows) as f64 / length(&whole) as f64;
    assert!(kept > 0.99, "sections hold {kept} of the notes");
}

#[test]
fn redaction_leaves_no_code_and_no_title() {
    let Some(rows) = notes(whole(), Redact::Titles) else {
        return;
    };
    let found = audit(&rows.rows, CodeTree::shipped());
    assert_eq!((found.gold_title, found.lookup), (0, 0));
    // What is left is a code that only its own row makes believable.
    assert_eq!((found.gold_code, found.any_code), (0, 0));
    assert!(rows.hidden_codes > 137 && rows.hidden_titles > 500);
}

#[test]
fn the_notes_explored_and_split() {
    let Some(rows) = notes(whole(), Redact::None) else {
        return;
    };
    let tree = CodeTree::shipped();
    let found = clusters(&rows.rows);
    // D898/D8989 and E784/E7849 have the identical note twice.
    assert_eq!((found.equal, found.near), (2, 0));
    let words = |text: &str| text.split_whitespace().count();
    let tokens = [Tokens {
        model: "words",
        max_tokens: 512,
        count: &words,
    }];
    let explored = explore("notes", &rows, &found, &tokens, tree);
    println!("{}", render_text(&explored));
    assert_eq!(
        (
            explored.rows,
            explored.contradicted,
            explored.labels[0].labels
        ),
        (500, 4, 500)
    );
    assert_eq!(
        explored.contradictions,
        ["D89.8 / D89.89", "E78.4 / E78.49"]
    );
    assert_eq!(explored.ceiling, 498.0 / 500.0);
    assert_eq!((explored.retired.rows, explored.unknown.rows), (0, 0));

    let table = SplitTable::draw(&rows, &found, &split(), tree).unwrap();
    let counts = [
        medft_dsl::plan::Part::Train,
        medft_dsl::plan::Part::Val,
        medft_dsl::plan::Part::Test,
    ]
    .map(|part| table.rows_of(part).len());
    assert_eq!(counts, [350, 75, 75]);
}

#[test]
fn the_labels_of_the_full_set_have_the_status_of_the_readme() {
    let Some(path) = shared("medsynth-codes.tsv") else {
        return;
    };
    let tree = CodeTree::shipped();
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .from_path(path)
        .unwrap();
    let mut counts = [0; 3];
    for record in reader.records() {
        let record = record.unwrap();
        use medft_engine::data::icd10::CodeStatus::*;
        let (status, at) = match tree.status(&record[0]) {
            Billable => ("billable", 0),
            Parent { .. } => ("parent", 1),
            Retired { .. } | Unknown => ("absent", 2),
        };
        assert_eq!(status, &record[3], "{}", &record[0]);
        counts[at] += 1;
        assert!(
            tree.nearest(&record[0]).is_some(),
            "{} has no category",
            &record[0]
        );
    }
    assert_eq!(counts, [1_926, 104, 5]);
}
