//! From images to rows of results: features (cached by content), scores, paired differences.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use scalebench_emoji::{Split, emojis, prompt_order, render};
use scalebench_generation::Blueprint;
use scalebench_metrics::{
    Corrupt, Extractor, FeatureSet, Image, Jackknifed, Metric, OtherSide, Preprocess, Provenance, Sample, Source, Statistics,
    StatisticsFile, Tap, Verdict, VideoMeasure, VideoSet, clip_scores, videos::animation,
};
use serde::Serialize;
use serde_json::json;

use crate::experiment::methods::BASELINE;
use crate::experiment::plan::{Cell, Plan, Work};
use crate::experiment::protocol::{Against, Comparison, Network, published};
use crate::experiment::resolve::Inputs;
use crate::experiment::resolved::{Model, Reference, Resolved, Scale, cell_name};
use crate::host::interrupt;
use crate::run::flops::{Finishing, Flops};
use crate::run::progress::{self, Event};
use crate::run::results::{Difference, Row, Score, Standing};
use crate::run::spectra::{self, Spectra};
use crate::run::store::{Store, Timing};

/// Scores every cell that was asked for.
pub(crate) fn score(resolved: &Resolved, inputs: &Inputs, plan: &Plan, store: &Store) -> Result<Vec<Row>> {
    let scorer = Scorer { resolved, inputs, plan, store };
    if let Reference::Statistics { path, provenance, stated: false, .. } = &resolved.reference {
        let (path, taken_as, preprocess) = (path.display(), &provenance.extractor, provenance.preprocess.id());
        progress::say(&Event::Note { text: &format!("{path} does not say how it was made; taken as {taken_as} and {preprocess}") });
    }
    for (column, reason) in resolved.absences() {
        progress::say(&Event::Note { text: &format!("{column} is empty: {reason}") });
    }
    let mut rows = Vec::new();
    for (model, described) in resolved.models.iter().enumerate() {
        let unet = Flops::unet_of_videos(&inputs.blueprints[model], resolved.frames())?;
        for scale in &resolved.scales {
            let cells: Vec<&Cell> = plan.cells.iter().filter(|c| c.asked_for && c.model == model && c.scale == *scale).collect();
            let mut columns: Vec<Vec<Score>> = vec![Vec::new(); cells.len()];
            // Column by column: at any time the features of one comparison are in memory.
            for comparison in &resolved.metrics.protocol.compare {
                let scores = scorer.compare(comparison, &cells).with_context(|| format!("{} {}", described.name, scale.label()))?;
                columns.iter_mut().zip(scores).for_each(|(all, new)| all.extend(new));
            }
            let mut of_cells = Vec::new();
            for (cell, mut scores) in cells.into_iter().zip(columns) {
                // Figures are published for the factor's usual shape.
                if let Some(table) = resolved.metrics.protocol.published.as_ref().filter(|_| *scale == Scale::from_factor(scale.factor)) {
                    for score in &mut scores {
                        score.published = published(table, &described.family, cell.scale.factor, &cell.method_name, &score.column);
                    }
                }
                let timings = store.all_timings(&cell.name)?;
                of_cells.push(Row {
                    model: described.name.clone(),
                    scale: cell.scale.factor,
                    width: cell.width,
                    height: cell.height,
                    method: cell.method_name.clone(),
                    protocol: resolved.metrics.protocol.name.clone(),
                    n_images: cell.n_scored as u64,
                    n_reference: resolved.reference.n_images().map(|n| n as u64),
                    baseline: resolved.baseline_of(&cell.method_name).unwrap_or(BASELINE).to_owned(),
                    set: described.set.iter().chain(resolved.set_of(&cell.method_name)).map(|(k, v)| (k.clone(), v.clone())).collect(),
                    scores,
                    unet_flops_per_image: flops_of(&inputs.blueprints[model], &unet, cell)?,
                    seconds_per_image: mean_seconds(&timings),
                    peak_memory_bytes: timings.iter().filter_map(|t| t.peak_memory_bytes).max(),
                });
            }
            for method in &resolved.methods {
                rows.push(match of_cells.iter().position(|row| row.method == method.name) {
                    Some(i) => of_cells.remove(i),
                    None => empty_row(resolved, described, scale, &method.name)?,
                });
            }
        }
    }
    Ok(rows)
}

