use crate::few;
use crate::gpu::{Random, gpu};
use medft_kernels::sample::{self, Batch, NO_TOKEN, Row, Settings};
use proptest::prelude::*;

pub fn settings(temperature: f32, top_k: usize, top_p: f64, repetition_penalty: f32) -> Settings {
    Settings {
        sample: true,
        temperature,
        top_k,
        top_p,
        repetition_penalty,
        seed: 42,
    }
}

fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [
            (b >> 32) as u32 ^ c[1] ^ k[0],
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ k[1],
            a as u32,
        ];
        k = [
            k[0].wrapping_add(0x9E37_79B9),
            k[1].wrapping_add(0xBB67_AE85),
        ];
    }
    c
}

/// engine/generate/sampler.rs in plain words; the second value says whether a top-p edge or the uniform lies within 1e-9 of a boundary.
fn choose(logits: &[f32], seen: &[u32], who: (u64, u32), s: &Settings) -> (u32, bool) {
    let mut scores = logits.to_vec();
    if s.repetition_penalty != 1.0 {
        for &token in seen {
            if let Some(&x) = logits.get(token as usize) {
                scores[token as usize] = if x < 0.0 {
                    x * s.repetition_penalty
                } else {
                    x / s.repetition_penalty
                };
            }
        }
    }
    if !s.sample {
        let mut best = (f32::NEG_INFINITY, NO_TOKEN);
        for (token, &x) in scores.iter().enumerate() {
            if x > best.0 {
                best = (x, token as u32);
            }
        }
        return (best.1, false);
    }
    if s.temperature != 1.0 {
        scores.iter_mut().for_each(|x| *x /= s.temperature);
    }
    if s.top_k > 0 && s.top_k < scores.len() {
        let mut sorted: Vec<f32> = scores
            .iter()
            .copied()
            .filter(|x| *x > f32::NEG_INFINITY)
            .collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        if let Some(&lowest) = sorted.get(s.top_k - 1) {
            scores
                .iter_mut()
                .filter(|x| **x < lowest)
                .for_each(|x| *x = f32::NEG_INFINITY);
        }
    }
    let largest = scores
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m });
    if !largest.is_finite() {
        return (NO_TOKEN, false);
    }
    let weight = |x: f32| {
        if x > f32::NEG_INFINITY {
            f64::from((x - largest).exp())
        } else {
            0.0
        }
    };
    let mut near = false;
    if s.top_p < 1.0 {
        let mut order: Vec<usize> = (0..scores.len())
            .filter(|&t| scores[t] > f32::NEG_INFINITY)
            .collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(b.cmp(&a)));
        let total: f64 = order.iter().map(|&t| weight(scores[t])).sum();
        let mut above = 0.0;
        for t in order {
            let own = weight(scores[t]);
            near |= (above - s.top_p * total).abs() < 1e-9 * total;
            if above > 0.0 && above >= s.top_p * total {
                scores[t] = f32::NEG_INFINITY;
            }
            above += own;
        }
    }
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = words(who.0);
    let bits = philox([who.1, 0x6472_6177, low, high], words(s.seed))[0];
    let total: f64 = scores.iter().map(|&x| weight(x)).sum();
    let target = (f64::from(bits) + 0.5) / 4_294_967_296.0 * total;
    let (mut sum, mut chosen) = (0.0, None);
    for (token, &x) in scores.iter().enumerate() {
        let own = weight(x);
        if own > 0.0 {
            sum += own;
            near |= (sum - target).abs() < 1e-9 * total;
            if sum > target && chosen.is_none() {
                chosen = Some(token as u32);
            }
        }
    }
    (chosen.unwrap_or(NO_TOKEN), near)
}

pub struct Rows {
    pub vocab: usize,
    pub stride: usize,
    pub logits: Vec<f32>,
    pub seen: Vec<Vec<u32>>,
    pub first_row: u64,
    pub position: u32,
}

impl Rows {
    pub fn count(&self) -> usize {
        self.seen.len()
    }

