//! What a method does by layer and step, as data: `cells/<cell>/schedule.json`.
//!
//! It is written by the run, because only the loaded model knows its layers; the report draws it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use scalebench_generation::journey::{Start, Through};
use scalebench_generation::plan::{AttentionAction, ConvAction, Kernel, SkipAction};
use scalebench_generation::step::{Conditioning, Pass, Region, Step};
use scalebench_generation::{Pipeline, SiteTable, StageSteps};
use serde::{Deserialize, Serialize};

use crate::experiment::plan::{Cell, Work};
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
}

impl StageSchedule {
    fn new(StageSteps { stage, steps }: &StageSteps) -> Self {
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
        Self { latent: stage.latent, start, steps: (first + 1, first + steps.len()), views }
    }
}

impl StageSchedule {
    fn sentence(&self, number: usize) -> String {
        let views = self.views.iter().map(|run| format!("{} in {}", run.action, steps(run.from, run.to))).collect::<Vec<_>>().join(", ");
        format!("Stage {number}: {}×{} latents from {}, {views}.", self.latent.0, self.latent.1, self.start)
    }
}

/// What a step looks at, in words.
fn looked_at(step: &Step, latent: (usize, usize)) -> String {
    let view = |region: &Region| {
        let (n, (height, width)) = region.maps(latent);
        match region {
            Region::Whole => "the whole map".to_owned(),
            Region::Windows(_) => format!("{n} windows of {height}×{width}"),
            Region::Strided(_) => format!("{n} strided subsets of {height}×{width}"),
            Region::Pooled(_) => format!("its means at {height}×{width}"),
        }
    };
    let mut text = step.views.iter().map(|v| view(&v.region)).collect::<Vec<_>>().join(" and ");
    if !step.blends.is_empty() {
        text += ", mixed with the enlarged start";
    }
    text
}

/// One pass, over all steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PassSchedule {
    /// What it is told: `prompt` or `negative prompt`.
    pub(crate) told: String,
    /// Its weight in the guided prediction; steps outside of all runs are made without this pass.
    pub(crate) weight: Vec<Run<f64>>,
    /// One track per 3×3 convolution.
    pub(crate) convolutions: Vec<Track<Convolution>>,
    /// Factor on the softmax scale, one track per self-attention.
    pub(crate) attentions: Vec<Track<f64>>,
    /// One track per skip connection.
    pub(crate) skips: Vec<Track<Skip>>,
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

impl Schedule {
    /// From the passes of every step.
    pub(crate) fn new(sites: &SiteTable, steps: &[Vec<Pass>]) -> Schedule {
        let mut passes: Vec<PassSchedule> = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            for (j, pass) in step.iter().enumerate() {
                if passes.len() == j {
                    passes.push(PassSchedule {
                        told: match pass.conditioning {
                            Conditioning::Text => "prompt",
                            Conditioning::Empty => "negative prompt",
                        }
                        .to_owned(),
                        weight: Vec::new(),
                        convolutions: tracks(sites.convs.iter().map(|site| site.path.as_str())),
                        attentions: tracks(sites.attentions.iter().map(|site| site.path.as_str())),
                        skips: tracks(sites.skips.iter().map(|site| site.path.as_str())),
                    });
                }
                passes[j].push(i + 1, pass);
            }
        }
        Schedule { n_steps: steps.len(), stages: Vec::new(), passes }
    }

    /// From the stages of a run.
    fn of_run(sites: &SiteTable, run: &[StageSteps]) -> Schedule {
        let last = run.last().map_or(&[][..], |stage| &stage.steps);
        let passes: Vec<Vec<Pass>> = last.iter().map(|step| step.views.iter().flat_map(|view| view.passes.clone()).collect()).collect();
        let plain =
            run.len() == 1 && last.iter().all(|step| step.blends.is_empty() && step.views.iter().all(|v| v.region == Region::Whole));
        let stages = if plain { Vec::new() } else { run.iter().map(StageSchedule::new).collect() };
        Schedule { stages, ..Self::new(sites, &passes) }
    }
}

impl PassSchedule {
    fn push(&mut self, step: usize, pass: &Pass) {
        push(&mut self.weight, step, Some(pass.weight));
        for (track, action) in self.convolutions.iter_mut().zip(&pass.plan.convs) {
            let ConvAction { kernel, dilation, geometry, .. } = action;
            let kernel = match kernel {
                Kernel::Trained => None,
                Kernel::Dispersed(dispersion) => Some(dispersion.large),
            };
            let dilation = geometry.map(|g| g.dilation as f64).or_else(|| dilation.map(|d| d.get()));
            let changed = Convolution { dilation, kernel };
            push(&mut track.runs, step, (*action != ConvAction::default()).then_some(changed));
        }
        for (track, action) in self.attentions.iter_mut().zip(&pass.plan.attentions) {
            push(&mut track.runs, step, (*action != AttentionAction::default()).then_some(action.temperature));
        }
        for (track, action) in self.skips.iter_mut().zip(&pass.plan.skips) {
            let changed = Skip { backbone: action.backbone, low_frequencies: action.low_frequencies };
            push(&mut track.runs, step, (*action != SkipAction::default()).then_some(changed));
        }
    }

