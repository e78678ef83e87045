//! Settings, prompts, and a batch of answers.

use medft_dsl::plan::{Decode, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::generate::engine::{Answer, Generator, Request};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::Trained;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::path::Path;

/// The most probable token, without any other setting.
pub fn greedy(max_new: u64) -> Decode {
    Decode {
        sample: false,
        max_new,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        seed: 42,
    }
}

/// All settings at work.
pub fn sampling() -> Decode {
    Decode {
        sample: true,
        temperature: 1.3,
        top_p: 0.9,
        top_k: 20,
        repetition_penalty: 1.1,
        ..greedy(20)
    }
}

/// A model in f32.
pub fn load(dir: &Path) -> Decoder<Cpu> {
    Decoder::load(Cpu, dir, Precision::F32, true).unwrap()
}

/// Answers prompts that are rows 0, 1, 2 ... together.
pub fn answers(
    decoder: &Decoder<Cpu>,
    trained: Option<&Trained<Cpu>>,
    settings: &Decode,
    ends: &[u32],
    prompts: &[Vec<u32>],
) -> Vec<Answer> {
    let end_ids: BTreeSet<u32> = ends.iter().copied().collect();
    let generator = Generator {
        decoder,
        trained,
        settings,
        end_ids: &end_ids,
    };
    let requests: Vec<Request> = (0..)
        .zip(prompts)
        .map(|(row, prompt)| Request { row, prompt })
        .collect();
    generator.answer(&requests).unwrap()
}

/// Prompts of 1 to 30 tokens for the tiny model.
pub fn prompts(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let len = rng.random_range(1..31);
            (0..len).map(|_| rng.random_range(0..37)).collect()
        })
        .collect()
}
