//! The `medft-engine` program.
fn main() {}
