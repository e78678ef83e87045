//! The exploration of a recipe's data as a page of its own.
//!
//! Holds the filling of `exploration.html`. It refuses to compute and to know the explorer's types: it takes what `explore --json` prints.
//! Invariant: a training example shows exactly the tokens that are learnt as marked.

use super::document::ReportError;
use super::html::{fill, value};
use minijinja::context;
use serde::Serialize;

/// The text of the page; `explored` are the data blocks of the recipe `name`.
///
/// # Errors
/// None in practice: the page's template is built in and tested.
pub fn page(name: &str, explored: &impl Serialize) -> Result<String, ReportError> {
    let blocks = value(serde_json::to_value(explored)?);
    fill(
        "exploration.html",
        include_str!("exploration.html"),
        context! { name, blocks },
    )
}
