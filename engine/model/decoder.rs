//! A decoder's frozen weights, and the views of them that the ops take.
//!
//! Holds loading and the choice between a frozen and a trained tensor. Invariant: a decoder never changes after it is loaded, so a base
//! model, several adapters and several batches share one.

use super::checkpoint::{Checkpoint, CheckpointError, Tensor};
use super::config::{Config, ConfigError};
use super::trained::{Trained, Tuning, linear_bias, linear_path, linear_shape};
use crate::backend::{Backend, BackendError, Group, GroupWeight, Linear, Slot, Vector, Weight};
use medft_dsl::plan::{self, Precision};
use std::path::Path;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// config.json.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl ModelError {
    /// Whether the files are wrong rather than the device.
    pub fn is_input(&self) -> bool {
        match self {
            ModelError::Config(_) => true,
            ModelError::Checkpoint(e) => e.is_input(),
        }
    }
}

/// A loaded model.
pub struct Decoder<B: Backend> {
    /// The device it lives on.
    pub backend: B,
    /// Its shape.
    pub config: Config,
    /// How the linear layers are held.
    pub precision: Precision,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Float,
    head: Option<B::Matrix>,
}

struct Layer<B: Backend> {
    norm_attention: B::Float,
    norm_mlp: B::Float,
    /// In the order of [`Stack::ALL`].
    weights: Vec<B::Matrix>,
    /// The biases of a stack's layers one after the other, in the order of [`Stack::ALL`]; empty without any.
    biases: Vec<B::Float>,
}

/// Linear layers that share an input; their weights are one stacked matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// Queries, keys and values.
    Qkv,
    /// The attention's output.
    Out,
    /// The two layers before SwiGLU.
    GateUp,
    /// The layer behind SwiGLU.
    Down,
}

impl Stack {
    /// In the order of the forward pass; their layers, one after the other, are [`plan::Linear::ALL`].
    pub const ALL: [Stack; 4] = [Stack::Qkv, Stack::Out, Stack::GateUp, Stack::Down];

