//! A model's chat template: a conversation to the text that the model was trained to read.
//!
//! Holds finding the template of a model directory and rendering it exactly as Transformers does
//! (Jinja with `trim_blocks`, `lstrip_blocks`, Python's string methods and `tojson`). It refuses to
//! tokenise. The template writes BOS itself where the model wants one: rendered text is encoded
//! without special tokens.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use regex::Regex;

use super::TextError;
use super::date::Date;
use super::model_files::ModelFile;

/// The special tokens that a template may name.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// The template's name inside the Jinja environment; error messages of the engine quote it.
const NAME: &str = "chat_template";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The question.
    User,
    /// The model's answer.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: &'a str,
}

/// A compiled chat template with the special tokens and the date that it may write.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    identity: blake3::Hasher,
    date: Date,
}

impl ChatTemplate {
    /// Loads the template of a model directory: `chat_template.jinja` if there is one, else the
    /// `chat_template` of `tokenizer_config.json` (of several named ones, `default`).
    ///
    /// # Errors
    /// When there is no template, or it is not valid Jinja, or a file cannot be used.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let config = ModelFile::read(dir, "tokenizer_config.json")?;
        let beside = dir.join("chat_template.jinja");
        let (path, source) = match std::fs::read_to_string(&beside) {
            Ok(source) => (beside, source),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(TextError::Read {
                    path: beside,
                    source: e,
                });
            }
            Err(_) => {
                let inside = config.as_ref().map(template_of).transpose()?.flatten();
                inside.ok_or_else(|| TextError::NoTemplate {
                    dir: dir.to_owned(),
                })?
            }
        };
        let mut special_tokens = Vec::new();
        for name in SPECIAL_TOKENS {
            let token = config
                .as_ref()
                .map(|c| c.special_token(name))
                .transpose()?
                .flatten();
            special_tokens.extend(token.map(|token| (name, token)));
        }
        Self::compile(path, &source, &special_tokens)
    }

    /// Compiles `source`; `path` is what errors name, `special_tokens` are the variables it may use.
    ///
    /// # Errors
    /// When the source is blank or not valid Jinja.
    pub fn compile(
        path: PathBuf,
        source: &str,
        special_tokens: &[(&str, &str)],
    ) -> Result<Self, TextError> {
        let broken = |reason: String| TextError::Template {
            path: path.clone(),
            reason,
        };
        if source.trim().is_empty() {
            return Err(broken("it is empty".to_owned()));
        }
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|e| broken(e.to_string()))?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        let plain = without_generation_tags(source).map_err(|e| broken(e.to_string()))?;
        environment
            .add_template_owned(NAME, plain)
            .map_err(|e| broken(e.to_string()))?;

        for &(name, token) in special_tokens {
            environment.add_global(name.to_owned(), token);
        }

        let mut identity = blake3::Hasher::new();
        for part in special_tokens
            .iter()
            .flat_map(|(name, token)| [*name, *token])
            .chain([source])
        {
            identity
                .update(&part.len().to_le_bytes())
                .update(part.as_bytes());
        }
        let template = Self {
            path,
            environment,
            identity,
            date: Date::default(),
        };
        Ok(template.with_date(Date::default()))
    }

    /// The same template with another day for `strftime_now`.
    pub fn with_date(mut self, date: Date) -> Self {
        self.date = date;
        self.environment
            .add_function("strftime_now", move |format: String| {
                date.format(&format).map_err(|directive| {
                    let detail = format!("strftime_now does not know `{directive}`");
                    Error::new(ErrorKind::InvalidOperation, detail)
                })
            });
        self
    }

    /// The text of a conversation. With `generation_prompt` it ends where the answer begins.
    ///
    /// # Errors
    /// When the template fails or raises.
    pub fn render(
        &self,
        messages: &[Message],
        generation_prompt: bool,
    ) -> Result<String, TextError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.name(), content => m.content })
            .collect();
        let variables = context! {
            messages => messages,
            tools => (),
            documents => (),
            add_generation_prompt => generation_prompt,
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(variables))
            .map_err(|error| self.failed(&error))
    }

    /// The file that the template was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hash of all that decides what is rendered: source, special tokens and date. For cache keys.
    pub fn content_hash(&self) -> blake3::Hash {
        let Date { year, month, day } = self.date;
        let [low, high] = year.to_le_bytes();
        self.identity
            .clone()
            .update(&[low, high, month, day])
            .finalize()
    }

    fn failed(&self, error: &Error) -> TextError {
        let path = self.path.clone();
        match std::error::Error::source(error).and_then(|e| e.downcast_ref::<Raised>()) {
            Some(Raised(reason)) => TextError::TemplateRaised {
                path,
                reason: reason.clone(),
            },
            None => TextError::Template {
                path,
                reason: error.to_string(),
            },
        }
    }
}

