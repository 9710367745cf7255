//! The experiment as it will run, as plain data: what `run.yaml` keeps.
//!
//! Every default is explicit and every input named by its digest. Paths are kept as they were written, so that a run directory can
//! be published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use scalebench_generation::{Dtype, ScheduleOptions, SizeConditioning, VaeDecode};
use scalebench_metrics::{Metric, Preprocess, Provenance, Tap};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::experiment::matrix::SEED;
use crate::experiment::methods::BASELINE;
use crate::experiment::protocol::{Against, Comparison, Look, Network, Protocol};

/// An experiment with nothing left to decide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resolved {
    pub(crate) name: String,
    pub(crate) question: Option<String>,
    /// Name and version of the program that makes the images.
    pub(crate) tool: String,
    pub(crate) models: Vec<Model>,
    pub(crate) methods: Vec<Method>,
    pub(crate) scales: Vec<Scale>,
    /// Images per cell.
    pub(crate) images: Images,
    /// What each of them is a video of; none of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) video: Option<Video>,
    pub(crate) prompts: Prompts,
    /// Image `i` uses `seed + i`, the same in every cell whose method has no seed of its own.
    pub(crate) seed: u64,
    pub(crate) sampler: Sampler,
    pub(crate) reference: Reference,
    pub(crate) metrics: Metrics,
    /// Digests of the networks that methods enlarge with, by their names in the methods' settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) upscalers: BTreeMap<String, String>,
}

/// What a video is, beside its pixels' size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Video {
    pub(crate) frames: usize,
    /// Frames a second, as it is shown.
    pub(crate) fps: f64,
}

/// How many images a cell has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Images {
    /// As many at every scale.
    Every(usize),
    /// By the labels of the scales.
    PerScale(BTreeMap<String, usize>),
}

impl Images {
    /// Those of a cell at this scale; at one that was not asked for, as many as any cell has.
    pub(crate) fn at(&self, scale: &Scale) -> usize {
        match self {
            Images::Every(n) => *n,
            Images::PerScale(counts) => counts.get(&scale.label()).copied().unwrap_or_else(|| self.most()),
        }
    }

    /// Those of the largest cell.
    pub(crate) fn most(&self) -> usize {
        match self {
            Images::Every(n) => *n,
            Images::PerScale(counts) => counts.values().copied().max().unwrap_or(0),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// Selects the settings of methods that differ between models.
    pub(crate) family: String,
    pub(crate) path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) motion_adapter: Option<PathBuf>,
    pub(crate) variant: Option<String>,
    pub(crate) dtype: Dtype,
    pub(crate) digest: String,
    /// Training size in pixels.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// What sets it apart from the other variants of its checkpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) set: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Method {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) settings: Value,
    /// Where its images come from, if this program does not make them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) images: Option<Brought>,
    /// The method that it is a variant of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant_of: Option<String>,
    /// What sets it apart from that: dotted keys, and values as tables show them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) set: BTreeMap<String, String>,
    /// Its own sampler, if that is not the experiment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sampler: Option<Sampler>,
    /// Its own seed, if that is not the experiment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
}

/// A method whose images come from elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Brought {
    /// Pattern of the files.
    pub(crate) images: String,
    /// Pattern of base-resolution images by the same program, against which its `_b` scores are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<String>,
    /// Where the method comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// Cells of which there are no images, where that is allowed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) missing: BTreeSet<String>,
    /// Of all files.
    pub(crate) digest: String,
}

impl Brought {
    /// Images that are not there yet.
    pub(crate) fn named(images: &str) -> Brought {
        Brought { images: images.to_owned(), base: None, source: None, missing: BTreeSet::new(), digest: String::new() }
    }
}

/// Name of the cell with a method's own base-resolution images.
pub(crate) fn base_name(method: &str) -> String {
    format!("{method}-base")
}

/// Folder name of a cell.
pub(crate) fn cell_name(model: &str, scale: &Scale, method: &str) -> String {
    format!("{model}/{}-{method}", scale.label())
}

/// Pixels of the largest image, 32768 × 32768.
const MOST_PIXELS: f64 = 1_073_741_824.0;

