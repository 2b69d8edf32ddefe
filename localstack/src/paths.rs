//! Where things are. All that the local stack writes lies below `target/local`, so `cargo clean` removes it.

use crate::error::{Context, Result};
use std::path::{Path, PathBuf};

/// The workspace that this tool was built from, and serves.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
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