/// The row of a cell of which no images were brought.
fn empty_row(resolved: &Resolved, described: &Model, scale: &Scale, method: &str) -> Result<Row> {
    let (width, height) = described.size(scale)?;
    let cell = cell_name(&described.name, scale, method);
    progress::say(&Event::Note { text: &format!("cell {cell} is empty: no images were brought for it") });
    let scores = resolved.metrics.protocol.scores().into_iter();
    Ok(Row {
        model: described.name.clone(),
        scale: scale.factor,
        width,
        height,
        method: method.to_owned(),
        protocol: resolved.metrics.protocol.name.clone(),
        n_images: 0,
        n_reference: resolved.reference.n_images().map(|n| n as u64),
        baseline: resolved.baseline_of(method).unwrap_or(BASELINE).to_owned(),
        set: described.set.iter().chain(resolved.set_of(method)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        scores: scores
            .map(|score| Score { column: score.column, value: None, difference: None, standing: None, published: None })
            .collect(),
        unet_flops_per_image: None,
        seconds_per_image: None,
        peak_memory_bytes: None,
    })
}

/// Operations of the passes that an image of a cell takes; None of images that another program made.
fn flops_of(checkpoint: &Blueprint, unet: &Flops, cell: &Cell) -> Result<Option<f64>> {
    let (Work::Sample(method), Some(job)) = (&cell.work, cell.jobs.first()) else { return Ok(None) };
    let run = checkpoint.outline(&job.request, method)?;
    let finishing = Finishing::of(checkpoint, &job.request, method)?;
    Ok(Some(run.iter().map(|stage| unet.of_stage(checkpoint.sites(), stage)).sum::<f64>() + finishing.unet))
}

pub(crate) fn mean_seconds(timings: &[Timing]) -> Option<f64> {
    let sum: f64 = timings.iter().map(|timing| timing.seconds).sum();
    (!timings.is_empty()).then(|| sum / timings.len() as f64)
}

struct Scorer<'a> {
    resolved: &'a Resolved,
    inputs: &'a Inputs,
    plan: &'a Plan,
    store: &'a Store,
}

/// Features of one side, one set per tap.
type Sets = Vec<(Tap, FeatureSet)>;

/// Videos of a run directory.
#[derive(Debug)]
struct StoredVideos(Vec<PathBuf>);

impl VideoSet for StoredVideos {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, place: usize) -> String {
        format!("{place:06}")
    }

    fn frames(&self, place: usize) -> scalebench_metrics::Result<Vec<Image>> {
        let path = &self.0[place];
        let read = |source| scalebench_metrics::Error::Io { action: "read", path: path.clone(), source };
        animation(BufReader::new(File::open(path).map_err(read)?), path)
    }
}

/// What a set of images is compared with.
pub(crate) enum Other {
    Features(FeatureSet),
    Statistics(Statistics),
    /// Their prompts, of which the scores know already.
    None,
}

impl Other {
    pub(crate) fn side(&self) -> OtherSide<'_> {
        match self {
            Other::Features(features) => OtherSide::Features(features),
            Other::Statistics(statistics) => OtherSide::Statistics(statistics),
            Other::None => OtherSide::None,
        }
    }
}

/// Where each value stands among those of its model and size: the best, not to be told from the best by the paired difference
/// to it, or behind. One alone has won against nobody.
fn standings(metric: Metric, values: &[Option<Jackknifed>]) -> Result<Vec<Option<Standing>>> {
    let goodness = |value: &Jackknifed| if metric.lower_is_better() { -value.value() } else { value.value() };
    let rivals = || values.iter().flatten();
    let best = rivals().max_by(|a, b| goodness(a).total_cmp(&goodness(b))).filter(|_| rivals().count() > 1);
    let Some(best) = best else { return Ok(vec![None; values.len()]) };
    let standing = |value: &Option<Jackknifed>| -> Result<Option<Standing>> {
        let Some(value) = value else { return Ok(None) };
        // Equal values are both the best.
        if value.value() == best.value() {
            return Ok(Some(Standing::Best));
        }
        let is_undecided = value.minus(best)?.verdict(metric) == Verdict::Undecided;
        Ok(Some(if is_undecided { Standing::Undecided } else { Standing::Behind }))
    };
    values.iter().map(standing).collect()
}

