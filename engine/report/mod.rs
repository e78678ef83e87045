//! placeholder until the merge
pub mod document;
pub mod examples;
pub mod findings;
mod format;
mod methods;
pub mod html { pub fn render(_: &super::document::Report) -> Result<String, super::document::ReportError> { Ok(String::new()) } }
pub mod svg { pub fn figures(_: &super::document::Report) -> Vec<(String, String)> { Vec::new() } }
pub mod text { pub fn table(r: &super::document::Report) -> String { r.evaluations.iter().flat_map(|e| e.systems.iter().map(|s| format!("{} {:.3} [{:.3}, {:.3}]\n", s.name, s.accuracy(e.level), s.metrics.levels[0].accuracy.low, s.metrics.levels[0].accuracy.high))).collect() } }
