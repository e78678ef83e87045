//! `tokenize`: a conversation through the model's chat template.

use super::model::read_text;
use super::{Blame, Failure, Outcome, output};
use crate::text::template::{ChatTemplate, Message, Role};
use crate::text::tokenizer::Tokenizer;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Arguments of `tokenize`.
#[derive(clap::Args)]
pub struct Args {
    /// Model directory with tokenizer.json and tokenizer_config.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// JSON list of {"role", "content"} messages; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    chat: PathBuf,
    /// Print an object with text (generation prompt included) and ids
    #[arg(long)]
    json: bool,
}

/// A conversation from a file.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Chat {
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(with = "RoleName")]
    role: Role,
    content: String,
}

/// [`Role`] in a file.
#[derive(Deserialize)]
#[serde(remote = "Role", rename_all = "snake_case")]
enum RoleName {
    System,
    User,
    Assistant,
}

/// Reads a conversation.
pub fn read_chat(path: &Path) -> Result<Chat, Failure> {
    let text = read_text(path)?;
    let expected = "a JSON list of messages was expected, such as [{\"role\": \"user\", \"content\": \"...\"}]";
    serde_json::from_str(&text)
        .with_context(|| format!("{}: {expected}", path.display()))
        .input()
}

impl Chat {
    /// The text of the conversation with the generation prompt.
    pub fn render(&self, template: &ChatTemplate) -> Result<String, Failure> {
        let turns = self.turns.iter();
        let messages: Vec<Message> = turns
            .map(|turn| Message {
                role: turn.role,
                content: &turn.content,
            })
            .collect();
        template.render(&messages, true).input()
    }
}

#[derive(Serialize)]
struct Tokenized {
    text: String,
    ids: Vec<u32>,
}

/// Runs `tokenize`.
pub fn run(args: Args) -> Outcome {
    let template = ChatTemplate::load(&args.model).input()?;
    let tokenizer = Tokenizer::load(&args.model).input()?;
    let text = read_chat(&args.chat)?.render(&template)?;
    let ids = tokenizer.encode_rendered(&text).input()?;
    if args.json {
        return output::json(&Tokenized { text, ids });
    }
    output::line(&text)?;
    output::line(&format!("{} tokens: {ids:?}", ids.len()))
}
