//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Holds reading and writing, also of the bare tensors of a fully trained model. It refuses every setting whose meaning the engine does
//! not have. Invariant: an adapter is applied as a whole or not at all: a tensor that is missing, extra or of another shape is an error.

use super::checkpoint::{CheckpointError, open_file};
use super::config::Config;
use super::trained::{LoraShape, Parameter, Trained, Tuning};
use crate::backend::{Backend, BackendError};
use crate::data::whole_file::{WriteError, write_whole};
use medft_dsl::plan::Linear;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
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
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl AdapterError {
    /// Whether the files are wrong rather than the device.
    pub fn is_input(&self) -> bool {
        match self {
            AdapterError::Weights(e) => e.is_input(),
            AdapterError::Backend(e) => e.is_input(),
            _ => true,
        }
    }
}

/// Settings that [`read`] applies or checks by their values.
const APPLIED: [&str; 6] = [
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "bias",
    "init_lora_weights",
];

/// Settings that do not change what a finished adapter computes. Any other one must be off: absent, null, false or empty.
const HARMLESS: [&str; 14] = [
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "loftq_config",
    "eva_config",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

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
    read_weights(backend, config, shape, dir)
}

/// Reads an adapter that must have this shape, so that training can go on from it.
///
/// # Errors
/// Names the first difference; see [`AdapterError`].
pub fn read_as<B: Backend>(
    backend: &B,
    config: &Config,
    wanted: &LoraShape,
    dir: &Path,
) -> Result<Trained<B>, AdapterError> {
    let path = dir.join(CONFIG);
    let found = read_shape(&path)?;
    let names = |t: &[Linear]| t.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
    let problem = if found.rank != wanted.rank {
        format!(
            "`r` is {}, and the recipe says `rank = {}`",
            found.rank, wanted.rank
        )
    } else if found.alpha != wanted.alpha {
        format!(
            "`lora_alpha` is {}, and the recipe says `alpha = {}`",
            found.alpha, wanted.alpha
        )
    } else if found.rank_stabilized != wanted.rank_stabilized {
        "`use_rslora` is set, and training scales by alpha / rank".into()
    } else if found.targets != wanted.targets {
        format!(
            "`target_modules` are {}, and the recipe asks for {}",
            names(&found.targets),
            names(&wanted.targets)
        )
    } else {
        return read_weights(backend, config, found, dir);
    };
    Err(AdapterError::Config { path, problem })
}

fn read_weights<B: Backend>(
    backend: &B,
    config: &Config,
    shape: LoraShape,
    dir: &Path,
) -> Result<Trained<B>, AdapterError> {
    let path = dir.join(WEIGHTS);
    // Before memory is asked for: a wrong rank could mean more than there is.
    for tensor in open_file(&path)? {
        let rank = tensor.shape().first().copied().unwrap_or(0);
        if tensor.name().ends_with(".lora_A.weight") && rank != shape.rank {
            let (name, wanted) = (tensor.name(), shape.rank);
            return Err(AdapterError::Misfit {
                problem: format!("tensor `{name}` has rank {rank}, and {CONFIG} says {wanted}"),
                path,
            });
        }
    }
    let mut trained = Trained::zeros(backend, config, Tuning::Lora(shape))?;
    read_tensors(backend, &mut trained, &path)?;
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
    let config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| bad(format!("not a JSON object: {e}")))?;
    let get = |field: &str| config.get(field).unwrap_or(&Value::Null);
    let refuse =
        |field: &str, needed: &str| Err(bad(format!("`{field}` is {}; {needed}", get(field))));
    if get("peft_type") != "LORA" {
        return refuse("peft_type", "only \"LORA\" is supported");
    }
    if !get("bias").is_null() && get("bias") != "none" {
        return refuse("bias", "only \"none\" is supported");
    }
    let init = get("init_lora_weights");
    let plain = ["gaussian", "eva", "orthogonal"];
    if !(init.is_null() || init.is_boolean() || plain.iter().any(|name| init == name)) {
        let needed = "such an adapter changes its base model, too; convert it to a plain one with PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion)`";
        return refuse("init_lora_weights", needed);
    }
    for (field, value) in &config {
        let off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(v) => v.is_empty(),
            Value::Object(v) => v.is_empty(),
            _ => false,
        };
        if !off && !APPLIED.contains(&field.as_str()) && !HARMLESS.contains(&field.as_str()) {
            return refuse(field, "this engine does not apply it");
        }
    }
    let Some(rank) = get("r").as_u64().filter(|r| (1..=65_536).contains(r)) else {
        return refuse("r", "a rank from 1 to 65536 was expected");
    };
    let Some(alpha) = get("lora_alpha").as_f64() else {
        return refuse("lora_alpha", "a number was expected");
    };
    let rank_stabilized = match get("use_rslora") {
        Value::Null => false,
        Value::Bool(on) => *on,
        _ => return refuse("use_rslora", "true or false was expected"),
    };
    let is = |name: &Value, linear: Linear| name == linear.name();
    let targets: Vec<Linear> = match get("target_modules") {
        Value::String(all) if all == "all-linear" => Linear::ALL.to_vec(),
        Value::Array(names) if names.iter().all(|n| Linear::ALL.iter().any(|l| is(n, *l))) => {
            let named = |l: &Linear| names.iter().any(|n| is(n, *l));
            Linear::ALL.into_iter().filter(named).collect()
        }
        _ => Vec::new(),
    };
    if targets.is_empty() {
        let all = Linear::ALL.map(Linear::name).join(", ");
        return refuse("target_modules", &format!("a list of {all} was expected"));
    }
    Ok(LoraShape {
        rank: rank as usize,
        alpha,
        rank_stabilized,
        targets,
    })
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
    let tensor = |p: &'_ Parameter| -> Result<NamedTensor, BackendError> {
        Ok(NamedTensor {
            name: p.name.clone(),
            shape: p.shape.clone(),
            values: backend.read(&trained.values, p.slot)?,
        })
    };
    let tensors: Result<Vec<NamedTensor>, _> = trained.parameters().iter().map(tensor).collect();
    write_file(path, &tensors?)
}

/// A tensor to be written.
pub(crate) struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Writes a safetensors file, whole or not at all.
pub(crate) fn write_file(path: &Path, tensors: &[NamedTensor]) -> Result<(), AdapterError> {
    // Transformers refuses files that do not say which framework's they are.
    let meta = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = tensors
        .iter()
        .map(|t| {
            let bytes = bytemuck::cast_slice(&t.values);
            let view = TensorView::new(safetensors::Dtype::F32, t.shape.clone(), bytes)?;
            Ok((t.name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .and_then(|views| safetensors::serialize(views, Some(meta)));
    let bytes = bytes.map_err(|source| AdapterError::Layout {
        path: path.to_path_buf(),
        source,
    })?;
    Ok(write_whole(path, &bytes)?)
}
