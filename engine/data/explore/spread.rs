//! The spread of a set of lengths: mean and quantiles.
//!
//! Invariant: quantiles are values that occur (nearest rank), so that "median 482 words" is some
//! row's length.

use serde::{Deserialize, Serialize};

/// Mean and quantiles; all zero for no values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // min, quantiles in percent, max
pub struct Spread {
    pub mean: f64,
    pub min: u64,
    pub p5: u64,
    pub p25: u64,
    pub p50: u64,
    pub p75: u64,
    pub p95: u64,
    pub max: u64,
}

impl Spread {
    /// The spread of `values`.
    pub fn of(values: impl IntoIterator<Item = u64>) -> Spread {
        let mut values: Vec<u64> = values.into_iter().collect();
        values.sort_unstable();
        let count = values.len();
        // Nearest rank: the smallest value with at least `percent` of the values at or below it.
        let quantile = |percent: usize| {
            let rank = (percent * count).div_ceil(100).max(1);
            values.get(rank - 1).copied().unwrap_or(0)
        };
        Spread {
            mean: values.iter().map(|&value| value as f64).sum::<f64>() / count.max(1) as f64,
            min: quantile(0),
            p5: quantile(5),
            p25: quantile(25),
            p50: quantile(50),
            p75: quantile(75),
            p95: quantile(95),
            max: quantile(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let spread = Spread::of((1..=100).rev());
        let expected = Spread {
            mean: 50.5,
            min: 1,
            p5: 5,
            p25: 25,
            p50: 50,
            p75: 75,
            p95: 95,
            max: 100,
        };
        assert_eq!(spread, expected);
        assert_eq!(
            Spread::of([7]),
            Spread {
                mean: 7.0,
                min: 7,
                p5: 7,
                p25: 7,
                p50: 7,
                p75: 7,
                p95: 7,
                max: 7
            }
        );
        assert_eq!(Spread::of([]), Spread::default());
    }
}
