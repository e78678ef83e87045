//! Source texts and places in them.
//!
//! Holds the files of one check (the recipe, what it `use`s, and each `--set` text) and turns byte
//! spans into lines and columns. It refuses to read files. A span is only meaningful together with
//! the [`SourceMap`] that its file was added to.

use std::path::{Path, PathBuf};

/// One recipe text and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Shown in messages; relative paths in the text are joined onto its folder.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

impl SourceFile {
    /// A text with the path that it was read from.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }
}

/// Names a file of a [`SourceMap`], in the order of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileId(usize);

/// Bytes `start..end` of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    pub(crate) file: FileId,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn new(file: FileId, start: usize, end: usize) -> Self {
        Self { file, start, end }
    }
}

/// Every text of one check.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceMap {
    files: Vec<SourceFile>,
}

impl SourceMap {
    pub(crate) fn add(&mut self, file: SourceFile) -> FileId {
        self.files.push(file);
        FileId(self.files.len() - 1)
    }

    pub(crate) fn path(&self, file: FileId) -> &Path {
        self.files.get(file.0).map_or(Path::new(""), |f| &f.path)
    }

    pub(crate) fn text(&self, file: FileId) -> &str {
        self.files.get(file.0).map_or("", |f| &f.text)
    }

    /// The text under a span.
    pub(crate) fn slice(&self, span: Span) -> &str {
        self.text(span.file).get(span.start..span.end).unwrap_or("")
    }

    /// Line and column of the span's start, both from 1; columns count characters.
    pub(crate) fn line_column(&self, span: Span) -> (usize, usize) {
        let before = self.text(span.file).get(..span.start).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }

    /// The whole lines that hold bytes `start..end`: their text, its offset, its first line number.
    pub(crate) fn lines_around(
        &self,
        file: FileId,
        start: usize,
        end: usize,
    ) -> (&str, usize, usize) {
        let text = self.text(file);
        let from = text
            .get(..start)
            .and_then(|t| t.rfind('\n'))
            .map_or(0, |at| at + 1);
        let to = text
            .get(end..)
            .and_then(|t| t.find('\n'))
            .map_or(text.len(), |at| end + at);
        let line = text.get(..from).unwrap_or("").matches('\n').count() + 1;
        (text.get(from..to).unwrap_or(""), from, line)
    }
}
