//! Whether two systems' right rows differ by more than chance: the test, effect sizes, and what it can show.
//!
//! Holds mathematics on counts. It refuses names and sentences (see `statistics`). Invariant: the test is exact, so it never claims
//! more often than its level, whatever the number of rows.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, Discrete, DiscreteCDF};
use statrs::function::beta::beta_reg;
use std::collections::BTreeMap;

/// Studies that show a true difference, as the smallest difference is defined.
const POWER: f64 = 0.8;

/// The result of a paired test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairedTest {
    /// Two-sided, exact.
    pub p: f64,
    /// The mid-p variant: half of the observed outcome's own probability. Less cautious, and at times above its level.
    pub mid_p: f64,
}

/// McNemar's exact test, of groups of rows that hang together. `leads` has for each group the rows that only the first system has right
/// less those that only the second has. If the systems are alike, every lead may as well have the other sign; where all groups
/// are single rows that is McNemar's test, a fair coin for the rows on which the systems differ.
pub fn test(leads: impl IntoIterator<Item = i64>) -> PairedTest {
    let (mut sum, mut single, mut large) = (0_i64, 0_u64, Vec::new());
    for lead in leads {
        sum += lead;
        match lead.unsigned_abs() {
            0 => {}
            1 => single += 1,
            size => large.push(size as usize),
        }
    }
    let observed = sum.abs();
    let (mut at_least, mut exactly) = (0.0, 0.0);
    for (lead, probability) in signed_sums(&large) {
        // Of `single` coins, `heads` more than tails by what is missing.
        let missing = observed - lead;
        at_least += probability * coins_at_least(single, missing);
        exactly += probability * coins_exactly(single, missing);
    }
    PairedTest {
        p: (2.0 * at_least).min(1.0),
        mid_p: (2.0 * at_least - exactly).clamp(0.0, 1.0),
    }
}

/// The distribution of a sum of `sizes`, each with a random sign.
fn signed_sums(sizes: &[usize]) -> Vec<(i64, f64)> {
    let whole: usize = sizes.iter().sum();
    let mut probabilities = vec![0.0; 2 * whole + 1];
    probabilities[whole] = 1.0;
    let mut reach = 0;
    for &size in sizes {
        let mut next = vec![0.0; 2 * whole + 1];
        for at in whole - reach..=whole + reach {
            next[at - size] += 0.5 * probabilities[at];
            next[at + size] += 0.5 * probabilities[at];
        }
        probabilities = next;
        reach += size;
    }
    (-(whole as i64)..)
        .zip(probabilities)
        .filter(|(_, p)| *p > 0.0)
        .collect()
}

/// Probability that `n` fair coins show at least `lead` more heads than tails.
fn coins_at_least(n: u64, lead: i64) -> f64 {
    // heads - tails >= lead, by symmetry tails <= (n - lead) / 2
    match u64::try_from((n as i64 - lead).div_euclid(2)) {
        Err(_) => 0.0,
        Ok(most) => coin(0.5, n).map_or(1.0, |coin| coin.cdf(most)),
    }
}

/// Probability that `n` fair coins show exactly `lead` more heads than tails.
fn coins_exactly(n: u64, lead: i64) -> f64 {
    let twice = n as i64 - lead;
    match u64::try_from(twice / 2) {
        Ok(tails) if twice % 2 == 0 && tails <= n => {
            coin(0.5, n).map_or(0.0, |coin| coin.pmf(tails))
        }
        _ => 0.0,
    }
}

fn coin(p: f64, n: u64) -> Option<Binomial> {
    Binomial::new(p, n).ok() // only a p outside [0, 1] fails
}

/// How large a difference is, from the rows on which two systems differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// Cohen's g: the share of these rows that the system wins, less one half. 0.05 is small, 0.15 medium, 0.25 large.
    pub cohens_g: f64,
    /// Odds of winning such a row. `None` where it is infinite or there are none.
    pub odds_ratio: Option<f64>,
    /// Lower end of its 95 % interval (Clopper and Pearson); `None` without such rows.
    pub odds_low: Option<f64>,
    /// Upper end; `None` where it is infinite.
    pub odds_high: Option<f64>,
}

/// Effect sizes of `only_a` against `only_b` rows.
pub fn effect(only_a: u64, only_b: u64) -> Effect {
    let (a, b) = (only_a as f64, only_b as f64);
    if only_a + only_b == 0 {
        return Effect::default();
    }
    let odds = |share: f64| (share < 1.0).then(|| share / (1.0 - share));
    let low = if only_a == 0 {
        0.0
    } else {
        beta_quantile(a, b + 1.0, 0.025)
    };
    let high = if only_b == 0 {
        1.0
    } else {
        beta_quantile(a + 1.0, b, 0.975)
    };
    Effect {
        cohens_g: a / (a + b) - 0.5,
        odds_ratio: (only_b > 0).then(|| a / b),
        odds_low: odds(low),
        odds_high: odds(high),
    }
}

/// By bisection: exact to the last digits, which the crate's own inverse is not.
fn beta_quantile(a: f64, b: f64, q: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if beta_reg(a, b, middle) < q {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Holm's step-down correction (1979), in the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> = p.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut corrected = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, (at, p)) in order.into_iter().enumerate() {
        largest = largest.max((p * (corrected.len() - rank) as f64).min(1.0));
        corrected[at] = largest;
    }
    corrected
}

/// The chance that a study of `rows` independent rows shows a true `difference` in accuracy, in its direction, at level `alpha`, if the
/// systems disagree on a share `disagreement` of the rows. Exact for McNemar's exact test.
pub fn power(rows: u64, disagreement: f64, difference: f64, alpha: f64) -> f64 {
    let disagreement = disagreement.max(difference).min(1.0);
    power_of(&claims(rows, disagreement, alpha), disagreement, difference)
}

