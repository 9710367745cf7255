//! Loading and checking what an experiment file refers to: [`Resolved`] describes it, [`Inputs`] has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use scalebench_generation::{Blueprint, FAMILIES, LoadOptions, MethodSpec, Pipeline, ScheduleOptions, locate, locate_here};
use scalebench_metrics::{Extractor, ImageSet, Preprocess, Provenance, Sample, Shards, Source, StatisticsFile, Tap, list_images};

use crate::experiment::brought::{self, File};
use crate::experiment::matrix::{self, Change, SEED};
use crate::experiment::methods::{self, Configured};
use crate::experiment::protocol::{self, Comparison, Network, Protocol};
use crate::experiment::resolved::{
    Brought, FeatureNetwork, Images, Method, Metrics, Model, Reference, Resolved, Sampler, Scale, Video, comparisons_of_fid,
};
use crate::experiment::upscalers::Upscalers;
use crate::experiment::yaml::{did_you_mean, from_value};
use crate::experiment::{image_table, prompts, spec};
use crate::host::{data, device, digest};

/// Fewest images per cell that FID with a jackknife interval can be computed from.
const MIN_IMAGES: usize = 3;

/// Most images of a cell: their numbers have six digits.
pub(crate) const MOST_IMAGES: usize = 1_000_000;

/// Most images that are drawn as one batch.
const MOST_IN_BATCH: usize = 1024;

/// What a resolved experiment refers to, loaded.
pub(crate) struct Inputs {
    /// One per model; none at all where one is lacking.
    pub(crate) pipelines: Vec<Pipeline>,
    /// The same without their weights; of a checkpoint that is lacking, its family's.
    pub(crate) blueprints: Vec<Blueprint>,
    /// One per method whose images this program makes.
    pub(crate) methods: Vec<Configured>,
    /// Files of the others, by cell.
    pub(crate) brought: BTreeMap<String, Vec<File>>,
    /// What base-resolution images are made with.
    pub(crate) baseline: MethodSpec,
    /// One per feature network of the protocol.
    pub(crate) extractors: BTreeMap<Network, Extractor>,
    /// One per image of a cell.
    pub(crate) prompts: Vec<String>,
    pub(crate) reference: ReferenceInputs,
    /// What is not at hand, each with the reason: for something to be counted, and not made.
    pub(crate) lacking: Vec<String>,
}

/// Which of an experiment's inputs must be at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    All,
    /// Images of other programs are named alone, for those who will make them.
    AllButBrought,
    /// Something stands in for what is not there: images can be counted with it.
    Nothing,
}

/// What stands in for inputs that are not at hand, where that is allowed.
struct StandIns {
    allowed: bool,
    lacking: Vec<String>,
}

impl StandIns {
    /// What was found, or where there is no such file, something else.
    fn or<T>(&mut self, found: Result<T>, other: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_absence = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
        };
        match found {
            Err(error) if self.allowed && error.chain().any(is_absence) => {
                self.lacking.push(format!("{error:#}"));
                other()
            }
            found => found,
        }
    }
}

/// The reference, as far as it is given as files.
#[derive(Default)]
pub(crate) struct ReferenceInputs {
    pub(crate) images: Vec<Sample>,
    pub(crate) statistics: Option<StatisticsFile>,
}

