//! The Hopper matrix products against f64: descriptors of either majorness, adapters, epilogues, dropout, tails, determinism.
#![allow(clippy::unwrap_used)]

#[path = "gemm_hopper/cases.rs"]
mod cases;
#[path = "gpu/mod.rs"]
mod gpu;
#[path = "gpu/low_rank.rs"]
mod low_rank;

use cases::{
    Case, Kind, TILES, backward_case, forward_case, group, hopper, plain_case, run_backward,
    run_forward,
};
use gpu::{Random, poisoned};
use half::bf16;
use medft_kernels::Ptr;
use medft_kernels::gemm_hopper::{self, Tile};
use medft_kernels::linear::{Backward, Epilogue, Forward, LowBackward, LowForward};
use proptest::prelude::*;

const PLAIN: [bool; 3] = [false; 3];

#[test]
fn a1_one_tile_k_major() {
    let Some(d) = hopper() else { return };
    for tile in [Tile::Single128, Tile::Pair256] {
        forward_case(
            d,
            &Case {
                group: group(128, 64, [128, 0, 0], 0, PLAIN),
                bias: false,
                kind: Kind::None,
                seed: 1,
            },
            tile,
        );
        forward_case(
            d,
            &Case {
                group: group(256, 256, [256, 0, 0], 0, PLAIN),
                bias: false,
                kind: Kind::None,
                seed: 2,
            },
            tile,
        );
    }
}

#[test]
fn a2_one_tile_n_major() {
    let Some(d) = hopper() else { return };
    for tile in [Tile::Single128, Tile::Pair256] {
        backward_case(d, group(128, 128, [64, 0, 0], 0, PLAIN), 0.0, 3, tile);
        backward_case(d, group(256, 256, [256, 0, 0], 0, PLAIN), 0.0, 4, tile);
    }
}

#[test]
fn b1_rows_around_the_tile() {
    let Some(d) = hopper() else { return };
    for rows in [1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 521] {
        run_forward(
            d,
            &Case {
                group: group(rows, 200, [264, 0, 0], 0, PLAIN),
                bias: true,
                kind: Kind::None,
                seed: rows as u64,
            },
        );
        run_backward(
            d,
            group(rows, 264, [136, 64, 0], 16, [true, false, false]),
            0.0,
            rows as u64,
        );
    }
}

#[test]
fn b2_columns_around_the_tile() {
    let Some(d) = hopper() else { return };
    for columns in [8, 56, 64, 72, 120, 128, 136, 248, 256, 264, 520] {
        run_forward(
            d,
            &Case {
                group: group(70, 72, [columns, 40, columns], 0, PLAIN),
                bias: true,
                kind: Kind::Residual,
                seed: columns as u64,
            },
        );
        run_backward(
            d,
            group(70, columns, [40, 0, 24], 0, PLAIN),
            0.0,
            columns as u64,
        );
    }
}

#[test]
fn c_many_tiles_a_block() {
    let Some(d) = hopper() else { return };
    // More tiles than 132 blocks: the ring's phases and the raster groups go on over tiles.
    run_forward(
        d,
        &Case {
            group: group(3000, 448, [2048, 256, 256], 64, [true; 3]),
            bias: true,
            kind: Kind::None,
            seed: 5,
        },
    );
    run_forward(
        d,
        &Case {
            group: group(3000, 448, [4096, 0, 0], 16, [true, false, false]),
            bias: false,
            kind: Kind::Residual,
            seed: 6,
        },
    );
    run_backward(d, group(3000, 4096, [448, 64, 0], 64, [true; 3]), 0.0, 7);
}

fn ranks() -> impl Strategy<Value = (usize, [bool; 3])> {
    (
        prop::sample::select(vec![16usize, 32, 48, 64, 80, 96, 128]),
        any::<[bool; 3]>(),
    )
}

fn width() -> impl Strategy<Value = usize> {
    (0usize..45).prop_map(|n| 8 * n)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 16,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20_261_124),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn d1_adapters_and_members(rows in 1usize..400, inputs in 1usize..40, outputs in [width(), width(), width()], (rank, adapted) in ranks(), bias: bool, residual: bool, seed: u64) {
        if let (Some(d), true) = (hopper(), outputs.iter().sum::<usize>() > 0) {
            let kind = if residual { Kind::Residual } else { Kind::None };
            run_forward(d, &Case { group: group(rows, 8 * inputs, outputs, rank, adapted), bias, kind, seed });
        }
    }

    #[test]
    fn d2_rope(rows in 1usize..300, inputs in 1usize..30, heads in [1usize..6, 1usize..3, 1usize..3], head_dim in prop::sample::select(vec![32usize, 64, 128]), (rank, adapted) in ranks(), bias: bool, seed: u64) {
        if let Some(d) = hopper() {
            let group = group(rows, 8 * inputs, heads.map(|h| h * head_dim), rank, adapted);
            run_forward(d, &Case { group, bias, kind: Kind::Rope { head_dim, rotated: heads[0] + heads[1] }, seed });
        }
    }

    #[test]
    fn d3_swiglu(rows in 1usize..300, inputs in 1usize..30, wide in 1usize..60, (rank, adapted) in ranks(), bias: bool, seed: u64) {
        if let Some(d) = hopper() {
            let group = group(rows, 8 * inputs, [8 * wide, 8 * wide, 0], rank, [adapted[0], adapted[1], false]);
            run_forward(d, &Case { group, bias, kind: Kind::SwiGlu, seed });
        }
    }

    #[test]
    fn d4_backward(rows in 1usize..400, inputs in 1usize..70, outputs in [width(), width(), width()], (rank, adapted) in ranks(), seed: u64) {
        if let (Some(d), true) = (hopper(), outputs.iter().sum::<usize>() > 0) {
            run_backward(d, group(rows, 8 * inputs, outputs, rank, adapted), 0.0, seed);
        }
    }

    #[test]
    fn e_dropout(rows in 1usize..300, inputs in 1usize..70, outputs in [width(), width(), width()], (rank, adapted) in ranks(), p in 0.05f64..0.6, seed: u64) {
        if let (Some(d), true) = (hopper(), outputs.iter().sum::<usize>() > 0) {
            run_backward(d, group(rows, 8 * inputs, outputs, rank, adapted), p, seed);
        }
    }

    #[test]
    fn f_plain(rows in 1usize..300, inputs in 1usize..60, outputs in 1usize..100, seed: u64) {
        if let Some(d) = hopper() {
            for tile in TILES {
                plain_case(d, rows, 8 * inputs, 8 * outputs, tile, seed);
            }
        }
    }
}

