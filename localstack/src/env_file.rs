//! Files of environment variables, as `cargo lambda watch --env-file` and shells read them: a line for each,
//! `NAME='value'`.
//!
//! Invariant: what is written is read back unchanged by `cargo-lambda` 1.9.2, by a shell and here. Single quotes keep the
//! quotes of JSON; `cargo-lambda` has no escape for what ends them, and makes a line break of `\n`.

use crate::error::{Context, Error, Result};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Environment variables by name.
pub type Variables = BTreeMap<String, String>;

/// Reads a file that [`write`] wrote; `None` if there is none.
///
/// # Errors
/// The file cannot be read, or is another one.
pub fn read(path: &Path) -> Result<Option<Variables>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
    parse(&text).map(Some).map_err(|line| {
        Error::new(format!("{} was not written by `cargo local resources`: {line:?}", crate::paths::shown(path)))
    })
}

/// Writes the variables, after comments that say what they are. Only the owner can read the file, since it holds the key
/// that signs local tokens.
///
/// # Errors
/// The file cannot be written, or a value cannot be in such a file.
pub fn write(path: &Path, comments: &[&str], variables: &Variables) -> Result<()> {
    let text = text(comments, variables)?;
    let cannot = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(cannot)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).context(cannot)
}

fn text(comments: &[&str], variables: &Variables) -> Result<String> {
    let mut text: String = comments.iter().map(|line| format!("# {line}\n")).collect();
    for (name, value) in variables {
        if value.contains(['\'', '\\', '\n']) {
            return Err(Error::new(format!(
                "the variable {name} cannot be written to an env file: {value:?} has a single quote, a backslash or a line break"
            )));
        }
        text.push_str(&format!("{name}='{value}'\n"));
    }
    Ok(text)
}

/// Fails with a line that is no variable.
fn parse(text: &str) -> std::result::Result<Variables, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
        Some((name.to_owned(), value.to_owned()))
    };
    lines.map(|line| variable(line).ok_or_else(|| line.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn variables(values: &[(&str, &str)]) -> Variables {
        values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_is_written_is_read_back_here_and_by_a_shell() {
        let path = crate::paths::local("").unwrap().join(format!("test-{}.env", std::process::id()));
        assert_eq!(read(&path).unwrap(), None);
        let values = variables(&[
            ("EMPTY", ""),
            ("JSON", r#"{"keys":[{"k":"a=b #c","use":"sig"}]}"#),
            ("PLAIN", "arn:aws:lambda:r:1:function:expire:live"),
            ("SHELL", "$HOME `id` \"x\""),
        ]);
        write(&path, &["Variables.", "More of it."], &values).unwrap();
        assert_eq!(read(&path).unwrap().as_ref(), Some(&values));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let shell = ["-c", r#"set -a; . "$0"; printf %s "$EMPTY|$JSON|$PLAIN|$SHELL""#, path.to_str().unwrap()];
        let printed = std::process::Command::new("sh").args(shell).output().unwrap().stdout;
        std::fs::remove_file(&path).unwrap();
        let expected: Vec<&str> = values.values().map(String::as_str).collect();
        assert_eq!(String::from_utf8(printed).unwrap(), expected.join("|"));
    }

    #[test]
    fn a_value_that_would_change_is_refused() {
        for value in ["it's", "a\\nb", "a\nb"] {
            let why = text(&[], &variables(&[("NAME", value)])).unwrap_err().to_string();
            assert!(why.contains("NAME"), "{why}");
        }
    }

    #[test]
    fn another_file_is_not_taken_for_one() {
        for text in ["NAME=value", "export NAME='value'x", "NAME", "NAME=\"value\""] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("# a comment\n\nNAME='value'\n"), Ok(variables(&[("NAME", "value")])));
    }
}
