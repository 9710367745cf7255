//! What is fuzzed, and a loop that needs nothing but the stable compiler.
//!
//! A [`Target`] takes bytes through one reader of files; whatever it is given, it must come back. [`Loop`] changes seeds at random, by a
//! seed of its own, and keeps what had an outcome that none had before: in place of coverage, which the stable compiler cannot tell
//! while a program runs, it goes by how what the reader says begins. `tests/fuzz.rs` runs some of it, and what was found before; the example
//! `fuzz` runs it for as long as one likes; `libfuzzer/` has the same targets for cargo-fuzz.
//!
//! Example: [`Loop`].

mod driver;
mod targets;

pub use driver::{Found, Loop};
pub use targets::{TARGETS, Target};
