//! `attention_cached`, `cache` and `cache_compact`: sequences that are read in pieces, beside others that come and go.

use crate::attention::heads;
use crate::attention_reference as reference;
use crate::draw::{Draw, poison};
use crate::near::{Near, agree, exact};
use medft_engine::backend::cpu::Cpu;
use medft_engine::backend::{Backend, Heads, Packed, Sequence};
use proptest::prelude::*;

/// A sequence, all of its q, k and v, and how much of it the cache holds.
struct Row {
    len: usize,
    qkv: Vec<f32>,
    want: Vec<Near>,
    past: usize,
}

fn row(draw: &mut Draw, heads: &Heads, len: usize) -> Row {
    let qkv = draw.values(len * heads.qkv(), 1.0);
    let whole = Sequence {
        start: 0,
        len,
        past: 0,
        slot: 0,
    };
    let (want, _) = reference::forward(heads, &[whole], &exact(&qkv));
    Row {
        len,
        qkv,
        want,
        past: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_attend_to_all_that_came_before(
        heads in heads(), lens in prop::collection::vec(1usize..140, 1..5),
        pieces in prop::collection::vec(prop::sample::select(vec![1, 2, 5, 63, 64, 65, 100]), 1..5), seed: u64,
    ) {
        let draw = &mut Draw::new(seed);
        let (width, columns) = (heads.qkv(), heads.queries * heads.dim);
        let mut live: Vec<Row> = lens.iter().map(|len| row(draw, &heads, *len)).collect();
        let capacity = lens.iter().max().copied().unwrap_or(0);
        let mut caches = Cpu.cache(2, live.len(), capacity, &heads).unwrap();
        let mut step = 0;
        while !live.is_empty() {
            // Pieces of different lengths in one batch, the last slot first.
            let (mut batch, mut qkv, mut want) = (Packed::default(), Vec::new(), Vec::new());
            for (slot, row) in live.iter_mut().enumerate().rev() {
                let count = pieces[(step + slot) % pieces.len()].min(row.len - row.past);
                let range = row.past..row.past + count;
                batch.push(&vec![0; count], row.past, slot);
                qkv.extend_from_slice(&row.qkv[range.start * width..range.end * width]);
                want.extend_from_slice(&row.want[range.start * columns..range.end * columns]);
                row.past += count;
            }
            qkv.resize(qkv.len() + crate::near::TAIL, f32::NAN);
            let mut other = poison(want.len());
            // Another layer of the same cache, with other numbers, must not be seen.
            let doubled: Vec<f32> = qkv.iter().map(|v| v * 2.0).collect();
            Cpu.attention_cached(&heads, &batch, 0, &mut caches, &doubled, &mut other);
            let mut out = poison(want.len());
            Cpu.attention_cached(&heads, &batch, 1, &mut caches, &qkv, &mut out);
            agree("out", &out, &want)?;

            let keep: Vec<usize> = (0..live.len()).filter(|i| live[*i].past < live[*i].len).collect();
            Cpu.cache_compact(&mut caches, &keep);
            live.retain(|row| row.past < row.len);
            step += 1;
        }
    }
}
