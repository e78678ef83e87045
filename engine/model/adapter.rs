//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Holds reading and writing. It refuses every setting whose meaning the engine does not have: a key that is missing, extra or of
//! another shape is an error, so an adapter is applied as a whole or not at all.

use super::checkpoint::{CheckpointError, open_file};
use super::config::Config;
use super::trained::{LoraShape, Trained, Tuning};
use crate::backend::Backend;
use crate::data::whole_file::{WriteError, write_whole};
use medft_dsl::plan::Linear;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights' file name.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The settings' file name.
pub const CONFIG: &str = "adapter_config.json";

/// Why an adapter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file could not be read.
    #[error("{path}: {source}; a PEFT adapter directory holds `{CONFIG}` and `{WEIGHTS}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The settings cannot be used.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The weights cannot be used.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The weights do not fit the settings or the model.
    #[error("{path}: {problem}; was this adapter trained for this model?")]
    Misfit {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The weights could not be laid out.
    #[error("{path}: {source}")]
    Layout {
        /// The file.
        path: PathBuf,
        /// What safetensors said.
        source: safetensors::SafeTensorError,
    },
}

/// Reads an adapter for a model of this shape.
///
/// # Errors
/// See [`AdapterError`].
pub fn read<B: Backend>(
    backend: &B,
    config: &Config,
    dir: &Path,
) -> Result<Trained<B>, AdapterError> {
    let shape = read_shape(&dir.join(CONFIG))?;
    let mut trained = Trained::zeros(backend, config, Tuning::Lora(shape));
    read_tensors(backend, &mut trained, &dir.join(WEIGHTS))?;
    Ok(trained)
}

/// Fills all trained tensors from a file that holds exactly these.
///
/// # Errors
/// See [`AdapterError`].
pub fn read_tensors<B: Backend>(
    backend: &B,
    trained: &mut Trained<B>,
    path: &Path,
) -> Result<(), AdapterError> {
    let misfit = |problem: String| AdapterError::Misfit {
        path: path.to_path_buf(),
        problem,
    };
    let mut stored: BTreeMap<String, _> = open_file(path)?
        .into_iter()
        .map(|t| (t.name().to_string(), t))
        .collect();
    for parameter in trained.parameters().to_vec() {
        let name = &parameter.name;
        let tensor = stored
            .remove(name)
            .ok_or_else(|| misfit(format!("tensor `{name}` is missing")))?;
        if tensor.shape() != parameter.shape {
            let (found, wanted) = (tensor.shape(), &parameter.shape);
            return Err(misfit(format!(
                "tensor `{name}` has shape {found:?}, and {wanted:?} was expected"
            )));
        }
        tensor.check_finite().map_err(CheckpointError::from)?;
        let values = tensor.to_f32().map_err(CheckpointError::from)?;
        backend.write(&mut trained.values, parameter.slot.offset, &values);
    }
    match stored.keys().next() {
        None => Ok(()),
        Some(extra) => Err(misfit(format!("tensor `{extra}` is one too many"))),
    }
}

