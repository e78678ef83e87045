//! The ICD-10-CM tree as the code system of evaluation.

use super::codes::Codes;
use crate::data::icd10::{CodeId, CodeStatus, CodeTree};
use medft_dsl::plan::Level;

impl Codes for CodeTree {
    fn parse(&self, written: &str) -> Option<u32> {
        CodeTree::parse(self, written).map(CodeId::number)
    }

    fn nearest(&self, written: &str) -> Option<u32> {
        CodeTree::nearest(self, written).map(CodeId::number)
    }

    fn at_level(&self, id: u32, level: Level) -> Option<u32> {
        CodeTree::at_level(self, self.id(id)?, level).map(CodeId::number)
    }

    fn parent(&self, id: u32) -> Option<u32> {
        CodeTree::parent(self, self.id(id)?).map(CodeId::number)
    }

    fn label(&self, id: u32) -> &str {
        self.id(id).map_or("", |id| self.code(id))
    }

    fn title(&self, id: u32) -> &str {
        self.id(id).map_or("", |id| CodeTree::title(self, id))
    }

    fn billable(&self, id: u32) -> bool {
        self.id(id).is_some_and(|id| CodeTree::billable(self, id))
    }

    fn expired(&self, written: &str) -> Option<u16> {
        match self.status(written) {
            CodeStatus::Retired { last_fiscal_year } => Some(last_fiscal_year),
            CodeStatus::Parent { billable_until, .. } => billable_until,
            CodeStatus::Billable | CodeStatus::Unknown => None,
        }
    }
}
