//! Names of the 22 chapters: numeral, short title and letter range.
//!
//! Short titles are ours, for axes and tables; the official one is `CodeTree::title`. It refuses to
//! name a chapter that the table does not have. Invariant: the numeral and short title stand at the
//! chapter's number minus one.

/// A chapter's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chapter {
    /// `CH04`.
    pub label: String,
    /// `IV`.
    pub roman: &'static str,
    /// `Endocrine`.
    pub short: &'static str,
    /// First and last category: `E00-E89`.
    pub range: String,
}

const NAMES: [(&str, &str); 22] = [
    ("I", "Infections"),
    ("II", "Neoplasms"),
    ("III", "Blood"),
    ("IV", "Endocrine"),
    ("V", "Mental"),
    ("VI", "Nervous system"),
    ("VII", "Eye"),
    ("VIII", "Ear"),
    ("IX", "Circulatory"),
    ("X", "Respiratory"),
    ("XI", "Digestive"),
    ("XII", "Skin"),
    ("XIII", "Musculoskeletal"),
    ("XIV", "Genitourinary"),
    ("XV", "Pregnancy"),
    ("XVI", "Perinatal"),
    ("XVII", "Congenital"),
    ("XVIII", "Symptoms"),
    ("XIX", "Injury"),
    ("XX", "External causes"),
    ("XXI", "Health status"),
    ("XXII", "Special purposes"),
];

impl Chapter {
    /// From the label (`CH04`) and the official title, which ends with the range in brackets.
    pub(super) fn new(label: &str, title: &str) -> Option<Chapter> {
        let number: usize = label.strip_prefix("CH")?.parse().ok()?;
        let &(roman, short) = NAMES.get(number.checked_sub(1)?)?;
        let range = title.strip_suffix(')')?.rsplit_once('(')?.1.to_owned();
        Some(Chapter {
            label: label.to_owned(),
            roman,
            short,
            range,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::data::icd10::{CodeTree, Kind};

    #[test]
    fn every_chapter_has_names_and_a_range() {
        let tree = CodeTree::shipped();
        let chapters: Vec<_> = tree
            .ids()
            .filter(|&id| tree.kind(id) == Kind::Chapter)
            .collect();
        assert_eq!(chapters.len(), 22);
        for id in chapters {
            let chapter = tree
                .chapter(id)
                .unwrap_or_else(|| panic!("{}", tree.title(id)));
            assert_eq!(chapter.range.len(), 7, "{chapter:?}");
        }
    }
}
