//! What the model reads of a cell: the whole column or sections of a SOAP note, with codes and
//! titles hidden if asked.
//!
//! It refuses to shorten a text (that is `text`'s, and counted there). Invariant: a view never adds
//! information: it only leaves out, joins with a line break, or replaces by [`CODE`] and [`TITLE`].

use super::icd10::CodeTree;
use super::titles::TitleLookup;
use medft_dsl::plan::{Redact, TextView};
use regex::Regex;
use std::ops::Range;

/// Stands where a code stood.
pub const CODE: &str = "[code]";
/// Stands where an official title stood.
pub const TITLE: &str = "[diagnosis]";

/// Headings of a SOAP note: a section ends where any of them stands, asked for or not.
const SOAP: [&str; 7] = [
    "Subjective",
    "Objective",
    "Assessment",
    "Plan",
    "Assessment and Plan",
    "Assessment & Plan",
    "Assessment/Plan",
];

/// A view, ready for many cells.
pub struct View<'t> {
    tree: &'t CodeTree,
    sections: Option<Sections>,
    redact: Redact,
    titles: Option<TitleLookup>,
}

/// A cell as it is viewed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Viewed {
    /// What the model reads, without white space around it.
    pub text: String,
    /// Sections that were asked for and are not in the note.
    pub lacking: Vec<String>,
    /// Codes replaced.
    pub codes: u64,
    /// Titles replaced.
    pub titles: u64,
}

struct Sections {
    wanted: Vec<String>,
    heading: Regex,
}

impl<'t> View<'t> {
    /// The view of a data block. Fails if the section names are too long to be searched for.
    pub fn new(
        view: &TextView,
        redact: Redact,
        tree: &'t CodeTree,
    ) -> Result<View<'t>, regex::Error> {
        let sections = match view {
            TextView::Column { .. } => None,
            TextView::Sections { sections, .. } => Some(Sections::new(sections)?),
        };
        let titles = (redact == Redact::Titles).then(|| TitleLookup::all(tree));
        Ok(View {
            tree,
            sections,
            redact,
            titles,
        })
    }

    /// What the model reads of `cell`.
    pub fn apply(&self, cell: &str) -> Viewed {
        let mut viewed = Viewed::default();
        let text = match &self.sections {
            None => cell.to_owned(),
            Some(sections) => sections.cut(cell, &mut viewed.lacking),
        };
        viewed.text = text.trim().to_owned();
        // Titles first: a few hold a code-like word themselves, and would not be found without it.
        if let Some(titles) = &self.titles {
            let spans = titles.spans(&viewed.text);
            viewed.titles = spans.len() as u64;
            viewed.text = replace(&viewed.text, spans, TITLE);
        }
        if self.redact != Redact::None {
            let mentions = self.tree.mentions(&viewed.text);
            viewed.codes = mentions.len() as u64;
            viewed.text = replace(
                &viewed.text,
                mentions.into_iter().map(|mention| mention.range),
                CODE,
            );
        }
        viewed
    }
}

impl Sections {
    fn new(wanted: &[String]) -> Result<Sections, regex::Error> {
        let mut names: Vec<&str> = wanted.iter().map(String::as_str).chain(SOAP).collect();
        // The first alternative wins: `Assessment and Plan` must stand before `Assessment`.
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        let names: Vec<String> = names
            .into_iter()
            .map(|name| regex::escape(name.trim()))
            .collect();
        // At the start of a line, after bold or heading marks, or after a number (MedSynth's notes
        // came without line breaks); then the name; then a colon, a dash, marks or the end of the
        // line: `**1. Subjective:****Chief`, `** 2. Objective ****`, `.2. Objective: -`, `### 3.
        // Assessment-`, `Plan:`.
        let pattern = format!(
            r"(?im)(?:(?:^|\*\*|#)[\s*#_-]*(?:\d+\s*[.)]\s*)?|\d\s*[.)]\s*)[*_]*({})[*_]*\s*(?:[:#-]|\*\*|$)",
            names.join("|")
        );
        Ok(Sections {
            wanted: wanted.to_vec(),
            heading: Regex::new(&pattern)?,
        })
    }

