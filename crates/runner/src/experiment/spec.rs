//! The experiment file as written. Every key is documented in `experiments/README.md`.
//!
//! Defaults are not here: they live in [`crate::experiment::resolve`], once.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use scalebench_generation::{Dtype, SizeConditioning, Spacing, VaeDecode};
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use crate::experiment::pattern::names_each;
use crate::experiment::yaml::{self, did_you_mean, from_value, is_file_name};
use crate::host::data;

/// One experiment: a question, and the matrix of cells that answers it.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// For the reader.
    pub(crate) question: Option<String>,
    /// Checkpoints by the names that they have in tables and folders.
    pub(crate) models: BTreeMap<String, Model>,
    /// Built-in names, paths of YAML files, or either with other settings.
    pub(crate) methods: Vec<Entry>,
    /// Axes: methods.NAME.KEY, sampler.KEY, models.NAME.KEY or seed. Every combination becomes a method or checkpoint of its own.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::matrix")]
    pub(crate) matrix: Matrix,
    /// Pixels relative to training.
    pub(crate) scales: Vec<Scale>,
    /// Images of each cell: a number, or a map with one for every scale.
    #[schemars(schema_with = "crate::experiment::keys::images")]
    pub(crate) images: Images,
    /// Frames of each video. Default: 1, which is images.
    #[schemars(range(min = 1))]
    pub(crate) frames: Option<usize>,
    /// Frames a second that videos are shown with. Default: 8.
    pub(crate) fps: Option<f64>,
    /// What images are asked for.
    #[serde(default)]
    pub(crate) prompts: Prompts,
    /// Image i is made with seed + i. Default: 0.
    pub(crate) seed: Option<u64>,
    /// How images are sampled.
    #[serde(default)]
    pub(crate) sampler: Sampler,
    /// Real images.
    pub(crate) reference: Reference,
    /// What is measured.
    pub(crate) metrics: Metrics,
}

/// A checkpoint: `{path, motion_adapter, family, variant, dtype}`, or the path alone.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(crate) struct Model {
    /// A folder in diffusers layout, or `org/name` or `org/name@revision` of the Hugging Face hub.
    pub(crate) path: Option<PathBuf>,
    /// Motion modules for videos by a checkpoint of images: a folder as diffusers' MotionAdapter has it.
    pub(crate) motion_adapter: Option<PathBuf>,
    /// Selects a method's settings: sd15, sd21, sd21-768, sdxl, modelscope or pocket. Default: the name if it is one, else by architecture.
    pub(crate) family: Option<String>,
    /// File variant, for example fp16.
    pub(crate) variant: Option<String>,
    /// Weights are rounded to it. Default: f32.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::names::<Dtype>")]
    pub(crate) dtype: Option<Dtype>,
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ModelVisitor;
        impl<'de> Visitor<'de> for ModelVisitor {
            type Value = Model;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a checkpoint folder or hub repository, or {path, motion_adapter, family, variant, dtype}")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Model, E> {
                Ok(Model { path: Some(path.into()), ..Model::default() })
            }

            fn visit_unit<E: de::Error>(self) -> Result<Model, E> {
                Ok(Model::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Model, A::Error> {
                Model::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(ModelVisitor)
    }
}

/// A method of the experiment: `{method, label, set}`, or the method alone; or images that another program made.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(crate) struct Entry {
    /// A built-in name or the path of a YAML file.
    pub(crate) method: Option<String>,
    /// Files of another program: a pattern with {model}, {scale}, {width}, {height}, {index} or {seed} in it, or without the last two
    /// a folder, whose sorted files are the images.
    pub(crate) images: Option<String>,
    /// What the method of `images` is called.
    pub(crate) name: Option<String>,
    /// The same in tables and charts. Default: the name.
    pub(crate) title: Option<String>,
    /// Where the method of `images` comes from.
    pub(crate) source: Option<String>,
    /// Base-resolution images by the same program, as a pattern, for its `_b` scores. Default: ours.
    pub(crate) base: Option<String>,
    /// Leave cells empty of which there are no images.
    #[serde(default)]
    pub(crate) partial: bool,
    /// What its name is followed by. Default: what `set` says.
    pub(crate) label: Option<String>,
    /// What differs from the method, and from the experiment's sampler and seed: dotted keys of ingredients, sampler.KEY or seed.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::set")]
    pub(crate) set: Pairs<Value>,
}

impl Entry {
    /// How the experiment calls it: a built-in name, a file, or the name of what was brought.
    pub(crate) fn written(&self) -> &str {
        self.method.as_deref().or(self.name.as_deref()).unwrap_or_default()
    }

