//! The `evaluate` and `compare` blocks.

use super::{
    BlockSpec, Bound, CallSpec, Default, FieldSpec, Kind, RECIPE_SEED, SEED, Ty, WordSpec, field,
    int, limit, number, share, word,
};

/// Base models are zero-shot, train blocks tuned.
const SYSTEM: Ty = Ty::Block(&[Kind::Model, Kind::Train]);

/// The words are those of `plan::Part`.
const PARTS: &[WordSpec] = &[
    word("train", "the training rows"),
    word("val", "the validation rows"),
    word("test", "the test rows"),
];

const MAX_NEW: FieldSpec = field(
    "max_new",
    int(1, 32_768, "tokens"),
    Default::Value("256"),
    "most new tokens",
);

const fn penalty(default: &'static str) -> FieldSpec {
    let positive = number(Bound::Excluding(0.0), Bound::None);
    field(
        "repetition_penalty",
        positive,
        Default::Value(default),
        "weakens tokens seen before; 1 is off",
    )
}

const DECODES: &[CallSpec] = &[
    CallSpec {
        name: "sample",
        help: "Draws from the distribution.",
        params: &[
            MAX_NEW,
            field(
                "temperature",
                number(Bound::Excluding(0.0), Bound::None),
                Default::Value("0.7"),
                "logits are divided by it",
            ),
            field(
                "top_p",
                share(Bound::Excluding(0.0), Bound::Including(1.0)),
                Default::Value("0.9"),
                "the smallest set of tokens whose probability reaches it",
            ),
            field(
                "top_k",
                int(0, 1_000_000, "tokens"),
                Default::Value("50"),
                "the k most probable tokens; 0 is all",
            ),
            penalty("1.1"),
            field("seed", SEED, RECIPE_SEED, "seed of the draws"),
        ],
    },
    CallSpec {
        name: "greedy",
        help: "Takes the most probable token.",
        params: &[MAX_NEW, penalty("1.0")],
    },
];

pub(super) const EVALUATE: BlockSpec = BlockSpec {
    kind: Kind::Evaluate,
    word: "evaluate",
    help: "Lets models answer the rows of one side of the split, and scores the answers.",
    example: r#"evaluate all {
  models = [small, small_lora]
  decode = greedy(max_new = 12)
}"#,
    fields: &[
        field(
            "models",
            Ty::List(&SYSTEM),
            Default::Required,
            "model blocks (zero-shot) and train blocks (tuned); a swept train block stands for all its runs",
        ),
        field(
            "task",
            Ty::Block(&[Kind::Task]),
            Default::Depends("the only task block"),
            "what they are asked",
        ),
        field(
            "split",
            Ty::Word {
                words: PARTS,
                quoted: false,
            },
            Default::Value("test"),
            "which rows",
        ),
        field(
            "decode",
            Ty::Call(DECODES),
            Default::Value("sample()"),
            "how an answer is decoded",
        ),
        field(
            "batch",
            int(1, 65_536, "rows"),
            Default::Value("48"),
            "rows decoded together",
        ),
        limit("ask only the first rows"),
        field(
            "cache",
            Ty::Bool,
            Default::Value("true"),
            "reuse predictions whose inputs are all unchanged",
        ),
    ],
};

pub(super) const COMPARE: BlockSpec = BlockSpec {
    kind: Kind::Compare,
    word: "compare",
    help: "Compares the systems of an evaluation, row by row, with statistics.",
    example: "compare verdict { of = all   baseline = small }",
    fields: &[
        field(
            "of",
            Ty::Block(&[Kind::Evaluate]),
            Default::Required,
            "the evaluation",
        ),
        field(
            "baseline",
            SYSTEM,
            Default::Depends("the first system"),
            "what the others are compared with",
        ),
    ],
};