/// Loads and checks everything that an experiment file refers to.
pub(crate) fn resolve(file: &Path, experiment: spec::Experiment, needs: Needs) -> Result<(Resolved, Inputs)> {
    let mut stand_ins = StandIns { allowed: needs == Needs::Nothing, lacking: Vec::new() };
    let at = |key: &str| format!("{}: {key}", file.display());
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();

    let scales = scales(&experiment.scales).with_context(|| at("scales"))?;
    let images = images(&experiment.images, &scales).with_context(|| at("images"))?;
    let video = video(experiment.frames, experiment.fps).with_context(|| file.display().to_string())?;
    let sampler = Sampler::resolve(experiment.sampler.clone(), &at)?;

    let (mut methods, configured) = resolve_methods(&experiment, &sampler, file)?;
    let variants = matrix::models(experiment.models, &experiment.matrix).with_context(|| file.display().to_string())?;
    let names: Vec<String> = variants.iter().map(variant_name).collect();
    check_names(&names.iter().map(String::as_str).collect::<Vec<_>>()).with_context(|| at("models"))?;

    let prompt_seed = experiment.prompts.seed.unwrap_or(0);
    let found = prompts::resolve(&experiment.prompts, images.most(), video.is_some(), folder).with_context(|| at("prompts"));
    let (prompts, prompt_list) = stand_ins.or(found, || Ok(prompts::unread(&experiment.prompts, images.most())))?;
    let (metrics, extractors) = resolve_metrics(experiment.metrics, folder, &mut stand_ins, &at)?;
    check_videos(video, &metrics.protocol, &experiment.methods, &at)?;
    let found = resolve_reference(&experiment.reference, prompt_seed, folder, (&metrics, &extractors), video.is_some());
    let found = found.with_context(|| at("reference"));
    let none = || (Reference::Folder { path: PathBuf::new(), images: 0, digest: String::new() }, ReferenceInputs::default());
    let (reference, reference_inputs) = stand_ins.or(found, || Ok(none()))?;

    let (mut models, mut pipelines, mut blueprints) = (Vec::new(), Vec::new(), Vec::new());
    for variant in variants {
        let (model, blueprint, pipeline) = load_model(variant, folder, &mut stand_ins, &at)?;
        models.push(model);
        blueprints.push(blueprint);
        pipelines.push(pipeline);
    }
    let mut pipelines: Vec<Pipeline> = pipelines.into_iter().collect::<Option<_>>().unwrap_or_default();
    let mut upscalers = Upscalers::default();
    for (i, model) in models.iter().enumerate() {
        for (method, scale) in configured.iter().flat_map(|method| scales.iter().map(move |scale| (method, scale))) {
            // The planner says why a method does not resolve.
            let Ok(method) = method.resolve(&model.family, scale.factor, blueprints[i].sites()) else { continue };
            let found = match upscalers.find(&method, model.dtype, folder).with_context(|| at("methods")) {
                // Its steps are not counted then.
                Err(error) if stand_ins.allowed => {
                    stand_ins.lacking.push(format!("{error:#}"));
                    None
                }
                found => found?,
            };
            if let Some((name, upscaler)) = found {
                blueprints[i].lend_upscaler(&name, upscaler.clone());
                pipelines.get_mut(i).into_iter().for_each(|pipeline| pipeline.lend_upscaler(&name, upscaler.clone()));
            }
        }
    }

    let mut brought = BTreeMap::new();
    for method in methods.iter_mut().filter(|method| needs != Needs::AllButBrought && method.images.is_some()) {
        let of = method.variant_of.as_ref().unwrap_or(&method.name);
        let entry = experiment.methods.iter().find(|entry| entry.images.is_some() && entry.written() == of);
        let entry = entry.with_context(|| at("methods"))?;
        let seed = method.seed.or(experiment.seed).unwrap_or(0);
        let seeds: Vec<u64> = (0..images.most()).map(|i| sampler.seed_of_image(seed, i)).collect();
        // Others are compared with plain images at the training size.
        let is_base = |scale: &Scale| *scale == Scale::BASE && of == methods::BASELINE;
        let count = |scale: &Scale| if is_base(scale) { images.most() } else { images.at(scale) };
        let (found, files) = brought::find(entry, folder, &models, &scales, &seeds, &count, &method.name)
            .with_context(|| at(&format!("methods: {}", method.name)))?;
        method.images = Some(found);
        brought.extend(files);
    }

    let resolved = Resolved {
        name,
        question: experiment.question,
        tool: concat!("scalebench ", env!("CARGO_PKG_VERSION")).to_owned(),
        models,
        methods,
        scales,
        images,
        video,
        prompts,
        seed: experiment.seed.unwrap_or(0),
        sampler,
        reference,
        metrics,
        upscalers: upscalers.digests(),
    };
    if let Reference::Statistics { .. } = resolved.reference {
        let of_fid = comparisons_of_fid(&resolved.metrics.protocol)
            .map(|comparison| comparison.metrics.iter().find(|m| m.is_frechet()).and_then(|metric| resolved.absence(comparison, *metric)));
        // Each says why; where there is one that says nothing, the file has its use.
        let reasons: Option<Vec<String>> = of_fid.collect();
        ensure!(reasons.is_none(), "{}: {}", at("reference.statistics"), reasons.unwrap_or_default().join("; "));
    }
    let baseline = methods::find(methods::BASELINE, folder)?;
    let reference = reference_inputs;
    let (methods, prompts, lacking) = (configured, prompt_list, stand_ins.lacking);
    Ok((resolved, Inputs { pipelines, blueprints, methods, brought, baseline, extractors, prompts, reference, lacking }))
}

