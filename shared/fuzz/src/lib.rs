//! Fuzzing: arbitrary bytes for every parser of outside input, and what must hold whatever they are.
//!
//! Each target is a function of bytes that panics if its promise is broken. It has two callers: the tests of this
//! crate, which replay `corpus/` and generate a few more inputs with every `cargo test`; and `targets/`, where LLVM's
//! libFuzzer runs for as long as it is allowed to: `cargo local fuzz`.
//!
//! The functions, the store and the AWS SDKs are the real ones; the wire below them is the one of the other tests, in
//! memory and without faults. See [`shop`] for its data.
#![allow(clippy::expect_used, clippy::panic, reason = "a panic is how a promise is found broken")]

mod answers;
mod callers;
mod cursors;
mod events;
mod queues;
mod request;
pub mod shop;
mod values;

pub use callers::callers;
pub use cursors::{cursors, lists};
pub use events::{events, requests};
pub use queues::{letters, messages};
pub use values::values;

/// A target: its name, which is also that of its corpus and of its program in `targets/`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("callers", callers),
    ("cursors", cursors),
    ("events", events),
    ("letters", letters),
    ("lists", lists),
    ("messages", messages),
    ("requests", requests),
    ("values", values),
];
