//! The field table: every block, field and argument of the language.
//!
//! Holds the types that the table is written in, and its blocks, one file each. It refuses to hold
//! code that checks or prints. A field that is not here does not exist, and a default is written as a
//! recipe would write it, so the checker reads both in the same way.

mod data;
pub(crate) mod describe;
mod evaluate;
mod model;
mod recipe;
mod task;
mod train;

/// The kinds of blocks, in the order of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Recipe,
    Data,
    Task,
    Model,
    Train,
    Evaluate,
    Compare,
}

/// A kind of block.
#[derive(Debug)]
pub(crate) struct BlockSpec {
    pub(crate) kind: Kind,
    /// The word before the block's name.
    pub(crate) word: &'static str,
    pub(crate) help: &'static str,
    /// A block that checks (with the others of its example recipe).
    pub(crate) example: &'static str,
    pub(crate) fields: &'static [FieldSpec],
}

/// A field of a block, or an argument of a call.
#[derive(Debug)]
pub(crate) struct FieldSpec {
    pub(crate) name: &'static str,
    pub(crate) ty: Ty,
    pub(crate) default: Default,
    /// One line.
    pub(crate) help: &'static str,
}

/// What a field means when it is left out.
#[derive(Debug)]
pub(crate) enum Default {
    /// It must be given.
    Required,
    /// This value, in the words of a recipe.
    Value(&'static str),
    /// Something that depends on the rest of the recipe, in words for people.
    Depends(&'static str),
}

/// A call such as `lora(...)`.
#[derive(Debug)]
pub(crate) struct CallSpec {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) params: &'static [FieldSpec],
}

/// What a value may be.
#[derive(Debug)]
pub(crate) enum Ty {
    /// A whole number and what it counts.
    Int {
        low: u64,
        high: u64,
        unit: &'static str,
    },
    /// A number; a `share` may be written as a percentage, too.
    Number {
        low: Bound,
        high: Bound,
        share: bool,
    },
    Bool,
    /// Any text, or any text but the empty one.
    Text {
        empty: bool,
    },
    /// A path, relative to the file that names it.
    Path,
    /// A string of one character.
    Char,
    /// One of these words; where `quoted`, a string does, too.
    Word {
        words: &'static [WordSpec],
        quoted: bool,
    },
    /// The name of a block of one of these kinds.
    Block(&'static [Kind]),
    /// One of these calls.
    Call(&'static [CallSpec]),
    /// At least one of these, without repetition.
    List(&'static Ty),
    /// The first of these that fits the value's form.
    OneOf(&'static [Ty]),
}

/// A word and one line about it.
#[derive(Debug)]
pub(crate) struct WordSpec {
    pub(crate) word: &'static str,
    pub(crate) help: &'static str,
}

/// An end of a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    None,
    Including(f64),
    Excluding(f64),
}

/// Every kind of block, in the order of a plan.
pub(crate) static BLOCKS: [BlockSpec; 7] = [
    recipe::RECIPE,
    data::DATA,
    task::TASK,
    model::MODEL,
    train::TRAIN,
    evaluate::EVALUATE,
    evaluate::COMPARE,
];

impl Kind {
    pub(crate) fn spec(self) -> &'static BlockSpec {
        let [recipe, data, task, model, train, evaluate, compare] = &BLOCKS;
        match self {
            Kind::Recipe => recipe,
            Kind::Data => data,
            Kind::Task => task,
            Kind::Model => model,
            Kind::Train => train,
            Kind::Evaluate => evaluate,
            Kind::Compare => compare,
        }
    }

    /// The word before a block's name.
    pub(crate) fn word(self) -> &'static str {
        self.spec().word
    }
}

impl Ty {
    /// The alternatives, each on its own.
    fn forms(&self) -> &[Ty] {
        match self {
            Ty::OneOf(types) => types,
            one => std::slice::from_ref(one),
        }
    }

    /// The calls that this type takes.
    pub(crate) fn calls(&'static self) -> impl Iterator<Item = &'static CallSpec> {
        self.forms().iter().flat_map(|ty| match ty {
            Ty::Call(calls) => *calls,
            _ => &[],
        })
    }

    /// The bare words that this type takes.
    pub(crate) fn words(&'static self) -> impl Iterator<Item = &'static WordSpec> {
        self.forms().iter().flat_map(|ty| match ty {
            Ty::Word { words, .. } => *words,
            _ => &[],
        })
    }

    /// Whether a bare word is one of the type's words, or one of its calls without parentheses.
    pub(crate) fn takes_word(&'static self, word: &str) -> bool {
        self.words().any(|w| w.word == word) || self.calls().any(|call| call.name == word)
    }

    /// The kinds of blocks that a name may stand for.
    pub(crate) fn blocks(&self) -> Vec<Kind> {
        let kinds = |ty: &Ty| match ty {
            Ty::Block(kinds) => *kinds,
            _ => &[],
        };
        self.forms().iter().flat_map(kinds).copied().collect()
    }

    /// What a list of this type holds.
    pub(crate) fn item(&'static self) -> Option<&'static Ty> {
        self.forms().iter().find_map(|ty| match ty {
            Ty::List(item) => Some(*item),
            _ => None,
        })
    }
}

const fn field(name: &'static str, ty: Ty, default: Default, help: &'static str) -> FieldSpec {
    FieldSpec {
        name,
        ty,
        default,
        help,
    }
}

const fn word(word: &'static str, help: &'static str) -> WordSpec {
    WordSpec { word, help }
}

const fn int(low: u64, high: u64, unit: &'static str) -> Ty {
    Ty::Int { low, high, unit }
}

const fn number(low: Bound, high: Bound) -> Ty {
    Ty::Number {
        low,
        high,
        share: false,
    }
}

const fn share(low: Bound, high: Bound) -> Ty {
    Ty::Number {
        low,
        high,
        share: true,
    }
}

const NAME: Ty = Ty::Text { empty: false };
const SEED: Ty = int(0, u64::MAX, "");
const NO_LIMIT: Default = Default::Depends("no limit");
const RECIPE_SEED: Default = Default::Depends("the recipe's seed");

/// A number of rows that cuts a set short.
const fn limit(help: &'static str) -> FieldSpec {
    field("limit", int(1, u64::MAX, "rows"), NO_LIMIT, help)
}
