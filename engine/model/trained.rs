//! What training changes: LoRA matrices or every weight, as ranges of one flat f32 buffer.
//!
//! Holds names, shapes and places. It refuses gradients and optimizer state, which only a training run has. Invariant: the order of the
//! parameters is the order of their names in the decoder, so that a flat buffer means the same in every run.

use super::config::Config;
use crate::backend::{Backend, BackendError, Dropout, LoraSlots, Slot};
use medft_dsl::plan::Linear;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One trained tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name in a checkpoint: PEFT's for an adapter, Hugging Face's for a model.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Place in the flat buffer.
    pub slot: Slot,
}

/// The shape of a LoRA adapter (arXiv:2106.09685, PEFT's meaning).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    /// Rank r.
    pub rank: usize,
    /// `scale = alpha / r`.
    pub alpha: f64,
    /// `alpha / sqrt(r)` instead (rsLoRA, arXiv:2312.03732).
    pub rank_stabilized: bool,
    /// The adapted layers, in the order of [`Linear`].
    pub targets: Vec<Linear>,
}

impl LoraShape {
    /// Factor of the adapter's output.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha
            / if self.rank_stabilized {
                rank.sqrt()
            } else {
                rank
            }) as f32
    }
}

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Tuning {
    /// Low-rank adapters; the model is frozen.
    Lora(LoraShape),
    /// Every weight.
    Full,
}

/// Trained values and where each tensor's stand.
pub struct Trained<B: Backend> {
    tuning: Tuning,
    parameters: Vec<Parameter>,
    /// All values, flat.
    pub values: B::Float,
    len: usize,
}

/// The path of a linear layer inside a decoder block.
pub fn linear_path(layer: usize, linear: Linear) -> String {
    let room = match linear {
        Linear::QProj | Linear::KProj | Linear::VProj | Linear::OProj => "self_attn",
        Linear::GateProj | Linear::UpProj | Linear::DownProj => "mlp",
    };
    format!("model.layers.{layer}.{room}.{}", linear.name())
}

/// `(outputs, inputs)` of a linear layer.
pub fn linear_shape(config: &Config, linear: Linear) -> (usize, usize) {
    let (queries, keys) = (
        config.heads.queries * config.heads.dim,
        config.heads.keys * config.heads.dim,
    );
    match linear {
        Linear::QProj => (queries, config.hidden),
        Linear::KProj | Linear::VProj => (keys, config.hidden),
        Linear::OProj => (config.hidden, queries),
        Linear::GateProj | Linear::UpProj => (config.inner, config.hidden),
        Linear::DownProj => (config.hidden, config.inner),
    }
}

/// Whether a linear layer has a bias.
pub fn linear_bias(config: &Config, linear: Linear) -> bool {
    match linear {
        Linear::QProj | Linear::KProj | Linear::VProj => config.qkv_bias,
        Linear::OProj => config.o_bias,
        Linear::GateProj | Linear::UpProj | Linear::DownProj => config.mlp_bias,
    }
}

impl<B: Backend> Trained<B> {
    /// The parameters of `tuning` for this model, all zero.
    ///
    /// # Errors
    /// Too little memory.
    pub fn zeros(backend: &B, config: &Config, tuning: Tuning) -> Result<Self, BackendError> {
        let shapes = match &tuning {
            Tuning::Lora(lora) => lora_shapes(config, lora),
            Tuning::Full => model_shapes(config),
        };
        let mut offset = 0;
        let mut parameters = Vec::new();
        for (name, shape) in shapes {
            let len = shape.iter().product();
            parameters.push(Parameter {
                name,
                shape,
                slot: Slot { offset, len },
            });
            offset += len;
        }
        Ok(Trained {
            tuning,
            parameters,
            values: backend.floats("the trained part of the model", offset)?,
            len: offset,
        })
    }

    /// A new adapter: A uniform in `[-1 / sqrt(inputs), 1 / sqrt(inputs)]` (Kaiming with a = sqrt 5, as PEFT), B zero.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new_lora(
        backend: &B,
        config: &Config,
        shape: LoraShape,
        seed: u64,
    ) -> Result<Self, BackendError> {
        let mut trained = Self::zeros(backend, config, Tuning::Lora(shape))?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for parameter in trained
            .parameters
            .iter()
            .filter(|p| p.name.contains(".lora_A."))
        {
            let bound = 1.0 / (parameter.shape[1] as f32).sqrt();
            let values: Vec<f32> = (0..parameter.slot.len)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            backend.write(&mut trained.values, parameter.slot.offset, &values);
        }
        Ok(trained)
    }

    /// What is trained.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The trained tensors, in the order of the flat buffer.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Number of trained values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The adapter of one linear layer, if it has one; its input is dropped with probability `dropout`.
    pub fn lora(&self, layer: usize, linear: Linear, dropout: f32) -> Option<LoraSlots> {
        let Tuning::Lora(shape) = &self.tuning else {
            return None;
        };
        let target = shape.targets.iter().position(|t| *t == linear)?;
        let at = 2 * (layer * shape.targets.len() + target);
        let (a, b) = (
            self.parameters.get(at)?.slot,
            self.parameters.get(at + 1)?.slot,
        );
        let dropout = (dropout > 0.0).then_some(Dropout {
            p: dropout,
            stream: (layer * Linear::ALL.len() + linear as usize) as u32,
        });
        Some(LoraSlots {
            a,
            b,
            rank: shape.rank,
            scale: shape.scale(),
            dropout,
        })
    }

    /// The place of a model's own tensor, if the whole model is trained.
    pub fn full(&self, name: &str) -> Option<Slot> {
        match self.tuning {
            Tuning::Lora(_) => None,
            Tuning::Full => self
                .parameters
                .iter()
                .find(|p| p.name == name)
                .map(|p| p.slot),
        }
    }
}

fn lora_shapes(config: &Config, lora: &LoraShape) -> Vec<(String, Vec<usize>)> {
    let mut shapes = Vec::new();
    for layer in 0..config.layers {
        for target in &lora.targets {
            let (outputs, inputs) = linear_shape(config, *target);
            let path = format!("base_model.model.{}", linear_path(layer, *target));
            shapes.push((format!("{path}.lora_A.weight"), vec![lora.rank, inputs]));
            shapes.push((format!("{path}.lora_B.weight"), vec![outputs, lora.rank]));
        }
    }
    shapes
}

/// Number of trained values of an adapter of this shape.
pub fn parameters(config: &Config, shape: &LoraShape) -> u64 {
    let ranked = |target: &Linear| {
        let (outputs, inputs) = linear_shape(config, *target);
        shape.rank * (outputs + inputs)
    };
    (shape.targets.iter().map(ranked).sum::<usize>() * config.layers) as u64
}

/// Names and shapes of all tensors of a model, in the order of the forward pass.
pub fn model_shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![(
        "model.embed_tokens.weight".to_string(),
        vec![config.vocab, config.hidden],
    )];
    for layer in 0..config.layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((
                format!("model.layers.{layer}.{norm}.weight"),
                vec![config.hidden],
            ));
        }
        for linear in Linear::ALL {
            let (outputs, inputs) = linear_shape(config, linear);
            let path = linear_path(layer, linear);
            shapes.push((format!("{path}.weight"), vec![outputs, inputs]));
            if linear_bias(config, linear) {
                shapes.push((format!("{path}.bias"), vec![outputs]));
            }
        }
    }
    shapes.push(("model.norm.weight".to_string(), vec![config.hidden]));
    if !config.tied {
        shapes.push((
            "lm_head.weight".to_string(),
            vec![config.vocab, config.hidden],
        ));
    }
    shapes
}