    pub fn row(&self, i: usize) -> &[f32] {
        &self.logits[i * self.stride..i * self.stride + self.vocab]
    }

    /// Their descriptions and the flat list of seen tokens.
    pub fn described(&self) -> (Vec<Row>, Vec<u32>) {
        let (mut who, mut flat) = (vec![], vec![]);
        for (i, seen) in self.seen.iter().enumerate() {
            who.push(Row {
                row: self.first_row + i as u64 * 0x1_0000_0001,
                position: self.position,
                seen_start: flat.len() as u32,
                seen_len: seen.len() as u32,
                reserved: 0,
            });
            flat.extend(seen);
        }
        (who, flat)
    }
}

fn run(rows: &Rows, s: &Settings) -> Option<Vec<u32>> {
    let gpu = gpu()?;
    let (who, seen) = rows.described();
    let (logits, who, seen) = (
        gpu.upload(&rows.logits).unwrap(),
        gpu.upload(&who).unwrap(),
        gpu.upload(&seen).unwrap(),
    );
    let bytes = sample::scratch_bytes(rows.count(), rows.vocab);
    let (scratch, out) = (
        gpu.alloc::<u8>(bytes).unwrap(),
        gpu.alloc::<u32>(rows.count()).unwrap(),
    );
    gpu.fill(scratch.ptr(), 0xff, bytes).unwrap();
    gpu.fill(out.ptr(), 0xee, rows.count()).unwrap();
    let batch = Batch {
        rows: rows.count(),
        vocab: rows.vocab,
        logits: logits.ptr(),
        stride: rows.stride,
        who: who.ptr(),
        seen: seen.ptr(),
    };
    sample::choose(gpu, &batch, s, scratch.ptr(), out.ptr()).unwrap();
    Some(out.download().unwrap())
}

fn check(rows: &Rows, s: &Settings) {
    let Some(got) = run(rows, s) else { return };
    let who = rows.described().0;
    for i in 0..rows.count() {
        let (want, near) = choose(rows.row(i), &rows.seen[i], (who[i].row, who[i].position), s);
        assert!(
            got[i] == want || near,
            "row {i} of {} x {}: got {} wanted {want}; {s:?}",
            rows.count(),
            rows.vocab,
            got[i]
        );
    }
}

/// Rows of many kinds: usual, with ties (steps of 1/4), flat, all equal, masked and NaN, peaked, everything around zero.
fn rows(count: usize, vocab: usize, seed: u64) -> Rows {
    let mut random = Random(seed);
    let stride = vocab + random.below(3);
    let mut logits = vec![f32::NAN; count * stride];
    for (r, row) in logits.chunks_mut(stride).enumerate() {
        for (t, z) in row[..vocab].iter_mut().enumerate() {
            let x = random.normal(3.0);
            *z = match (r + seed as usize) % 7 {
                0 => x + 12.0,
                1 => (4.0 * x).round() / 4.0,
                2 => x / 100.0,
                3 => 1.5,
                4 if t % 5 == 0 => f64::NEG_INFINITY,
                4 if t % 7 == 1 => f64::NAN,
                5 => x * 8.0,
                6 => (x / 3.0).round() * if t % 2 == 0 { 1.0 } else { -1.0 },
                _ => x,
            } as f32;
        }
    }
    let seen = (0..count)
        .map(|_| {
            let long = random.below(600);
            (0..long).map(|_| random.below(vocab + 5) as u32).collect()
        })
        .collect();
    Rows {
        vocab,
        stride,
        logits,
        seen,
        first_row: random.bits() >> 8,
        position: random.below(4000) as u32,
    }
}

