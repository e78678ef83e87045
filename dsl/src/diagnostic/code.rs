//! The stable codes of errors and warnings.
//!
//! Holds each code's number and meaning, nothing else. A number is never reused for another meaning,
//! and every code has a fixture in `dsl/tests/diagnostics/`.

macro_rules! codes {
    ($($name:ident = $id:literal, $meaning:literal;)*) => {
        /// What is wrong, independent of the sentence that says it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
        }

        impl Code {
            /// Every code, in the order of their numbers.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The number that users see and search for.
            pub fn id(self) -> &'static str {
                match self { $(Code::$name => $id,)* }
            }

            /// One line for the reference page.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => $meaning,)* }
            }
        }
    };
}

codes! {
    Unexpected = "R0001", "something stands where the grammar wants something else";
    OpenString = "R0002", "a string does not end";
    BadEscape = "R0003", "an escape in a string is unknown";
    BadNumber = "R0004", "a number is malformed, too large, or has an unknown unit";
    TooDeep = "R0005", "values or blocks are nested too deeply";
    Unclosed = "R0006", "a bracket or brace is never closed";
    UnknownBlock = "R0101", "no such kind of block";
    UnknownField = "R0102", "the block has no such field";
    UnknownCall = "R0103", "no such call, or not one that this field takes";
    UnknownArgument = "R0104", "the call has no such argument";
    UnknownName = "R0105", "no block, `let` or word of that name is in scope";
    WrongBlock = "R0106", "the name belongs to another kind of block";
    Duplicate = "R0107", "something is given twice";
    Missing = "R0108", "a required field, argument or name is missing";
    Cycle = "R0109", "`let` values lead back to themselves";
    BadName = "R0110", "the name cannot be used here";
    Ambiguous = "R0111", "a block was left out, and there is not exactly one to take";
    WrongType = "R0201", "the value has the wrong type";
    OutOfRange = "R0202", "the value is outside its range";
    Positional = "R0203", "too many arguments, or one without a name after a named one";
    UnknownPlaceholder = "R0204", "a placeholder in `{{ }}` is unknown here";
    MissingPlaceholder = "R0205", "a prompt lacks the placeholder that it needs";
    Shares = "R0206", "the shares of a split do not sum to 100%";
    Conflict = "R0207", "two settings exclude each other";
    NotEvaluated = "R0208", "the baseline is not one of the compared systems";
    BadSweep = "R0209", "a sweep or a dotted setting does not fit its block";
    CannotRead = "R0301", "a used file cannot be read";
    UseCycle = "R0302", "files use each other in a circle";
    TooLarge = "R0303", "a file is too large, or too many files are used";
    BadOverride = "R0401", "a `--set` names nothing in the recipe";
    Unused = "W0001", "a block or `let` is never used";
    NoEffect = "W0002", "a setting has no effect here";
}

impl Code {
    /// Warnings do not stop a recipe.
    pub fn is_warning(self) -> bool {
        self.id().starts_with('W')
    }
}
