//! The `train` block: what is trained, and how.

use super::{
    BlockSpec, Bound, CallSpec, Default, FieldSpec, Kind, RECIPE_SEED, SEED, Ty, WordSpec, field,
    int, number, share, word,
};

/// The words are those of `plan::Linear`.
const LINEAR: Ty = Ty::Word {
    words: &[
        word("q_proj", "queries"),
        word("k_proj", "keys"),
        word("v_proj", "values"),
        word("o_proj", "attention's output"),
        word("gate_proj", "the gate of the feed-forward part"),
        word("up_proj", "its input"),
        word("down_proj", "its output"),
    ],
    quoted: true,
};

const ALL_LINEAR: Ty = Ty::Word {
    words: &[word("all_linear", "all seven linear layers")],
    quoted: true,
};

const POSITIVE: Bound = Bound::Excluding(0.0);
const ZERO: Bound = Bound::Including(0.0);

const LORA: CallSpec = CallSpec {
    name: "lora",
    help: "Low-rank adapters (arXiv:2106.09685) with PEFT's meaning.",
    params: &[
        field("rank", int(1, 1024, ""), Default::Value("64"), "rank r"),
        field(
            "alpha",
            number(POSITIVE, Bound::None),
            Default::Value("128"),
            "the output is scaled by alpha / rank",
        ),
        field(
            "dropout",
            share(ZERO, Bound::Excluding(1.0)),
            Default::Value("0.1"),
            "dropout on the adapter's input",
        ),
        field(
            "targets",
            Ty::OneOf(&[ALL_LINEAR, Ty::List(&LINEAR)]),
            Default::Value("all_linear"),
            "the adapted linear layers",
        ),
        field(
            "init",
            Ty::Path,
            Default::Depends("a fresh adapter"),
            "go on from the PEFT adapter in this folder",
        ),
    ],
};

const FULL: &[WordSpec] = &[word("full", "every weight of the model")];

const BETA: Ty = share(ZERO, Bound::Excluding(1.0));

const ADAMW: CallSpec = CallSpec {
    name: "adamw",
    help: "AdamW (arXiv:1711.05101) with PyTorch's meaning.",
    params: &[
        field(
            "lr",
            number(POSITIVE, Bound::Including(1.0)),
            Default::Value("2e-4"),
            "peak learning rate",
        ),
        field(
            "weight_decay",
            number(ZERO, Bound::Including(1.0)),
            Default::Value("0.01"),
            "decoupled weight decay",
        ),
        field(
            "beta1",
            BETA,
            Default::Value("0.9"),
            "decay of the first moment",
        ),
        field(
            "beta2",
            BETA,
            Default::Value("0.999"),
            "decay of the second moment",
        ),
        field(
            "eps",
            number(POSITIVE, Bound::Including(0.01)),
            Default::Value("1e-8"),
            "added to the denominator",
        ),
    ],
};

const WARMUP: &[FieldSpec] = &[field(
    "warmup",
    int(0, 1_000_000, "steps"),
    Default::Value("100"),
    "steps of linear warm-up",
)];

/// The names are those of `plan::ScheduleKind`.
const SCHEDULES: &[CallSpec] = &[
    CallSpec {
        name: "cosine",
        help: "Half a cosine down to zero.",
        params: WARMUP,
    },
    CallSpec {
        name: "linear",
        help: "A line down to zero.",
        params: WARMUP,
    },
    CallSpec {
        name: "constant",
        help: "The peak rate throughout.",
        params: WARMUP,
    },
];

const EARLY: CallSpec = CallSpec {
    name: "early",
    help: "Ends the training when the validation loss no longer improves.",
    params: &[
        field(
            "patience",
            int(1, 1000, "validations"),
            Default::Value("3"),
            "validations without improvement",
        ),
        field(
            "min_delta",
            number(ZERO, Bound::None),
            Default::Value("0.001"),
            "what counts as an improvement",
        ),
    ],
};

const AUTO: &[WordSpec] = &[word("auto", "what fits in memory")];
const NO_CLIP: &[WordSpec] = &[word("none", "no clipping")];
const NO_STOP: &[WordSpec] = &[word("none", "train to the end")];

const fn words(words: &'static [WordSpec]) -> Ty {
    Ty::Word {
        words,
        quoted: false,
    }
}

const fn steps(name: &'static str, default: &'static str, help: &'static str) -> FieldSpec {
    field(
        name,
        int(1, 1_000_000, "steps"),
        Default::Value(default),
        help,
    )
}

const ROWS: Ty = int(1, 65_536, "rows");

pub(super) const TRAIN: BlockSpec = BlockSpec {
    kind: Kind::Train,
    word: "train",
    help: "Fine-tunes a model on a task. `sweep { lora.rank = [8, 16] }` in it makes one run for each combination.",
    example: r#"train small_lora {
  model     = small
  adapter   = lora(rank = 16, alpha = 32)
  optimizer = adamw(lr = 1e-3)
  epochs    = 5
}"#,
    fields: &[
        field(
            "model",
            Ty::Block(&[Kind::Model]),
            Default::Required,
            "what is trained",
        ),
        field(
            "task",
            Ty::Block(&[Kind::Task]),
            Default::Depends("the only task block"),
            "what it is trained on",
        ),
        field(
            "adapter",
            Ty::OneOf(&[Ty::Call(&[LORA]), words(FULL)]),
            Default::Value("lora()"),
            "which weights are trained",
        ),
        field(
            "optimizer",
            Ty::Call(&[ADAMW]),
            Default::Value("adamw()"),
            "the optimizer",
        ),
        field(
            "schedule",
            Ty::Call(SCHEDULES),
            Default::Value("cosine()"),
            "learning rate over time",
        ),
        field(
            "epochs",
            int(1, 1000, "epochs"),
            Default::Value("3"),
            "passes over the training rows",
        ),
        field(
            "max_steps",
            int(1, u64::MAX, "steps"),
            NO_STEPS,
            "ends the training earlier",
        ),
        field(
            "batch",
            ROWS,
            Default::Value("32"),
            "rows in one optimizer step",
        ),
        field(
            "eval_batch",
            ROWS,
            Default::Value("64"),
            "rows in one validation batch",
        ),
        field(
            "micro_batch",
            Ty::OneOf(&[words(AUTO), ROWS]),
            Default::Value("auto"),
            "rows of one forward and backward pass",
        ),
        field(
            "clip",
            Ty::OneOf(&[words(NO_CLIP), number(POSITIVE, Bound::None)]),
            Default::Value("1.0"),
            "largest norm of the whole gradient",
        ),
        steps("log_every", "5", "steps between log lines"),
        steps("eval_every", "50", "steps between validations"),
        steps("save_every", "200", "steps between checkpoints"),
        field(
            "keep",
            int(0, 1000, "checkpoints"),
            Default::Value("3"),
            "checkpoints kept besides the best one",
        ),
        field(
            "stop",
            Ty::OneOf(&[Ty::Call(&[EARLY]), words(NO_STOP)]),
            Default::Value("early()"),
            "early stopping on validation loss",
        ),
        field(
            "shuffle",
            Ty::Bool,
            Default::Value("true"),
            "a new row order every epoch",
        ),
        field(
            "seed",
            SEED,
            RECIPE_SEED,
            "seed of initialisation, order and dropout",
        ),
    ],
};

const NO_STEPS: Default = Default::Depends("all epochs");
