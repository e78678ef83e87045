//! The next token of each row (`sample/`), in a graph as decoding runs it: vocabularies of the four models.

use crate::bench::{Bench, Work};
use crate::models::HEADS;
use medft_kernels::sample::{self, Batch, Row, Settings};

/// Tokens of a row that a repetition penalty looks at.
const SEEN: usize = 1500;

pub fn all(bench: &mut Bench) {
    for model in &HEADS {
        for rows in [1, 48] {
            for (what, sample, top_k, top_p, penalty) in [
                ("greedy", false, 0, 1.0, 1.0),
                ("draw", true, 0, 1.0, 1.0),
                ("top-k 50 top-p 0.9 penalty", true, 50, 0.9, 1.0001),
            ] {
                let settings = Settings {
                    sample,
                    temperature: 1.0,
                    top_k,
                    top_p,
                    repetition_penalty: penalty,
                    seed: 1,
                };
                let name = format!("sample/{what} {rows} rows/{}", model.name);
                case(bench, &name, rows, model.vocab, settings);
            }
        }
    }
}

fn case(bench: &mut Bench, name: &str, rows: usize, vocab: usize, settings: Settings) {
    bench.case_in_graph(name, Work::bytes(4 * rows * vocab), 10, |rig| {
        // About normal scores of deviation 3, not a language model's: how many tokens top-p keeps is not looked at.
        let logits: Vec<f32> = rig
            .numbers
            .iter()
            .cycle()
            .take(rows * vocab)
            .map(|x| 6.0 * x)
            .collect();
        let logits = rig.upload(&logits);
        let seen: Vec<u32> = (0..rows * SEEN)
            .map(|i| (i * 7919 % vocab) as u32)
            .collect();
        let who: Vec<Row> = (0..rows)
            .map(|r| Row {
                row: r as u64,
                position: 9,
                seen_start: (r * SEEN) as u32,
                seen_len: SEEN as u32,
                reserved: 0,
            })
            .collect();
        let (seen, who) = (rig.upload(&seen), rig.upload(&who));
        let (scratch, out) = (
            rig.bytes(sample::scratch_bytes(rows, vocab)),
            rig.upload(&vec![0u32; rows]),
        );
        move |d, _| {
            let batch = Batch {
                rows,
                vocab,
                logits: logits.ptr(),
                stride: vocab,
                who: who.ptr(),
                seen: seen.ptr(),
            };
            sample::choose(d, &batch, &settings, scratch.ptr(), out.ptr())
        }
    });
}
