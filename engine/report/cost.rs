//! What answers cost: time, energy, money, carbon dioxide.
//!
//! Holds the arithmetic from measured seconds and the recipe's rates. It refuses prices and powers of its own. Invariant: every system
//! of an evaluation was timed at the same batch, so costs can be compared.

use crate::evaluate::resample::quantile;
use medft_dsl::plan::Rates;
use serde::{Deserialize, Serialize};

/// Seconds from the start of a row's batch to its last token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the rows are at most this slow.
    pub p50: f64,
    /// So are 95 % of them.
    pub p95: f64,
}

/// What a thousand notes cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds of the machine.
    pub seconds: f64,
    /// Energy in kWh: these seconds at the recipe's power.
    pub energy: f64,
    /// Carbon dioxide in grams, of this energy.
    pub carbon: f64,
    /// Price of these seconds, in the recipe's currency.
    pub money: f64,
    /// The training's price, a thousand of the recipe's notes' share of it; 0 without a training.
    pub training: f64,
}

/// Latency of rows; `None` without any.
pub fn latency(seconds: impl Iterator<Item = f64>) -> Option<Latency> {
    let mut sorted: Vec<f64> = seconds.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(Latency {
        p50: quantile(&sorted, 0.5)?,
        p95: quantile(&sorted, 0.95)?,
    })
}

/// The cost of a system that answered `rows` in `seconds`, after a training of so many seconds; `None` without rows.
pub fn cost(rates: &Rates, seconds: f64, rows: u64, training: Option<f64>) -> Option<Cost> {
    if rows == 0 {
        return None;
    }
    let seconds = 1000.0 * seconds / rows as f64;
    let price = |seconds: f64| seconds / 3600.0 * rates.hour;
    let energy = rates.watts * seconds / 3.6e6;
    Some(Cost {
        seconds,
        energy,
        carbon: energy * rates.grid,
        money: price(seconds),
        training: 1000.0 * price(training.unwrap_or(0.0)) / rates.notes as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_of_a_kilowatt() {
        let rates = Rates {
            hour: 2.0,
            currency: "EUR".into(),
            watts: 1000.0,
            grid: 380.0,
            notes: 10_000,
        };
        let found = cost(&rates, 3600.0, 1000, Some(7200.0)).expect("rows");
        let expected = Cost {
            seconds: 3600.0,
            energy: 1.0,
            carbon: 380.0,
            money: 2.0,
            training: 0.4,
        };
        assert_eq!(found, expected);
        assert_eq!(cost(&rates, 1.0, 0, None), None);
        assert_eq!(latency(std::iter::empty()), None);
        let slow = latency((0..=100).map(f64::from)).expect("rows");
        assert_eq!((slow.p50, slow.p95), (50.0, 95.0));
    }
}
