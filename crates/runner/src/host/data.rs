//! What travels in the program: the experiments on the pocket model, its checkpoint, motion modules, upscaler, Inception and I3D.
//!
//! Paths of theirs begin with `scalebench:`, so that a run's description is the same on every machine. Files are needed as files,
//! so the first use writes them into the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), in a folder named by their digest.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// Begins the paths of what travels in the program.
const PREFIX: &str = "scalebench:";

macro_rules! embedded {
    ($constant:ident, $doc:literal: $($path:literal),* $(,)?) => {
        #[doc = $doc]
        static $constant: &[(&str, &[u8])] = &[
            $(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $path)))),*
        ];
    };
}

embedded!(FILES, "Path and content of every file.":
    "datasets/pocket/README.md",
    "datasets/pocket/model_index.json",
    "datasets/pocket/scheduler/scheduler_config.json",
    "datasets/pocket/text_encoder/config.json",
    "datasets/pocket/text_encoder/model.safetensors",
    "datasets/pocket/tokenizer/merges.txt",
    "datasets/pocket/tokenizer/special_tokens_map.json",
    "datasets/pocket/tokenizer/tokenizer_config.json",
    "datasets/pocket/tokenizer/vocab.json",
    "datasets/pocket/unet/config.json",
    "datasets/pocket/unet/diffusion_pytorch_model.safetensors",
    "datasets/pocket/vae/config.json",
    "datasets/pocket/vae/diffusion_pytorch_model.safetensors",
    "datasets/pocket-upscaler/README.md",
    "datasets/pocket-upscaler/low_res_scheduler/scheduler_config.json",
    "datasets/pocket-upscaler/model_index.json",
    "datasets/pocket-upscaler/scheduler/scheduler_config.json",
    "datasets/pocket-upscaler/text_encoder/config.json",
    "datasets/pocket-upscaler/text_encoder/model.safetensors",
    "datasets/pocket-upscaler/tokenizer/merges.txt",
    "datasets/pocket-upscaler/tokenizer/special_tokens_map.json",
    "datasets/pocket-upscaler/tokenizer/tokenizer_config.json",
    "datasets/pocket-upscaler/tokenizer/vocab.json",
    "datasets/pocket-upscaler/unet/config.json",
    "datasets/pocket-upscaler/unet/diffusion_pytorch_model.safetensors",
    "datasets/pocket-upscaler/vae/config.json",
    "datasets/pocket-upscaler/vae/diffusion_pytorch_model.safetensors",
    "datasets/pocket-motion/README.md",
    "datasets/pocket-motion/config.json",
    "datasets/pocket-motion/diffusion_pytorch_model.safetensors",
    "datasets/pocket-motion/scheduler/scheduler_config.json",
    "datasets/pocket-inception/config.json",
    "datasets/pocket-inception/model.safetensors",
    "datasets/pocket-i3d/README.md",
    "datasets/pocket-i3d/config.json",
    "datasets/pocket-i3d/model.safetensors",
    "experiments/emoji.yaml",
    "experiments/nightly.yaml",
    "experiments/pocket.yaml",
    "experiments/quick.yaml",
    "experiments/repetition.yaml",
    "experiments/rivals.yaml",
    "experiments/superres.yaml",
    "experiments/video.yaml",
);

/// Names of the built-in experiments.
pub(crate) fn experiments() -> impl Iterator<Item = &'static str> {
    FILES.iter().filter_map(|(path, _)| path.strip_prefix("experiments/")?.strip_suffix(".yaml"))
}

/// The text of a built-in experiment, with the paths of its checkpoints made ones of this module.
pub(crate) fn experiment(name: &str) -> Option<String> {
    let path = format!("experiments/{name}.yaml");
    let (_, text) = FILES.iter().find(|(known, _)| *known == path)?;
    Some(String::from_utf8_lossy(text).replace("../datasets/", &format!("{PREFIX}datasets/")))
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
    for (path, content) in FILES {
        digest.update(path.as_bytes()).update(content);
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
    for (path, content) in FILES {
        let file = folder.join(path);
        let write = || {
            std::fs::create_dir_all(file.parent().unwrap_or(folder))?;
            std::fs::write(&file, content)
        };
        write().with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_checkpoints_travels() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let known: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        let mut folders = ["pocket", "pocket-motion", "pocket-upscaler", "pocket-inception", "pocket-i3d"]
            .map(|name| root.join("datasets").join(name))
            .to_vec();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.ends_with(".png") && !name.ends_with("training.json") {
                    assert!(known.contains(&name.as_str()), "{name}");
                }
            }
        }
    }

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