impl Role {
    /// The name that templates compare with.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// The template in `tokenizer_config.json`: a string, or a list of `{name, template}`.
fn template_of(config: &ModelFile) -> Result<Option<(PathBuf, String)>, TextError> {
    let Some(value) = config.field("chat_template") else {
        return Ok(None);
    };
    if let Some(source) = value.as_str() {
        return Ok(Some((config.path.clone(), source.to_owned())));
    }
    let named = |template: &serde_json::Value| {
        let text = |key| {
            template
                .get(key)
                .and_then(|v| v.as_str())
                .map(str::to_owned)
        };
        Some((text("name")?, text("template")?))
    };
    let templates: Vec<(String, String)> = value
        .as_array()
        .and_then(|list| list.iter().map(named).collect())
        .ok_or_else(|| {
            config.unusable(
                "chat_template",
                value,
                "a string or a list of named templates",
            )
        })?;
    let names = templates.iter().map(|(name, _)| name.clone()).collect();
    match templates.into_iter().find(|(name, _)| name == "default") {
        Some((_, source)) => Ok(Some((config.path.clone(), source))),
        None => Err(TextError::NoDefaultTemplate {
            path: config.path.clone(),
            names,
        }),
    }
}

/// Transformers marks answers with `{% generation %}`, a tag that Jinja does not have. An `if` in its
/// place trims the white space around it alike.
fn without_generation_tags(source: &str) -> Result<String, regex::Error> {
    let opening = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?;
    let closing = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?;
    let opened = opening.replace_all(source, "{%$1 if true $2%}");
    Ok(closing.replace_all(&opened, "{%$1 endif $2%}").into_owned())
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// Python's `json.dumps(value, ensure_ascii=False)`: the library's filter with its HTML escapes undone.
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let escaped = minijinja::filters::tojson(value, indent, options)?.to_string();
    let mut out = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out += before;
        let html = [
            (r"\u003c", "<"),
            (r"\u003e", ">"),
            (r"\u0026", "&"),
            (r"\u0027", "'"),
        ];
        match html.iter().find(|(code, _)| escape.starts_with(code)) {
            Some((code, plain)) => {
                out += plain;
                rest = &escape[code.len()..];
            }
            None => {
                // In JSON an ASCII letter follows every backslash, a second backslash included.
                out += &escape[..2];
                rest = &escape[2..];
            }
        }
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASK: [Message<'static>; 1] = [Message {
        role: Role::User,
        content: "<a> & 'b' \\ \"c\"",
    }];

    fn compile(source: &str) -> Result<ChatTemplate, TextError> {
        ChatTemplate::compile("/model/x.jinja".into(), source, &[("bos_token", "<s>")])
    }

    fn render(source: &str) -> String {
        compile(source).unwrap().render(&ASK, true).unwrap()
    }

    #[test]
    fn blocks_trim_as_in_transformers() {
        let source = "{{ bos_token }}{{ eos_token }}\n  {% for m in messages %}\n{{ m.role }}:\n  {% endfor %}\nend";
        assert_eq!(render(source), "<s>\nuser:\nend");
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            render("{{ {'a': [1, true, none], 'b': 'ü'} | tojson }}"),
            r#"{"a": [1, true, null], "b": "ü"}"#
        );
        assert_eq!(
            render("{{ messages[0].content | tojson }}"),
            r#""<a> & 'b' \\ \"c\"""#
        );
        assert_eq!(render(r"{{ '\\u003c' | tojson }}"), r#""\\u003c""#);
        assert_eq!(
            render("{{ {'a': 1} | tojson(indent=4) }}"),
            "{\n    \"a\": 1\n}"
        );
    }

