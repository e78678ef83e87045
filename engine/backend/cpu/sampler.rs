//! From a row of logits to the next token, with Transformers' meaning of every setting: the CPU's `sample`.
//!
//! Holds repetition penalty, temperature, top-k and top-p in Transformers' order, greedy choice and
//! drawing. It refuses to hold a generator with state: the draw of a token is a function of (seed,
//! row, position) alone, so an answer does not depend on the rows beside it. A token is removed by
//! the score minus infinity; one that arrives so (a masked code) stays removed.

use std::cmp::Ordering;

use crate::backend::{DRAW, Sampling, Stream};
use crate::model::philox::{philox4x32, unit_interval, words};

/// Candidates that top-p sorts first; it seldom needs more.
const FIRST_SORTED: usize = 256;

/// Chooses next tokens. Holds buffers: keep one a thread.
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Sampling,
    /// Penalised scores, or the largest scores seen so far.
    scores: Vec<f32>,
    /// (score, token) of the tokens that top-p looks at.
    candidates: Vec<(f32, usize)>,
}

impl Sampler {
    /// A sampler with these settings.
    pub fn new(settings: &Sampling) -> Self {
        Self {
            settings: *settings,
            scores: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// The next token of one row; `logits` (`[vocab]`) are filtered in place. `seen` are the tokens
    /// of prompt and answer so far, in any order, repeated or not. `None` where no logit is a usable
    /// number.
    pub fn choose(&mut self, logits: &mut [f32], seen: &[u32], stream: Stream) -> Option<u32> {
        self.filter(logits, seen);
        if self.settings.sample {
            draw(logits, self.settings.seed, stream)
        } else {
            argmax(logits)
        }
    }

    /// Filters one row in place: the penalty, and for sampling temperature, top-k and top-p.
    pub fn filter(&mut self, logits: &mut [f32], seen: &[u32]) {
        self.penalise(logits, seen);
        let Sampling {
            sample,
            temperature,
            top_k,
            top_p,
            ..
        } = self.settings;
        if !sample {
            return;
        }
        if temperature != 1.0 {
            logits.iter_mut().for_each(|x| *x /= temperature);
        }
        if top_k > 0 && top_k < logits.len() {
            let lowest = self.kth_largest(logits);
            logits
                .iter_mut()
                .filter(|x| **x < lowest)
                .for_each(|x| *x = f32::NEG_INFINITY);
        }
        if top_p < 1.0 {
            self.keep_top_p(logits);
        }
    }

    /// Makes seen tokens less likely, once however often they were seen: every penalised score is
    /// taken from the untouched row before any is written.
    fn penalise(&mut self, logits: &mut [f32], seen: &[u32]) {
        let penalty = self.settings.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.scores.clear();
        let tokens = || seen.iter().map(|&token| token as usize);
        self.scores
            .extend(tokens().map(|token| match logits.get(token) {
                Some(&x) if x < 0.0 => x * penalty,
                Some(&x) => x / penalty,
                None => f32::NAN, // not in the vocabulary: not written, either
            }));
        for (token, &score) in tokens().zip(&self.scores) {
            if let Some(logit) = logits.get_mut(token) {
                *logit = score;
            }
        }
    }

    /// The `top_k`-th largest score, in one pass: most scores fail the first comparison.
    fn kth_largest(&mut self, logits: &[f32]) -> f32 {
        let k = self.settings.top_k;
        let largest = &mut self.scores;
        largest.clear();
        let mut lowest = f32::NEG_INFINITY;
        for &x in logits {
            if x > lowest {
                largest.push(x);
                if largest.len() == 2 * k {
                    largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                    largest.truncate(k);
                    lowest = largest[k - 1];
                }
            }
        }
        if largest.len() < k {
            return f32::NEG_INFINITY;
        }
        *largest
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
            .1
    }

    /// Keeps the smallest set of most probable tokens whose probability reaches `top_p`, at least
    /// one. Of equal scores the higher token goes first, as in Transformers' stable ascending sort.
    fn keep_top_p(&mut self, logits: &mut [f32]) {
        let tokens = logits
            .iter()
            .zip(0..)
            .filter(|(x, _)| **x > f32::NEG_INFINITY);
        self.candidates.clear();
        self.candidates.extend(tokens.map(|(&x, token)| (x, token)));
        let largest = self
            .candidates
            .iter()
            .fold(f32::NEG_INFINITY, |max, c| max.max(c.0));
        let weight = |score: f32| f64::from((score - largest).exp());
        let total: f64 = self.candidates.iter().map(|c| weight(c.0)).sum();
        let wanted = self.settings.top_p * total;

        let mut rest = &mut self.candidates[..];
        let mut size = FIRST_SORTED;
        let mut above = 0.0;
        while !rest.is_empty() {
            let take = size.min(rest.len());
            if take < rest.len() {
                rest.select_nth_unstable_by(take - 1, most_probable_first);
            }
            let (sorted, later) = rest.split_at_mut(take);
            sorted.sort_unstable_by(most_probable_first);
            for &(score, token) in sorted.iter() {
                if above > 0.0 && above >= wanted {
                    logits[token] = f32::NEG_INFINITY;
                }
                above += weight(score);
            }
            rest = later;
            size *= 4;
            if above >= wanted {
                break;
            }
        }
        rest.iter()
            .for_each(|&(_, token)| logits[token] = f32::NEG_INFINITY);
    }
}

/// The token with the largest score, the lowest one of several; `None` if there is none.
pub fn argmax(scores: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (&x, token) in scores.iter().zip(0..) {
        if x > best.0 {
            best = (x, Some(token));
        }
    }
    best.1
}

/// Softmax of a row of scores, written over it. A row without any finite score becomes zeros.
pub fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for x in scores.iter_mut() {
        *x = if *x > f32::NEG_INFINITY {
            (*x - largest).exp()
        } else {
            0.0
        };
        total += f64::from(*x);
    }
    if total > 0.0 {
        scores
            .iter_mut()
            .for_each(|x| *x = (f64::from(*x) / total) as f32);
    }
}

/// Draws a token in proportion to the softmax of `scores`; `None` if all are removed.
fn draw(scores: &[f32], seed: u64, stream: Stream) -> Option<u32> {
    let [row_low, row_high] = words(stream.row);
    let bits = philox4x32([stream.position, DRAW, row_low, row_high], words(seed));
    let largest = argmax(scores).map(|token| scores[token as usize])?;
    let weight = |x: f32| {
        if x > f32::NEG_INFINITY {
            f64::from((x - largest).exp())
        } else {
            0.0
        }
    };
    let total: f64 = scores.iter().map(|&x| weight(x)).sum();
    let target = unit_interval(bits[0]) * total;
    let mut sum = 0.0;
    let mut last = None;
    for (&x, token) in scores.iter().zip(0..) {
        let weight = weight(x);
        if weight > 0.0 {
            sum += weight;
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
}

fn most_probable_first(a: &(f32, usize), b: &(f32, usize)) -> Ordering {
    b.0.total_cmp(&a.0).then(b.1.cmp(&a.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use medft_dsl::plan::Decode;
    use proptest::prelude::*;
    use safetensors::SafeTensors;
    use std::path::PathBuf;

    fn settings(temperature: f64, top_k: u64, top_p: f64, repetition_penalty: f64) -> Sampler {
        Sampler::new(&Sampling::from(&Decode {
            sample: true,
            max_new: 1,
            temperature,
            top_p,
            top_k,
            repetition_penalty,
            seed: 42,
        }))
    }

    fn stream(row: u64, position: u32) -> Stream {
        Stream { row, position }
    }

    #[test]
    fn scores_and_probabilities_equal_transformers() {
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into();
        let golden = std::env::var_os("MEDFT_SHARED")
            .map_or(beside, PathBuf::from)
            .join("golden");
        let Ok(bytes) = std::fs::read(golden.join("sampling.safetensors")) else {
            return eprintln!("skipped: no sampling.safetensors in {}", golden.display());
        };
        let facts = std::fs::read(golden.join("sampling.json")).unwrap();
        let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        };
        let vocab = file.tensor("logits").unwrap().shape()[1];
        let seen = file.tensor("context_ids").unwrap();
        let seen_a_row = seen.shape()[1];
        let seen: Vec<u32> = seen
            .data()
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
            .collect();
        let cases = facts["cases"].as_object().unwrap();
        assert_eq!(cases.len(), 7);
        for (case, set) in cases {
            let of = |name: &str, otherwise| set[name].as_f64().unwrap_or(otherwise);
            let mut sampler = settings(
                of("temperature", 1.0),
                set["top_k"].as_u64().unwrap_or(0),
                of("top_p", 1.0),
                of("repetition_penalty", 1.0),
            );
            let mut scores = floats("logits");
            let want = floats(&format!("{case}.scores"));
            for (row, seen) in scores.chunks_mut(vocab).zip(seen.chunks(seen_a_row)) {
                sampler.filter(row, seen);
            }
            for (i, (got, want)) in scores.iter().zip(&want).enumerate() {
                let near = (got - want).abs() <= 1e-6 * want.abs().max(1.0);
                assert!(
                    got == want || near,
                    "{case} score {i}: {got}, needed {want}"
                );
            }
            scores.chunks_mut(vocab).for_each(softmax);
            for (i, (got, want)) in scores
                .iter()
                .zip(floats(&format!("{case}.probs")))
                .enumerate()
            {
                assert!(
                    (got - want).abs() <= 1e-6,
                    "{case} probability {i}: {got}, needed {want}"
                );
            }
        }
    }

    /// Transformers' processors word for word, in f64 with full sorts. The second value says whether
    /// some token sits so near the edge of top-p that rounding decides.
    fn naive(logits: &[f32], seen: &[u32], sampler: &Sampler) -> (Vec<f64>, bool) {
        let mut scores: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        let penalty = f64::from(sampler.settings.repetition_penalty);
        for token in seen.iter().collect::<std::collections::BTreeSet<_>>() {
            let score = &mut scores[*token as usize];
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
        scores
            .iter_mut()
            .for_each(|x| *x /= f64::from(sampler.settings.temperature));
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        if sampler.settings.top_k > 0 {
            let lowest = scores[order[scores.len() - sampler.settings.top_k.min(scores.len())]];
            scores
                .iter_mut()
                .filter(|x| **x < lowest)
                .for_each(|x| *x = f64::NEG_INFINITY);
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
        let (mut sum, mut on_the_edge) = (0.0, false);
        for &token in &order[..order.len() - 1] {
            sum += (scores[token] - largest).exp() / total;
            on_the_edge |= (sum - (1.0 - sampler.settings.top_p)).abs() < 1e-5;
            if sampler.settings.top_p < 1.0 && sum <= 1.0 - sampler.settings.top_p {
                scores[token] = f64::NEG_INFINITY;
            }
        }
        (scores, on_the_edge)
    }

    proptest! {
        #[test]
        fn filter_equals_the_naive_one(
            logits in prop::collection::vec((-60i16..60).prop_map(|x| f32::from(x) / 4.0), 2..700),
            seen in prop::collection::vec(0u32..700, 0..20),
            temperature in 0.1f64..3.0, top_k in 0u64..80, top_p in 0.05f64..1.2,
            penalty in 1.0f64..1.5,
        ) {
            let vocab = logits.len() as u32;
            let seen: Vec<u32> = seen.into_iter().map(|t| t % vocab).collect();
            let mut sampler = settings(temperature, top_k, top_p, penalty);
            let (want, on_the_edge) = naive(&logits, &seen, &sampler);
            prop_assume!(!on_the_edge);
            let mut got = logits;
            sampler.filter(&mut got, &seen);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let near = (f64::from(*got) - want).abs() <= 1e-5 * want.abs().max(1.0);
                prop_assert!(f64::from(*got) == want || near, "token {i}: {got}, needed {want}");
            }
        }

        #[test]
        fn any_bits_give_a_token_or_an_error(
            bits in prop::collection::vec(any::<u32>(), 0..40), top_k in 0u64..5, top_p in 0.0f64..1.1,
        ) {
            let mut logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let vocab = logits.len();
            let chosen = settings(0.7, top_k, top_p, 1.1).choose(&mut logits, &[0, 7, 900], stream(1, 2));
            prop_assert!(chosen.is_none_or(|t| (t as usize) < vocab));
        }
    }

    #[test]
    fn the_first_of_equal_tokens_is_the_greedy_one() {
        assert_eq!(argmax(&[0.0, 2.0, f32::NAN, 2.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NAN]), None);
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let mut sampler = settings(1.0, 0, 1.0, 1.0);
        for position in 0..200 {
            let mut logits = [f32::NEG_INFINITY, -90.0, f32::NEG_INFINITY, 90.0];
            assert_eq!(
                sampler.choose(&mut logits, &[], stream(0, position)),
                Some(3)
            );
        }
        let nothing = sampler.choose(&mut [f32::NEG_INFINITY; 4], &[], stream(0, 0));
        assert_eq!(nothing, None);
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat() {
        let mut sampler = settings(1.0, 0, 1.0, 1.0);
        let (draws, logits) = (40_000, [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()]);
        let mut counts = [0u32; 3];
        for row in 0..draws {
            let token = sampler
                .choose(&mut logits.clone(), &[], stream(row, 5))
                .unwrap();
            assert_eq!(
                sampler.choose(&mut logits.clone(), &[], stream(row, 5)),
                Some(token)
            );
            counts[token as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip([0.5, 0.3, 0.2]) {
            let n = draws as f64;
            let deviation = (f64::from(count) - n * p) / (n * p * (1.0 - p)).sqrt();
            assert!(deviation.abs() < 4.0, "{counts:?}"); // four standard deviations
        }
    }
}