#[test]
fn g_real_widths() {
    let Some(d) = hopper() else { return };
    // Qwen2.5-3B's qkv, gate and up, down; SmolLM2-135M's qkv (head_dim 64).
    let rope = |head_dim, rotated| Kind::Rope { head_dim, rotated };
    let all = [true; 3];
    forward_case(
        d,
        &Case {
            group: group(300, 2048, [2048, 256, 256], 64, all),
            bias: true,
            kind: rope(128, 18),
            seed: 1,
        },
        Tile::Pair256,
    );
    forward_case(
        d,
        &Case {
            group: group(300, 2048, [11008, 11008, 0], 64, [true, true, false]),
            bias: false,
            kind: Kind::SwiGlu,
            seed: 2,
        },
        Tile::Pair256,
    );
    forward_case(
        d,
        &Case {
            group: group(300, 11008, [2048, 0, 0], 64, [true, false, false]),
            bias: false,
            kind: Kind::Residual,
            seed: 3,
        },
        Tile::Pair256,
    );
    forward_case(
        d,
        &Case {
            group: group(300, 576, [576, 192, 192], 16, all),
            bias: false,
            kind: rope(64, 12),
            seed: 4,
        },
        Tile::Single128,
    );
    backward_case(
        d,
        group(300, 2048, [2048, 256, 256], 64, all),
        0.1,
        5,
        Tile::Pair256,
    );
    backward_case(
        d,
        group(300, 2048, [11008, 11008, 0], 64, [true, true, false]),
        0.0,
        6,
        Tile::Pair256,
    );
    plain_case(d, 300, 2048, 18_992, Tile::Pair256, 7);
}

#[test]
fn h_twenty_runs_are_equal() {
    let Some(d) = hopper() else { return };
    let g = group(1030, 520, [1024, 256, 264], 32, [true; 3]);
    let mut random = Random(9);
    let columns = g.columns();
    let (x, w) = (
        d.upload(&random.bf16s(g.rows * g.inputs, 1.0)).unwrap(),
        d.upload(&random.bf16s(columns * g.inputs, 0.05)).unwrap(),
    );
    let (h, b) = (
        d.upload(&random.bf16s(g.rows * g.low(), 1.0)).unwrap(),
        d.upload(&random.bf16s(columns * g.low(), 0.1)).unwrap(),
    );
    let res = d.upload(&random.bf16s(g.rows * columns, 1.0)).unwrap();
    let drawn = low_rank::masks(&mut random).draw(d, &g);
    let mut different = Vec::new();
    for tile in TILES {
        for op in ["plain", "residual", "backward", "dropout"] {
            let mut first: Option<Vec<bf16>> = None;
            let width = if ["plain", "residual"].contains(&op) {
                columns
            } else {
                g.inputs
            };
            for run in 0..20 {
                let out = poisoned(d, g.rows * width);
                if op == "plain" || op == "residual" {
                    let epilogue = if op == "plain" {
                        Epilogue::None
                    } else {
                        Epilogue::Residual(res.ptr())
                    };
                    let low = Some(LowForward {
                        low: h.ptr(),
                        b: b.ptr(),
                    });
                    let f = Forward {
                        group: g,
                        x: x.ptr(),
                        weight: w.ptr(),
                        bias: Ptr::NULL,
                        low,
                        epilogue,
                        y: out.ptr(),
                    };
                    gemm_hopper::forward_with(d, &f, Some(tile)).unwrap();
                } else {
                    let low = Some(LowBackward {
                        g: h.ptr(),
                        a: b.ptr(),
                        dropout: (op == "dropout").then_some(drawn.dropout),
                    });
                    gemm_hopper::backward_with(
                        d,
                        &Backward {
                            group: g,
                            dy: res.ptr(),
                            weight: w.ptr(),
                            low,
                            dx: out.ptr(),
                        },
                        Some(tile),
                    )
                    .unwrap();
                }
                let got = out.download().unwrap();
                if let Some(first) = &first {
                    let at: Vec<_> = (0..got.len())
                        .filter(|&i| got[i].to_bits() != first[i].to_bits())
                        .collect();
                    if let Some(&i) = at.first() {
                        let (rows, some): (std::collections::BTreeSet<_>, Vec<_>) = (
                            at.iter().map(|i| i / width).collect(),
                            at.iter()
                                .step_by(at.len().div_ceil(10))
                                .map(|i| (i / width, i % width))
                                .collect(),
                        );
                        different.push(format!(
                            "{op} {tile:?} run {run}: {} elements in {} rows, {} was {}; {some:?}",
                            at.len(),
                            rows.len(),
                            got[i],
                            first[i]
                        ));
                    }
                }
                first.get_or_insert(got);
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
