//! What the benches of whole models share.

use anyhow::Result;
use medft_dsl::plan::Decode;
use medft_engine::backend::Backend;
use medft_engine::generate::engine::{Generator, Request};
use medft_engine::model::decoder::Decoder;
use std::collections::BTreeSet;
use std::time::Instant;

/// The middle value; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds to answer these prompts with `settings.max_new` tokens each, whatever the tokens are.
pub fn seconds_to_answer<B: Backend>(
    decoder: &Decoder<B>,
    prompts: &[impl AsRef<[u32]>],
    settings: &Decode,
) -> Result<f64> {
    let generator = Generator {
        decoder,
        trained: None,
        settings,
        end_ids: &BTreeSet::new(),
    };
    let request = |prompt| Request { row: 0, prompt };
    let requests: Vec<Request> = prompts.iter().map(|p| request(p.as_ref())).collect();
    let began = Instant::now();
    generator.answer(&requests)?;
    Ok(began.elapsed().as_secs_f64())
}
