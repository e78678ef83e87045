//! Attention over the KV cache against f64 on the bf16 inputs, and the cache's moves against copies.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "attention_reference/mod.rs"]
mod attention_reference;
#[path = "gpu/mod.rs"]
mod gpu;

use attention_reference as reference;
use gpu::{Random, f64s, poisoned, poisoned_f32};
use half::bf16;
use medft_kernels::attention::{self, Heads, Work, Works};
use medft_kernels::decode::{self, Cache, Cached, Compact, Place};
use medft_kernels::device::Device;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Debug, Clone)]
struct Case {
    heads: Heads,
    /// (past, new rows) of each sequence; slots are given in reverse.
    sequences: Vec<(usize, usize)>,
    deviation: f64,
    seed: u64,
}

impl Case {
    fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.1).sum()
    }
    fn longest(&self) -> usize {
        self.sequences.iter().map(|s| s.0 + s.1).max().unwrap()
    }
    fn capacity(&self) -> usize {
        self.longest().div_ceil(64) * 64
    }
    fn slot(&self, sequence: usize) -> usize {
        self.sequences.len() - 1 - sequence
    }
    fn lane(&self) -> usize {
        self.heads.keys * self.capacity() * self.heads.dim
    }
}

struct Inputs {
    qkv: Vec<bf16>,
    keys: Vec<bf16>,
    values: Vec<bf16>,
}

struct Outputs {
    out: Vec<bf16>,
    keys: Vec<bf16>,
    values: Vec<bf16>,
}

fn heads(queries: usize, keys: usize, dim: usize, window: Option<u32>) -> Heads {
    Heads {
        queries,
        keys,
        dim,
        window,
    }
}

/// What lies behind a sequence's past in the cache is NaN: it must not be seen.
fn inputs(case: &Case) -> Inputs {
    let mut random = Random(case.seed);
    let (slots, dim, capacity) = (case.sequences.len(), case.heads.dim, case.capacity());
    let mut cache = |deviation: f64| {
        let mut cache = vec![bf16::NAN; slots * case.lane()];
        for (s, (past, _)) in case.sequences.iter().enumerate() {
            for head in 0..case.heads.keys {
                let at = case.slot(s) * case.lane() + head * capacity * dim;
                cache[at..at + past * dim].copy_from_slice(&random.bf16s(past * dim, deviation));
            }
        }
        cache
    };
    let (keys, values) = (cache(case.deviation), cache(1.0));
    let width = case.heads.width();
    let rotated = (case.heads.queries + case.heads.keys) * dim;
    let qkv = (0..case.tokens() * width)
        .map(|i| {
            let deviation = if i % width < rotated {
                case.deviation
            } else {
                1.0
            };
            bf16::from_f64(random.normal(deviation))
        })
        .collect();
    Inputs { qkv, keys, values }
}

fn places(case: &Case) -> Vec<Place> {
    let mut start = 0;
    let place = |(s, (past, length)): (usize, &(usize, usize))| {
        start += length;
        Place {
            slot: case.slot(s) as u32,
            past: *past as u32,
            start: (start - length) as u32,
            length: *length as u32,
        }
    };
    case.sequences.iter().enumerate().map(place).collect()
}

