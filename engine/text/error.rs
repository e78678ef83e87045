//! What can go wrong between a row of data and a batch of tokens.
//!
//! Holds one enum for the whole room. It refuses to hold prose that depends on the caller: a message
//! names the whole path or the task, what was found and what helps.

use std::path::PathBuf;

/// Why text could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model directory cannot be read.
    #[error("cannot read `{}`: {source}{}", path.display(), remedy(source))]
    Read {
        /// The whole path.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the model directory is not the JSON that it should be.
    #[error("`{}` cannot be used: {found}, needed {needed}; download the model again", path.display())]
    Json {
        /// The whole path.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        found: String,
        /// What it should be.
        needed: &'static str,
    },
    /// The tokenizers library refuses the file.
    #[error("`{}` is not a usable tokenizer: {reason}; download the model again", path.display())]
    Tokenizer {
        /// The whole path.
        path: PathBuf,
        /// The library's reason.
        reason: String,
    },
    /// A text cannot be encoded, or tokens cannot be decoded.
    #[error("the tokenizer `{}` failed: {reason}", path.display())]
    Encode {
        /// The whole path.
        path: PathBuf,
        /// The library's reason.
        reason: String,
    },
    /// The tokenizer has tokens that the model does not know.
    #[error("the tokenizer `{}` has ids up to {largest}, and the model's `vocab_size` is {model}: they are not from the same model", path.display())]
    VocabularyMismatch {
        /// The whole path.
        path: PathBuf,
        /// Largest id of the tokenizer.
        largest: u32,
        /// `vocab_size` of config.json.
        model: usize,
    },
    /// The model has no chat template.
    #[error("`{}` has no chat template; use the model's Instruct version, or put a `chat_template.jinja` into that folder", dir.display())]
    NoTemplate {
        /// The model directory.
        dir: PathBuf,
    },
    /// Several named templates and no default one.
    #[error("`{}` has the chat templates {names:?} and none is named `default`; put the one to use into `chat_template.jinja` beside it", path.display())]
    NoDefaultTemplate {
        /// The whole path.
        path: PathBuf,
        /// The names.
        names: Vec<String>,
    },
    /// The template is not valid Jinja, or failed while it ran.
    #[error("the chat template in `{}` is broken: {reason}", path.display())]
    Template {
        /// The whole path.
        path: PathBuf,
        /// The template engine's reason, with the line.
        reason: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template in `{}` refuses this conversation: {reason}", path.display())]
    TemplateRaised {
        /// The whole path.
        path: PathBuf,
        /// The template's own words.
        reason: String,
    },
    /// The template does not write what it is given.
    #[error("the chat template in `{}` cannot be trained with: {found}", path.display())]
    TemplateForm {
        /// The whole path.
        path: PathBuf,
        /// What it does.
        found: String,
    },
    /// A recipe text uses a placeholder that it cannot have, or lacks the one that it needs.
    #[error("task `{task}`: {found} in `{field}`; {remedy}")]
    Placeholder {
        /// The task block.
        task: String,
        /// `user` or `answer`.
        field: &'static str,
        /// What is wrong.
        found: String,
        /// What would be right.
        remedy: &'static str,
    },
    /// The row has no value for a placeholder of the answer.
    #[error("task `{task}`: the answer needs `{{{{ {placeholder} }}}}`, and the row has none")]
    NoValue {
        /// The task block.
        task: String,
        /// The placeholder's name.
        placeholder: &'static str,
    },
    /// The row's answer is blank, so that nothing would be learnt from it.
    #[error("task `{task}`: the answer is blank; drop the row or fill in its code")]
    NoTarget {
        /// The task block.
        task: String,
    },
    /// The answer contains the token that ends answers.
    #[error(
        "task `{task}`: the answer contains `{token}`, which ends an answer; remove it from the row"
    )]
    EndInAnswer {
        /// The task block.
        task: String,
        /// The end token.
        token: String,
    },
    /// Template and answer alone do not fit.
    #[error("task `{task}`: the prompt without any note has {prompt} tokens and the answer needs {answer}, but `max_tokens` is {max_tokens}; set it to more than {}", prompt + answer)]
    NoRoom {
        /// The task block.
        task: String,
        /// Tokens of the prompt with an empty note.
        prompt: usize,
        /// Tokens kept for the answer.
        answer: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// The packed batch has more tokens than 32 bits count.
    #[error("a batch of {tokens} tokens is too large; set a smaller `micro_batch`")]
    BatchTooLarge {
        /// Tokens of the batch.
        tokens: usize,
    },
    /// An error of one row among many.
    #[error("row {row}: {source}")]
    Row {
        /// Index of the row in the list that was given.
        row: usize,
        /// What is wrong with it.
        source: Box<TextError>,
    },
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound => "; a model folder needs it, so download the model again",
        _ => "",
    }
}