/// The methods of an experiment with all their variants, as data and as they will be used.
fn resolve_methods(experiment: &spec::Experiment, sampler: &Sampler, file: &Path) -> Result<(Vec<Method>, Vec<Configured>)> {
    let at = |key: &str| format!("{}: {key}", file.display());
    let folder = file.parent().unwrap_or(Path::new(""));
    let (mut methods, mut configured) = (Vec::new(), Vec::new());
    for variant in matrix::methods(&experiment.methods, &experiment.matrix).with_context(|| file.display().to_string())? {
        if let Some(images) = &variant.of.images {
            let (name, seed) = (variant.of.written(), own_seed(&variant.changes).with_context(|| at("methods"))?);
            let title = variant.of.title.as_deref().unwrap_or(name);
            let (label, set) = (variant.label.as_ref(), matrix::shown(&variant.changes));
            methods.push(Method {
                name: label.map_or_else(|| name.to_owned(), |label| format!("{name}_{label}")),
                title: label.map_or_else(|| title.to_owned(), |label| format!("{title}, {label}")),
                settings: serde_yaml::Value::Null,
                images: Some(Brought { base: variant.of.base.clone(), ..Brought::named(images) }),
                variant_of: label.map(|_| name.to_owned()),
                set,
                sampler: None,
                seed: seed.filter(|seed| *seed != experiment.seed.unwrap_or(0)),
            });
            continue;
        }
        let original = methods::find(variant.of.written(), folder).with_context(|| at("methods"))?;
        let variant_of = variant.label.as_ref().map(|_| original.name().to_owned());
        let own = own_sampler(&experiment.sampler, sampler, &variant.changes, &at)?;
        let own_seed = own_seed(&variant.changes).with_context(|| at("methods"))?;
        let method = Configured::new(original, variant.label.as_deref(), &variant.changes).with_context(|| at("methods"))?;
        methods.push(Method {
            name: method.spec.name().to_owned(),
            title: method.spec.title().to_owned(),
            settings: serde_yaml::to_value(&method.spec)?,
            images: None,
            variant_of,
            set: matrix::shown(&variant.changes),
            sampler: own,
            seed: own_seed.filter(|seed| *seed != experiment.seed.unwrap_or(0)),
        });
        configured.push(method);
    }
    let names: Vec<&str> = methods.iter().map(|method| method.name.as_str()).collect();
    check_names(&names).with_context(|| at("methods"))?;
    Ok((methods, configured))
}

/// Refuses the name of a family that no method can have settings for.
pub(crate) fn check_family(family: &str) -> Result<()> {
    let names = FAMILIES.map(|family| family.name);
    ensure!(names.contains(&family), "`{family}`: expected one of {}{}", names.join(", "), did_you_mean(family, names));
    Ok(())
}

/// What a variant of a checkpoint is called.
fn variant_name(variant: &matrix::Variant<(String, spec::Model)>) -> String {
    let name = &variant.of.0;
    variant.label.as_ref().map_or_else(|| name.clone(), |label| format!("{name}_{label}"))
}

