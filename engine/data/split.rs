//! The split of a data block: drawn once, stored, and named by its hash in every result.
//!
//! Each label is spread over train, validation and test by the shares of the recipe, and no cluster
//! of near-duplicates (see `near`) stands on two sides. It refuses to draw again what is stored: a
//! stored split is checked against the data, not replaced. Invariant: the draw depends on the rows,
//! the shares and the seed only, on every platform.

use super::icd10::CodeTree;
use super::near::Clusters;
use super::rows::Rows;
use super::whole_file::{WriteError, write_whole};
use medft_dsl::plan::{Part, Split};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PARTS: [Part; 3] = [Part::Train, Part::Val, Part::Test];

/// Which side each row stands on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitTable {
    /// BLAKE3 of everything below, in hexadecimal.
    pub hash: String,
    /// [`Rows::hash`] of the rows that were split.
    pub data_hash: String,
    /// What was asked for.
    pub asked: Split,
    /// The side of each row, in the order of [`Rows::rows`].
    pub sides: Vec<Part>,
    /// The cluster of near-duplicates of each row, for statistics that resample by cluster.
    pub clusters: Vec<u32>,
}

/// A split could not be drawn, stored or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum SplitError {
    #[error(
        "{rows} rows (in {clusters} clusters of near-duplicates) leave no row for `{part}`; use more rows or other shares"
    )]
    EmptySide {
        part: &'static str,
        rows: usize,
        clusters: usize,
    },
    #[error("cannot read the split {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the split {} is damaged ({problem}); delete it, and the next run draws the same one again", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the split {} was drawn for other rows or shares than those of the recipe ({what}); delete it to draw a new one, and do not compare results across the two", path.display())]
    Other { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl SplitTable {
    /// Draws the split that `asked` describes. `clusters` are those of the rows' texts.
    pub fn draw(
        rows: &Rows,
        clusters: &Clusters,
        asked: &Split,
        tree: &CodeTree,
    ) -> Result<SplitTable, SplitError> {
        let labels: Vec<String> = rows
            .rows
            .iter()
            .map(|row| tree.label(&row.code, asked.by))
            .collect();
        let sides = draw(&labels, &clusters.of, asked);
        for (part, share) in PARTS.into_iter().zip(shares(asked)) {
            if share > 0.0 && !sides.contains(&part) {
                let (rows, clusters) = (sides.len(), units(&clusters.of).len());
                return Err(SplitError::EmptySide {
                    part: name(part),
                    rows,
                    clusters,
                });
            }
        }
        let mut table = SplitTable {
            hash: String::new(),
            data_hash: rows.hash.clone(),
            asked: asked.clone(),
            sides,
            clusters: clusters.of.clone(),
        };
        table.hash = table.compute_hash();
        Ok(table)
    }

    /// Places in [`Rows::rows`] of the rows on one side, ascending.
    pub fn rows_of(&self, part: Part) -> Vec<usize> {
        (0..)
            .zip(&self.sides)
            .filter(|(_, side)| **side == part)
            .map(|(row, _)| row)
            .collect()
    }

    /// Stores the split as JSON, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), SplitError> {
        // A struct of numbers and strings always serialises.
        let json = serde_json::to_vec(self).unwrap_or_default();
        Ok(write_whole(path, &json)?)
    }

    /// Reads a stored split and checks that it is undamaged and that of these rows and shares.
    pub fn load(path: &Path, rows: &Rows, asked: &Split) -> Result<SplitTable, SplitError> {
        let damaged = |problem: String| SplitError::Damaged {
            path: path.to_owned(),
            problem,
        };
        let bytes = std::fs::read(path).map_err(|source| SplitError::Read {
            path: path.to_owned(),
            source,
        })?;
        let table: SplitTable =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let lengths = [table.sides.len(), table.clusters.len()];
        if table.hash != table.compute_hash() {
            return Err(damaged("its hash does not fit its content".to_owned()));
        }
        let other = |what| SplitError::Other {
            path: path.to_owned(),
            what,
        };
        if table.data_hash != rows.hash || lengths != [rows.rows.len(); 2] {
            return Err(other("the rows differ"));
        }
        if table.asked != *asked {
            return Err(other("shares, level or seed differ"));
        }
        Ok(table)
    }

    fn compute_hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.data_hash.as_bytes());
        for share in shares(&self.asked) {
            hasher.update(&share.to_le_bytes());
        }
        hasher
            .update(&self.asked.seed.to_le_bytes())
            .update(&[self.asked.by as u8]);
        for (side, cluster) in self.sides.iter().zip(&self.clusters) {
            hasher.update(&[*side as u8]).update(&cluster.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Train => "train",
        Part::Val => "val",
        Part::Test => "test",
    }
}

