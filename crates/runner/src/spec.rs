//! The experiment file as written. Every key is documented in `experiments/README.md`.
//!
//! Defaults are not here: they live in [`crate::resolve`], once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use scalebench_generation::{Dtype, SizeConditioning, Spacing, VaeDecode};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_yaml::Value;

/// One experiment: a question, and the matrix of cells that answers it.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    pub(crate) question: Option<String>,
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) methods: Vec<String>,
    pub(crate) scales: Vec<Scale>,
    pub(crate) images: usize,
    #[serde(default)]
    pub(crate) prompts: Prompts,
    pub(crate) seed: Option<u64>,
    #[serde(default)]
    pub(crate) sampler: Sampler,
    pub(crate) reference: Reference,
    pub(crate) metrics: Metrics,
}

/// A checkpoint: `{path, family, variant, dtype}`, or the path alone.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) path: Option<PathBuf>,
    pub(crate) family: Option<String>,
    pub(crate) variant: Option<String>,
    pub(crate) dtype: Option<Dtype>,
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            path: Option<PathBuf>,
            family: Option<String>,
            variant: Option<String>,
            dtype: Option<Dtype>,
        }
        struct ModelVisitor;
        impl<'de> Visitor<'de> for ModelVisitor {
            type Value = Model;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a checkpoint folder or hub repository, or {path, family, variant, dtype}")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Model, E> {
                Ok(Model { path: Some(path.into()), ..Model::default() })
            }

            fn visit_unit<E: de::Error>(self) -> Result<Model, E> {
                Ok(Model::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Model, A::Error> {
                let Written { path, family, variant, dtype } = Written::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Model { path, family, variant, dtype })
            }
        }
        deserializer.deserialize_any(ModelVisitor)
    }
}

/// A number of pixels relative to the model's own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scale {
    /// The pixel factor; the shape follows from it.
    Factor(f64),
    /// The shape spelled out.
    Shape(Shape),
}

/// A pixel factor with its linear multiples.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    pub(crate) factor: f64,
    pub(crate) width: f64,
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

/// The embedded set, as opposed to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    Emoji,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prompts {
    pub(crate) source: Option<Source>,
    pub(crate) seed: Option<u64>,
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sampler {
    pub(crate) name: Option<String>,
    pub(crate) steps: Option<usize>,
    pub(crate) eta: Option<f64>,
    pub(crate) guidance_scale: Option<f64>,
    pub(crate) guidance_rescale: Option<f64>,
    pub(crate) negative_prompt: Option<String>,
    pub(crate) timestep_spacing: Option<Spacing>,
    pub(crate) use_karras_sigmas: Option<bool>,
    pub(crate) rescale_betas_zero_snr: Option<bool>,
    pub(crate) size_conditioning: Option<SizeConditioning>,
    pub(crate) vae_decode: Option<VaeDecode>,
    pub(crate) seed_once_per_batch_of: Option<usize>,
    pub(crate) jpeg_quality: Option<u8>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    pub(crate) source: Option<Source>,
    pub(crate) images: Option<usize>,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) list: Option<PathBuf>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    pub(crate) protocol: String,
    pub(crate) extractor: Option<PathBuf>,
    pub(crate) clip: Option<PathBuf>,
    pub(crate) dinov2: Option<PathBuf>,
}

/// Reads an experiment file, with `key=value` overrides applied first.
pub(crate) fn read(file: &Path, overrides: &[String]) -> Result<Experiment> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut value: Value = serde_yaml::from_str(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    for text in overrides {
        set(&mut value, text).with_context(|| format!("--set {text}"))?;
    }
    from_value(value).map_err(|message| anyhow!("{}: {message}", file.display()))
}

/// Typed data from YAML; the error names the key, what was expected, and what may have been meant.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let hint = suggestion(&message);
        // serde names the innermost key only; the dot stands for the whole file.
        if path == "." { format!("{message}{hint}") } else { format!("{path}: {message}{hint}") }
    })
}

/// `; did you mean …?` for serde's messages on unknown fields and variants.
fn suggestion(message: &str) -> String {
    if !message.starts_with("unknown ") {
        return String::new();
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(found) = names.next() else { return String::new() };
    did_you_mean(found, names)
}

/// `; did you mean …?` if one of the candidates is close to `found`, else nothing.
pub(crate) fn did_you_mean<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let close = candidates
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min_by_key(|(distance, _)| *distance);
    close.map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// Applies one `key=value`; the key is a dotted path, the value YAML.
fn set(root: &mut Value, text: &str) -> Result<()> {
    let (path, value) = text.split_once('=').context("expected KEY=VALUE")?;
    let value: Value = serde_yaml::from_str(value)?;
    let mut at = root;
    for part in path.split('.') {
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
        assert_eq!((experiment.images, experiment.sampler.steps), (5, Some(3)));
        assert!(matches!(experiment.scales[0], Scale::Factor(16.0)));
        assert!(matches!(experiment.scales[2], Scale::Shape(Shape { factor: 8.0, .. })));
    }

    #[test]
    fn errors_name_the_key_and_what_was_expected() {
        for (overrides, fragments) in [
            ("metods=[]", &["unknown field `metods`", "did you mean `methods`?"][..]),
            ("metrics.protocl=pocket", &["metrics", "did you mean `protocol`?"]),
            ("reference.source=emojy", &["reference.source", "did you mean `emoji`?"]),
            ("images=many", &["images: invalid type", "expected usize"]),
            ("scales.1=big", &["scales[1]", "a pixel factor such as 4"]),
            ("scales.2.hight=1", &["scales[2]", "did you mean `height`?"]),
            ("images.x=1", &["inside a plain value"]),
        ] {
            let message = check(&[overrides]).unwrap_err();
            for fragment in fragments {
                assert!(message.contains(fragment), "{overrides}: {message}");
            }
        }
    }
}