/// `spare`: entries that do nothing, and a larger bound on the length, as a recorded graph has.
fn run(device: &Device, case: &Case, i: &Inputs, spare: bool) -> Outputs {
    let qkv = device.upload(&i.qkv).unwrap();
    let keys = device.upload(&i.keys).unwrap();
    let values = device.upload(&i.values).unwrap();
    let out = poisoned(device, case.tokens() * case.heads.queries * case.heads.dim);
    let mut list = places(case);
    if spare {
        list.push(bytemuck::Zeroable::zeroed());
    }
    let places = device.upload(&list).unwrap();
    let lengths: Vec<usize> = case.sequences.iter().map(|s| s.1).collect();
    let work = attention::work(&lengths, attention::FORWARD_TILE);
    let work = device.upload::<Work>(&work).unwrap();
    let longest = if spare {
        case.capacity()
    } else {
        case.longest()
    };
    let partial = poisoned_f32(
        device,
        decode::scratch_len(&case.heads, list.len(), longest),
    );
    let scale = (1.0 / (case.heads.dim as f64).sqrt()) as f32;
    let args = Cached {
        heads: case.heads,
        scale,
        tokens: case.tokens(),
        qkv: qkv.ptr(),
        places: places.ptr(),
        sequences: list.len(),
        longest_new: case.sequences.iter().map(|s| s.1).max().unwrap(),
        longest,
        cache: Cache {
            keys: keys.ptr(),
            values: values.ptr(),
            capacity: case.capacity(),
        },
        work: Works {
            items: work.ptr(),
            len: work.len(),
            tile: attention::FORWARD_TILE,
        },
        partial: partial.ptr(),
        out: out.ptr(),
    };
    decode::append_and_attend(device, &args).unwrap();
    Outputs {
        out: out.download().unwrap(),
        keys: keys.download().unwrap(),
        values: values.download().unwrap(),
    }
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn compare(device: &Device, case: &Case) {
    let i = inputs(case);
    let got = run(device, case, &i, case.seed % 2 == 1);
    let (h, dim, width) = (&case.heads, case.heads.dim, case.heads.width());
    let (mut keys, mut values) = (i.keys.clone(), i.values.clone());
    let mut start = 0;
    for (s, &(past, length)) in case.sequences.iter().enumerate() {
        for kv in 0..h.keys {
            for r in 0..length {
                let to = case.slot(s) * case.lane() + (kv * case.capacity() + past + r) * dim;
                let k = (start + r) * width + (h.queries + kv) * dim;
                let v = k + h.keys * dim;
                keys[to..to + dim].copy_from_slice(&i.qkv[k..k + dim]);
                values[to..to + dim].copy_from_slice(&i.qkv[v..v + dim]);
            }
        }
        start += length;
    }
    assert!(bits(&got.keys) == bits(&keys), "cached keys: {case:?}");
    assert!(
        bits(&got.values) == bits(&values),
        "cached values: {case:?}"
    );

    let (qkv, out) = (f64s(&i.qkv), f64s(&got.out));
    let mut start = 0;
    for (s, &(past, length)) in case.sequences.iter().enumerate() {
        for head in 0..h.queries {
            let at = case.slot(s) * case.lane() + head / h.group() * case.capacity() * dim;
            let cached = at..at + (past + length) * dim;
            let (k, v) = (f64s(&keys[cached.clone()]), f64s(&values[cached]));
            let q = reference::columns(&qkv, width, start, length, head * dim, dim);
            let sequence = reference::Sequence {
                q: &q,
                k: &k,
                v: &v,
                past,
                dim,
                scale: 1.0 / (dim as f64).sqrt(),
                window: h.window,
            };
            let wide = h.queries * dim;
            let mine = reference::columns(&out, wide, start, length, head * dim, dim);
            let what = format!("out, sequence {s}, head {head} of {case:?}");
            sequence.forward().0.judge(&what, &mine);
        }
        start += length;
    }
}

fn any_heads() -> impl Strategy<Value = Heads> {
    let ratio = prop::sample::select(vec![
        (1, 1),
        (2, 2),
        (4, 2),
        (6, 2),
        (7, 1),
        (8, 1),
        (20, 1),
    ]);
    let dim = prop::sample::select(vec![32usize, 64, 128]);
    let window = prop_oneof![2 => Just(None), 1 => (1u32..900).prop_map(Some)];
    (ratio, dim, window).prop_map(|((q, k), dim, window)| heads(q, k, dim, window))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_decoding_step(
        heads in any_heads(),
        pasts in prop::collection::vec(0usize..1400, 1..6),
        seed in any::<u64>(),
    ) {
        if let Some(device) = gpu::gpu() {
            let sequences = pasts.into_iter().map(|p| (p, 1)).collect();
            compare(device, &Case { heads, sequences, deviation: 1.0, seed });
        }
    }

    #[test]
    fn any_prompt_behind_any_past(
        heads in any_heads(),
        sequences in prop::collection::vec((0usize..200, 1usize..150), 1..3),
        seed in any::<u64>(),
    ) {
        if let Some(device) = gpu::gpu() {
            compare(device, &Case { heads, sequences, deviation: 1.0, seed });
        }
    }
}

#[test]
fn pasts_around_steps_and_chunks() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        for window in [None, Some(64), Some(513)] {
            let pasts = [
                0, 1, 15, 16, 17, 62, 63, 64, 65, 510, 511, 512, 513, 1023, 1024, 1535,
            ];
            compare(
                device,
                &Case {
                    heads: heads(4, 2, dim, window),
                    sequences: pasts.iter().map(|p| (*p, 1)).collect(),
                    deviation: 1.0,
                    seed: dim as u64 + 1,
                },
            );
        }
    }
}

