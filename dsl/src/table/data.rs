//! The `data` block: rows, the columns that matter, and how they are divided.

use super::{
    BlockSpec, Bound, CallSpec, Default, FieldSpec, Kind, NAME, RECIPE_SEED, SEED, Ty, WordSpec,
    field, limit, share, word,
};

/// Levels of the ICD-10-CM tree; the words are those of `plan::Level`.
pub(super) const LEVEL: Ty = Ty::Word {
    words: &[
        word("code", "the whole code, E11.65"),
        word("category", "its first three characters, E11"),
        word("block", "a range of categories, E08-E13"),
        word("chapter", "a chapter, CH04"),
    ],
    quoted: false,
};

const PATH: FieldSpec = field(
    "path",
    Ty::Path,
    Default::Required,
    "the file, relative to the recipe",
);

const SOURCES: &[CallSpec] = &[
    CallSpec {
        name: "hf",
        help: "A file of a dataset repository on the Hugging Face hub.",
        params: &[
            field(
                "repo",
                NAME,
                Default::Required,
                "owner and name, as in `Ahmad0067/MedSynth`",
            ),
            field(
                "file",
                NAME,
                Default::Required,
                "the file's path in the repository",
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
        name: "csv",
        help: "Comma-separated values with a header line.",
        params: &[
            PATH,
            field(
                "delimiter",
                Ty::Char,
                Default::Value("\",\""),
                "the character between two cells",
            ),
        ],
    },
    CallSpec {
        name: "jsonl",
        help: "One JSON object a line.",
        params: &[PATH],
    },
];

const COLUMN_CALL: CallSpec = CallSpec {
    name: "column",
    help: "A column by its name, blanks included; the bare string means the same.",
    params: &[field(
        "name",
        NAME,
        Default::Required,
        "the name in the header line, or the key in JSON",
    )],
};

const COLUMN: Ty = Ty::OneOf(&[Ty::Call(&[COLUMN_CALL]), NAME]);

const VIEWS: &[CallSpec] = &[
    COLUMN_CALL,
    CallSpec {
        name: "sections",
        help: "Named sections of a SOAP note, in the order given.",
        params: &[
            field(
                "column",
                COLUMN,
                Default::Required,
                "the column with the notes",
            ),
            field(
                "sections",
                Ty::List(&NAME),
                Default::Required,
                "headings, as in `[\"Subjective\", \"Objective\"]`",
            ),
        ],
    },
];

const REDACT: &[WordSpec] = &[
    word("none", "nothing"),
    word("codes", "every ICD-10 code"),
    word("titles", "every ICD-10 code and every official title"),
];

const SHARE: Ty = share(Bound::Excluding(0.0), Bound::Excluding(1.0));

const STRATIFIED: CallSpec = CallSpec {
    name: "stratified",
    help: "Shares of the rows, drawn so that each label is spread alike. They sum to 100%.",
    params: &[
        field("train", SHARE, Default::Value("70%"), "rows to train on"),
        field(
            "val",
            SHARE,
            Default::Value("15%"),
            "rows to choose the checkpoint with",
        ),
        field("test", SHARE, Default::Value("15%"), "rows to report on"),
        field(
            "by",
            LEVEL,
            Default::Value("code"),
            "labels are spread alike at this level",
        ),
        field("seed", SEED, RECIPE_SEED, "seed of the draw"),
    ],
};

pub(super) const DATA: BlockSpec = BlockSpec {
    kind: Kind::Data,
    word: "data",
    help: "Rows, the columns that matter, and how the rows are divided.",
    example: r#"data notes {
  source = csv("notes.csv")
  text   = column("note")
  code   = column("icd10")
}"#,
    fields: &[
        field(
            "source",
            Ty::Call(SOURCES),
            Default::Required,
            "where the rows come from",
        ),
        field(
            "text",
            Ty::OneOf(&[Ty::Call(VIEWS), NAME]),
            Default::Required,
            "the part of a row that the model reads",
        ),
        field(
            "code",
            COLUMN,
            Default::Required,
            "the column with the gold ICD-10-CM code",
        ),
        field(
            "redact",
            Ty::Word {
                words: REDACT,
                quoted: false,
            },
            Default::Value("none"),
            "what is hidden in the text before anybody reads it",
        ),
        field(
            "split",
            Ty::Call(&[STRATIFIED]),
            Default::Value("stratified()"),
            "how the rows are divided",
        ),
        limit("use only the first rows"),
    ],
};
