//! The shipped ICD-10-CM table against the table that it was compiled from, row for row.
//!
//! Skips, and says so, where the shared folder is not there.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // tests

mod support;

use medft_engine::data::icd10::{CodeStatus, CodeTree, Kind};
use std::io::Read;
use std::path::PathBuf;

fn folder() -> Option<PathBuf> {
    support::shared("data/icd10cm")
}

#[test]
fn every_row_is_as_in_the_source() {
    let Some(folder) = folder() else { return };
    let start = std::time::Instant::now();
    let tree = CodeTree::shipped();
    eprintln!("decoded in {:?}", start.elapsed());

    let mut text = String::new();
    let file = std::fs::File::open(folder.join("icd10cm.tsv.gz")).unwrap();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    let mut rows = 0;
    for (id, line) in tree.ids().zip(text.lines().skip(1)) {
        let cells: Vec<&str> = line.split('\t').collect();
        let parent = tree.parent(id).map_or("", |parent| tree.code(parent));
        assert_eq!(
            [tree.code(id), parent, tree.title(id)],
            [cells[0], cells[1], cells[3]]
        );
        assert_eq!(tree.billable(id), cells[2] == "1", "{}", cells[0]);
        let kind = match cells[4] {
            "chapter" => Kind::Chapter,
            "block" => Kind::Block,
            "category" => Kind::Category,
            _ => Kind::Code,
        };
        assert_eq!(tree.kind(id), kind, "{}", cells[0]);
        assert_eq!(tree.parse(cells[0]), Some(id));
        rows += 1;
    }
    assert_eq!((rows, text.lines().count()), (98_505, 98_506));
}

#[test]
fn every_retired_code_is_known() {
    let Some(folder) = folder() else { return };
    let tree = CodeTree::shipped();
    let text = std::fs::read_to_string(folder.join("icd10cm-retired.tsv")).unwrap();
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let year: u16 = cells[1].parse().unwrap();
        match tree.status(cells[0]) {
            CodeStatus::Parent { billable_until, .. } => {
                assert_eq!((billable_until, cells[2]), (Some(year), "parent"))
            }
            CodeStatus::Retired { last_fiscal_year } => {
                assert_eq!((last_fiscal_year, cells[2]), (year, "absent"))
            }
            other => panic!("{}: {other:?}", cells[0]),
        }
        assert!(tree.title_of(cells[0]).is_some());
    }
}