    #[test]
    fn generation_tags_vanish_with_their_white_space() {
        let source =
            "{% for m in messages %}\n{% generation %}\nx {%- endgeneration %}\n!{% endfor %}";
        assert_eq!(render(source), "x!");
        assert_eq!(render("a {%- generation -%} b {%- endgeneration %}"), "ab");
    }

    #[test]
    fn namespaces_loop_controls_and_python_methods_work() {
        let source = "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ ' a '.strip().upper() }}{{ 'x.y'.split('.')[-1] }}";
        assert_eq!(render(source), "3Ay");
    }

    #[test]
    fn the_date_is_fixed_until_it_is_set() {
        let template = compile("{{ strftime_now('%d %b %Y') }}").unwrap();
        assert_eq!(template.render(&ASK, true).unwrap(), "26 Jul 2024");
        let before = template.content_hash();
        let later = template.with_date(Date {
            year: 2025,
            month: 3,
            day: 5,
        });
        assert_eq!(later.render(&ASK, true).unwrap(), "05 Mar 2025");
        assert_ne!(before, later.content_hash());
    }

    #[test]
    fn errors_are_sentences() {
        let error = |source: &str| match compile(source) {
            Ok(template) => template.render(&ASK, true).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            error("{{ raise_exception('Roles must alternate') }}"),
            "the chat template in `/model/x.jinja` refuses this conversation: Roles must alternate"
        );
        assert_eq!(
            error(" \n"),
            "the chat template in `/model/x.jinja` is broken: it is empty"
        );
        assert!(error("\n{% for %}").contains("chat_template:2"));
        assert!(error("{{ messages[9]['role'] }}").contains("undefined"));
        assert!(error("{{ strftime_now('%Q') }}").contains("`%Q`"));
    }

    #[test]
    fn named_templates_need_a_default() {
        let dir = tempfile::tempdir().unwrap();
        let load = |config: &str| {
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
            ChatTemplate::load(dir.path())
        };
        let both = r#"{"eos_token": {"content": "</s>"}, "chat_template": [
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "d{{ eos_token }}"}]}"#;
        assert_eq!(load(both).unwrap().render(&ASK, true).unwrap(), "d</s>");
        let error = load(&both.replace("default", "rag"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(r#"["tool_use", "rag"]"#), "{error}");
        let error = load("{}").unwrap_err().to_string();
        assert!(
            error.contains("no chat template; use the model's Instruct version"),
            "{error}"
        );
        assert!(
            load(r#"{"chat_template": 7}"#)
                .unwrap_err()
                .to_string()
                .contains("is 7")
        );
        assert!(load("{").unwrap_err().to_string().contains("line 1"));

        std::fs::write(dir.path().join("chat_template.jinja"), "beside").unwrap();
        assert_eq!(load(both).unwrap().render(&ASK, true).unwrap(), "beside");
    }

    proptest! {
        #[test]
        fn no_template_makes_it_panic(
            words in prop::collection::vec(prop::sample::select(vec![
                "{{", "}}", "{%", "-%}", "%}", "{#", "#}", " for m in messages ", " endfor ", "if ", "endif",
                " generation ", " endgeneration ", "messages", "[1:]", "[-1]", "['role']", ".content", "|trim",
                "|tojson", " set x = ", "(", ")", "'", "\n", "ü", "1", "raise_exception", "strftime_now", "\\", "loop",
            ]), 0..24)
        ) {
            if let Ok(template) = compile(&words.concat()) {
                let _ = template.render(&ASK, true);
            }
        }

        #[test]
        fn no_tokenizer_config_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..60), template in any::<String>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let text = serde_json::json!({ "chat_template": template, "bos_token": template }).to_string();
            for config in [bytes, text.into_bytes()] {
                std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
                if let Ok(template) = ChatTemplate::load(dir.path()) {
                    let _ = template.render(&ASK, false);
                }
            }
        }
    }
}
