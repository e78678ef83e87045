//! Values: on one line where they fit, else one item a line.

use super::{INDENT, Printer, WIDTH, width};
use crate::source::Span;
use crate::syntax::ast::{Arg, Value, ValueKind};

impl Printer<'_> {
    /// The value on one line, unless a comment or a string of several lines is in it.
    pub(super) fn flat(&self, value: &Value) -> Option<String> {
        let text = self.slice(value.span);
        match &value.kind {
            ValueKind::Text(_) => (!text.contains('\n')).then(|| text.to_string()),
            ValueKind::List(items) => {
                let items = items
                    .iter()
                    .map(|item| self.flat(item))
                    .collect::<Option<Vec<_>>>()?;
                self.without_comments(value.span)
                    .then(|| format!("[{}]", items.join(", ")))
            }
            ValueKind::Call(word, args) => {
                let args = args
                    .iter()
                    .map(|arg| self.flat_argument(arg))
                    .collect::<Option<Vec<_>>>()?;
                self.without_comments(value.span)
                    .then(|| format!("{}({})", word.text, args.join(", ")))
            }
            _ => Some(text.to_string()),
        }
    }

    fn flat_argument(&self, arg: &Arg) -> Option<String> {
        let value = self.flat(&arg.value)?;
        Some(match &arg.name {
            Some(name) => format!("{} = {value}", name.text),
            None => value,
        })
    }

    fn without_comments(&self, span: Span) -> bool {
        !self.has_comment(span.start, span.end)
    }

    /// Prints a value after `column` characters of its line, with `after` more to come on it.
    pub(super) fn value(&mut self, value: &Value, indent: usize, column: usize, after: usize) {
        if let Some(flat) = self
            .flat(value)
            .filter(|flat| column + width(flat) + after <= WIDTH)
        {
            self.out.push_str(&flat);
            return;
        }
        match &value.kind {
            ValueKind::List(items) if self.can_break(items.len(), value.span) => {
                self.out.push_str("[\n");
                for item in items {
                    self.item("", item, indent + INDENT);
                }
                self.close(value.span, indent, "]");
            }
            ValueKind::Call(word, args) if self.can_break(args.len(), value.span) => {
                self.out.push_str(&word.text);
                self.out.push_str("(\n");
                for arg in args {
                    let name = arg
                        .name
                        .as_ref()
                        .map(|name| format!("{} = ", name.text))
                        .unwrap_or_default();
                    self.item(&name, &arg.value, indent + INDENT);
                }
                self.close(value.span, indent, ")");
            }
            _ => self.out.push_str(self.slice(value.span)),
        }
    }

    /// Whether there is something to put between the brackets.
    fn can_break(&self, items: usize, span: Span) -> bool {
        items > 0 || self.has_comment(span.start, span.end)
    }

    fn item(&mut self, name: &str, value: &Value, indent: usize) {
        self.comments_before(value.span.start, indent);
        self.indent(indent);
        self.out.push_str(name);
        self.value(value, indent, indent + width(name), 1);
        self.out.push(',');
        self.end_line(value.span.end);
    }

    fn close(&mut self, span: Span, indent: usize, bracket: &str) {
        self.comments_before(span.end, indent + INDENT);
        self.indent(indent);
        self.out.push_str(bracket);
    }
}
