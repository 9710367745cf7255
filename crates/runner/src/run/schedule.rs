//! What a method does by layer and step, as data: `cells/<cell>/schedule.json`.
//!
//! It is written by the run, because only the loaded model knows its layers; the report draws it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use scalebench_generation::journey::{Start, Through};
use scalebench_generation::plan::{AttentionAction, AttentionShape, ConvAction, Kernel, LayerAction, LowPass, Resize, SkipAction};
use scalebench_generation::step::{Band, Conditioning, Maps, Pass, Region, Step, Target};
use scalebench_generation::{Ending, Method, Pipeline, Request, SiteTable, StageSteps};
use serde::{Deserialize, Serialize};

use crate::experiment::plan::{Cell, Work};
use crate::run::seal;
use crate::run::store::Store;

/// The actions of one cell. Steps count from 1, the noisiest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub(crate) n_steps: usize,
    /// The stages of the run, if there are several or one does not look at the whole latents; the passes below are the last one's.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) stages: Vec<StageSchedule>,
    /// The passes through the network, those of guidance included.
    pub(crate) passes: Vec<PassSchedule>,
    /// What becomes of the finished image, in words, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<String>,
}

/// What is done to a finished image on its way to (width, height).
fn ending(Ending { from, finish, upscaler }: &Ending<'_>, to: (u32, u32)) -> String {
    let shown = |(width, height): (u32, u32)| format!("{width}×{height}");
    let Some((upscaler, sizes)) = upscaler else {
        return format!("The finished image of {} is resized to {} ({}).", shown(*from), shown(to), finish.filter);
    };
    let by = upscaler.factor();
    let seen = sizes.iter().map(|size| shown(*size)).collect::<Vec<_>>().join(", then ");
    let settings = finish.upscaler.as_ref();
    let steps = settings.map_or(0, |settings| settings.steps);
    let level = settings.map_or(0, |settings| settings.noise_level);
    let last = sizes.last().map_or(*from, |(w, h)| (w * by, h * by));
    let resized = if last == to { String::new() } else { format!(", resized from {} to {} ({})", shown(last), shown(to), finish.filter) };
    let before = if sizes.first() == Some(from) { String::new() } else { format!(", reduced before ({})", finish.filter) };
    format!(
        "The finished image of {} is enlarged {by} times a side by a diffusion upscaler that sees {seen}{before}, {steps} steps at noise level {level}{resized}.",
        shown(*from)
    )
}

/// One stage, in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageSchedule {
    /// Latent (height, width).
    pub(crate) latent: (usize, usize),
    /// What it starts from.
    pub(crate) start: String,
    /// Which of the sampler's steps are run, from 1.
    pub(crate) steps: (usize, usize),
    /// What is looked at in the steps of the stage.
    pub(crate) views: Vec<Run<String>>,
    /// What its passes do to the network, if anything, and if it is not the last: of that one the schedule says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) actions: Option<String>,
}

impl StageSchedule {
    fn new(sites: &SiteTable, StageSteps { stage, steps }: &StageSteps, is_last: bool) -> Self {
        let start = match &stage.start {
            Start::Noise => "noise".to_owned(),
            Start::Enlarged(enlarge) => match enlarge.through {
                Through::Latents => "the enlarged latents".to_owned(),
                Through::Pixels | Through::UnclampedPixels => "the enlarged image".to_owned(),
            },
        };
        let mut views = Vec::new();
        let first = stage.steps.first;
        steps.iter().enumerate().for_each(|(i, step)| push(&mut views, first + i + 1, Some(looked_at(step, stage.latent))));
        let does_something = !is_last && steps.iter().any(|step| step.evaluations(stage.latent).any(|(_, _, pass)| !pass.plan.is_plain()));
        let actions = does_something.then(|| actions(&Schedule::of_steps(sites, steps)));
        Self { latent: stage.latent, start, steps: (first + 1, first + steps.len()), views, actions }
    }
}

impl StageSchedule {
    fn sentence(&self, number: usize) -> String {
        let views = self.views.iter().map(|run| format!("{} in {}", run.action, steps(run.from, run.to))).collect::<Vec<_>>().join(", ");
        let does = self.actions.as_ref().map_or_else(String::new, |does| format!(" {does}"));
        format!("Stage {number}: {}×{} latents from {}, {views}.{does}", self.latent.0, self.latent.1, self.start)
    }
}

