//! Training steps and generation of random-weight models with the exact shapes of released ones, on the GPU: the engine's side of
//! `../shared/peers` (the same shapes, settings and counts).
//!
//!     cargo bench --features cuda --bench cuda_models -- train --model qwen2.5-3b --rows 32 --len 512 --dropout 0.1
//!     cargo bench --features cuda --bench cuda_models -- load --model llama-3.1-8b --precision nf4
//!     cargo bench --features cuda --bench cuda_models -- generate --model llama-3.1-8b --precision nf4 --rows 48 --len 512 --new 32
//!
//! Weights are written to `--dir` first (bf16 safetensors, one shard a layer) and loaded as any checkpoint. Prints one JSON line a run.
#![allow(clippy::print_stdout)]

mod timing;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use half::bf16;
use medft_dsl::plan::{
    AdamW, Adapter, Decode, Linear, Lora, Precision, Schedule, ScheduleKind, Train,
};
use medft_engine::backend::cuda::Cuda;
use medft_engine::backend::facts::Facts;
use medft_engine::backend::{Backend, Slot};
use medft_engine::model::checkpoint::Checkpoint;
use medft_engine::model::config::Config;
use medft_engine::model::decoder::Decoder;
use medft_engine::model::nf4::BLOCK;
use medft_engine::model::trained::{LoraShape, Trained, model_shapes};
use medft_engine::text::example::Example;
use medft_engine::train::division::Division;
use medft_engine::train::snapshot::State;
use medft_engine::train::step::Stepper;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use timing::{median, seconds_to_answer};

#[derive(Parser)]
struct Args {
    what: What,
    /// qwen2.5-3b, llama-3.2-3b, llama-3.1-8b, mistral-7b, smollm2-135m, or a model's folder in `--dir`
    #[arg(long)]
    model: String,
    #[arg(long, default_value = "bf16")]
    precision: String,
    /// Rows of a step, or prompts of a batch
    #[arg(long, default_value_t = 32)]
    rows: usize,
    /// Tokens of a row or prompt
    #[arg(long, default_value_t = 512)]
    len: usize,
    #[arg(long)]
    micro_batch: Option<u64>,
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    #[arg(long, default_value_t = 64)]
    rank: u64,
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// Steps before the ones that count
    #[arg(long, default_value_t = 3)]
    warm: usize,
    /// New tokens of an answer
    #[arg(long, default_value_t = 32)]
    new: u64,
    #[arg(long)]
    sample: bool,
    /// Rows of 1/2 to 3/2 of `len`, other ones each step, with a loss on their last eighth only: as notes with short answers are.
    #[arg(long)]
    ragged: bool,
    #[arg(long, default_value = "/tmp/medft-models")]
    dir: PathBuf,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    Load,
    Train,
    Generate,
}

/// The released config.json of a model, as far as it matters.
fn config(model: &str) -> Result<String> {
    let llama3 = |factor: u32| {
        format!(
            r#", "rope_scaling": {{"rope_type": "llama3", "factor": {factor}.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#
        )
    };
    let (kind, hidden, inner, layers, queries, keys, dim, vocab, theta, eps, tied, scaling) =
        match model {
            "qwen2.5-3b" => (
                "qwen2",
                2048,
                11008,
                36,
                16,
                2,
                128,
                151_936,
                1e6,
                "1e-6",
                true,
                String::new(),
            ),
            "llama-3.2-3b" => (
                "llama",
                3072,
                8192,
                28,
                24,
                8,
                128,
                128_256,
                5e5,
                "1e-5",
                true,
                llama3(32),
            ),
            "llama-3.1-8b" => (
                "llama",
                4096,
                14336,
                32,
                32,
                8,
                128,
                128_256,
                5e5,
                "1e-5",
                false,
                llama3(8),
            ),
            "mistral-7b" => (
                "mistral",
                4096,
                14336,
                32,
                32,
                8,
                128,
                32_768,
                1e6,
                "1e-5",
                false,
                String::new(),
            ),
            "smollm2-135m" => (
                "llama",
                576,
                1536,
                30,
                9,
                3,
                64,
                49_152,
                1e5,
                "1e-5",
                true,
                String::new(),
            ),
            other => anyhow::bail!("no shape is known for `{other}`"),
        };
    let architecture = match kind {
        "qwen2" => "Qwen2ForCausalLM",
        "mistral" => "MistralForCausalLM",
        _ => "LlamaForCausalLM",
    };
    Ok(format!(
        r#"{{"architectures": ["{architecture}"], "model_type": "{kind}", "hidden_act": "silu", "hidden_size": {hidden},
  "intermediate_size": {inner}, "num_hidden_layers": {layers}, "num_attention_heads": {queries}, "num_key_value_heads": {keys},
  "head_dim": {dim}, "vocab_size": {vocab}, "rms_norm_eps": {eps}, "rope_theta": {theta:.1}, "max_position_embeddings": 32768,
  "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": {tied}, "torch_dtype": "bfloat16"{scaling}}}"#
    ))
}

