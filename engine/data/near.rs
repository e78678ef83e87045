//! Which texts are the same text for a split: equal or nearly equal wordings form a cluster.
//!
//! Two texts are near-duplicates if their sets of runs of five words have a Jaccard similarity of
//! at least 0.9. Pairs are found by MinHash (Broder 1997) with 16 bands of 8 (a pair at 0.9 is
//! missed with probability 1e-4, (1 - 0.9^8)^16) and then checked on the sets themselves, so that a
//! cluster never rests on an estimate. It refuses to judge meaning: a paraphrase is another text.
//! Invariant: clusters depend on the texts and their order only.

use super::words::words;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::LazyLock;

const SHINGLE: usize = 5;
const THRESHOLD: f64 = 0.9;
const BANDS: usize = 16;
const BAND: usize = 8;
/// A pair whose signatures agree in fewer places is not checked: at a similarity of 0.9 and 128
/// places that is 6 standard deviations away. It keeps templated notes (0.6 alike, in one band by
/// chance) from being compared set by set.
const AGREE: usize = 95;

/// The factor and term of each place's hash.
static HASHES: LazyLock<[(u64, u64); BANDS * BAND]> =
    LazyLock::new(|| std::array::from_fn(|at| (mix(2 * at as u64) | 1, mix(2 * at as u64 + 1))));

/// Clusters of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    /// The cluster of each text, numbered from 0 in the order in which they first appear.
    pub of: Vec<u32>,
    /// Texts whose wording an earlier text has.
    pub equal: u64,
    /// Further texts that are near-duplicates of an earlier one.
    pub near: u64,
}

/// A wording: its shingles as a sorted set of hashes, and their signature.
struct Wording {
    shingles: Vec<u32>,
    signature: [u32; BANDS * BAND],
}

/// Finds the clusters among `texts`. Time grows linearly with the texts as long as few of them are
/// alike (10,000 notes of 3,000 characters take about a second on two cores).
pub fn clusters<T: AsRef<str> + Sync>(texts: &[T]) -> Clusters {
    let wordings: Vec<Vec<String>> = texts
        .par_iter()
        .map(|text| words(text.as_ref()).collect())
        .collect();
    // Equal wordings first: they need no signature, and a bucket then holds different ones only.
    let mut first_of: HashMap<&[String], usize> = HashMap::new();
    let mut distinct: Vec<&[String]> = Vec::new();
    let place: Vec<usize> = wordings
        .iter()
        .map(|wording| {
            *first_of.entry(wording).or_insert_with(|| {
                distinct.push(wording);
                distinct.len() - 1
            })
        })
        .collect();

    let hashed: Vec<Wording> = distinct
        .par_iter()
        .map(|wording| Wording::new(wording))
        .collect();
    let mut forest = Forest::new(hashed.len());
    for band in 0..BANDS {
        let mut buckets: HashMap<&[u32], Vec<usize>> = HashMap::new();
        for (at, wording) in hashed.iter().enumerate() {
            buckets.entry(wording.band(band)).or_default().push(at);
        }
        for bucket in buckets.values() {
            for (count, &later) in bucket.iter().enumerate() {
                for &earlier in &bucket[..count] {
                    if forest.root(earlier) != forest.root(later)
                        && hashed[earlier].is_near(&hashed[later])
                    {
                        forest.join(earlier, later);
                    }
                }
            }
        }
    }

    let mut number_of: HashMap<usize, u32> = HashMap::new();
    let of = place
        .iter()
        .map(|&at| {
            let next = number_of.len() as u32; // fewer than the shingle hashes, which are in memory
            *number_of.entry(forest.root(at)).or_insert(next)
        })
        .collect();
    let (texts, distinct, clusters) = (
        texts.len() as u64,
        distinct.len() as u64,
        number_of.len() as u64,
    );
    Clusters {
        of,
        equal: texts - distinct,
        near: distinct - clusters,
    }
}

impl Wording {
    fn new(words: &[String]) -> Wording {
        let hashes: Vec<u64> = words
            .iter()
            .map(|word| hash_bytes(word.as_bytes()))
            .collect();
        let mut shingles: Vec<u32> = match hashes.len() {
            0..=SHINGLE => vec![hash_run(&hashes)],
            _ => hashes.windows(SHINGLE).map(hash_run).collect(),
        };
        shingles.sort_unstable();
        shingles.dedup();
        let mut signature = [u32::MAX; BANDS * BAND];
        for &shingle in &shingles {
            // One multiply-shift hash a place (Dietzfelbinger 1996); `mix` takes several times as
            // long.
            for (least, (factor, term)) in signature.iter_mut().zip(&*HASHES) {
                let hash = factor.wrapping_mul(shingle.into()).wrapping_add(*term);
                *least = (*least).min(upper(hash));
            }
        }
        Wording {
            shingles,
            signature,
        }
    }