/// What a step looks at, in words.
fn looked_at(step: &Step, latent: (usize, usize)) -> String {
    let view = |region: &Region| {
        let (n, (height, width)) = region.maps(latent);
        match region {
            Region::Whole => "the whole map".to_owned(),
            Region::Windows(windows) => {
                let told = if windows.words.is_some() { ", each told its words" } else { "" };
                format!("{n} windows of {height}×{width}{told}")
            }
            Region::Strided(_) => format!("{n} strided subsets of {height}×{width}"),
            Region::Pooled(_) => format!("its means at {height}×{width}"),
        }
    };
    let mut text = step.views.iter().map(|v| view(&v.region)).collect::<Vec<_>>().join(" and ");
    if step.views.iter().any(|view| view.bands.is_some()) {
        text += ", low and high frequencies guided apart";
    }
    for blend in &step.blends {
        text += match (&blend.target, &blend.band) {
            (_, Band::WaveletOfImage) => ", the image's coarse part mixed with the enlarged start's",
            (Target::Latents, Band::All) => ", mixed with the enlarged start",
            (Target::Latents, Band::Fourier(_)) => ", low frequencies mixed with the enlarged start's",
            (Target::Estimate, Band::All) => ", the estimate mixed with the enlarged start",
            (Target::Estimate, Band::Fourier(_)) => ", the estimate's low frequencies mixed with the enlarged start's",
        };
    }
    text
}

/// One pass, over all steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PassSchedule {
    /// What it is told: `prompt` or `negative prompt`.
    pub(crate) told: String,
    /// What it looks at, if that is not the whole map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) of: Option<String>,
    /// Its weight in the guided prediction; steps outside of all runs are made without this pass.
    pub(crate) weight: Vec<Run<f64>>,
    /// One track per 3×3 convolution.
    pub(crate) convolutions: Vec<Track<Convolution>>,
    /// Factor on the softmax scale, one track per self-attention.
    pub(crate) attentions: Vec<Track<f64>>,
    /// One track per skip connection.
    pub(crate) skips: Vec<Track<Skip>>,
    /// What self-attentions see, if not all of the map.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) reach: Vec<Track<String>>,
    /// What becomes of a map's size after the layers of the down path that change it.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) resizes: Vec<Track<String>>,
    /// Whose queries and keys its self-attentions take: passes of the same view, counted from 1.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) queries: Vec<Run<usize>>,
    /// What becomes of its cross-attentions' maps.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) maps: Vec<Run<String>>,
}

/// What happens at one site; steps outside of all runs are plain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Track<T> {
    pub(crate) site: String,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub(crate) runs: Vec<Run<T>>,
}

/// An action that lasts from one step to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run<T> {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) action: T,
}

/// A convolution that is not as trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Convolution {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dilation: Option<f64>,
    /// Side of the dispersed kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<usize>,
    /// Distance of outputs, where it is not the trained one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stride: Option<usize>,
    /// Share of the spectrum that is left of what comes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) low_pass: Option<f64>,
}

/// A skip connection that is not as trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Skip {
    pub(crate) backbone: f64,
    pub(crate) low_frequencies: f64,
}

/// Appends one step, which extends the last run if that goes on.
fn push<T: PartialEq>(runs: &mut Vec<Run<T>>, step: usize, action: Option<T>) {
    let Some(action) = action else { return };
    match runs.last_mut() {
        Some(run) if run.to + 1 == step && run.action == action => run.to = step,
        _ => runs.push(Run { from: step, to: step, action }),
    }
}

fn tracks<'a, T>(paths: impl Iterator<Item = &'a str>) -> Vec<Track<T>> {
    paths.map(|path| Track { site: path.to_owned(), runs: Vec::new() }).collect()
}

/// What a view looks at, if that is not the whole map.
fn part(region: &Region) -> Option<&'static str> {
    match region {
        Region::Whole => None,
        Region::Windows(_) => Some("windows"),
        Region::Strided(_) => Some("strided subsets"),
        Region::Pooled(_) => Some("means"),
    }
}