    /// Checks what types cannot say.
    pub(crate) fn check(&self) -> Result<()> {
        let entry = self;
        let Some(images) = &entry.images else {
            let alone = [("name", entry.name.is_some()), ("title", entry.title.is_some()), ("source", entry.source.is_some())];
            let alone = alone.into_iter().chain([("base", entry.base.is_some()), ("partial", entry.partial)]);
            if let Some((key, _)) = alone.into_iter().find(|(_, there)| *there) {
                bail!("{key}: expected it beside `images` only, the files of another program");
            }
            ensure!(entry.method.is_some(), "expected `method`, a name or a file, or `images`, the files of another program");
            return Ok(());
        };
        ensure!(entry.method.is_none(), "expected either `method` or `images`");
        ensure!(entry.name.is_some(), "images {images}: expected a `name` for their method beside them");
        ensure!(
            entry.set.0.is_empty() && entry.label.is_none(),
            "images {images}: `set` and `label` change a method of this program; expected neither"
        );
        for pattern in [Some(images), entry.base.as_ref()].into_iter().flatten() {
            let image = ["png", "jpg", "jpeg", "webp"].iter().any(|e| pattern.to_ascii_lowercase().ends_with(&format!(".{e}")));
            let each = names_each(pattern);
            ensure!(!image || each, "{pattern}: all images would be this one file; expected {{index}} or {{seed}} in it");
            ensure!(
                !each || image,
                "{pattern}: expected the name of an image, ending in .png, .jpg or .webp, or a folder without {{index}} and {{seed}}"
            );
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a method's name or file, {method, label, set}, or {images, name, title, source, base, partial}")
            }

            fn visit_str<E: de::Error>(self, method: &str) -> Result<Entry, E> {
                Ok(Entry { method: Some(method.to_owned()), ..Entry::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                Entry::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}

/// Axes in the order in which they are written; see [`crate::experiment::matrix`].
pub(crate) type Matrix = Pairs<Axis>;

/// The values of an axis, each with its label if it has one.
#[derive(Debug, Clone)]
pub(crate) struct Axis(pub(crate) Vec<(Option<String>, Value)>);

impl<'de> Deserialize<'de> for Axis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AxisVisitor;
        impl<'de> Visitor<'de> for AxisVisitor {
            type Value = Axis;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of values, or a map from labels to values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Axis, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push((None, value));
                }
                Ok(Axis(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Axis, A::Error> {
                let labelled: Pairs<Value> = Pairs::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Axis(labelled.0.into_iter().map(|(label, value)| (Some(label), value)).collect()))
            }
        }
        deserializer.deserialize_any(AxisVisitor)
    }
}

/// A map whose order counts.
#[derive(Debug, Clone)]
pub(crate) struct Pairs<T>(pub(crate) Vec<(String, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Self {
        Pairs(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// A number of pixels relative to the model's own.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(untagged)]
pub(crate) enum Scale {
    /// The pixel factor; the shape follows from it.
    Factor(f64),
    /// The shape spelled out.
    Shape(Shape),
}

/// A pixel factor with its linear multiples.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    /// Pixels relative to training: width times height.
    pub(crate) factor: f64,
    /// Width relative to training.
    pub(crate) width: f64,
    /// Height relative to training.
    pub(crate) height: f64,
}

impl<'de> Deserialize<'de> for Scale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScaleVisitor;
        impl<'de> Visitor<'de> for ScaleVisitor {
            type Value = Scale;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pixel factor such as 4, or {factor, width, height}")
            }

            fn visit_u64<E: de::Error>(self, factor: u64) -> Result<Scale, E> {
                Ok(Scale::Factor(factor as f64))
            }

            fn visit_f64<E: de::Error>(self, factor: f64) -> Result<Scale, E> {
                Ok(Scale::Factor(factor))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scale, A::Error> {
                Shape::deserialize(MapAccessDeserializer::new(map)).map(Scale::Shape)
            }
        }
        deserializer.deserialize_any(ScaleVisitor)
    }
}

/// How many images a cell has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Images {
    /// As many at every scale.
    Every(usize),
    /// By scale, as written.
    PerScale(Vec<(String, usize)>),
}

impl<'de> Deserialize<'de> for Images {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A pixel factor or a scale's label.
        struct Key(String);
        impl<'de> Deserialize<'de> for Key {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct KeyVisitor;
                impl Visitor<'_> for KeyVisitor {
                    type Value = Key;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a scale such as 4")
                    }

                    fn visit_u64<E: de::Error>(self, factor: u64) -> Result<Key, E> {
                        Ok(Key(factor.to_string()))
                    }

                    fn visit_f64<E: de::Error>(self, factor: f64) -> Result<Key, E> {
                        Ok(Key(factor.to_string()))
                    }

                    fn visit_str<E: de::Error>(self, label: &str) -> Result<Key, E> {
                        Ok(Key(label.to_owned()))
                    }
                }
                deserializer.deserialize_any(KeyVisitor)
            }
        }
        struct ImagesVisitor;
        impl<'de> Visitor<'de> for ImagesVisitor {
            type Value = Images;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of images, or a map from every scale to one")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Images, E> {
                Ok(Images::Every(n as usize))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Images, A::Error> {
                let mut counts = Vec::new();
                while let Some((Key(scale), n)) = map.next_entry()? {
                    counts.push((scale, n));
                }
                Ok(Images::PerScale(counts))
            }
        }
        deserializer.deserialize_any(ImagesVisitor)
    }
}

