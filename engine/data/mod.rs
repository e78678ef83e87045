//! data
pub mod whole_file;