fn set_of(sets: &Sets, tap: Tap) -> &FeatureSet {
    let found = sets.iter().find(|(known, _)| *known == tap);
    &found.expect("every tap that a metric needs was extracted").1
}

impl Scorer<'_> {
    /// The scores of one comparison for cells of one model and size.
    fn compare(&self, comparison: &Comparison, cells: &[&Cell]) -> Result<Vec<Vec<Score>>> {
        let mut taps: Vec<Tap> = comparison.metrics.iter().map(|metric| metric.tap()).collect();
        taps.sort();
        taps.dedup();
        let mut others: BTreeMap<&str, Other> = BTreeMap::new();
        // By metric and cell; differences need all cells, and no features.
        let mut found: Vec<Vec<Option<Jackknifed>>> = comparison.metrics.iter().map(|_| Vec::new()).collect();
        for cell in cells {
            if self.is_base_of_itself(comparison, cell) {
                found.iter_mut().for_each(|column| column.push(None));
                continue;
            }
            // Only base-resolution images depend on the method: by its seed, or since it brings its own.
            let other_name = if comparison.against == Against::Base { &self.base_cell(cell).name } else { "" };
            let other = match others.entry(other_name) {
                Entry::Occupied(other) => other.into_mut(),
                Entry::Vacant(place) => place.insert(self.other(comparison, cell)?),
            };
            let features = self.generated(comparison, cell, &taps)?;
            if let (Network::Pixels, Other::Features(other)) = (comparison.network, &*other) {
                let spectra = Spectra::new(set_of(&features, Tap::Features), other)?;
                spectra::write(self.store, &cell.name, &comparison.id, &spectra)?;
            }
            for (metric, column) in comparison.metrics.iter().zip(&mut found) {
                let value = match self.resolved.absence(comparison, *metric) {
                    Some(_) => None,
                    None => {
                        let other = if metric.needs_reference() { other.side() } else { OtherSide::None };
                        let scores = metric.video_measure().map(|of| self.video_scores(comparison, cell, of)).transpose()?;
                        let set = scores.as_ref().unwrap_or_else(|| set_of(&features, metric.tap()));
                        let value = Jackknifed::new(*metric, set, other, &comparison.jackknife());
                        Some(value.with_context(|| format!("cell {}, {}_{}", cell.name, metric.name(), comparison.id))?)
                    }
                };
                column.push(value);
            }
        }
        let mut rows: Vec<Vec<Score>> = vec![Vec::new(); cells.len()];
        for (metric, values) in comparison.metrics.iter().zip(&found) {
            let standings = standings(*metric, values)?;
            for (i, cell) in cells.iter().enumerate() {
                let baseline = self.resolved.baseline_of(&cell.method_name).filter(|baseline| *baseline != cell.method_name);
                let baseline = baseline.and_then(|name| cells.iter().position(|other| other.method_name == name));
                let pair = values[i].as_ref().zip(baseline.and_then(|baseline| values[baseline].as_ref()));
                let difference = pair.map(|(value, baseline)| value.minus(baseline)).transpose();
                let context = || format!("cell {}, {}_{}", cell.name, metric.name(), comparison.id);
                rows[i].push(Score {
                    column: format!("{}_{}", metric.name(), comparison.id),
                    value: values[i].as_ref().map(Jackknifed::estimate).transpose().with_context(context)?.map(Into::into),
                    difference: difference.with_context(context)?.map(|found| Difference {
                        interval: found.into(),
                        verdict: found.verdict(*metric),
                        n_to_decide: found.n_to_decide(),
                    }),
                    standing: standings[i],
                    published: None,
                });
            }
        }
        Ok(rows)
    }

    /// The base-resolution images that a cell's are compared with.
    fn base_cell(&self, cell: &Cell) -> &Cell {
        let name = self.resolved.base_of(&cell.method_name);
        self.plan.find(cell.model, &Scale::BASE, &name).expect("the planner adds the base cells")
    }

    fn is_base_of_itself(&self, comparison: &Comparison, cell: &Cell) -> bool {
        comparison.against == Against::Base && std::ptr::eq(cell, self.base_cell(cell))
    }

    /// Training size of a cell's model.
    fn base_side(&self, cell: &Cell) -> u32 {
        let described = &self.resolved.models[cell.model];
        described.width.min(described.height)
    }

    /// A cell's own side of a comparison.
    fn generated(&self, comparison: &Comparison, cell: &Cell, taps: &[Tap]) -> Result<Sets> {
        let preprocess = comparison.generated(self.resolved.seed, self.base_side(cell), (cell.width, cell.height));
        match comparison.against {
            Against::Prompts => self.clip_scores(cell, &preprocess),
            _ => self.cell(cell, cell.n_scored, comparison.network, taps, &preprocess),
        }
    }

    /// What a cell is compared with.
    fn other(&self, comparison: &Comparison, cell: &Cell) -> Result<Other> {
        let look = |width, height| comparison.other(self.resolved.seed, self.base_side(cell), (width, height));
        let features = match comparison.against {
            Against::Prompts => return Ok(Other::None),
            Against::Base => {
                let base = self.base_cell(cell);
                // As many as the cell has: FID depends on their number, and differences are paired.
                self.cell(base, cell.n_scored, comparison.network, &[Tap::Features], &look(base.width, base.height))?
            }
            Against::Reference => match &self.inputs.reference.statistics {
                Some(found) => return self.statistics(found, comparison, &look(cell.width, cell.height)),
                None => self.reference(cell.width, cell.height, comparison.network, &look(cell.width, cell.height))?,
            },
        };
        Ok(Other::Features(features.into_iter().next().context("one tap was asked for")?.1))
    }

    /// The reference's statistics, kept beside the features for comparisons between runs, which read nothing else.
    fn statistics(&self, found: &StatisticsFile, comparison: &Comparison, preprocess: &Preprocess) -> Result<Other> {
        let provenance = self.extractor(comparison.network).provenance(Tap::Features, preprocess);
        let file = self.store.path(&feature_file(&provenance, &reference_identity(self.resolved, 0, 0))?);
        std::fs::create_dir_all(self.store.path("features")).with_context(|| format!("cannot write {}", file.display()))?;
        found.save(&file)?;
        Ok(Other::Statistics(found.statistics.clone()))
    }

    fn extractor(&self, network: Network) -> &Extractor {
        self.inputs.extractors.get(&network).expect("every network of the protocol was loaded")
    }

    /// Samples of a cell's first images; image `i` is group `i`, in every cell.
    fn samples(&self, cell: &Cell, n: usize) -> impl ExactSizeIterator<Item = Sample> {
        let file = |i: usize| self.store.path(&Store::image(&cell.name, i));
        let videos = self.resolved.video.map(|_| Arc::new(StoredVideos((0..n).map(file).collect())));
        let source = move |i: usize| match &videos {
            None => Source::File(file(i)),
            Some(videos) => Source::Video(videos.clone(), i),
        };
        (0..n).map(move |i| Sample { name: format!("{i:06}"), group: i as u32, source: source(i) })
    }

    /// What is measured of each of a cell's videos without a network; kept for comparisons between runs.
    fn video_scores(&self, comparison: &Comparison, cell: &Cell, of: VideoMeasure) -> Result<FeatureSet> {
        let samples: Vec<Sample> = self.samples(cell, cell.n_scored).collect();
        let scores = of.scores(&samples, comparison.clip)?;
        let keys: Vec<&str> = cell.jobs[..cell.n_scored].iter().map(|job| job.key.as_str()).collect();
        scores.save(&self.store.path(&feature_file(&scores.provenance, &keys)?))?;
        Ok(scores)
    }

    /// Features of a cell's first `n` images.
    fn cell(&self, cell: &Cell, n: usize, network: Network, taps: &[Tap], preprocess: &Preprocess) -> Result<Sets> {
        let keys: Vec<&str> = cell.jobs[..n].iter().map(|job| job.key.as_str()).collect();
        self.features(&cell.name, network, taps, &keys, self.samples(cell, n), preprocess)
    }

    /// What CLIP says of each image and its prompt.
    fn clip_scores(&self, cell: &Cell, preprocess: &Preprocess) -> Result<Sets> {
        let images = self.cell(cell, cell.n_scored, Network::Clip, &[Tap::Features], preprocess)?;
        let jobs = &cell.jobs[..cell.n_scored];
        let prompts: Vec<&str> = jobs.iter().map(|job| job.request.prompt.as_str()).collect();
        let scores = clip_scores(self.extractor(Network::Clip), set_of(&images, Tap::Features), &prompts)?;
        // Kept for comparisons between runs, which load no network.
        let keys: Vec<&str> = jobs.iter().map(|job| job.key.as_str()).collect();
        let provenance = self.extractor(Network::Clip).provenance(Tap::Features, preprocess);
        scores.save(&self.store.path(&feature_file(&provenance, &prompt_scores_identity(&keys))?))?;
        Ok(vec![(Tap::Features, scores)])
    }

    /// Features of the reference images for cells of this size.
    fn reference(&self, width: u32, height: u32, network: Network, preprocess: &Preprocess) -> Result<Sets> {
        let taps = &[Tap::Features];
        let identity = reference_identity(self.resolved, width, height);
        match &self.resolved.reference {
            Reference::Emoji { images, seed } if self.resolved.video.is_some() => {
                let videos = RenderedVideos::new(*seed, *images, self.resolved.frames(), width, height);
                self.features(&format!("reference {width}x{height}"), network, taps, &identity, videos.samples(), preprocess)
            }
            Reference::Emoji { images, seed } => {
                let pixels = reference_images(*seed, 0..*images, width, height);
                // A drawing that cannot be rendered would be a fault of the embedded set itself.
                let samples = pixels.enumerate().map(|(i, image)| {
                    let image = image.expect("every emoji of the set can be rendered");
                    Sample::image(format!("{i:06}"), i as u32, image)
                });
                self.features(&format!("reference {width}x{height}"), network, taps, &identity, samples, preprocess)
            }
            Reference::Folder { .. } | Reference::Shards { .. } | Reference::Parquet { .. } | Reference::Statistics { .. } => {
                let samples = self.inputs.reference.images.iter().cloned();
                self.features("reference", network, taps, &identity, samples, preprocess)
            }
        }
    }

    /// Features of `samples`, from the cache if the same content was looked at in the same way.
    fn features(
        &self,
        what: &str,
        network: Network,
        taps: &[Tap],
        identity: &impl Serialize,
        samples: impl ExactSizeIterator<Item = Sample>,
        preprocess: &Preprocess,
    ) -> Result<Sets> {
        let extractor = self.extractor(network);
        let file = |tap: Tap| -> Result<_> {
            let provenance = extractor.provenance(tap, preprocess);
            Ok((tap, self.store.path(&feature_file(&provenance, identity)?), provenance))
        };
        let files = taps.iter().map(|tap| file(*tap)).collect::<Result<Vec<_>>>()?;
        // A damaged cache entry, and one of which nobody knows whether it is, is as good as none.
        let cached = files.iter().map(|(tap, path, provenance)| {
            let features = FeatureSet::load_digested(path).ok().filter(|features| features.provenance == *provenance);
            features.map(|features| (*tap, features))
        });
        if let Some(sets) = cached.collect::<Option<Sets>>() {
            return Ok(sets);
        }
        interrupt::check()?;
        let folder = self.store.path("features");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let start = Instant::now();
        let n = samples.len();
        let bar = progress::bar(n as u64, &format!("features of {what}, {}", preprocess.id()));
        let (sets, _) = extractor.taps(taps, samples, preprocess, Corrupt::Fail, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        progress::say(&Event::Features { what, preprocess: &preprocess.id(), images: n, seconds });
        for ((_, path, _), set) in files.iter().zip(&sets) {
            set.save(path)?;
        }
        Ok(taps.iter().copied().zip(sets).collect())
    }
}

