//! Which column a recipe means.
//!
//! Exact names first, then names that differ only in white space around them (MedSynth's ` Note`
//! has a leading blank). It refuses to guess further: a near name is offered, not taken.

use super::RowsError;
use std::path::Path;

/// The place of `column` among `columns`.
pub(super) fn find_column(
    path: &Path,
    columns: &[String],
    column: &str,
) -> Result<usize, RowsError> {
    let places = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..)
            .zip(columns)
            .filter(|(_, name)| same(name))
            .map(|(at, _)| at)
            .collect()
    };
    let exact = places(&|name| name == column);
    let found = if exact.is_empty() {
        places(&|name| name.trim() == column.trim())
    } else {
        exact
    };
    match found[..] {
        [at] => Ok(at),
        [] => Err(RowsError::MissingColumn {
            path: path.to_owned(),
            column: column.to_owned(),
            columns: columns.to_vec(),
            near: near(columns, column),
        }),
        _ => Err(RowsError::RepeatedColumn {
            path: path.to_owned(),
            column: column.to_owned(),
        }),
    }
}

/// The name that most likely was meant: at most a third of it is written differently.
fn near(columns: &[String], column: &str) -> Option<String> {
    let plain = |name: &str| name.trim().to_lowercase();
    let wanted = plain(column);
    let distances = columns
        .iter()
        .map(|name| (edits(&plain(name), &wanted), name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= wanted.chars().count()).then(|| name.clone())
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (above, x) in (1..).zip(a.chars()) {
        let mut left = above;
        let mut diagonal = above - 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let best = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(columns: &[&str], column: &str) -> Result<usize, String> {
        let columns: Vec<String> = columns.iter().map(|name| name.to_string()).collect();
        find_column(Path::new("/d/rows.csv"), &columns, column).map_err(|error| error.to_string())
    }

    #[test]
    fn exact_names_win_over_trimmed_ones() {
        assert_eq!(find(&[" Note", "Note"], "Note"), Ok(1));
        assert_eq!(find(&[" Note", "Dialogue"], "Note"), Ok(0));
        assert_eq!(find(&["Note", "Dialogue"], " Note"), Ok(0));
        assert!(
            find(&[" Note", "Note "], "Note")
                .unwrap_err()
                .contains("more than one")
        );
    }

    #[test]
    fn a_missing_column_names_the_others_and_a_near_one() {
        let error = find(&[" Note", "Dialogue", "ICD10"], "note").unwrap_err();
        let expected = "/d/rows.csv has no column `note`; it has ` Note`, `Dialogue`, `ICD10`; did you mean ` Note`?";
        assert_eq!(error, expected);
        assert!(
            !find(&["Dialogue"], "Note")
                .unwrap_err()
                .contains("did you mean")
        );
    }

    #[test]
    fn distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("icd10", "icd", 2),
        ] {
            assert_eq!((edits(a, b), edits(b, a)), (distance, distance), "{a} {b}");
        }
    }
}