/// What a self-attention sees, if not all of the map.
fn reached(action: &AttentionAction) -> Option<String> {
    let shape = match &action.shape {
        AttentionShape::Full => None,
        AttentionShape::Windows(windows) => Some(format!("{}×{} windows", windows.grid.0, windows.grid.1)),
        AttentionShape::Fused(fusion) => {
            let ((height, width), (down, across)) = (fusion.window, fusion.stride);
            Some(format!("windows of {height}×{width} for low frequencies and every {down}×{across}th pixel for high ones"))
        }
    };
    let lent = (action.lent > 0.0).then(|| format!("by {} what another pass's queries and keys do", number(action.lent)));
    let parts: Vec<String> = shape.into_iter().chain(lent).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Mean of a mask.
fn passing(mask: &LowPass) -> f64 {
    let mean = |side: &[f32]| side.iter().map(|x| f64::from(*x)).sum::<f64>() / side.len().max(1) as f64;
    mean(&mask.rows) * mean(&mask.columns)
}

impl Schedule {
    /// From the steps of a stage.
    pub(crate) fn of_steps(sites: &SiteTable, steps: &[Step]) -> Schedule {
        let mut passes: Vec<PassSchedule> = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            let mut seen: Vec<usize> = Vec::new();
            for (view, pass) in step.views.iter().flat_map(|view| view.passes.iter().map(move |pass| (view, pass))) {
                // The first pass of its kind in this step goes on with the first of its kind in the steps before.
                let of = if pass.before.is_some() { Some("the latents of the stage before") } else { part(&view.region) };
                let goes_on = |(j, known): (usize, &PassSchedule)| (known.of.as_deref() == of && !seen.contains(&j)).then_some(j);
                let j = passes.iter().enumerate().find_map(goes_on).unwrap_or_else(|| {
                    passes.push(PassSchedule::new(sites, of, pass.conditioning));
                    passes.len() - 1
                });
                seen.push(j);
                passes[j].push(i + 1, pass);
            }
        }
        passes.iter_mut().for_each(PassSchedule::drop_unused);
        Schedule { n_steps: steps.len(), stages: Vec::new(), passes, ending: None }
    }

    /// From the stages of a run.
    fn of_run(sites: &SiteTable, run: &[StageSteps]) -> Schedule {
        let last = run.last().map_or(&[][..], |stage| &stage.steps);
        let is_simple = |step: &Step| step.blends.is_empty() && step.views.iter().all(|v| v.region == Region::Whole && v.bands.is_none());
        let stages = match run.len() == 1 && last.iter().all(is_simple) {
            true => Vec::new(),
            false => run.iter().enumerate().map(|(s, stage)| StageSchedule::new(sites, stage, s + 1 == run.len())).collect(),
        };
        Schedule { stages, ..Self::of_steps(sites, last) }
    }
}

impl PassSchedule {
    fn new(sites: &SiteTable, of: Option<&str>, conditioning: Conditioning) -> Self {
        Self {
            told: match conditioning {
                Conditioning::Text => "prompt",
                Conditioning::Empty => "negative prompt",
            }
            .to_owned(),
            of: of.map(str::to_owned),
            weight: Vec::new(),
            convolutions: tracks(sites.convs.iter().map(|site| site.path.as_str())),
            attentions: tracks(sites.attentions.iter().map(|site| site.path.as_str())),
            skips: tracks(sites.skips.iter().map(|site| site.path.as_str())),
            reach: tracks(sites.attentions.iter().map(|site| site.path.as_str())),
            resizes: tracks(sites.layers.iter().map(|site| site.path.as_str())),
            queries: Vec::new(),
            maps: Vec::new(),
        }
    }