/// The settings of an `adapter_config.json`.
fn read_shape(path: &Path) -> Result<LoraShape, AdapterError> {
    let text = std::fs::read_to_string(path).map_err(|source| AdapterError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let bad = |problem: String| AdapterError::Config {
        path: path.to_path_buf(),
        problem,
    };
    let config: Value =
        serde_json::from_str(&text).map_err(|e| bad(format!("not valid JSON: {e}")))?;
    if config["peft_type"] != "LORA" {
        return Err(bad(format!(
            "`peft_type` is {}; only LORA adapters are supported",
            config["peft_type"]
        )));
    }
    // Settings that change the arithmetic: absent, null, false and empty mean that they are off.
    for field in [
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "alpha_pattern",
        "rank_pattern",
        "layers_to_transform",
        "exclude_modules",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "megatron_config",
    ] {
        let off = match &config[field] {
            Value::Null | Value::Bool(false) => true,
            Value::Array(v) => v.is_empty(),
            Value::Object(v) => v.is_empty(),
            _ => false,
        };
        if field != "megatron_config" && !off {
            return Err(bad(format!(
                "`{field}` is {}, which this engine does not apply",
                config[field]
            )));
        }
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        return Err(bad(format!(
            "`bias` is {}; only \"none\" is supported",
            config["bias"]
        )));
    }
    let rank = config["r"]
        .as_u64()
        .filter(|r| (1..=65_536).contains(r))
        .ok_or_else(|| {
            bad(format!(
                "`r` is {}; a rank from 1 was expected",
                config["r"]
            ))
        })?;
    let alpha = config["lora_alpha"].as_f64().ok_or_else(|| {
        bad(format!(
            "`lora_alpha` is {}; a number was expected",
            config["lora_alpha"]
        ))
    })?;
    let targets = match &config["target_modules"] {
        Value::String(all) if all == "all-linear" => Linear::ALL.to_vec(),
        Value::Array(names) => {
            let known = |name: &Value| Linear::ALL.iter().any(|l| name == l.name());
            if let Some(unknown) = names.iter().find(|n| !known(n)) {
                return Err(bad(format!(
                    "`target_modules` names {unknown}; the decoder's linear layers are {}",
                    all_names()
                )));
            }
            Linear::ALL
                .into_iter()
                .filter(|l| names.iter().any(|n| n == l.name()))
                .collect()
        }
        other => {
            return Err(bad(format!(
                "`target_modules` is {other}; a list of {} was expected",
                all_names()
            )));
        }
    };
    if targets.is_empty() {
        return Err(bad("`target_modules` is empty".into()));
    }
    let rank_stabilized = config["use_rslora"].as_bool().unwrap_or(false);
    Ok(LoraShape {
        rank: rank as usize,
        alpha,
        rank_stabilized,
        targets,
    })
}

fn all_names() -> String {
    Linear::ALL.map(Linear::name).join(", ")
}

/// Writes an adapter of this shape; `base` is the model's name for PEFT, `dropout` that of its training.
///
/// # Errors
/// See [`AdapterError`].
pub fn write<B: Backend>(
    backend: &B,
    trained: &Trained<B>,
    shape: &LoraShape,
    dropout: f64,
    base: &str,
    dir: &Path,
) -> Result<(), AdapterError> {
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": dropout,
        "use_rslora": shape.rank_stabilized,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "target_modules": shape.targets.iter().map(|t| t.name()).collect::<Vec<_>>(),
    });
    write_tensors(backend, trained, &dir.join(WEIGHTS))?;
    write_whole(&dir.join(CONFIG), format!("{config:#}\n").as_bytes())?;
    Ok(())
}

/// Writes all trained tensors in f32 under their names.
///
/// # Errors
/// See [`AdapterError`].
pub fn write_tensors<B: Backend>(
    backend: &B,
    trained: &Trained<B>,
    path: &Path,
) -> Result<(), AdapterError> {
    let values: Vec<Vec<f32>> = trained
        .parameters()
        .iter()
        .map(|p| backend.read(&trained.values, p.slot))
        .collect();
    let layout = |source| AdapterError::Layout {
        path: path.to_path_buf(),
        source,
    };
    let mut views = Vec::new();
    for (parameter, values) in trained.parameters().iter().zip(&values) {
        let bytes = bytemuck::cast_slice(values);
        let view = TensorView::new(safetensors::Dtype::F32, parameter.shape.clone(), bytes)
            .map_err(layout)?;
        views.push((parameter.name.as_str(), view));
    }
    let meta = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(meta)).map_err(layout)?;
    write_whole(path, &bytes)?;
    Ok(())
}

/// Checks that an adapter has the shape that a recipe asks for, so that training can go on from it.
///
/// # Errors
/// Names the first difference.
pub fn check_shape(found: &LoraShape, wanted: &LoraShape, dir: &Path) -> Result<(), AdapterError> {
    let bad = |problem: String| {
        Err(AdapterError::Config {
            path: dir.join(CONFIG),
            problem,
        })
    };
    if found.rank != wanted.rank {
        return bad(format!(
            "rank is {}, and the recipe says `rank = {}`",
            found.rank, wanted.rank
        ));
    }
    if found.alpha != wanted.alpha || found.rank_stabilized {
        return bad(format!(
            "alpha is {}, and the recipe says `alpha = {}`",
            found.alpha, wanted.alpha
        ));
    }
    if found.targets != wanted.targets {
        let names = |t: &[Linear]| t.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
        return bad(format!(
            "adapts {}, and the recipe asks for {}",
            names(&found.targets),
            names(&wanted.targets)
        ));
    }
    Ok(())
}
