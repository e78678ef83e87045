//! A tiny model, rows that can be learnt, settings, and a session over them.

use crate::support::tiny_model;
use medft_dsl::plan::{AdamW, Adapter, Linear, Lora, Precision, Schedule, ScheduleKind, Train};
use medft_engine::backend::cpu::Cpu;
use medft_engine::model::decoder::Decoder;
use medft_engine::text::example::Example;
use medft_engine::train::TrainError;
use medft_engine::train::metrics::{Metric, read};
use medft_engine::train::session::{Event, Outcome, Session};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What sessions are run on.
pub struct Bench {
    pub decoder: Decoder<Cpu>,
    pub train: Vec<Example>,
    pub val: Vec<Example>,
}

/// Prompts of 3 to 13 tokens; the answer is the prompt's first token, twice, and the end token.
pub fn rows(count: usize, seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let len = rng.random_range(3..14);
            let mut ids: Vec<u32> = (0..len).map(|_| rng.random_range(3..37)).collect();
            ids.extend([ids[0], ids[0], 2]);
            Example {
                ids,
                target_start: len,
                cut: 0,
            }
        })
        .collect()
}

/// An adapter of rank 4 on all layers, without dropout.
pub fn lora() -> Lora {
    Lora {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        targets: Linear::ALL.to_vec(),
        init: None,
    }
}

/// Two epochs over [`Bench::new`]'s rows: 8 steps, the fourth and the last of 2 rows.
pub fn settings() -> Train {
    Train {
        name: "tiny_lora".into(),
        model: "tiny".into(),
        task: "copy".into(),
        adapter: Adapter::Lora(lora()),
        optimizer: AdamW {
            lr: 5e-3,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        },
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            warmup: 2,
        },
        epochs: 2,
        max_steps: None,
        batch: 3,
        eval_batch: 4,
        micro_batch: None,
        clip: Some(1.0),
        log_every: 1,
        eval_every: 3,
        save_every: 2,
        keep: 1,
        stop: None,
        shuffle: true,
        seed: 11,
    }
}

impl Bench {
    /// 11 training and 5 validation rows.
    pub fn new() -> Self {
        Self::with(Precision::F32)
    }

    /// The same with the base model in another precision.
    pub fn with(precision: Precision) -> Self {
        let dir = tiny_model(3);
        Bench {
            decoder: Decoder::load(Cpu, dir.path(), precision, true).unwrap(),
            train: rows(11, 1),
            val: rows(5, 2),
        }
    }

    /// A session in `dir` that hears `observe`.
    pub fn session(
        &self,
        settings: &Train,
        dir: &Path,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainError> {
        let session = Session {
            decoder: &self.decoder,
            settings,
            train: &self.train,
            val: &self.val,
            dir,
            base: "tiny",
            key: "key",
        };
        session.run(stop, observe)
    }

    /// Trains to the end.
    pub fn run(&self, settings: &Train, dir: &Path) -> Outcome {
        let stop = AtomicBool::new(false);
        self.session(settings, dir, &stop, &mut |_| {}).unwrap()
    }

    /// Trains until Ctrl-C comes during step `at`.
    pub fn run_until(&self, settings: &Train, dir: &Path, at: u64) -> Outcome {
        let stop = AtomicBool::new(false);
        let mut observe = |event| {
            if matches!(event, Event::Step { metric, .. } if metric.step == at) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        self.session(settings, dir, &stop, &mut observe).unwrap()
    }
}

/// The lines of a training's metrics file.
pub fn metrics(dir: &Path) -> Vec<Metric> {
    read(&dir.join("metrics.jsonl")).unwrap()
}

/// The training losses, and the validation losses with their steps.
pub fn losses(dir: &Path) -> (Vec<f64>, Vec<(u64, f64)>) {
    let lines = metrics(dir);
    let val = |m: &Metric| Some((m.step, m.val_loss?));
    (
        lines.iter().filter_map(|m| m.loss).collect(),
        lines.iter().filter_map(val).collect(),
    )
}

/// The f32 values of a safetensors file, by name.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let value = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    file.iter()
        .map(|(name, t)| {
            (
                name.to_string(),
                t.data().chunks_exact(4).map(value).collect(),
            )
        })
        .collect()
}

/// Largest and mean difference of two files with the same tensors.
pub fn difference(a: &Path, b: &Path) -> (f64, f64) {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut largest, mut sum, mut count) = (0.0f64, 0.0, 0.0);
    for (x, y) in a.values().flatten().zip(b.values().flatten()) {
        let d = f64::from((x - y).abs());
        largest = largest.max(d);
        sum += d;
        count += 1.0;
    }
    (largest, sum / count)
}

/// Every file below `dir` with its bytes; the seconds, which no two runs share, are taken out.
pub fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let bytes = std::fs::read(&path).unwrap();
            let bytes = if name.ends_with("state.json") || name.ends_with(".jsonl") {
                let text = String::from_utf8(bytes).unwrap();
                let values = serde_json::Deserializer::from_str(&text)
                    .into_iter::<serde_json::Value>()
                    .map(|value| {
                        let mut value = value.unwrap();
                        value.as_object_mut().unwrap().remove("seconds").unwrap();
                        value.to_string()
                    });
                values.collect::<Vec<_>>().join("\n").into_bytes()
            } else {
                bytes
            };
            files.insert(name, bytes);
        }
    }
    files
}

/// Asserts that two folders hold the same files with the same bytes.
pub fn assert_same(what: &str, got: &Path, want: &Path) {
    let (got, want) = (tree(got), tree(want));
    let names = |t: &BTreeMap<String, Vec<u8>>| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want), "{what}");
    for (name, bytes) in &got {
        assert!(
            *bytes == want[name],
            "{what}: {name} differs\n{}\n{}",
            String::from_utf8_lossy(bytes),
            String::from_utf8_lossy(&want[name])
        );
    }
}

/// Names of the folders in a training's `checkpoints`, ascending.
pub fn checkpoints(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
