//! `cargo local simulate`: hands over to the simulator, which is a program of its own.
//!
//! Not a library of this one: it brings a database and all five functions along, and the demo needs neither.

use std::process::ExitCode;

use crate::error::{Context as _, Result};
use crate::process::cargo;

/// The simulator's options, for the help of `cargo local simulate`, which must not need minutes of compiling.
pub const OPTIONS: &str = "\
Options of the simulator:
      --seeds <N>            Number of seeds [default: 1000]
      --from <N>             The first seed [default: 0]
      --hours <HOURS>        Run for this long instead, whatever the number of seeds
      --threads <N>          Seeds at once, 1 to 64 [default: 2]
      --moments <N,N>        Only these moments of the plan, as a failing seed prints them
      --faults <NAME,NAME>   Only these kinds of faults, or `none`
      --history              Print the whole history of each seed
      --tally                Continue after a failure, and count which promises broke in which seeds
      --planted <NAME>       Plant a bug by its name, or `all`: run seeds until each is caught";

/// Whether the arguments ask for help.
pub fn asks_for_help(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| matches!(argument.as_str(), "--help" | "-h"))
}

/// Builds the simulator, and runs it with these arguments; if `fast`, or with `--fast` among them, optimised as a whole:
/// slow to build, and worth it for runs of hours.
///
/// # Errors
/// Cargo cannot be started.
pub fn run(fast: bool, arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "--locked", "--package", "holdfast-simulator"]);
    let is_fast = |argument: &&String| *argument == "--fast";
    let (fasts, arguments): (Vec<&String>, Vec<&String>) = arguments.iter().partition(is_fast);
    if fast || !fasts.is_empty() {
        cargo.args(["--profile", "simulate"]);
    }
    let status = cargo.arg("--").args(arguments).status().context(|| "cannot start cargo".to_owned())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The options that the fields of a struct in this file are, sorted.
    pub(crate) fn options_in(source: &str, of: &str) -> Vec<String> {
        let source = std::fs::read_to_string(crate::paths::workspace().join(source)).unwrap();
        let (fields, _) = source.split_once(&format!("\n{of} {{")).unwrap().1.split_once("\n}\n").unwrap();
        let fields = fields.lines().filter_map(|line| line.trim().split_once(": ").filter(|_| !line.contains("//")));
        let mut options: Vec<String> = fields
            .filter(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .map(|(name, _)| format!("--{}", name.replace('_', "-")))
            .collect();
        options.sort();
        options
    }

    /// The options that a help lists at the beginning of its lines, sorted.
    pub(crate) fn listed(help: &str) -> Vec<String> {
        let lines = help.lines().filter(|line| line.trim().starts_with("--"));
        let words = lines.flat_map(|line| line.split_whitespace().take_while(|word| word.starts_with("--")));
        let mut options: Vec<String> = words.map(|word| word.trim_end_matches(',').to_owned()).collect();
        options.sort();
        options
    }

    #[test]
    fn the_help_names_every_option_of_the_simulator() {
        assert_eq!(listed(OPTIONS), options_in("shared/simulator/src/main.rs", "struct Cli"));
    }

    #[test]
    fn help_is_asked_for_anywhere() {
        let asks = |words: &[&str]| asks_for_help(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert!(asks(&["--help"]) && asks(&["--seeds", "3", "-h"]));
        assert!(!asks(&["--seeds", "3"]) && !asks(&[]));
    }
}
