//! A system's shapes, from the headers of its files: what is loaded, what is trained, how large it is on a device.

use crate::backend::facts::{Facts, GroupShape, MatrixShape};
use crate::model::checkpoint::{Checkpoint, Tensor};
use crate::model::config::Config;
use crate::model::decoder::ModelError;
use crate::model::trained::{LoraShape, Tuning, linear_shape, model_shapes, parameters};
use crate::model::workspace::groups;
use crate::study::StudyError;
use crate::study::resolve::System;
use medft_dsl::plan::{Adapter, Linear, Precision};
use std::path::Path;

/// A system as the arithmetic sees it.
pub(super) struct Shape {
    pub(super) config: Config,
    /// What is trained; none for a model as it comes.
    pub(super) tuning: Option<Tuning>,
    /// Weights of the linear layers.
    pub(super) linear: u64,
    /// Trained values; 0 for a model as it comes.
    pub(super) trained: u64,
    /// How the recipe asks for the linear layers.
    pub(super) precision: Precision,
    double_quant: bool,
    /// The matrices, and whether each is a linear layer's.
    matrices: Vec<(MatrixShape, bool)>,
    /// Values of norms and biases, f32.
    vectors: u64,
}

impl Shape {
    /// From the model's folder; headers are read, weights are not.
    pub(super) fn load(dir: &Path, system: &System) -> Result<Shape, StudyError> {
        let model = |source: ModelError| StudyError::Model {
            name: system.model.name.clone(),
            source,
        };
        let config = Config::load(dir).map_err(|e| model(e.into()))?;
        let checkpoint = Checkpoint::open(dir).map_err(|e| model(e.into()))?;
        let get = |name: &str, wanted: &[usize]| -> Result<&Tensor, StudyError> {
            let found = checkpoint.get(name, wanted);
            found.map_err(|e| model(e.into()))
        };
        // The last layer first: a config may claim millions. Once all shapes are the file's own, no product of them overflows.
        let last = config.layers.saturating_sub(1);
        let name = format!("model.layers.{last}.input_layernorm.weight");
        get(&name, &[config.hidden])?;
        let (mut matrices, mut vectors) = (Vec::new(), 0);
        for (name, wanted) in model_shapes(&config) {
            let tensor = get(&name, &wanted)?;
            let [rows, inputs] = wanted[..] else {
                vectors += wanted.iter().product::<usize>() as u64;
                continue;
            };
            let stored = tensor.bytes().len() / (rows * inputs).max(1);
            let matrix = MatrixShape {
                rows,
                inputs,
                stored,
            };
            matrices.push((matrix, name.ends_with("_proj.weight")));
        }
        let linear = Linear::ALL
            .iter()
            .map(|l| linear_shape(&config, *l))
            .map(|(o, i)| (o * i * config.layers) as u64)
            .sum();
        let tuning = system.train.map(|train| match &train.adapter {
            Adapter::Full => Tuning::Full,
            Adapter::Lora(lora) => Tuning::Lora(LoraShape {
                rank: lora.rank as usize,
                alpha: lora.alpha,
                rank_stabilized: false,
                targets: lora.targets.clone(),
            }),
        });
        Ok(Shape {
            trained: match &tuning {
                None => 0,
                Some(Tuning::Full) => config.parameters(),
                Some(Tuning::Lora(lora)) => parameters(&config, lora),
            },
            tuning,
            linear,
            precision: system.model.precision,
            double_quant: system.model.double_quant,
            matrices,
            vectors,
            config,
        })
    }

    /// Whether every weight is trained.
    pub(super) fn full(&self) -> bool {
        self.tuning == Some(Tuning::Full)
    }

    /// Bytes of the weights on a device, in this precision. Only the linear layers are quantised.
    pub(super) fn weights(&self, device: &dyn Facts, precision: Precision) -> u64 {
        let rest = match precision {
            Precision::Nf4 => Precision::Bf16,
            other => other,
        };
        let bytes = |(matrix, linear): &(MatrixShape, bool)| {
            let precision = if *linear { precision } else { rest };
            device.matrix_bytes(*matrix, precision, self.double_quant)
        };
        self.matrices.iter().map(bytes).sum::<u64>() + 4 * self.vectors
    }

    /// The groups of linear layers that share an input, of one layer.
    pub(super) fn groups(&self) -> Vec<GroupShape> {
        groups(&self.config, self.tuning.as_ref())
    }
}
