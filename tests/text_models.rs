//! Released templates and tokenizers: chat examples as Transformers renders them, training examples,
//! truncation. Skipped, with a word, where the files are not there.

// Helpers of tests are tests, which clippy only sees for `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use medft_dsl::plan::{Level, Task};
use medft_engine::text::TextError;
use medft_engine::text::answer::Notice;
use medft_engine::text::date::Date;
use medft_engine::text::example::{Cuts, Renderer, Row};
use medft_engine::text::template::{ChatTemplate, Message, Role};
use medft_engine::text::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

mod support;
use support::shared;

fn smollm2() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../models").into();
    let models = std::env::var_os("MEDFT_MODELS").map_or(beside, PathBuf::from);
    let dir = models.join("SmolLM2-135M-Instruct");
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: {} is not there", dir.display());
    None
}

struct Released {
    name: &'static str,
    dir: PathBuf,
    template: ChatTemplate,
    tokenizer: Tokenizer,
}

/// Every released model whose files are here. Llama 3.2 is Llama 3's folder with another config.
fn released() -> Vec<Released> {
    let models = [
        ("qwen2.5", shared("tokenizers/qwen2.5")),
        ("llama-3.1", shared("tokenizers/llama-3")),
        ("llama-3.2", shared("tokenizers/llama-3")),
        ("mistral-v0.3", shared("tokenizers/mistral-v0.3")),
        ("smollm2", smollm2()),
    ];
    let here = models
        .into_iter()
        .filter_map(|(name, dir)| Some((name, dir?)));
    here.map(|(name, dir)| {
        let template = if name == "llama-3.2" {
            let config = tempfile::tempdir().unwrap();
            let to = config.path().join("tokenizer_config.json");
            std::fs::copy(dir.join("tokenizer_config.llama-3.2.json"), to).unwrap();
            ChatTemplate::load(config.path()).unwrap()
        } else {
            ChatTemplate::load(&dir).unwrap()
        };
        Released {
            name,
            tokenizer: Tokenizer::load(&dir).unwrap(),
            template,
            dir,
        }
    })
    .collect()
}

fn messages(conversation: &Value) -> Vec<Message<'_>> {
    let turns = conversation.as_array().unwrap().iter();
    turns
        .map(|turn| Message {
            role: match turn["role"].as_str().unwrap() {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            },
            content: turn["content"].as_str().unwrap(),
        })
        .collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn conversations_equal_transformers_in_text_and_ids() {
    let Some(examples) = shared("tokenizers/chat_examples.json") else {
        return;
    };
    let examples: Value = serde_json::from_slice(&std::fs::read(examples).unwrap()).unwrap();
    for Released {
        name,
        template,
        tokenizer,
        ..
    } in released()
    {
        let template = template.with_date(Date {
            year: 2025,
            month: 3,
            day: 5,
        });
        let cases = examples["templates"][name]["cases"].as_object().unwrap();
        assert_eq!(cases.len(), 8);
        for (case, want) in cases {
            let (conversation, kind) = case.rsplit_once('.').unwrap();
            let messages = messages(&examples["conversations"][conversation]);
            let text = template.render(&messages, kind == "generate").unwrap();
            assert_eq!(text, want["text"], "{name} {case}");
            assert_eq!(
                tokenizer.encode_rendered(&text).unwrap(),
                ids(&want["ids"]),
                "{name} {case}"
            );
        }
    }
}

