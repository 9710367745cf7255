//! `scalebench features`, `scalebench score` and `scalebench stats`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::{
    Aspect, Conditioning, Corrupt, Estimate, Extractor, FeatureArray, FeatureSet, InfinityOptions, Jackknife, KidOptions, Metric,
    OtherSide, Preprocess, Provenance, ReferenceBlocks, Sample, Skipped, Statistics, StatisticsFile, Stored, Tap, VideoClip, clip_scores,
    estimate, fid_from_statistics, fid_infinity, kid,
};

use crate::cli::{CropSpec, Features, Look, Score, ScoreMetric, Stats};
use crate::experiment::image_table;
use crate::experiment::protocol::{self, Against, Comparison, Network};
use crate::experiment::resolve::{PIXELS, load_extractor};
use crate::host::device;
use crate::run::progress;
use crate::words::table::aligned;

impl Look {
    fn extractor(&self) -> Result<Extractor> {
        let path = self.weights.as_ref().or(self.extractor.as_ref());
        let path = path.context("--extractor: expected a feature network, since there are images to look at")?;
        load_extractor(path, Path::new("")).context("--extractor")
    }

    fn preprocess(&self, extractor: &Extractor) -> Preprocess {
        Preprocess {
            profile: self.preprocess.unwrap_or_else(|| extractor.usual_profile()),
            aspect: if self.center_crop { Aspect::CenterCrop } else { Aspect::Squash },
            grey: self.grey,
            clip: extractor.takes_videos().then(|| self.clip()),
            ..Preprocess::default()
        }
    }

    /// What of a video is looked at.
    fn clip(&self) -> VideoClip {
        VideoClip { frames: self.frames, stride: self.frame_stride, random: self.frame_seed }
    }
}

fn corrupt(skip: bool) -> Corrupt {
    if skip { Corrupt::Skip } else { Corrupt::Fail }
}

/// Features of all images under a path; what was left out is said on stderr.
fn extract(
    extractor: &Extractor,
    taps: &[Tap],
    images: &Path,
    preprocess: &Preprocess,
    corrupt: Corrupt,
) -> Result<(Vec<FeatureSet>, Vec<Skipped>)> {
    let samples = if extractor.takes_videos() { Sample::videos(images)? } else { image_table::all(images)? };
    let n = samples.len();
    let bar = progress::bar(n as u64, &format!("features of {}", images.display()));
    let (sets, skipped) = extractor.taps(taps, samples, preprocess, corrupt, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    for image in &skipped {
        eprintln!("left out: {}", image.message);
    }
    if !skipped.is_empty() {
        eprintln!("left out {} of {n} images under {}", skipped.len(), images.display());
    }
    Ok((sets, skipped))
}

pub(super) fn features(args: &Features) -> Result<()> {
    device::open(args.look.on.device)?;
    let extractor = args.look.extractor()?;
    let preprocess = Preprocess {
        crops: args.crops.map(|CropSpec(crops)| crops),
        pre_resize: args.pre_resize,
        jpeg_quality: args.jpeg_quality,
        ..args.look.preprocess(&extractor)
    };
    let (mut sets, skipped) = extract(&extractor, &[args.tap], &args.images, &preprocess, corrupt(args.skip_corrupt))?;
    let features = sets.remove(0);
    match is_npz(&args.out) {
        true => FeatureArray { data: features.data.clone(), n: features.len(), dim: features.dim }.save_npz(&args.out)?,
        false => features.save(&args.out)?,
    }
    if args.json {
        let summary = serde_json::json!({
            "n": features.len(),
            "dim": features.dim,
            "provenance": features.provenance,
            "skipped": skipped.iter().map(|image| &image.name).collect::<Vec<_>>(),
        });
        println!("{summary}");
    } else {
        eprintln!("{} features of {} values, {}", features.len(), features.dim, features.provenance.preprocess.id());
    }
    Ok(())
}

pub(super) fn stats(args: &Stats) -> Result<()> {
    device::open(args.look.on.device)?;
    let path = &args.input;
    ensure!(is_there(path), "{}: expected images, a feature file or statistics, found nothing", path.display());
    let (file, conditioning) = match load(path)? {
        Some(Stored::Statistics(file)) => {
            let conditioning = Conditioning { n: file.n, ..Conditioning::of_statistics(&file.statistics)? };
            (file, conditioning)
        }
        Some(Stored::Features(set)) => (StatisticsFile::of(&set)?, Conditioning::of(&set)?),
        Some(Stored::Array(array)) => {
            // Only the numbers matter here, and what is not known must not be written as if it were.
            let nothing = Provenance { extractor: String::new(), weights: String::new(), preprocess: Preprocess::default() };
            let set = array.assume(nothing)?;
            (StatisticsFile { provenance: None, ..StatisticsFile::of(&set)? }, Conditioning::of(&set)?)
        }
        None => {
            let extractor = args.look.extractor()?;
            let preprocess = args.look.preprocess(&extractor);
            let (sets, _) = extract(&extractor, &[Tap::Features], path, &preprocess, corrupt(args.skip_corrupt))?;
            (StatisticsFile::of(&sets[0])?, Conditioning::of(&sets[0])?)
        }
    };
    if let Some(out) = &args.out {
        if is_npz(out) { file.save_npz(out)? } else { file.save(out)? }
    }
    if args.json {
        println!("{}", serde_json::json!({ "n": file.n, "provenance": file.provenance, "conditioning": conditioning }));
    } else {
        println!("{conditioning}");
    }
    Ok(())
}

fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"))
}