proptest! {
    #![proptest_config(few(32))]
    #[test]
    fn the_token_is_the_cpu_samplers(
        count in 1usize..10, vocab in 1usize..9000, seed: u64, sample in prop::bool::weighted(0.85),
        temperature in prop::sample::select(vec![1.0f32, 0.7, 0.1, 1.3, 3.0]),
        top_k in prop::sample::select(vec![0usize, 0, 1, 2, 50, 1000, 8999]),
        top_p in prop::sample::select(vec![1.0f64, 1.0, 0.9, 0.5, 0.05, 0.999, 0.0]),
        penalty in prop::sample::select(vec![1.0f32, 1.1, 1.5]),
    ) {
        let s = Settings { sample, seed: seed ^ 0xabcd, ..settings(temperature, top_k, top_p, penalty) };
        check(&rows(count, vocab, seed), &s);
    }
}

#[test]
fn edges_of_chunks() {
    for vocab in [1, 2, 255, 256, 4095, 4096, 4097, 8192, 8193] {
        for (top_k, top_p) in [(0, 1.0), (50, 1.0), (0, 0.8), (50, 0.8)] {
            check(
                &rows(7, vocab, vocab as u64),
                &settings(0.9, top_k, top_p, 1.2),
            );
        }
    }
}

#[test]
fn real_vocabularies() {
    for (vocab, seed) in [(49_152, 1), (128_256, 2), (151_936, 3)] {
        let rows = rows(7, vocab, seed);
        for (top_k, top_p) in [(0, 1.0), (50, 1.0), (0, 0.9), (50, 0.9), (30_000, 0.99)] {
            check(&rows, &settings(0.7, top_k, top_p, 1.1));
        }
        check(
            &rows,
            &Settings {
                sample: false,
                ..settings(1.0, 0, 1.0, 1.1)
            },
        );
    }
}

#[test]
fn many_seeds_on_one_row() {
    let one = rows(1, 3000, 0);
    let many = Rows {
        vocab: 3000,
        stride: 3000,
        logits: one.row(0).repeat(500),
        seen: vec![one.seen[0].clone(); 500],
        first_row: 0,
        position: 9,
    };
    for seed in 0..4 {
        check(
            &many,
            &Settings {
                seed,
                ..settings(0.8, 200, 0.95, 1.1)
            },
        );
        check(
            &many,
            &Settings {
                seed,
                ..settings(1.0, 0, 1.0, 1.0)
            },
        );
    }
}

#[test]
fn rows_without_a_usable_number_have_no_token() {
    let vocab = 5000;
    let (nan, low, high) = (f32::NAN, f32::NEG_INFINITY, f32::INFINITY);
    let mut with_one = vec![low; vocab];
    with_one[4321] = -90.0;
    let mut infinite = vec![0.0; vocab];
    infinite[4000] = high;
    let logits = [vec![nan; vocab], vec![low; vocab], with_one, infinite].concat();
    let rows = Rows {
        vocab,
        stride: vocab,
        logits,
        seen: vec![vec![]; 4],
        first_row: 1,
        position: 2,
    };
    for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.5), (3, 0.5)] {
        let Some(got) = run(&rows, &settings(1.0, top_k, top_p, 1.0)) else {
            return;
        };
        assert_eq!(got, [NO_TOKEN, NO_TOKEN, 4321, NO_TOKEN], "{top_k} {top_p}");
    }
    let greedy = Settings {
        sample: false,
        ..settings(1.0, 0, 1.0, 1.0)
    };
    assert_eq!(
        run(&rows, &greedy),
        Some(vec![NO_TOKEN, NO_TOKEN, 4321, 4000])
    );
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_and_repeats() {
    let all = rows(9, 20_001, 77);
    let s = settings(0.9, 0, 0.9, 1.1);
    let Some(together) = run(&all, &s) else {
        return;
    };
    for _ in 0..20 {
        assert_eq!(run(&all, &s).unwrap(), together);
    }
    for i in 0..9 {
        let alone = Rows {
            vocab: all.vocab,
            stride: all.vocab,
            logits: all.row(i).to_vec(),
            seen: vec![all.seen[i].clone()],
            first_row: all.described().0[i].row,
            position: all.position,
        };
        assert_eq!(run(&alone, &s).unwrap(), [together[i]], "row {i}");
    }
}