#[test]
fn bos_end_tokens_and_vocabularies_are_the_released_ones() {
    for Released {
        name,
        dir,
        tokenizer,
        ..
    } in released()
    {
        let (plain, ends, vocab): (&[u32], &[u32], usize) = match name {
            "qwen2.5" => (&[], &[151643, 151645], 151_665),
            "llama-3.1" | "llama-3.2" => (&[128000], &[128001, 128008, 128009], 128_256),
            "mistral-v0.3" => (&[1], &[2], 32_768),
            _ => (&[], &[2], 49_152),
        };
        assert_eq!(tokenizer.encode_plain("").unwrap(), plain, "{name}");
        assert!(tokenizer.end_ids().iter().eq(ends), "{name}");
        assert_eq!(tokenizer.vocab_size(), vocab, "{name}");
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let model = config["vocab_size"].as_u64().unwrap() as usize;
        tokenizer.check_fits(model).unwrap();
        let error = tokenizer.check_fits(vocab - 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("ids up to {}", vocab - 1)),
            "{error}"
        );
        assert_eq!(
            tokenizer.content_hash(),
            Tokenizer::load(&dir).unwrap().content_hash()
        );

        let text = "Blood pressure 140/90 – naïve 🦵";
        let ids = tokenizer.encode_plain(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
        let end = ends[ends.len() - 1];
        assert_eq!(tokenizer.decode(&[end], true).unwrap(), "");
        assert_eq!(tokenizer.id(&tokenizer.token(end).unwrap()), Some(end));
    }
}

fn task(max_tokens: u64) -> Task {
    Task {
        name: "icd10".into(),
        data: "notes".into(),
        system: Some("Answer with one ICD-10-CM code.".into()),
        user: "Code this note.\n\n{{ text }}\n\nCode:".into(),
        answer: "{{ code }}".into(),
        max_tokens,
        level: Level::Code,
    }
}

#[test]
fn an_example_is_its_prompt_then_code_then_end() {
    for Released {
        name,
        template,
        tokenizer,
        ..
    } in released()
    {
        let task = task(512);
        let renderer = Renderer::new(&task, &template, &tokenizer).unwrap();
        let row = Row {
            text: "Cough {{ code }} for 10 days.",
            code: "S72.001A",
            title: None,
        };
        let example = renderer.example(&row).unwrap();
        let (prompt, target) = example.ids.split_at(example.target_start);
        assert_eq!(prompt, renderer.prompt(row.text).unwrap().ids, "{name}");
        let text = tokenizer.decode(prompt, false).unwrap();
        assert!(
            text.contains("Answer with one ICD-10-CM code."),
            "{name}: {text}"
        );
        assert!(
            text.contains("Cough {{ code }} for 10 days."),
            "{name}: {text}"
        );

        let (end, answer) = target.split_last().unwrap();
        assert!(
            tokenizer.end_ids().contains(end) && renderer.stop_ids().contains(end),
            "{name}"
        );
        assert!(!answer.iter().any(|id| tokenizer.is_special(*id)), "{name}");
        assert_eq!(
            tokenizer.decode(answer, false).unwrap().trim_start(),
            "S72.001A",
            "{name}"
        );
        let dropped = renderer
            .notices()
            .iter()
            .any(|n| matches!(n, Notice::SystemTextDropped { .. }));
        assert_eq!(
            (dropped, renderer.notices().len()),
            (name == "mistral-v0.3", dropped.into()),
            "{name}"
        );
    }
}

/// Where the template keeps the prompt, prompt and target together are what Transformers encodes for
/// the whole conversation, up to what follows the end token. (Not for an answer that begins with a
/// space: SmolLM2 would merge that into the prompt's last token, and a prompt's tokens are fixed.)
#[test]
fn examples_equal_the_whole_conversation() {
    for Released {
        name,
        template,
        tokenizer,
        ..
    } in released()
    {
        let task = Task {
            system: None,
            user: "{{ text }}".into(),
            ..task(512)
        };
        let renderer = Renderer::new(&task, &template, &tokenizer).unwrap();
        for code in ["A", "E11.65", "F32.A", "R50.9 \n", "Z99 and U07.1"] {
            let row = Row {
                text: "Doctor: Any pain?\nPatient: A little.",
                code,
                title: None,
            };
            let example = renderer.example(&row).unwrap();
            let turn = |role, content| Message { role, content };
            let whole = [turn(Role::User, row.text), turn(Role::Assistant, code)];
            let whole = tokenizer
                .encode_rendered(&template.render(&whole, false).unwrap())
                .unwrap();
            assert!(whole.starts_with(&example.ids), "{name} {code:?}");
            assert!(whole.len() <= example.ids.len() + 1, "{name} {code:?}");
        }
    }
}

