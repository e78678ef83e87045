//! Text to tokens: from a row of data to a packed batch.
//!
//! Holds chat templates, tokenizers, the renderer that training and inference share, and packing. It
//! refuses to know where rows come from (`data/`) or what becomes of batches (`model/`, `train/`).

pub mod answer;
pub mod audit;
pub mod date;
pub mod error;
pub mod example;
pub mod model_files;
pub mod placeholder;
pub mod template;
pub mod tokenizer;

pub use error::TextError;