    /// The wanted sections with their headings, in the order of the recipe.
    fn cut(&self, note: &str, lacking: &mut Vec<String>) -> String {
        let headings: Vec<(usize, &str)> = self
            .heading
            .captures_iter(note)
            .filter_map(|found| Some((found.get(0)?.start(), found.get(1)?.as_str())))
            .collect();
        let ends = headings
            .iter()
            .skip(1)
            .map(|(start, _)| *start)
            .chain([note.len()]);
        let parts: Vec<(&str, &str)> = headings
            .iter()
            .zip(ends)
            .map(|((start, name), end)| (*name, note[*start..end].trim()))
            .collect();
        let mut text = String::new();
        for wanted in &self.wanted {
            let before = text.len();
            for (_, part) in parts.iter().filter(|(name, _)| same_name(name, wanted)) {
                text.push_str(part);
                text.push('\n');
            }
            if text.len() == before {
                lacking.push(wanted.clone());
            }
        }
        text
    }
}

fn same_name(heading: &str, wanted: &str) -> bool {
    heading.to_lowercase() == wanted.trim().to_lowercase()
}

fn replace(text: &str, ranges: impl IntoIterator<Item = Range<usize>>, by: &str) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut end = 0;
    for range in ranges {
        replaced.push_str(&text[end..range.start]);
        replaced.push_str(by);
        end = range.end;
    }
    replaced.push_str(&text[end..]);
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view(sections: &[&str], redact: Redact) -> View<'static> {
        let column = "Note".to_owned();
        let view = if sections.is_empty() {
            TextView::Column { column }
        } else {
            TextView::Sections {
                column,
                sections: sections.iter().map(|s| s.to_string()).collect(),
            }
        };
        View::new(&view, redact, CodeTree::shipped()).expect("a pattern")
    }

    #[test]
    fn sections_are_found_in_every_way_of_writing_them() {
        for note in [
            "**1. Subjective:****CC:** cough**2. Objective:** fever**3. Assessment:**flu**4. Plan:** rest",
            "** 1. Subjective: ****CC:** cough** 2. Objective ****fever**3. Assessment****flu**4. Plan** rest",
            "#####1. Subjective: cough##### 2. Objective: fever #### 3. ASSESSMENT: flu####4. Plan: rest",
            "#####1. Subjective - cough.2. Objective: fever### 3. Assessment- flu4. Plan: rest",
            "### Subjective\ncough\n### Objective\nfever\n### Assessment\nflu\n\n### Plan\nrest",
            "Subjective: cough\nObjective: fever\n  Assessment: flu\nPlan: rest",
            "SUBJECTIVE\ncough\nOBJECTIVE\nfever\nASSESSMENT AND PLAN\nflu, rest",
        ] {
            let viewed = view(&["Objective", "subjective"], Redact::None).apply(note);
            let at = |word: &str| viewed.text.find(word);
            assert!(
                at("fever").is_some() && at("fever") < at("cough"),
                "{note}\n{viewed:?}"
            );
            assert!(
                at("flu").is_none() && at("rest").is_none(),
                "{note}\n{viewed:?}"
            );
            assert!(
                viewed.lacking.is_empty() && !viewed.text.ends_with('*'),
                "{note}\n{viewed:?}"
            );
        }
    }

    #[test]
    fn words_in_sentences_are_no_headings() {
        let note = "**1. Subjective:** The plan: none. **Treatment plan:** discuss. Objective data follow.";
        let viewed = view(&["Subjective", "Plan"], Redact::None).apply(note);
        assert_eq!(
            (viewed.text.as_str(), viewed.lacking),
            (note, vec!["Plan".to_owned()])
        );
    }

    #[test]
    fn a_note_without_any_section_is_empty_and_said_so() {
        let viewed = view(&["Subjective", "Objective"], Redact::None).apply("no headings here");
        assert_eq!((viewed.text.as_str(), viewed.lacking.len()), ("", 2));
    }

    #[test]
    fn codes_and_titles_are_hidden_when_asked() {
        let note = "Vitamin B12 low; Essential (primary) hypertension (I10), E1165.";
        assert_eq!(view(&[], Redact::None).apply(note).text, note);
        let codes = view(&[], Redact::Codes).apply(note);
        assert_eq!(
            codes.text,
            "Vitamin B12 low; Essential (primary) hypertension ([code]), [code]."
        );
        assert_eq!((codes.codes, codes.titles), (2, 0));
        let titles = view(&[], Redact::Titles).apply(note);
        assert_eq!(
            titles.text,
            "Vitamin B12 low; [diagnosis] ([code]), [code]."
        );
        assert_eq!((titles.codes, titles.titles), (2, 1));
    }

    proptest! {
        #[test]
        fn any_note_can_be_viewed(note in r"(\*\*|#|Plan|Objective|:|\n|1\. |é| |E11.65|Cough){0,30}") {
            for redact in [Redact::None, Redact::Codes] {
                view(&[], redact).apply(&note);
                view(&["Plan", "é"], redact).apply(&note);
            }
        }
    }
}
