//! Where checkpoints are found, which of their files are read, and which families are known.

use crate::error::{Error, Result, read};
use candle_core::{DType, Device};
use scalebench_kernels::Precision;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A model family: selects the settings of methods that differ between models.
///
/// Example: [`Blueprint`](crate::Blueprint).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// Name in method files and experiments.
    pub name: &'static str,
    /// Name for people.
    pub title: &'static str,
    /// Where its weights are published, as a repository of the Hugging Face hub.
    pub repository: Option<&'static str>,
    /// Side of the training images in pixels.
    pub side: u32,
    /// The guidance scale of ScaleCrafter's scripts; of the pocket model, the one with the best FID.
    pub guidance_scale: f64,
}

/// The families that methods have settings for.
pub const FAMILIES: [Family; 6] = [
    Family {
        name: "sd15",
        title: "Stable Diffusion 1.5",
        repository: Some("stable-diffusion-v1-5/stable-diffusion-v1-5"),
        side: 512,
        guidance_scale: 7.5,
    },
    Family {
        name: "sd21",
        title: "Stable Diffusion 2.1 base",
        repository: Some("stabilityai/stable-diffusion-2-1-base"),
        side: 512,
        guidance_scale: 7.5,
    },
    Family {
        name: "sd21-768",
        title: "Stable Diffusion 2.1, 768 px, v-prediction",
        repository: Some("stabilityai/stable-diffusion-2-1"),
        side: 768,
        guidance_scale: 7.5,
    },
    Family {
        name: "sdxl",
        title: "Stable Diffusion XL 1.0 base",
        repository: Some("stabilityai/stable-diffusion-xl-base-1.0"),
        side: 1024,
        guidance_scale: 5.0,
    },
    Family {
        name: "modelscope",
        title: "ModelScope text-to-video",
        repository: Some("ali-vilab/text-to-video-ms-1.7b"),
        side: 256,
        guidance_scale: 9.0,
    },
    Family { name: "pocket", title: "the embedded pocket checkpoint", repository: None, side: 64, guidance_scale: 3.5 },
];

/// How a checkpoint is read.
///
/// Example: [`Upscaler`](crate::Upscaler).
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// File variant, such as `fp16` (`diffusion_pytorch_model.fp16.safetensors`). Without one the plain
    /// files are taken, or `fp16` where a component has nothing else.
    pub variant: Option<String>,
    /// Folder of a motion adapter (diffusers' `MotionAdapter`), which makes a network of images one of videos.
    pub motion_adapter: Option<PathBuf>,
    /// Precision of weights and of the U-Net's products.
    pub dtype: Dtype,
    /// Where the networks run, opened by [`DeviceId::open`](scalebench_kernels::DeviceId::open).
    pub device: Device,
}

impl Default for LoadOptions {
    /// Plain files, as stored, on the CPU.
    fn default() -> Self {
        Self { variant: None, motion_adapter: None, dtype: Dtype::F32, device: default_device() }
    }
}

#[cfg(not(test))]
fn default_device() -> Device {
    Device::Cpu
}

/// Tests run on the device that `SCALEBENCH_TEST_DEVICE` names, so that the goldens judge GPUs as well.
#[cfg(test)]
fn default_device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    let open = || match std::env::var("SCALEBENCH_TEST_DEVICE") {
        Ok(name) => name.parse::<scalebench_kernels::DeviceId>().expect("a device's name").open().expect("a device"),
        Err(_) => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}

/// Precision of weights.
///
/// On the CPU activations, sums and everything that is not a product are f32 always. On a GPU the U-Net's activations have this
/// type too, as in PyTorch, and sums are f32. Text encoders and autoencoder are f32 everywhere: they take little of the
/// time, and SDXL's decoder needs the range.
///
/// Example: [`UNetBench`](crate::UNetBench).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As stored, widened.
    #[default]
    F32,
    /// Rounded to bfloat16. The U-Net rounds what its convolutions, linear layers and attentions multiply as well, which
    /// is about twice as fast where the CPU has `avx512_bf16`, and the same numbers more slowly where it has not.
    Bf16,
    /// Rounded to half precision. A CPU multiplies in f32.
    F16,
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        serde::Serialize::serialize(self, f)
    }
}

impl Dtype {
    /// The type of the U-Net's tensors on a GPU, and of the rounded weights everywhere.
    pub(crate) fn stored(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// What the operands of the U-Net's products are rounded to on the CPU.
    pub(crate) fn products(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::F32 | Self::F16 => Precision::F32,
        }
    }
}

