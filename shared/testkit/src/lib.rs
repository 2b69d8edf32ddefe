//! For tests only: AWS in process behind the real SDKs, a wire that can be cut, events as they reach the functions, and
//! fixtures.
#![warn(clippy::missing_errors_doc)]

pub mod database;
pub mod event;
pub mod fixtures;
pub mod log;
mod services;
pub mod wire;