    fn push(&mut self, step: usize, pass: &Pass) {
        push(&mut self.weight, step, Some(pass.weight));
        push(&mut self.queries, step, pass.queries_of.map(|other| other + 1));
        let Maps { keep, reuse } = pass.maps;
        push(&mut self.maps, step, (reuse > 0.0).then(|| format!("{} of the kept maps in cross-attentions", number(reuse))));
        push(&mut self.maps, step, keep.then(|| "cross-attentions' maps kept".to_owned()));
        for (track, action) in self.convolutions.iter_mut().zip(&pass.plan.convs) {
            let ConvAction { kernel, dilation, low_pass, geometry } = action;
            let kernel = match kernel {
                Kernel::Trained => None,
                Kernel::Dispersed(dispersion) => Some(dispersion.large),
            };
            let dilation = geometry.map(|geometry| geometry.dilation as f64).or(dilation.map(|d| d.get()));
            let changed = Convolution {
                dilation,
                kernel,
                stride: geometry.map(|geometry| geometry.stride),
                low_pass: low_pass.as_ref().map(passing),
            };
            push(&mut track.runs, step, (*action != ConvAction::default()).then_some(changed));
        }
        for ((track, reach), action) in self.attentions.iter_mut().zip(&mut self.reach).zip(&pass.plan.attentions) {
            push(&mut track.runs, step, (action.temperature != 1.0).then_some(action.temperature));
            push(&mut reach.runs, step, reached(action));
        }
        for (track, action) in self.skips.iter_mut().zip(&pass.plan.skips) {
            let changed = Skip { backbone: action.backbone, low_frequencies: action.low_frequencies };
            push(&mut track.runs, step, (*action != SkipAction::default()).then_some(changed));
        }
        for (track, LayerAction { resize, skip_before }) in self.resizes.iter_mut().zip(&pass.plan.layers) {
            let how = resize.map(|resize| match resize {
                Resize::AveragePool => "means of 2×2".to_owned(),
                Resize::Bicubic(factor) => format!("1/{} a side, bicubic", number(factor)),
            });
            let skip = if *skip_before { ", its skip connection as it was" } else { "" };
            push(&mut track.runs, step, how.map(|how| format!("{how}{skip}")));
        }
    }

    /// Leaves out tracks that most methods have nothing in.
    fn drop_unused(&mut self) {
        self.reach.retain(|track| !track.runs.is_empty());
        self.resizes.retain(|track| !track.runs.is_empty());
    }

    /// Whether its convolutions and sizes are as trained, and its self-attentions see everything.
    pub(crate) fn has_a_map(&self) -> bool {
        self.changes_convolutions() || !self.reach.is_empty() || !self.resizes.is_empty()
    }

    /// Whether any convolution is not as trained.
    pub(crate) fn changes_convolutions(&self) -> bool {
        self.convolutions.iter().any(|track| !track.runs.is_empty())
    }
}

fn path(cell: &str) -> String {
    format!("cells/{cell}/schedule.json")
}

/// What a method does to images of a request, the prompt and seed of which have no say in it.
pub(crate) fn of(pipeline: &Pipeline, request: &Request, method: &Method) -> Result<Schedule> {
    let mut schedule = Schedule::of_run(pipeline.sites(), &pipeline.outline(request, method)?);
    schedule.ending = pipeline.ending(request, method)?.map(|found| ending(&found, (request.width, request.height)));
    Ok(schedule)
}

/// Writes the schedule of a cell: the first image stands for all.
pub(crate) fn write(store: &Store, cell: &Cell, pipeline: &Pipeline) -> Result<()> {
    let (Some(job), Work::Sample(method)) = (cell.jobs.first(), &cell.work) else { return Ok(()) };
    store.write(&path(&cell.name), &serde_json::to_vec(&of(pipeline, &job.request, method)?)?)
}

/// Reads the schedule of a cell; runs of earlier versions have none.
pub(crate) fn read(store: &Store, cell: &str) -> Result<Option<Schedule>> {
    let relative = path(cell);
    let Some(bytes) = seal::read(store, &relative)? else { return Ok(None) };
    let place = || format!("{}: not a schedule", store.path(&relative).display());
    Ok(Some(serde_json::from_slice(&bytes).with_context(place)?))
}

/// What the schedule does, in sentences.
pub(crate) fn describe(schedule: &Schedule) -> String {
    let mut sentences: Vec<String> = schedule.stages.iter().enumerate().map(|(i, stage)| stage.sentence(i + 1)).collect();
    sentences.push(actions(schedule));
    sentences.extend(schedule.ending.clone());
    sentences.join(" ")
}

