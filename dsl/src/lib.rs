//! The recipe language: recipe text in, checked [`plan::Plan`] out.
pub mod plan;