#[test]
fn only_the_note_is_shortened_and_alike_in_training_and_inference() {
    for Released {
        name,
        template,
        tokenizer,
        ..
    } in released()
    {
        let limit = 160;
        let task = task(limit);
        let renderer = Renderer::new(&task, &template, &tokenizer).unwrap();
        let note: String = (0..400)
            .map(|i| format!("Day {i}: 38.5°C, naïve 🦵, coughs.\n"))
            .collect();
        let full = tokenizer.encode_rendered(&note).unwrap().len();
        for length in [0, 5, 60, 90, 120, 200, note.len()] {
            let text = &note[..(length..).find(|&at| note.is_char_boundary(at)).unwrap()];
            let row = Row {
                text,
                code: "E11.65",
                title: None,
            };
            let example = renderer.example(&row).unwrap();
            let prompt = renderer.prompt(text).unwrap();
            assert_eq!(
                example.ids[..example.target_start],
                prompt.ids,
                "{name} {length}"
            );
            assert_eq!(example.cut, prompt.cut);
            assert!(example.ids.len() <= limit as usize);
            assert!(
                tokenizer
                    .decode(&prompt.ids, false)
                    .unwrap()
                    .contains("\n\nCode:"),
                "{name}"
            );
            if length == note.len() {
                // All of the room is used but for the answer's 16 + end, and a few merged tokens.
                assert!(
                    prompt.ids.len() + 17 + 6 >= limit as usize,
                    "{name} {}",
                    prompt.ids.len()
                );
                assert!(prompt.cut > full - limit as usize);
            }
        }
        let whole: &str = &note;
        let prompts = renderer.prompts(&["short", whole, whole]).unwrap();
        let cuts: Cuts = prompts.iter().map(|prompt| prompt.cut).collect();
        assert_eq!(
            cuts,
            Cuts {
                rows: 2,
                tokens: 2 * prompts[1].cut
            }
        );
    }
}

#[test]
fn what_cannot_be_learnt_is_an_error() {
    for Released {
        name,
        template,
        tokenizer,
        ..
    } in released()
    {
        let task = task(256);
        let renderer = Renderer::new(&task, &template, &tokenizer).unwrap();
        let end = tokenizer
            .token(*renderer.stop_ids().iter().last().unwrap())
            .unwrap();
        let rows = [
            Row {
                text: "x",
                code: "E11",
                title: None,
            },
            Row {
                text: "x",
                code: " \n",
                title: None,
            },
        ];
        let error = renderer.examples(&rows).unwrap_err().to_string();
        assert!(
            error.starts_with("row 1: task `icd10`: the answer is blank"),
            "{name}: {error}"
        );
        let long = Row {
            text: "x",
            code: &"E11 ".repeat(200),
            title: None,
        };
        assert!(
            matches!(renderer.example(&long), Err(TextError::NoRoom { .. })),
            "{name}"
        );
        let ended = Row {
            text: "x",
            code: &format!("E11{end}"),
            title: None,
        };
        assert!(
            matches!(renderer.example(&ended), Err(TextError::EndInAnswer { .. })),
            "{name}"
        );

        let wrong = |change: fn(&mut Task)| {
            let mut task = self::task(256);
            change(&mut task);
            Renderer::new(&task, &template, &tokenizer)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        assert!(
            wrong(|t| t.max_tokens = 20).contains("set it to more than"),
            "{name}"
        );
        assert!(
            wrong(|t| t.user = "{{ code }} {{ text }}".into()).contains("`{{ code }}` in `user`")
        );
        assert!(wrong(|t| t.user = "Code it.".into()).contains("no placeholder in `user`"));
        assert!(wrong(|t| t.answer = "{{ text }}".into()).contains("`{{ text }}` in `answer`"));
        let titled = Task {
            answer: "{{ title }}".into(),
            ..self::task(512)
        };
        let error = Renderer::new(&titled, &template, &tokenizer)
            .unwrap()
            .example(&rows[0])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`{{ title }}`, and the row has none"),
            "{error}"
        );
    }
}

