//! The forward and backward passes of a decoder over a packed batch, and the buffers that they need.
//!
//! Holds the order of the ops, nothing of how they work. Kept for the backward pass: each layer's two residual inputs, rstd, q/k/v after RoPE,
//! attention's output and log-sum-exp, gate and up, and the adapters' low-rank products. Both norms' outputs and SwiGLU's product are computed again.
//! Invariant: a workspace belongs to one shape of adapter and holds batches of up to its capacity.

use super::config::Config;
use super::decoder::{DOWN, Decoder, GATE_UP, O, QKV};
use super::trained::{DropoutStep, Trained, Tuning};
use crate::backend::{Backend, Epilogue, HeadBackward};

/// Buffers of a pass, made once and used for every batch.
pub struct Workspace<B: Backend> {
    capacity: usize,
    /// Residual stream before each layer and behind the last; two in turn where nothing is kept.
    x: Vec<B::Act>,
    layers: Vec<Saved<B>>,
    normed: B::Act,
    h: B::Act,
    rstd: B::Float,
    nothing: B::Float,
    gradients: Option<Gradients<B>>,
}

/// What a layer keeps for its backward pass.
struct Saved<B: Backend> {
    rstd_attention: B::Float,
    qkv: B::Act,
    out: B::Act,
    lse: B::Float,
    mid: B::Act,
    rstd_mlp: B::Float,
    gate_up: B::Act,
    /// Low-rank products of q/k/v, o, gate/up and down.
    low: [B::Act; 4],
}

struct Gradients<B: Backend> {
    x: B::Act,
    normed: B::Act,
    qkv: B::Act,
    out: B::Act,
    gate_up: B::Act,
    h: B::Act,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for batches of up to `capacity` tokens; `training` keeps what the backward pass needs.
    pub fn new(
        backend: &B,
        config: &Config,
        trained: Option<&Trained<B>>,
        capacity: usize,
        training: bool,
    ) -> Self {
        let act = |columns: usize| backend.act(capacity * columns);
        let (hidden, inner, qkv) = (config.hidden, config.inner, config.heads.qkv());
        let out = config.heads.queries * config.heads.dim;
        let ranks = |linears: &[medft_dsl::plan::Linear]| match trained.map(Trained::tuning) {
            Some(Tuning::Lora(l)) => {
                l.rank * linears.iter().filter(|x| l.targets.contains(x)).count()
            }
            _ => 0,
        };
        let saved = || Saved {
            rstd_attention: backend.float(capacity),
            qkv: act(qkv),
            out: act(out),
            lse: backend.float(capacity * config.heads.queries),
            mid: act(hidden),
            rstd_mlp: backend.float(capacity),
            gate_up: act(2 * inner),
            low: [QKV, O, GATE_UP, DOWN].map(|g| act(ranks(g))),
        };
        Workspace {
            capacity,
            x: (0..if training { config.layers + 1 } else { 2 })
                .map(|_| act(hidden))
                .collect(),
            layers: (0..if training { config.layers } else { 1 })
                .map(|_| saved())
                .collect(),
            normed: act(hidden),
            h: act(inner),
            rstd: backend.float(capacity),
            nothing: backend.float(0),
            gradients: training.then(|| Gradients {
                x: act(hidden),
                normed: act(hidden),
                qkv: act(qkv),
                out: act(out),
                gate_up: act(2 * inner),
                h: act(inner),
            }),
        }
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
        let Workspace {
            x,
            layers,
            normed,
            h,
            rstd,
            nothing,
            ..
        } = ws;
        let values = trained.map_or(&*nothing, |t| &t.values);
        b.embed(&self.embed(trained), values, batch, c.hidden, &mut x[0]);
        for layer in 0..c.layers {
            let kept = layers.len();
            let s = &mut layers[layer % kept];
            let (x_in, x_out) = residual_pair(x, layer);
            let group = |linears| self.group(layer, linears, trained, dropout);
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
                &group(QKV),
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
                &group(O),
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
            let up = group(GATE_UP);
            b.linear(
                &up,
                values,
                batch,
                tokens,
                normed,
                Epilogue::None,
                &mut s.gate_up,
                &mut s.low[2],
            );
            b.swiglu(tokens, c.inner, &s.gate_up, h);
            let add = Epilogue::Residual(&s.mid);
            b.linear(
                &group(DOWN),
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

    /// Cross-entropy of each of the batch's targets, natural log.
    pub fn losses(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        tokens: usize,
        ws: &mut Workspace<B>,
    ) -> Vec<f32> {
        self.run(trained, None, batch, tokens, None, ws);
        let (b, c) = (&self.backend, &self.config);
        let values = trained.map_or(&ws.nothing, |t| &t.values);
        b.head_loss(
            &self.head(trained),
            values,
            batch,
            c.hidden,
            c.vocab,
            &ws.normed,
            None,
        )
    }

    /// Logits `[targets, vocab]` at the batch's targets. With a cache, the batch continues its sequences.
    pub fn logits(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        tokens: usize,
        cache: Option<&mut B::Cache>,
        ws: &mut Workspace<B>,
    ) -> Vec<f32> {
        self.run(trained, None, batch, tokens, cache, ws);
        let (b, c) = (&self.backend, &self.config);
        let values = trained.map_or(&ws.nothing, |t| &t.values);
        b.head_logits(
            &self.head(trained),
            values,
            batch,
            c.hidden,
            c.vocab,
            &ws.normed,
        )
    }

    /// One forward and backward pass: returns the targets' losses and adds `grad_scale` times the gradient of their sum to `grads`.
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
        ws: &mut Workspace<B>,
    ) -> Vec<f32> {
        self.run(Some(trained), dropout, batch, tokens, None, ws);
        let (b, c, values, all) = (&self.backend, &self.config, &trained.values, Some(trained));
        let full = *trained.tuning() == Tuning::Full;
        let Workspace {
            x,
            layers,
            normed,
            h,
            rstd,
            gradients,
            ..
        } = ws;
        let Some(g) = gradients else {
            panic!("train_pass needs a workspace made for training")
        };
        let back = HeadBackward {
            grad_scale,
            dx: &mut g.normed,
            grads,
        };
        let losses = b.head_loss(
            &self.head(all),
            values,
            batch,
            c.hidden,
            c.vocab,
            normed,
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
            let group = |linears| self.group(layer, linears, all, dropout);
            b.swiglu(tokens, c.inner, &s.gate_up, h);
            b.linear_backward(
                &group(DOWN),
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
            let (up, dx) = (group(GATE_UP), Some(&mut g.normed));
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
                &group(O),
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
                &group(QKV),
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
        losses
    }
}
