//! The forward and backward passes of a decoder over a packed batch, and the buffers that they need.
//!
//! Holds the order of the ops, nothing of how they work. Kept for the backward pass: each layer's two residual inputs, rstd, q/k/v after RoPE,
//! attention's output and log-sum-exp, gate and up, and the adapters' low-rank products. Both norms' outputs and SwiGLU's product are computed again.
//! Invariant: a workspace belongs to one shape of adapter and holds batches of up to its capacity.

use super::config::Config;
use super::decoder::{Decoder, Stack};
use super::trained::{DropoutStep, Trained, Tuning};
use crate::backend::{Backend, BackendError, Epilogue, HeadBackward, Need};

/// Buffers of a pass, made once and used for every batch.
pub struct Workspace<B: Backend> {
    capacity: usize,
    buffers: Buffers<B::Act, B::Float>,
}

/// Of activations `A` and f32 buffers `F`.
struct Buffers<A, F> {
    /// Residual stream before each layer and behind the last; two in turn where nothing is kept.
    x: Vec<A>,
    layers: Vec<Saved<A, F>>,
    normed: A,
    h: A,
    rstd: F,
    nothing: F,
    gradients: Option<Gradients<A>>,
}

/// What a layer keeps for its backward pass.
struct Saved<A, F> {
    rstd_attention: F,
    qkv: A,
    out: A,
    lse: F,
    mid: A,
    rstd_mlp: F,
    gate_up: A,
    /// Low-rank products, in the order of [`Stack::ALL`].
    low: [A; 4],
}

struct Gradients<A> {
    x: A,
    normed: A,
    qkv: A,
    out: A,
    gate_up: A,
    h: A,
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

/// The layer's input and the next one's, of which the first is read and the second written.
fn residual_pair<A>(x: &mut [A], layer: usize) -> (&A, &mut A) {
    let (from, to) = (layer % x.len(), (layer + 1) % x.len());
    let (low, high) = x.split_at_mut(from.max(to));
    if from < to {
        (&low[from], &mut high[0])
    } else {
        (&high[0], &mut low[to])
    }
}

impl<B: Backend> Decoder<B> {
    /// The forward pass; leaves the last norm's output in the workspace. With a cache, attention reads and extends it.
    fn run(
        &self,
        trained: Option<&Trained<B>>,
        dropout: Option<DropoutStep>,
        batch: &B::Batch,
        tokens: usize,
        mut cache: Option<&mut B::Cache>,
        ws: &mut Workspace<B>,
    ) {
        assert!(
            tokens <= ws.capacity,
            "batch of {tokens} tokens in a workspace for {}",
            ws.capacity
        );
        let (b, c) = (&self.backend, &self.config);
        let Buffers {
            x,
            layers,
            normed,
            h,
            rstd,
            nothing,
            ..
        } = &mut ws.buffers;
        let values = trained.map_or(&*nothing, |t| &t.values);
        b.embed(&self.embed(trained), values, batch, c.hidden, &mut x[0]);
        for layer in 0..c.layers {
            let kept = layers.len();
            let s = &mut layers[layer % kept];
            let (x_in, x_out) = residual_pair(x, layer);
            let group = |stack| self.group(layer, stack, trained, dropout);
            let gain = self.norm_attention(layer, trained);
            b.rmsnorm(
                &gain,
                values,
                c.norm_eps,
                tokens,
                c.hidden,
                x_in,
                normed,
                &mut s.rstd_attention,
            );
            let rope = Epilogue::Rope(&c.heads);
            b.linear(
                &group(Stack::Qkv),
                values,
                batch,
                tokens,
                normed,
                rope,
                &mut s.qkv,
                &mut s.low[0],
            );
            match cache.as_deref_mut() {
                Some(cache) => {
                    b.attention_cached(&c.heads, batch, layer, cache, &s.qkv, &mut s.out)
                }
                None => b.attention(&c.heads, batch, &s.qkv, &mut s.out, &mut s.lse),
            }
            let add = Epilogue::Residual(x_in);
            b.linear(
                &group(Stack::Out),
                values,
                batch,
                tokens,
                &s.out,
                add,
                &mut s.mid,
                &mut s.low[1],
            );
            let gain = self.norm_mlp(layer, trained);
            b.rmsnorm(
                &gain,
                values,
                c.norm_eps,
                tokens,
                c.hidden,
                &s.mid,
                normed,
                &mut s.rstd_mlp,
            );
            let swiglu = Epilogue::SwiGlu(h);
            b.linear(
                &group(Stack::GateUp),
                values,
                batch,
                tokens,
                normed,
                swiglu,
                &mut s.gate_up,
                &mut s.low[2],
            );
            let add = Epilogue::Residual(&s.mid);
            b.linear(
                &group(Stack::Down),
                values,
                batch,
                tokens,
                h,
                add,
                x_out,
                &mut s.low[3],
            );
        }
        let last = &x[c.layers % x.len()];
        b.rmsnorm(
            &self.norm(trained),
            values,
            c.norm_eps,
            tokens,
            c.hidden,
            last,
            normed,
            rstd,
        );
    }

