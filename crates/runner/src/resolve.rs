//! The experiment as it will run: every default explicit, every input named by its digest.
//!
//! [`Resolved`] is plain data, kept as `run.yaml` with the results; [`Inputs`] are the loaded things
//! that it describes. Paths are kept as they were written, so that a run directory can be published.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use scalebench_generation::{Dtype, FAMILIES, LoadOptions, MethodSpec, Pipeline, ScheduleOptions, SizeConditioning, VaeDecode, locate};
use scalebench_metrics::{Extractor, Metric, Preprocess, Provenance, StatisticsFile, Tap, list_images};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::device;
use crate::matrix::{Change, SEED};
use crate::methods::{BASELINE, Configured};
use crate::protocol::{self, Against, Comparison, Look, Network, Protocol};
use crate::{matrix, methods, prompts, spec};

/// Fewest images per cell that FID with a jackknife interval can be computed from.
const MIN_IMAGES: usize = 3;

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
    pub(crate) images: usize,
    pub(crate) prompts: Prompts,
    /// Image `i` uses `seed + i`, the same in every cell whose method has no seed of its own.
    pub(crate) seed: u64,
    pub(crate) sampler: Sampler,
    pub(crate) reference: Reference,
    pub(crate) metrics: Metrics,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    /// Selects the settings of methods that differ between models.
    pub(crate) family: String,
    pub(crate) path: PathBuf,
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
    /// Image `i` asks for line `i % n` of a file, or for that row's entry in a column of a table.
    File {
        path: PathBuf,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        column: Option<String>,
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
    /// The images of a folder, as they are.
    Folder { path: PathBuf, images: usize, digest: String },
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
    fn whole_reference(&self, comparison: &Comparison) -> Provenance {
        self.provenance(Tap::Features, Comparison { other: Look::default(), ..comparison.clone() }.other(0, 0, (0, 0)))
    }
}

impl Metrics {
    /// Whether every network is one that published numbers are made with.
    pub(crate) fn comparable(&self) -> bool {
        self.networks.iter().all(|network| network.comparable)
    }
}

/// What a resolved experiment refers to, loaded.
pub(crate) struct Inputs {
    /// One per model.
    pub(crate) pipelines: Vec<Pipeline>,
    /// Where they were loaded from.
    pub(crate) folders: Vec<PathBuf>,
    /// One per method.
    pub(crate) methods: Vec<Configured>,
    /// What base-resolution images are made with.
    pub(crate) baseline: MethodSpec,
    /// One per feature network of the protocol.
    pub(crate) extractors: BTreeMap<Network, Extractor>,
    /// One per image of a cell.
    pub(crate) prompts: Vec<String>,
    pub(crate) reference: ReferenceInputs,
}

