//! The `artel` program.
fn main() {}
