//! `cargo local fuzz`: fuzzes the parsers of external input with libFuzzer.
//!
//! The targets are those of `shared/fuzz`. cargo-fuzz builds their programs, on a stable compiler: with LLVM's coverage
//! counters and without a sanitizer, which looks for what safe Rust does not do. All artefacts are in a target
//! folder of its own, `target/fuzz`, so that nothing else is rebuilt for it.

use crate::error::{Context as _, Error, Result};
use crate::paths::{self, shown, workspace};
use crate::process::{Keeper, cargo};
use crate::progress::Step;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// The version of cargo-fuzz.
const CARGO_FUZZ: &str = "0.13.2";
/// How much of what a program wrote is shown where it fails.
const LAST_LINES: usize = 40;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The target; `None`: all of them in turn.
    pub target: Option<String>,
    /// Minutes per target.
    pub minutes: u32,
    /// Only this input, once.
    pub input: Option<PathBuf>,
}

/// Runs the target, or all in turn, and returns whether every promise held.
///
/// # Errors
/// There is no such target, or something cannot be installed, built or started.
pub async fn run(options: Options) -> Result<bool> {
    let targets = chosen(&targets()?, options.target.as_deref())?;
    if options.input.is_some() && targets.len() > 1 {
        return Err(Error::new("an input is one target's: name it, as in `cargo local fuzz requests --input FILE`"));
    }
    let keeper = Keeper::start()?;
    let cargo_fuzz = ensure(&keeper).await?;
    let programs = build(&keeper, &cargo_fuzz, &targets).await?;
    let mut fine = true;
    for target in &targets {
        let program = programs.join(target);
        fine &= match &options.input {
            Some(input) => replay(&keeper, &program, target, input).await?,
            None => fuzz(&keeper, &program, target, options.minutes).await?,
        };
    }
    Ok(fine)
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let folder = crate_folder().join("targets");
    let context = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for file in fs::read_dir(&folder).context(context)? {
        let path = file.context(context)?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn chosen(all: &[String], wanted: Option<&str>) -> Result<Vec<String>> {
    match wanted {
        None => Ok(all.to_vec()),
        Some(wanted) if all.iter().any(|name| name == wanted) => Ok(vec![wanted.to_owned()]),
        Some(wanted) => Err(Error::new(format!("there is no target {wanted}; there are {}", all.join(", ")))),
    }
}

fn crate_folder() -> PathBuf {
    workspace().join("shared").join("fuzz")
}

fn made() -> PathBuf {
    workspace().join("target").join("fuzz")
}

/// cargo-fuzz at its version, installed where it is not there yet. Cargo puts the program in place last, and lets one
/// process install while others wait.
async fn ensure(keeper: &Arc<Keeper>) -> Result<PathBuf> {
    let root = paths::local("tools")?.join(format!("cargo-fuzz-{CARGO_FUZZ}"));
    let program = root.join("bin").join("cargo-fuzz");
    if program.exists() {
        return Ok(program);
    }
    let step = Step::start(format!("installing cargo-fuzz {CARGO_FUZZ} into {}", shown(&root)));
    // Unoptimised and without debug info: it runs seconds and builds minutes.
    let mut install = Command::from(cargo());
    install.env("CARGO_PROFILE_DEV_DEBUG", "0").args(["install", "--locked", "--profile", "dev", "--root"]);
    install.arg(&root).args(["--version", CARGO_FUZZ, "cargo-fuzz"]);
    let (status, last) = watch(keeper, "cargo", &mut install, &step, |_| false).await?;
    if !status.success() {
        return Err(Error::new(format!("cargo cannot install cargo-fuzz:\n{}", text(&last))));
    }
    step.done("done");
    Ok(program)
}

/// Builds the programs of the targets; where they are.
async fn build(keeper: &Arc<Keeper>, cargo_fuzz: &Path, targets: &[String]) -> Result<PathBuf> {
    let triple = host().await?;
    let step = Step::start("building the targets (at first, all that they use: many minutes)");
    let mut build = Command::new(cargo_fuzz);
    build.current_dir(workspace()).args(["fuzz", "build", "--dev", "--sanitizer", "none", "--features", "libfuzzer"]);
    // The crates must behave as deployed: some change their behaviour with cfg(fuzzing).
    build.args(["--no-cfg-fuzzing", "--target", &triple, "--fuzz-dir"]).arg(crate_folder());
    build.arg("--target-dir").arg(made());
    // A development build, for its checks of numbers and its own assertions; optimised a little, for its speed.
    build.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    if let [target] = targets {
        build.arg(target);
    }
    let (status, last) = watch(keeper, "cargo-fuzz", &mut build, &step, |_| false).await?;
    if !status.success() {
        return Err(Error::new(format!("the targets cannot be built (a C++ compiler is needed):\n{}", text(&last))));
    }
    step.done("done");
    Ok(made().join(triple).join("debug"))
}

/// The compiler's name of this machine.
async fn host() -> Result<String> {
    let asked = Command::new("rustc").arg("-vV").output().await.context(|| "cannot start rustc".to_owned())?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Error::new("rustc does not say what machine this is"))
}

/// Lets libFuzzer at a target; whether it found nothing.
async fn fuzz(keeper: &Arc<Keeper>, program: &Path, target: &str, minutes: u32) -> Result<bool> {
    // What it finds worth keeping goes into the first folder: the committed corpus is only read.
    let found = folder("corpus", target)?;
    let artifacts = folder("artifacts", target)?;
    let mut prefix = OsString::from("-artifact_prefix=");
    prefix.push(artifacts.join(""));
    let step = Step::start(format!("{target}, for {minutes} min"));
    let mut run = Command::new(program);
    run.current_dir(workspace()).arg(prefix).arg(format!("-max_total_time={}", minutes.saturating_mul(60)));
    // One input takes milliseconds: one that takes this long hangs.
    run.args(["-timeout=30", "-max_len=8192"]).arg(&found).arg(crate_folder().join("corpus").join(target));
    let heartbeat = |line: &str| ["INITED", "pulse", "DONE"].iter().any(|word| line.contains(word));
    let (status, last) = watch(keeper, target, &mut run, &step, heartbeat).await?;
    if status.success() {
        let inputs = last.iter().rev().find_map(|line| line.strip_prefix("Done ")).unwrap_or("some runs");
        step.done(&format!("no promise broken, {inputs}"));
        return Ok(true);
    }
    drop(step);
    eprintln!("{}", text(&last));
    let written = last.iter().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
    match written.map(Path::new).map(shown) {
        Some(input) => eprintln!(
            "
{target} broke a promise: see above. The input is in {input}

  once more    cargo local fuzz {target} --input {input}
  and for ever cp {input} shared/fuzz/corpus/{target}/ && cargo test -p holdfast-fuzz
"
        ),
        None => eprintln!("{target} ended with {status}, and no input was written"),
    }
    Ok(false)
}

/// Plays one input; whether every promise held.
async fn replay(keeper: &Arc<Keeper>, program: &Path, target: &str, input: &Path) -> Result<bool> {
    let input = input.canonicalize().context(|| format!("cannot read {}", input.display()))?;
    let step = Step::start(format!("{target} with {}", shown(&input)));
    let mut run = Command::new(program);
    run.current_dir(workspace()).arg("-timeout=30").arg(&input);
    let (status, last) = watch(keeper, target, &mut run, &step, |_| false).await?;
    if status.success() {
        step.done("no promise broken");
    } else {
        drop(step);
        eprintln!("{}", text(&last));
    }
    Ok(status.success())
}

fn folder(kind: &str, target: &str) -> Result<PathBuf> {
    let path = made().join(kind).join(target);
    fs::create_dir_all(&path).context(|| format!("cannot make the folder {}", path.display()))?;
    Ok(path)
}

/// Runs a program to its end. The step shows what it writes to stderr, and the lines that `stays` is true of stay there;
/// the last ones are handed back.
async fn watch(
    keeper: &Arc<Keeper>,
    name: &str,
    command: &mut Command,
    step: &Step,
    stays: impl Fn(&str) -> bool,
) -> Result<(ExitStatus, VecDeque<String>)> {
    let mut group = keeper.spawn(name, command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
    let mut last = VecDeque::new();
    if let Some(written) = group.child().stderr.take() {
        let mut lines = BufReader::new(written).split(b'\n');
        // Bytes: an input that breaks a promise may be shown, and need not be text.
        while let Some(line) = lines.next_segment().await.context(|| format!("cannot read what {name} writes"))? {
            let line = String::from_utf8_lossy(&line).into_owned();
            if stays(&line) {
                step.line(&line);
            } else {
                step.detail(&line);
            }
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    Ok((group.wait().await?, last))
}

fn text(lines: &VecDeque<String>) -> String {
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_those_of_the_crate_and_no_other_can_be_chosen() {
        let all = targets().unwrap();
        assert!(all.iter().any(|name| name == "requests"), "{all:?}");
        for name in &all {
            assert!(crate_folder().join("corpus").join(name).is_dir(), "{name}");
            assert_eq!(chosen(&all, Some(name)).unwrap(), std::slice::from_ref(name));
        }
        assert_eq!(chosen(&all, None).unwrap(), all);
        assert!(chosen(&all, Some("request")).unwrap_err().to_string().contains("requests"));
    }

    #[tokio::test]
    async fn of_what_a_program_writes_the_last_lines_are_kept_also_where_they_are_no_text() {
        let keeper = Keeper::start().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            r"i=0; while [ $i -lt 100 ]; do echo line $i >&2; i=$((i + 1)); done; printf '\377\n' >&2; exit 3",
        ]);
        let (status, last) = watch(&keeper, "sh", &mut command, &Step::start("test"), |_| false).await.unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!((last.len(), last[0].as_str()), (LAST_LINES, "line 61"));
        assert_eq!(last.back().map(String::as_str), Some("\u{fffd}"));
    }
}
