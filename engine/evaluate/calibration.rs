//! What probabilities of codes are worth: top-k, MRR, calibration, risk against coverage, temperature.
//!
//! Holds functions over ranked probabilities. It refuses to make them up: free text has none, and a system without them has no
//! such numbers. Invariant: nothing depends on the order of equally probable rows.

use serde::{Deserialize, Serialize};

/// Bins of reliability, of equal width (Guo et al. 2017).
pub const BINS: usize = 15;

/// One row: candidates' probabilities, most probable first, and the gold code's place among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// In [0, 1], falling.
    pub probabilities: Vec<f64>,
    /// Place of the gold code, from 0; `None` if it is no candidate.
    pub gold: Option<usize>,
}

impl Ranked {
    /// Probability of the first candidate; 0 without candidates.
    fn confidence(&self) -> f64 {
        self.probabilities.first().copied().unwrap_or(0.0)
    }

    fn right(&self) -> bool {
        self.gold == Some(0)
    }
}

/// Share of rows whose gold code is among the first `k` candidates.
pub fn top(rows: &[Ranked], k: usize) -> f64 {
    mean(
        rows.iter()
            .map(|row| f64::from(u8::from(row.gold.is_some_and(|place| place < k)))),
    )
}

/// Mean reciprocal rank; a gold code that is no candidate counts as 0.
pub fn mrr(rows: &[Ranked]) -> f64 {
    mean(
        rows.iter()
            .map(|row| row.gold.map_or(0.0, |place| 1.0 / (place + 1) as f64)),
    )
}

/// One bar of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Rows whose confidence lies in (`low`, `high`]; the first bin holds 0, too.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Rows.
    pub rows: u64,
    /// Their mean confidence.
    pub confidence: f64,
    /// Their share of right first candidates.
    pub accuracy: f64,
}

/// The bins that have rows.
pub fn reliability(rows: &[Ranked]) -> Vec<Bin> {
    let edge = |at: usize| at as f64 / BINS as f64;
    let of = |row: &Ranked| {
        let above = (1..BINS).filter(|&at| row.confidence() > edge(at));
        above.count()
    };
    let bin = |at: usize| {
        let inside: Vec<&Ranked> = rows.iter().filter(|row| of(row) == at).collect();
        (!inside.is_empty()).then(|| Bin {
            low: edge(at),
            high: edge(at + 1),
            rows: inside.len() as u64,
            confidence: mean(inside.iter().map(|row| row.confidence())),
            accuracy: mean(inside.iter().map(|row| f64::from(u8::from(row.right())))),
        })
    };
    (0..BINS).filter_map(bin).collect()
}

/// Expected calibration error: the mean gap between confidence and accuracy over the bins, by their rows.
pub fn calibration_error(bins: &[Bin]) -> f64 {
    let rows: u64 = bins.iter().map(|bin| bin.rows).sum();
    let gaps = bins
        .iter()
        .map(|bin| bin.rows as f64 * (bin.confidence - bin.accuracy).abs());
    gaps.sum::<f64>() / rows.max(1) as f64
}

/// A point of the risk-coverage curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Answers below this confidence are withheld.
    pub confidence: f64,
    /// Share of rows that are still answered.
    pub coverage: f64,
    /// Share of these that are wrong.
    pub risk: f64,
}

/// Risk against coverage, one point for each distinct confidence, the most confident first (El-Yaniv and Wiener 2010).
pub fn risk_coverage(rows: &[Ranked]) -> Vec<Coverage> {
    let mut order: Vec<&Ranked> = rows.iter().collect();
    order.sort_by(|a, b| b.confidence().total_cmp(&a.confidence()));
    let (mut points, mut answered, mut wrong): (Vec<Coverage>, usize, usize) = (vec![], 0, 0);
    for equal in order.chunk_by(|a, b| a.confidence() == b.confidence()) {
        answered += equal.len();
        wrong += equal.iter().filter(|row| !row.right()).count();
        points.push(Coverage {
            confidence: equal.first().map_or(0.0, |row| row.confidence()),
            coverage: answered as f64 / rows.len() as f64,
            risk: wrong as f64 / answered as f64,
        });
    }
    points
}

/// Area under the risk-coverage curve: the mean over rows of the risk at which each begins to be answered.
pub fn risk_area(points: &[Coverage]) -> f64 {
    let mut before = 0.0;
    let mut area = 0.0;
    for point in points {
        area += (point.coverage - before) * point.risk;
        before = point.coverage;
    }
    area
}

