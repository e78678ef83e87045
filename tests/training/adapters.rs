//! Adapters on disk: what we write is read bitwise, training goes on from it, and what cannot be applied is refused.

use crate::references::families;
use crate::setup::{Bench, lora, losses, settings, tensors};
use medft_dsl::plan::{Adapter, Linear, Lora, Train};
use medft_engine::backend::Backend;
use medft_engine::backend::cpu::Cpu;
use medft_engine::model::adapter;
use medft_engine::model::config::Config;
use medft_engine::model::trained::{LoraShape, Tuning};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn trained(bench: &Bench, settings: &Train) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    bench.run(settings, out.path());
    out
}

#[test]
fn a_written_adapter_is_read_bitwise_and_says_what_peft_needs() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.adapter = Adapter::Lora(Lora {
        dropout: 0.25,
        targets: vec![Linear::KProj, Linear::UpProj],
        ..lora()
    });
    let out = trained(&bench, &settings);
    let dir = out.path().join("adapter");
    let read = adapter::read(&Cpu, &bench.decoder.config, &dir).unwrap();
    let file = tensors(&dir.join(adapter::WEIGHTS));
    assert_eq!(read.parameters().len(), file.len());
    for parameter in read.parameters() {
        let values = Cpu.read(&read.values, parameter.slot).unwrap();
        assert!(values == file[&parameter.name], "{}", parameter.name);
    }
    let text = std::fs::read_to_string(dir.join(adapter::CONFIG)).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!("tiny")),
        ("r", json!(4)),
        ("lora_alpha", json!(8.0)),
        ("lora_dropout", json!(0.25)),
        ("target_modules", json!(["k_proj", "up_proj"])),
    ] {
        assert_eq!(config[field], value, "{field}");
    }
}

#[test]
fn peft_adapters_are_read_with_their_scale() {
    for (family, dir) in families() {
        let config = Config::load(&dir).unwrap();
        let read = adapter::read(&Cpu, &config, &dir.join("adapter")).unwrap();
        let want = LoraShape {
            rank: 8,
            alpha: 16.0,
            rank_stabilized: false,
            targets: Linear::ALL.to_vec(),
        };
        assert_eq!(*read.tuning(), Tuning::Lora(want), "{family}");
    }
}

#[test]
fn init_goes_on_from_an_adapter() {
    let bench = Bench::new();
    let mut settings = settings();
    settings.epochs = 20;
    let first = trained(&bench, &settings);
    let dir = first.path().join("adapter");
    settings.adapter = Adapter::Lora(Lora {
        init: Some(dir.clone()),
        ..lora()
    });
    // The first step of a warm-up has learning rate 0: it changes nothing.
    settings.max_steps = Some(1);
    let second = trained(&bench, &settings);
    assert!(losses(second.path()).0[0] < 0.9 * losses(first.path()).0[0]);
    let weights = |dir: &Path| std::fs::read(dir.join(adapter::WEIGHTS)).unwrap();
    assert!(weights(&second.path().join("adapter")) == weights(&dir));
}

#[test]
fn init_from_an_adapter_of_another_shape_is_an_error() {
    let bench = Bench::new();
    let first = trained(&bench, &settings());
    let dir = first.path().join("adapter");
    let mut other = Vec::new();
    other.push((Lora { rank: 8, ..lora() }, "rank = 8"));
    other.push((
        Lora {
            alpha: 9.0,
            ..lora()
        },
        "alpha = 9",
    ));
    let targets = vec![Linear::QProj];
    other.push((Lora { targets, ..lora() }, "asks for q_proj"));
    for (lora, says) in other {
        let mut settings = settings();
        settings.adapter = Adapter::Lora(Lora {
            init: Some(dir.clone()),
            ..lora
        });
        let (out, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let error = bench.session(&settings, out.path(), &stop, &mut |_| {});
        let text = error.unwrap_err().to_string();
        let file = dir.join(adapter::CONFIG).display().to_string();
        assert!(text.contains(says) && text.contains(&file), "{text}");
    }
}

/// Writes an adapter, changes its settings, and reads it.
fn with_setting(field: &str, value: Value) -> Result<(), String> {
    let bench = Bench::new();
    let mut settings = settings();
    settings.max_steps = Some(1);
    let out = trained(&bench, &settings);
    let dir = out.path().join("adapter");
    let path = dir.join(adapter::CONFIG);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    match adapter::read(&Cpu, &bench.decoder.config, &dir) {
        Ok(_) => Ok(()),
        Err(e) => {
            assert!(e.to_string().contains(&dir.display().to_string()), "{e}");
            Err(e.to_string())
        }
    }
}

#[test]
fn settings_that_would_change_the_arithmetic_are_refused() {
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("bias", json!("all")),
        ("bias", json!(true)),
        ("use_dora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 2})),
        ("alpha_pattern", json!({"q_proj": 2})),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("use_rslora", json!("yes")),
        ("kasa_config", json!({"x": 1})),
        ("a_setting_of_tomorrow", json!(true)),
        ("r", json!(0)),
        ("r", json!(8)),
        ("r", json!(60_000)),
        ("lora_alpha", json!("16")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!([])),
        ("target_modules", json!(".*q_proj")),
    ] {
        let text = with_setting(field, value.clone()).unwrap_err();
        let named = text.contains(field) || field == "r" && text.contains("rank 4");
        assert!(named, "{field} = {value}: {text}");
    }
}

#[test]
fn settings_of_training_are_no_obstacle() {
    for (field, value) in [
        ("use_rslora", json!(true)),
        ("use_dora", Value::Null),
        ("rank_pattern", json!({})),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("peft_version", json!("0.21.2")),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
        ("target_modules", json!("all-linear")),
    ] {
        assert_eq!(with_setting(field, value), Ok(()), "{field}");
    }
}
