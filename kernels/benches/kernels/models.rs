//! The shapes of the four models, and the batch that all benches of training take.

/// Rows of a training batch, packed.
pub const TOKENS: usize = 16_384;
/// Rank of the adapters.
pub const RANK: usize = 64;

pub struct Model {
    pub name: &'static str,
    pub hidden: usize,
    pub inner: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    pub vocab: usize,
    pub layers: usize,
}

pub const QWEN_3B: Model = Model {
    name: "qwen2.5-3b",
    hidden: 2048,
    inner: 11_008,
    queries: 16,
    keys: 2,
    dim: 128,
    vocab: 151_936,
    layers: 36,
};

pub const LLAMA_3B: Model = Model {
    name: "llama-3.2-3b",
    hidden: 3072,
    inner: 8192,
    queries: 24,
    keys: 8,
    dim: 128,
    vocab: 128_256,
    layers: 28,
};

pub const LLAMA_8B: Model = Model {
    name: "llama-3.1-8b",
    hidden: 4096,
    inner: 14_336,
    queries: 32,
    keys: 8,
    dim: 128,
    vocab: 128_256,
    layers: 32,
};

/// Differs from Llama-3.1-8B in the vocabulary alone, so only the head's ops run for both.
pub const MISTRAL_7B: Model = Model {
    name: "mistral-7b",
    vocab: 32_768,
    ..LLAMA_8B
};

/// The models whose layers differ.
pub const LAYERS: [Model; 3] = [QWEN_3B, LLAMA_3B, LLAMA_8B];
/// The models whose heads differ.
pub const HEADS: [Model; 4] = [QWEN_3B, LLAMA_3B, LLAMA_8B, MISTRAL_7B];

/// Linear layers over one input.
pub struct Linear {
    pub name: &'static str,
    pub inputs: usize,
    pub outputs: [usize; 3],
}

impl Model {
    /// qkv, o, gate and up, down.
    pub fn linears(&self) -> [Linear; 4] {
        let (q, k) = (self.queries * self.dim, self.keys * self.dim);
        let linear = |name, inputs, outputs| Linear {
            name,
            inputs,
            outputs,
        };
        [
            linear("qkv", self.hidden, [q, k, k]),
            linear("o", q, [self.hidden, 0, 0]),
            linear("gate_up", self.hidden, [self.inner, self.inner, 0]),
            linear("down", self.inner, [self.hidden, 0, 0]),
        ]
    }

    /// Values of all adapters.
    pub fn adapters(&self) -> usize {
        let layer: usize = self
            .linears()
            .iter()
            .flat_map(|l| {
                l.outputs
                    .map(|n| if n > 0 { RANK * (l.inputs + n) } else { 0 })
            })
            .sum();
        self.layers * layer
    }
}