/// splitmix64 as a normal-ish number: the sum of four 16-bit uniforms.
fn noise(index: u64) -> f32 {
    let mut z = index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let sum: u32 = (0..4).map(|i| (z >> (16 * i)) as u32 & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 1.732
}

/// Writes random weights, one shard a layer; keeps what is there already.
fn write_model(dir: &Path, text: &str) -> Result<()> {
    let index = dir.join("model.safetensors.index.json");
    if index.is_file() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), text)?;
    let config = Config::load(dir)?;
    let mut shards: BTreeMap<String, Vec<(String, Vec<usize>)>> = BTreeMap::new();
    for (name, shape) in model_shapes(&config) {
        let layer = name.split('.').nth(2).and_then(|l| l.parse::<usize>().ok());
        let shard = layer.map_or("model-rest.safetensors".into(), |l| {
            format!("model-{l:05}.safetensors")
        });
        shards.entry(shard).or_default().push((name, shape));
    }
    let mut weight_map = BTreeMap::new();
    for (shard, tensors) in &shards {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(name, shape)| {
                let seed = blake3::hash(name.as_bytes()).as_bytes()[..8]
                    .iter()
                    .fold(0u64, |h, b| h << 8 | u64::from(*b));
                let count: usize = shape.iter().product();
                let norm = name.contains("norm");
                let mut to = vec![0u8; 2 * count];
                to.par_chunks_mut(1 << 16)
                    .enumerate()
                    .for_each(|(chunk, to)| {
                        for (i, to) in to.chunks_exact_mut(2).enumerate() {
                            let z = noise(seed.wrapping_add(((chunk << 15) + i) as u64));
                            let value = if norm { 1.0 + 0.1 * z } else { 0.02 * z };
                            to.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                        }
                    });
                to
            })
            .collect();
        let views: Vec<(String, TensorView)> = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape), bytes)| {
                Ok((
                    name.clone(),
                    TensorView::new(Dtype::BF16, shape.clone(), bytes)?,
                ))
            })
            .collect::<Result<_>>()?;
        safetensors::serialize_to_file(views, None, &dir.join(shard))?;
        weight_map.extend(
            tensors
                .iter()
                .map(|(name, _)| (name.clone(), shard.clone())),
        );
    }
    std::fs::write(
        index,
        serde_json::json!({ "weight_map": weight_map }).to_string(),
    )?;
    Ok(())
}

