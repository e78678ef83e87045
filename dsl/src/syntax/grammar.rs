//! The grammar: values, fields, blocks, files.
//!
//! Holds the parsers that combine tokens. It refuses to judge names and types. A parser that has seen
//! its first token never backtracks, so every text is read in one pass.
//!
//! ```text
//! file  = { "use" string | "let" word "=" value | block }
//! block = word [ word | string ] "{" { field | block } "}"
//! field = word { "." word } "=" value
//! value = number | string | "true" | "false" | list | call | word
//! list  = "[" [ value { "," value } [ "," ] ] "]"
//! call  = word "(" [ arg { "," arg } [ "," ] ] ")"
//! arg   = [ word "=" ] value
//! ```

use super::ast::{Arg, Block, Entry, Field, Item, Name, Path, Value, ValueKind, Word};
use super::lexeme::{expected, mark, number, span, starts_word, text, trivia, word};
use super::{DEEPEST, Input, Parsed, Problem, fail, recovery};
use crate::diagnostic::{Code, Diagnostic};
use crate::source::Span;
use nom::Parser;
use nom::combinator::opt;
use nom::multi::many0;
use nom::sequence::preceded;

/// Any value.
pub(super) fn value(input: Input) -> Parsed<Value> {
    let (input, ()) = trivia(input)?;
    match input.fragment().chars().next() {
        Some('"') => {
            let (rest, text) = text(input)?;
            Ok((
                rest,
                Value {
                    kind: ValueKind::Text(text.value),
                    span: text.span,
                },
            ))
        }
        Some('[') => {
            let (rest, (items, span)) = deeper(input, |input| listed(input, '[', ']', value))?;
            Ok((
                rest,
                Value {
                    kind: ValueKind::List(items),
                    span,
                },
            ))
        }
        Some(c) if c.is_ascii_digit() || c == '-' || c == '+' => {
            number(input).map_err(|e| or_expected(e, input, "a number"))
        }
        Some(c) if starts_word(c) => named_value(input),
        _ => Err(expected(input, "a value")),
    }
}

/// A word, or a call if a parenthesis follows.
fn named_value(input: Input) -> Parsed<Value> {
    let (rest, word) = word(input)?;
    if starts_with(rest, '(') {
        let (rest, (args, inner)) = deeper(rest, |input| listed(input, '(', ')', argument))?;
        let span = Span {
            end: inner.end,
            ..word.span
        };
        return Ok((
            rest,
            Value {
                kind: ValueKind::Call(word, args),
                span,
            },
        ));
    }
    let kind = match word.text.as_str() {
        "true" => ValueKind::Bool(true),
        "false" => ValueKind::Bool(false),
        _ => ValueKind::Name(word.text),
    };
    Ok((
        rest,
        Value {
            kind,
            span: word.span,
        },
    ))
}

fn argument(input: Input) -> Parsed<Arg> {
    let name = |input| nom::sequence::terminated(word, mark('=')).parse(input);
    let (rest, name) = opt(name).parse(input)?;
    let (rest, value) = value(rest)?;
    Ok((rest, Arg { name, value }))
}

/// Items between brackets, separated by commas; the last comma may stay.
fn listed<'a, T>(
    input: Input<'a>,
    open: char,
    close: char,
    item: fn(Input<'a>) -> Parsed<'a, T>,
) -> Parsed<'a, (Vec<T>, Span)> {
    let (mut rest, opening) = mark(open).parse(input)?;
    let mut items = Vec::new();
    loop {
        if let Ok((rest, closing)) = mark(close).parse(rest) {
            return Ok((
                rest,
                (
                    items,
                    Span {
                        end: span(closing).end,
                        ..span(opening)
                    },
                ),
            ));
        }
        let (after, ()) = trivia(rest)?;
        // In a call, `word =` is an argument, so only the block's end tells.
        let open = if close == ')' {
            recovery::ended(after)
        } else {
            recovery::unclosed(after, close)
        };
        if open {
            return Err(recovery::resuming(unclosed(opening, close), after));
        }
        let (after, found) = item(rest)?;
        items.push(found);
        rest = match mark(',').parse(after) {
            Ok((rest, _)) => rest,
            Err(_) if starts_with(after, close) => after,
            Err(_) => {
                let (after, ()) = trivia(after)?;
                return Err(match recovery::unclosed(after, close) {
                    true => recovery::resuming(unclosed(opening, close), after),
                    false => expected(after, &format!("`,` or `{close}`")),
                });
            }
        };
    }
}

