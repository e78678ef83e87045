//! Syntax tree to plan.
//!
//! Holds the order of the checks: files, names, `--set`, then block after block in the order of a
//! plan. It refuses to read files itself (a loader does) and to check values (see [`value`]). A plan
//! comes out only when no error was found.

mod build;
mod fields;
mod load;
mod prompt;
mod record;
mod scope;
mod setting;
mod sweep;
mod value;
mod wording;

pub(crate) use load::{LARGEST, too_large};

use crate::diagnostic::{Code, Diagnostic, Diagnostics, Sink};
use crate::nearest::nearest;
use crate::plan::Plan;
use crate::source::{SourceFile, SourceMap};
use crate::syntax::ast::{Block, Entry, Path as Dotted, Value};
use crate::table::{BLOCKS, Kind};
use record::Record;
use scope::{Declared, Scope};
use std::io;
use std::path::Path;

/// A recipe that checks.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What the recipe means.
    pub plan: Plan,
    /// Findings that do not stop it.
    pub warnings: Diagnostics,
}

/// What the checks share.
struct Checker<'a> {
    sources: &'a SourceMap,
    sink: &'a mut Sink,
    scope: Scope,
}

/// Checks a recipe and everything that it uses; reports all errors at once.
///
/// `overrides` are the texts of `--set`, such as `qwen_3b_lora.epochs=1`, `qwen_3b_lora.lora.rank=8`
/// or `seed=7` (of the `recipe` block); later ones win. `loader` reads the files named by `use`; it is
/// given their paths joined onto the folder of the file that names them.
///
/// # Errors
/// Everything that is wrong with the recipe, in source order, if anything is.
pub fn check(
    source: &SourceFile,
    overrides: &[String],
    loader: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Checked, Diagnostics> {
    let mut sources = SourceMap::default();
    let mut sink = Sink::default();
    let (main, files) = load::load(source, loader, &mut sources, &mut sink);
    let settings = setting::parse_all(overrides, &mut sources, &mut sink);
    let (scope, mut blocks) = Scope::collect(files, &mut sink);
    let mut checker = Checker {
        sources: &sources,
        sink: &mut sink,
        scope,
    };
    for setting in settings {
        checker.override_with(setting, &mut blocks);
    }
    let plan = checker.plan(&blocks, &source.path);
    if checker.sink.errors() == 0 {
        checker.scope.warn_unused(main, checker.sink);
    }
    let failed = sink.errors() > 0;
    let found = sink.finish(sources);
    if failed {
        Err(found)
    } else {
        Ok(Checked {
            plan,
            warnings: found,
        })
    }
}

impl Checker<'_> {
    /// Checks every block and builds the plan of those without errors.
    fn plan(&mut self, blocks: &[Declared], path: &Path) -> Plan {
        let mut plan = build::empty(path);
        for kind in BLOCKS.iter().map(|spec| spec.kind) {
            for declared in blocks.iter().filter(|declared| declared.kind == kind) {
                let runs = self.runs(declared);
                let mut names = Vec::with_capacity(runs.len());
                for (name, block) in &runs {
                    if let Some(record) = self.block(declared, block) {
                        self.add(&mut plan, declared, name, &record);
                    }
                    names.push(name.clone());
                }
                if names.first().is_some_and(|first| *first != declared.name) {
                    self.scope.runs.insert(declared.name.clone(), names);
                }
            }
        }
        plan
    }

    /// Checks the fields of one block.
    fn block(&mut self, declared: &Declared, block: &Block) -> Option<Record> {
        let spec = declared.kind.spec();
        let mut given: Vec<Option<&Value>> = vec![None; spec.fields.len()];
        let before = self.sink.errors();
        for entry in &block.entries {
            let field = match entry {
                Entry::Field(field) => field,
                Entry::Block(inner) => {
                    let word = &inner.kind;
                    let what = format!("unknown block `{}` in {}", word.text, spec.kind.a_block());
                    let near = nearest(
                        &word.text,
                        (declared.kind == Kind::Train).then_some("sweep"),
                    );
                    self.sink.push(
                        Diagnostic::new(Code::UnknownBlock, word.span, what).near("a block", near),
                    );
                    continue;
                }
            };
            let index = spec
                .fields
                .iter()
                .position(|f| f.name == field.path.first.text);
            let Some((place, known)) = index.and_then(|i| given.get_mut(i).zip(spec.fields.get(i)))
            else {
                self.sink.push(unknown_field(declared.kind, &field.path));
                continue;
            };
            if !field.path.rest.is_empty() {
                self.sink.push(unknown_field(declared.kind, &field.path));
            } else if let Some(first) = place {
                let message = format!(
                    "`{}` is given twice in `{} {}`",
                    known.name, spec.word, declared.name
                );
                let again = Diagnostic::new(Code::Duplicate, field.path.span(), message)
                    .label("here again");
                self.sink.push(again.also(first.span, "first given here"));
            } else {
                *place = Some(&field.value);
            }
        }
        let whole = format!("`{} {}`", spec.word, declared.name);
        let record = self.fields(
            spec.fields,
            &given,
            None,
            &whole,
            declared.span,
            block.damaged,
        )?;
        (self.sink.errors() == before).then_some(record)
    }
}

/// A field that the block does not have, or a dotted one outside a sweep.
fn unknown_field(kind: Kind, path: &Dotted) -> Diagnostic {
    let known = || kind.spec().fields.iter().map(|field| field.name);
    let text = path.text();
    let diagnostic = Diagnostic::new(
        Code::UnknownField,
        path.span(),
        format!("unknown field `{text}` in {}", kind.a_block()),
    );
    if path.rest.is_empty() {
        let diagnostic =
            diagnostic.label(format!("`{}` takes {}", kind.word(), kind.field_names()));
        return diagnostic.near("a field", nearest(&text, known()));
    }
    diagnostic.help("dotted names belong into `sweep { }` and `--set`; here, write the argument inside its call")
}
