//! The engine's side of `benches/peers/cpu_smollm2.py`: the same ids, the same work, the same JSON fields.
//!
//!     cargo bench --bench cpu_smollm2 -- train    --model DIR --rows rows.json [--batch 8] [--steps 8]
//!     cargo bench --bench cpu_smollm2 -- generate --model DIR --rows rows.json [--batch 1] [--prompt 256] [--new 64]
#![allow(clippy::print_stdout)]

mod timing;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use medft_dsl::plan::{Decode, Linear, Precision};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{AdamWStep, Backend};
use medft_engine::model::decoder::Decoder;
use medft_engine::model::trained::{LoraShape, Trained};
use medft_engine::model::workspace::Workspace;
use medft_engine::text::example::Example;
use medft_engine::train::batch::passes;
use medft_engine::train::division::{AUTO_TOKENS, Division};
use std::path::PathBuf;
use std::time::Instant;
use timing::{median, seconds_to_answer};

#[derive(Parser)]
struct Args {
    what: What,
    #[arg(long)]
    model: PathBuf,
    #[arg(long)]
    rows: PathBuf,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 8)]
    steps: usize,
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    #[arg(long, default_value_t = 64)]
    new: usize,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Train,
    Generate,
}

#[derive(serde::Deserialize)]
struct Row {
    ids: Vec<u32>,
    target_start: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let text =
        std::fs::read_to_string(&args.rows).with_context(|| args.rows.display().to_string())?;
    let rows: Vec<Row> = serde_json::from_str(&text)?;
    let decoder = Decoder::load(Cpu, &args.model, Precision::F32, true)?;
    let measured = match args.what {
        What::Train => train(&args, &decoder, rows)?,
        What::Generate => generate(&args, &decoder, rows)?,
    };
    let peak = medft_engine::machine::peak_memory();
    let mut line = serde_json::json!({ "engine": "medft-engine", "peak_bytes": peak });
    if let (Some(line), Some(measured)) = (line.as_object_mut(), measured.as_object()) {
        line.extend(measured.clone());
    }
    println!("{line}");
    Ok(())
}

/// Forward, backward, clipping and AdamW; the median step after two of warm-up, in real tokens.
fn train(args: &Args, decoder: &Decoder<Cpu>, rows: Vec<Row>) -> Result<serde_json::Value> {
    let shape = LoraShape {
        rank: 16,
        alpha: 32.0,
        rank_stabilized: false,
        targets: Linear::ALL.to_vec(),
    };
    let mut trained = Trained::new_lora(&Cpu, &decoder.config, shape, 0)?;
    let zeros = || vec![0.0; trained.len()];
    let (mut grads, mut first, mut second) = (zeros(), zeros(), zeros());
    let examples: Vec<Example> = rows
        .into_iter()
        .map(|r| Example {
            ids: r.ids,
            target_start: r.target_start,
            cut: 0,
        })
        .collect();
    let (mut seconds, mut rates, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    let mut ws: Option<Workspace<Cpu>> = None;
    for (step, batch) in examples
        .chunks_exact(args.batch)
        .cycle()
        .take(args.steps + 2)
        .enumerate()
    {
        let began = Instant::now();
        let rows: Vec<_> = batch.iter().collect();
        let passes = passes(&rows, Division::Tokens(AUTO_TOKENS), 0, 0);
        let targets: usize = passes.iter().map(|p| p.targets.len()).sum();
        let longest = passes.iter().map(|p| p.tokens()).max().unwrap_or(0);
        if ws.as_ref().is_none_or(|w| w.capacity() < longest) {
            ws = None;
        }
        let ws = match &mut ws {
            Some(ws) => ws,
            None => {
                let (config, capacity) = (&decoder.config, longest.next_multiple_of(64));
                ws.insert(Workspace::new(
                    &Cpu,
                    config,
                    Some(&trained),
                    capacity,
                    true,
                )?)
            }
        };
        Cpu.zero(&mut grads);
        let (mut own, mut tokens) = (vec![0.0; targets], 0);
        for pass in passes {
            tokens += pass.tokens();
            decoder.train_pass(&mut (), &trained, &mut grads, 0.0, &pass, &mut own, ws);
        }
        let mut norm = vec![0.0];
        Cpu.norm(&grads, &mut norm);
        let adamw = AdamWStep {
            lr: 1e-4,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            step: step as u64 + 1,
            max_norm: Some(1.0),
        };
        let values = &mut trained.values;
        Cpu.adamw(&adamw, &grads, &norm, values, &mut first, &mut second);
        if step >= 2 {
            seconds.push(began.elapsed().as_secs_f64());
            rates.push(tokens as f64 / began.elapsed().as_secs_f64());
        }
        losses.push(own.into_iter().map(f64::from).sum::<f64>() / targets as f64);
    }
    Ok(serde_json::json!({
        "what": "train", "batch": args.batch, "steps": args.steps, "seconds_a_step": median(seconds),
        "tokens_per_second": median(rates), "first_loss": losses.first(), "last_loss": losses.last(),
    }))
}

/// Time to the first token, and from one token to the next.
fn generate(args: &Args, decoder: &Decoder<Cpu>, rows: Vec<Row>) -> Result<serde_json::Value> {
    let all: Vec<u32> = rows.into_iter().flat_map(|r| r.ids).collect();
    let prompts: Vec<&[u32]> = all.chunks_exact(args.prompt).take(args.batch).collect();
    let run = |max_new: usize| -> Result<f64> {
        let settings = Decode {
            sample: false,
            max_new: max_new as u64,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
        };
        seconds_to_answer(decoder, &prompts, &settings)
    };
    run(4)?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let first = run(1)?;
        let whole = run(args.new)?;
        prefill.push(first);
        decode.push((whole - first) / (args.new - 1) as f64);
    }
    let (prefill, decode) = (median(prefill), median(decode));
    Ok(serde_json::json!({
        "what": "generate", "batch": args.batch, "prompt": args.prompt, "new": args.new,
        "prefill_seconds": prefill, "prefill_tokens_per_second": (args.batch * args.prompt) as f64 / prefill,
        "decode_seconds_a_step": decode, "decode_tokens_per_second": args.batch as f64 / decode,
    }))
}
