//! What there is to know about a data block before anything is trained on it.
//!
//! Holds the numbers ([`Exploration`]) and how they are counted; what they mean is in `findings`,
//! how they look in `render`. It refuses to change or drop a row. Invariant: shares are of the
//! usable rows, unless a field says otherwise.

mod findings;
mod render;
mod spread;

pub use findings::Finding;
pub use render::render_text;
pub use spread::Spread;

use super::icd10::{CodeStatus, CodeTree};
use super::leaks::{self, LeakAudit};
use super::near::Clusters;
use super::rows::{Row, Rows};
use super::words::{word_ranges, wording};
use medft_dsl::plan::Level;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

/// Examples kept of each kind of finding.
const EXAMPLES: usize = 5;

/// A model's tokenizer, for lengths in its tokens.
pub struct Tokens<'a> {
    /// Name of the model block.
    pub model: &'a str,
    /// Limit of the task, in tokens.
    pub max_tokens: u64,
    /// Tokens of a text, without any template.
    pub count: &'a dyn Fn(&str) -> usize,
}

/// Everything that `explore` says about a data block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exploration {
    /// Name of the data block.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// [`Rows::hash`].
    pub hash: String,
    /// The release that codes were compared with.
    pub release: String,
    /// Rows read from the file.
    pub read: u64,
    /// Usable rows.
    pub rows: u64,
    /// Rows dropped because no text is left.
    pub empty_text: u64,
    /// Rows dropped because there is no code.
    pub empty_code: u64,
    /// For each section of the view, the rows read that lack it.
    pub lacking: Vec<(String, u64)>,
    /// Codes hidden by `redact`.
    pub hidden_codes: u64,
    /// Titles hidden by `redact`.
    pub hidden_titles: u64,
    /// Labels at each level, finest first.
    pub labels: Vec<LabelCount>,
    /// (rows of a label, labels with that many rows), fewest rows first; at code level.
    pub rows_per_label: Vec<(u64, u64)>,
    /// Text lengths in characters.
    pub chars: Spread,
    /// Text lengths in words.
    pub words: Spread,
    /// Text lengths in tokens, one entry a model.
    pub tokens: Vec<TokenLength>,
    /// Rows whose wording an earlier row has.
    pub equal: u64,
    /// Further rows that are near-duplicates of an earlier one.
    pub near: u64,
    /// Rows whose wording also stands under another code.
    pub contradicted: u64,
    /// Codes that share a wording, as `D89.8 / D89.89`.
    pub contradictions: Vec<String>,
    /// Share of rows that a coder could get right at best, given that equal wordings get equal
    /// answers.
    pub ceiling: f64,
    /// Rows with a code that is valid for a claim.
    pub billable: u64,
    /// Codes in the tree that are not valid for a claim.
    pub parents: CodeCount,
    /// Codes that once were valid and have left the tree.
    pub retired: CodeCount,
    /// Codes that are not known.
    pub unknown: CodeCount,
    /// How much of the answer stands in the text.
    pub leaks: LeakAudit,
    /// What to look at, most important first.
    pub findings: Vec<Finding>,
}

/// Labels at a level of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelCount {
    /// The level.
    pub level: Level,
    /// Different labels.
    pub labels: u64,
    /// The most frequent label.
    pub most: String,
    /// Its rows: what always answering it would get right.
    pub most_rows: u64,
}

/// Lengths in the tokens of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLength {
    /// Name of the model block.
    pub model: String,
    /// Limit of the task.
    pub max_tokens: u64,
    /// Tokens of a text.
    pub tokens: Spread,
    /// Rows whose text alone is longer than the limit.
    pub over: u64,
}

/// Codes of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeCount {
    /// Rows with such a code.
    pub rows: u64,
    /// Different codes.
    pub codes: u64,
    /// The first few, in code order.
    pub examples: Vec<String>,
}

