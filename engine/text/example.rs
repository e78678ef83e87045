//! A row becomes a prompt, or a prompt with its answer to be learnt.
//!
//! Holds the one renderer that training and inference share. It refuses to shorten anything but the
//! note: system text, template and answer are always whole. A prompt is the same tokens in training
//! and inference, and the labels of an example start where its prompt ends.
//!
//! How long a note may be is decided without its answer, which inference does not know: every task
//! keeps room for its answer's fixed words, 16 tokens for a code and 128 for a title. Only an
//! answer longer than that takes more from its note in training.

use std::collections::BTreeSet;

use medft_dsl::plan::Task;
use rayon::prelude::*;

use super::TextError;
use super::answer::{AnswerForm, Notice, conversation};
use super::placeholder::{Placeholder, RecipeText};
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;

/// Tokens kept for a code: the longest ICD-10-CM code (`S72.001A`) has 9 where digits stand alone.
const CODE_ROOM: usize = 16;
/// Tokens kept for a title: the longest ICD-10-CM titles have about 230 characters.
const TITLE_ROOM: usize = 128;

/// What the renderer needs of a row.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The note.
    pub text: &'a str,
    /// The gold code at the task's level.
    pub code: &'a str,
    /// Its official title.
    pub title: Option<&'a str>,
}

/// Tokens up to where the answer begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Tokens of the note that were cut from its end.
    pub cut: usize,
}

/// A prompt followed by its answer and the end token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids of all three.
    pub ids: Vec<u32>,
    /// Where the answer begins; from here on every token is learnt. Never 0, always inside `ids`.
    pub target_start: usize,
    /// Tokens of the note that were cut from its end.
    pub cut: usize,
}

impl Example {
    /// Positions of the tokens that are learnt, each from the one before it.
    pub fn targets(&self) -> std::ops::Range<usize> {
        self.target_start.max(1)..self.ids.len()
    }
}

/// What `max_tokens` did to a set of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Rows whose note was shortened.
    pub rows: usize,
    /// Tokens cut from them.
    pub tokens: usize,
}

impl FromIterator<usize> for Cuts {
    /// From the `cut` of every row.
    fn from_iter<I: IntoIterator<Item = usize>>(cuts: I) -> Self {
        cuts.into_iter()
            .filter(|&cut| cut > 0)
            .fold(Self::default(), |sum, cut| Self {
                rows: sum.rows + 1,
                tokens: sum.tokens + cut,
            })
    }
}

/// Renders the rows of one task for one model.
#[derive(Debug)]
pub struct Renderer<'a> {
    task: &'a Task,
    template: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    user: RecipeText,
    answer: RecipeText,
    form: AnswerForm<'a>,
    max_tokens: usize,
    answer_room: usize,
    notices: Vec<Notice>,
}

impl<'a> Renderer<'a> {
    /// Prepares a task for a model.
    ///
    /// # Errors
    /// When the recipe's texts have wrong placeholders, the template cannot be trained with, or the
    /// prompt of an empty note leaves no room for an answer.
    pub fn new(
        task: &'a Task,
        template: &'a ChatTemplate,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, TextError> {
        let placeholder = |field, found, remedy| TextError::Placeholder {
            task: task.name.clone(),
            field,
            found,
            remedy,
        };
        let user = RecipeText::parse(&task.user, &[Placeholder::Text]).map_err(|name| {
            let found = format!("`{{{{ {name} }}}}`");
            placeholder("user", found, "only `{{ text }}` may stand there")
        })?;
        if user.count(Placeholder::Text) == 0 {
            let found = "no placeholder".to_owned();
            return Err(placeholder(
                "user",
                found,
                "write `{{ text }}` where the note goes",
            ));
        }
        let answer = RecipeText::parse(&task.answer, &[Placeholder::Code, Placeholder::Title])
            .map_err(|name| {
                let found = format!("`{{{{ {name} }}}}`");
                placeholder(
                    "answer",
                    found,
                    "only `{{ code }}` and `{{ title }}` may stand there",
                )
            })?;
        if answer.count(Placeholder::Code) + answer.count(Placeholder::Title) == 0 {
            let found = "no placeholder".to_owned();
            return Err(placeholder(
                "answer",
                found,
                "write `{{ code }}` where the code goes",
            ));
        }
        let (form, notices) = AnswerForm::derive(template, tokenizer, task.system.as_deref())?;
        let fixed = form.tokens(&answer.fill(|_| Ok("A"))?, &task.name)?.len();
        let answer_room = fixed
            + CODE_ROOM * answer.count(Placeholder::Code)
            + TITLE_ROOM * answer.count(Placeholder::Title);
        let max_tokens = usize::try_from(task.max_tokens).unwrap_or(usize::MAX);
        let renderer = Self {
            task,
            template,
            tokenizer,
            user,
            answer,
            form,
            max_tokens,
            answer_room,
            notices,
        };
        renderer.prompt("")?;
        Ok(renderer)
    }