    fn band(&self, band: usize) -> &[u32] {
        &self.signature[band * BAND..(band + 1) * BAND]
    }

    fn is_near(&self, other: &Wording) -> bool {
        let agree = self
            .signature
            .iter()
            .zip(&other.signature)
            .filter(|(a, b)| a == b)
            .count();
        agree >= AGREE && jaccard(&self.shingles, &other.shingles) >= THRESHOLD
    }
}

/// Similarity of two sorted sets, not both empty.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut left, mut right, mut shared) = (a.iter().peekable(), b.iter().peekable(), 0_usize);
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => drop(left.next()),
            std::cmp::Ordering::Greater => drop(right.next()),
            std::cmp::Ordering::Equal => {
                shared += 1;
                left.next();
                right.next();
            }
        }
    }
    shared as f64 / (a.len() + b.len() - shared) as f64
}

/// FNV-1a, then mixed: fixed by us, unlike the standard library's hasher, so that clusters never
/// change.
fn hash_bytes(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

fn hash_run(words: &[u64]) -> u32 {
    upper(words.iter().fold(0, |hash, &word| mix(hash ^ word)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn upper(x: u64) -> u32 {
    (x >> 32) as u32
}

/// Disjoint sets; the root of a set is its first member.
struct Forest(Vec<usize>);

impl Forest {
    fn new(len: usize) -> Forest {
        Forest((0..len).collect())
    }

    fn root(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A text of `len` words, different for each seed.
    fn text(seed: u64, len: u64) -> Vec<String> {
        (0..len)
            .map(|at| format!("w{}", mix(seed << 32 | at) % 5_000))
            .collect()
    }

    #[test]
    fn markup_and_case_make_no_other_text() {
        let found = clusters(&["**A b:** c", "a B\nC", "a b d", ""]);
        assert_eq!(
            found,
            Clusters {
                of: vec![0, 0, 1, 2],
                equal: 1,
                near: 0
            }
        );
        assert_eq!(clusters::<&str>(&[]).of, Vec::<u32>::new());
    }

    #[test]
    fn one_changed_word_of_two_hundred_is_near_and_thirty_are_not() {
        let original = text(1, 200);
        let mut near = original.clone();
        near[100] = "changed".into();
        let mut far = original.clone();
        (0..30).for_each(|at| far[at * 6] = "changed".into());
        let found = clusters(&[original.join(" "), near.join(" "), far.join(" ")]);
        assert_eq!(
            found,
            Clusters {
                of: vec![0, 0, 1],
                equal: 0,
                near: 1
            }
        );
    }

    #[test]
    fn a_chain_of_near_duplicates_is_one_cluster() {
        let mut chain = vec![text(2, 300)];
        for step in 0..20 {
            let mut next = chain[step].clone();
            next[step * 14] = format!("step{step}");
            chain.push(next);
        }
        let texts: Vec<String> = chain.iter().map(|words| words.join(" ")).collect();
        assert_eq!(clusters(&texts).of, vec![0; 21]);
    }

    #[test]
    fn ten_thousand_notes_take_seconds() {
        let texts: Vec<String> = (0..10_000)
            .map(|seed| text(seed / 2, 450).join(" "))
            .collect();
        let start = std::time::Instant::now();
        let found = clusters(&texts);
        eprintln!("10,000 notes: {:?}", start.elapsed());
        assert_eq!((found.equal, found.near), (5_000, 0));
    }

    proptest! {
        #[test]
        fn pairs_above_the_threshold_share_a_cluster(seed: u32, at in 0_usize..400, more in 0_usize..4) {
            let original = text(seed.into(), 400);
            let mut other = original.clone();
            for word in other.iter_mut().skip(at).take(more) { *word = "changed".into(); }
            let found = clusters(&[text(u64::from(seed) + 1, 400).join(" "), original.join(" "), other.join(" ")]);
            prop_assert_eq!(found.of, vec![0, 1, 1]);
        }
    }
}