/// What the passes do to the network.
fn actions(schedule: &Schedule) -> String {
    let n = schedule.n_steps;
    let mut sentences = Vec::new();
    for (i, pass) in schedule.passes.iter().enumerate() {
        // Passes that do the same are described once.
        let same = |other: &&PassSchedule| {
            let does = |pass: &PassSchedule| PassSchedule { told: String::new(), of: None, weight: Vec::new(), ..pass.clone() };
            does(other) == does(pass)
        };
        if schedule.passes[..i].iter().any(|other| same(&other)) {
            continue;
        }
        let mut parts = Vec::new();
        let mut part = |what: &str, sites: usize, all: usize, spans: Vec<(usize, usize)>, values: Vec<f64>| {
            let (from, to) = spans.iter().fold((usize::MAX, 0), |(a, b), (from, to)| (a.min(*from), b.max(*to)));
            if sites > 0 {
                parts.push(format!("{sites} of {all} {what} {}, {} of {n}", range(&values), steps(from, to)));
            }
        };
        let dilated = |run: &&Run<Convolution>| run.action.dilation.is_some();
        let runs = || pass.convolutions.iter().flat_map(|track| &track.runs);
        part(
            "convolutions re-dilated by",
            pass.convolutions.iter().filter(|track| track.runs.iter().any(|run| dilated(&run))).count(),
            pass.convolutions.len(),
            runs().filter(dilated).map(|run| (run.from, run.to)).collect(),
            runs().filter_map(|run| run.action.dilation).collect(),
        );
        let dispersed = |run: &&Run<Convolution>| run.action.kernel.is_some();
        part(
            "kernels dispersed to a side of",
            pass.convolutions.iter().filter(|track| track.runs.iter().any(|run| dispersed(&run))).count(),
            pass.convolutions.len(),
            runs().filter(dispersed).map(|run| (run.from, run.to)).collect(),
            runs().filter_map(|run| run.action.kernel).map(|side| side as f64).collect(),
        );
        let filtered = |run: &&Run<Convolution>| run.action.low_pass.is_some();
        part(
            "convolutions of a map whose spectrum is cut to",
            pass.convolutions.iter().filter(|track| track.runs.iter().any(|run| filtered(&run))).count(),
            pass.convolutions.len(),
            runs().filter(filtered).map(|run| (run.from, run.to)).collect(),
            runs().filter_map(|run| run.action.low_pass).collect(),
        );
        let strided = |run: &&Run<Convolution>| run.action.stride.is_some();
        part(
            "convolutions with a stride of",
            pass.convolutions.iter().filter(|track| track.runs.iter().any(|run| strided(&run))).count(),
            pass.convolutions.len(),
            runs().filter(strided).map(|run| (run.from, run.to)).collect(),
            runs().filter_map(|run| run.action.stride).map(|stride| stride as f64).collect(),
        );
        let runs = || pass.attentions.iter().flat_map(|track| &track.runs);
        part(
            "self-attentions with the softmax scale times",
            pass.attentions.iter().filter(|track| !track.runs.is_empty()).count(),
            pass.attentions.len(),
            runs().map(|run| (run.from, run.to)).collect(),
            runs().map(|run| run.action).collect(),
        );
        let runs = || pass.skips.iter().flat_map(|track| &track.runs);
        part(
            "skip connections joined with the backbone times",
            pass.skips.iter().filter(|track| !track.runs.is_empty()).count(),
            pass.skips.len(),
            runs().map(|run| (run.from, run.to)).collect(),
            runs().map(|run| run.action.backbone).collect(),
        );
        parts.extend(pass.inside(n));
        if parts.is_empty() {
            parts.push("the unmodified network".to_owned());
        }
        let same: Vec<String> = schedule.passes.iter().filter(same).map(|pass| pass.title(n)).collect();
        sentences.push((same.join(", "), parts.join("; ")));
    }
    match sentences.as_slice() {
        [(_, only)] => format!("{only}."),
        several => several.iter().map(|(who, what)| format!("Pass of {who}: {what}.")).collect::<Vec<_>>().join(" "),
    }
}

