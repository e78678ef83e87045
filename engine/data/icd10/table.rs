//! Reads the compact table of `data/icd10cm/` (its README describes the layout).
//!
//! Holds the decoding only: navigation is in the parent module. It refuses to guess: a line that
//! does not fit is an error with its number. Invariant: rows come parents before children, so one
//! pass finds every parent.

use super::{CodeId, CodeTree, Key, Kind, Retired};
use flate2::read::GzDecoder;
use std::io::Read;

/// The table as it ships, about 600 KiB.
const SHIPPED: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/data/icd10cm/icd10cm.txt.gz"
));

/// Why a table could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not gzip, or not UTF-8.
    #[error("the ICD-10-CM table cannot be unpacked: {0}")]
    Unpack(#[from] std::io::Error),
    /// A line does not have the layout of `data/icd10cm/README.md`.
    #[error("line {line} of the ICD-10-CM table is not valid: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Strings one after the other in one allocation, found by number.
#[derive(Default)]
pub(super) struct Strings {
    text: String,
    ends: Vec<u32>,
}

impl Strings {
    fn push(&mut self, parts: [&str; 2]) -> Option<()> {
        parts.iter().for_each(|part| self.text.push_str(part));
        self.ends.push(u32::try_from(self.text.len()).ok()?);
        Some(())
    }

    /// String number `at`; empty if there is none.
    pub(super) fn get(&self, at: usize) -> &str {
        let start = at
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .map_or(0, |&end| end as usize);
        let end = self.ends.get(at).map_or(start, |&end| end as usize);
        self.text.get(start..end).unwrap_or("")
    }
}

/// Decodes the table embedded in the program.
pub(super) fn shipped() -> Result<CodeTree, TableError> {
    let mut text = String::with_capacity(5 << 20);
    GzDecoder::new(SHIPPED).read_to_string(&mut text)?;
    decode(&text)
}

/// Decodes an unpacked table.
pub(super) fn decode(text: &str) -> Result<CodeTree, TableError> {
    let mut tree = CodeTree::default();
    let mut lines = (1..).zip(text.lines());
    tree.release = lines
        .next()
        .map(|(_, release)| release.to_owned())
        .unwrap_or_default();

    // The path from the chapter down to the row before.
    let mut path: Vec<CodeId> = Vec::new();
    let mut title = String::new();
    for (line, row) in lines.by_ref().take_while(|(_, row)| !row.is_empty()) {
        let bad = |problem| TableError::Line { line, problem };
        let mut cells = row.splitn(4, '\t');
        let (Some(depth), Some(code), Some(shared), Some(rest)) =
            (cells.next(), cells.next(), cells.next(), cells.next())
        else {
            return Err(bad("four cells are needed"));
        };
        let depth: usize = depth
            .parse()
            .map_err(|_| bad("the depth is not a number"))?;
        let shared: usize = shared
            .parse()
            .map_err(|_| bad("the shared length is not a number"))?;
        if depth > path.len() {
            return Err(bad("a level is left out above this row"));
        }
        if !title.is_char_boundary(shared) {
            return Err(bad("the shared length does not fit the title before"));
        }
        title.truncate(shared);
        title.push_str(rest);

        let id = CodeId(u32::try_from(tree.parents.len()).map_err(|_| bad("too many rows"))?);
        for ended in path.drain(depth..) {
            tree.ends[ended.at()] = id.0;
        }
        let key = Key::of(code).ok_or_else(|| bad("this is not a code"))?;
        tree.by_key.push((key, id));
        tree.codes
            .push([code, ""])
            .ok_or_else(|| bad("too much text"))?;
        tree.titles
            .push([&title, ""])
            .ok_or_else(|| bad("too much text"))?;
        tree.parents.push(path.last().copied());
        tree.ends.push(0);
        tree.kinds.push(match depth {
            0 => Kind::Chapter,
            1 => Kind::Block,
            2 => Kind::Category,
            _ => Kind::Code,
        });
        path.push(id);
    }
    let rows = u32::try_from(tree.parents.len()).unwrap_or(u32::MAX);
    for open in path {
        tree.ends[open.at()] = rows;
    }
    tree.by_key.sort_unstable();

    for (line, row) in lines {
        let bad = |problem| TableError::Line { line, problem };
        let mut cells = row.splitn(3, '\t');
        let (Some(code), Some(year), Some(title)) = (cells.next(), cells.next(), cells.next())
        else {
            return Err(bad("three cells are needed"));
        };
        let key = Key::of(code).ok_or_else(|| bad("this is not a code"))?;
        let last_fiscal_year = year
            .parse()
            .map_err(|_| bad("the fiscal year is not a number"))?;
        tree.retired.push((
            key,
            Retired {
                last_fiscal_year,
                title: title.to_owned(),
            },
        ));
    }
    tree.retired.sort_unstable_by_key(|(key, _)| *key);
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_named() {
        for (text, problem) in [
            ("r\n0\tCH01\t0", "four cells"),
            ("r\nx\tCH01\t0\tt", "depth"),
            ("r\n1\tA00-A09\t0\tt", "level is left out"),
            ("r\n0\tCH01\t5\tt", "shared length"),
            ("r\n0\t\t0\tt", "not a code"),
            ("r\n\nA00.1\tx\tt", "fiscal year"),
        ] {
            let error = decode(text).err().expect(problem).to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn titles_are_rebuilt_from_the_one_before() {
        let tree = decode("r\n0\tCH01\t0\tMénière A\n1\tA00-A09\t10\tB\n0\tCH02\t3\tx\n").unwrap();
        let titles: Vec<_> = tree.ids().map(|id| tree.title(id)).collect();
        assert_eq!(titles, ["Ménière A", "Ménière B", "Méx"]);
    }
}
