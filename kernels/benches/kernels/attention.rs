//! Packed attention, forward and backward, portable (`attention/`) and Hopper (`attention_hopper/`), and the decoding step's over the cache (`decode/`).
//!
//! FLOPs count the causal half; backward is 2.5 forwards.

use crate::bench::{Bench, Rig, Work as Cost};
use crate::models::{LAYERS, Model, TOKENS};
use half::bf16;
use medft_kernels::attention::{self, Backward, Forward, Heads, Rope, Work, Works};
use medft_kernels::decode::{self, Cache, Cached, Place};
use medft_kernels::device::{Buffer, Device};
use medft_kernels::{LaunchError, Ptr, attention_hopper};

fn heads(model: &Model) -> Heads {
    Heads {
        queries: model.queries,
        keys: model.keys,
        dim: model.dim,
        window: None,
    }
}

struct Pack {
    heads: Heads,
    tile: usize,
    works: Buffer<Work>,
    /// qkv, dqkv, out, dout.
    rows: [Buffer<bf16>; 4],
    lse: Buffer<f32>,
    delta: Buffer<f32>,
    table: Buffer<f32>,
    positions: Buffer<u32>,
}

impl Pack {
    fn new(rig: &Rig, heads: Heads, length: usize, tile: usize) -> Self {
        let (wide, narrow) = (TOKENS * heads.width(), TOKENS * heads.queries * heads.dim);
        let positions: Vec<u32> = (0..TOKENS).map(|t| (t % length) as u32).collect();
        Pack {
            heads,
            tile,
            works: rig.upload(&attention::work(&vec![length; TOKENS / length], tile)),
            rows: [wide, wide, narrow, narrow].map(|len| rig.bf16(len)),
            lse: rig.f32(heads.queries * TOKENS),
            delta: rig.f32(heads.queries * TOKENS),
            table: rig.f32(length * heads.dim),
            positions: rig.upload(&positions),
        }
    }

    fn works(&self) -> Works {
        Works {
            items: self.works.ptr(),
            len: self.works.len(),
            tile: self.tile,
        }
    }

    fn forward(&self) -> Forward {
        Forward {
            heads: self.heads,
            tokens: TOKENS,
            work: self.works(),
            qkv: self.rows[0].ptr(),
            scale: 1.0 / (self.heads.dim as f32).sqrt(),
            out: self.rows[2].ptr(),
            lse: self.lse.ptr(),
        }
    }

    fn backward(&self) -> Backward {
        Backward {
            heads: self.heads,
            tokens: TOKENS,
            work: self.works(),
            qkv: self.rows[0].ptr(),
            scale: 1.0 / (self.heads.dim as f32).sqrt(),
            out: self.rows[2].ptr(),
            lse: self.lse.ptr(),
            dout: self.rows[3].ptr(),
            delta: self.delta.ptr(),
            rope: Some(Rope {
                table: self.table.ptr(),
                positions: self.positions.ptr(),
            }),
            dqkv: self.rows[1].ptr(),
        }
    }
}

type Ahead = fn(&Device, &Forward) -> Result<(), LaunchError>;
type Back = fn(&Device, &Backward) -> Result<(), LaunchError>;

pub fn all(bench: &mut Bench) {
    if bench.hopper() {
        let (forward, backward) = (attention_hopper::forward, attention_hopper::backward);
        family(
            bench,
            "attention_hopper",
            [attention_hopper::TILE; 2],
            forward,
            backward,
        );
    }
    let tiles = [attention::FORWARD_TILE, attention::BACKWARD_TILE];
    family(
        bench,
        "attention",
        tiles,
        attention::forward,
        attention::backward,
    );
    decoding(bench);
}

fn family(bench: &mut Bench, family: &str, tiles: [usize; 2], forward: Ahead, backward: Back) {
    for model in &LAYERS {
        let heads = heads(model);
        for length in [512, 2048, 8192] {
            let flops = 2.0 * (TOKENS * length) as f64 * (heads.dim * heads.queries) as f64;
            let at = format!("{} x {length}/{}", TOKENS / length, model.name);
            bench.case(
                &format!("{family}/forward {at}"),
                Cost::flops(flops),
                |rig| {
                    let pack = Pack::new(rig, heads, length, tiles[0]);
                    move |d| forward(d, &pack.forward())
                },
            );
            bench.case(
                &format!("{family}/backward {at}"),
                Cost::flops(2.5 * flops),
                |rig| {
                    // The log-sum-exp that backward reads is a true one: huge exponentials would be another bench.
                    let ahead = Pack::new(rig, heads, length, tiles[0]);
                    forward(&rig.gpu, &ahead.forward()).unwrap();
                    let list =
                        rig.upload(&attention::work(&vec![length; TOKENS / length], tiles[1]));
                    let pack = Pack {
                        tile: tiles[1],
                        works: list,
                        ..ahead
                    };
                    move |d| backward(d, &pack.backward())
                },
            );
        }
    }
}

/// The bytes are those of the keys and values that a step reads.
fn decoding(bench: &mut Bench) {
    for model in &LAYERS {
        let heads = heads(model);
        for (batch, context) in [(1, 544), (1, 4096), (48, 544), (48, 4096)] {
            let bytes = batch * heads.keys * context * heads.dim * 4;
            let name = format!(
                "decode/attend batch {batch} context {context}/{}",
                model.name
            );
            bench.case_in_graph(&name, Cost::bytes(bytes), 56, |rig| {
                let capacity = context.next_multiple_of(64);
                let lane = batch * heads.keys * capacity * heads.dim;
                // Layers enough that a layer's cache has left L2 when its turn comes again.
                let layers = (256usize << 20).div_ceil(4 * lane).clamp(1, 28);
                let (keys, values) = (rig.bf16(layers * lane), rig.bf16(layers * lane));
                let (qkv, out) = (
                    rig.bf16(batch * heads.width()),
                    rig.bf16(batch * heads.queries * heads.dim),
                );
                let places: Vec<Place> = (0..batch as u32)
                    .map(|s| Place {
                        slot: s,
                        past: context as u32 - 1,
                        start: s,
                        length: 1,
                    })
                    .collect();
                let places = rig.upload(&places);
                let partial = rig.f32(decode::scratch_len(&heads, batch, context).max(1));
                move |d, call| {
                    let at = call % layers * lane;
                    let step = Cached {
                        heads,
                        scale: 1.0 / (heads.dim as f32).sqrt(),
                        tokens: batch,
                        qkv: qkv.ptr(),
                        places: places.ptr(),
                        sequences: batch,
                        longest_new: 1,
                        longest: context,
                        cache: Cache {
                            keys: keys.ptr().at(at),
                            values: values.ptr().at(at),
                            capacity,
                        },
                        work: Works {
                            items: Ptr::NULL,
                            len: 0,
                            tile: 0,
                        },
                        partial: partial.ptr(),
                        out: out.ptr(),
                    };
                    decode::append_and_attend(d, &step)
                }
            });
        }
    }
}
