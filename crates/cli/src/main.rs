//! The `catena` command.
#![forbid(unsafe_code)]

fn main() {}
