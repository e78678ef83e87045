//! The recipe and every file that it uses.
//!
//! Holds the walk along `use`. It refuses to touch the disk: a loader does. A file that several others
//! use is loaded once; circles, depth and size are bounded.

use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::source::{SourceFile, SourceMap, Span};
use crate::syntax::ast::{File, Item, Text};
use crate::syntax::parse_file;
use std::collections::HashSet;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Recipes have a few KiB; the bound keeps a check of any text in the range of a second.
pub(crate) const LARGEST: usize = 256 * 1024;
/// Files of one recipe, all together.
const MOST_FILES: usize = 64;

struct Loading<'a> {
    loader: &'a dyn Fn(&Path) -> io::Result<String>,
    sources: &'a mut SourceMap,
    sink: &'a mut Sink,
    files: Vec<File>,
    /// Files that are being loaded, the main one first.
    open: Vec<PathBuf>,
    seen: HashSet<PathBuf>,
    left: usize,
}

/// Parses the recipe and what it uses; returns a place in the main file and all files, used ones first.
pub(super) fn load(
    source: &SourceFile,
    loader: &dyn Fn(&Path) -> io::Result<String>,
    sources: &mut SourceMap,
    sink: &mut Sink,
) -> (Span, Vec<File>) {
    let (open, seen) = (Vec::new(), HashSet::new());
    let mut loading = Loading {
        loader,
        sources,
        sink,
        files: Vec::new(),
        open,
        seen,
        left: LARGEST,
    };
    let main = loading.file(source.clone());
    (main, loading.files)
}

/// An error for a text that is too large to check, if it is.
pub(crate) fn too_large(span: Span, length: usize, most: usize) -> Option<Diagnostic> {
    let message =
        format!("this is too large for a recipe: {length} bytes, and at most {most} are read");
    let start = Span {
        end: span.start,
        ..span
    };
    (length > most).then(|| Diagnostic::new(Code::TooLarge, start, message))
}

impl Loading<'_> {
    fn file(&mut self, source: SourceFile) -> Span {
        let identity = plain(&source.path);
        let length = source.text.len();
        let folder = source
            .path
            .parent()
            .map(Path::to_path_buf)
            .unwrap_or_default();
        let id = self.sources.add(source);
        let start = Span::new(id, 0, 0);
        self.seen.insert(identity.clone());
        if let Some(problem) = too_large(start, length, self.left) {
            self.sink.push(problem);
            self.files.push(File {
                damaged: true,
                ..File::default()
            });
            return start;
        }
        self.left -= length;
        let text = self.sources.text(id).to_string();
        let mut file = parse_file(id, &text, self.sink);
        self.open.push(identity);
        for item in &file.items {
            if let Item::Use { path, .. } = item {
                file.damaged |= !self.used(path, &folder);
            }
        }
        self.open.pop();
        self.files.push(file);
        start
    }

    /// Loads a used file; false if its names stay unknown.
    fn used(&mut self, named: &Text, folder: &Path) -> bool {
        let path = folder.join(&named.value);
        let identity = plain(&path);
        let shown = path.display();
        if self.open.contains(&identity) {
            let message = format!("`{shown}` uses itself, directly or through others");
            self.sink.push(
                Diagnostic::new(Code::UseCycle, named.span, message)
                    .help("take one of these `use` lines out"),
            );
            return true;
        }
        if self.seen.contains(&identity) {
            return true;
        }
        if self.seen.len() >= MOST_FILES {
            let message = format!(
                "`{shown}` is one file too many: a recipe may use {}",
                MOST_FILES - 1
            );
            self.sink
                .push(Diagnostic::new(Code::TooLarge, named.span, message));
            return false;
        }
        match (self.loader)(&path) {
            Ok(text) => {
                self.file(SourceFile::new(path, text));
                true
            }
            Err(error) => {
                let message = format!("cannot read `{shown}`: {error}");
                let help = "the path is relative to the file that names it";
                self.sink
                    .push(Diagnostic::new(Code::CannotRead, named.span, message).help(help));
                false
            }
        }
    }
}

/// The path without `.` and `name/..`, so that one file has one identity.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match (part, out.components().next_back()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                out.pop();
            }
            _ => out.push(part),
        }
    }
    out
}
