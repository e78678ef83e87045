//! Bootstrap percentile intervals.
//!
//! Holds the resampling of rows in clusters (near-duplicates are drawn together) and nothing about codes: a statistic is any
//! function of how often each row was drawn. Invariant: resample `i` of a seed is the same on every machine and on any
//! number of threads, because it has its own ChaCha stream.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Resamples of every interval in a report.
pub const RESAMPLES: u64 = 10_000;

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// On the rows as they are.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A number on the rows as they are, and on every resample. Numbers of one seed share their draws, so they can be subtracted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resampled {
    value: f64,
    drawn: Vec<f64>,
}

impl Resampled {
    /// The difference of two numbers on the same draws.
    pub fn minus(&self, other: &Resampled) -> Resampled {
        let pairs = self.drawn.iter().zip(&other.drawn);
        Resampled {
            value: self.value - other.value,
            drawn: pairs.map(|(a, b)| a - b).collect(),
        }
    }

    /// With the percentile interval: for means and ratios of sums, which resampling leaves where they are.
    pub fn percentile(&self) -> Estimate {
        let mut sorted = self.drawn.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Estimate {
            value: self.value,
            low: quantile(&sorted, 0.025).unwrap_or(self.value),
            high: quantile(&sorted, 0.975).unwrap_or(self.value),
        }
    }

    /// With the percentile interval moved back by the mean shift of the resamples: for averages over classes, whose rare classes
    /// change when their rows are drawn twice or not at all, so that the plain interval can miss the value itself. In [0, 1].
    pub fn recentred(&self) -> Estimate {
        let mean = self.drawn.iter().sum::<f64>() / self.drawn.len().max(1) as f64;
        let shift = self.value - mean;
        let plain = self.percentile();
        Estimate {
            value: self.value,
            low: (plain.low + shift).max(0.0).min(self.value),
            high: (plain.high + shift).min(1.0).max(self.value),
        }
    }
}

/// Draws rows with replacement, cluster by cluster.
pub struct Resampler {
    rows: usize,
    /// Rows of each cluster.
    clusters: Vec<Vec<usize>>,
    seed: u64,
    resamples: u64,
}

impl Resampler {
    /// `clusters` names the cluster of each row; rows that may be treated as independent have each their own.
    pub fn new(clusters: &[u32], seed: u64, resamples: u64) -> Self {
        let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, &cluster) in clusters.iter().enumerate() {
            members.entry(cluster).or_default().push(row);
        }
        Resampler {
            rows: clusters.len(),
            clusters: members.into_values().collect(),
            seed,
            resamples,
        }
    }

    /// Resamples several numbers at once, all on the same draws. `statistic` gets the number of times that each row was
    /// drawn and always returns equally many finite numbers.
    pub fn resample(&self, statistic: impl Fn(&[u32]) -> Vec<f64> + Sync) -> Vec<Resampled> {
        let values = statistic(&vec![1; self.rows]);
        let drawn: Vec<Vec<f64>> = (0..self.resamples)
            .into_par_iter()
            .map_init(
                || vec![0; self.rows],
                |weights, stream| {
                    self.draw(stream, weights);
                    statistic(weights)
                },
            )
            .collect();
        let resampled = |(at, value)| Resampled {
            value,
            drawn: drawn.iter().filter_map(|d| d.get(at).copied()).collect(),
        };
        values.into_iter().enumerate().map(resampled).collect()
    }

    /// The share of right rows.
    pub fn share(&self, right: &[bool]) -> Resampled {
        let share = |weights: &[u32]| {
            let rows: u32 = weights.iter().sum();
            let kept = right.iter().zip(weights).filter(|(right, _)| **right);
            let sum: u32 = kept.map(|(_, weight)| weight).sum();
            vec![f64::from(sum) / f64::from(rows.max(1))]
        };
        self.resample(share).into_iter().next().unwrap_or_default()
    }

    fn draw(&self, stream: u64, weights: &mut [u32]) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        weights.fill(0);
        for _ in 0..self.clusters.len() {
            let cluster = random.random_range(0..self.clusters.len());
            for &row in &self.clusters[cluster] {
                weights[row] += 1;
            }
        }
    }
}

/// Quantile of sorted values with linear interpolation, NumPy's default.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q * sorted.len().checked_sub(1)? as f64;
    let low = *sorted.get(place.floor() as usize)?;
    let high = *sorted.get(place.ceil() as usize)?;
    Some(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(of: &[f64], weights: &[u32]) -> Vec<f64> {
        let total: u32 = weights.iter().sum();
        let sum: f64 = of.iter().zip(weights).map(|(v, &w)| v * f64::from(w)).sum();
        vec![sum / f64::from(total.max(1))]
    }

    fn interval(of: &[f64], clusters: &[u32]) -> Estimate {
        Resampler::new(clusters, 42, 4000).resample(|weights| mean(of, weights))[0].percentile()
    }

    #[test]
    fn agrees_with_the_binomial() {
        let of: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 5 < 2))).collect();
        let clusters: Vec<u32> = (0..400).collect();
        let found = interval(&of, &clusters);
        let half = 1.96 * (0.4_f64 * 0.6 / 400.0).sqrt();
        assert_eq!(found.value, 0.4);
        assert!((found.low - (0.4 - half)).abs() < 0.006, "{found:?}");
        assert!((found.high - (0.4 + half)).abs() < 0.006, "{found:?}");
    }

    #[test]
    fn copies_of_a_row_add_no_certainty() {
        let once: Vec<f64> = (0..100).map(|i| f64::from(i % 2)).collect();
        let single: Vec<u32> = (0..100).collect();
        let four: Vec<f64> = once.iter().flat_map(|&v| [v; 4]).collect();
        let clusters: Vec<u32> = single.iter().flat_map(|&c| [c; 4]).collect();
        assert_eq!(interval(&once, &single), interval(&four, &clusters));
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let of: Vec<f64> = (0..50).map(|i| f64::from(i % 3)).collect();
        let clusters: Vec<u32> = (0..50).collect();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .expect("one thread");
        assert_eq!(
            interval(&of, &clusters),
            pool.install(|| interval(&of, &clusters))
        );
    }

    #[test]
    fn no_rows_and_one_row() {
        assert_eq!(interval(&[], &[]), Estimate::default());
        assert_eq!(
            interval(&[1.0], &[7]),
            Estimate {
                value: 1.0,
                low: 1.0,
                high: 1.0
            }
        );
    }

    #[test]
    fn a_shifted_interval_is_moved_back_onto_its_value() {
        let shifted = Resampled {
            value: 0.297,
            drawn: vec![0.263, 0.279, 0.295],
        };
        let (plain, found) = (shifted.percentile(), shifted.recentred());
        assert!(plain.high < shifted.value);
        assert!((found.low - plain.low - 0.018).abs() < 1e-12, "{found:?}");
        assert!((found.high - plain.high - 0.018).abs() < 1e-12, "{found:?}");
        let none = Resampled::default().recentred();
        assert_eq!(none, Estimate::default());
    }

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile([1, 2, 4, 8], [0.025, 0.5, 0.975])
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let found = [0.025, 0.5, 0.975].map(|q| quantile(&sorted, q).expect("four values"));
        for (found, expected) in found.into_iter().zip([1.075, 3.0, 7.7]) {
            assert!((found - expected).abs() < 1e-12);
        }
    }
}
