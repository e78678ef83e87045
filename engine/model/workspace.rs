//! The buffers of a pass, made before the first one, and all that its ops will borrow.
//!
//! Invariant: a workspace belongs to one shape of adapter and holds batches of up to its capacity.

use super::config::Config;
use super::decoder::{Decoder, Stack};
use super::trained::{Trained, Tuning, linear_shape};
use crate::backend::facts::{GroupShape, Passes};
use crate::backend::{Backend, BackendError, Need};
use medft_dsl::plan::Linear;

/// The largest passes that a workspace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Largest {
    /// Tokens.
    pub tokens: usize,
    /// Rows whose loss or logits are asked for.
    pub targets: usize,
    /// There is a backward pass.
    pub training: bool,
    /// Sequences in the KV cache and the room of each; none without a cache.
    pub cached: Option<(usize, usize)>,
}

impl<B: Backend> Decoder<B> {
    /// Room for such passes: their buffers, and what the ops will borrow beside them.
    ///
    /// # Errors
    /// Too little memory.
    pub fn workspace(
        &self,
        trained: Option<&Trained<B>>,
        largest: &Largest,
    ) -> Result<Workspace<B>, BackendError> {
        let (config, tuning) = (&self.config, trained.map(Trained::tuning));
        let groups = groups(config, tuning);
        self.backend
            .reserve(&self.passes(&groups, tuning, largest))?;
        let (tokens, training) = (largest.tokens, largest.training);
        Workspace::new(&self.backend, config, trained, tokens, training)
    }

    /// Bytes that [`Decoder::workspace`] takes.
    pub fn workspace_bytes(&self, tuning: Option<&Tuning>, largest: &Largest) -> u64 {
        let (config, backend) = (&self.config, &self.backend);
        let (tokens, training) = (largest.tokens, largest.training);
        let buffers = Workspace::need(backend, config, tuning, tokens, training);
        let groups = groups(config, tuning);
        let passes = self.passes(&groups, tuning, largest);
        backend.arena_bytes(&buffers) + backend.scratch_bytes(&passes)
    }

    fn passes<'a>(
        &'a self,
        groups: &'a [GroupShape],
        tuning: Option<&Tuning>,
        largest: &Largest,
    ) -> Passes<'a> {
        let config = &self.config;
        Passes {
            groups,
            heads: &config.heads,
            hidden: config.hidden,
            vocab: config.vocab,
            precision: self.precision,
            full: tuning == Some(&Tuning::Full),
            training: largest.training,
            tokens: largest.tokens,
            targets: largest.targets,
            cached: largest.cached,
        }
    }
}

/// The groups of linear layers that share an input, of one layer.
pub fn groups(config: &Config, tuning: Option<&Tuning>) -> Vec<GroupShape> {
    let rank = |linear: &Linear| match tuning {
        Some(Tuning::Lora(lora)) if lora.targets.contains(linear) => lora.rank,
        _ => 0,
    };
    let group = |stack: Stack| GroupShape {
        inputs: linear_shape(config, stack.linears()[0]).1,
        outputs: stack
            .linears()
            .iter()
            .map(|l| linear_shape(config, *l).0)
            .collect(),
        ranks: stack.linears().iter().map(rank).collect(),
    };
    Stack::ALL.map(group).to_vec()
}

/// Buffers of a pass, made once and used for every batch.
pub struct Workspace<B: Backend> {
    capacity: usize,
    pub(super) buffers: Buffers<B::Act, B::Float>,
}

/// Of activations `A` and f32 buffers `F`.
pub(super) struct Buffers<A, F> {
    /// Residual stream before each layer and behind the last; two in turn where nothing is kept.
    pub(super) x: Vec<A>,
    pub(super) layers: Vec<Saved<A, F>>,
    pub(super) normed: A,
    pub(super) h: A,
    pub(super) rstd: F,
    pub(super) nothing: F,
    pub(super) gradients: Option<Gradients<A>>,
}

/// What a layer keeps for its backward pass.
pub(super) struct Saved<A, F> {
    pub(super) rstd_attention: F,
    pub(super) qkv: A,
    pub(super) out: A,
    pub(super) lse: F,
    pub(super) mid: A,
    pub(super) rstd_mlp: F,
    pub(super) gate_up: A,
    /// Low-rank products, in the order of [`Stack::ALL`].
    pub(super) low: [A; 4],
}

