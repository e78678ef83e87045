//! 100,000 draws of each row and setting of golden/sampling.* against Transformers' probabilities.

use crate::gpu::gpu;
use crate::sample::settings;
use medft_kernels::sample::{self, Batch, Row};
use safetensors::SafeTensors;
use std::path::PathBuf;

/// Copies of every golden row in one launch, and launches.
const COPIES: usize = 500;
const LAUNCHES: usize = 200;

#[test]
fn draws_follow_transformers_probabilities() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").into();
    let golden = std::env::var_os("MEDFT_SHARED")
        .map_or(beside, PathBuf::from)
        .join("golden");
    let Ok(bytes) = std::fs::read(golden.join("sampling.safetensors")) else {
        return eprintln!("skipped: no sampling.safetensors in {}", golden.display());
    };
    let Some(gpu) = gpu() else { return };
    let facts: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("sampling.json")).unwrap()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data();
        data.chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let shape = file.tensor("logits").unwrap().shape().to_vec();
    let (kinds, vocab) = (shape[0], shape[1]);
    let context = file.tensor("context_ids").unwrap();
    let seen_len = context.shape()[1];
    let seen: Vec<u32> = context
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32)
        .collect();

    let rows = kinds * COPIES;
    let pristine = gpu.upload(&floats("logits").repeat(COPIES)).unwrap();
    let logits = gpu.alloc::<f32>(rows * vocab).unwrap();
    let seen = gpu.upload(&seen).unwrap();
    let who: Vec<Row> = (0..rows)
        .map(|i| Row {
            row: i as u64,
            position: 0,
            seen_start: (i % kinds * seen_len) as u32,
            seen_len: seen_len as u32,
            reserved: 0,
        })
        .collect();
    let device_who = gpu.upload(&who).unwrap();
    let scratch = gpu.alloc::<u8>(sample::scratch_bytes(rows, vocab)).unwrap();
    let out = gpu.alloc::<u32>(rows).unwrap();
    let cases = facts["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 7);
    for (case, set) in cases {
        let of = |name: &str| set[name].as_f64().unwrap_or(1.0);
        let mut s = settings(
            of("temperature") as f32,
            set["top_k"].as_u64().unwrap_or(0) as usize,
            of("top_p"),
            of("repetition_penalty") as f32,
        );
        let mut counts = vec![0u64; kinds * vocab];
        for launch in 0..LAUNCHES {
            s.seed = launch as u64;
            gpu.copy(logits.ptr(), pristine.ptr(), rows * vocab)
                .unwrap();
            let batch = Batch {
                rows,
                vocab,
                logits: logits.ptr(),
                stride: vocab,
                who: device_who.ptr(),
                seen: seen.ptr(),
            };
            sample::choose(gpu, &batch, &s, scratch.ptr(), out.ptr()).unwrap();
            for (i, token) in out.download().unwrap().into_iter().enumerate() {
                counts[i % kinds * vocab + token as usize] += 1;
            }
        }
        let probabilities = floats(&format!("{case}.probs"));
        for kind in 0..kinds {
            let at = kind * vocab..(kind + 1) * vocab;
            chi_square(
                &format!("{case}, row {kind}"),
                &counts[at.clone()],
                &probabilities[at],
            );
        }
    }
}

/// Tokens with fewer than 10 expected draws are counted together.
fn chi_square(what: &str, counts: &[u64], probabilities: &[f32]) {
    let n = (COPIES * LAUNCHES) as f64;
    let (mut statistic, mut freedom) = (0.0, -1.0f64);
    let (mut rest, mut rest_expected) = (0.0, 0.0);
    let mut add = |count: f64, expected: f64| {
        statistic += (count - expected).powi(2) / expected;
        freedom += 1.0;
    };
    for (&count, &p) in counts.iter().zip(probabilities) {
        let expected = n * f64::from(p);
        assert!(p > 0.0 || count == 0, "{what}: a removed token was drawn");
        if expected >= 10.0 {
            add(count as f64, expected);
        } else {
            rest += count as f64;
            rest_expected += expected;
        }
    }
    if rest_expected >= 5.0 {
        add(rest, rest_expected);
    }
    // Five standard deviations of chi-square, and room for one cell's skew where there are few.
    let bound = freedom + 5.0 * (2.0 * freedom).sqrt() + 20.0;
    assert!(
        statistic <= bound,
        "{what}: chi-square {statistic:.1} at {freedom} degrees of freedom"
    );
}
