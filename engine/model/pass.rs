//! The forward and backward passes of a decoder over a packed batch.
//!
//! Holds the order of the ops, nothing of how they work. Kept for the backward pass: each layer's two residual inputs, rstd, q/k/v after RoPE,
//! attention's output and log-sum-exp, gate and up, and the adapters' low-rank products. Both norms' outputs and SwiGLU's product are computed again.
//! A pass has as many rows as its backend says; what they are beyond the batch's tokens changes nothing.

use super::decoder::{Decoder, Stack};
use super::trained::{Trained, Tuning};
use super::workspace::{Buffers, Workspace};
use crate::backend::{Backend, Epilogue, HeadBackward};

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
        dropout: f32,
        batch: &B::Batch,
        mut cache: Option<&mut B::Cache>,
        ws: &mut Workspace<B>,
    ) {
        let (b, c) = (&self.backend, &self.config);
        let tokens = b.rows(batch);
        assert!(
            tokens <= ws.capacity(),
            "batch of {tokens} rows in a workspace for {}",
            ws.capacity()
        );
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

    /// Cross-entropy of each of the batch's targets, natural log: `losses[first_target..][..targets] =`.
    pub fn losses(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        losses: &mut B::Float,
        ws: &mut Workspace<B>,
    ) {
        self.run(trained, 0.0, batch, None, ws);
        let (b, c, buffers) = (&self.backend, &self.config, &ws.buffers);
        b.head_loss(
            &self.head(trained),
            trained.map_or(&buffers.nothing, |t| &t.values),
            batch,
            c.hidden,
            c.vocab,
            &buffers.normed,
            losses,
            None,
        );
    }

    /// Logits at the batch's targets: rows `at_row..at_row + targets` of logits `[rows, vocab]` `=`. With a cache, the batch continues
    /// its sequences.
    pub fn logits(
        &self,
        trained: Option<&Trained<B>>,
        batch: &B::Batch,
        cache: Option<&mut B::Cache>,
        logits: &mut B::Float,
        at_row: usize,
        ws: &mut Workspace<B>,
    ) {
        self.run(trained, 0.0, batch, cache, ws);
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

    /// One forward and backward pass: `losses[first_target..][..targets] =` the targets' losses, `grads +=` `loss_scale` times the gradient of
    /// their sum. `dropout` is the probability of dropping an adapter's input.
    ///
    /// # Panics
    /// If the workspace was not made for training.
    pub fn train_pass(
        &self,
        recording: &mut B::Recording,
        trained: &Trained<B>,
        grads: &mut B::Float,
        dropout: f32,
        batch: &B::Batch,
        losses: &mut B::Float,
        ws: &mut Workspace<B>,
    ) {
        self.backend.step(recording, batch, None, |_| {
            self.train_ops(trained, grads, dropout, batch, losses, ws)
        });
        let gradients = &ws.buffers.gradients;
        // It goes by the runs of equal tokens, whose number differs from batch to batch, so no record holds it.
        if let (Some(table), Some(g)) = (trained.full("model.embed_tokens.weight"), gradients) {
            let hidden = self.config.hidden;
            self.backend
                .embed_backward(table, grads, batch, hidden, &g.x);
        }
    }

    /// All of it but the embedding's gradient.
    fn train_ops(
        &self,
        trained: &Trained<B>,
        grads: &mut B::Float,
        dropout: f32,
        batch: &B::Batch,
        losses: &mut B::Float,
        ws: &mut Workspace<B>,
    ) {
        self.run(Some(trained), dropout, batch, None, ws);
        let (b, c, values, all) = (&self.backend, &self.config, &trained.values, Some(trained));
        let (full, tokens) = (*trained.tuning() == Tuning::Full, b.rows(batch));
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
    }
}
