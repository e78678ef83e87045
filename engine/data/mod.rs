//! Rows: read, view, explore, split, and the ICD-10-CM tree that gives their codes a meaning.
//!
//! A data block walks through `hub` (fetch), `rows` (read, through a `view`), `near`
//! (near-duplicates), `split`, and is looked at by `leaks` and `explore`. It refuses tokenizers and
//! models. Invariant: everything here depends on the bytes of the file, the plan and the seed only,
//! never on the machine.

pub mod explore;
pub mod hub;
pub mod icd10;
pub mod leaks;
pub mod near;
pub mod rows;
pub mod split;
pub mod titles;
pub mod view;
pub mod whole_file;
mod words;
