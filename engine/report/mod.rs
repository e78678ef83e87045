//! A run's results for readers: `report.json`, one HTML page, figures, tables for the terminal.
//!
//! [`document::Report`] is the truth; every rendering is a function of it alone, so a report can be rendered again at any time.

pub mod comparison;
pub mod cost;
pub mod document;
pub mod examples;
pub mod exploration;
pub mod findings;
pub(crate) mod format;
pub mod html;
mod limits;
mod methods;
pub mod svg;
pub mod text;

#[cfg(test)]
mod fixture;