/// Templates that nobody should train with, over a real tokenizer.
#[test]
fn templates_that_hide_the_answer_or_its_end_are_refused() {
    let Some(dir) = shared("tokenizers/mistral-v0.3") else {
        return;
    };
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let task = task(256);
    let error = |source: &str| {
        let template = ChatTemplate::compile("t.jinja".into(), source, &[]).unwrap();
        Renderer::new(&task, &template, &tokenizer)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    let turns = "{% for m in messages %}{{ m.content }}[/INST]{% endfor %}";
    assert_eq!(error(turns), "");
    let error_of = [
        (
            turns.replace("m.content", "m.role"),
            "leaves out the assistant's answer",
        ),
        (
            turns.replace("[/INST]", "\n"),
            "no special token follows an answer",
        ),
        (
            format!("{{{{ messages | length }}}}{turns}"),
            "rewrites the question",
        ),
        (
            "{% if messages[-1].role == 'assistant' %}x</s>{% endif %}".into(),
            "writes nothing before",
        ),
    ];
    for (source, want) in error_of {
        assert!(
            error(&source).contains(want),
            "{source}: {}",
            error(&source)
        );
    }
    let template = ChatTemplate::compile("t.jinja".into(), turns, &[]).unwrap();
    let renderer = Renderer::new(&task, &template, &tokenizer).unwrap();
    assert_eq!(
        renderer.notices(),
        [Notice::EndTokenNotListed {
            token: "[/INST]".into(),
            id: 4
        }]
    );
    assert_eq!(renderer.stop_ids().into_iter().collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn a_folder_without_or_with_broken_files_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let error = |dir: &Path| Tokenizer::load(dir).unwrap_err().to_string();
    let name = path.display().to_string();
    let missing = error(dir.path());
    assert!(
        missing.contains(&name) && missing.contains("download the model again"),
        "{missing}"
    );
    for broken in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
    ] {
        std::fs::write(&path, broken).unwrap();
        assert!(error(dir.path()).contains(&name), "{broken}");
    }
    let word = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}"#;
    std::fs::write(&path, word).unwrap();
    Tokenizer::load(dir.path()).unwrap();
    for (file, text, want) in [
        (
            "generation_config.json",
            r#"{"eos_token_id": "x"}"#,
            "`eos_token_id` is \"x\"",
        ),
        (
            "generation_config.json",
            r#"{"eos_token_id": [1, -1]}"#,
            "needed a token id",
        ),
        ("generation_config.json", "[]", "needed a JSON object"),
        (
            "tokenizer_config.json",
            r#"{"eos_token": "</s>"}"#,
            "`</s>`, is not in it",
        ),
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": 1}}"#,
            "`eos_token`",
        ),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
        assert!(
            error(dir.path()).contains(want),
            "{text}: {}",
            error(dir.path())
        );
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
}

proptest! {
    /// A small but complete `tokenizer.json` with some bytes changed loads or is an error.
    #[test]
    fn no_tokenizer_file_makes_it_panic(changes in prop::collection::vec((0usize..2000, any::<u8>()), 0..4)) {
        let mut bytes = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "normalizer": {"type": "NFC"},
            "added_tokens": [{"id": 4, "content": "</s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": false},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [4], "tokens": ["</s>"]}}},
            "decoder": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": false},
            "model": {"type": "BPE", "vocab": {"_": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]],
                "unk_token": "_"}
        })
        .to_string()
        .into_bytes();
        let untouched = changes.is_empty();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), bytes).unwrap();
        let tokenizer = Tokenizer::load(dir.path());
        if untouched {
            // All six tokens: the truncation that the file asks for is off.
            let ids = tokenizer.as_ref().unwrap().encode_plain("ab ba").unwrap();
            prop_assert_eq!(ids, [4, 0, 3, 0, 2, 1]);
        }
        if let Ok(tokenizer) = tokenizer {
            let _ = tokenizer.encode_plain("ab ba</s>").and_then(|ids| tokenizer.decode(&ids, true));
            let _ = tokenizer.token_ends("aü b");
        }
    }
}