/// Loads a checkpoint, if it is there; with it, how it is described and what is known without its weights.
fn load_model(
    variant: matrix::Variant<(String, spec::Model)>,
    folder: &Path,
    stand_ins: &mut StandIns,
    at: &dyn Fn(&str) -> String,
) -> Result<(Model, Blueprint, Option<Pipeline>)> {
    let shown = variant_name(&variant);
    let matrix::Variant { of: (name, model), changes, .. } = variant;
    model.family.as_deref().map(check_family).transpose().with_context(|| at(&format!("models.{name}.family")))?;
    let at = at(&format!("models.{name}.path"));
    let known = FAMILIES.iter().find(|f| f.name == name);
    let path = model.path.or_else(|| known.and_then(|f| f.repository).map(PathBuf::from));
    let path = path.with_context(|| format!("{at}: expected the path of a checkpoint"))?;
    let motion_adapter = model.motion_adapter.as_ref().map(|adapter| {
        let adapter = data::located(adapter)?;
        let beside = folder.join(&adapter);
        Ok::<_, anyhow::Error>(if beside.is_dir() { beside } else { adapter })
    });
    let motion_adapter = motion_adapter.transpose().with_context(|| format!("{at}: motion_adapter"))?;
    let options =
        LoadOptions { variant: model.variant.clone(), motion_adapter, dtype: model.dtype.unwrap_or_default(), device: device::current() };
    let load = || {
        let path = data::located(&path)?;
        let beside = folder.join(&path);
        let place = if beside.is_dir() { &beside } else { &path };
        // What is only to be counted is not worth a download.
        let found = if stand_ins.allowed { locate_here(place)? } else { locate(place)? };
        Ok::<_, anyhow::Error>(Some(Pipeline::load_with(&found, &options)?))
    };
    let found = load().with_context(|| at.clone());
    let pipeline = stand_ins.or(found, || Ok(None))?;
    let told = FAMILIES.iter().find(|family| model.family.as_deref().unwrap_or(&name) == family.name);
    let moves = model.motion_adapter.is_some();
    let with_motion = |blueprint: Blueprint| if moves { blueprint.assuming_motion() } else { blueprint };
    let blueprint = match &pipeline {
        Some(pipeline) => Blueprint::clone(pipeline),
        None => told.and_then(Blueprint::of_family).map(with_motion).with_context(|| {
            format!(
                "{at}: {} is not at hand; expected a `family` whose shapes are known: sd15, sd21, sd21-768, sdxl or modelscope",
                path.display()
            )
        })?,
    };
    let (width, height) = blueprint.native_size();
    let family = model.family.or_else(|| known.or(blueprint.family()).map(|f| f.name.to_owned())).unwrap_or(name);
    let digest = pipeline.as_ref().map_or_else(String::new, |pipeline| pipeline.digest().to_owned());
    let set = matrix::shown(&changes);
    let model = Model {
        name: shown,
        family,
        path,
        motion_adapter: model.motion_adapter,
        variant: model.variant,
        dtype: options.dtype,
        digest,
        width,
        height,
        set,
    };
    Ok((model, blueprint, pipeline))
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
    let changed: spec::Sampler = from_value(value).map_err(|message| anyhow!("{}: {message}", at("sampler")))?;
    Ok(Some(Sampler::resolve(changed, at)?).filter(|own| own != plain))
}

/// The seed of a method whose changes speak of one.
fn own_seed(changes: &[Change]) -> Result<Option<u64>> {
    let Some(change) = changes.iter().find(|change| change.key == SEED) else { return Ok(None) };
    let seed = change.value.as_u64();
    Ok(Some(seed.with_context(|| format!("{SEED}: expected a whole number from 0, found {}", change.shown))?))
}

fn resolve_metrics(
    written: spec::Metrics,
    folder: &Path,
    stand_ins: &mut StandIns,
    at: &dyn Fn(&str) -> String,
) -> Result<(Metrics, BTreeMap<Network, Extractor>)> {
    let protocol = protocol::find(&written.protocol, folder).with_context(|| at("metrics.protocol"))?;
    let used: BTreeSet<Network> = protocol.compare.iter().map(|comparison| comparison.network).collect();
    let (mut networks, mut extractors) = (Vec::new(), BTreeMap::new());
    for network in used {
        let at = at(&format!("metrics.{}", network.key()));
        let path = match network {
            Network::Inception => &written.extractor,
            Network::Clip => &written.clip,
            Network::Dinov2 => &written.dinov2,
            Network::Pixels => &Some(PathBuf::from(PIXELS)),
            Network::I3d => &written.i3d,
        };
        let path =
            path.clone().with_context(|| format!("{at}: expected the path of {network:?}, which protocol {} uses", protocol.name))?;
        let extractor = stand_ins.or(load_extractor(&path, folder).map(Some).with_context(|| at.clone()), || Ok(None))?;
        let Some(extractor) = extractor else { continue };
        let found = Network::of(&extractor);
        ensure!(found == network, "{at}: expected {network:?}, {} holds {found:?}", path.display());
        let provenance = extractor.provenance(Tap::Features, &Preprocess::default());
        networks.push(FeatureNetwork {
            network,
            path,
            features: provenance.extractor,
            digest: provenance.weights,
            comparable: match network {
                Network::Inception => extractor.is_published_inception(),
                Network::I3d => extractor.is_published_i3d(),
                Network::Clip | Network::Dinov2 | Network::Pixels => true,
            },
        });
        extractors.insert(network, extractor);
    }
    Ok((Metrics { protocol, networks }, extractors))
}

