//! How a chat template writes an answer: what the model must produce after a prompt.
//!
//! Holds the tokens of answer and end token, read off the template itself. It refuses to know any
//! model by name. The answer's ids never depend on the prompt: they are encoded as they stand behind a
//! special token, which is how the model produces them.

use std::fmt;

use super::TextError;
use super::template::{ChatTemplate, Message, Role};
use super::tokenizer::Tokenizer;

/// Stands for a note and an answer when the template is probed.
const PROBE_NOTE: &str = "fever";
const PROBE_ANSWER: &str = "R50.9";

/// Something to tell the user once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The template writes the system text only while no answer follows (Mistral v0.3).
    SystemTextDropped {
        /// The template's file.
        template: String,
    },
    /// Other programs would not stop where this template ends an answer.
    EndTokenNotListed {
        /// The token after an answer.
        token: String,
        /// Its id.
        id: u32,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::SystemTextDropped { template } => write!(
                f,
                "the chat template in `{template}` drops the system text once an answer follows; \
                 training keeps it, so that the model is trained on the prompt that it will be asked with"
            ),
            Notice::EndTokenNotListed { token, id } => write!(
                f,
                "the chat template ends an answer with `{token}`, which is not among the model's end \
                 tokens; this engine stops at it, for other programs add {id} to `eos_token_id` in \
                 generation_config.json"
            ),
        }
    }
}

/// The form of an answer under one template and tokenizer.
#[derive(Debug)]
pub struct AnswerForm<'a> {
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    /// A conversation that the template does not change when an answer follows.
    question: Vec<Message<'a>>,
    /// That conversation, rendered up to where the answer begins.
    opening: String,
    end: u32,
    /// The end token's text.
    end_text: String,
}

impl<'a> AnswerForm<'a> {
    /// Reads the form off the template by rendering a short question with and without an answer, with
    /// the system text if the template keeps it then, without it otherwise.
    ///
    /// # Errors
    /// When the template refuses the conversation, rewrites the question in either case, leaves out
    /// the answer, or ends it without a special token.
    pub fn derive(
        template: &'a ChatTemplate,
        tokenizer: &'a Tokenizer,
        system: Option<&'a str>,
    ) -> Result<(Self, Vec<Notice>), TextError> {
        let cannot = |found: &str| TextError::TemplateForm {
            path: template.path().to_owned(),
            found: found.to_owned(),
        };
        let mut notices = Vec::new();
        let mut question = conversation(system, PROBE_NOTE);
        let mut form = probe(template, &question)?;
        if form.is_none() && system.is_some() {
            question = conversation(None, PROBE_NOTE);
            form = probe(template, &question)?;
            let template = template.path().display().to_string();
            notices.push(Notice::SystemTextDropped { template });
        }
        let (opening, closing) =
            form.ok_or_else(|| cannot("it rewrites the question when an answer follows"))?;
        if opening.is_empty() {
            return Err(cannot("it writes nothing before an answer"));
        }
        let (_, after) = closing
            .rsplit_once(PROBE_ANSWER)
            .ok_or_else(|| cannot("it leaves out the assistant's answer"))?;
        let (end, end_text) = tokenizer
            .encode_rendered(after)?
            .into_iter()
            .filter(|&id| tokenizer.is_special(id))
            .find_map(|id| Some((id, tokenizer.token(id)?)))
            .ok_or_else(|| {
                cannot("no special token follows an answer, so that no model learns to stop")
            })?;
        if !tokenizer.end_ids().contains(&end) {
            notices.push(Notice::EndTokenNotListed {
                token: end_text.clone(),
                id: end,
            });
        }
        Ok((
            Self {
                template,
                tokenizer,
                question,
                opening,
                end,
                end_text,
            },
            notices,
        ))
    }

    /// Ids of `answer` as the template writes it, up to and with the end token; what the template
    /// writes behind that (a line break) is not part of an answer. `task` is what errors name.
    ///
    /// # Errors
    /// When the answer is blank or contains the end token, or the template fails on it.
    pub fn tokens(&self, answer: &str, task: &str) -> Result<Vec<u32>, TextError> {
        if answer.trim().is_empty() {
            return Err(TextError::NoTarget {
                task: task.to_owned(),
            });
        }
        if answer.contains(&self.end_text) {
            let token = self.end_text.clone();
            return Err(TextError::EndInAnswer {
                task: task.to_owned(),
                token,
            });
        }
        let whole = render_answered(self.template, &self.question, answer)?;
        let written = whole.strip_prefix(&self.opening);
        // The end token in front only holds its place: a tokenizer may treat the start of a text
        // apart (Metaspace puts a space there), but never what follows a special token.
        let ids = match written {
            Some(written) => self
                .tokenizer
                .encode_rendered(&format!("{}{written}", self.end_text))?,
            None => Vec::new(),
        };
        match ids.split_first() {
            Some((first, ids)) if *first == self.end && ids.contains(&self.end) => {
                let length = ids.iter().take_while(|id| **id != self.end).count() + 1;
                Ok(ids.iter().take(length).copied().collect())
            }
            _ => Err(TextError::TemplateForm {
                path: self.template.path().to_owned(),
                found: format!(
                    "it does not end the answer `{answer}` as it ended `{PROBE_ANSWER}`"
                ),
            }),
        }
    }

    /// The token that ends an answer.
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// The turns before an answer.
pub(super) fn conversation<'a>(system: Option<&'a str>, user: &'a str) -> Vec<Message<'a>> {
    let turn = |role, content| Message { role, content };
    let system = system.map(|text| turn(Role::System, text));
    system.into_iter().chain([turn(Role::User, user)]).collect()
}

/// `question` rendered up to the answer, and what follows once there is one; `None` if the template
/// then writes the question in another way.
fn probe(
    template: &ChatTemplate,
    question: &[Message],
) -> Result<Option<(String, String)>, TextError> {
    let opening = template.render(question, true)?;
    let whole = render_answered(template, question, PROBE_ANSWER)?;
    let closing = whole.strip_prefix(&opening).map(str::to_owned);
    Ok(closing.map(|closing| (opening, closing)))
}

fn render_answered(
    template: &ChatTemplate,
    question: &[Message],
    answer: &str,
) -> Result<String, TextError> {
    let mut messages = question.to_vec();
    messages.push(Message {
        role: Role::Assistant,
        content: answer,
    });
    template.render(&messages, false)
}