/// Explores the rows of the data block `name`. `clusters` are those of the rows' texts.
pub fn explore(
    name: &str,
    rows: &Rows,
    clusters: &Clusters,
    tokenizers: &[Tokens<'_>],
    tree: &CodeTree,
) -> Exploration {
    let labels = [Level::Code, Level::Category, Level::Block, Level::Chapter]
        .map(|level| (level, count_labels(&rows.rows, level, tree)));
    let mut rows_per_label: BTreeMap<u64, u64> = BTreeMap::new();
    for count in labels
        .iter()
        .take(1)
        .flat_map(|(_, counts)| counts.values())
    {
        *rows_per_label.entry(*count).or_default() += 1;
    }
    let wordings = Wordings::of(&rows.rows, tree);
    let texts = || rows.rows.iter().map(|row| row.text.as_str());
    let [parents, retired, unknown] = count_codes(&rows.rows, tree);
    let usable = rows.rows.len() as u64;
    let mut exploration = Exploration {
        name: name.to_owned(),
        path: rows.path.clone(),
        hash: rows.hash.clone(),
        release: tree.release().to_owned(),
        read: rows.read,
        rows: usable,
        empty_text: rows.empty_text,
        empty_code: rows.empty_code,
        lacking: rows.lacking.clone(),
        hidden_codes: rows.hidden_codes,
        hidden_titles: rows.hidden_titles,
        labels: labels
            .into_iter()
            .map(|(level, counts)| LabelCount::new(level, counts))
            .collect(),
        rows_per_label: rows_per_label.into_iter().collect(),
        chars: Spread::of(texts().map(|text| text.chars().count() as u64)),
        words: Spread::of(texts().map(|text| word_ranges(text).count() as u64)),
        tokens: tokenizers
            .iter()
            .map(|tokens| TokenLength::new(tokens, texts()))
            .collect(),
        equal: clusters.equal,
        near: clusters.near,
        contradicted: wordings.contradicted,
        contradictions: wordings.examples,
        ceiling: wordings.attainable as f64 / usable.max(1) as f64,
        billable: usable - parents.rows - retired.rows - unknown.rows,
        parents,
        retired,
        unknown,
        leaks: leaks::audit(&rows.rows, tree),
        findings: Vec::new(),
    };
    exploration.findings = findings::find(&exploration);
    exploration
}

fn count_labels(rows: &[Row], level: Level, tree: &CodeTree) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(tree.label(&row.code, level)).or_default() += 1;
    }
    counts
}

/// Codes that are no valid label: parents, retired, unknown.
fn count_codes(rows: &[Row], tree: &CodeTree) -> [CodeCount; 3] {
    let mut counts = [(); 3].map(|()| CodeCount::default());
    for (code, rows) in count_labels(rows, Level::Code, tree) {
        let kind = match tree.status(&code) {
            CodeStatus::Billable => continue,
            CodeStatus::Parent { .. } => 0,
            CodeStatus::Retired { .. } => 1,
            CodeStatus::Unknown => 2,
        };
        let count = &mut counts[kind];
        count.rows += rows;
        count.codes += 1;
        if count.examples.len() < EXAMPLES {
            count.examples.push(code);
        }
    }
    counts
}

impl LabelCount {
    fn new(level: Level, counts: BTreeMap<String, u64>) -> LabelCount {
        let labels = counts.len() as u64;
        // From the back, so that of equals the first in code order is the most frequent one.
        let most = counts.into_iter().rev().max_by_key(|(_, rows)| *rows);
        let (most, most_rows) = most.unwrap_or_default();
        LabelCount {
            level,
            labels,
            most,
            most_rows,
        }
    }
}

impl TokenLength {
    fn new<'r>(tokens: &Tokens<'_>, texts: impl Iterator<Item = &'r str>) -> TokenLength {
        let lengths: Vec<u64> = texts.map(|text| (tokens.count)(text) as u64).collect();
        let over = lengths
            .iter()
            .filter(|length| **length > tokens.max_tokens)
            .count() as u64;
        let (model, max_tokens) = (tokens.model.to_owned(), tokens.max_tokens);
        TokenLength {
            model,
            max_tokens,
            over,
            tokens: Spread::of(lengths),
        }
    }
}

/// Equal wordings under different codes.
struct Wordings {
    contradicted: u64,
    examples: Vec<String>,
    /// Rows right if each wording is answered by its most frequent code.
    attainable: u64,
}