fn unclosed(opening: Input, close: char) -> Diagnostic {
    let message = format!("this `{}` is never closed", opening.fragment());
    Diagnostic::new(Code::Unclosed, span(opening), message).label(format!("no `{close}` follows"))
}

/// Runs a parser one level further down, within bounds.
fn deeper<'a, T>(
    input: Input<'a>,
    parser: impl FnOnce(Input<'a>) -> Parsed<'a, T>,
) -> Parsed<'a, T> {
    let depth = &input.extra.depth;
    if depth.get() >= DEEPEST {
        let (_, here) = super::lexeme::found(input);
        let message = format!("this is nested more than {DEEPEST} levels deep");
        return Err(fail(Diagnostic::new(Code::TooDeep, here, message)));
    }
    depth.set(depth.get() + 1);
    let parsed = parser(input);
    depth.set(depth.get() - 1);
    parsed
}

/// `path = value`.
pub(super) fn field(input: Input) -> Parsed<Field> {
    let (rest, first) = word(input).map_err(|e| or_expected(e, input, "a field name or `}`"))?;
    let (rest, more) = many0(preceded(mark('.'), word)).parse(rest)?;
    let path = Path { first, rest: more };
    let (rest, _) = mark('=')
        .parse(rest)
        .map_err(|e| or_expected(e, rest, &format!("`=` after `{}`", path.text())))?;
    let (next, ()) = trivia(rest)?;
    if next.location_line() > rest.location_line() && recovery::starts_entry(next) {
        let missing = expected(next, &format!("a value for `{}`", path.text()));
        return Err(recovery::resuming_after(missing, next));
    }
    let (rest, value) = value(next)?;
    let span = Span {
        end: value.span.end,
        ..path.first.span
    };
    Ok((rest, Field { path, value, span }))
}

/// `kind name {`: the start of a block.
fn header(input: Input) -> Parsed<(Word, Option<Name>, Span)> {
    let (rest, kind) = word(input)?;
    let (rest, ()) = trivia(rest)?;
    let (rest, name) = match rest.fragment().chars().next() {
        Some('"') => text(rest).map(|(rest, text)| (rest, Some(Name::Text(text))))?,
        Some(c) if starts_word(c) => {
            word(rest).map(|(rest, word)| (rest, Some(Name::Word(word))))?
        }
        _ => (rest, None),
    };
    let wanted = if name.is_some() {
        "`{`"
    } else {
        "a block name and `{`"
    };
    let (rest, open) = mark('{')
        .parse(rest)
        .map_err(|e| or_expected(e, rest, wanted))?;
    Ok((rest, (kind, name, span(open))))
}

/// A block; whatever goes wrong inside is reported, and the block is still returned.
fn block(input: Input) -> Parsed<Block> {
    let (rest, (kind, name, open)) = header(input)?;
    let mut block = Block {
        span: Span {
            end: open.end,
            ..kind.span
        },
        kind,
        name,
        entries: Vec::new(),
        damaged: false,
    };
    let mut rest = rest;
    loop {
        (rest, _) = trivia(rest)?;
        if let Ok((rest, close)) = mark('}').parse(rest) {
            block.span.end = span(close).end;
            return Ok((rest, block));
        }
        if rest.extra.exhausted() {
            block.damaged = true;
            return Ok((rest, block));
        }
        if rest.fragment().is_empty() || starts_item(rest) {
            let message = "this `{` is never closed";
            rest.extra
                .report(Diagnostic::new(Code::Unclosed, open, message).label("no `}` follows"));
            block.damaged = true;
            return Ok((rest, block));
        }
        match entry(rest) {
            Ok((after, entry)) => {
                block.span.end = entry.span().end;
                block.entries.push(entry);
                rest = after;
            }
            Err(error) => {
                block.damaged = true;
                rest = recovery::recover(rest, error);
            }
        }
    }
}