pub(super) struct Gradients<A> {
    pub(super) x: A,
    pub(super) normed: A,
    pub(super) qkv: A,
    pub(super) out: A,
    pub(super) gate_up: A,
    pub(super) h: A,
}

/// Where buffers come from. One constructor asks either of the two, so the count is always right.
trait Room {
    type Act;
    type Float;
    fn act(&mut self, len: usize) -> Self::Act;
    fn float(&mut self, len: usize) -> Self::Float;
}

/// Counts.
impl Room for Need {
    type Act = ();
    type Float = ();

    fn act(&mut self, len: usize) {
        self.acts.push(len);
    }

    fn float(&mut self, len: usize) {
        self.floats.push(len);
    }
}

/// Makes buffers.
struct Arena<'a, B: Backend> {
    backend: &'a B,
    arena: B::Arena,
}

impl<B: Backend> Room for Arena<'_, B> {
    type Act = B::Act;
    type Float = B::Float;

    fn act(&mut self, len: usize) -> B::Act {
        self.backend.act(&mut self.arena, len)
    }

    fn float(&mut self, len: usize) -> B::Float {
        self.backend.float(&mut self.arena, len)
    }
}

/// What decides the size of a workspace.
struct Shape<'a> {
    config: &'a Config,
    /// Columns of the low-rank products, in the order of [`Stack::ALL`].
    low: [usize; 4],
    capacity: usize,
    training: bool,
}

impl<'a> Shape<'a> {
    fn new<B: Backend>(
        backend: &B,
        config: &'a Config,
        tuning: Option<&Tuning>,
        capacity: usize,
        training: bool,
    ) -> Self {
        let low = Stack::ALL.map(|stack| match tuning {
            Some(Tuning::Lora(lora)) => {
                let adapted = |linear: &&_| lora.targets.contains(linear);
                stack.linears().iter().filter(adapted).count() * backend.low_columns(lora.rank)
            }
            _ => 0,
        });
        Shape {
            config,
            low,
            capacity,
            training,
        }
    }

    fn buffers<R: Room>(&self, room: &mut R) -> Buffers<R::Act, R::Float> {
        let (n, heads) = (self.capacity, &self.config.heads);
        let (hidden, inner) = (n * self.config.hidden, n * self.config.inner);
        let (qkv, out) = (n * heads.qkv(), n * heads.queries * heads.dim);
        let saved = |room: &mut R| Saved {
            rstd_attention: room.float(n),
            qkv: room.act(qkv),
            out: room.act(out),
            lse: room.float(n * heads.queries),
            mid: room.act(hidden),
            rstd_mlp: room.float(n),
            gate_up: room.act(2 * inner),
            low: self.low.map(|columns| room.act(n * columns)),
        };
        let layers = if self.training { self.config.layers } else { 1 };
        Buffers {
            x: (0..layers + 1).map(|_| room.act(hidden)).collect(),
            layers: (0..layers).map(|_| saved(room)).collect(),
            normed: room.act(hidden),
            h: room.act(inner),
            rstd: room.float(n),
            nothing: room.float(0),
            gradients: self.training.then(|| Gradients {
                x: room.act(hidden),
                normed: room.act(hidden),
                qkv: room.act(qkv),
                out: room.act(out),
                gate_up: room.act(2 * inner),
                h: room.act(inner),
            }),
        }
    }

    fn need(&self) -> Need {
        let mut need = Need::default();
        self.buffers(&mut need);
        need
    }
}

impl<B: Backend> Workspace<B> {
    /// Buffers for batches of up to `capacity` tokens, in one allocation; `training` keeps what the backward pass needs.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(
        backend: &B,
        config: &Config,
        trained: Option<&Trained<B>>,
        capacity: usize,
        training: bool,
    ) -> Result<Self, BackendError> {
        let tuning = trained.map(Trained::tuning);
        let shape = Shape::new(backend, config, tuning, capacity, training);
        let what = if training {
            "a training pass"
        } else {
            "a pass"
        };
        let arena = backend.arena(what, &shape.need())?;
        let buffers = shape.buffers(&mut Arena { backend, arena });
        Ok(Workspace { capacity, buffers })
    }

    /// The buffers that [`Workspace::new`] would make.
    pub fn need(
        backend: &B,
        config: &Config,
        tuning: Option<&Tuning>,
        capacity: usize,
        training: bool,
    ) -> Need {
        Shape::new(backend, config, tuning, capacity, training).need()
    }

    /// Most tokens of a batch.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
