//! Installs the tools that the stack and its tests need, at pinned versions, into Python environments below
//! `target/local/tools`, never into the system.
//!
//! Invariant: an environment is installed if its marker says so, and the marker is written last. (Python environments
//! cannot be moved, so "install elsewhere, then rename" is impossible.) With a lock, one process installs and others wait.

use crate::error::{Context, Error, Result};
use crate::paths;
use crate::process::Keeper;
use crate::progress::Step;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// The oldest Python that the emulator runs on.
const PYTHON: (u32, u32) = (3, 10);

/// A tool from the Python package index.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    /// Every version, its dependencies' too: what is installed, and what the marker compares.
    requirements: &'static str,
    /// Beside the requirements, to pip.
    options: &'static [&'static str],
    /// The program, in the environment's `bin`.
    program: &'static str,
}

/// Serves the functions. The wheel holds a ready binary; building the crate would take long.
pub const CARGO_LAMBDA: Tool = Tool {
    name: "cargo-lambda",
    requirements: include_str!("../tools/cargo-lambda.txt"),
    options: &["--no-deps"],
    program: "cargo-lambda",
};

/// The AWS emulator that needs no Docker.
pub const MINISTACK: Tool = Tool {
    name: "ministack",
    requirements: include_str!("../tools/ministack.txt"),
    options: &[],
    program: "ministack",
};

/// The same emulator with what it needs to be deployed to.
pub const MINISTACK_CLOUD: Tool = Tool {
    name: "ministack-cloud",
    requirements: include_str!("../tools/ministack-cloud.txt"),
    options: &[],
    program: "ministack",
};

/// Expands, lints and deploys template.yaml; cfn-lint beside it. For the deploy test and `.ci/run`.
pub const SAM: Tool =
    Tool { name: "aws-sam-cli", requirements: include_str!("../tools/aws-sam-cli.txt"), options: &[], program: "sam" };

/// What `cargo lambda build` cross-compiles with. It is found by way of the `python3` of its environment, so that one's
/// folder belongs on the `PATH`.
pub const ZIG: Tool =
    Tool { name: "ziglang", requirements: include_str!("../tools/ziglang.txt"), options: &[], program: "python3" };
/// Tests the API by its description. Only the end-to-end tests need it.
pub const SCHEMATHESIS: Tool = Tool {
    name: "schemathesis",
    requirements: include_str!("../tools/schemathesis.txt"),
    options: &[],
    program: "schemathesis",
};

/// Makes a client of the API's description. Only the end-to-end tests need it.
pub const CLIENT_GENERATOR: Tool = Tool {
    name: "openapi-python-client",
    requirements: include_str!("../tools/openapi-python-client.txt"),
    options: &[],
    program: "openapi-python-client",
};

/// Drives the console in a browser, which is found on the machine. Only the end-to-end tests need it.
pub const PLAYWRIGHT: Tool = Tool {
    name: "playwright",
    requirements: include_str!("../tools/playwright.txt"),
    options: &[],
    program: "python3",
};

/// The path of the tool's program, after installing the tool if it is not there in the pinned version.
///
/// # Errors
/// Python is missing or too old, or pip fails.
pub async fn ensure(tool: Tool, keeper: &Arc<Keeper>) -> Result<PathBuf> {
    let tools = paths::local("tools")?;
    let home = tools.join(tool.name);
    let marker = home.join("installed.txt");
    let program = home.join("bin").join(tool.program);
    if installed(tool, &marker, &program) {
        return Ok(program);
    }
    let _lock = lock(&tools.join(format!("{}.lock", tool.name)), tool).await?;
    // Another process may have installed it meanwhile.
    if installed(tool, &marker, &program) {
        return Ok(program);
    }
    install(tool, &home, keeper).await?;
    std::fs::write(&marker, tool.requirements).context(|| format!("cannot write {}", marker.display()))?;
    if !installed(tool, &marker, &program) {
        return Err(Error::new(format!("{} was installed, but {} is not there", tool.name, program.display())));
    }
    Ok(program)
}

fn installed(tool: Tool, marker: &Path, program: &Path) -> bool {
    std::fs::read_to_string(marker).is_ok_and(|text| text == tool.requirements) && program.exists() && runs(program)
}

/// Whether a script's interpreter is still the Python of its own environment. It is not if the clone was moved, since a
/// script names it by its whole path, or if the system's Python that the environment refers to was replaced; to start the
/// script would then fail with "No such file or directory".
fn runs(script: &Path) -> bool {
    let text = std::fs::read(script).unwrap_or_default();
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Some(interpreter) = line.strip_prefix(b"#!").and_then(|line| std::str::from_utf8(line).ok()) else {
        // A compiled program.
        return true;
    };
    let interpreter = Path::new(interpreter.trim());
    // For a long path pip writes a script of `sh` that starts Python.
    let is_python = interpreter.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    let folder = |path: &Path| path.parent().and_then(|folder| folder.canonicalize().ok());
    !is_python || (interpreter.exists() && folder(interpreter) == folder(script))
}