fn shares(asked: &Split) -> [f64; 3] {
    [asked.train, asked.val, asked.test]
}

/// The rows of each cluster, clusters in the order of their numbers.
fn units(clusters: &[u32]) -> Vec<Vec<usize>> {
    let mut units: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, cluster) in clusters.iter().enumerate() {
        units.entry(*cluster).or_default().push(row);
    }
    units.into_values().collect()
}

/// The draw, in four steps:
/// 1. a cluster of several rows goes to the side where its label lacks most rows, if it fits there;
/// 2. one that fits nowhere goes to the side to which the labels so far owe most rows;
/// 3. of the single rows of a label, each side gets the whole part of what it still lacks;
/// 4. the one or two rows of each label that are left go to different sides, those that lack most
///    rows overall.
///
/// Steps 2 and 4 pool the fractions of all labels, so that the totals match the shares although a
/// label may have one row, or one cluster, only.
fn draw(labels: &[String], clusters: &[u32], asked: &Split) -> Vec<Part> {
    let mut random = ChaCha8Rng::seed_from_u64(asked.seed);
    let mut strata: BTreeMap<&str, Stratum> = BTreeMap::new();
    for rows in units(clusters) {
        let stratum = strata.entry(commonest(labels, &rows)).or_default();
        stratum.rows += rows.len();
        match rows[..] {
            [row] => stratum.singles.push(row),
            _ => stratum.clusters.push(rows),
        }
    }
    let mut strata: Vec<Stratum> = strata.into_values().collect();
    shuffle(&mut strata, &mut random);

    let mut drawn = Drawn {
        sides: vec![Part::Train; labels.len()],
        open: apportion(labels.len(), shares(asked)),
    };
    let mut owed = [0.0; 3];
    for Stratum {
        rows,
        clusters,
        singles,
    } in &mut strata
    {
        let mut lacks = shares(asked).map(|share| share * *rows as f64);
        shuffle(clusters, &mut random);
        clusters.sort_by_key(|rows| Reverse(rows.len()));
        clusters.retain(|rows| {
            let side = greatest(&lacks);
            let fits = lacks[side] >= rows.len() as f64;
            if fits {
                lacks[side] -= rows.len() as f64;
                drawn.place(rows, side);
            }
            !fits
        });
        // What the label lacks is now divided between its remaining clusters and its single rows.
        let clustered: usize = clusters.iter().map(Vec::len).sum();
        let share = clustered as f64 / (clustered + singles.len()).max(1) as f64;
        for (owed, lack) in owed.iter_mut().zip(&mut lacks) {
            *owed += *lack * share;
            *lack *= 1.0 - share;
        }
        for rows in clusters {
            let side = greatest(&owed);
            owed[side] -= rows.len() as f64;
            drawn.place(rows, side);
        }
        shuffle(singles, &mut random);
        for (side, lack) in lacks.into_iter().enumerate() {
            let whole = whole(lack).min(singles.len());
            drawn.place(&singles[..whole], side);
            singles.drain(..whole);
        }
    }
    for Stratum { singles, .. } in &strata {
        let mut taken = [false; 3];
        for &row in singles {
            let free = (0..3).filter(|&side| !taken[side]);
            let side = free
                .max_by_key(|&side| (drawn.open[side], Reverse(side)))
                .unwrap_or(0);
            taken[side] = true;
            drawn.place(&[row], side);
        }
    }
    drawn.sides
}

/// The whole rows in a quota. A tenth of three thousand is not quite 300 in binary: 1e-9 rows are a
/// rounding error, not a fraction.
fn whole(quota: f64) -> usize {
    (quota + 1e-9).max(0.0).floor() as usize
}

/// The draw as far as it has come.
struct Drawn {
    sides: Vec<Part>,
    /// Rows that each side should still get; less than none after a cluster that did not fit.
    open: [i64; 3],
}