/// A number of rows on which the systems differ.
struct Claim {
    /// So many.
    discordant: u64,
    /// Its probability.
    probability: f64,
    /// Most of them that the better system may lose.
    most_lost: u64,
}

/// The numbers of discordant rows that may come up and allow a claim.
fn claims(rows: u64, disagreement: f64, alpha: f64) -> Vec<Claim> {
    let Some(discordance) = coin(disagreement, rows) else {
        return Vec::new();
    };
    // Beyond 7 standard deviations lies less than 1e-11.
    let mean = disagreement * rows as f64;
    let spread = 7.0 * (mean * (1.0 - disagreement)).sqrt() + 7.0;
    let (first, last) = (
        (mean - spread).max(1.0) as u64,
        ((mean + spread) as u64).min(rows),
    );
    let mut claims = Vec::new();
    // The critical value grows with the number; it begins safely below it, 10 standard deviations from the middle.
    let mut next = (0.5 * first as f64 - 5.0 * (first as f64).sqrt()).max(0.0) as u64;
    for discordant in first..=last {
        let Some(fair) = coin(0.5, discordant) else {
            continue;
        };
        while 2 * next < discordant && 2.0 * fair.cdf(next) < alpha {
            next += 1;
        }
        if let Some(most_lost) = next.checked_sub(1) {
            claims.push(Claim {
                discordant,
                probability: discordance.pmf(discordant),
                most_lost,
            });
        }
    }
    claims
}

fn power_of(claims: &[Claim], disagreement: f64, difference: f64) -> f64 {
    let lose = (0.5 * (1.0 - difference / disagreement)).clamp(0.0, 1.0);
    let chance = |claim: &Claim| {
        let few = coin(lose, claim.discordant).map_or(0.0, |lost| lost.cdf(claim.most_lost));
        claim.probability * few
    };
    claims.iter().map(chance).sum::<f64>().min(1.0)
}

/// The smallest true difference that a study of `rows` independent rows shows in four cases of five, to a tenth of a point; `None` if
/// there is none. Where even systems that disagree one way only would not be told apart, they are taken to disagree more.
pub fn smallest_difference(rows: u64, disagreement: f64, alpha: f64) -> Option<f64> {
    let known = claims(rows, disagreement, alpha);
    let within = disagreement > 0.0 && power_of(&known, disagreement, disagreement) >= POWER;
    let shows = |difference: f64| {
        let power = if within {
            power_of(&known, disagreement, difference)
        } else {
            power(rows, difference, difference, alpha)
        };
        power >= POWER
    };
    let (mut low, mut high) = if within {
        (0.0, disagreement)
    } else {
        (disagreement, 1.0)
    };
    if !shows(high) {
        return None;
    }
    while high - low > 1e-3 {
        let middle = 0.5 * (low + high);
        if shows(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// Each group's lead of the first system, from rows and their groups.
pub fn leads(a: &[bool], b: &[bool], clusters: &[u32]) -> Vec<i64> {
    let mut leads: BTreeMap<u32, i64> = BTreeMap::new();
    for ((&a, &b), &cluster) in a.iter().zip(b).zip(clusters) {
        *leads.entry(cluster).or_default() += i64::from(a) - i64::from(b);
    }
    leads.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mcnemar(b: u64, c: u64) -> PairedTest {
        test(std::iter::repeat_n(1, b as usize).chain(std::iter::repeat_n(-1, c as usize)))
    }

    /// `scipy.stats.binomtest(min(b, c), b + c, 0.5).pvalue`
    #[test]
    fn single_rows_are_mcnemars_test() {
        for (b, c, p) in [
            (5, 15, 0.04138946533203125),
            (6, 0, 0.03125),
            (10, 12, 0.8318119049072266),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ] {
            let found = mcnemar(b, c).p;
            assert!((found - p).abs() < 1e-12, "{b} {c}: {found}");
        }
    }

    #[test]
    fn copies_of_a_row_are_one_observation() {
        let copies = |n: i64| test([4 * n, 4 * n, 4 * n, 4 * n, 4 * n, -4 * n]);
        assert_eq!(copies(1), copies(3));
        assert!((copies(1).p - mcnemar(5, 1).p).abs() < 1e-15);
    }

    #[test]
    fn power_grows_and_the_smallest_difference_has_it() {
        assert_eq!(power(5, 1.0, 1.0, 0.05), 0.0, "five rows never suffice");
        assert_eq!(smallest_difference(5, 0.3, 0.05), None);
        assert!(power(400, 0.3, 0.05, 0.05) < power(400, 0.3, 0.1, 0.05));
        let found = smallest_difference(400, 0.3, 0.05).expect("400 rows");
        assert!(
            (power(400, 0.3, found, 0.05) - POWER).abs() < 0.01,
            "{found}"
        );
        assert!(smallest_difference(10_000, 0.3, 0.05).expect("many") < 0.02);
    }

    proptest! {
        #[test]
        fn corrected_values_are_no_smaller_and_keep_their_order(p in prop::collection::vec(0.0_f64..1.0, 0..12)) {
            let corrected = holm(&p);
            for i in 0..p.len() {
                prop_assert!(corrected[i] >= p[i] && corrected[i] <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || corrected[i] <= corrected[j]);
                }
            }
        }

        #[test]
        fn the_test_has_no_favourite(leads in prop::collection::vec(-4_i64..5, 0..40)) {
            let found = test(leads.iter().copied());
            prop_assert!((0.0..=1.0).contains(&found.p) && found.mid_p <= found.p);
            prop_assert_eq!(found, test(leads.iter().map(|lead| -lead)));
        }
    }
}
