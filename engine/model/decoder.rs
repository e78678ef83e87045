//! A decoder's frozen weights, and the views of them that the ops take.
//!
//! Holds loading and the choice between a frozen and a trained tensor. Invariant: a decoder never changes after it is loaded, so a base
//! model, several adapters and several batches share one.

use super::checkpoint::{Checkpoint, CheckpointError};
use super::config::{Config, ConfigError};
use super::trained::{DropoutStep, Trained, linear_bias, linear_path, linear_shape};
use crate::backend::{Backend, Group, Linear, Vector, Weight};
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

/// A loaded model.
pub struct Decoder<B: Backend> {
    /// The device it lives on.
    pub backend: B,
    /// Its shape.
    pub config: Config,
    embed: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Float,
    head: Option<B::Matrix>,
}

struct Layer<B: Backend> {
    norm_attention: B::Float,
    norm_mlp: B::Float,
    /// In the order of [`plan::Linear::ALL`].
    weights: Vec<B::Matrix>,
    biases: Vec<Option<B::Float>>,
}

/// The linear layers that share an input.
pub const QKV: &[plan::Linear] = &[
    plan::Linear::QProj,
    plan::Linear::KProj,
    plan::Linear::VProj,
];
/// The attention's output layer.
pub const O: &[plan::Linear] = &[plan::Linear::OProj];
/// The two layers before SwiGLU.
pub const GATE_UP: &[plan::Linear] = &[plan::Linear::GateProj, plan::Linear::UpProj];
/// The layer behind SwiGLU.
pub const DOWN: &[plan::Linear] = &[plan::Linear::DownProj];

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
        let matrix =
            |name: &str, shape: (usize, usize), precision| -> Result<B::Matrix, CheckpointError> {
                let tensor = checkpoint.get(name, &[shape.0, shape.1])?;
                Ok(backend.matrix(tensor, precision, double_quant)?)
            };
        let vector = |name: &str, len: usize| -> Result<B::Float, CheckpointError> {
            let tensor = checkpoint.get(name, &[len])?;
            tensor.check_finite()?;
            let mut float = backend.float(len);
            backend.write(&mut float, 0, &tensor.to_f32()?);
            Ok(float)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let gain = |norm: &str| {
                vector(
                    &format!("model.layers.{layer}.{norm}.weight"),
                    config.hidden,
                )
            };
            let (mut weights, mut biases) = (Vec::new(), Vec::new());
            for linear in plan::Linear::ALL {
                let (path, shape) = (linear_path(layer, linear), linear_shape(&config, linear));
                weights.push(matrix(&format!("{path}.weight"), shape, precision)?);
                let bias =
                    linear_bias(&config, linear).then(|| vector(&format!("{path}.bias"), shape.0));
                biases.push(bias.transpose()?);
            }
            layers.push(Layer {
                norm_attention: gain("input_layernorm")?,
                norm_mlp: gain("post_attention_layernorm")?,
                weights,
                biases,
            });
        }
        let table = (config.vocab, config.hidden);
        Ok(Decoder {
            embed: matrix("model.embed_tokens.weight", table, rest)?,
            norm: vector("model.norm.weight", config.hidden)?,
            head: if config.tied {
                None
            } else {
                Some(matrix("lm_head.weight", table, rest)?)
            },
            layers,
            backend,
            config,
        })
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

    /// The gain of the last norm.
    pub fn norm<'a>(&'a self, trained: Option<&Trained<B>>) -> Vector<'a, B> {
        vector(&self.norm, trained, || "model.norm.weight".to_string())
    }

    /// The gain before attention.
    pub fn norm_attention<'a>(
        &'a self,
        layer: usize,
        trained: Option<&Trained<B>>,
    ) -> Vector<'a, B> {
        let name = || format!("model.layers.{layer}.input_layernorm.weight");
        vector(&self.layers[layer].norm_attention, trained, name)
    }

    /// The gain before the feed-forward layers.
    pub fn norm_mlp<'a>(&'a self, layer: usize, trained: Option<&Trained<B>>) -> Vector<'a, B> {
        let name = || format!("model.layers.{layer}.post_attention_layernorm.weight");
        vector(&self.layers[layer].norm_mlp, trained, name)
    }

    /// Linear layers that share an input, with their adapters.
    pub fn group<'a>(
        &'a self,
        layer: usize,
        linears: &[plan::Linear],
        trained: Option<&Trained<B>>,
        dropout: Option<DropoutStep>,
    ) -> Group<'a, B> {
        let own = &self.layers[layer];
        let member = |linear: &plan::Linear| {
            let index = *linear as usize;
            let name = |what: &str| format!("{}.{what}", linear_path(layer, *linear));
            Linear {
                weight: match trained.and_then(|t| t.full(&name("weight"))) {
                    Some(slot) => Weight::Trained(slot),
                    None => Weight::Frozen(&own.weights[index]),
                },
                bias: own.biases[index]
                    .as_ref()
                    .map(|bias| vector(bias, trained, || name("bias"))),
                outputs: linear_shape(&self.config, *linear).0,
                lora: trained.and_then(|t| t.lora(layer, *linear, dropout)),
            }
        };
        let inputs = linears
            .first()
            .map_or(0, |l| linear_shape(&self.config, *l).1);
        Group {
            inputs,
            members: linears.iter().map(member).collect(),
        }
    }

    /// A frozen tensor's values by its name in a checkpoint, as the ops see them.
    pub fn values(&self, name: &str) -> Option<Vec<f32>> {
        let float = |f: &B::Float, len| {
            Some(
                self.backend
                    .read(f, crate::backend::Slot { offset: 0, len }),
            )
        };
        let hidden = self.config.hidden;
        match name {
            "model.embed_tokens.weight" => return Some(self.backend.matrix_values(&self.embed)),
            "lm_head.weight" => return self.head.as_ref().map(|h| self.backend.matrix_values(h)),
            "model.norm.weight" => return float(&self.norm, hidden),
            _ => {}
        }
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = layer.parse::<usize>().ok()?;
        let own = self.layers.get(layer)?;
        match rest {
            "input_layernorm.weight" => float(&own.norm_attention, hidden),
            "post_attention_layernorm.weight" => float(&own.norm_mlp, hidden),
            _ => plan::Linear::ALL
                .iter()
                .enumerate()
                .find_map(|(i, linear)| {
                    let path = linear_path(layer, *linear);
                    if *name == format!("{path}.weight") {
                        Some(self.backend.matrix_values(&own.weights[i]))
                    } else if *name == format!("{path}.bias") {
                        own.biases[i]
                            .as_ref()
                            .and_then(|b| float(b, linear_shape(&self.config, *linear).0))
                    } else {
                        None
                    }
                }),
        }
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

fn vector<'a, B: Backend>(
    frozen: &'a B::Float,
    trained: Option<&Trained<B>>,
    name: impl Fn() -> String,
) -> Vector<'a, B> {
    match trained
        .filter(|t| *t.tuning() == super::trained::Tuning::Full)
        .and_then(|t| t.full(&name()))
    {
        Some(slot) => Vector::Trained(slot),
        None => Vector::Frozen(frozen),
    }
}
