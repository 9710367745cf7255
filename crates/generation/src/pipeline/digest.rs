//! A checkpoint's identity.

use super::ADAPTER_SCHEDULE;
use crate::checkpoint::{LoadOptions, weight_files};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Hashes names and contents of the files that a pipeline reads, in a fixed order.
pub(super) fn digest(folder: &Path, options: &LoadOptions, schedulers: &[&str]) -> Result<String> {
    let mut files: Vec<PathBuf> = schedulers.iter().map(|folder| Path::new(folder).join("scheduler_config.json")).collect();
    for suffix in ["", "_2"] {
        let encoder = format!("text_encoder{suffix}");
        if !suffix.is_empty() && !folder.join(&encoder).is_dir() {
            continue;
        }
        files.extend(["vocab.json", "merges.txt", "tokenizer_config.json"].map(|f| Path::new(&format!("tokenizer{suffix}")).join(f)));
        files.push(Path::new(&encoder).join("config.json"));
        files.extend(relative(folder, weight_files(&folder.join(&encoder), "model", options.variant.as_deref())?));
    }
    for component in ["unet", "vae"] {
        files.push(Path::new(component).join("config.json"));
        files.extend(relative(folder, weight_files(&folder.join(component), "diffusion_pytorch_model", options.variant.as_deref())?));
    }
    let mut hasher = blake3::Hasher::new();
    let mut files: Vec<(PathBuf, PathBuf)> = files.into_iter().map(|name| (folder.join(&name), name)).collect();
    if let Some(adapter) = &options.motion_adapter {
        let inside = |file: PathBuf| (file.clone(), Path::new("motion_adapter").join(file.file_name().unwrap_or_default()));
        files.push(inside(adapter.join("config.json")));
        files.extend(weight_files(adapter, "diffusion_pytorch_model", None)?.into_iter().map(inside));
        files.extend(Some(adapter.join(ADAPTER_SCHEDULE)).filter(|file| file.exists()).map(inside));
    }
    for (file, name) in files {
        hasher.update(name.to_string_lossy().replace('\\', "/").as_bytes());
        let mut one = blake3::Hasher::new();
        let source = std::fs::File::open(&file).map_err(|source| Error::Io { file: file.clone(), source })?;
        one.update_reader(source).map_err(|source| Error::Io { file: file.clone(), source })?;
        hasher.update(one.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn relative(folder: &Path, files: Vec<PathBuf>) -> impl Iterator<Item = PathBuf> {
    files.into_iter().map(move |file| file.strip_prefix(folder).map(Path::to_owned).unwrap_or(file))
}
