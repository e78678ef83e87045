//! The `recipe` block.

use super::{BlockSpec, Bound, CallSpec, Default, Kind, NAME, SEED, Ty, field, int, number};

const RATES: CallSpec = CallSpec {
    name: "rates",
    help: "What time on the machine costs; nothing is looked up or guessed.",
    params: &[
        field(
            "hour",
            number(Bound::Including(0.0), Bound::None),
            Default::Required,
            "price of an hour of the machine",
        ),
        field(
            "watts",
            number(Bound::Excluding(0.0), Bound::None),
            Default::Required,
            "its mean power while it works",
        ),
        field(
            "grid",
            number(Bound::Including(0.0), Bound::None),
            Default::Required,
            "carbon dioxide of its electricity, in grams a kWh",
        ),
        field(
            "notes",
            int(1, u64::MAX, "notes"),
            Default::Required,
            "over which a training is to pay off",
        ),
        field(
            "currency",
            NAME,
            Default::Value("\"USD\""),
            "unit of the price",
        ),
    ],
};

pub(super) const RECIPE: BlockSpec = BlockSpec {
    kind: Kind::Recipe,
    word: "recipe",
    help: "Names the run and seeds everything in it. Without it, the file gives the name.",
    example: r#"recipe "size-vs-specialization" { seed = 42 }"#,
    fields: &[
        field(
            "seed",
            SEED,
            Default::Value("42"),
            "the seed that every other seed defaults to",
        ),
        field(
            "cost",
            Ty::Call(&[RATES]),
            Default::Depends("no costs in the report"),
            "prices for the report's costs a thousand notes",
        ),
    ],
};
