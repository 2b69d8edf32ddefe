//! Finds the clone of Holdfast that a command is meant for.
//!
//! It has no dependencies, and so no features: see `main.rs` for the reason.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clone that a folder belongs to: the nearest folder above it, or itself, with Holdfast's template and workspace.
pub fn workspace(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| is_holdfast(folder)).map(Path::to_path_buf)
}

fn is_holdfast(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("Cargo.toml"));
    folder.join("template.yaml").is_file() && manifest.is_ok_and(|text| text.contains("holdfast-local"))
}

/// Cargo, to run the local tool of this clone with `arguments`. The current folder is left as it is: paths among the
/// arguments are relative to it.
pub fn command(cargo: OsString, workspace: &Path, arguments: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = Command::new(cargo);
    command.args(["run", "--bin", "holdfast-local", "--manifest-path"]).arg(workspace.join("Cargo.toml"));
    command.arg("--").args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clone_is_found_from_each_of_its_folders() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.ancestors().nth(2).unwrap();
        for folder in ["", "localstack", "localstack/launcher/src", "shared/domain", "events/admin"] {
            assert_eq!(workspace(&root.join(folder)).as_deref(), Some(root), "{folder}");
        }
        assert_eq!(workspace(Path::new("/")), None);
    }

    #[test]
    fn the_nearest_clone_is_meant() {
        // Inside another clone, as a copy may be.
        let copy =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/local/copy-{}", std::process::id()));
        let folder = copy.join("functions/reserve");
        fs::create_dir_all(&folder).unwrap();
        fs::write(copy.join("template.yaml"), "").unwrap();
        fs::write(copy.join("Cargo.toml"), "holdfast-local = { path = \"localstack\" }").unwrap();
        // The manifest of a package is not the workspace's.
        fs::write(folder.join("Cargo.toml"), "[package]").unwrap();
        let found = workspace(&folder);
        fs::remove_dir_all(&copy).unwrap();
        assert_eq!(found, Some(copy));
    }

    #[test]
    fn cargo_is_run_with_the_whole_workspace() {
        let command = command("cargo".into(), Path::new("/clone"), ["token".into(), "--sub".into(), "a b".into()]);
        let arguments: Vec<_> = command.get_args().collect();
        let expected = ["run", "--bin", "holdfast-local", "--manifest-path", "/clone/Cargo.toml"];
        assert_eq!(arguments, [&expected[..], &["--", "token", "--sub", "a b"]].concat());
        assert_eq!(command.get_current_dir(), None);
    }

    #[test]
    fn the_alias_names_this_package() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let config = fs::read_to_string(root.join(".cargo/config.toml")).unwrap();
        assert!(config.contains(concat!("\nlocal = \"run --quiet --package ", env!("CARGO_PKG_NAME"), " --\"\n")));
    }
}
