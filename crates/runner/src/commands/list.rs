//! `scalebench methods` and `scalebench models`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use scalebench_generation::{FAMILIES, Pipeline};

use crate::cli::Models;
use crate::{methods, tables};

pub(super) fn methods() -> Result<()> {
    let mut lines = vec![vec!["method".to_owned(), "title".to_owned()]];
    for name in methods::names() {
        let spec = methods::find(name, Path::new(""))?;
        lines.push(vec![name.to_owned(), spec.title().to_owned()]);
    }
    print!("{}", tables::aligned(&lines));
    Ok(())
}

/// The families that methods have settings for.
fn families() -> String {
    let mut lines = vec![["family", "what", "trained at", "guidance", "hub repository"].map(String::from).to_vec()];
    lines.extend(FAMILIES.iter().map(|f| {
        let repository = f.repository.unwrap_or("datasets/pocket of this repository").to_owned();
        vec![f.name.to_owned(), f.title.to_owned(), format!("{0}x{0}", f.side), f.guidance_scale.to_string(), repository]
    }));
    tables::aligned(&lines)
}

pub(super) fn models(args: &Models) -> Result<()> {
    if args.folders.is_empty() {
        print!("{}", families());
        return Ok(());
    }
    let is_checkpoint = |folder: &Path| folder.join("model_index.json").is_file();
    let mut checkpoints: Vec<PathBuf> = Vec::new();
    for folder in &args.folders {
        if is_checkpoint(folder) {
            checkpoints.push(folder.clone());
            continue;
        }
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut inside: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        inside.retain(|path| is_checkpoint(path));
        inside.sort();
        ensure!(!inside.is_empty(), "{}: expected checkpoint folders with model_index.json", folder.display());
        checkpoints.extend(inside);
    }
    let mut lines = vec![["checkpoint", "family", "trained at", "VAE factor", "digest"].map(String::from).to_vec()];
    for path in checkpoints {
        let pipeline = Pipeline::load(&path)?;
        let (width, height) = pipeline.native_size();
        lines.push(vec![
            path.display().to_string(),
            pipeline.family().map_or("-", |f| f.name).to_owned(),
            format!("{width}x{height}"),
            pipeline.vae_factor().to_string(),
            pipeline.digest().to_owned(),
        ]);
    }
    print!("{}", tables::aligned(&lines));
    Ok(())
}