    /// Whether any convolution is not as trained.
    pub(crate) fn changes_convolutions(&self) -> bool {
        self.convolutions.iter().any(|track| !track.runs.is_empty())
    }
}

fn path(cell: &str) -> String {
    format!("cells/{cell}/schedule.json")
}

/// Writes the schedule of a cell. Seeds and prompts have no say in it, so the first image stands for all.
pub(crate) fn write(store: &Store, cell: &Cell, pipeline: &Pipeline) -> Result<()> {
    let (Some(job), Work::Sample(method)) = (cell.jobs.first(), &cell.work) else { return Ok(()) };
    let schedule = Schedule::of_run(pipeline.sites(), &pipeline.outline(&job.request, method)?);
    store.write(&path(&cell.name), &serde_json::to_vec(&schedule)?)
}

/// Reads the schedule of a cell; runs of earlier versions have none.
pub(crate) fn read(store: &Store, cell: &str) -> Result<Option<Schedule>> {
    let relative = path(cell);
    let Some(bytes) = store.read(&relative)? else { return Ok(None) };
    let place = || format!("{}: not a schedule", store.path(&relative).display());
    Ok(Some(serde_json::from_slice(&bytes).with_context(place)?))
}

/// What the schedule does, in sentences.
pub(crate) fn describe(schedule: &Schedule) -> String {
    let mut sentences: Vec<String> = schedule.stages.iter().enumerate().map(|(i, stage)| stage.sentence(i + 1)).collect();
    sentences.push(actions(schedule));
    sentences.join(" ")
}

/// What the passes do to the network.
fn actions(schedule: &Schedule) -> String {
    let n = schedule.n_steps;
    let mut sentences = Vec::new();
    for (i, pass) in schedule.passes.iter().enumerate() {
        // Passes that do the same are described once.
        let same = |other: &&PassSchedule| {
            other.convolutions == pass.convolutions && other.attentions == pass.attentions && other.skips == pass.skips
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
    /// What tells this pass from the others: what it is told, its weight, and when it is made if not always.
    pub(crate) fn title(&self, n_steps: usize) -> String {
        let weights: Vec<f64> = self.weight.iter().map(|run| run.action).collect();
        let span = (self.weight.first().map_or(1, |run| run.from), self.weight.last().map_or(n_steps, |run| run.to));
        let when = if span == (1, n_steps) { String::new() } else { format!(", {} only", steps(span.0, span.1)) };
        format!("the {} (weight {}{when})", self.told, range(&weights))
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
    use scalebench_generation::plan::{Dilation, Plan, SkipAction};
    use scalebench_generation::site::{AttentionSite, ConvSite, SkipSite};

    fn sites() -> SiteTable {
        let conv = |path: &str| ConvSite { path: path.into(), stride: 1, halvings: 0 };
        SiteTable {
            convs: vec![conv("conv_in"), conv("down_blocks.1.resnets.0.conv1"), conv("mid_block.resnets.0.conv1")],
            attentions: vec![AttentionSite { path: "mid_block.attentions.0.transformer_blocks.0.attn1".into(), halvings: 1 }],
            skips: vec![SkipSite { path: "up_blocks.0.resnets.0".into(), block: 0, channels: 8 }],
            layers: Vec::new(),
        }
    }

    /// Steps 1 and 2 dilate the mid block by 2, step 3 by 1.5; a third pass is made in steps 1 and 2 only.
    fn passes() -> Vec<Vec<Pass>> {
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
        vec![step(2.0, true), step(2.0, true), step(1.5, false)]
    }

    /// A schedule with three passes, of which the last ends before the others.
    pub(crate) fn example() -> Schedule {
        Schedule::new(&sites(), &passes())
    }

    #[test]
    fn equal_steps_are_one_run_and_gaps_are_kept() {
        let schedule = example();
        assert_eq!((schedule.n_steps, schedule.passes.len()), (3, 3));
        let strong = &schedule.passes[1];
        let run = |from, to, dilation| Run { from, to, action: Convolution { dilation: Some(dilation), kernel: None } };
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
        let plain = vec![scalebench_generation::step::classifier_free(
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
        )];
        assert_eq!(describe(&Schedule::new(&sites(), &plain)), "the unmodified network.");
    }

    #[test]
    fn layers_are_grouped_by_block() {
        let schedule = example();
        let blocks: Vec<&str> = blocks(&schedule.passes[0].convolutions).into_iter().map(|(name, _)| name).collect();
        assert_eq!(blocks, ["conv_in", "down_blocks.1", "mid_block"]);
    }
}
