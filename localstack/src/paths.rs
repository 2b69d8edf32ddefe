//! Where things are. All that the local stack writes lies below `target/local`, so `cargo clean` removes it.

use crate::error::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A copied or moved clone may have been given this program with its target folder, so the folder that the program was
/// built in counts only if the current folder is in no clone.
static WORKSPACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let here = std::env::current_dir().ok();
    here.and_then(|here| holdfast_launcher::workspace(&here)).unwrap_or_else(|| {
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
        built_from.parent().unwrap_or(built_from).to_path_buf()
    })
});

/// The clone that this tool serves: the one that the current folder belongs to.
pub fn workspace() -> PathBuf {
    WORKSPACE.clone()
}

/// A folder below `target/local`, made if it is not there.
///
/// # Errors
/// The folder cannot be made.
pub fn local(folder: &str) -> Result<PathBuf> {
    let path = workspace().join("target").join("local").join(folder);
    std::fs::create_dir_all(&path).context(|| format!("cannot make the folder {}", path.display()))?;
    Ok(path)
}

/// A path for output: relative to the current directory if possible.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