impl Drawn {
    fn place(&mut self, rows: &[usize], side: usize) {
        rows.iter().for_each(|&row| self.sides[row] = PARTS[side]);
        self.open[side] -= rows.len() as i64;
    }
}

/// The rows of one label.
#[derive(Default)]
struct Stratum {
    rows: usize,
    clusters: Vec<Vec<usize>>,
    singles: Vec<usize>,
}

/// The most frequent label among `rows`, the first in code order of equals.
fn commonest<'l>(labels: &'l [String], rows: &[usize]) -> &'l str {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for &row in rows {
        *counts.entry(&labels[row]).or_default() += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map_or("", |(label, _)| label)
}

/// The side with the greatest lack, the first of equals.
fn greatest(lacks: &[f64; 3]) -> usize {
    (1..3).fold(0, |best, side| {
        if lacks[side] > lacks[best] {
            side
        } else {
            best
        }
    })
}

/// Rows for each side by the method of largest remainders.
fn apportion(rows: usize, shares: [f64; 3]) -> [i64; 3] {
    let quotas = shares.map(|share| share * rows as f64);
    let mut counts = quotas.map(|quota| whole(quota) as i64);
    let mut remainders = [0, 1, 2].map(|side| quotas[side] - counts[side] as f64);
    while counts.iter().sum::<i64>() < rows as i64 {
        let side = greatest(&remainders);
        counts[side] += 1;
        remainders[side] -= 1.0;
    }
    counts
}