/// The name of no network, in place of a path of weights.
pub(crate) const PIXELS: &str = "pixels";

/// Files under which pytorch-fid and torch-fidelity keep the FID Inception in torch's cache.
const CACHED_INCEPTION: [&str; 2] = ["pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"];

/// A feature network from a path that starts at `folder` or here; the word `inception`, where no file has this name,
/// stands for the weights that pytorch-fid or torch-fidelity have downloaded (`$TORCH_HOME`, else `~/.cache/torch`).
pub(crate) fn load_extractor(path: &Path, folder: &Path) -> Result<Extractor> {
    let path = data::located(path)?;
    let path = path.as_path();
    if path == Path::new(PIXELS) && !path.exists() {
        return Ok(Extractor::pixels());
    }
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
        let missing = || io::Error::new(ErrorKind::NotFound, format!("expected a weights file, or {names} in {}", folder.display()));
        let found = found.ok_or_else(missing)?;
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
        let batch = sampler.seed_once_per_batch_of.unwrap_or(1);
        ensure!(
            (1..=MOST_IN_BATCH).contains(&batch),
            "{}: expected 1 to {MOST_IN_BATCH}, found {batch}",
            at("sampler.seed_once_per_batch_of")
        );
        ensure!(sampler.jpeg_quality.is_none_or(|q| (1..=100).contains(&q)), "{}: expected 1 to 100", at("sampler.jpeg_quality"));
        let kind = sampler.kind().with_context(|| at("sampler.name"))?;
        sampler.eta = written.eta.unwrap_or(kind.usual_eta());
        Ok(sampler)
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
        let sides = [scale.factor, scale.width, scale.height];
        ensure!(sides.iter().all(|side| side.is_finite() && *side > 0.0), "{} is not a pixel factor", scale.factor);
        ensure!(!scales.contains(&scale), "{} stands there twice", scale.label());
        scales.push(scale);
    }
    Ok(scales)
}

/// Refuses a protocol of images for videos, and the other way round, and images that others made among videos.
fn check_videos(video: Option<Video>, protocol: &Protocol, methods: &[spec::Entry], at: &dyn Fn(&str) -> String) -> Result<()> {
    for comparison in &protocol.compare {
        let is_of_videos = comparison.network == Network::I3d;
        let of = |is: bool| if is { "videos" } else { "images" };
        ensure!(
            is_of_videos == video.is_some(),
            "{}: {} measures {}, and the experiment makes {}: frames is {}",
            at("metrics.protocol"),
            protocol.name,
            of(is_of_videos),
            of(video.is_some()),
            video.map_or(1, |video| video.frames)
        );
    }
    let brings = methods.iter().any(|entry| entry.images.is_some());
    let expected = "expected methods that this program runs, since images that others made are no videos";
    ensure!(video.is_none() || !brings, "{}: {expected}", at("methods"));
    Ok(())
}

/// What a video is; none where there is one frame, an image.
fn video(frames: Option<usize>, fps: Option<f64>) -> Result<Option<Video>> {
    let frames = frames.unwrap_or(1);
    ensure!(frames >= 1, "frames: expected at least 1, found {frames}");
    ensure!(fps.is_none() || frames > 1, "fps: expected it beside frames only");
    let fps = fps.unwrap_or(8.0);
    ensure!((0.1..=1000.0).contains(&fps), "fps: expected a number from 0.1 to 1000, found {fps}");
    Ok((frames > 1).then_some(Video { frames, fps }))
}

