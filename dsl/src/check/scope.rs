//! What the names of a recipe stand for.
//!
//! Holds every block and `let` of all files under its name. It refuses to look inside blocks. A name
//! belongs to one thing only, whatever its kind, so that `--set name.field` is never in doubt.

use crate::diagnostic::{Code, Diagnostic, Sink};
use crate::nearest::nearest;
use crate::source::Span;
use crate::syntax::ast::{Block, File, Item, Name, Value, ValueKind, Word};
use crate::table::describe::names;
use crate::table::{BLOCKS, Kind};
use std::collections::{HashMap, HashSet};

/// A block of a known kind.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    pub(super) name: String,
    /// The name, or the kind where there is no name.
    pub(super) span: Span,
    pub(super) block: Block,
}

#[derive(Debug, Clone, Copy)]
enum Meaning {
    Block(Kind),
    Let(usize),
}

#[derive(Debug)]
struct Let {
    name: Word,
    value: Value,
    /// Part of, or leading into, a circle.
    cyclic: bool,
    /// Where the chain of `let`s that only name each other ends.
    end: usize,
}

/// Every name of a recipe.
#[derive(Debug, Default)]
pub(super) struct Scope {
    names: HashMap<String, (Meaning, Span)>,
    order: Vec<String>,
    lets: Vec<Let>,
    used: HashSet<String>,
    /// The runs of each swept train block.
    pub(super) runs: HashMap<String, Vec<String>>,
    /// Something could not be read, so an unknown name may be no mistake.
    pub(super) damaged: bool,
}

/// What a bare word stands for.
pub(super) enum Found<'a> {
    /// A block, its name and its place.
    Block(Kind, String, Span),
    Let(&'a Value),
    /// A `let` whose value leads back to itself, which has been reported.
    Broken,
    Nothing,
}

impl Scope {
    /// Collects blocks and `let`s of all files; reports unknown kinds, bad and duplicate names, and circles.
    pub(super) fn collect(files: Vec<File>, sink: &mut Sink) -> (Scope, Vec<Declared>) {
        let mut scope = Scope::default();
        let mut blocks: Vec<Declared> = Vec::new();
        for file in files {
            scope.damaged |= file.damaged;
            for item in file.items {
                match item {
                    Item::Use { .. } => {}
                    Item::Let { name, value, .. } => {
                        let meaning = Meaning::Let(scope.lets.len());
                        if is_keyword(&name.text) || is_word(&name.text) {
                            let message = format!(
                                "`{}` is a word of the language and cannot be a `let`",
                                name.text
                            );
                            sink.push(Diagnostic::new(Code::BadName, name.span, message));
                        } else if scope.declare(&name.text, name.span, meaning, sink) {
                            let end = scope.lets.len();
                            scope.lets.push(Let {
                                name,
                                value,
                                cyclic: false,
                                end,
                            });
                        }
                    }
                    Item::Block(block) => match declared(block, sink) {
                        Ok(block) if block.kind == Kind::Recipe => {
                            match blocks.iter().find(|b| b.kind == Kind::Recipe) {
                                Some(first) => sink.push(duplicate(
                                    "the `recipe` block",
                                    block.span,
                                    first.span,
                                )),
                                None => blocks.push(block),
                            }
                        }
                        Ok(block) => {
                            if scope.declare(
                                &block.name,
                                block.span,
                                Meaning::Block(block.kind),
                                sink,
                            ) {
                                blocks.push(block);
                            }
                        }
                        Err(()) => scope.damaged = true,
                    },
                }
            }
        }
        scope.follow_lets(sink);
        (scope, blocks)
    }

    fn declare(&mut self, name: &str, span: Span, meaning: Meaning, sink: &mut Sink) -> bool {
        if let Some((_, first)) = self.names.get(name) {
            sink.push(duplicate(&format!("the name `{name}`"), span, *first));
            return false;
        }
        self.names.insert(name.to_string(), (meaning, span));
        self.order.push(name.to_string());
        true
    }