/// The temperature under which the gold codes of validation rows are most probable (Guo et al. 2017); in [0.001, 1000]. Rows whose gold
/// code is no candidate say nothing of it; `None` if no row says anything.
pub fn temperature(validation: &[Ranked]) -> Option<f64> {
    let rows: Vec<(Vec<f64>, usize)> = validation
        .iter()
        .filter_map(|row| {
            let place = row.gold.filter(|&place| place < row.probabilities.len())?;
            let logs = row
                .probabilities
                .iter()
                .map(|p| p.max(f64::MIN_POSITIVE).ln());
            (row.probabilities.len() > 1).then(|| (logs.collect(), place))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    // The loss is convex in 1/T; its slope is the mean of the expected log-probability less the gold one's.
    let slope = |inverse: f64| -> f64 {
        let row = |(logs, gold): &(Vec<f64>, usize)| {
            let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut whole, mut sum) = (0.0, 0.0);
            for log in logs {
                let weight = (inverse * (log - largest)).exp();
                whole += weight;
                sum += weight * (log - logs[*gold]);
            }
            sum / whole
        };
        rows.iter().map(row).sum()
    };
    let (mut low, mut high) = (1e-3_f64, 1e3_f64);
    for _ in 0..200 {
        let middle = (low * high).sqrt();
        // Where every gold code comes first the slope fades to 0: no reason to turn back.
        if slope(middle) <= 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(1.0 / low)
}

/// The row under a temperature: candidates share the probability they had together.
pub fn tempered(row: &Ranked, temperature: f64) -> Ranked {
    let together: f64 = row.probabilities.iter().sum();
    let largest = row.confidence().max(f64::MIN_POSITIVE).ln();
    let weight = |p: &f64| ((p.max(f64::MIN_POSITIVE).ln() - largest) / temperature).exp();
    let weights: Vec<f64> = row.probabilities.iter().map(weight).collect();
    let whole: f64 = weights.iter().sum();
    Ranked {
        probabilities: weights.iter().map(|w| together * w / whole).collect(),
        gold: row.gold,
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(probabilities: &[f64], gold: Option<usize>) -> Ranked {
        Ranked {
            probabilities: probabilities.to_vec(),
            gold,
        }
    }

    #[test]
    fn top_three_is_not_the_exact_match_again() {
        let rows = [
            row(&[0.6, 0.3, 0.1], Some(0)),
            row(&[0.5, 0.4, 0.1], Some(2)),
            row(&[0.9, 0.1], None),
        ];
        assert_eq!(
            [1, 2, 3].map(|k| top(&rows, k)),
            [1.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0]
        );
        assert!((mrr(&rows) - (1.0 + 1.0 / 3.0) / 3.0).abs() < 1e-15);
    }

    #[test]
    fn no_rows_have_no_numbers() {
        assert_eq!((top(&[], 1), mrr(&[])), (0.0, 0.0));
        assert!(reliability(&[]).is_empty() && risk_coverage(&[]).is_empty());
        assert_eq!((calibration_error(&[]), risk_area(&[])), (0.0, 0.0));
        assert_eq!(temperature(&[]), None);
        assert_eq!(temperature(&[row(&[1.0], Some(0))]), None);
    }

    #[test]
    fn equally_confident_rows_are_answered_together() {
        let rows = [
            row(&[0.5, 0.2], Some(0)),
            row(&[0.5, 0.1], Some(1)),
            row(&[0.9], Some(0)),
        ];
        let points = risk_coverage(&rows);
        assert_eq!(points.len(), 2);
        assert_eq!((points[0].risk, points[1].coverage), (0.0, 1.0));
        let back: Vec<Ranked> = rows.iter().rev().cloned().collect();
        assert_eq!(points, risk_coverage(&back));
    }

    #[test]
    fn the_temperature_undoes_overconfidence() {
        // Two of three are right, but the model says 0.9 each time.
        let rows = [
            row(&[0.9, 0.1], Some(0)),
            row(&[0.9, 0.1], Some(0)),
            row(&[0.9, 0.1], Some(1)),
        ];
        let found = temperature(&rows).expect("three rows");
        assert!((tempered(&rows[0], found).probabilities[0] - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(tempered(&rows[0], 1.0).probabilities.len(), 2);
    }
}