/// The embedded set, as opposed to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// Twemoji.
    Emoji,
}

#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prompts {
    /// Names of the embedded set (default).
    pub(crate) source: Option<Source>,
    /// Keys their order, and which of an image's captions is taken. Default: 0.
    pub(crate) seed: Option<u64>,
    /// One prompt a line; a table, .csv, .tsv, .parquet or .jsonl, with one a row; COCO's captions, .json; or tar shards, a file or a
    /// pattern such as {00000..00010}.tar.
    pub(crate) file: Option<PathBuf>,
    /// The column or key that holds the prompts. Default for shards: their .txt files.
    pub(crate) column: Option<String>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sampler {
    /// Default: ddim.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::names::<scalebench_generation::Sampler>")]
    pub(crate) name: Option<String>,
    /// Default: 50.
    pub(crate) steps: Option<usize>,
    /// Share of fresh noise. Default: 1 for ddim, 0 for the others.
    pub(crate) eta: Option<f64>,
    /// Default: 7.5.
    pub(crate) guidance_scale: Option<f64>,
    /// Default: 0.
    pub(crate) guidance_rescale: Option<f64>,
    /// Default: empty.
    pub(crate) negative_prompt: Option<String>,
    /// Default: the checkpoint's, else the sampler's usual one.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::names::<Spacing>")]
    pub(crate) timestep_spacing: Option<Spacing>,
    /// Default: the checkpoint's.
    pub(crate) use_karras_sigmas: Option<bool>,
    /// Default: the checkpoint's.
    pub(crate) rescale_betas_zero_snr: Option<bool>,
    /// The size that SDXL is told. Default: target.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::names::<SizeConditioning>")]
    pub(crate) size_conditioning: Option<SizeConditioning>,
    /// Default: whole.
    #[serde(default)]
    #[schemars(schema_with = "crate::experiment::keys::names::<VaeDecode>")]
    pub(crate) vae_decode: Option<VaeDecode>,
    /// The published scripts' seeding: every batch of so many begins with `seed`. Default: a seed for each image.
    #[schemars(range(min = 1))]
    pub(crate) seed_once_per_batch_of: Option<usize>,
    /// Images pass through JPEG (4:2:0) before they are stored and measured.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) jpeg_quality: Option<u8>,
}

#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    /// Rendered at each cell's size.
    pub(crate) source: Option<Source>,
    /// How many are rendered.
    pub(crate) images: Option<usize>,
    /// The images of a folder, as they are.
    pub(crate) folder: Option<PathBuf>,
    /// A file with the path of an image on each line.
    pub(crate) list: Option<PathBuf>,
    /// A table whose rows hold the bytes of image files, .parquet.
    pub(crate) parquet: Option<PathBuf>,
    /// Its column with them. Default: the one that holds bytes.
    pub(crate) column: Option<String>,
    /// The images of tar shards: a file, a folder of them, or a pattern such as {00000..00010}.tar.
    pub(crate) shards: Option<PathBuf>,
    /// Mean and covariance of the features of images that are not at hand, .npz or .safetensors: for FID alone.
    pub(crate) statistics: Option<PathBuf>,
}

#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    /// A built-in name (`scalebench protocols`) or a YAML file.
    pub(crate) protocol: String,
    /// The Inception's weights, or `inception` for those in torch's cache.
    pub(crate) extractor: Option<PathBuf>,
    /// A Hugging Face folder of CLIP.
    pub(crate) clip: Option<PathBuf>,
    /// A Hugging Face folder of DINOv2.
    pub(crate) dinov2: Option<PathBuf>,
    /// I3D's weights, for videos.
    pub(crate) i3d: Option<PathBuf>,
}

