//! `config.json` of the decoder family: Llama 3.x, Mistral, Qwen2.
//!
//! Holds the numbers that the decoder needs, from files as released models write them and as Transformers 5 does. It refuses what the engine
//! would compute wrongly: another architecture, activation or kind of RoPE scaling is an error, never ignored.

use crate::backend::Heads;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Why a config.json cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("{path}: {source}; a model directory needs a config.json")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not JSON.
    #[error("{path}: not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field is missing or has a value that cannot be used.
    #[error("{path}: `{field}` {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// A decoder's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `llama`, `mistral` or `qwen2`.
    pub model_type: String,
    /// Columns of the residual stream.
    pub hidden: usize,
    /// Columns of the feed-forward layer.
    pub inner: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Attention and its RoPE.
    pub heads: Heads,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// The head is the embedding.
    pub tied: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
}

/// Larger than any released model; keeps sizes far from overflow.
const LIMIT: u64 = 1 << 24;

impl Config {
    /// Reads `config.json` in a model directory.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Io {
            path: path.clone(),
            source,
        })?;
        Self::parse(&path, &text)
    }

    /// Parses the text of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|source| ConfigError::Json {
                path: path.to_path_buf(),
                source,
            })?;
        let fields = Fields {
            path,
            object: &object,
        };
        let model_type = fields.text("model_type")?.unwrap_or_default();
        if !["llama", "mistral", "qwen2"].contains(&model_type) {
            return Err(fields.error(
                "model_type",
                format!(
                    "is `{model_type}`; this engine runs `llama`, `mistral` and `qwen2` decoders"
                ),
            ));
        }
        if let Some(act) = fields.text("hidden_act")?.filter(|a| *a != "silu") {
            return Err(fields.error(
                "hidden_act",
                format!("is `{act}`; only `silu` is supported"),
            ));
        }
        let hidden = fields.size("hidden_size")?;
        let queries = fields.size("num_attention_heads")?;
        let keys = fields.size_or("num_key_value_heads", queries)?;
        if queries % keys != 0 {
            return Err(fields.error(
                "num_key_value_heads",
                format!("is {keys} and does not divide num_attention_heads = {queries}"),
            ));
        }
        let dim = match fields.get("head_dim") {
            Some(_) => fields.size("head_dim")?,
            None if hidden % queries == 0 => hidden / queries,
            None => {
                return Err(fields.error(
                    "num_attention_heads",
                    format!("is {queries} and does not divide hidden_size = {hidden}"),
                ));
            }
        };
        if dim % 2 != 0 {
            return Err(fields.error(
                "head_dim",
                format!("is {dim}; RoPE rotates pairs, so it must be even"),
            ));
        }
        let qwen = model_type == "qwen2";
        // Qwen2 writes a window that it does not use unless told so.
        let windowed = if qwen {
            fields.flag("use_sliding_window")?.unwrap_or(false)
        } else {
            model_type == "mistral"
        };
        if qwen && windowed {
            return Err(fields.error(
                "use_sliding_window",
                "is true: Qwen2's mix of windowed and full layers is not supported".into(),
            ));
        }
        let window = match fields.get("sliding_window") {
            Some(_) if windowed => Some(fields.size("sliding_window")?),
            _ => None,
        };
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        Ok(Config {
            hidden,
            inner: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads: Heads {
                queries,
                keys,
                dim,
                window,
                inv_freq: inv_freq(&fields, dim)?,
            },
            vocab: fields.size("vocab_size")?,
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: qwen || attention_bias,
            o_bias: attention_bias && !qwen,
            mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
            max_positions: fields.size_or("max_position_embeddings", LIMIT as usize)?,
            model_type: model_type.to_string(),
        })
    }

    /// Number of weights, biases and gains; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        let (hidden, inner, heads) = (self.hidden as u64, self.inner as u64, &self.heads);
        let (q, kv) = (
            (heads.queries * heads.dim) as u64,
            (heads.keys * heads.dim) as u64,
        );
        let mut layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden;
        layer += if self.qkv_bias { q + 2 * kv } else { 0 };
        layer += if self.o_bias { hidden } else { 0 };
        layer += if self.mlp_bias { 2 * inner + hidden } else { 0 };
        let embedding = self.vocab as u64 * hidden;
        layer * self.layers as u64 + embedding * if self.tied { 1 } else { 2 } + hidden
    }
}

