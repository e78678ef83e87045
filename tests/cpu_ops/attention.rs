//! `attention` and `attention_backward` over ragged packs, grouped heads and sliding windows.

use crate::attention_reference as reference;
use crate::draw::{Draw, lengths, pack, poison};
use crate::near::{agree, exact};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Heads};
use proptest::prelude::*;

/// One to two key heads, one to eight queries each.
pub fn heads() -> impl Strategy<Value = Heads> {
    let dim = prop::sample::select(vec![32, 64, 128]);
    let window = prop::option::of(1usize..140);
    (1usize..3, 1usize..9, dim, window).prop_map(|(keys, ratio, dim, window)| Heads {
        queries: keys * ratio,
        keys,
        dim,
        window,
        inv_freq: (0..dim / 2)
            .map(|i| 1e4f64.powf(-2.0 * i as f64 / dim as f64))
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// `size` up to 8 makes scores of several hundred: a softmax that is all but one-hot.
    #[test]
    fn forward_and_backward(
        heads in heads(), lengths in lengths(), size in prop::sample::select(vec![0.1f32, 1.0, 8.0]), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let batch = pack(draw, &lengths, 7);
        let (tokens, columns) = (batch.tokens(), heads.queries * heads.dim);
        let qkv = draw.buffer(tokens * heads.qkv(), size);
        let (mut out, mut lse) = (poison(tokens * columns), poison(tokens * heads.queries));
        Cpu.attention(&heads, &batch, &qkv, &mut out, &mut lse);
        let inputs = exact(&qkv[..tokens * heads.qkv()]);
        let (want, want_lse) = reference::forward(&heads, &batch.sequences, &inputs);
        agree("out", &out, &want)?;
        agree("lse", &lse, &want_lse)?;

        let dout = draw.buffer(tokens * columns, 1.0);
        let mut dqkv = poison(tokens * heads.qkv());
        Cpu.attention_backward(&heads, &batch, &qkv, &out, &lse, &dout, &mut dqkv);
        let body = |buffer: &[f32], len: usize| exact(&buffer[..len]);
        let want = reference::backward(
            &heads,
            &batch.sequences,
            &inputs,
            &body(&out, tokens * columns),
            &body(&lse, tokens * heads.queries),
            &body(&dout, tokens * columns),
        );
        agree("dqkv", &dqkv, &want)?;
    }
}
