//! "Did you mean": the nearest of a set of names.
//!
//! Holds one edit distance and its threshold. It refuses to guess wildly: a name further away than a
//! third of its letters is no suggestion.

/// Longer names are not compared; the distance costs the product of two lengths.
const LONGEST: usize = 48;
/// More candidates than this are not looked at, so that a check stays linear in its input.
const MOST: usize = 256;

/// The candidate nearest to `word`, if one is near.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let letters = word.chars().count();
    if letters > LONGEST {
        return None;
    }
    let limit = (letters / 3).max(1);
    candidates
        .into_iter()
        .take(MOST)
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= limit)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`, ignoring case
/// (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let swap = (i > 0 && j > 0 && b.get(j - 1) == Some(x) && a.get(i - 1) == Some(y))
                .then(|| at(&before, j - 1) + 1);
            let step = (at(&above, j) + usize::from(x != y))
                .min(at(&above, j + 1) + 1)
                .min(at(&row, j) + 1);
            row.push(swap.map_or(step, |swap| swap.min(step)));
        }
        before = std::mem::replace(&mut above, row);
    }
    at(&above, b.len())
}

fn at(row: &[usize], index: usize) -> usize {
    row.get(index).copied().unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("alhpa", "alpha"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("rank", "rank"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("Epochs", "epochs"), 0);
    }

    #[test]
    fn only_near_names_are_offered() {
        let names = ["rank", "alpha", "dropout", "targets"];
        assert_eq!(nearest("alhpa", names), Some("alpha"));
        assert_eq!(nearest("target", names), Some("targets"));
        assert_eq!(nearest("temperature", names), None);
        assert_eq!(nearest("", names), None);
    }
}
