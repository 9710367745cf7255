//! Digests (BLAKE3, hex) of files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Of a file's bytes, which are never in memory as a whole.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    hasher.update_reader(file).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize().to_string())
}

/// Of several files, in order.
pub(crate) fn of_files(paths: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update(of_file(path)?.as_bytes());
    }
    Ok(hasher.finalize().to_string())
}