    /// The prompt of a note.
    ///
    /// # Errors
    /// When the template or the tokenizer fails on it.
    pub fn prompt(&self, note: &str) -> Result<Prompt, TextError> {
        self.fit(note, self.answer_room)
    }

    /// The training example of a row.
    ///
    /// # Errors
    /// When the row has no answer, its answer does not fit, or template or tokenizer fail on it.
    pub fn example(&self, row: &Row) -> Result<Example, TextError> {
        let answer = self.answer.fill(|placeholder| match placeholder {
            Placeholder::Code => Ok(row.code),
            Placeholder::Title => row.title.ok_or_else(|| TextError::NoValue {
                task: self.task.name.clone(),
                placeholder: placeholder.name(),
            }),
            Placeholder::Text => Ok(row.text),
        })?;
        let target = self.form.tokens(&answer, &self.task.name)?;
        let Prompt { mut ids, cut } = self.fit(row.text, self.answer_room.max(target.len()))?;
        let target_start = ids.len();
        ids.extend(target);
        Ok(Example {
            ids,
            target_start,
            cut,
        })
    }

    /// The prompts of many notes, in their order.
    ///
    /// # Errors
    /// That of the first note that fails, with its index.
    pub fn prompts(&self, notes: &[&str]) -> Result<Vec<Prompt>, TextError> {
        in_order(notes, |note| self.prompt(note))
    }

    /// The training examples of many rows, in their order.
    ///
    /// # Errors
    /// That of the first row that fails, with its index.
    pub fn examples(&self, rows: &[Row]) -> Result<Vec<Example>, TextError> {
        in_order(rows, |row| self.example(row))
    }

    /// What the user should hear once.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Ids at which generation stops: the model's end tokens and the one that the template writes.
    pub fn stop_ids(&self) -> BTreeSet<u32> {
        let end = [self.form.end()];
        self.tokenizer
            .end_ids()
            .iter()
            .copied()
            .chain(end)
            .collect()
    }

    /// The prompt of the longest beginning of `note` that leaves `room` tokens of `max_tokens`.
    ///
    /// It starts from the excess over the limit and only ever shortens, so it may keep a token or two
    /// less than possible where tokens merge at the cut.
    fn fit(&self, note: &str, room: usize) -> Result<Prompt, TextError> {
        let mut ids = self.encode(note)?;
        let mut ends = Vec::new();
        let mut kept = 0;
        while ids.len().saturating_add(room) > self.max_tokens {
            if ends.is_empty() {
                ends = self.tokenizer.token_ends(note)?;
                kept = ends.len();
            }
            if kept == 0 {
                return Err(TextError::NoRoom {
                    task: self.task.name.clone(),
                    prompt: ids.len(),
                    answer: room,
                    max_tokens: self.max_tokens,
                });
            }
            let excess = ids.len() + room - self.max_tokens;
            kept = kept.saturating_sub(excess.div_ceil(self.user.count(Placeholder::Text)));
            let end = kept
                .checked_sub(1)
                .and_then(|last| ends.get(last))
                .copied()
                .unwrap_or(0);
            ids = self.encode(note.get(..end).unwrap_or(note))?;
        }
        Ok(Prompt {
            ids,
            cut: ends.len() - kept,
        })
    }

    /// The prompt of a whole note, however long.
    fn encode(&self, note: &str) -> Result<Vec<u32>, TextError> {
        let user = self.user.fill(|_| Ok(note))?;
        let messages = conversation(self.task.system.as_deref(), &user);
        self.tokenizer
            .encode_rendered(&self.template.render(&messages, true)?)
    }
}

/// `one` of every row, on all cores; the first error in the rows' order.
fn in_order<R: Sync, T: Send>(
    rows: &[R],
    one: impl Fn(&R) -> Result<T, TextError> + Sync + Send,
) -> Result<Vec<T>, TextError> {
    let results: Vec<_> = rows.par_iter().map(one).collect();
    let numbered = results.into_iter().enumerate();
    numbered
        .map(|(row, result)| {
            result.map_err(|source| TextError::Row {
                row,
                source: Box::new(source),
            })
        })
        .collect()
}
