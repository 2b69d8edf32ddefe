//! For tests only: a DynamoDB in process behind the real SDK, a wire that can be cut, and fixtures.

pub mod fixtures;
pub mod wire;