/// Where a run keeps the features of this content, looked at in this way.
///
/// The content of a cell is the list of its images' keys; that of the reference is [`reference_identity`].
pub(crate) fn feature_file(provenance: &Provenance, content: &impl Serialize) -> Result<String> {
    let key = blake3::hash(serde_json::to_string(&(provenance, content))?.as_bytes()).to_hex();
    Ok(format!("features/{}.safetensors", &key[..32]))
}

/// What the reference's features for cells of this size are a function of.
pub(crate) fn reference_identity(resolved: &Resolved, width: u32, height: u32) -> serde_json::Value {
    match &resolved.reference {
        Reference::Emoji { images, seed } => match resolved.video {
            None => json!([resolved.tool, "emoji", seed, images, width, height]),
            Some(video) => json!([resolved.tool, "moving emoji", video.frames, seed, images, width, height]),
        },
        Reference::Folder { digest, .. } => json!(["folder", digest]),
        Reference::Parquet { digest, column, .. } => json!(["parquet", digest, column]),
        Reference::Shards { digest, .. } => json!(["shards", digest]),
        Reference::Statistics { digest, .. } => json!(["statistics", digest]),
    }
}

/// What the scores of a cell's images against their prompts are a function of.
pub(crate) fn prompt_scores_identity(keys: &[&str]) -> serde_json::Value {
    json!(["prompts", keys])
}