impl PassSchedule {
    /// What it does to attention's reach and to sizes, in words.
    fn inside(&self, n: usize) -> Vec<String> {
        let mut parts = Vec::new();
        let span = |spans: &mut dyn Iterator<Item = (usize, usize)>| {
            let (from, to) = spans.fold((usize::MAX, 0), |(a, b), (from, to)| (a.min(from), b.max(to)));
            format!("{} of {n}", steps(from, to))
        };
        let runs = || self.reach.iter().flat_map(|track| &track.runs);
        let seen: BTreeSet<&String> = runs().map(|run| &run.action).collect();
        for action in seen {
            let sites = self.reach.iter().filter(|track| track.runs.iter().any(|run| run.action == *action)).count();
            let when = span(&mut runs().filter(|run| run.action == *action).map(|run| (run.from, run.to)));
            parts.push(format!("{sites} of {} self-attentions see {action}, {when}", self.attentions.len()));
        }
        for track in &self.resizes {
            parts.extend(track.runs.iter().map(|run| format!("after {} {}, {} of {n}", track.site, run.action, steps(run.from, run.to))));
        }
        if let Some(run) = self.queries.first() {
            let when = span(&mut self.queries.iter().map(|run| (run.from, run.to)));
            parts.push(format!("queries and keys of pass {}, {when}", run.action));
        }
        parts.extend(self.maps.iter().map(|run| format!("{}, {} of {n}", run.action, steps(run.from, run.to))));
        parts
    }

    /// What tells this pass from the others: what it is told, its weight, and when it is made if not always.
    pub(crate) fn title(&self, n_steps: usize) -> String {
        let weights: Vec<f64> = self.weight.iter().map(|run| run.action).collect();
        let span = (self.weight.first().map_or(1, |run| run.from), self.weight.last().map_or(n_steps, |run| run.to));
        let when = if span == (1, n_steps) { String::new() } else { format!(", {} only", steps(span.0, span.1)) };
        let of = self.of.as_ref().map_or_else(String::new, |of| format!(" on {of}"));
        format!("the {}{of} (weight {}{when})", self.told, range(&weights))
    }
}

/// `step 1`, or `steps 1–12`.
pub(crate) fn steps(from: usize, to: usize) -> String {
    if from == to { format!("step {from}") } else { format!("steps {from}–{to}") }
}

/// `2`, or `1.5 to 4`.
fn range(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
    if low == high { number(low) } else { format!("{} to {}", number(low), number(high)) }
}

/// At most two decimals.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}