#[test]
fn large_logits() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        compare(
            device,
            &Case {
                heads: heads(8, 2, dim, None),
                sequences: vec![(1100, 1), (300, 1), (0, 1)],
                deviation: 5.0,
                seed: 21,
            },
        );
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_batch() {
    let Some(device) = gpu::gpu() else { return };
    for dim in [32, 64, 128] {
        let case = Case {
            heads: heads(16, 2, dim, None),
            sequences: vec![(700, 1), (20, 1), (1300, 1)],
            deviation: 1.0,
            seed: 23,
        };
        let i = inputs(&case);
        let together = run(device, &case, &i, true);
        for _ in 0..20 {
            assert!(bits(&run(device, &case, &i, true).out) == bits(&together.out));
        }
        let (width, o_width) = (case.heads.width(), 16 * dim);
        for (s, sequence) in case.sequences.iter().enumerate() {
            let alone = Case {
                sequences: vec![*sequence],
                ..case.clone()
            };
            let lane = |of: &[bf16]| {
                let mut lane = Vec::new();
                for head in 0..2 {
                    let at = case.slot(s) * case.lane() + head * case.capacity() * dim;
                    lane.extend_from_slice(&of[at..at + alone.capacity() * dim]);
                }
                lane
            };
            let input = Inputs {
                qkv: i.qkv[s * width..(s + 1) * width].to_vec(),
                keys: lane(&i.keys),
                values: lane(&i.values),
            };
            let got = run(device, &alone, &input, false);
            assert!(bits(&got.out) == bits(&together.out[s * o_width..(s + 1) * o_width]));
        }
    }
}

#[test]
fn compact_moves_slots_down() {
    let Some(device) = gpu::gpu() else { return };
    let (layers, slots, capacity, heads) = (3, 7, 128, heads(4, 2, 64, None));
    let slot = heads.keys * capacity * heads.dim;
    let mut random = Random(31);
    let (keys, values) = (
        random.bf16s(layers * slots * slot, 1.0),
        random.bf16s(layers * slots * slot, 1.0),
    );
    for keep in [
        vec![0u32, 1, 2],
        vec![1, 2, 3, 6],
        vec![0, 3, 4],
        vec![6],
        vec![],
    ] {
        let lengths: Vec<u32> = keep.iter().map(|k| 20 + 15 * k).collect();
        let (k, v) = (
            device.upload(&keys).unwrap(),
            device.upload(&values).unwrap(),
        );
        let (keep_there, lengths_there) = (
            device.upload(&keep).unwrap(),
            device.upload(&lengths).unwrap(),
        );
        let args = Compact {
            heads,
            cache: Cache {
                keys: k.ptr(),
                values: v.ptr(),
                capacity,
            },
            layers,
            layer_stride: slots * slot,
            keep: keep_there.ptr(),
            lengths: lengths_there.ptr(),
            count: keep.len(),
        };
        decode::compact(device, &args).unwrap();
        for (before, after) in [
            (&keys, k.download().unwrap()),
            (&values, v.download().unwrap()),
        ] {
            for layer in 0..layers {
                for (i, from) in keep.iter().enumerate() {
                    for head in 0..heads.keys {
                        let at = |s: usize| {
                            ((layer * slots + s) * heads.keys + head) * capacity * heads.dim
                        };
                        let len = lengths[i] as usize * heads.dim;
                        assert!(
                            after[at(i)..at(i) + len]
                                == before[at(*from as usize)..at(*from as usize) + len]
                        );
                    }
                }
            }
        }
    }
}