    /// What `name` stands for; a chain of `let`s is followed to its end, and all of it counts as used.
    pub(super) fn find(&mut self, name: &str) -> Found<'_> {
        let mut next = Some(name);
        while let Some(name) = next {
            let Some((meaning, _)) = self.names.get(name) else {
                break;
            };
            let fresh = self.used.insert(name.to_string());
            next = match meaning {
                Meaning::Let(index) if fresh => self.lets.get(*index).and_then(|l| l.value.name()),
                _ => None,
            };
        }
        let declared = match self.names.get(name) {
            Some((Meaning::Let(index), _)) => {
                match self.lets.get(*index).and_then(|l| self.lets.get(l.end)) {
                    Some(end) if !end.cyclic => end,
                    _ => return Found::Broken,
                }
            }
            Some((Meaning::Block(kind), span)) => {
                return Found::Block(*kind, name.to_string(), *span);
            }
            None => return Found::Nothing,
        };
        let named = declared.value.name();
        match named.and_then(|name| Some((name, self.names.get(name)?))) {
            Some((name, (Meaning::Block(kind), span))) => {
                Found::Block(*kind, name.to_string(), *span)
            }
            _ => Found::Let(&declared.value),
        }
    }

    /// The only block of a kind, or how many there are.
    pub(super) fn only(&mut self, kind: Kind) -> Result<String, Vec<String>> {
        let all = self.blocks(&[kind]);
        match all.as_slice() {
            [one] => {
                self.used.insert(one.clone());
                Ok(one.clone())
            }
            _ => Err(all),
        }
    }

    /// Names of all blocks of these kinds, in order.
    pub(super) fn blocks(&self, kinds: &[Kind]) -> Vec<String> {
        let fits = |name: &&String| matches!(self.names.get(*name), Some((Meaning::Block(kind), _)) if kinds.contains(kind));
        self.order.iter().filter(fits).cloned().collect()
    }

    /// Names of all `let`s, in order.
    pub(super) fn lets(&self) -> impl Iterator<Item = &str> {
        self.lets.iter().map(|l| l.name.text.as_str())
    }

    /// Warns of blocks and `let`s of the main file that nothing refers to; `train`, `evaluate` and
    /// `compare` blocks do something by themselves.
    pub(super) fn warn_unused(&self, main: Span, sink: &mut Sink) {
        for name in self.order.iter().filter(|name| !self.used.contains(*name)) {
            let (what, span) = match self.names.get(name) {
                Some((Meaning::Let(_), span)) => ("let", span),
                Some((Meaning::Block(kind @ (Kind::Data | Kind::Task | Kind::Model)), span)) => {
                    (kind.word(), span)
                }
                _ => continue,
            };
            if span.file == main.file {
                let message = format!("`{what} {name}` is never used");
                sink.push(
                    Diagnostic::new(Code::Unused, *span, message).label("nothing refers to it"),
                );
            }
        }
    }

    /// Finds the end of every chain of `let`s and reports each circle once: a depth-first walk with
    /// its own stack, because chains may be long.
    fn follow_lets(&mut self, sink: &mut Sink) {
        let edges: Vec<Vec<usize>> = self.lets.iter().map(|l| self.lets_in(&l.value)).collect();
        let (mut open, mut done) = (vec![false; edges.len()], vec![false; edges.len()]);
        for root in 0..edges.len() {
            let mut stack = vec![(root, 0)];
            while let Some((node, next)) = stack.pop() {
                if done[node] {
                    continue;
                }
                open[node] = true;
                let Some(&to) = edges[node].get(next) else {
                    done[node] = true;
                    self.lets[node].cyclic = edges[node].iter().any(|&to| self.lets[to].cyclic);
                    if let (Some(_), Some(&to)) =
                        (self.lets[node].value.name(), edges[node].first())
                    {
                        self.lets[node].end = self.lets[to].end;
                    }
                    continue;
                };
                stack.push((node, next + 1));
                if open[to] && !done[to] {
                    self.report_cycle(node, to, sink);
                    self.lets[to].cyclic = true;
                    done[to] = true;
                } else if !done[to] {
                    stack.push((to, 0));
                }
            }
        }
    }

    fn report_cycle(&self, from: usize, to: usize, sink: &mut Sink) {
        let (from, to) = (&self.lets[from], &self.lets[to]);
        let message = format!("`let {}` leads back to itself", to.name.text);
        let diagnostic = Diagnostic::new(Code::Cycle, to.name.span, message);
        sink.push(match from.name.span == to.name.span {
            true => diagnostic,
            false => diagnostic.also(from.value.span, "by way of this"),
        });
    }

    fn lets_in(&self, value: &Value) -> Vec<usize> {
        match &value.kind {
            ValueKind::Name(name) => match self.names.get(name) {
                Some((Meaning::Let(index), _)) => vec![*index],
                _ => Vec::new(),
            },
            ValueKind::List(items) => items.iter().flat_map(|item| self.lets_in(item)).collect(),
            ValueKind::Call(_, args) => args
                .iter()
                .flat_map(|arg| self.lets_in(&arg.value))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Gives a block its kind and checks its name.
fn declared(block: Block, sink: &mut Sink) -> Result<Declared, ()> {
    let word = &block.kind;
    let Some(spec) = BLOCKS.iter().find(|spec| spec.word == word.text) else {
        let kinds = || BLOCKS.iter().map(|spec| spec.word);
        let diagnostic = Diagnostic::new(
            Code::UnknownBlock,
            word.span,
            format!("unknown block `{}`", word.text),
        )
        .label(format!("blocks are {}", names(kinds())))
        .near("a block", nearest(&word.text, kinds()));
        sink.push(diagnostic);
        return Err(());
    };
    let (name, span) = match &block.name {
        Some(name) => (name.text().to_string(), name.span()),
        None => {
            let example = if spec.kind == Kind::Recipe {
                "recipe \"my-study\"".into()
            } else {
                format!("{} my_{}", spec.word, spec.word)
            };
            let message = format!("this `{}` block has no name", spec.word);
            sink.push(
                Diagnostic::new(Code::Missing, word.span, message)
                    .help(format!("write `{example} {{ ... }}`")),
            );
            return Err(());
        }
    };
    let problem = match &block.name {
        Some(Name::Word(_)) if spec.kind == Kind::Recipe => {
            Some("the recipe's name stands in quotes")
        }
        Some(Name::Text(_)) if spec.kind != Kind::Recipe => {
            Some("only the recipe's name stands in quotes")
        }
        Some(Name::Text(text)) if !is_folder_name(&text.value) => Some(
            "the recipe's name becomes a folder: use letters, digits, `-`, `_` and `.`, at most 80, not starting with `.`",
        ),
        Some(Name::Word(word)) if word.text.len() > 80 => Some("names have at most 80 letters"),
        Some(Name::Word(word)) if is_keyword(&word.text) => {
            Some("this is a word of the language and cannot be a name")
        }
        _ => None,
    };
    if let Some(problem) = problem {
        sink.push(Diagnostic::new(Code::BadName, span, problem));
    }
    Ok(Declared {
        kind: spec.kind,
        name,
        span,
        block,
    })
}

fn is_folder_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 80 && !name.starts_with('.') && name.chars().all(fits)
}

/// Words that would change the meaning of a value or of a `--set` if they named something else.
fn is_keyword(name: &str) -> bool {
    matches!(name, "true" | "false" | "recipe" | "let" | "use" | "sweep")
}

/// Words that some field takes, and that would hide a `let` of the same name.
fn is_word(name: &str) -> bool {
    let fields = || BLOCKS.iter().flat_map(|block| block.fields);
    let params = fields()
        .flat_map(|field| field.ty.calls())
        .flat_map(|call| call.params);
    fields().chain(params).any(|field| {
        field.ty.takes_word(name) || field.ty.item().is_some_and(|item| item.takes_word(name))
    })
}

fn duplicate(what: &str, again: Span, first: Span) -> Diagnostic {
    Diagnostic::new(Code::Duplicate, again, format!("{what} is given twice"))
        .label("here again")
        .also(first, "first given here")
}