/// Consecutive sites of one block (`down_blocks.1`, `mid_block`), in their order.
pub(crate) fn blocks<T>(tracks: &[Track<T>]) -> Vec<(&str, Vec<&Track<T>>)> {
    let block = |site: &str| -> usize {
        let numbered = site.starts_with("down_blocks.") || site.starts_with("up_blocks.");
        site.match_indices('.').nth(usize::from(numbered)).map_or(site.len(), |(at, _)| at)
    };
    // A block may be loaded in more than one go; the layers of the network are shown in its order.
    let mut order: Vec<&str> = Vec::new();
    let mut found: BTreeMap<&str, Vec<&Track<T>>> = BTreeMap::new();
    for track in tracks {
        let name = &track.site[..block(&track.site)];
        if !order.contains(&name) {
            order.push(name);
        }
        found.entry(name).or_default().push(track);
    }
    order.into_iter().map(|name| (name, found.remove(name).unwrap_or_default())).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use scalebench_generation::journey::Stage;
    use scalebench_generation::plan::{Dilation, Geometry, Plan, ShiftedWindows, SkipAction};
    use scalebench_generation::site::{AttentionSite, ConvSite, LayerSite, SkipSite};
    use scalebench_generation::step::{Blend, Strided, View, Windows};

    fn sites() -> SiteTable {
        let conv = |path: &str| ConvSite { path: path.into(), stride: 1, halvings: 0 };
        SiteTable {
            temporals: Vec::new(),
            convs: vec![conv("conv_in"), conv("down_blocks.1.resnets.0.conv1"), conv("mid_block.resnets.0.conv1")],
            attentions: vec![AttentionSite { path: "mid_block.attentions.0.transformer_blocks.0.attn1".into(), halvings: 1 }],
            skips: vec![SkipSite { path: "up_blocks.0.resnets.0".into(), block: 0, channels: 8 }],
            layers: vec![LayerSite { path: "down_blocks.1.resnets.0".into() }],
        }
    }

    const AS_TRAINED: Convolution = Convolution { dilation: None, kernel: None, stride: None, low_pass: None };

    /// A step of views.
    fn whole(views: Vec<(Region, Vec<Pass>)>) -> Step {
        let view = |(region, passes)| View { region, weight: 1.0, passes, bands: None };
        Step { views: views.into_iter().map(view).collect(), blends: Vec::new() }
    }

    /// Steps 1 and 2 dilate the mid block by 2, step 3 by 1.5; a third pass is made in steps 1 and 2 only.
    fn passes() -> Vec<Step> {
        let dilated = |factor| {
            let mut plan = Plan::plain(&sites());
            plan.convs[2].dilation = Some(Dilation::new(factor).unwrap());
            plan
        };
        let pass = Pass::new;
        let step = |factor, third: bool| {
            let mut passes = vec![pass(dilated(factor), Conditioning::Empty, -6.5), pass(dilated(factor), Conditioning::Text, 7.5)];
            if third {
                let mut plan = Plan::plain(&sites());
                plan.attentions[0].temperature = 1.25;
                plan.skips[0] = SkipAction { backbone: 1.2, low_frequencies: 0.9 };
                passes[0].weight = -7.5;
                passes.push(pass(plan, Conditioning::Empty, 1.0));
            }
            passes
        };
        [step(2.0, true), step(2.0, true), step(1.5, false)].map(|passes| whole(vec![(Region::Whole, passes)])).into()
    }

    /// A schedule with three passes, of which the last ends before the others.
    pub(crate) fn example() -> Schedule {
        Schedule::of_steps(&sites(), &passes())
    }

    #[test]
    fn equal_steps_are_one_run_and_gaps_are_kept() {
        let schedule = example();
        assert_eq!((schedule.n_steps, schedule.passes.len()), (3, 3));
        let strong = &schedule.passes[1];
        let run = |from, to, dilation| Run { from, to, action: Convolution { dilation: Some(dilation), ..AS_TRAINED } };
        assert_eq!(strong.convolutions[2].runs, [run(1, 2, 2.0), run(3, 3, 1.5)]);
        assert!(strong.convolutions[0].runs.is_empty());
        assert_eq!(schedule.passes[0].weight, [Run { from: 1, to: 2, action: -7.5 }, Run { from: 3, to: 3, action: -6.5 }]);
        assert_eq!(schedule.passes[2].weight, [Run { from: 1, to: 2, action: 1.0 }]);
        assert_eq!(schedule.passes[2].attentions[0].runs, [Run { from: 1, to: 2, action: 1.25 }]);
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        assert_eq!(
            describe(&schedule),
            "Pass of the negative prompt (weight −7.5 to −6.5), the prompt (weight 7.5): 1 of 3 convolutions re-dilated by 1.5 to 2, \
             steps 1–3 of 3. Pass of the negative prompt (weight 1, steps 1–2 only): 1 of 1 self-attentions with the softmax scale \
             times 1.25, steps 1–2 of 3; 1 of 1 skip connections joined with the backbone times 1.2, steps 1–2 of 3."
        );
        let plain = scalebench_generation::step::classifier_free(
            &sites(),
            &scalebench_generation::step::Moment {
                step: 0,
                n_steps: 1,
                timestep: 1.0,
                latent: (8, 8),
                native: (8, 8),
                guidance_scale: 7.5,
                ..Default::default()
            },
        );
        assert_eq!(describe(&Schedule::of_steps(&sites(), &[whole(vec![(Region::Whole, plain)])])), "the unmodified network.");
    }

    /// A stage on windows and strided subsets after a plain one, and what is done to sizes, spectra and attention there.
    pub(crate) fn staged() -> Schedule {
        let at = |n_steps: usize, latent| {
            let (native, guidance_scale) = ((8, 8), 1.0);
            scalebench_generation::step::Moment { n_steps, latent, native, guidance_scale, ..Default::default() }
        };
        let plain = Step::plain(&sites(), &at(2, (8, 8)));
        let mut plan = Plan::plain(&sites());
        plan.convs[1].low_pass = Some(LowPass { rows: [1.0, 1.0, 0.0, 0.0].into(), columns: [1.0, 0.0].into() });
        plan.convs[2].geometry = Some(Geometry { stride: 4, padding: 2, dilation: 2 });
        plan.attentions[0].shape = AttentionShape::Windows(ShiftedWindows { grid: (2, 2), quarters: 1 });
        plan.layers[0] = LayerAction { resize: Some(Resize::Bicubic(2.0)), skip_before: true };
        let mut shifted = plan.clone();
        shifted.attentions[0].shape = AttentionShape::Windows(ShiftedWindows { grid: (2, 2), quarters: 3 });
        let windows =
            Region::Windows(Windows { size: (8, 8), corners: vec![(0, 0), (0, 8), (8, 0), (8, 8)], told_corners: None, words: None });
        let strided = Region::Strided(Strided { factor: 2, blur: None, shuffle: None });
        let pass = |plan: &Plan| Pass::new(plan.clone(), Conditioning::Text, 1.0);
        let mut first = whole(vec![(windows.clone(), vec![pass(&plan)]), (strided, vec![pass(&Plan::plain(&sites()))])]);
        first.blends.push(Blend { target: Target::Latents, band: Band::All, weight: 0.5 });
        let mut second = whole(vec![(windows, vec![pass(&shifted)])]);
        second.views[0].passes[0].queries_of = Some(0);
        let mut last = Stage::new((16, 16));
        last.start = Start::Enlarged(scalebench_generation::journey::Enlarge {
            through: Through::Pixels,
            filter: scalebench_generation::journey::Filter::Bicubic,
            sharpen: None,
            clamped: true,
            encode: scalebench_generation::journey::Encode::Mean,
        });
        let stages = [
            StageSteps { stage: Stage::new((8, 8)), steps: vec![plain.clone(), plain] },
            StageSteps { stage: last, steps: vec![first, second] },
        ];
        Schedule::of_run(&sites(), &stages)
    }

    #[test]
    fn stages_views_and_inner_actions_are_told() {
        let schedule = staged();
        assert_eq!(
            describe(&schedule),
            "Stage 1: 8×8 latents from noise, the whole map in steps 1–2. Stage 2: 16×16 latents from the enlarged image, 4 windows of \
             8×8 and 4 strided subsets of 8×8, mixed with the enlarged start in step 1, 4 windows of 8×8 in step 2. Pass of the prompt \
             on windows (weight 1): 1 of 3 convolutions re-dilated by 2, steps 1–2 of 2; 1 of 3 convolutions of a map whose spectrum is \
             cut to 0.25, steps 1–2 of 2; 1 of 3 convolutions with a stride of 4, steps 1–2 of 2; 1 of 1 self-attentions see 2×2 windows, \
             steps 1–2 of 2; after down_blocks.1.resnets.0 1/2 a side, bicubic, its skip connection as it was, steps 1–2 of 2; queries \
             and keys of pass 1, step 2 of 2. Pass of the prompt on strided subsets (weight 1, step 1 only): the unmodified network."
        );
        // The shift of windows is drawn anew in every step: that is one run all the same.
        assert_eq!(schedule.passes[0].reach[0].runs, [Run { from: 1, to: 2, action: "2×2 windows".to_owned() }]);
        assert_eq!(schedule.passes[0].convolutions[1].runs[0].action, Convolution { low_pass: Some(0.25), ..AS_TRAINED });
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        // A stage that does something before the last one.
        let acting = StageSchedule { actions: Some("Something.".to_owned()), ..schedule.stages[0].clone() };
        assert!(acting.sentence(1).ends_with("steps 1–2. Something."));
        // What has no such actions is written as ever.
        let plain = serde_json::to_string(&example()).unwrap();
        assert!(
            ["reach", "resizes", "queries", "maps", "low_pass", "stride", "stages", "\"of\""].iter().all(|key| !plain.contains(key)),
            "{plain}"
        );
    }

    #[test]
    fn layers_are_grouped_by_block() {
        let schedule = example();
        let blocks: Vec<&str> = blocks(&schedule.passes[0].convolutions).into_iter().map(|(name, _)| name).collect();
        assert_eq!(blocks, ["conv_in", "down_blocks.1", "mid_block"]);
    }
}