/// GiB that are in use and were `free` before the model was loaded: buffers are kept, so this is the peak.
fn gib(free: u64, decoder: &Decoder<Cuda>) -> Result<f64> {
    let now = decoder.backend.device().free_memory()?.0;
    Ok(free.saturating_sub(now) as f64 / f64::from(1 << 30))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let precision = match args.precision.as_str() {
        "bf16" => Precision::Bf16,
        "nf4" => Precision::Nf4,
        other => anyhow::bail!("`--precision {other}`: bf16 or nf4"),
    };
    let dir = args.dir.join(&args.model);
    if !dir.join("model.safetensors").is_file() {
        write_model(&dir, &config(&args.model)?)?;
    }
    let backend = Cuda::open().context("opening the GPU")?;
    let (free, _) = backend.device().free_memory()?;
    let began = Instant::now();
    let decoder = Decoder::load(backend.clone(), &dir, precision, true)?;
    backend.finish()?;
    let load = began.elapsed().as_secs_f64();
    let measured = match args.what {
        What::Load => load_again(&dir, precision, decoder)?,
        What::Train => train(&args, &decoder, free)?,
        What::Generate => generate(&args, &decoder, free)?,
    };
    let mut line = serde_json::json!({
        "engine": "medft-engine", "device": backend.name(), "model": args.model, "precision": args.precision,
        "rows": args.rows, "len": args.len, "load_seconds": load,
    });
    if let (Some(line), Some(measured)) = (line.as_object_mut(), measured.as_object()) {
        line.extend(measured.clone());
    }
    println!("{line}");
    Ok(())
}

/// Loads twice more, and stages everything without sending it anywhere.
fn load_again(dir: &Path, precision: Precision, first: Decoder<Cuda>) -> Result<serde_json::Value> {
    let (backend, config) = (first.backend.clone(), first.config.clone());
    drop(first);
    let mut seconds = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        Decoder::load(backend.clone(), dir, precision, true)?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let checkpoint = Checkpoint::open(dir)?;
    let (mut to, mut absmax) = (vec![0; 32 << 20], vec![0.0; 1 << 18]);
    let (began, mut bytes) = (Instant::now(), 0);
    for (name, shape) in model_shapes(&config) {
        let tensor = checkpoint.get(&name, &shape)?;
        for first in (0..tensor.bytes().len() / 2).step_by(16 << 20) {
            let part = to.len().min(tensor.bytes().len() - 2 * first);
            let blocks = (part / 2).div_ceil(BLOCK);
            tensor.stage(first, &mut to[..part], &mut absmax[..blocks])?;
            bytes += part;
        }
    }
    Ok(serde_json::json!({
        "what": "load", "again_seconds": seconds, "gb": bytes as f64 / 1e9, "staged_gb_per_second": bytes as f64 / 1e9 / began.elapsed().as_secs_f64(),
    }))
}

/// Rows of a step; the same ones each step unless they are ragged.
fn random_rows(args: &Args, vocab: usize, step: usize) -> Vec<Vec<u32>> {
    let word = |i: usize| noise(i as u64 + 99).to_bits().wrapping_mul(0x9E37_79B9) as usize;
    let first = if args.ragged { step * args.rows } else { 0 };
    (first..first + args.rows)
        .map(|row| {
            let len = match args.ragged {
                true => args.len / 2 + word(row + (1 << 40)) % args.len,
                false => args.len,
            };
            let id = |t| (word(row * args.len + t) % vocab) as u32;
            (0..len).map(id).collect()
        })
        .collect()
}