impl Wordings {
    fn of(rows: &[Row], tree: &CodeTree) -> Wordings {
        let mut codes_of: HashMap<String, BTreeMap<String, u64>> = HashMap::new();
        for row in rows {
            let codes = codes_of.entry(wording(&row.text)).or_default();
            *codes.entry(tree.label(&row.code, Level::Code)).or_default() += 1;
        }
        let mut found = Wordings {
            contradicted: 0,
            examples: Vec::new(),
            attainable: 0,
        };
        let mut examples = BTreeSet::new();
        for codes in codes_of.into_values() {
            found.attainable += codes.values().max().copied().unwrap_or(0);
            if codes.len() > 1 {
                found.contradicted += codes.values().sum::<u64>();
                examples.insert(codes.into_keys().collect::<Vec<_>>().join(" / "));
            }
        }
        found.examples = examples.into_iter().take(EXAMPLES).collect();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::near::clusters;

    fn rows(cells: &[(&str, &str)]) -> Rows {
        let tree = CodeTree::shipped();
        let row = |(at, (text, code)): (u64, &(&str, &str))| {
            Row::new(at, text.to_string(), code.to_string(), tree)
        };
        Rows {
            path: "/data/notes.csv".into(),
            rows: (0..).zip(cells).map(row).collect(),
            read: cells.len() as u64 + 3,
            empty_text: 2,
            empty_code: 1,
            lacking: vec![("Plan".into(), 4)],
            hidden_codes: 0,
            hidden_titles: 0,
            hash: "0123456789abcdef0123".into(),
        }
    }

    fn explored(cells: &[(&str, &str)]) -> Exploration {
        let rows = rows(cells);
        let count = |text: &str| text.len();
        let tokens = [Tokens {
            model: "tiny",
            max_tokens: 12,
            count: &count,
        }];
        explore(
            "notes",
            &rows,
            &clusters(&rows.rows),
            &tokens,
            CodeTree::shipped(),
        )
    }

    #[test]
    fn every_kind_of_code_is_counted_once() {
        let data = explored(&[
            ("a", "F32A"),
            ("b", "f32.a"),
            ("c", "F32"),
            ("d", "H40.11X1"),
            ("e", "cough"),
        ]);
        assert_eq!(
            (
                data.billable,
                data.parents.rows,
                data.retired.rows,
                data.unknown.rows
            ),
            (2, 1, 0, 2)
        );
        assert_eq!(data.unknown.examples, ["COUGH", "H40.11X1"]);
        let labels: Vec<_> = data
            .labels
            .iter()
            .map(|l| (l.labels, &*l.most, l.most_rows))
            .collect();
        assert_eq!(
            labels,
            [
                (4, "F32.A", 2),
                (3, "F32", 3),
                (3, "F30-F39", 3),
                (3, "CH05", 3)
            ]
        );
        assert_eq!(data.rows_per_label, [(1, 3), (2, 1)]);
    }

    #[test]
    fn one_wording_under_two_codes_lowers_the_ceiling() {
        let data = explored(&[
            ("same text", "I10"),
            ("Same text.", "I10"),
            ("same TEXT", "F32A"),
            ("other", "I10"),
        ]);
        assert_eq!((data.contradicted, data.equal, data.ceiling), (3, 2, 0.75));
        assert_eq!(data.contradictions, ["F32.A / I10"]);
    }

    #[test]
    fn findings_lead_the_text_and_quote_their_numbers() {
        let data = explored(&[
            ("essential (primary) hypertension", "I10"),
            ("short", "E11.65"),
            ("short", "I10"),
        ]);
        let text = render_text(&data);
        for part in [
            "data `notes`: /data/notes.csv\n6 rows read, 3 usable, hash 0123456789abcdef\n",
            "1. the answer stands in the text: its code in 0.0 %, its official title in 33.3 % of the rows",
            "33.3 % of the texts are longer than `max_tokens = 12` in the tokens of `tiny`",
            "4 of 6 notes have no section `Plan`",
            "no coder can get more than 66.7 % right",
            "of 6 rows 2 are left out because they have no text and 1 because they have no code",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let json = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<Exploration>(&json).unwrap(), data);
    }

    #[test]
    fn nothing_to_explore_is_no_panic() {
        assert!(render_text(&explored(&[])).contains("0 usable"));
    }
}