/// The folder of a checkpoint: `place` itself, or the snapshot of a hub repository `org/name` (or
/// `org/name@revision`) in the local Hugging Face cache, downloaded first if it is not there.
///
/// Example: [`Error`](crate::Error).
pub fn locate(place: &Path) -> Result<PathBuf> {
    match (locate_here(place), place.to_str().and_then(repository)) {
        (Err(_), Some((repository, revision))) => download(&cache_folder(), repository, revision),
        (found, _) => found,
    }
}

/// [`locate`] without downloading: what is not on this machine is an error of the kind [`NotFound`](std::io::ErrorKind::NotFound).
///
/// Example: [`Error`](crate::Error).
pub fn locate_here(place: &Path) -> Result<PathBuf> {
    if place.is_dir() {
        return Ok(place.to_owned());
    }
    let (found, reason) = match place.to_str().and_then(repository) {
        Some((repository, revision)) => (snapshot(&cache_folder(), repository, revision), "neither a folder nor in the Hugging Face cache"),
        None => (None, "no such folder"),
    };
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, reason);
    found.ok_or_else(|| Error::Io { file: place.to_owned(), source })
}

/// Splits `org/name@revision`; `None` if it is not of that form.
fn repository(place: &str) -> Option<(&str, &str)> {
    let (repository, revision) = place.split_once('@').unwrap_or((place, "main"));
    let (organisation, name) = repository.split_once('/')?;
    let word = |s: &str| !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (word(organisation) && word(name) && !revision.is_empty()).then_some((repository, revision))
}

/// The hub cache, found as `huggingface_hub` finds it.
fn cache_folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").or_else(|| variable("USERPROFILE")).unwrap_or_default();
    variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| {
        let hf_home =
            variable("HF_HOME").unwrap_or_else(|| variable("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("huggingface"));
        hf_home.join("hub")
    })
}

fn repository_folder(cache: &Path, repository: &str) -> PathBuf {
    cache.join(format!("models--{}", repository.replace('/', "--")))
}

/// A snapshot in the cache: of a branch or tag, by `refs/`, or of a commit.
fn snapshot(cache: &Path, repository: &str, revision: &str) -> Option<PathBuf> {
    let folder = repository_folder(cache, repository);
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.as_deref().map_or(revision, str::trim);
    let snapshot = folder.join("snapshots").join(commit);
    // A snapshot without its index is one that holds other files of the repository.
    snapshot.join("model_index.json").exists().then_some(snapshot)
}

/// Fetches the files that a pipeline reads.
fn download(cache: &Path, name: &str, revision: &str) -> Result<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    let failed = |reason: String| Error::Download {
        repository: name.to_owned(),
        revision: revision.to_owned(),
        cache: repository_folder(cache, name),
        reason,
    };
    if std::env::var_os("HF_HUB_OFFLINE").is_some_and(|v| v == "1") {
        return Err(failed("HF_HUB_OFFLINE is set".into()));
    }
    let api = ApiBuilder::from_env().with_cache_dir(cache.to_owned()).build().map_err(|e| failed(e.to_string()))?;
    let repository = hf_hub::Repo::with_revision(name.to_owned(), hf_hub::RepoType::Model, revision.to_owned());
    let repository = api.repo(repository);
    let info = repository.info().map_err(|e| failed(e.to_string()))?;
    let files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let wanted = needed(&files);
    if !wanted.contains(&"model_index.json") {
        return Err(failed("the repository has no model_index.json, so it is no diffusers checkpoint".into()));
    }
    for file in wanted {
        repository.get(file).map_err(|e| failed(format!("{file}: {e}")))?;
    }
    snapshot(cache, name, revision).ok_or_else(|| failed("the downloaded files are not in the cache".into()))
}

/// Of a repository's files those that a pipeline reads: plain safetensors, or `fp16` where a component
/// has no plain ones.
fn needed(files: &[String]) -> Vec<&str> {
    let components = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let plain = |file: &str| file.ends_with(".safetensors") && !file.ends_with(".fp16.safetensors") && !file.contains(".non_ema");
    let in_component = |file: &str, c: &str| file.split_once('/').is_some_and(|(folder, _)| folder == c);
    files
        .iter()
        .map(String::as_str)
        .filter(|file| match file.split_once('/') {
            None => *file == "model_index.json",
            Some(("tokenizer" | "tokenizer_2" | "scheduler", rest)) => !rest.contains('/'),
            Some((component, rest)) if components.contains(&component) => {
                let has_plain = files.iter().any(|f| in_component(f, component) && plain(f));
                rest == "config.json"
                    || rest.contains(".safetensors.index") && rest.contains(".fp16.") != has_plain
                    || plain(file)
                    || !has_plain && rest.ends_with(".fp16.safetensors")
            }
            Some(_) => false,
        })
        .collect()
}