/// A pixel factor, and its linear multiples of the training size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scale {
    pub(crate) factor: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub(crate) enum Prompts {
    /// Image `i` asks for the name of emoji `prompt_order(seed)[i % n]`.
    Emoji { seed: u64 },
    /// Image `i` asks for prompt `i % n` of a file: a line, the entry of a row, a caption.
    File {
        path: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        column: Option<String>,
        /// Of the choice among captions, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
        digest: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sampler {
    pub(crate) name: String,
    pub(crate) steps: usize,
    pub(crate) eta: f64,
    pub(crate) guidance_scale: f64,
    pub(crate) guidance_rescale: f64,
    pub(crate) negative_prompt: String,
    /// What differs from the checkpoints' scheduler configurations.
    #[serde(flatten)]
    pub(crate) schedule: ScheduleOptions,
    pub(crate) size_conditioning: SizeConditioning,
    pub(crate) vae_decode: VaeDecode,
    /// Images `0..n`, `n..2n`, … are drawn as batches that all begin with the experiment's seed, as
    /// ScaleCrafter's scripts do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seed_once_per_batch_of: Option<usize>,
    /// Images pass through JPEG of this quality (4:2:0) before they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jpeg_quality: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub(crate) enum Reference {
    /// Rendered at each cell's size, in the order of the prompts with this seed.
    Emoji { images: usize, seed: u64 },
    /// The images of a folder or list, as they are.
    Folder { path: PathBuf, images: usize, digest: String },
    /// The images of a table's column, as they are.
    Parquet {
        path: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        column: Option<String>,
        images: usize,
        digest: String,
    },
    /// The images of tar shards, as they are.
    Shards { path: PathBuf, images: usize, digest: String },
    /// Mean and covariance of the features of images that are not at hand.
    Statistics {
        path: PathBuf,
        /// Where the file says it.
        images: Option<usize>,
        /// How the features were made.
        provenance: Provenance,
        /// Whether the file says so; files of other tools do not, and are taken to be what the protocol asks for.
        stated: bool,
        digest: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metrics {
    pub(crate) protocol: Protocol,
    pub(crate) networks: Vec<FeatureNetwork>,
}

/// A feature network that the protocol uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FeatureNetwork {
    pub(crate) network: Network,
    pub(crate) path: PathBuf,
    /// Architecture, width and tap.
    pub(crate) features: String,
    pub(crate) digest: String,
    /// Whether numbers that are published may be made with it: not for an Inception of reduced width.
    pub(crate) comparable: bool,
}

impl FeatureNetwork {
    /// The provenance of features that this network makes.
    pub(crate) fn provenance(&self, tap: Tap, preprocess: Preprocess) -> Provenance {
        // The tap is the last part of the name of an Inception's features; other networks have one tap.
        let extractor = match (self.network, self.features.rsplit_once('/')) {
            (Network::Inception, Some((network, _))) => format!("{network}/{}", tap.name()),
            _ => self.features.clone(),
        };
        Provenance { extractor, weights: self.digest.clone(), preprocess }
    }

    /// The provenance of the features of whole reference images: their size does not matter.
    pub(crate) fn whole_reference(&self, comparison: &Comparison) -> Provenance {
        self.provenance(Tap::Features, Comparison { other: Look::default(), ..comparison.clone() }.other(0, 0, (0, 0)))
    }
}

impl Metrics {
    /// Whether every network is one that published numbers are made with.
    pub(crate) fn comparable(&self) -> bool {
        self.networks.iter().all(|network| network.comparable)
    }
}

impl Model {
    /// Pixels of an image at `scale`.
    pub(crate) fn size(&self, scale: &Scale) -> Result<(u32, u32)> {
        let (width, height) = (f64::from(self.width) * scale.width, f64::from(self.height) * scale.height);
        ensure!(
            (width - width.round()).abs() < 1e-6 && (height - height.round()).abs() < 1e-6,
            "{}x of {}x{} is {width:.2}x{height:.2}, expected whole pixels; give the shape as \
             {{factor: F, width: W, height: H}}",
            scale.factor,
            self.width,
            self.height
        );
        ensure!(
            width >= 1.0 && height >= 1.0 && width * height <= MOST_PIXELS,
            "{}x of {}x{} is {width}x{height}, expected 1 to {MOST_PIXELS} pixels",
            scale.factor,
            self.width,
            self.height
        );
        Ok((width.round() as u32, height.round() as u32))
    }
}

impl Scale {
    /// The training size itself.
    pub(crate) const BASE: Scale = Scale { factor: 1.0, width: 1.0, height: 1.0 };

    /// `4x`; with the shape, as in `4x-4by1`, where that is not the factor's usual one.
    pub(crate) fn label(&self) -> String {
        match *self == Scale::from_factor(self.factor) {
            true => format!("{}x", self.factor),
            false => format!("{}x-{}by{}", self.factor, self.width, self.height),
        }
    }

    /// Square in multiples where the factor has a square root in quarters (4, 6.25, 16), else
    /// landscape with twice the width for odd powers of two (2, 8, 32).
    pub(crate) fn from_factor(factor: f64) -> Scale {
        let half = (factor / 2.0).sqrt();
        if half.fract() == 0.0 && half > 0.0 {
            return Scale { factor, width: 2.0 * half, height: half };
        }
        let side = factor.sqrt();
        Scale { factor, width: side, height: side }
    }
}

impl Resolved {
    /// Frames of each video; 1 of images.
    pub(crate) fn frames(&self) -> usize {
        self.video.map_or(1, |video| video.frames)
    }

    /// The sampler that images of a method are made with.
    pub(crate) fn sampler_of(&self, method: &str) -> &Sampler {
        let found = self.methods.iter().find(|known| known.name == method);
        found.and_then(|method| method.sampler.as_ref()).unwrap_or(&self.sampler)
    }

    /// Image `i` of a method is made with this seed + i.
    pub(crate) fn seed_of(&self, method: &str) -> u64 {
        let found = self.methods.iter().find(|known| known.name == method);
        found.and_then(|method| method.seed).unwrap_or(self.seed)
    }

    /// `12 a cell`, or `256 a cell at 4x, 64 at 16x`, with other words for ` a cell`.
    pub(crate) fn images_in_words(&self, a_cell: &str) -> String {
        match &self.images {
            Images::Every(n) => format!("{n}{a_cell}"),
            Images::PerScale(_) => {
                let of = |(i, scale): (usize, &Scale)| {
                    format!("{}{} at {}", self.images.at(scale), if i == 0 { a_cell } else { "" }, scale.label())
                };
                self.scales.iter().enumerate().map(of).collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// What sets a method apart from the one that it is a variant of.
    pub(crate) fn set_of(&self, method: &str) -> impl Iterator<Item = (&String, &String)> {
        self.methods.iter().filter(move |known| known.name == method).flat_map(|method| &method.set)
    }

    /// Plain sampling, by whatever sampler and seed.
    fn plain(&self) -> impl Iterator<Item = &Method> {
        let is_plain = |known: &&Method| {
            let of_method = known.set.keys().any(|key| !key.starts_with("sampler.") && key != SEED);
            known.variant_of.as_deref().unwrap_or(&known.name) == BASELINE && !of_method
        };
        self.methods.iter().filter(is_plain)
    }

    /// The method that another one's differences are taken against: plain sampling by the same sampler and seed, else plain
    /// sampling by the experiment's; none if the experiment has neither, and the baseline itself for a baseline.
    pub(crate) fn baseline_of(&self, method: &str) -> Option<&str> {
        if let Some(itself) = self.plain().find(|known| known.name == method) {
            return Some(&itself.name);
        }
        let (sampler, seed) = (self.sampler_of(method), self.seed_of(method));
        let same = |known: &&Method| known.sampler.as_ref().unwrap_or(&self.sampler) == sampler && self.seed_of(&known.name) == seed;
        let usual = |known: &&Method| known.sampler.is_none() && known.seed.is_none();
        self.plain().find(same).or_else(|| self.plain().find(usual)).map(|known| known.name.as_str())
    }

    /// The method whose images at the training size `_b` scores compare images of this seed with: plain sampling by the
    /// experiment's sampler, under a name of its own where the experiment does not ask for these images.
    pub(crate) fn base_method(&self, seed: u64) -> String {
        let is_it = |known: &&Method| known.sampler.is_none() && self.seed_of(&known.name) == seed;
        let asked = self.scales.contains(&Scale::BASE).then(|| self.plain().find(is_it)).flatten();
        match asked {
            Some(method) => method.name.clone(),
            None if seed == self.seed => BASELINE.to_owned(),
            None => format!("{BASELINE}_{SEED}={seed}"),
        }
    }

    /// What was brought for a method.
    pub(crate) fn brought(&self, method: &str) -> Option<&Brought> {
        self.methods.iter().find(|known| known.name == method)?.images.as_ref()
    }

    /// The method whose images at the training size a method's `_b` scores compare with: its own, if they were brought, else
    /// [`base_method`](Self::base_method).
    pub(crate) fn base_of(&self, method: &str) -> String {
        match self.brought(method).and_then(|brought| brought.base.as_ref()) {
            Some(_) => base_name(method),
            None => self.base_method(self.seed_of(method)),
        }
    }

    /// Cells that are left empty, since no images were brought.
    pub(crate) fn is_missing(&self, cell: &str) -> bool {
        self.methods.iter().filter_map(|method| method.images.as_ref()).any(|brought| brought.missing.contains(cell))
    }

    /// The same, but for which images were brought.
    pub(crate) fn with_images_of(&self, other: &Resolved) -> Resolved {
        let mut same = self.clone();
        for method in &mut same.methods {
            if let (Some(here), Some(there)) = (&mut method.images, other.brought(&method.name)) {
                (here.digest, here.missing) = (there.digest.clone(), there.missing.clone());
            }
        }
        same
    }

    /// Why a column is empty, where the reference is a file of statistics that cannot fill it.
    pub(crate) fn absence(&self, comparison: &Comparison, metric: Metric) -> Option<String> {
        let Reference::Statistics { path, provenance, .. } = &self.reference else { return None };
        if comparison.against != Against::Reference || !metric.needs_reference() {
            return None;
        }
        let path = path.display();
        if !metric.is_frechet() {
            return Some(format!("{path} holds mean and covariance, and {} needs the features of images", metric.name()));
        }
        if comparison.other != Look::default() {
            return Some(format!("it looks at parts of reference images, and {path} is of whole ones"));
        }
        let network = self.metrics.networks.iter().find(|network| network.network == comparison.network)?;
        let expected = network.whole_reference(comparison);
        (*provenance != expected).then(|| format!("{path} was made with {}, and it needs {}", shown(provenance), shown(&expected)))
    }

    /// Every column that the reference leaves empty, and why.
    pub(crate) fn absences(&self) -> Vec<(String, String)> {
        let columns = self.metrics.protocol.compare.iter().flat_map(|comparison| {
            let reason = |metric: &Metric| Some((format!("{}_{}", metric.name(), comparison.id), self.absence(comparison, *metric)?));
            comparison.metrics.iter().filter_map(reason)
        });
        columns.collect()
    }
}

impl Sampler {
    /// The seed of image `i` where that of the first is `seed`.
    pub(crate) fn seed_of_image(&self, seed: u64, i: usize) -> u64 {
        match self.seed_once_per_batch_of {
            None => seed.wrapping_add(i as u64),
            Some(_) => seed,
        }
    }

    /// The sampler that the name stands for.
    pub(crate) fn kind(&self) -> Result<scalebench_generation::Sampler> {
        self.name.parse().map_err(|error: String| anyhow!(error))
    }
}

/// The comparisons that a reference which is no more than statistics may serve.
pub(crate) fn comparisons_of_fid(protocol: &Protocol) -> impl Iterator<Item = &Comparison> {
    protocol
        .compare
        .iter()
        .filter(|comparison| comparison.against == Against::Reference && comparison.metrics.iter().any(|m| m.is_frechet()))
}

/// A provenance as people compare two.
fn shown(provenance: &Provenance) -> String {
    let Provenance { extractor, weights, preprocess } = provenance;
    format!("{extractor} (weights {}) and {}", weights.get(..12).unwrap_or(weights), preprocess.id())
}

impl Reference {
    /// None where nobody knows.
    pub(crate) fn n_images(&self) -> Option<usize> {
        match self {
            Reference::Emoji { images, .. }
            | Reference::Folder { images, .. }
            | Reference::Shards { images, .. }
            | Reference::Parquet { images, .. } => Some(*images),
            Reference::Statistics { images, .. } => *images,
        }
    }
}

/// The first key in which two resolved experiments differ, with both values.
pub(crate) fn difference(stored: &Resolved, now: &Resolved) -> Result<Option<String>> {
    fn walk(path: &str, a: &Value, b: &Value) -> Option<String> {
        let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match (a, b) {
            (Value::Mapping(a), Value::Mapping(b)) => {
                let keys: Vec<&Value> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
                keys.into_iter().find_map(|key| {
                    let null = &Value::Null;
                    let name = key.as_str().map_or_else(|| show(key), str::to_owned);
                    walk(&join(&name), a.get(key).unwrap_or(null), b.get(key).unwrap_or(null))
                })
            }
            (Value::Sequence(a), Value::Sequence(b)) if a.len() == b.len() => {
                a.iter().zip(b).enumerate().find_map(|(i, (a, b))| walk(&join(&i.to_string()), a, b))
            }
            _ if a == b => None,
            (Value::Sequence(a), Value::Sequence(b)) => Some(format!("{path} has {} entries there and {} here", a.len(), b.len())),
            _ => Some(format!("{path} is {} there and {} here", show(a), show(b))),
        }
    }
    fn show(value: &Value) -> String {
        serde_json::to_string(value).unwrap_or_else(|_| "something else".into())
    }
    Ok(walk("", &serde_yaml::to_value(stored)?, &serde_yaml::to_value(now)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_become_shapes() {
        for (factor, width, height) in [(1.0, 1.0, 1.0), (4.0, 2.0, 2.0), (6.25, 2.5, 2.5), (8.0, 4.0, 2.0), (16.0, 4.0, 4.0)] {
            assert_eq!(Scale::from_factor(factor), Scale { factor, width, height });
        }
    }
}
