//! `cargo local simulate`: hands over to the simulator, which is a program of its own.
//!
//! Not a library of this one: it brings a database and all five functions along, and the demo needs neither.

use std::process::ExitCode;

use crate::error::{Context as _, Result};
use crate::process::cargo;

/// Builds the simulator, and runs it with these arguments; with `--fast` among them, optimised as a whole: slow to
/// build, and worth it for runs of hours.
///
/// # Errors
/// Cargo cannot be started.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--locked", "--package", "holdfast-simulator"]);
    let (fast, arguments): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|argument| *argument == "--fast");
    if !fast.is_empty() {
        cargo.args(["--profile", "simulate"]);
    }
    let status = cargo.arg("--").args(arguments).status().context(|| "cannot start cargo".to_owned())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
