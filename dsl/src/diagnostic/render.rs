//! Diagnostics as text, in the look of rustc.
//!
//! Holds the mapping onto `annotate-snippets`. It refuses to choose words. Only the lines around a
//! span are handed to the renderer, so a long file costs no more than a short one.

use super::{Diagnostic, Diagnostics, Label};
use crate::source::SourceMap;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{
    Annotation, AnnotationKind, Group, Level, Patch, Renderer, Snippet, normalize_untrusted_str,
};

pub(super) fn render(all: &Diagnostics, color: bool) -> String {
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let renderer = renderer.decor_style(DecorStyle::Ascii);
    let mut out = String::new();
    for diagnostic in &all.found {
        out.push_str(&renderer.render(&groups(diagnostic, &all.sources)));
        out.push_str("\n\n");
    }
    let errors = all.found.iter().filter(|d| !d.code.is_warning()).count();
    let more = if all.full { " or more" } else { "" };
    match errors {
        0 => {}
        1 => out.push_str("error: the recipe has 1 error; nothing was run\n"),
        n => out.push_str(&format!(
            "error: the recipe has {n}{more} errors; nothing was run\n"
        )),
    }
    out
}

fn groups<'a>(diagnostic: &'a Diagnostic, sources: &'a SourceMap) -> Vec<Group<'a>> {
    let level = if diagnostic.code.is_warning() {
        Level::WARNING
    } else {
        Level::ERROR
    };
    let title = level
        .primary_title(diagnostic.message.as_str())
        .id(diagnostic.code.id());
    let here = &diagnostic.primary;
    let (same, elsewhere) = match &diagnostic.secondary {
        Some(there) if there.span.file == here.span.file => (Some(there), None),
        there => (None, there.as_ref()),
    };
    let mut main = title
        .element(snippet(sources, AnnotationKind::Primary, here, same))
        .elements(elsewhere.map(|there| snippet(sources, AnnotationKind::Context, there, None)));
    if let Some(help) = &diagnostic.help {
        main = main.element(Level::HELP.message(normalize_untrusted_str(help)));
    }
    let mut groups = vec![main];
    if let Some(fix) = &diagnostic.fix {
        let (lines, offset, first) =
            sources.lines_around(fix.span.file, fix.span.start, fix.span.end);
        let span = fix.span.start - offset..fix.span.end - offset;
        groups.push(
            Level::HELP
                .secondary_title(normalize_untrusted_str(&fix.title))
                .element(
                    Snippet::source(lines)
                        .line_start(first)
                        .path(sources.path(fix.span.file).to_string_lossy())
                        .patch(Patch::new(span, fix.replacement.as_str())),
                ),
        );
    }
    groups
}

/// The lines of a label, and of `other` in the same file, with a caret under each.
fn snippet<'a>(
    sources: &'a SourceMap,
    kind: AnnotationKind,
    label: &'a Label,
    other: Option<&'a Label>,
) -> Snippet<'a, Annotation<'a>> {
    let (span, far) = (label.span, other.map_or(label.span, |o| o.span));
    let (lines, offset, first) =
        sources.lines_around(span.file, span.start.min(far.start), span.end.max(far.end));
    let mark = |kind: AnnotationKind, label: &'a Label| {
        let mark = kind.span(label.span.start - offset..label.span.end - offset);
        if label.text.is_empty() {
            mark
        } else {
            mark.label(label.text.as_str())
        }
    };
    Snippet::source(lines)
        .line_start(first)
        .path(sources.path(span.file).to_string_lossy())
        .annotation(mark(kind, label))
        .annotations(other.map(|label| mark(AnnotationKind::Context, label)))
}