/// Reference images: image `i` is the `i`-th prompt's emoji in the `i / n`-th placement.
pub(crate) fn reference_images(
    seed: u64,
    indices: std::ops::Range<usize>,
    width: u32,
    height: u32,
) -> impl ExactSizeIterator<Item = Result<Image>> {
    let order = prompt_order(seed);
    indices.map(move |i| {
        let emoji = &emojis()[order[i % order.len()]];
        let rgb = render(emoji, Split::Reference.placement(emoji, i / order.len()), width, height)?;
        Ok(Image::new(width as usize, height as usize, rgb)?)
    })
}

/// Reference videos: video `i` shows what the `i`-th prompt says, in the `i / n`-th view. Each is drawn when its turn comes.
#[derive(Debug)]
pub(crate) struct RenderedVideos {
    order: Vec<usize>,
    n: usize,
    frames: usize,
    width: u32,
    height: u32,
}

impl RenderedVideos {
    pub(crate) fn new(seed: u64, n: usize, frames: usize, width: u32, height: u32) -> Self {
        Self { order: prompt_order(seed), n, frames, width, height }
    }

    pub(crate) fn samples(self) -> impl ExactSizeIterator<Item = Sample> {
        let (n, videos) = (self.n, Arc::new(self));
        (0..n).map(move |i| Sample { name: videos.name(i), group: i as u32, source: Source::Video(videos.clone(), i) })
    }

    /// The frames of video `i`.
    pub(crate) fn video(&self, i: usize) -> Result<Vec<Image>> {
        let emoji = &emojis()[self.order[i % self.order.len()]];
        let frames = Split::Reference.clip(emoji, i / self.order.len()).render(emoji, self.frames, self.width, self.height)?;
        let image = |rgb| Ok(Image::new(self.width as usize, self.height as usize, rgb)?);
        frames.into_iter().map(image).collect()
    }
}

impl VideoSet for RenderedVideos {
    fn len(&self) -> usize {
        self.n
    }

    fn name(&self, place: usize) -> String {
        format!("{place:06}")
    }

    fn frames(&self, place: usize) -> scalebench_metrics::Result<Vec<Image>> {
        // A drawing that cannot be rendered would be a fault of the embedded set itself.
        Ok(self.video(place).expect("every emoji of the set can be rendered"))
    }
}