/// Reads an experiment file: what its base says, then what it says itself, then the `key=value` overrides.
pub(crate) fn read(file: &Path, overrides: &[String]) -> Result<Experiment> {
    let builtin = |name: &Path| if name.components().count() == 1 && !name.exists() { data::experiment(name.to_str()?) } else { None };
    let mut value = match builtin(file) {
        Some(text) => serde_yaml::from_str(&text)?,
        None if !file.exists() && !is_file_name(&file.to_string_lossy()) => bail!("{}: {}", file.display(), names_nothing(file)),
        None => load(file)?,
    };
    if let Some(base) = value.as_mapping_mut().and_then(|map| map.remove("base")) {
        let at = || format!("{}: base", file.display());
        let base = base.as_str().with_context(|| format!("{}: expected the path of an experiment file", at()))?.to_owned();
        let beside = file.parent().unwrap_or(Path::new("")).join(&base);
        let of_program = if beside.exists() { None } else { builtin(Path::new(&base)) };
        let mut merged = match &of_program {
            Some(text) => serde_yaml::from_str(text)?,
            None => load(&beside).with_context(at)?,
        };
        ensure!(merged.get("base").is_none(), "{}: {base} has a base itself, expected a file without one", at());
        let folder = Path::new(&base).parent().unwrap_or(Path::new(""));
        if of_program.is_none() {
            relocate(&mut merged, folder, file.parent().unwrap_or(Path::new("")));
        }
        merge(&mut merged, value);
        value = merged;
    }
    for text in overrides {
        set(&mut value, text).with_context(|| format!("--set {text}"))?;
    }
    from_value(value).map_err(|message| anyhow!("{}: {message}", file.display()))
}

/// What else an experiment's name may have been meant to be.
fn names_nothing(file: &Path) -> String {
    let name = file.to_string_lossy();
    let names: Vec<&str> = data::experiments().collect();
    let hint = did_you_mean(&name, names.iter().copied());
    format!("expected an experiment file or one of {}{hint}", names.join(", "))
}

fn load(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    yaml::read(text.as_bytes()).map_err(|error| anyhow!("{}: {error}", file.display()))
}

/// Maps key by key; everything else of `over` replaces what is there.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Mapping(under), Value::Mapping(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(there) => merge(there, value),
                    None => {
                        under.insert(key, value);
                    }
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// Rewrites the paths of an experiment that lies in `folder`, relative to `here`, so that they are right in a file in `here`.
fn relocate(experiment: &mut Value, folder: &Path, here: &Path) {
    let move_if = |value: Option<&mut Value>, is_path: &dyn Fn(&str) -> bool| {
        let Some(value) = value else { return };
        if let Some(text) = value.as_str().filter(|text| is_path(text)) {
            *value = Value::from(folder.join(text).display().to_string());
        }
    };
    let always = |_: &str| true;
    // What is not there may be the name of something on the hub or in a cache.
    let if_there = |text: &str| here.join(folder).join(text).exists();
    for key in ["file", "folder", "list", "parquet", "shards", "statistics"] {
        move_if(experiment.get_mut("prompts").and_then(|map| map.get_mut(key)), &always);
        move_if(experiment.get_mut("reference").and_then(|map| map.get_mut(key)), &always);
    }
    for key in ["extractor", "clip", "dinov2", "i3d"] {
        move_if(experiment.get_mut("metrics").and_then(|map| map.get_mut(key)), &if_there);
    }
    move_if(experiment.get_mut("metrics").and_then(|map| map.get_mut("protocol")), &is_file_name);
    let models = experiment.get_mut("models").and_then(Value::as_mapping_mut);
    for model in models.into_iter().flat_map(Mapping::values_mut) {
        match model {
            Value::Mapping(model) => {
                move_if(model.get_mut("path"), &if_there);
                move_if(model.get_mut("motion_adapter"), &if_there);
            }
            model => move_if(Some(model), &if_there),
        }
    }
    let methods = experiment.get_mut("methods").and_then(Value::as_sequence_mut);
    for method in methods.into_iter().flatten() {
        match method {
            Value::Mapping(entry) => {
                move_if(entry.get_mut("method"), &is_file_name);
                move_if(entry.get_mut("images"), &always);
                move_if(entry.get_mut("base"), &always);
            }
            method => move_if(Some(method), &is_file_name),
        }
    }
}