/// Fisher-Yates by our own hand: the `rand` crate may change its shuffle between versions.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        // The high half of a 128-bit product is below `last + 1`.
        let pick = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, pick as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rows::Row;
    use medft_dsl::plan::Level;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn asked(seed: u64) -> Split {
        Split {
            train: 0.7,
            val: 0.15,
            test: 0.15,
            by: Level::Code,
            seed,
        }
    }

    fn count(sides: &[Part]) -> [usize; 3] {
        PARTS.map(|part| sides.iter().filter(|side| **side == part).count())
    }

    fn rows(codes: &[&str]) -> Rows {
        let tree = CodeTree::shipped();
        let row =
            |(at, code): (u64, &&str)| Row::new(at, format!("text {at}"), code.to_string(), tree);
        Rows {
            path: "rows.csv".into(),
            rows: (0..).zip(codes).map(row).collect(),
            read: codes.len() as u64,
            empty_text: 0,
            empty_code: 0,
            lacking: vec![],
            hidden_codes: 0,
            hidden_titles: 0,
            hash: format!("hash of {codes:?}"),
        }
    }

    fn singles(rows: &Rows) -> Clusters {
        Clusters {
            of: (0..).take(rows.rows.len()).collect(),
            equal: 0,
            near: 0,
        }
    }

    #[test]
    fn medsynths_five_rows_a_label_are_spread_alike() {
        let labels: Vec<String> = (0..10_000).map(|row| format!("L{:04}", row / 5)).collect();
        let clusters: Vec<u32> = (0..10_000).collect();
        let sides = draw(&labels, &clusters, &asked(42));
        assert_eq!(count(&sides), [7_000, 1_500, 1_500]);
        for label in sides.chunks(5) {
            let [train, val, test] = count(label);
            assert!(
                (3..=4).contains(&train) && val <= 1 && test <= 1,
                "{label:?}"
            );
        }
    }

    #[test]
    fn labels_of_one_cluster_are_spread_over_the_sides_too() {
        for (cluster, rows_of_label) in [(2, 2), (2, 4), (5, 5)] {
            let labels: Vec<String> = (0..2_000)
                .map(|row| format!("L{:04}", row / rows_of_label))
                .collect();
            let clusters: Vec<u32> = (0..2_000).map(|row| row / cluster).collect();
            let found = count(&draw(&labels, &clusters, &asked(42)));
            for (rows, wanted) in found.into_iter().zip([1_400, 300, 300]) {
                assert!(rows.abs_diff(wanted) <= cluster as usize, "{found:?}");
            }
        }
    }

    #[test]
    fn the_draw_of_a_seed_never_changes() {
        // Written down once: a change here means that stored studies can no longer be drawn again.
        let labels: Vec<String> = (0..20).map(|row| format!("L{}", row % 4)).collect();
        let clusters: Vec<u32> = (0..20)
            .map(|row| row / 2 * u32::from(row < 6) + row * u32::from(row >= 6))
            .collect();
        let digits = |seed| -> String {
            let sides = draw(&labels, &clusters, &asked(seed));
            sides.iter().map(|side| (*side as u8).to_string()).collect()
        };
        assert_eq!(digits(1), "00000012120010002000");
        assert_ne!(digits(1), digits(2));
    }

    #[test]
    fn a_side_without_rows_is_an_error() {
        let tree = CodeTree::shipped();
        let few = rows(&["I10", "I10"]);
        let error = SplitTable::draw(&few, &singles(&few), &asked(1), tree)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("2 rows (in 2 clusters") && error.contains("`val`"),
            "{error}"
        );
        let alike = Clusters {
            of: vec![0; 2],
            equal: 1,
            near: 0,
        };
        assert!(SplitTable::draw(&few, &alike, &asked(1), tree).is_err());
    }

    #[test]
    fn a_stored_split_is_checked_before_it_is_used() {
        let tree = CodeTree::shipped();
        let data = rows(&[
            "I10", "I10", "F32A", "F32.A", "E1165", "E11.65", "I10", "I10",
        ]);
        let table = SplitTable::draw(&data, &singles(&data), &asked(1), tree).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("split.json");
        table.save(&path).unwrap();
        assert_eq!(SplitTable::load(&path, &data, &asked(1)).unwrap(), table);
        let error = |rows: &Rows, seed| {
            SplitTable::load(&path, rows, &asked(seed))
                .unwrap_err()
                .to_string()
        };
        assert!(error(&data, 2).contains("shares, level or seed differ"));
        assert!(error(&rows(&["I10"; 8]), 1).contains("the rows differ"));
        let json = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, json.replacen("\"train\",", "\"test\",", 1)).unwrap();
        assert!(error(&data, 1).contains("its hash does not fit"));
        std::fs::write(&path, &json[..40]).unwrap();
        assert!(error(&data, 1).contains("damaged"));
        std::fs::remove_file(&path).unwrap();
        assert!(error(&data, 1).contains("cannot read the split"));
    }

    proptest! {
        #[test]
        fn no_cluster_crosses_and_the_shares_are_met(
            drawn in prop::collection::vec((0_u32..30, 0_u32..60), 1..300),
            seed: u64,
            train in 0.1_f64..0.8,
        ) {
            let labels: Vec<String> = drawn.iter().map(|(label, _)| format!("L{label}")).collect();
            // Clusters 0 to 9 hold several rows, the others one.
            let clusters: Vec<u32> =
                (100..).zip(&drawn).map(|(row, (_, cluster))| if *cluster < 10 { *cluster } else { row }).collect();
            let asked = Split { train, val: (1.0 - train) / 3.0, test: (1.0 - train) * 2.0 / 3.0, ..asked(seed) };
            let sides = draw(&labels, &clusters, &asked);
            prop_assert_eq!(&sides, &draw(&labels, &clusters, &asked));
            let mut side_of = HashMap::new();
            for (cluster, side) in clusters.iter().zip(&sides) {
                prop_assert_eq!(side_of.entry(cluster).or_insert(side), &side);
            }
            let largest = units(&clusters).iter().map(Vec::len).max().unwrap_or(0);
            for (rows, share) in count(&sides).into_iter().zip(shares(&asked)) {
                let error = (rows as f64 - share * sides.len() as f64).abs();
                prop_assert!(error <= 1.0 + largest as f64, "{rows} rows for {share}, clusters up to {largest}");
            }
        }

        #[test]
        fn single_rows_meet_the_shares_within_one_row(labels in prop::collection::vec(0_u32..50, 1..400), seed: u64) {
            let labels: Vec<String> = labels.iter().map(|label| format!("L{label}")).collect();
            let clusters: Vec<u32> = (0..).take(labels.len()).collect();
            let found = count(&draw(&labels, &clusters, &asked(seed))).map(|rows| rows as i64);
            prop_assert_eq!(found, apportion(labels.len(), [0.7, 0.15, 0.15]));
        }
    }
}
