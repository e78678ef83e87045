//! text
//pub mod answer;
pub mod date;
pub mod error;
//pub mod example;
pub mod model_files;
//pub mod pack;
//pub mod placeholder;
pub mod template;
pub mod tokenizer;

pub use error::TextError;
