//! Blocks and what stands between them.
//!
//! A block written on one line stays there if it fits; neighbours of one kind are set as a table.
//! Fields that share a line stay together if they fit; the others align their `=`.

use super::{GAP, INDENT, Printer, WIDTH, width};
use crate::syntax::ast::{Block, Entry, Field, Item};

impl Printer<'_> {
    pub(super) fn items(&mut self, items: &[Item]) {
        let mut rest = items;
        let mut after_block = false;
        while let Some(item) = rest.first() {
            let table = self.table(rest);
            let tall = matches!(item, Item::Block(_)) && table.is_empty();
            if (tall || after_block) && !self.out.is_empty() && !self.out.ends_with("\n\n") {
                self.out.push('\n');
            }
            after_block = tall;
            match item {
                Item::Block(block) if table.is_empty() => {
                    self.start(block.span.start, block.span.start, 0);
                    self.tall_block(block, 0);
                    self.end_line(block.span.end);
                }
                Item::Block(_) => {
                    for (item, line) in rest.iter().zip(&table) {
                        self.start(item.span().start, item.span().start, 0);
                        self.out.push_str(line);
                        self.end_line(item.span().end);
                    }
                }
                Item::Use { path, span } => {
                    self.start(span.start, path.span.start, 0);
                    self.out.push_str("use ");
                    self.out.push_str(self.slice(path.span));
                    self.end_line(span.end);
                }
                Item::Let { name, value, span } => {
                    self.start(span.start, value.span.start, 0);
                    let head = format!("let {} = ", name.text);
                    self.out.push_str(&head);
                    self.value(value, 0, width(&head), 0);
                    self.end_line(span.end);
                }
            }
            rest = rest.get(table.len().max(1)..).unwrap_or(&[]);
        }
    }

    /// Prints what comes before an item or a row: comments, a blank line where one was, and the
    /// comments that stand inside it before `value`.
    fn start(&mut self, offset: usize, value: usize, indent: usize) {
        self.comments_before(offset, indent);
        self.blank_line_as_before(offset);
        self.comments_before(value, indent);
    }

    /// The lines of the one-line blocks of one kind at the start of `items`, their columns aligned.
    fn table(&self, items: &[Item]) -> Vec<String> {
        let mut blocks: Vec<(&Block, Vec<String>)> = Vec::new();
        for item in items {
            let Item::Block(block) = item else { break };
            let Some(cells) = self.cells(block) else {
                break;
            };
            let apart = |above: &Block| {
                self.breaks_twice(above.span.end, block.span.start)
                    || above.kind.text != block.kind.text
            };
            if blocks.last().is_some_and(|(above, _)| apart(above)) {
                break;
            }
            blocks.push((block, cells));
        }
        let line = |head: &str, cells: &[String]| match cells {
            [] => format!("{head} {{ }}"),
            cells => format!("{head} {{ {} }}", cells.join(GAP)),
        };
        let plain: Vec<String> = blocks
            .iter()
            .map(|(block, cells)| line(&self.head(block), cells))
            .collect();
        let heads = blocks
            .iter()
            .map(|(block, _)| width(&self.head(block)))
            .max()
            .unwrap_or(0);
        let names = |block: &Block| block.entries.iter().map(name).collect::<Vec<_>>();
        let same = blocks
            .windows(2)
            .all(|pair| matches!(pair, [(a, _), (b, _)] if names(a) == names(b)));
        let column = |index: usize| {
            blocks
                .iter()
                .filter_map(|(_, cells)| cells.get(index))
                .map(|c| width(c))
                .max()
                .unwrap_or(0)
        };
        let columns: Vec<usize> = match blocks.first() {
            Some((_, cells)) if same => (0..cells.len()).map(column).collect(),
            _ => Vec::new(),
        };
        let aligned: Vec<String> = blocks
            .iter()
            .map(|(block, cells)| {
                let pad = |(index, cell): (usize, &String)| match columns.get(index) {
                    Some(column) if index + 1 < cells.len() => format!("{cell:<column$}"),
                    _ => cell.clone(),
                };
                let cells: Vec<String> = cells.iter().enumerate().map(pad).collect();
                line(&format!("{:<heads$}", self.head(block)), &cells)
            })
            .collect();
        if aligned.iter().all(|line| width(line) <= WIDTH) {
            aligned
        } else {
            plain
        }
    }

    /// Whether there is more than one line break, as around a comment on its own line.
    fn breaks_twice(&self, start: usize, end: usize) -> bool {
        self.text
            .get(start..end)
            .unwrap_or("")
            .matches('\n')
            .count()
            > 1
    }

    /// The fields of a block that stands on one line and fits there.
    fn cells(&self, block: &Block) -> Option<Vec<String>> {
        let inside = !self.has_comment(block.span.start, block.span.end);
        let one_line = block.entries.is_empty() || !self.breaks(block.span.start, block.span.end);
        let cells = block
            .entries
            .iter()
            .map(|entry| self.flat_entry(entry))
            .collect::<Option<Vec<_>>>()?;
        let gaps = GAP.len() * cells.len().saturating_sub(1);
        let length = width(&self.head(block))
            + 5
            + gaps
            + cells.iter().map(|cell| width(cell)).sum::<usize>();
        (inside && one_line && length <= WIDTH).then_some(cells)
    }

    fn head(&self, block: &Block) -> String {
        match &block.name {
            Some(name) => format!("{} {}", block.kind.text, self.slice(name.span())),
            None => block.kind.text.clone(),
        }
    }

    fn flat_entry(&self, entry: &Entry) -> Option<String> {
        match entry {
            Entry::Field(field) => Some(format!(
                "{} = {}",
                field.path.text(),
                self.flat(&field.value)?
            )),
            Entry::Block(block) => {
                let cells = self.cells(block)?;
                Some(match cells.is_empty() {
                    true => format!("{} {{ }}", self.head(block)),
                    false => format!("{} {{ {} }}", self.head(block), cells.join(GAP)),
                })
            }
        }
    }

    /// A block over several lines, without the end of its last line.
    fn tall_block(&mut self, block: &Block, indent: usize) {
        self.out.push_str(&self.head(block));
        self.out.push_str(" {\n");
        let rows = self.rows(&block.entries, indent + INDENT);
        let single = |row: &Vec<&Entry>| match row.as_slice() {
            [Entry::Field(field)] => Some(width(&field.path.text())),
            _ => None,
        };
        let names = rows.iter().filter_map(single).max().unwrap_or(0);
        for row in &rows {
            self.row(row, indent + INDENT, names);
        }
        self.comments_before(block.span.end, indent + INDENT);
        self.indent(indent);
        self.out.push('}');
    }

    /// Entries that share a line in the text and fit on one, together; all others alone.
    fn rows<'e>(&self, entries: &'e [Entry], indent: usize) -> Vec<Vec<&'e Entry>> {
        let mut rows: Vec<Vec<&Entry>> = Vec::new();
        for entry in entries {
            match rows.last_mut() {
                Some(row)
                    if row
                        .last()
                        .is_some_and(|last| self.share_a_line(last, entry)) =>
                {
                    row.push(entry)
                }
                _ => rows.push(vec![entry]),
            }
        }
        let split = |row: Vec<&'e Entry>| match self.flat_row(&row, indent) {
            Some(_) => vec![row],
            None => row.into_iter().map(|entry| vec![entry]).collect(),
        };
        rows.into_iter().flat_map(split).collect()
    }

    fn share_a_line(&self, left: &Entry, right: &Entry) -> bool {
        let fields = matches!((left, right), (Entry::Field(_), Entry::Field(_)));
        fields && !self.breaks(left.span().end, right.span().start)
    }

    fn flat_row(&self, row: &[&Entry], indent: usize) -> Option<String> {
        let (start, end) = (row.first()?.span().start, row.last()?.span().end);
        let cells = row
            .iter()
            .map(|entry| self.flat_entry(entry))
            .collect::<Option<Vec<_>>>()?
            .join(GAP);
        (!self.has_comment(start, end) && indent + width(&cells) <= WIDTH).then_some(cells)
    }

    fn row(&mut self, row: &[&Entry], indent: usize, names: usize) {
        let (Some(first), Some(last)) = (row.first(), row.last()) else {
            return;
        };
        match first {
            Entry::Field(field) if row.len() == 1 => self.field(field, indent, names),
            first => {
                self.start(first.span().start, first.span().start, indent);
                self.indent(indent);
                match (self.flat_row(row, indent), first) {
                    (Some(flat), _) => self.out.push_str(&flat),
                    (None, Entry::Block(block)) => self.tall_block(block, indent),
                    (None, Entry::Field(_)) => {}
                }
            }
        }
        self.end_line(last.span().end);
    }

    fn field(&mut self, field: &Field, indent: usize, names: usize) {
        self.start(field.span.start, field.value.span.start, indent);
        self.indent(indent);
        let head = format!("{:<names$} = ", field.path.text());
        self.out.push_str(&head);
        self.value(&field.value, indent, indent + width(&head), 0);
    }
}

fn name(entry: &Entry) -> String {
    match entry {
        Entry::Field(field) => field.path.text(),
        Entry::Block(block) => block.kind.text.clone(),
    }
}