/// Whole optimizer steps, loss on every token; the median of `steps` after `warm` others, and the part of it in which the host did not wait.
fn train(args: &Args, decoder: &Decoder<Cuda>, free: u64) -> Result<serde_json::Value> {
    let settings = Train {
        name: "bench".into(),
        model: "bench".into(),
        task: "bench".into(),
        adapter: Adapter::Lora(Lora {
            rank: args.rank,
            alpha: 2.0 * args.rank as f64,
            dropout: args.dropout,
            targets: Linear::ALL.to_vec(),
            init: None,
        }),
        optimizer: AdamW {
            lr: 1e-4,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        },
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 0,
        },
        epochs: 1,
        max_steps: None,
        batch: args.rows as u64,
        eval_batch: 1,
        micro_batch: args.micro_batch,
        clip: Some(1.0),
        log_every: 1,
        eval_every: 1,
        save_every: 1,
        keep: 1,
        stop: None,
        shuffle: false,
        seed: 0,
    };
    let shape = LoraShape {
        rank: args.rank as usize,
        alpha: 2.0 * args.rank as f64,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    let backend = &decoder.backend;
    let mut trained = Trained::new_lora(backend, &decoder.config, shape, 0)?;
    // B starts at zero; no product is to be timed on zeros.
    for p in trained.parameters().to_vec() {
        if p.name.contains("lora_B") {
            let values: Vec<f32> = (0..p.slot.len)
                .map(|i| 0.01 * noise((p.slot.offset + i) as u64))
                .collect();
            backend.write(&mut trained.values, p.slot.offset, &values);
        }
    }
    let examples = |step: usize| -> Vec<Example> {
        let rows = random_rows(args, decoder.config.vocab, step).into_iter();
        let example = |ids: Vec<u32>| Example {
            target_start: if args.ragged { ids.len() * 7 / 8 } else { 1 },
            ids,
            cut: 0,
        };
        rows.map(example).collect()
    };
    let values = trained.len();
    let mut state = State::new(backend, trained, "bench")?;
    let auto = || Division::Tokens(backend.pass_tokens());
    let division = args.micro_batch.map_or_else(auto, Division::Rows);
    let mut stepper = Stepper::new(decoder, &settings, division, values)?;
    let (mut times, mut hosts, mut losses, mut tokens) = (vec![], vec![], vec![], 0);
    let mut before = backend.device().counters();
    for step in 0..args.steps + args.warm {
        let examples = examples(step);
        let rows: Vec<&Example> = examples.iter().collect();
        if step == args.warm {
            before = backend.device().counters();
        }
        let (began, waited) = (Instant::now(), backend.device().counters().waited);
        let stepped = stepper.step(&mut state, &rows, 1e-4)?;
        let (whole, waited) = (began.elapsed(), backend.device().counters().waited - waited);
        state.progress.step += 1;
        losses.push(stepped.loss);
        if step >= args.warm {
            times.push(whole.as_secs_f64());
            hosts.push((whole - waited).as_secs_f64());
            tokens += stepped.tokens;
        }
    }
    let after = backend.device().counters();
    let per_step = |count: u64| count as f64 / args.steps as f64;
    let tokens_per_second = tokens as f64 / times.iter().sum::<f64>();
    let (seconds, host) = (median(times), median(hosts));
    let _ = backend.read(&state.trained.values, Slot { offset: 0, len: 1 })?;
    Ok(serde_json::json!({
        "what": "train", "gib": gib(free, decoder)?, "dropout": args.dropout, "rank": args.rank, "ms": 1e3 * seconds,
        "host_ms": 1e3 * host, "launches": per_step(after.launches - before.launches), "waits": per_step(after.waits - before.waits),
        "allocations": per_step(after.allocations - before.allocations), "tokens_per_second": tokens_per_second, "first_loss": losses.first(), "last_loss": losses.last(),
    }))
}

/// Time to the first token, and from one token to the next, as the peers' scripts count: (n new - 1 new) / (n - 1).
fn generate(args: &Args, decoder: &Decoder<Cuda>, free: u64) -> Result<serde_json::Value> {
    let prompts = random_rows(args, decoder.config.vocab, 0);
    let run = |max_new: u64| -> Result<f64> {
        let settings = Decode {
            sample: args.sample,
            max_new,
            temperature: 0.7,
            top_p: 0.9,
            top_k: 50,
            repetition_penalty: 1.0,
            seed: 0,
        };
        seconds_to_answer(decoder, &prompts, &settings)
    };
    run(4)?;
    let (mut prompt, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        prompt.push(run(1)?);
        whole.push(run(args.new)?);
    }
    let (prompt, whole) = (median(prompt), median(whole));
    let step = (whole - prompt) / (args.new - 1).max(1) as f64;
    Ok(serde_json::json!({
        "what": "generate", "gib": gib(free, decoder)?, "new": args.new, "sample": args.sample, "prompt_ms": 1e3 * prompt, "decode_ms": 1e3 * step,
        "tokens_per_second": args.rows as f64 / step, "samples_per_second": args.rows as f64 / whole,
    }))
}