/// The axis of a matrix that a path speaks of, and what is left of the path. Axes have dots in their names: the path is one as a
/// whole, unless it goes on into one that is there.
fn axis_of<'a>(path: &'a str, matrix: &Value) -> (&'a str, Option<&'a str>) {
    let there = matrix.as_mapping().into_iter().flat_map(Mapping::keys).filter_map(Value::as_str);
    let into = there.filter_map(|axis| Some((axis.len(), path.strip_prefix(axis)?.strip_prefix('.')?))).next();
    into.map_or((path, None), |(length, after)| (&path[..length], Some(after)))
}

/// Applies one `key=value`; the key is a dotted path, the value YAML.
fn set(root: &mut Value, text: &str) -> Result<()> {
    let (path, value) = text.split_once('=').filter(|(path, _)| !path.is_empty()).context("expected KEY=VALUE")?;
    let value = yaml::read(value.as_bytes())?;
    let mut at = root;
    let mut rest = Some(path);
    let mut above = Vec::new();
    while let Some(path) = rest {
        let (part, after) = match above[..] {
            ["matrix"] => axis_of(path, at),
            _ => path.split_once('.').map_or((path, None), |(part, after)| (part, Some(after))),
        };
        above.push(part);
        rest = after;
        at = match at {
            Value::Sequence(items) => {
                let length = items.len();
                let item = part.parse::<usize>().ok().and_then(|i| items.get_mut(i));
                item.with_context(|| format!("`{part}` is not an index into a list of {length}"))?
            }
            Value::Mapping(map) => map.entry(part.into()).or_insert(Value::Null),
            Value::Null => {
                *at = Value::Mapping(serde_yaml::Mapping::new());
                let Value::Mapping(map) = at else { unreachable!("assigned above") };
                map.entry(part.into()).or_insert(Value::Null)
            }
            _ => bail!("`{part}` lies inside a plain value"),
        };
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "
        models: {pocket: {path: pocket}}
        methods: [direct-inf]
        scales: [4, 6.25, {factor: 8, width: 4, height: 2}]
        images: 2
        reference: {source: emoji, images: 8}
        metrics: {protocol: pocket, extractor: inception}
    ";

    fn check(overrides: &[&str]) -> Result<Experiment, String> {
        let mut value = serde_yaml::from_str(PLAIN).unwrap();
        for text in overrides {
            set(&mut value, text).map_err(|e| e.to_string())?;
        }
        from_value(value)
    }

    #[test]
    fn a_plain_file_parses() {
        let experiment = check(&["images=5", "sampler.steps=3", "scales.0=16"]).unwrap();
        assert_eq!((experiment.images, experiment.sampler.steps), (Images::Every(5), Some(3)));
        assert!(matches!(experiment.scales[0], Scale::Factor(16.0)));
        assert!(matches!(experiment.scales[2], Scale::Shape(Shape { factor: 8.0, .. })));
    }

    #[test]
    fn errors_name_the_key_and_what_was_expected() {
        for (overrides, fragments) in [
            ("metods=[]", &["unknown field `metods`", "did you mean `methods`?"][..]),
            ("metrics.protocl=pocket", &["metrics", "did you mean `protocol`?"]),
            ("reference.source=emojy", &["reference.source", "did you mean `emoji`?"]),
            ("images=many", &["images: invalid type", "expected a number of images, or a map from every scale to one"]),
            ("scales.1=big", &["scales[1]", "a pixel factor such as 4"]),
            ("scales.2.hight=1", &["scales[2]", "did you mean `height`?"]),
            ("images.x=1", &["inside a plain value"]),
            ("methods.0.metod=x", &["inside a plain value"]),
            ("methods=[{metod: x}]", &["methods[0]", "did you mean `method`?"]),
            ("methods=[{method: x, set: [1]}]", &["methods[0].set", "expected a map"]),
            ("matrix={sampler.steps: 3}", &["matrix.sampler.steps", "a list of values"]),
        ] {
            let message = check(&[overrides]).unwrap_err();
            for fragment in fragments {
                assert!(message.contains(fragment), "{overrides}: {message}");
            }
        }
    }

    #[test]
    fn images_are_a_number_or_one_for_each_scale() {
        let counts = |text: &str| check(&[text]).map(|experiment| experiment.images);
        let pairs = |pairs: &[(&str, usize)]| Images::PerScale(pairs.iter().map(|(scale, n)| ((*scale).to_owned(), *n)).collect());
        assert_eq!(counts("images={4: 256, 6.25: 64, 8x-4by2: 3}").unwrap(), pairs(&[("4", 256), ("6.25", 64), ("8x-4by2", 3)]));
        for (text, fragment) in
            [("images={4: many}", "expected usize"), ("images={[4]: 3}", "a scale such as 4"), ("images=-3", "images: ")]
        {
            let message = counts(text).unwrap_err();
            assert!(message.contains(fragment), "{text}: {message}");
        }
    }

    fn check_base(base: &str, derived: &str) -> Result<Value, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sub")).unwrap();
        std::fs::create_dir_all(dir.path().join("pocket")).unwrap();
        std::fs::write(dir.path().join("base.yaml"), base).unwrap();
        std::fs::write(dir.path().join("sub/derived.yaml"), derived).unwrap();
        let experiment = read(&dir.path().join("sub/derived.yaml"), &[]).map_err(|e| format!("{e:#}"))?;
        let paths: Vec<String> = experiment.models.values().map(|m| m.path.as_ref().unwrap().display().to_string()).collect();
        let methods: Vec<String> = experiment.methods.into_iter().map(|entry| entry.written().to_owned()).collect();
        let images = |images| if let Images::Every(n) = images { n } else { 0 };
        let file = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        let found = (
            paths,
            methods,
            images(experiment.images),
            experiment.sampler,
            file(experiment.prompts.file),
            file(experiment.metrics.extractor),
        );
        Ok(serde_yaml::to_value(found).unwrap())
    }

    #[test]
    fn a_base_is_merged_key_by_key_and_its_paths_stay_its_own() {
        let base = "
            models: {pocket: {path: pocket}, other: org/name}
            methods: [direct-inf, mine.yaml]
            scales: [4]
            images: 2
            prompts: {file: prompts.txt}
            sampler: {name: ddim, steps: 3}
            reference: {source: emoji, images: 8}
            metrics: {protocol: pocket, extractor: inception}
        ";
        let found = check_base(base, "{base: ../base.yaml, images: 5, sampler: {steps: 4}}").unwrap();
        let text = serde_yaml::to_string(&found).unwrap();
        for expected in [
            "- org/name\n",
            "- ../pocket\n",
            "- ../mine.yaml\n",
            "- 5\n",
            "name: ddim\n",
            "steps: 4\n",
            "- ../prompts.txt\n",
            "- inception\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        // Paths of the file itself are its own, and lists are replaced.
        let found = check_base(base, "{base: ../base.yaml, methods: [ours.yaml], prompts: {file: ours.txt}}").unwrap();
        let text = serde_yaml::to_string(&found).unwrap();
        assert!(text.contains("- - ours.yaml\n") && text.contains("- ours.txt\n") && !text.contains("mine"), "{text}");
        for (base, derived, fragments) in [
            ("{base: x.yaml}", "{base: ../base.yaml}", ["derived.yaml: base", "has a base itself"]),
            (base, "{base: none.yaml}", ["derived.yaml: base: cannot read", "none.yaml"]),
            (base, "{base: [../base.yaml]}", ["derived.yaml: base", "expected the path"]),
            (base, "{base: ../base.yaml, imges: 3}", ["unknown field `imges`", "did you mean `images`?"]),
            ("{images: [}", "{base: ../base.yaml}", ["derived.yaml: base", "base.yaml"]),
        ] {
            let message = check_base(base, derived).unwrap_err();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{derived}: {message}");
        }
    }

    #[test]
    fn an_axis_is_set_by_its_whole_name() {
        let mut value = serde_yaml::from_str("{matrix: {sampler.steps: [1], methods.a.b: {low: 1}}}").unwrap();
        for text in ["matrix.sampler.steps=[2, 3]", "matrix.methods.a.b.low=2", "matrix.sampler.eta=[0]"] {
            set(&mut value, text).unwrap();
        }
        let expected = "{matrix: {sampler.steps: [2, 3], methods.a.b: {low: 2}, sampler.eta: [0]}}";
        assert_eq!(value, serde_yaml::from_str::<Value>(expected).unwrap());
        let mut none = serde_yaml::from_str("{images: 3}").unwrap();
        set(&mut none, "matrix.sampler.steps=[2, 3]").unwrap();
        set(&mut none, "matrix.sampler.steps.1=4").unwrap();
        assert_eq!(none, serde_yaml::from_str::<Value>("{images: 3, matrix: {sampler.steps: [2, 4]}}").unwrap());
    }
}
