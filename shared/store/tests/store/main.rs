//! The store over the real SDK and a DynamoDB in process, with faults on the wire.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

mod answers;
mod confirm;
mod failed;
mod products;
mod rate;
mod release;
mod reserve;