fn entry(input: Input) -> Parsed<Entry> {
    let nested = word(input).is_ok_and(|(rest, _)| starts_with(rest, '{'));
    if nested {
        return deeper(input, block).map(|(rest, block)| (rest, Entry::Block(block)));
    }
    field(input).map(|(rest, field)| (rest, Entry::Field(field)))
}

/// Whether a top-level item starts here: `kind name {`, `let name`, or `use "file"`.
pub(super) fn starts_item(input: Input) -> bool {
    let Ok((rest, first)) = word(input) else {
        return false;
    };
    let quoted = |(rest, ())| text(rest).map(|(rest, _)| (rest, String::new()));
    let bare = |rest| word(rest).map(|(rest, word)| (rest, word.text));
    let second = match starts_with(rest, '"') {
        true => trivia(rest).and_then(quoted),
        false => bare(rest),
    };
    match (first.text.as_str(), second) {
        ("let" | "use", Ok(_)) => true,
        ("sweep", _) => false,
        // A word before `sweep {` is a value.
        (_, Ok((rest, second))) => second != "sweep" && starts_with(rest, '{'),
        (_, Err(_)) => false,
    }
}

fn item(input: Input) -> Parsed<Item> {
    let (rest, first) =
        word(input).map_err(|e| or_expected(e, input, "a block, `let` or `use`"))?;
    match first.text.as_str() {
        "let" => {
            let (rest, name) =
                word(rest).map_err(|e| or_expected(e, rest, "a name after `let`"))?;
            let (rest, _) = mark('=')
                .parse(rest)
                .map_err(|e| or_expected(e, rest, "`=`"))?;
            let (rest, value) = value(rest)?;
            let span = Span {
                end: value.span.end,
                ..first.span
            };
            Ok((rest, Item::Let { name, value, span }))
        }
        "use" => {
            let (rest, path) = text(rest)
                .map_err(|e| or_expected(e, rest, "a file name in quotes after `use`"))?;
            let span = Span {
                end: path.span.end,
                ..first.span
            };
            Ok((rest, Item::Use { path, span }))
        }
        _ => deeper(input, block).map(|(rest, block)| (rest, Item::Block(block))),
    }
}

/// All items of a file, and whether one of them could not be read.
pub(super) fn items(input: Input) -> (Vec<Item>, bool) {
    let (mut items, mut damaged) = (Vec::new(), false);
    let mut rest = input;
    loop {
        rest = trivia(rest).map_or(rest, |(rest, ())| rest);
        if rest.fragment().is_empty() {
            return (items, damaged);
        }
        if rest.extra.exhausted() {
            return (items, true);
        }
        match item(rest) {
            Ok((after, item)) => {
                items.push(item);
                rest = after;
            }
            Err(error) => {
                damaged = true;
                rest = recovery::past_brace(recovery::recover(rest, error));
            }
        }
    }
}

fn starts_with(input: Input, c: char) -> bool {
    trivia(input).is_ok_and(|(rest, ())| rest.fragment().starts_with(c))
}

/// Turns a mere mismatch into "expected `what`"; a reported error stays.
fn or_expected(error: nom::Err<Problem>, input: Input, what: &str) -> nom::Err<Problem> {
    match error {
        nom::Err::Error(Problem::Backtrack) => expected(input, what),
        other => other,
    }
}