/// Held until dropped. The operating system releases it, too, when the process ends in any way.
async fn lock(path: &Path, tool: Tool) -> Result<File> {
    let file = File::create(path).context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => {
            return Err(error).context(|| format!("cannot lock {}", path.display()));
        }
    }
    let step = Step::start(format!("waiting for another process that installs {}", tool.name));
    let file = tokio::task::spawn_blocking(move || file.lock().map(|()| file))
        .await
        .context(|| "the wait for the lock was cut short".into())?
        .context(|| format!("cannot lock {}", path.display()))?;
    step.done("it is done");
    Ok(file)
}

async fn install(tool: Tool, home: &Path, keeper: &Arc<Keeper>) -> Result<()> {
    python_is_there().await?;
    let step = Step::start(format!("installing {} into {}", version(tool), paths::shown(home)));
    // Remove an incomplete installation.
    if home.exists() {
        std::fs::remove_dir_all(home).context(|| format!("cannot remove {}", home.display()))?;
    }
    step.detail("making a Python environment");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(home);
    run(&mut venv, keeper, &step).await.map_err(|why| {
        Error::new(format!(
            "Python cannot make a virtual environment (on Debian and Ubuntu: install python3-venv): {why}"
        ))
    })?;
    let requirements = home.join("requirements.txt");
    std::fs::write(&requirements, tool.requirements).context(|| format!("cannot write {}", requirements.display()))?;
    let mut pip = Command::new(home.join("bin").join("python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]);
    pip.args(tool.options).arg("--requirement").arg(&requirements);
    run(&mut pip, keeper, &step).await.map_err(|why| {
        Error::new(format!("pip cannot install {} (is the Python package index within reach?): {why}", version(tool)))
    })?;
    step.done("done");
    Ok(())
}

fn version(tool: Tool) -> &'static str {
    tool.requirements.lines().find(|line| line.starts_with(tool.name)).unwrap_or(tool.name)
}

async fn python_is_there() -> Result<()> {
    let wanted = format!("Python {}.{} or later is needed as `python3`", PYTHON.0, PYTHON.1);
    let asked = Command::new("python3")
        .args(["-c", "import sys; print(*sys.version_info[:2])"])
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|_| Error::new(format!("{wanted}, to install cargo-lambda and the emulator; it was not found")))?;
    let text = String::from_utf8_lossy(&asked.stdout);
    let mut numbers = text.split_whitespace().map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= PYTHON => Ok(()),
        (Some(major), Some(minor)) => Err(Error::new(format!("{wanted}; this is {major}.{minor}"))),
        _ => Err(Error::new(format!("{wanted}; `python3` does not tell its version"))),
    }
}

/// Runs to the end, showing each line; on failure, the reason is the last that was written to stderr.
async fn run(command: &mut Command, keeper: &Arc<Keeper>, step: &Step) -> std::result::Result<(), String> {
    let mut group = keeper
        .spawn("an installer", command.stdout(Stdio::piped()).stderr(Stdio::piped()))
        .map_err(|error| error.to_string())?;
    let (Some(out), Some(err)) = (group.child().stdout.take(), group.child().stderr.take()) else {
        return Err("its output cannot be read".to_owned());
    };
    let (mut out, mut err) = (BufReader::new(out).lines(), BufReader::new(err).lines());
    let show = async {
        while let Ok(Some(line)) = out.next_line().await {
            step.detail(&line);
        }
    };
    let keep = async {
        let mut last = String::new();
        while let Ok(Some(line)) = err.next_line().await {
            if !line.trim().is_empty() {
                last = line.trim().to_owned();
            }
        }
        last
    };
    let ((), last) = tokio::join!(show, keep);
    match group.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if last.is_empty() => Err(status.to_string()),
        Ok(_) => Err(last),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_script_whose_python_is_gone_or_elsewhere_is_installed_again() {
        let home = paths::local(&format!("test-tools-{}", std::process::id())).unwrap();
        let bin = home.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let script = bin.join("tool");
        let write = |line: &str| std::fs::write(&script, format!("{line}\nimport sys\n")).unwrap();
        let python = bin.join("python3");

        write(&format!("#!{}", python.display()));
        assert!(!runs(&script), "there is no Python");
        symlink("/bin/sh", &python).unwrap();
        assert!(runs(&script));
        std::fs::remove_file(&python).unwrap();
        symlink(home.join("replaced"), &python).unwrap();
        assert!(!runs(&script), "what it refers to is gone");
        for (line, expected) in [("#!/bin/python3", false), ("#!/bin/sh", true), ("\u{7f}ELF", true)] {
            write(line);
            assert_eq!(runs(&script), expected, "{line}");
        }
        std::fs::remove_dir_all(&home).unwrap();
    }
}
