//! A model's tokenizer: text to ids and back, and which ids end an answer.
//!
//! Holds a wrapper around the `tokenizers` crate and what Transformers keeps beside it. It refuses to
//! truncate or pad, whatever `tokenizer.json` asks for. There are two ways to encode: plain text gets
//! the post-processor's BOS, rendered text never does, or BOS would come twice.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::TextError;
use super::model_files::ModelFile;

/// A tokenizer and its model's end tokens.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    end_ids: BTreeSet<u32>,
    largest: u32,
    content_hash: blake3::Hash,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model directory, and its end tokens: `eos_token` of
    /// `tokenizer_config.json` and `eos_token_id` of `generation_config.json` or, without that file,
    /// of `config.json`.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, or a file cannot be used.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| TextError::Read {
            path: path.clone(),
            source,
        })?;
        let unusable = |reason: String| TextError::Tokenizer {
            path: path.clone(),
            reason,
        };
        // Where a download broke off, this says so by line; the library would panic.
        serde_json::from_slice::<serde_json::Value>(&bytes).map_err(|e| unusable(e.to_string()))?;
        let inner = without_panic(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)?;
            inner.with_truncation(None)?.with_padding(None);
            Ok(inner)
        })
        .map_err(unusable)?;
        let largest = inner
            .get_vocab(true)
            .into_values()
            .max()
            .ok_or_else(|| unusable("its vocabulary is empty".to_owned()))?;
        let added = inner.get_added_tokens_decoder();
        let special = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| *id)
            .collect();

        let mut end_ids = BTreeSet::new();
        if let Some(config) = ModelFile::read(dir, "tokenizer_config.json")?
            && let Some(token) = config.special_token("eos_token")?
        {
            end_ids.insert(inner.token_to_id(token).ok_or_else(|| {
                unusable(format!(
                    "`eos_token` of tokenizer_config.json, `{token}`, is not in it"
                ))
            })?);
        }
        end_ids.extend(self::end_ids(dir)?);

        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        end_ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
        let content_hash = hasher.finalize();
        Ok(Self {
            path,
            inner,
            special,
            end_ids,
            largest,
            content_hash,
        })
    }

    /// Ids of plain text, with the special tokens that the post-processor adds.
    ///
    /// # Errors
    /// When the library cannot encode the text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, true)
    }

    /// Ids of text that a chat template wrote: nothing is added.
    ///
    /// # Errors
    /// When the library cannot encode the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, false)
    }

    /// Byte positions in `text` at which its tokens end, ascending; each is a character boundary.
    ///
    /// # Errors
    /// When the library cannot encode the text.
    pub fn token_ends(&self, text: &str) -> Result<Vec<usize>, TextError> {
        let encoding = self.call(|inner| inner.encode(text, false))?;
        let mut last = 0;
        Ok(encoding
            .get_offsets()
            .iter()
            .map(|&(_, end)| {
                if end > last && text.is_char_boundary(end) {
                    last = end;
                }
                last
            })
            .collect())
    }

    /// Text of `ids`; with `skip_special` special tokens are left out.
    ///
    /// # Errors
    /// When the library cannot decode them.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.call(|inner| inner.decode(ids, skip_special))
    }

    /// The token as the vocabulary spells it (`Ġfever`, `<|im_end|>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is an added special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Ids that end an answer, ascending.
    pub fn end_ids(&self) -> &BTreeSet<u32> {
        &self.end_ids
    }

    /// Ids of the vocabulary: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.largest as usize + 1
    }

    /// Checks that every id has a row in the model's embedding, `model_vocab` rows long (often longer
    /// than the vocabulary, for alignment).
    ///
    /// # Errors
    /// When the tokenizer has larger ids.
    pub fn check_fits(&self, model_vocab: usize) -> Result<(), TextError> {
        let largest = self
            .end_ids
            .last()
            .map_or(self.largest, |&end| end.max(self.largest));
        if (largest as usize) < model_vocab {
            return Ok(());
        }
        Err(TextError::VocabularyMismatch {
            path: self.path.clone(),
            largest,
            model: model_vocab,
        })
    }

    /// Hash of `tokenizer.json` and the end ids. For cache keys.
    pub fn content_hash(&self) -> blake3::Hash {
        self.content_hash
    }

    fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.call(|inner| inner.encode_fast(text, special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn call<T>(
        &self,
        function: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T, TextError> {
        without_panic(|| function(&self.inner)).map_err(|reason| TextError::Encode {
            path: self.path.clone(),
            reason,
        })
    }
}

/// The end tokens that `generation_config.json` or, without that file, `config.json` names: also for directories
/// without a tokenizer.
///
/// # Errors
/// When a file cannot be used.
pub fn end_ids(dir: &Path) -> Result<BTreeSet<u32>, TextError> {
    let generation = match ModelFile::read(dir, "generation_config.json")? {
        Some(config) => Some(config),
        None => ModelFile::read(dir, "config.json")?,
    };
    let ids = generation.map(|config| config.token_ids("eos_token_id"));
    Ok(ids.transpose()?.unwrap_or_default().into_iter().collect())
}

/// Calls the library, which panics on some inconsistent files (a post-processor that names a token
/// which is not there). Nothing of it is used after a panic but by another call through here.
fn without_panic<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("its parts contradict each other".to_owned()),
    }
}
