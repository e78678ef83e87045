//! The `model` block.

use super::{BlockSpec, CallSpec, Default, Kind, NAME, Ty, WordSpec, field, word};

const WEIGHTS: &[CallSpec] = &[
    CallSpec {
        name: "hf",
        help: "A model repository on the Hugging Face hub.",
        params: &[
            field(
                "repo",
                NAME,
                Default::Required,
                "owner and name, as in `Qwen/Qwen2.5-3B-Instruct`",
            ),
            field(
                "revision",
                NAME,
                Default::Value("\"main\""),
                "a branch, tag or commit",
            ),
        ],
    },
    CallSpec {
        name: "dir",
        help: "A folder with `config.json`, a tokenizer and safetensors files.",
        params: &[field(
            "path",
            Ty::Path,
            Default::Required,
            "the folder, relative to the recipe",
        )],
    },
];

/// The words are those of `plan::Precision`.
const PRECISION: &[WordSpec] = &[
    word("f32", "32-bit floats"),
    word("bf16", "bfloat16"),
    word("nf4", "4-bit NormalFloat in blocks of 64 (QLoRA)"),
];

pub(super) const MODEL: BlockSpec = BlockSpec {
    kind: Kind::Model,
    word: "model",
    help: "A checkpoint and how its linear layers are held in memory.",
    example: r#"model small { weights = dir("models/small")   precision = bf16 }"#,
    fields: &[
        field(
            "weights",
            Ty::Call(WEIGHTS),
            Default::Required,
            "where the checkpoint lies",
        ),
        field(
            "precision",
            Ty::Word {
                words: PRECISION,
                quoted: false,
            },
            Default::Value("bf16"),
            "how the linear layers are held in memory",
        ),
        field(
            "double_quant",
            Ty::Bool,
            Default::Value("true"),
            "nf4 only: quantise the block scales, too",
        ),
    ],
};
