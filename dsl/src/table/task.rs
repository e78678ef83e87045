//! The `task` block: how a row becomes a conversation.

use super::data::LEVEL;
use super::{BlockSpec, Default, Kind, Ty, WordSpec, field, int, word};

const ANY_TEXT: Ty = Ty::Text { empty: true };
const NO_SYSTEM: &[WordSpec] = &[word("none", "no system message")];
const PROMPT: Default = Default::Depends("a prompt for the level");

pub(super) const TASK: BlockSpec = BlockSpec {
    kind: Kind::Task,
    word: "task",
    help: "How a row becomes a conversation: `{{ text }}` is the row's text, `{{ code }}` the gold code at the \
           task's level, `{{ title }}` its official title.",
    example: r#"task coding {
  data       = notes
  user       = "Assign the ICD-10-CM code of the main diagnosis.\n\n{{ text }}"
  max_tokens = 2048
}"#,
    fields: &[
        field(
            "data",
            Ty::Block(&[Kind::Data]),
            Default::Depends("the only data block"),
            "where the rows come from",
        ),
        field(
            "level",
            LEVEL,
            Default::Value("code"),
            "the level of the ICD-10-CM tree that is asked for",
        ),
        field(
            "system",
            Ty::OneOf(&[
                Ty::Word {
                    words: NO_SYSTEM,
                    quoted: false,
                },
                ANY_TEXT,
            ]),
            PROMPT,
            "the system message",
        ),
        field(
            "user",
            ANY_TEXT,
            PROMPT,
            "the user's message; holds `{{ text }}`",
        ),
        field(
            "answer",
            ANY_TEXT,
            Default::Value("\"{{ code }}\""),
            "the answer; holds `{{ code }}` or `{{ title }}`",
        ),
        field(
            "max_tokens",
            int(16, 131_072, "tokens"),
            Default::Value("512"),
            "prompt and answer together; the note is shortened to fit",
        ),
    ],
};