/// What a file holds; none for images: a folder, an archive, tar shards or a table; nor for an array of videos.
fn load(path: &Path) -> Result<Option<Stored>> {
    if Sample::is_set(path) || image_table::is_table(path) || Sample::is_video_array(path) {
        Ok(None)
    } else {
        Ok(Some(Stored::load(path)?))
    }
}

/// Whether there is something under a path; of shards, opening them says so.
fn is_there(path: &Path) -> bool {
    path.exists() || Sample::is_set(path)
}

/// One number to print.
struct Measure {
    /// Name in the output.
    column: String,
    metric: ScoreMetric,
    network: Network,
    fake: Preprocess,
    other: Preprocess,
    against: Against,
}

pub(super) fn run(args: &Score) -> Result<()> {
    device::open(args.look.on.device)?;
    for (name, path) in [("--real", args.real.as_deref()), ("--fake", Some(args.fake.as_path())), ("--base", args.base.as_deref())] {
        let found = path.is_none_or(is_there);
        ensure!(found, "{name} {}: expected images, a feature file or statistics, found nothing", path.unwrap_or(Path::new("")).display());
    }
    let mut scorer = Scorer { args, extractors: BTreeMap::new(), sets: BTreeMap::new(), skipped: Vec::new() };
    let measures = match &args.protocol {
        Some(name) => scorer.protocol(name)?,
        None => scorer.plain()?,
    };
    // All taps that one look will be asked for, so that each image passes through a network once.
    let mut lines = vec![["metric", "value", "low", "high", "n fake", "n real"].map(String::from).to_vec()];
    let mut json = serde_json::Map::new();
    for measure in &measures {
        let (cells, value) = scorer.measure(measure, &measures).with_context(|| measure.column.clone())?;
        lines.push([measure.column.clone()].into_iter().chain(cells).collect());
        json.insert(measure.column.clone(), value);
    }
    if !args.json {
        print!("{}", aligned(&lines));
        return Ok(());
    }
    let skipped: Vec<&str> = scorer.skipped.iter().map(|image| image.name.as_str()).collect();
    json.insert("skipped".into(), serde_json::to_value(skipped)?);
    json.insert("sides".into(), serde_json::Value::Object(scorer.describe()?));
    println!("{}", serde_json::Value::Object(json));
    Ok(())
}

/// What was looked at: path, network, canonical name of the preprocessing.
type Looked = (String, Network, String);

struct Scorer<'a> {
    args: &'a Score,
    extractors: BTreeMap<Network, Extractor>,
    sets: BTreeMap<(Looked, Tap), FeatureSet>,
    skipped: Vec<Skipped>,
}

