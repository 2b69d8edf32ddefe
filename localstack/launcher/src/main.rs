//! `cargo local`, from any folder of a clone.
//!
//! Cargo selects the package of the current folder, or with `--package` one package, and its features are then others
//! than those of the whole workspace: everything would be compiled a second time, the AWS SDKs too. Only in the root's
//! folder, or given the root's manifest, it selects the whole workspace; and an alias cannot name the root. This program
//! finds it.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let here = match env::current_dir() {
        Ok(here) => here,
        Err(error) => return failed(&format!("cannot tell the current folder: {error}")),
    };
    let Some(workspace) = holdfast_launcher::workspace(&here) else {
        return failed(&format!("{} is not in a clone of Holdfast", here.display()));
    };
    // The Cargo that runs this program.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // In the place of this process, so that Ctrl-C and the exit code are the tool's own.
    let error = holdfast_launcher::command(cargo, &workspace, env::args_os().skip(1)).exec();
    failed(&format!("cannot start cargo: {error}"))
}

fn failed(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::FAILURE
}