/// Rotations per position of each pair of columns, with Llama 3's frequency scaling where the file asks for it.
fn inv_freq(fields: &Fields, dim: usize) -> Result<Vec<f64>, ConfigError> {
    // Transformers 5 puts theta and the scaling into one object.
    let new = fields.inner("rope_parameters")?;
    let old = fields.inner("rope_scaling")?;
    let theta = new
        .as_ref()
        .unwrap_or(fields)
        .number("rope_theta")?
        .unwrap_or(10_000.0);
    if theta <= 0.0 {
        return Err(fields.error("rope_theta", format!("is {theta}; it must be positive")));
    }
    let plain: Vec<f64> = (0..dim / 2)
        .map(|i| theta.powf(-((2 * i) as f64) / dim as f64))
        .collect();
    let Some(scaling) = new.or(old) else {
        return Ok(plain);
    };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(plain),
        "llama3" => {
            let wanted = |field| -> Result<f64, ConfigError> {
                scaling
                    .number(field)?
                    .filter(|v| *v > 0.0)
                    .ok_or_else(|| scaling.error(field, "is missing or not positive".into()))
            };
            let (factor, low, high) = (
                wanted("factor")?,
                wanted("low_freq_factor")?,
                wanted("high_freq_factor")?,
            );
            let original = wanted("original_max_position_embeddings")?;
            if high <= low {
                return Err(scaling.error(
                    "high_freq_factor",
                    format!("is {high}; it must be above low_freq_factor = {low}"),
                ));
            }
            Ok(plain
                .into_iter()
                .map(|f| llama3(f, factor, low, high, original))
                .collect())
        }
        other => Err(fields.error(
            "rope_scaling",
            format!("is of type `{other}`; `default` and `llama3` are supported"),
        )),
    }
}

/// Llama 3's scaling of one frequency (Transformers' `_compute_llama3_parameters`): short waves stay, long ones stretch by `factor`, between
/// them a line.
fn llama3(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

/// Typed access to an object of the file.
struct Fields<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn error(&self, field: &'static str, problem: String) -> ConfigError {
        ConfigError::Field {
            path: self.path.to_path_buf(),
            field,
            problem,
        }
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    fn size(&self, field: &'static str) -> Result<usize, ConfigError> {
        let value = self
            .get(field)
            .ok_or_else(|| self.error(field, "is missing".into()))?;
        match value.as_u64() {
            Some(n) if (1..=LIMIT).contains(&n) => Ok(n as usize),
            _ => Err(self.error(
                field,
                format!("is {value}; a whole number from 1 to {LIMIT} was expected"),
            )),
        }
    }

    fn size_or(&self, field: &'static str, default: usize) -> Result<usize, ConfigError> {
        if self.get(field).is_some() {
            self.size(field)
        } else {
            Ok(default)
        }
    }

    fn number(&self, field: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(field)
            .map(|v| {
                v.as_f64()
                    .ok_or_else(|| self.error(field, format!("is {v}; a number was expected")))
            })
            .transpose()
    }

    fn flag(&self, field: &'static str) -> Result<Option<bool>, ConfigError> {
        self.get(field)
            .map(|v| {
                v.as_bool()
                    .ok_or_else(|| self.error(field, format!("is {v}; true or false was expected")))
            })
            .transpose()
    }

    fn text(&self, field: &'static str) -> Result<Option<&'a str>, ConfigError> {
        self.get(field)
            .map(|v| {
                v.as_str()
                    .ok_or_else(|| self.error(field, format!("is {v}; a string was expected")))
            })
            .transpose()
    }

    fn inner(&self, field: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        self.get(field)
            .map(|v| match v.as_object() {
                Some(object) => Ok(Fields {
                    path: self.path,
                    object,
                }),
                None => Err(self.error(field, format!("is {v}; an object was expected"))),
            })
            .transpose()
    }
}