/// How many images cells have; every scale has its number, and every number its scale.
fn images(written: &spec::Images, scales: &[Scale]) -> Result<Images> {
    let check = |n: usize| {
        let least = format!("expected at least {MIN_IMAGES} (the interval of FID leaves some out, and two must remain), found {n}");
        ensure!(n <= MOST_IMAGES, "expected at most {MOST_IMAGES}, found {n}");
        if n >= MIN_IMAGES { Ok(n) } else { Err(anyhow!(least)) }
    };
    let written = match written {
        spec::Images::Every(n) => return Ok(Images::Every(check(*n)?)),
        spec::Images::PerScale(written) => written,
    };
    let mut counts = BTreeMap::new();
    for (key, n) in written {
        // A factor, or a label where shapes share one.
        let is_it = |scale: &&Scale| *key == scale.label() || key.trim_end_matches('x').parse() == Ok(scale.factor);
        let named: Vec<&Scale> = scales.iter().filter(is_it).collect();
        let labels = || scales.iter().map(Scale::label).collect::<Vec<_>>().join(", ");
        ensure!(named.len() < 2, "{key}: expected one of {}: they have a factor in common", labels());
        let scale = named.first().with_context(|| format!("{key}: expected one of the experiment's `scales`: {}", labels()))?;
        ensure!(counts.insert(scale.label(), check(*n).with_context(|| key.clone())?).is_none(), "{key}: stands there twice");
    }
    for scale in scales {
        ensure!(counts.contains_key(&scale.label()), "expected a number for every scale, found none for {}", scale.label());
    }
    Ok(Images::PerScale(counts))
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
    (metrics, extractors): (&Metrics, &BTreeMap<Network, Extractor>),
    of_videos: bool,
) -> Result<(Reference, ReferenceInputs)> {
    let spec::Reference { source, images, folder: of_images, list, parquet, column, shards, statistics } = written;
    ensure!(column.is_none() || parquet.is_some(), "column: expected it beside parquet only");
    if of_videos {
        match (images, of_images, statistics) {
            // As of images, below.
            (Some(_), None, None) => {}
            (None, Some(path), None) => return videos(path, &folder.join(path)),
            (None, None, Some(path)) => return stored_statistics(path, &folder.join(path), metrics, extractors).context("statistics"),
            _ => bail!(
                "expected {{source: emoji, images: N}}, {{folder: DIR}} of videos, or of a .npy or .npz file with an array of them, or {{statistics: FILE}}"
            ),
        }
        let files = [list, parquet, shards].into_iter().any(Option::is_some);
        ensure!(!files, "expected {{source: emoji, images: N}} alone");
    }
    if let (Some(path), None, None, None, None, None, None) = (parquet, source, images, of_images, list, shards, statistics) {
        return image_table(path, &folder.join(path), column.as_deref());
    }
    ensure!(parquet.is_none(), "expected parquet alone, or with column");
    let (reference, inputs) = match (source, images, of_images, list, shards, statistics) {
        (_, Some(images), None, None, None, None) => (Reference::Emoji { images: *images, seed }, ReferenceInputs::default()),
        (None, None, Some(path), None, None, None) => image_files(path, list_images(&folder.join(path))?)?,
        (None, None, None, Some(path), None, None) => image_files(path, listed_images(&folder.join(path))?)?,
        (None, None, None, None, Some(path), None) => image_shards(path, &folder.join(path))?,
        (None, None, None, None, None, Some(path)) => {
            stored_statistics(path, &folder.join(path), metrics, extractors).context("statistics")?
        }
        _ => bail!(
            "expected {{source: emoji, images: N}}, {{folder: DIR}}, {{list: FILE}}, {{shards: PATTERN}}, {{parquet: FILE}} or {{statistics: FILE}}"
        ),
    };
    let n = reference.n_images();
    ensure!(n.is_none_or(|n| n >= 2), "expected at least 2 images, found {}", n.unwrap_or_default());
    let drawn = matches!(reference, Reference::Emoji { .. });
    ensure!(!drawn || n.is_none_or(|n| n <= MOST_IMAGES), "images: expected at most {MOST_IMAGES}, found {}", n.unwrap_or_default());
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
    let dims = |comparison: &Comparison| extractors.get(&comparison.network).map(Extractor::dim);
    let mut fitting = comparisons_of_fid(&metrics.protocol).filter(|comparison| dims(comparison) == Some(dim));
    let taken_as = || -> Option<Provenance> {
        let comparison = fitting.next()?;
        let network = metrics.networks.iter().find(|network| network.network == comparison.network)?;
        Some(network.whole_reference(comparison))
    };
    let Some(provenance) = found.provenance.clone().or_else(taken_as) else {
        let expected: BTreeSet<String> = comparisons_of_fid(&metrics.protocol)
            .filter_map(|comparison| Some(format!("of {} values, as {:?} has here", dims(comparison)?, comparison.network)))
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
        digest: digest::of_file(file)?,
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
    let sample = |(i, file)| Sample { name: format!("{i:06}"), group: i as u32, source: Source::File(file) };
    Ok((reference, ReferenceInputs { images: images.into_iter().enumerate().map(sample).collect(), ..ReferenceInputs::default() }))
}

/// Videos of a folder or an array, as they are.
fn videos(path: &Path, place: &Path) -> Result<(Reference, ReferenceInputs)> {
    let samples = Sample::videos(place)?;
    ensure!(samples.len() >= 2, "expected at least 2 videos, found {}", samples.len());
    let digest = match place.is_dir() {
        false => digest::of_file(place)?,
        true => digest::of_files(&list_images(place)?)?,
    };
    let reference = Reference::Folder { path: path.to_owned(), images: samples.len(), digest };
    Ok((reference, ReferenceInputs { images: samples, ..ReferenceInputs::default() }))
}

fn image_table(path: &Path, place: &Path, column: Option<&str>) -> Result<(Reference, ReferenceInputs)> {
    let samples = image_table::open(place, column)?;
    let column = column.map(str::to_owned);
    ensure!(samples.len() >= 2, "expected at least 2 images, found {}", samples.len());
    let reference = Reference::Parquet { path: path.to_owned(), column, images: samples.len(), digest: digest::of_file(place)? };
    Ok((reference, ReferenceInputs { images: samples, ..ReferenceInputs::default() }))
}

fn image_shards(path: &Path, place: &Path) -> Result<(Reference, ReferenceInputs)> {
    let shards = Shards::images(place)?;
    let reference = Reference::Shards { path: path.to_owned(), images: shards.len(), digest: digest::of_files(shards.files())? };
    Ok((reference, ReferenceInputs { images: Sample::set(Arc::new(shards)), ..ReferenceInputs::default() }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_has_its_number() {
        let shape = |width, height| spec::Scale::Shape(spec::Shape { factor: 4.0, width, height });
        let per = |written: &[spec::Scale], pairs: &[(&str, usize)]| {
            let pairs = pairs.iter().map(|(key, n)| ((*key).to_owned(), *n)).collect();
            images(&spec::Images::PerScale(pairs), &scales(written).unwrap()).map_err(|error| format!("{error:#}"))
        };
        let two = [spec::Scale::Factor(4.0), spec::Scale::Factor(16.0)];
        let found = per(&two, &[("16", 64), ("4x", 256)]).unwrap();
        let at = |factor| found.at(&Scale::from_factor(factor));
        assert_eq!((at(4.0), at(16.0), at(1.0), found.most()), (256, 64, 256, 256));
        assert_eq!(serde_yaml::to_string(&found).unwrap(), "16x: 64\n4x: 256\n");
        assert_eq!(serde_yaml::from_str::<Images>("12").unwrap(), Images::Every(12));
        let shapes = [shape(2.0, 2.0), shape(4.0, 1.0)];
        assert!(per(&shapes, &[("4x", 3), ("4x-4by1", 4)]).is_err() && per(&shapes, &[("4x-4by1", 4)]).is_err());
        for (written, pairs, fragment) in [
            (&two, &[("4", 256)][..], "expected a number for every scale, found none for 16x"),
            (&two, &[("4", 256), ("16", 2)], "16: expected at least 3"),
            (&two, &[("4", 9), ("16", 9), ("9", 9)], "9: expected one of the experiment's `scales`: 4x, 16x"),
            (&two, &[("4", 9), ("16", 9), ("4.0", 9)], "4.0: stands there twice"),
            (&shapes, &[("4", 9)], "4: expected one of 4x, 4x-4by1"),
        ] {
            let message = per(written, pairs).unwrap_err();
            assert!(message.contains(fragment), "{pairs:?}: {message}");
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
