//! `cargo local bench`: hands over to the benchmark, which is a program of its own.
//!
//! Not a library of this one: it is built as optimised as a release, which must not contain the sign-in of the local stack.

use std::process::ExitCode;

use crate::error::{Context as _, Result};
use crate::paths::workspace;
use crate::process::cargo;
use crate::token::{Role, Signer};

/// The benchmark's options, for the help of `cargo local bench`, which must not need minutes of compiling.
pub const OPTIONS: &str = "\
Options of the benchmark:
      --case <CASE,CASE>     herd, plenty, basket, limit, confirm, life, catalogue [default: herd,plenty]
      --connections <N,N>    Numbers of connections, each with one request at a time [default: 100]
      --requests <N>         Requests of a run [default: 10000]
      --seconds <S>          The longest time of a run: after that no more requests are sent [default: 60]
      --runs <N>             Runs of each case; the table has their medians [default: 3]
      --rate <R>             Requests a second, whatever the answers; latencies count from when a request was due
      --replays <PERCENT>    Requests that repeat an earlier one, with its key [default: 0]
      --units <N>            Units of the product of herd and plenty [default: 100, and one for each request]
      --call-ms <MS>         Delay each answer of DynamoDB by this time [default: 0]
      --conflicts            Refuse a transaction while another one is on one of its items; needs --call-ms
      --model                Measure nothing, and print by a model what one product would take on AWS
      --cold                 Measure how long a new environment takes to its first reservation, over TLS
      --cores <SHARE,SHARE>  Shares of a core for its requests, below 1 as root; 1 is without a limit, as is its start
                             [default: 1,0.15]
      --beside <NAME=COMMAND>
                             Start this other program for Lambda as well, with the same
                             variables; may be repeated
      --program <FILE>       A build of reserve for --cold [default: target/release/reserve, which is built]
      --json <FILE>          Write all figures to this file
      --plot <FILE>          Draw the latencies by percentile, as SVG; with --model, by requests a second
      --url <URL>            Load the Holdfast that runs there, such as that of `cargo local up`
      --service-token, --admin-token <TOKEN>
                             Its tokens, if it is not a local one
      --against <NAME=URL>   Load this other service as well, in turn, for the cases herd and plenty
      --path <PATH>          Path of its requests. {n} is a unique number, {customer} a customer, also below
      --header <K=V>         A header of its requests; may be repeated
      --body <TEMPLATE>      The body of its requests
      --reset <COMMAND>      A command that gives it its stock before each run; {units} is how many
      --pids <PID,PID>       Its processes, whose processor time is counted";

/// Builds the benchmark, and runs it with these arguments. Their paths are relative to the current folder.
///
/// # Errors
/// Cargo cannot be started, or a token cannot be made.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut built = None;
    if names(arguments, "--cold") && !names(arguments, "--program") {
        let target = workspace().join("target");
        let mut release = cargo();
        release.args(["build", "--locked", "--release", "--package", "reserve", "--target-dir"]).arg(&target);
        if !release.status().context(|| "cannot start cargo".to_owned())?.success() {
            return Ok(ExitCode::FAILURE);
        }
        built = Some(target.join("release/reserve"));
    }
    let mut cargo = cargo();
    cargo.current_dir(".").args(["run", "--locked", "--profile", "simulate", "--package", "holdfast-bench"]);
    cargo.arg("--manifest-path").arg(workspace().join("Cargo.toml")).arg("--").args(arguments);
    if let Some(program) = built {
        cargo.arg("--program").arg(program);
    }
    if names(arguments, "--url") && !names(arguments, "--service-token") {
        let signer = Signer::load()?;
        cargo.args(["--service-token", &signer.token("bench", Role::Service)?]);
        cargo.args(["--admin-token", &signer.token("bench", Role::Admin)?]);
    }
    let status = cargo.status().context(|| "cannot start cargo".to_owned())?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether an option is among the arguments, with its value in the same one or the next.
fn names(arguments: &[String], option: &str) -> bool {
    arguments
        .iter()
        .any(|argument| argument.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::tests::{listed, options_in};

    #[test]
    fn the_help_names_every_option_of_the_benchmark() {
        assert_eq!(listed(OPTIONS), options_in("localstack/bench/src/main.rs", "struct Options"));
    }

    #[test]
    fn an_option_is_found_in_both_its_forms() {
        let found = |words: &[&str]| names(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), "--url");
        assert!(found(&["--runs", "1", "--url", "http://a:1"]) && found(&["--url=http://a:1"]));
        assert!(!found(&["--urls", "x"]) && !found(&[]));
    }
}