/// The weight files of a component folder: one, or the shards that an index lists.
pub(crate) fn weight_files(folder: &Path, base: &str, variant: Option<&str>) -> Result<Vec<PathBuf>> {
    let names = |variant: Option<&str>| match variant {
        None => (format!("{base}.safetensors"), format!("{base}.safetensors.index.json")),
        Some(v) => (format!("{base}.{v}.safetensors"), format!("{base}.safetensors.index.{v}.json")),
    };
    let choices = match variant {
        Some(variant) => vec![Some(variant)],
        None => vec![None, Some("fp16")],
    };
    for choice in &choices {
        let (single, index) = names(*choice);
        if folder.join(&single).exists() {
            return Ok(vec![folder.join(single)]);
        }
        let index = folder.join(index);
        if index.exists() {
            return shards(folder, &index);
        }
    }
    let file = folder.join(names(choices[0]).0);
    let bin = folder.join(format!("{base}.bin"));
    let other = if base == "model" { folder.join("pytorch_model.bin") } else { bin.clone() };
    if let Some(pickle) = [bin, other].into_iter().find(|f| f.exists()) {
        return Err(Error::malformed(pickle, format!("expected {} beside it; pickled weights are not read", file.display())));
    }
    Err(Error::Io { file, source: std::io::Error::new(std::io::ErrorKind::NotFound, "no such weight file") })
}

/// The files that an index of shards names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |reason: &str| Error::malformed(index, reason);
    let json: Value = serde_json::from_slice(&read(index)?).map_err(|e| wrong(&format!("expected JSON: {e}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| wrong("expected an object `weight_map`"))?;
    let names: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    let names = names.filter(|n| !n.is_empty()).ok_or_else(|| wrong("expected file names in `weight_map`"))?;
    // Only siblings: an index from elsewhere must not reach other folders.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name().is_none_or(|file| file != **name)) {
        return Err(wrong(&format!("`weight_map` names {name:?}, expected a file beside it")));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_found_by_branch_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--name");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc123").unwrap();
        let commit = folder.join("snapshots/abc123");
        std::fs::create_dir_all(&commit).unwrap();
        assert_eq!(snapshot(cache.path(), "org/name", "main"), None, "a snapshot without an index");
        std::fs::write(commit.join("model_index.json"), "{}").unwrap();
        assert_eq!(snapshot(cache.path(), "org/name", "main"), Some(commit.clone()));
        assert_eq!(snapshot(cache.path(), "org/name", "abc123"), Some(commit));
        assert_eq!(snapshot(cache.path(), "org/name", "other"), None);
    }

    #[test]
    fn repository_names() {
        assert_eq!(repository("org/name"), Some(("org/name", "main")));
        assert_eq!(repository("org/na-me.1@v2"), Some(("org/na-me.1", "v2")));
        for other in ["name", "./name", "/a/b", "a/b/c", "org/", "org/name@"] {
            assert_eq!(repository(other), None, "{other}");
        }
    }

    #[test]
    fn downloads_take_what_is_read() {
        let files: Vec<String> = [
            "README.md",
            "model_index.json",
            "sd_xl_base_1.0.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/openvino_model.bin",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "vae_1_0/diffusion_pytorch_model.safetensors",
        ]
        .map(str::to_owned)
        .to_vec();
        assert_eq!(
            needed(&files),
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "tokenizer/vocab.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.fp16.safetensors",
                "vae/diffusion_pytorch_model.safetensors",
            ]
        );
    }

    #[test]
    fn weights_single_sharded_and_variants() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pick = |variant| weight_files(folder.path(), "model", variant);
        std::fs::write(at("pytorch_model.bin"), "").unwrap();
        let message = pick(None).unwrap_err().to_string();
        assert!(message.contains("pickled weights are not read"), "{message}");
        std::fs::write(at("model.safetensors.index.json"), r#"{"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}"#)
            .unwrap();
        assert_eq!(pick(None).unwrap(), [at("model-1.safetensors"), at("model-2.safetensors")]);
        assert!(pick(Some("fp16")).is_err());
        std::fs::write(at("model.fp16.safetensors"), "").unwrap();
        assert_eq!(pick(Some("fp16")).unwrap(), [at("model.fp16.safetensors")]);
        std::fs::remove_file(at("model.safetensors.index.json")).unwrap();
        assert_eq!(pick(None).unwrap(), [at("model.fp16.safetensors")]);
    }
}
