//! The files that travel in the program, and where they lie when they are needed.
//!
//! Paths of theirs begin with `scalebench:`, so that a run's description is the same on every machine. Files are needed as files,
//! so the first use writes them into the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), in a folder named by their digest.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use scalebench_pocket::FILES;
pub(crate) use scalebench_pocket::experiments;

/// Begins the paths of what travels in the program.
const PREFIX: &str = "scalebench:";

/// The text of a built-in experiment, with the paths of its checkpoints made ones of this module.
pub(crate) fn experiment(name: &str) -> Option<String> {
    let text = scalebench_pocket::file(&format!("experiments/{name}.yaml"))?.content();
    Some(String::from_utf8_lossy(&text).replace("../datasets/", &format!("{PREFIX}datasets/")))
}

/// Where a path lies: itself, or what it names in this program, written into the cache.
pub(crate) fn located(path: &Path) -> Result<PathBuf> {
    let Some(inside) = path.to_str().and_then(|path| path.strip_prefix(PREFIX)) else { return Ok(path.to_owned()) };
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = FOLDER.get() {
        return Ok(folder.join(inside));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).unwrap_or_default();
    let mut digest = blake3::Hasher::new();
    for file in FILES {
        digest.update(file.path.as_bytes()).update(file.packed());
    }
    let folder = cache.join("scalebench").join(format!("data-{}", &digest.finalize().to_hex()[..16]));
    if !folder.exists() {
        let new = folder.with_extension(format!("{}.tmp", std::process::id()));
        unpack(&new)?;
        // Another process may have been first; it wrote the same.
        if let Err(error) = std::fs::rename(&new, &folder)
            && !folder.exists()
        {
            return Err(error).with_context(|| format!("cannot write {}", folder.display()));
        }
    }
    Ok(FOLDER.get_or_init(|| folder).join(inside))
}

/// Writes all files into a folder.
pub(crate) fn unpack(folder: &Path) -> Result<()> {
    for file in FILES {
        let path = folder.join(file.path);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
            std::fs::write(&path, file.content())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiments_name_what_travels() {
        assert_eq!(experiments().collect::<Vec<_>>(), ["emoji", "nightly", "pocket", "quick", "repetition", "rivals", "superres", "video"]);
        for name in experiments() {
            let text = experiment(name).unwrap();
            assert!(
                (text.contains("scalebench:datasets/pocket}") || text.contains("scalebench:datasets/pocket,"))
                    && !text.contains("../datasets"),
                "{name}"
            );
        }
        assert_eq!(experiment("quik"), None);
        assert_eq!(located(Path::new("a/b")).unwrap(), Path::new("a/b"));
    }
}