    /// Cross-entropy of each of the batch's targets, natural log: `losses[at..at + targets] =`.
    pub fn losses(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        tokens: usize,
        losses: &mut B::Float,
        at: usize,
        ws: &mut Workspace<B>,
    ) {
        self.run(trained, None, batch, tokens, None, ws);
        let (b, c, buffers) = (&self.backend, &self.config, &ws.buffers);
        b.head_loss(
            &self.head(trained),
            trained.map_or(&buffers.nothing, |t| &t.values),
            batch,
            c.hidden,
            c.vocab,
            &buffers.normed,
            losses,
            at,
            None,
        );
    }

    /// Logits at the batch's targets: rows `at_row..at_row + targets` of logits `[rows, vocab]` `=`. With a cache, the batch continues
    /// its sequences.
    pub fn logits(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        tokens: usize,
        cache: Option<&mut B::Cache>,
        logits: &mut B::Float,
        at_row: usize,
        ws: &mut Workspace<B>,
    ) {
        self.run(trained, None, batch, tokens, cache, ws);
        let (b, c, buffers) = (&self.backend, &self.config, &ws.buffers);
        b.head_logits(
            &self.head(trained),
            trained.map_or(&buffers.nothing, |t| &t.values),
            batch,
            c.hidden,
            c.vocab,
            &buffers.normed,
            logits,
            at_row,
        );
    }

    /// One forward and backward pass: `losses[at..at + targets] =` the targets' losses, `grads +=` `grad_scale` times the gradient of
    /// their sum.
    ///
    /// # Panics
    /// If the workspace was not made for training.
    pub fn train_pass(
        &self,
        trained: &Trained<B>,
        grads: &mut B::Float,
        dropout: Option<DropoutStep>,
        batch: &B::Batch,
        tokens: usize,
        grad_scale: f32,
        losses: &mut B::Float,
        at: usize,
        ws: &mut Workspace<B>,
    ) {
        self.run(Some(trained), dropout, batch, tokens, None, ws);
        let (b, c, values, all) = (&self.backend, &self.config, &trained.values, Some(trained));
        let full = *trained.tuning() == Tuning::Full;
        let Buffers {
            x,
            layers,
            normed,
            h,
            rstd,
            gradients,
            ..
        } = &mut ws.buffers;
        let Some(g) = gradients else {
            panic!("train_pass needs a workspace made for training")
        };
        let back = HeadBackward {
            grad_scale,
            dx: &mut g.normed,
            grads,
        };
        b.head_loss(
            &self.head(all),
            values,
            batch,
            c.hidden,
            c.vocab,
            normed,
            losses,
            at,
            Some(back),
        );
        b.clear(tokens, c.hidden, &mut g.x);
        let gain = self.norm(all);
        b.rmsnorm_backward(
            &gain,
            values,
            grads,
            tokens,
            c.hidden,
            &x[c.layers],
            rstd,
            &g.normed,
            &mut g.x,
        );
        for layer in (0..c.layers).rev() {
            let s = &mut layers[layer];
            let x_in = &x[layer];
            let group = |stack| self.group(layer, stack, all, dropout);
            b.swiglu(tokens, c.inner, &s.gate_up, h);
            b.linear_backward(
                &group(Stack::Down),
                values,
                grads,
                batch,
                tokens,
                h,
                &s.low[3],
                &g.x,
                Some(&mut g.h),
            );
            b.swiglu_backward(tokens, c.inner, &s.gate_up, &g.h, &mut g.gate_up);
            let gain = self.norm_mlp(layer, all);
            b.rmsnorm(
                &gain,
                values,
                c.norm_eps,
                tokens,
                c.hidden,
                &s.mid,
                normed,
                &mut s.rstd_mlp,
            );
            let (up, dx) = (group(Stack::GateUp), Some(&mut g.normed));
            b.linear_backward(
                &up, values, grads, batch, tokens, normed, &s.low[2], &g.gate_up, dx,
            );
            b.rmsnorm_backward(
                &gain,
                values,
                grads,
                tokens,
                c.hidden,
                &s.mid,
                &s.rstd_mlp,
                &g.normed,
                &mut g.x,
            );
            b.linear_backward(
                &group(Stack::Out),
                values,
                grads,
                batch,
                tokens,
                &s.out,
                &s.low[1],
                &g.x,
                Some(&mut g.out),
            );
            b.attention_backward(&c.heads, batch, &s.qkv, &s.out, &s.lse, &g.out, &mut g.qkv);
            let gain = self.norm_attention(layer, all);
            b.rmsnorm(
                &gain,
                values,
                c.norm_eps,
                tokens,
                c.hidden,
                x_in,
                normed,
                &mut s.rstd_attention,
            );
            // Below the first layer's adapters nothing is trained: its input needs no gradient.
            let further = full || layer > 0;
            let dx = further.then_some(&mut g.normed);
            b.linear_backward(
                &group(Stack::Qkv),
                values,
                grads,
                batch,
                tokens,
                normed,
                &s.low[0],
                &g.qkv,
                dx,
            );
            if further {
                b.rmsnorm_backward(
                    &gain,
                    values,
                    grads,
                    tokens,
                    c.hidden,
                    x_in,
                    &s.rstd_attention,
                    &g.normed,
                    &mut g.x,
                );
            }
        }
        if let Some(table) = trained.full("model.embed_tokens.weight") {
            b.embed_backward(table, grads, batch, c.hidden, &g.x);
        }
    }
}