impl Scorer<'_> {
    /// The measures that flags ask for: every metric on one network, preprocessed as the flags say.
    fn plain(&mut self) -> Result<Vec<Measure>> {
        let args = self.args;
        let mut base = Preprocess::default();
        let mut network = Network::Inception;
        if args.look.extractor.is_some() || args.look.weights.is_some() {
            let extractor = args.look.extractor()?;
            base = args.look.preprocess(&extractor);
            network = Network::of(&extractor);
            self.extractors.insert(network, extractor);
        }
        let measure = |metric: &ScoreMetric| {
            let text = *metric == ScoreMetric::Interval(Metric::ClipScore);
            let cmmd = *metric == ScoreMetric::Interval(Metric::Cmmd) && args.look.preprocess.is_none();
            let profile = if cmmd { scalebench_metrics::Profile::Cmmd } else { base.profile };
            let side = |crops: Option<CropSpec>, pre_resize, jpeg_quality| {
                let crops = crops.map(|CropSpec(crops)| crops);
                Preprocess { profile, aspect: base.aspect, grey: base.grey, crops, pre_resize, jpeg_quality, clip: base.clip }
            };
            Measure {
                column: metric.name().to_owned(),
                metric: *metric,
                network,
                fake: side(args.fake_crops, args.fake_pre_resize, args.fake_jpeg_quality),
                other: side(args.real_crops, args.real_pre_resize, None),
                against: if text { Against::Prompts } else { Against::Reference },
            }
        };
        let usual = if network == Network::I3d { [Metric::Fvd, Metric::Kvd] } else { [Metric::Fid, Metric::Kid] };
        let metrics = if args.metrics.is_empty() { usual.map(ScoreMetric::Interval).to_vec() } else { args.metrics.clone() };
        for metric in &metrics {
            let of_videos = matches!(metric, ScoreMetric::Interval(metric) if metric.is_of_videos());
            let without_network = matches!(metric, ScoreMetric::Interval(metric) if metric.video_measure().is_some());
            let has_network = !self.extractors.is_empty();
            let (name, of) = (metric.name(), if of_videos { "videos, expected I3D" } else { "images, which I3D does not look at" });
            ensure!(without_network || !has_network || of_videos == (network == Network::I3d), "--metrics: {name} is a metric of {of}");
        }
        Ok(metrics.iter().map(measure).collect())
    }

    /// The measures of a protocol.
    fn protocol(&mut self, name: &str) -> Result<Vec<Measure>> {
        let args = self.args;
        let protocol = protocol::find(name, Path::new("")).context("--protocol")?;
        let images = |flag: &str, path: &Path| -> Result<(u32, u32)> {
            ensure!(
                load(path)?.is_none(),
                "{flag} {}: a protocol says how images are looked at; expected a folder, a zip archive or tar shards",
                path.display()
            );
            first_size(path, protocol.compare.iter().any(|comparison| comparison.network == Network::I3d))
        };
        let fake = images("--fake", &args.fake)?;
        let base = args.base.as_deref().map(|path| images("--base", path)).transpose()?;
        let real = args.real.as_deref().map(|path| images("--real", path)).transpose()?;
        let base_size = args.base_size.or(base.map(|(width, height)| width.min(height)));
        let pixels = PathBuf::from(PIXELS);
        let mut measures = Vec::new();
        for comparison in &protocol.compare {
            let Comparison { against, network, id, .. } = comparison;
            if !self.extractors.contains_key(network) {
                let path = match network {
                    Network::Inception => args.look.weights.as_ref().or(args.look.extractor.as_ref()),
                    Network::Clip => args.clip.as_ref(),
                    Network::Dinov2 => args.dinov2.as_ref(),
                    Network::Pixels => Some(&pixels),
                    Network::I3d => args.i3d.as_ref(),
                };
                let flag = network.key();
                let path = path.with_context(|| format!("--{flag}: expected a path, since protocol {name} uses {network:?}"))?;
                let extractor = load_extractor(path, Path::new("")).with_context(|| format!("--{flag}"))?;
                self.extractors.insert(*network, extractor);
            }
            let side = match (comparison.needs_base_size(), base_size) {
                (true, None) => bail!("--base-size: expected the model's training size, which protocol {name} needs for _{id}"),
                (_, side) => side.unwrap_or(0),
            };
            let other = match against {
                Against::Prompts => fake,
                Against::Base => {
                    base.with_context(|| format!("--base: expected base-resolution generations for _{id} of protocol {name}"))?
                }
                Against::Reference => real.with_context(|| format!("--real: expected real images for _{id} of protocol {name}"))?,
            };
            let (fake, other) = (comparison.generated(0, side, fake), comparison.other(0, side, other));
            measures.extend(comparison.metrics.iter().map(|metric| Measure {
                column: format!("{}_{id}", metric.name()),
                metric: ScoreMetric::Interval(*metric),
                network: *network,
                fake: fake.clone(),
                other: other.clone(),
                against: *against,
            }));
        }
        Ok(measures)
    }

    /// Cells of the table, and the JSON value, of one measure.
    fn measure(&mut self, measure: &Measure, all: &[Measure]) -> Result<([String; 5], serde_json::Value)> {
        let args = self.args;
        let number = |value: f64| format!("{value:.6}");
        let metric = match measure.metric {
            ScoreMetric::Interval(metric) => metric,
            ScoreMetric::KidSubsets => {
                let (fake, real) = (self.features(&args.fake, measure, true, all)?, self.other(measure, all)?);
                let Other::Features(real) = real else { bail!("kid needs features on both sides, not statistics") };
                let options = KidOptions {
                    subsets: args.kid_subsets,
                    subset_size: args.kid_subset_size,
                    seed: args.kid_seed,
                    ..KidOptions::TORCH_FIDELITY
                };
                let found = kid(&fake, &real, &options)?;
                let cells =
                    [number(found.mean), format!("± {:.6}", found.std), "spread".into(), fake.len().to_string(), real.len().to_string()];
                return Ok((cells, serde_json::to_value(found)?));
            }
            ScoreMetric::FidInfinity => {
                let (fake, real) = (self.features(&args.fake, measure, true, all)?, self.other(measure, all)?);
                let Other::Features(real) = real else { bail!("fid_infinity needs features on both sides, not statistics") };
                let found = fid_infinity(&fake, &real, &InfinityOptions::STANDARD)?;
                let cells = [number(found.value), String::new(), String::new(), fake.len().to_string(), real.len().to_string()];
                return Ok((cells, serde_json::to_value(found)?));
            }
        };
        let show = |found: Estimate, n_real: usize| -> Result<_> {
            let cells = [number(found.value), number(found.lo), number(found.hi), found.n.to_string(), n_real.to_string()];
            Ok((cells, serde_json::to_value(found)?))
        };
        if metric.is_frechet()
            && let Some(Stored::Statistics(fake)) = load(&args.fake)?
        {
            let real = match self.other(measure, all)? {
                Other::Statistics(real) => real.statistics,
                Other::Features(real) => Statistics::of(&real)?,
                Other::None => bail!("--real: expected real images"),
            };
            let value = fid_from_statistics(&fake.statistics, &real)?;
            let n = fake.n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
            let cells = [number(value), String::new(), String::new(), n, String::new()];
            return Ok((cells, serde_json::json!({ "value": value })));
        }
        if let Some(of) = metric.video_measure() {
            let clip = if args.protocol.is_some() { measure.fake.clip } else { Some(args.look.clip()) };
            let scores = of.scores(&Sample::videos(&args.fake)?, clip)?;
            return show(estimate(metric, &scores, OtherSide::None, &Jackknife::STANDARD)?, 0);
        }
        let fake = self.features(&args.fake, measure, true, all)?;
        if metric == Metric::ClipScore {
            let scores = self.clip_scores(measure, &fake)?;
            return show(estimate(metric, &scores, OtherSide::None, &Jackknife::STANDARD)?, 0);
        }
        if !metric.needs_reference() {
            return show(estimate(metric, &fake, OtherSide::None, &Jackknife::STANDARD)?, 0);
        }
        match self.other(measure, all)? {
            Other::Features(real) => {
                let reference = match measure.against {
                    Against::Base => ReferenceBlocks::Shared,
                    _ => ReferenceBlocks::Fixed,
                };
                show(estimate(metric, &fake, Some(&real), &Jackknife { reference, ..Jackknife::STANDARD })?, real.len())
            }
            Other::Statistics(real) => {
                ensure!(metric.is_frechet(), "{} needs features on both sides, not statistics", metric.name());
                real.check_comparable(&fake)?;
                if real.provenance.is_none() {
                    eprintln!("note: the statistics do not say how they were made; taken as {}", fake.provenance.extractor);
                }
                show(estimate(metric, &fake, &real.statistics, &Jackknife::STANDARD)?, real.n.unwrap_or(0))
            }
            Other::None => bail!("--real: expected real images"),
        }
    }

    fn other(&mut self, measure: &Measure, all: &[Measure]) -> Result<Other> {
        let args = self.args;
        let path = match measure.against {
            Against::Base => args.base.as_deref(),
            _ => args.real.as_deref(),
        };
        let Some(path) = path else { return Ok(Other::None) };
        if let Some(Stored::Statistics(file)) = load(path)? {
            return Ok(Other::Statistics(file));
        }
        Ok(Other::Features(self.features(path, measure, false, all)?))
    }

    /// Features of one side under a measure: from the file, from memory, or from the images.
    fn features(&mut self, path: &Path, measure: &Measure, is_fake: bool, all: &[Measure]) -> Result<FeatureSet> {
        let tap = |measure: &Measure| match measure.metric {
            ScoreMetric::Interval(metric) if is_fake => metric.tap(),
            _ => Tap::Features,
        };
        let look = |measure: &Measure| if is_fake { measure.fake.clone() } else { measure.other.clone() };
        match load(path)? {
            Some(Stored::Features(set)) => {
                let logits = set.provenance.extractor.ends_with("/logits_unbiased");
                ensure!(logits || tap(measure) == Tap::Features, "{}: is needs features of the tap logits_unbiased", path.display());
                return Ok(set);
            }
            Some(Stored::Statistics(_)) => bail!("{}: expected features or images, found statistics", path.display()),
            Some(Stored::Array(array)) => return array.assume(self.assumed(path, measure, is_fake)?).map_err(Into::into),
            None => {}
        }
        let preprocess = look(measure);
        let looked: Looked = (path.display().to_string(), measure.network, preprocess.id());
        if let Some(set) = self.sets.get(&(looked.clone(), tap(measure))) {
            return Ok(set.clone());
        }
        let same = |other: &&Measure| other.network == measure.network && look(other) == preprocess;
        let mut taps: Vec<Tap> = all.iter().filter(same).map(tap).collect();
        taps.sort();
        taps.dedup();
        let extractor = self.extractors.get(&measure.network);
        let extractor = extractor.context("--extractor: expected a feature network, since there are images to look at")?;
        let (sets, skipped) = extract(extractor, &taps, path, &preprocess, corrupt(self.args.skip_corrupt))?;
        self.skipped.extend(skipped);
        self.sets.extend(taps.into_iter().zip(sets).map(|(tap, set)| ((looked.clone(), tap), set)));
        let found = self.sets.get(&(looked, tap(measure)));
        Ok(found.context("the tap was extracted")?.clone())
    }

    /// How features of which nothing is known are taken to be made: as the other side's, or as the flags say.
    fn assumed(&self, path: &Path, measure: &Measure, is_fake: bool) -> Result<Provenance> {
        let other = if is_fake { self.args.real.as_deref() } else { Some(self.args.fake.as_path()) };
        let provenance = match other.map(load).transpose()?.flatten() {
            Some(Stored::Features(set)) => set.provenance,
            Some(Stored::Statistics(StatisticsFile { provenance: Some(provenance), .. })) => provenance,
            _ => match self.extractors.get(&measure.network) {
                Some(extractor) => extractor.provenance(Tap::Features, if is_fake { &measure.fake } else { &measure.other }),
                None => Provenance { extractor: "unknown".into(), weights: "unknown".into(), preprocess: Preprocess::default() },
            },
        };
        eprintln!(
            "note: {} does not say how it was made; taken as {} {}",
            path.display(),
            provenance.extractor,
            provenance.preprocess.id()
        );
        Ok(provenance)
    }

    fn clip_scores(&self, measure: &Measure, images: &FeatureSet) -> Result<FeatureSet> {
        let file = self.args.captions.as_ref().context("--captions: expected a file of prompts, one a line, for clip_score")?;
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let captions: Vec<&str> = text.lines().collect();
        let n = image_table::all(&self.args.fake)?.len();
        ensure!(captions.len() == n, "{}: expected {n} lines, one for each image, found {}", file.display(), captions.len());
        let extractor = self.extractors.get(&measure.network).context("--extractor: expected CLIP")?;
        Ok(clip_scores(extractor, images, &captions)?)
    }

    /// How each side was looked at.
    fn describe(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        let mut sides = serde_json::Map::new();
        for (((path, network, id), _), set) in &self.sets {
            let key = format!("{path} {} {id}", network.key());
            sides.insert(key, serde_json::json!({ "n": set.len(), "provenance": set.provenance }));
        }
        for (flag, path) in [("real", self.args.real.as_deref()), ("fake", Some(self.args.fake.as_path()))] {
            let Some(path) = path else { continue };
            let described = match load(path)? {
                None => continue,
                Some(Stored::Features(set)) => serde_json::json!({ "n": set.len(), "provenance": set.provenance }),
                Some(Stored::Array(array)) => serde_json::json!({ "n": array.n, "provenance": null }),
                Some(Stored::Statistics(file)) => serde_json::json!({ "n": file.n, "provenance": file.provenance }),
            };
            sides.insert(flag.to_owned(), described);
        }
        Ok(sides)
    }
}

/// The side that is not generated.
enum Other {
    Features(FeatureSet),
    Statistics(StatisticsFile),
    None,
}

/// Width and height of the first image under a path, or of the first video's first frame.
fn first_size(path: &Path, of_videos: bool) -> Result<(u32, u32)> {
    if of_videos {
        let frames = Sample::videos(path)?[0].frames()?;
        let first = frames.first().with_context(|| format!("{}: expected frames", path.display()))?;
        return Ok((first.width as u32, first.height as u32));
    }
    let samples = image_table::all(path)?;
    let first = samples.first().with_context(|| format!("{}: expected images", path.display()))?;
    let image = first.decode()?;
    Ok((image.width as u32, image.height as u32))
}
