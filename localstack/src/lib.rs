//! Holdfast on one machine, behind the Cargo alias `cargo local`.
//!
//! The functions run as they are deployed, under `cargo lambda watch`; an AWS emulator on one endpoint serves
//! DynamoDB, SQS and Scheduler; and a small runner does what the cloud does between them.
//!
//! ```text
//! caller -> gateway -> cargo lambda watch -> functions -> emulator
//!              ^                                             |
//!              +--- runner: due schedules, queue messages <--+
//! ```
//!
//! Start reading at [`stack::Stack::start`]; [`bare`] is the same in three parts, without the gateway. Everything listens on 127.0.0.1 and writes below `target/local`.

pub mod admin_cli;
pub mod app;
pub mod audit;
pub mod aws;
pub mod bare;
pub mod bench;
pub mod bootstrap;
pub mod cors;
pub mod demo;
pub mod emulator;
pub mod env_file;
pub mod error;
pub mod functions;
pub mod fuzz;
pub mod gateway;
pub mod openapi;
pub mod paths;
pub mod process;
pub mod progress;
pub mod routes;
pub mod runner;
pub mod running;
pub mod simulate;
pub mod stack;
pub mod template;
pub mod token;
pub mod tools;
