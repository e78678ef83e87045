//! The recipe language: recipe text in, checked [`plan::Plan`] out.
//!
//! Holds [`check`], [`format`](fn@format) and the help that comes from one field table. It refuses to
//! touch files, GPUs and models: paths stay paths, and `use` goes through a loader. No input makes it
//! panic.

mod check;
mod diagnostic;
mod format;
mod nearest;
pub mod plan;
mod reference;
mod source;
mod syntax;
mod table;

pub use check::{Checked, check};
pub use diagnostic::{Code, Diagnostics, Listed};
pub use format::format;
pub use reference::{help_recipe, reference_markdown};
pub use source::SourceFile;