    /// Its layers, from the first rows to the last.
    pub fn linears(self) -> &'static [plan::Linear] {
        use plan::Linear::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        match self {
            Stack::Qkv => &[QProj, KProj, VProj],
            Stack::Out => &[OProj],
            Stack::GateUp => &[GateProj, UpProj],
            Stack::Down => &[DownProj],
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a Hugging Face model directory. Only the seven linear layers are quantised under NF4; embedding and head stay bf16, as
    /// bitsandbytes leaves them.
    ///
    /// # Errors
    /// A config.json or weights that cannot be used; see [`ModelError`].
    pub fn load(
        backend: B,
        dir: &Path,
        precision: Precision,
        double_quant: bool,
    ) -> Result<Self, ModelError> {
        let config = Config::load(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let rest = if precision == Precision::Nf4 {
            Precision::Bf16
        } else {
            precision
        };
        let tensor =
            |name: &str, shape: (usize, usize)| checkpoint.get(name, &[shape.0, shape.1]).cloned();
        let mut loader = B::Loader::default();
        let mut matrix = |tensors: &[Tensor], precision| {
            backend
                .matrix(&mut loader, tensors, precision, double_quant)
                .map_err(CheckpointError::from)
        };
        let vectors = |names: &[(String, usize)]| -> Result<B::Float, CheckpointError> {
            let mut values = Vec::new();
            for (name, len) in names {
                let tensor = checkpoint.get(name, &[*len])?;
                tensor.check_finite()?;
                values.extend(tensor.to_f32()?);
            }
            let mut float = backend.floats("a vector of the model", values.len())?;
            backend.write(&mut float, 0, &values);
            Ok(float)
        };
        let vector = |name: &str, len: usize| vectors(&[(name.to_string(), len)]);
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let gain = |norm: &str| {
                vector(
                    &format!("model.layers.{layer}.{norm}.weight"),
                    config.hidden,
                )
            };
            let (mut weights, mut biases) = (Vec::new(), Vec::new());
            for stack in Stack::ALL {
                let (mut tensors, mut names) = (Vec::new(), Vec::new());
                for linear in stack.linears() {
                    let (path, shape) =
                        (linear_path(layer, *linear), linear_shape(&config, *linear));
                    tensors.push(tensor(&format!("{path}.weight"), shape)?);
                    if linear_bias(&config, *linear) {
                        names.push((format!("{path}.bias"), shape.0));
                    }
                }
                weights.push(matrix(&tensors, precision)?);
                biases.push(vectors(&names)?);
            }
            layers.push(Layer {
                norm_attention: gain("input_layernorm")?,
                norm_mlp: gain("post_attention_layernorm")?,
                weights,
                biases,
            });
        }
        let table = (config.vocab, config.hidden);
        let decoder = Decoder {
            embed: matrix(&[tensor("model.embed_tokens.weight", table)?], rest)?,
            norm: vector("model.norm.weight", config.hidden)?,
            head: if config.tied {
                None
            } else {
                Some(matrix(&[tensor("lm_head.weight", table)?], rest)?)
            },
            layers,
            backend,
            config,
            precision,
        };
        decoder.backend.finish().map_err(CheckpointError::from)?;
        Ok(decoder)
    }

    /// The embedding table.
    pub fn embed<'a>(&'a self, trained: Option<&Trained<B>>) -> Weight<'a, B> {
        weight(&self.embed, trained, "model.embed_tokens.weight")
    }

    /// The language-model head.
    pub fn head<'a>(&'a self, trained: Option<&Trained<B>>) -> Weight<'a, B> {
        match &self.head {
            Some(head) => weight(head, trained, "lm_head.weight"),
            None => self.embed(trained),
        }
    }

    /// All of a gain.
    fn gain(&self) -> Slot {
        Slot {
            offset: 0,
            len: self.config.hidden,
        }
    }

    /// The gain of the last norm.
    pub fn norm<'a>(&'a self, trained: Option<&Trained<B>>) -> Vector<'a, B> {
        range(&self.norm, self.gain(), trained, || {
            "model.norm.weight".to_string()
        })
    }

    /// The gain before attention.
    pub fn norm_attention<'a>(
        &'a self,
        layer: usize,
        trained: Option<&Trained<B>>,
    ) -> Vector<'a, B> {
        let name = || format!("model.layers.{layer}.input_layernorm.weight");
        range(
            &self.layers[layer].norm_attention,
            self.gain(),
            trained,
            name,
        )
    }

    /// The gain before the feed-forward layers.
    pub fn norm_mlp<'a>(&'a self, layer: usize, trained: Option<&Trained<B>>) -> Vector<'a, B> {
        let name = || format!("model.layers.{layer}.post_attention_layernorm.weight");
        range(&self.layers[layer].norm_mlp, self.gain(), trained, name)
    }

    /// Linear layers that share an input, with their adapters.
    pub fn group<'a>(
        &'a self,
        layer: usize,
        stack: Stack,
        trained: Option<&Trained<B>>,
        dropout: f32,
    ) -> Group<'a, B> {
        let (own, linears) = (&self.layers[layer], stack.linears());
        let mut above = 0;
        let member = |linear: &plan::Linear| {
            let outputs = linear_shape(&self.config, *linear).0;
            let slot = Slot {
                offset: above,
                len: outputs,
            };
            above += outputs;
            let name = || format!("{}.bias", linear_path(layer, *linear));
            Linear {
                outputs,
                bias: linear_bias(&self.config, *linear)
                    .then(|| range(&own.biases[stack as usize], slot, trained, name)),
                lora: trained.and_then(|t| t.lora(layer, *linear, dropout)),
            }
        };
        let trained_weights = trained.and_then(|t| {
            let slot =
                |linear: &plan::Linear| t.full(&format!("{}.weight", linear_path(layer, *linear)));
            linears.iter().map(slot).collect()
        });
        Group {
            inputs: linear_shape(&self.config, linears[0]).1,
            weight: match trained_weights {
                Some(slots) => GroupWeight::Trained(slots),
                None => GroupWeight::Frozen(&own.weights[stack as usize]),
            },
            members: linears.iter().map(member).collect(),
        }
    }

    /// A frozen tensor's values by its name in a checkpoint, as the ops see them; `None` if the model has none of this name.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>, BackendError> {
        let float = |f: &B::Float, slot| self.backend.read(f, slot).map(Some);
        let matrix = |m: &B::Matrix| self.backend.matrix_values(m).map(Some);
        match name {
            "model.embed_tokens.weight" => return matrix(&self.embed),
            "lm_head.weight" => return self.head.as_ref().map_or(Ok(None), matrix),
            "model.norm.weight" => return float(&self.norm, self.gain()),
            _ => {}
        }
        let layer = name
            .strip_prefix("model.layers.")
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest)))
            .and_then(|(layer, rest)| Some((layer, self.layers.get(layer)?, rest)));
        let Some((layer, own, rest)) = layer else {
            return Ok(None);
        };
        match rest {
            "input_layernorm.weight" => return float(&own.norm_attention, self.gain()),
            "post_attention_layernorm.weight" => return float(&own.norm_mlp, self.gain()),
            _ => {}
        }
        for stack in Stack::ALL {
            let mut above = 0;
            for linear in stack.linears() {
                let path = linear_path(layer, *linear);
                let (outputs, inputs) = linear_shape(&self.config, *linear);
                if *name == format!("{path}.weight") {
                    let all = self.backend.matrix_values(&own.weights[stack as usize])?;
                    let rows = above * inputs..(above + outputs) * inputs;
                    return Ok(Some(all[rows].to_vec()));
                }
                if *name == format!("{path}.bias") {
                    let slot = Slot {
                        offset: above,
                        len: outputs,
                    };
                    return match linear_bias(&self.config, *linear) {
                        true => float(&own.biases[stack as usize], slot),
                        false => Ok(None),
                    };
                }
                above += outputs;
            }
        }
        Ok(None)
    }
}

fn weight<'a, B: Backend>(
    frozen: &'a B::Matrix,
    trained: Option<&Trained<B>>,
    name: &str,
) -> Weight<'a, B> {
    match trained.and_then(|t| t.full(name)) {
        Some(slot) => Weight::Trained(slot),
        None => Weight::Frozen(frozen),
    }
}

fn range<'a, B: Backend>(
    frozen: &'a B::Float,
    slot: Slot,
    trained: Option<&Trained<B>>,
    name: impl Fn() -> String,
) -> Vector<'a, B> {
    match trained
        .filter(|t| *t.tuning() == Tuning::Full)
        .and_then(|t| t.full(&name()))
    {
        Some(slot) => Vector::Trained(slot),
        None => Vector::Frozen(frozen, slot),
    }
}
