//! The JSON files beside a model's tokenizer: `tokenizer_config.json`, `generation_config.json`.
//!
//! Holds reading one as JSON and the two shapes of value that their fields take. It refuses to guess:
//! a field of another type is an error that names file and field. A missing file is an answer, not an
//! error; whoever needs it says so.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TextError;

/// A JSON file of a model directory.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// The whole path.
    pub path: PathBuf,
    value: Value,
}

impl ModelFile {
    /// Reads `dir/name`; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a JSON object.
    pub fn read(dir: &Path, name: &str) -> Result<Option<Self>, TextError> {
        let path = dir.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(TextError::Read { path, source }),
        };
        match serde_json::from_slice(&bytes) {
            Ok(value @ Value::Object(_)) => Ok(Some(Self { path, value })),
            Ok(_) => Err(unusable(
                &path,
                "another JSON value".to_owned(),
                "a JSON object",
            )),
            Err(e) => Err(unusable(&path, e.to_string(), "a JSON object")),
        }
    }

    /// The field, unless it is absent or null.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    /// A special token, written as a string or as an object with `content`.
    ///
    /// # Errors
    /// When the field is anything else.
    pub fn special_token(&self, name: &str) -> Result<Option<&str>, TextError> {
        let Some(value) = self.field(name) else {
            return Ok(None);
        };
        match value.get("content").unwrap_or(value) {
            Value::String(token) => Ok(Some(token)),
            _ => Err(self.unusable(name, value, "a string or an object with `content`")),
        }
    }

    /// Token ids, written as a number or as a list of numbers; empty when absent.
    ///
    /// # Errors
    /// When the field is anything else.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>, TextError> {
        let Some(value) = self.field(name) else {
            return Ok(Vec::new());
        };
        let one = std::slice::from_ref(value);
        value
            .as_array()
            .map_or(one, |ids| ids.as_slice())
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| self.unusable(name, value, "a token id or a list of them"))
    }

    /// The error of a field with the wrong value.
    pub fn unusable(&self, field: &str, found: &Value, needed: &'static str) -> TextError {
        let found: String = found.to_string().chars().take(80).collect();
        unusable(&self.path, format!("`{field}` is {found}"), needed)
    }
}

fn unusable(path: &Path, found: String, needed: &'static str) -> TextError {
    TextError::Json {
        path: path.to_owned(),
        found,
        needed,
    }
}