/// The reference, as far as it is given as files.
#[derive(Default)]
pub(crate) struct ReferenceInputs {
    pub(crate) images: Vec<PathBuf>,
    pub(crate) statistics: Option<StatisticsFile>,
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

/// Loads and checks everything that an experiment file refers to.
pub(crate) fn resolve(file: &Path, experiment: spec::Experiment) -> Result<(Resolved, Inputs)> {
    let at = |key: &str| format!("{}: {key}", file.display());
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();

    ensure!(
        experiment.images >= MIN_IMAGES,
        "{}: expected at least {MIN_IMAGES} (the interval of FID leaves some out, and two must remain), found {}",
        at("images"),
        experiment.images
    );
    let scales = scales(&experiment.scales).with_context(|| at("scales"))?;
    let sampler = Sampler::resolve(experiment.sampler.clone(), &at)?;

    let mut methods = Vec::new();
    let mut configured = Vec::new();
    for variant in matrix::methods(&experiment.methods, &experiment.matrix).with_context(|| file.display().to_string())? {
        let original = methods::find(&variant.of, folder).with_context(|| at("methods"))?;
        let variant_of = variant.label.as_ref().map(|_| original.name().to_owned());
        let own = own_sampler(&experiment.sampler, &sampler, &variant.changes, &at)?;
        let own_seed = own_seed(&variant.changes).with_context(|| at("methods"))?;
        let method = Configured::new(original, variant.label.as_deref(), &variant.changes).with_context(|| at("methods"))?;
        methods.push(Method {
            name: method.spec.name().to_owned(),
            title: method.spec.title().to_owned(),
            settings: serde_yaml::to_value(&method.spec)?,
            variant_of,
            set: matrix::shown(&variant.changes),
            sampler: own,
            seed: own_seed.filter(|seed| *seed != experiment.seed.unwrap_or(0)),
        });
        configured.push(method);
    }
    let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    check_names(&names).with_context(|| at("methods"))?;
    let variants = matrix::models(experiment.models, &experiment.matrix).with_context(|| file.display().to_string())?;
    let variant_name =
        |name: &str, label: &Option<String>| label.as_ref().map_or_else(|| name.to_owned(), |label| format!("{name}_{label}"));
    let names: Vec<String> = variants.iter().map(|variant| variant_name(&variant.of.0, &variant.label)).collect();
    check_names(&names.iter().map(String::as_str).collect::<Vec<_>>()).with_context(|| at("models"))?;

    let prompt_seed = experiment.prompts.seed.unwrap_or(0);
    let (prompts, prompt_list) = prompts::resolve(&experiment.prompts, experiment.images, folder).with_context(|| at("prompts"))?;
    let (metrics, extractors) = resolve_metrics(experiment.metrics, folder, &at)?;
    let (reference, reference_inputs) =
        resolve_reference(&experiment.reference, prompt_seed, folder, &metrics, &extractors).with_context(|| at("reference"))?;

    let (mut models, mut pipelines, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for matrix::Variant { of: (name, model), label, changes } in variants {
        let known = FAMILIES.iter().find(|f| f.name == name);
        let path = model.path.or_else(|| known.and_then(|f| f.repository).map(PathBuf::from));
        let path = path.with_context(|| format!("{}: expected the path of a checkpoint", at(&format!("models.{name}.path"))))?;
        let options = LoadOptions { variant: model.variant.clone(), dtype: model.dtype.unwrap_or_default(), device: device::current() };
        let load = || {
            let beside = folder.join(&path);
            let found = locate(if beside.is_dir() { &beside } else { &path })?;
            Ok::<_, scalebench_generation::Error>((Pipeline::load_with(&found, &options)?, found))
        };
        let (pipeline, found) = load().with_context(|| at(&format!("models.{name}.path")))?;
        folders.push(found);
        let (width, height) = pipeline.native_size();
        let family = model.family.or_else(|| known.or(pipeline.family()).map(|f| f.name.to_owned())).unwrap_or_else(|| name.clone());
        models.push(Model {
            name: variant_name(&name, &label),
            family,
            path,
            variant: model.variant,
            dtype: options.dtype,
            digest: pipeline.digest().to_owned(),
            width,
            height,
            set: matrix::shown(&changes),
        });
        pipelines.push(pipeline);
    }

    let resolved = Resolved {
        name,
        question: experiment.question,
        tool: concat!("scalebench ", env!("CARGO_PKG_VERSION")).to_owned(),
        models,
        methods,
        scales,
        images: experiment.images,
        prompts,
        seed: experiment.seed.unwrap_or(0),
        sampler,
        reference,
        metrics,
    };
    if let Reference::Statistics { .. } = resolved.reference {
        let of_fid = comparisons_of_fid(&resolved.metrics.protocol).map(|comparison| resolved.absence(comparison, Metric::Fid));
        // Each says why; where there is one that says nothing, the file has its use.
        let reasons: Option<Vec<String>> = of_fid.collect();
        ensure!(reasons.is_none(), "{}: {}", at("reference.statistics"), reasons.unwrap_or_default().join("; "));
    }
    let baseline = methods::find(methods::BASELINE, folder)?;
    let inputs =
        Inputs { pipelines, folders, methods: configured, baseline, extractors, prompts: prompt_list, reference: reference_inputs };
    Ok((resolved, inputs))
}

/// The sampler of a method whose changes speak of one.
fn own_sampler(written: &spec::Sampler, plain: &Sampler, changes: &[Change], at: &dyn Fn(&str) -> String) -> Result<Option<Sampler>> {
    let mut value = serde_yaml::to_value(written)?;
    let map = value.as_mapping_mut().context("expected a map")?;
    let mut of_sampler = changes.iter().filter_map(|change| Some((change.key.strip_prefix("sampler.")?, change))).peekable();
    if of_sampler.peek().is_none() {
        return Ok(None);
    }
    for (key, change) in of_sampler {
        map.insert(key.into(), change.value.clone());
    }
    let changed: spec::Sampler = spec::from_value(value).map_err(|message| anyhow!("{}: {message}", at("sampler")))?;
    Ok(Some(Sampler::resolve(changed, at)?).filter(|own| own != plain))
}

/// The seed of a method whose changes speak of one.
fn own_seed(changes: &[Change]) -> Result<Option<u64>> {
    let Some(change) = changes.iter().find(|change| change.key == SEED) else { return Ok(None) };
    let seed = change.value.as_u64();
    Ok(Some(seed.with_context(|| format!("{SEED}: expected a whole number from 0, found {}", change.shown))?))
}

impl Resolved {
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

    /// Why a column is empty, where the reference is a file of statistics that cannot fill it.
    pub(crate) fn absence(&self, comparison: &Comparison, metric: Metric) -> Option<String> {
        let Reference::Statistics { path, provenance, .. } = &self.reference else { return None };
        if comparison.against != Against::Reference || !metric.needs_reference() {
            return None;
        }
        let path = path.display();
        if metric != Metric::Fid {
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

/// The comparisons that a reference which is no more than statistics may serve.
fn comparisons_of_fid(protocol: &Protocol) -> impl Iterator<Item = &Comparison> {
    protocol.compare.iter().filter(|comparison| comparison.against == Against::Reference && comparison.metrics.contains(&Metric::Fid))
}

/// A provenance as people compare two.
fn shown(provenance: &Provenance) -> String {
    let Provenance { extractor, weights, preprocess } = provenance;
    format!("{extractor} (weights {}) and {}", weights.get(..12).unwrap_or(weights), preprocess.id())
}

fn resolve_metrics(written: spec::Metrics, folder: &Path, at: &dyn Fn(&str) -> String) -> Result<(Metrics, BTreeMap<Network, Extractor>)> {
    let protocol = protocol::find(&written.protocol, folder).with_context(|| at("metrics.protocol"))?;
    let used: BTreeSet<Network> = protocol.compare.iter().map(|comparison| comparison.network).collect();
    let (mut networks, mut extractors) = (Vec::new(), BTreeMap::new());
    for network in used {
        let at = at(&format!("metrics.{}", network.key()));
        let path = match network {
            Network::Inception => &written.extractor,
            Network::Clip => &written.clip,
            Network::Dinov2 => &written.dinov2,
        };
        let path =
            path.clone().with_context(|| format!("{at}: expected the path of {network:?}, which protocol {} uses", protocol.name))?;
        let extractor = load_extractor(&path, folder).with_context(|| at.clone())?;
        let found = Network::of(&extractor);
        ensure!(found == network, "{at}: expected {network:?}, {} holds {found:?}", path.display());
        let provenance = extractor.provenance(Tap::Features, &Preprocess::default());
        networks.push(FeatureNetwork {
            network,
            path,
            features: provenance.extractor,
            digest: provenance.weights,
            comparable: network != Network::Inception || extractor.is_published_inception(),
        });
        extractors.insert(network, extractor);
    }
    Ok((Metrics { protocol, networks }, extractors))
}

/// Files under which pytorch-fid and torch-fidelity keep the FID Inception in torch's cache.
const CACHED_INCEPTION: [&str; 2] = ["pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"];

/// A feature network from a path that starts at `folder` or here; the word `inception`, where no file has this name,
/// stands for the weights that pytorch-fid or torch-fidelity have downloaded (`$TORCH_HOME`, else `~/.cache/torch`).
pub(crate) fn load_extractor(path: &Path, folder: &Path) -> Result<Extractor> {
    let beside = folder.join(path);
    if beside.exists() {
        return Ok(Extractor::load_on(&beside, &device::current())?);
    }
    if path == Path::new("inception") && !path.exists() {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).unwrap_or_default();
        let home = std::env::var_os("TORCH_HOME").map_or_else(|| cache.join("torch"), PathBuf::from);
        let folder = home.join("hub/checkpoints");
        let found = CACHED_INCEPTION.iter().map(|name| folder.join(name)).find(|file| file.is_file());
        let names = CACHED_INCEPTION.join(" or ");
        let found = found.with_context(|| format!("expected a weights file, or {names} in {}", folder.display()))?;
        return Ok(Extractor::load_on(&found, &device::current())?);
    }
    Ok(Extractor::load_on(path, &device::current())?)
}

impl Sampler {
    fn resolve(written: spec::Sampler, at: &dyn Fn(&str) -> String) -> Result<Sampler> {
        let mut sampler = Sampler {
            name: written.name.unwrap_or_else(|| "ddim".into()),
            steps: written.steps.unwrap_or(50),
            eta: 0.0,
            guidance_scale: written.guidance_scale.unwrap_or(7.5),
            guidance_rescale: written.guidance_rescale.unwrap_or(0.0),
            negative_prompt: written.negative_prompt.unwrap_or_default(),
            schedule: ScheduleOptions {
                timestep_spacing: written.timestep_spacing,
                use_karras_sigmas: written.use_karras_sigmas,
                rescale_betas_zero_snr: written.rescale_betas_zero_snr,
            },
            size_conditioning: written.size_conditioning.unwrap_or_default(),
            vae_decode: written.vae_decode.unwrap_or_default(),
            seed_once_per_batch_of: written.seed_once_per_batch_of,
            jpeg_quality: written.jpeg_quality,
        };
        ensure!(sampler.seed_once_per_batch_of != Some(0), "{}: expected at least 1", at("sampler.seed_once_per_batch_of"));
        ensure!(sampler.jpeg_quality.is_none_or(|q| (1..=100).contains(&q)), "{}: expected 1 to 100", at("sampler.jpeg_quality"));
        let kind = sampler.kind().with_context(|| at("sampler.name"))?;
        sampler.eta = written.eta.unwrap_or(kind.usual_eta());
        Ok(sampler)
    }

    /// The sampler that the name stands for.
    pub(crate) fn kind(&self) -> Result<scalebench_generation::Sampler> {
        self.name.parse().map_err(|error: String| anyhow!(error))
    }
}

fn scales(written: &[spec::Scale]) -> Result<Vec<Scale>> {
    ensure!(!written.is_empty(), "expected at least one");
    let mut scales: Vec<Scale> = Vec::new();
    for scale in written {
        let scale = match *scale {
            spec::Scale::Factor(factor) => Scale::from_factor(factor),
            spec::Scale::Shape(spec::Shape { factor, width, height }) => {
                ensure!((width * height - factor).abs() < 1e-6, "width {width} × height {height} is not factor {factor}");
                Scale { factor, width, height }
            }
        };
        ensure!(scale.factor.is_finite() && scale.factor > 0.0, "{} is not a pixel factor", scale.factor);
        ensure!(!scales.contains(&scale), "{} stands there twice", scale.label());
        scales.push(scale);
    }
    Ok(scales)
}

/// Names become folder names.
fn check_names(names: &[&str]) -> Result<()> {
    ensure!(!names.is_empty(), "expected at least one");
    let mut seen = BTreeSet::new();
    for name in names {
        let safe = |c: char| c.is_ascii_alphanumeric() || "._-=,+".contains(c);
        ensure!(
            name.chars().all(safe) && !name.is_empty() && !name.starts_with('.'),
            "`{name}`: expected letters, digits, `.`, `_`, `-`, `=`, `,` and `+` only"
        );
        ensure!(seen.insert(name), "`{name}` stands there twice");
    }
    Ok(())
}

fn resolve_reference(
    written: &spec::Reference,
    seed: u64,
    folder: &Path,
    metrics: &Metrics,
    extractors: &BTreeMap<Network, Extractor>,
) -> Result<(Reference, ReferenceInputs)> {
    let spec::Reference { source, images, folder: of_images, list, statistics } = written;
    let (reference, inputs) = match (source, images, of_images, list, statistics) {
        (_, Some(images), None, None, None) => (Reference::Emoji { images: *images, seed }, ReferenceInputs::default()),
        (None, None, Some(path), None, None) => image_files(path, list_images(&folder.join(path))?)?,
        (None, None, None, Some(path), None) => image_files(path, listed_images(&folder.join(path))?)?,
        (None, None, None, None, Some(path)) => stored_statistics(path, &folder.join(path), metrics, extractors).context("statistics")?,
        _ => bail!("expected {{source: emoji, images: N}}, {{folder: DIR}}, {{list: FILE}} or {{statistics: FILE}}"),
    };
    let n = reference.n_images();
    ensure!(n.is_none_or(|n| n >= 2), "expected at least 2 images, found {}", n.unwrap_or_default());
    Ok((reference, inputs))
}

/// Statistics that say how they were made, or that fit a network by the number of their values.
fn stored_statistics(
    path: &Path,
    file: &Path,
    metrics: &Metrics,
    extractors: &BTreeMap<Network, Extractor>,
) -> Result<(Reference, ReferenceInputs)> {
    let found = StatisticsFile::load(file)?;
    let dim = found.statistics.dim();
    let mut fitting = comparisons_of_fid(&metrics.protocol).filter(|comparison| extractors[&comparison.network].dim() == dim);
    let taken_as = || -> Option<Provenance> {
        let comparison = fitting.next()?;
        let network = metrics.networks.iter().find(|network| network.network == comparison.network)?;
        Some(network.whole_reference(comparison))
    };
    let Some(provenance) = found.provenance.clone().or_else(taken_as) else {
        let expected: BTreeSet<String> = comparisons_of_fid(&metrics.protocol)
            .map(|comparison| format!("of {} values, as {:?} has here", extractors[&comparison.network].dim(), comparison.network))
            .collect();
        ensure!(!expected.is_empty(), "protocol {} measures no FID against the reference; expected images", metrics.protocol.name);
        let expected: Vec<String> = expected.into_iter().collect();
        bail!("{}: expected mean and covariance {}, found {dim}", file.display(), expected.join(" or "));
    };
    let reference = Reference::Statistics {
        path: path.to_owned(),
        images: found.n,
        stated: found.provenance.is_some(),
        provenance,
        digest: blake3::hash(&std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?).to_string(),
    };
    Ok((reference, ReferenceInputs { statistics: Some(found), ..ReferenceInputs::default() }))
}

fn image_files(path: &Path, images: Vec<PathBuf>) -> Result<(Reference, ReferenceInputs)> {
    let mut hasher = blake3::Hasher::new();
    for file in &images {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        hasher.update(blake3::hash(&bytes).as_bytes());
    }
    let reference = Reference::Folder { path: path.to_owned(), images: images.len(), digest: hasher.finalize().to_string() };
    Ok((reference, ReferenceInputs { images, ..ReferenceInputs::default() }))
}

/// The image files that a text file names, one a line, relative to itself.
fn listed_images(list: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let folder = list.parent().unwrap_or(Path::new(""));
    let files: Vec<PathBuf> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|line| folder.join(line)).collect();
    for (i, file) in files.iter().enumerate() {
        ensure!(file.is_file(), "{}: line {}: {} is no file", list.display(), i + 1, file.display());
    }
    Ok(files)
}

impl Reference {
    /// None where nobody knows.
    pub(crate) fn n_images(&self) -> Option<usize> {
        match self {
            Reference::Emoji { images, .. } | Reference::Folder { images, .. } => Some(*images),
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

    #[test]
    fn bad_scales_are_refused() {
        let shape = |factor, width, height| spec::Scale::Shape(spec::Shape { factor, width, height });
        assert!(scales(&[shape(8.0, 4.0, 2.0)]).is_ok());
        assert!(scales(&[shape(8.0, 4.0, 4.0)]).is_err());
        assert!(scales(&[spec::Scale::Factor(4.0), shape(4.0, 2.0, 2.0)]).is_err());
        let labels: Vec<String> = scales(&[spec::Scale::Factor(4.0), shape(4.0, 4.0, 1.0)]).unwrap().iter().map(Scale::label).collect();
        assert_eq!(labels, ["4x", "4x-4by1"]);
        assert!(scales(&[spec::Scale::Factor(-4.0)]).is_err());
        assert!(scales(&[]).is_err());
    }
}
