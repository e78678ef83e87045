//! The `recipe` block.

use super::{BlockSpec, Default, Kind, SEED, field};

pub(super) const RECIPE: BlockSpec = BlockSpec {
    kind: Kind::Recipe,
    word: "recipe",
    help: "Names the run and seeds everything in it. Without it, the file gives the name.",
    example: r#"recipe "size-vs-specialization" { seed = 42 }"#,
    fields: &[field(
        "seed",
        SEED,
        Default::Value("42"),
        "the seed that every other seed defaults to",
    )],
};
