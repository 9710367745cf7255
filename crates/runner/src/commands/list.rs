//! `scalebench methods` and `scalebench models`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use scalebench_generation::{FAMILIES, Pipeline};

use crate::cli::{Models, Protocols};
use crate::experiment::{methods, protocol};
use crate::words::table::aligned;

pub(super) fn methods() -> Result<()> {
    let mut lines = vec![vec!["method".to_owned(), "title".to_owned()]];
    for name in methods::names() {
        let spec = methods::find(name, Path::new(""))?;
        lines.push(vec![name.to_owned(), spec.title().to_owned()]);
    }
    print!("{}", aligned(&lines));
    Ok(())
}

/// The built-in protocols, or the file of one.
pub(super) fn protocols(args: &Protocols) -> Result<()> {
    if let Some(name) = &args.name {
        // Found first, so that an unknown name gets its suggestion.
        let found = protocol::find(name, Path::new(""))?;
        match protocol::text(name) {
            Some(text) => print!("{text}"),
            None => print!("{}", serde_yaml::to_string(&found)?),
        }
        return Ok(());
    }
    let mut lines = vec![["protocol", "columns", "title"].map(str::to_owned).to_vec()];
    for name in protocol::names() {
        let protocol = protocol::find(name, Path::new(""))?;
        let columns: Vec<String> = protocol.scores().into_iter().map(|score| score.column).collect();
        lines.push(vec![name.to_owned(), columns.join(" "), protocol.title]);
    }
    print!("{}", aligned(&lines));
    Ok(())
}

/// The families that methods have settings for.
fn families() -> String {
    let mut lines = vec![["family", "what", "trained at", "guidance", "hub repository"].map(String::from).to_vec()];
    lines.extend(FAMILIES.iter().map(|f| {
        let repository = f.repository.unwrap_or("datasets/pocket of this repository").to_owned();
        vec![f.name.to_owned(), f.title.to_owned(), format!("{0}x{0}", f.side), f.guidance_scale.to_string(), repository]
    }));
    aligned(&lines)
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
    print!("{}", aligned(&lines));
    Ok(())
}
