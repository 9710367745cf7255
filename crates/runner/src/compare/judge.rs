//! Two runs of one experiment: what got better, what got worse, what cannot be told.
//!
//! Everything is read from the run directories (description, manifests, features, timings); no network is loaded and no
//! image opened. In every cell the exact check comes first: equal digests or equal features need no statistics.
//!
//! | question | test | effect that counts |
//! | --- | --- | --- |
//! | quality, every column of the protocol | t test on the delete-a-block jackknife of the difference | any that is resolved |
//! | seconds an image | signed-rank test on the log ratios of the images' times | a median ratio of `slow_down` or more |
//! | peak memory of an image | the same on its bytes | a median ratio of `more_memory` or more |
//!
//! p-values are two-sided and adjusted by Holm over cells × columns for quality, and over cells for speed and for memory, so each of
//! the three families raises a false alarm with probability `alpha` at most. Of speed that holds for noise that is independent
//! between images; a machine that was busy during one of the runs is not, which is what `slow_down` is for.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use scalebench_metrics::{Jackknife, Metric, estimate, measure, paired_difference};
use serde::Serialize;

use crate::compare::finished::{Run, RunCell, Sides};
use crate::compare::stats::{holm, median, signed_rank, smallest_signed_rank, t_quantile, t_test, welch_degrees};
use crate::experiment::resolved::{Model, Reference, Resolved, difference};
use crate::run::numbers::{MEBIBYTE, change, number, probability};
use crate::run::results::{Interval, label, metric_of};
use crate::run::store::{ManifestLine, Timing};

/// Fewest images that a difference with an interval can be computed from.
const MIN_IMAGES: usize = 3;

/// The column of times, beside those of the protocol.
pub(crate) const SPEED: &str = "seconds_per_image";

/// The column of memory.
pub(crate) const MEMORY: &str = "peak_memory_bytes";

/// Which seconds are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Clock {
    Wall,
    Processor,
}

impl Clock {
    pub(crate) fn other(self) -> Clock {
        match self {
            Clock::Wall => Clock::Processor,
            Clock::Processor => Clock::Wall,
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Clock::Wall => "s/image",
            Clock::Processor => "processor s/image",
        }
    }
}

/// What counts as a regression.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Criteria {
    /// Probability of any false alarm about quality in a comparison, of any about speed, and of any about memory.
    pub(crate) alpha: f64,
    /// Ratio of seconds an image from which slower is worse.
    pub(crate) slow_down: f64,
    /// Which seconds.
    pub(crate) clock: Clock,
    /// Ratio of an image's peak memory from which more is worse.
    pub(crate) more_memory: f64,
}

impl Criteria {
    pub(crate) fn check(self) -> Result<Self> {
        ensure!(self.alpha > 0.0 && self.alpha < 1.0, "--alpha: expected a probability between 0 and 1, found {}", self.alpha);
        for (option, ratio) in [("--slow-down", self.slow_down), ("--more-memory", self.more_memory)] {
            ensure!(ratio > 1.0, "{option}: expected a ratio above 1, found {ratio}");
        }
        Ok(self)
    }
}

/// The outcome of a comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) baseline: String,
    pub(crate) run: String,
    #[serde(flatten)]
    pub(crate) criteria: Criteria,
    /// What differs between the experiments, and what was not judged.
    pub(crate) notes: Vec<String>,
    pub(crate) only_in_baseline: Vec<String>,
    pub(crate) only_in_run: Vec<String>,
    pub(crate) cells: Vec<Cell>,
    /// Everything that is worse.
    pub(crate) regressions: Vec<Regression>,
}

/// What is worse in one cell, by how much.
#[derive(Debug, Serialize)]
pub(crate) struct Regression {
    pub(crate) cell: String,
    /// A column of the results, `seconds_per_image` or `peak_memory_bytes`.
    pub(crate) column: String,
    pub(crate) what: String,
}

/// One cell of both runs.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) name: String,
    /// Images of either run that were compared.
    pub(crate) images: usize,
    pub(crate) pairing: Pairing,
    /// Images whose files differ; None where they are not of the same prompt and seed.
    pub(crate) changed_images: Option<usize>,
    pub(crate) scores: Vec<Score>,
    pub(crate) speed: Option<Cost>,
    pub(crate) memory: Option<Cost>,
}

/// Which images of two runs belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pairing {
    PromptAndSeed,
    /// Same prompts under other seeds: what a prompt contributes still cancels.
    Prompt,
    /// Two independent samples.
    Unpaired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Identical,
    Better,
    Worse,
    Undecided,
    /// Of speed and memory: the ratio counts neither as more nor as less.
    WithinLimit,
}

/// One column in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct Score {
    pub(crate) column: String,
    pub(crate) baseline: f64,
    pub(crate) run: f64,
    /// run − baseline, with the 95 % interval of this difference alone.
    pub(crate) difference: Interval,
    pub(crate) p: f64,
    /// Adjusted for all that was tested.
    pub(crate) p_holm: f64,
    pub(crate) verdict: Verdict,
}

/// What images of one cell cost, seconds by the clock of the criteria or bytes; medians.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) baseline: f64,
    pub(crate) run: f64,
    /// Median over the images of run / baseline.
    pub(crate) ratio: f64,
    /// Of speed, the same of the other clock, where both runs have it: what tells a slower program from a busy machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) other_clock_ratio: Option<f64>,
    /// Images whose cost both runs have.
    pub(crate) images: usize,
    pub(crate) test: CostTest,
    pub(crate) p: f64,
    pub(crate) p_holm: f64,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CostTest {
    SignedRank,
    /// Too few images for the test to decide whatever they show: the ratio decides alone.
    Threshold,
}

/// Refuses runs whose numbers do not mean the same.
pub(crate) fn check_comparable(baseline: &Resolved, run: &Resolved) -> Result<()> {
    let same_meaning = Resolved { metrics: run.metrics.clone(), reference: run.reference.clone(), ..baseline.clone() };
    // Digests say what weights and references are; where they lie does not matter.
    let mut meaning = baseline.clone();
    for (network, other) in meaning.metrics.networks.iter_mut().zip(&run.metrics.networks) {
        network.path.clone_from(&other.path);
    }
    match (&mut meaning.reference, &run.reference) {
        (Reference::Folder { path, .. }, Reference::Folder { path: other, .. })
        | (Reference::Parquet { path, .. }, Reference::Parquet { path: other, .. })
        | (Reference::Shards { path, .. }, Reference::Shards { path: other, .. })
        | (Reference::Statistics { path, .. }, Reference::Statistics { path: other, .. }) => path.clone_from(other),
        _ => (),
    }
    if let Some(found) = difference(&meaning, &same_meaning)? {
        bail!("the runs measure different things: {found}");
    }
    Ok(())
}

/// What else differs: the comparison stands, and a reader has to know.
fn notes(baseline: &Resolved, run: &Resolved) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut note = |part: &str, changed: Resolved| -> Result<()> {
        if let Some(found) = difference(baseline, &changed)? {
            notes.push(format!("{part}{found}"));
        }
        Ok(())
    };
    note("", Resolved { tool: run.tool.clone(), ..baseline.clone() })?;
    note("", Resolved { sampler: run.sampler.clone(), ..baseline.clone() })?;
    note("", Resolved { prompts: run.prompts.clone(), ..baseline.clone() })?;
    note("", Resolved { seed: run.seed, ..baseline.clone() })?;
    note("", Resolved { images: run.images.clone(), ..baseline.clone() })?;
    for (i, model) in baseline.models.iter().enumerate() {
        let Some(found) = run.models.iter().find(|found| found.name == model.name) else { continue };
        let mut changed = baseline.clone();
        changed.models[i] = Model { path: model.path.clone(), ..found.clone() };
        note(&format!("model {}: ", model.name), changed)?;
    }
    for (i, method) in baseline.methods.iter().enumerate() {
        let Some(found) = run.methods.iter().find(|found| found.name == method.name) else { continue };
        let mut changed = baseline.clone();
        changed.methods[i].settings.clone_from(&found.settings);
        changed.methods[i].sampler.clone_from(&found.sampler);
        changed.methods[i].seed = found.seed;
        note(&format!("method {}: ", method.name), changed)?;
    }
    Ok(notes)
}

/// What else than quality is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) speed: bool,
    pub(crate) memory: bool,
}

/// Compares `run` with `baseline`.
pub(crate) fn compare(baseline: &Run, run: &Run, criteria: Criteria, costs: Costs) -> Result<Comparison> {
    check_comparable(&baseline.resolved, &run.resolved).with_context(|| format!("{} and {}", baseline.shown, run.shown))?;
    let names = |one: &Run, other: &Run| -> Vec<String> {
        one.cells.iter().map(|cell| cell.outline.name.clone()).filter(|name| other.find(name).is_none()).collect()
    };
    let mut comparison = Comparison {
        baseline: baseline.shown.clone(),
        run: run.shown.clone(),
        criteria,
        notes: notes(&baseline.resolved, &run.resolved)?,
        only_in_baseline: names(baseline, run),
        only_in_run: names(run, baseline),
        cells: Vec::new(),
        regressions: Vec::new(),
    };
    for cell in &baseline.cells {
        let Some(found) = run.find(&cell.outline.name) else { continue };
        let compared = compare_cell((baseline, cell), (run, found), criteria.clock, costs);
        comparison.cells.push(compared.with_context(|| format!("cell {}", cell.outline.name))?);
    }
    ensure!(
        comparison.cells.iter().any(|cell| !cell.scores.is_empty()),
        "{} and {} have no cell in common: {} against {}",
        baseline.shown,
        run.shown,
        comparison.only_in_baseline.join(", "),
        comparison.only_in_run.join(", ")
    );
    judge(&mut comparison);
    Ok(comparison)
}

fn compare_cell((baseline, a): (&Run, &RunCell), (run, b): (&Run, &RunCell), clock: Clock, costs: Costs) -> Result<Cell> {
    let (before, now) = (a.scored(), b.scored());
    let (pairing, pairs) = pair(before, now);
    ensure!(pairs.len() >= MIN_IMAGES, "expected at least {MIN_IMAGES} images that both runs have, found {}", pairs.len());
    let whole = pairs.len() == before.len() && pairs.len() == now.len();
    let changed = pairs.iter().filter(|(i, j)| before[*i].blake3 != now[*j].blake3).count();
    let mut scores = Vec::new();
    for columns in &baseline.resolved.metrics.protocol.compare {
        for metric in &columns.metrics {
            let sides = (baseline.sides(a, columns, *metric)?, run.sides(b, columns, *metric)?);
            let (Some(before), Some(now)) = sides else { continue };
            let is_identical = pairing == Pairing::PromptAndSeed && whole && before.is_same(&now);
            let [before, now] = [before.select(pairs.iter().map(|(i, _)| *i), columns), now.select(pairs.iter().map(|(_, j)| *j), columns)];
            let column = format!("{}_{}", metric.name(), columns.id);
            let score = test(*metric, &before, &now, pairing, &columns.jackknife(), is_identical);
            scores.push(Score { column: column.clone(), ..score.with_context(|| column)? });
        }
    }
    let timings = (baseline.store().all_timings(&a.outline.name)?, run.store().all_timings(&b.outline.name)?);
    let cost = |of: &dyn Fn(&Timing) -> Option<f64>| cost(&pairs, (&timings.0, &timings.1), of);
    let speed = || -> Option<Cost> {
        let other_clock_ratio = cost(&|timing| timing.by(clock.other())).map(|cost| cost.ratio);
        Some(Cost { other_clock_ratio, ..cost(&|timing| timing.by(clock))? })
    };
    let speed = costs.speed.then(speed).flatten();
    let memory = costs.memory.then(|| cost(&|timing| timing.peak_memory_bytes.map(|bytes| bytes as f64))).flatten();
    Ok(Cell {
        name: a.outline.name.clone(),
        images: pairs.len(),
        pairing,
        changed_images: (pairing == Pairing::PromptAndSeed).then_some(changed),
        scores,
        speed,
        memory,
    })
}

/// Which images belong together, as indices into both manifests. What repeats is matched in order.
pub(crate) fn pair(a: &[ManifestLine], b: &[ManifestLine]) -> (Pairing, Vec<(usize, usize)>) {
    fn by<'a, K: Ord>(a: &'a [ManifestLine], b: &'a [ManifestLine], key: impl Fn(&'a ManifestLine) -> K) -> Vec<(usize, usize)> {
        let mut found: BTreeMap<K, Vec<usize>> = BTreeMap::new();
        for (j, line) in b.iter().enumerate().rev() {
            found.entry(key(line)).or_default().push(j);
        }
        let pair = |(i, line): (usize, &'a ManifestLine)| Some((i, found.get_mut(&key(line))?.pop()?));
        a.iter().enumerate().filter_map(pair).collect()
    }
    let smaller = a.len().min(b.len());
    // A few that happen to meet are no reason to drop all others.
    let enough = |pairs: &[(usize, usize)]| 2 * pairs.len() >= smaller;
    let same = by(a, b, |line| (line.prompt.as_str(), line.seed));
    if enough(&same) {
        return (Pairing::PromptAndSeed, same);
    }
    let prompts = by(a, b, |line| line.prompt.as_str());
    if enough(&prompts) {
        return (Pairing::Prompt, prompts);
    }
    // As many of either side, since FID depends on their number.
    (Pairing::Unpaired, (0..smaller).map(|i| (i, i)).collect())
}

/// Compares one column; the adjusted p-value and the verdict follow when all are known.
fn test(metric: Metric, before: &Sides, now: &Sides, pairing: Pairing, jackknife: &Jackknife, is_identical: bool) -> Result<Score> {
    let baseline = measure(metric, &before.generated, before.other.side())?;
    let score =
        |run: f64, difference: Interval, p: f64, verdict| Score { column: String::new(), baseline, run, difference, p, p_holm: p, verdict };
    if is_identical {
        return Ok(score(baseline, Interval { value: 0.0, lo: 0.0, hi: 0.0 }, 1.0, Verdict::Identical));
    }
    let (a, b) = ((&before.generated, before.other.side()), (&now.generated, now.other.side()));
    if pairing != Pairing::Unpaired {
        let found = paired_difference(metric, b, a, jackknife)?;
        let p = t_test(found.value, found.std_error, degrees(found.n, jackknife));
        return Ok(score(baseline + found.value, found.into(), p, Verdict::Undecided));
    }
    let [a, b] = [estimate(metric, a.0, a.1, jackknife)?, estimate(metric, b.0, b.1, jackknife)?];
    let degrees = welch_degrees((a.std_error, degrees(a.n, jackknife)), (b.std_error, degrees(b.n, jackknife)));
    let (value, std_error) = (b.value - a.value, a.std_error.hypot(b.std_error));
    let half_width = t_quantile((1.0 + jackknife.level) / 2.0, degrees) * std_error;
    let interval = Interval { value, lo: value - half_width, hi: value + half_width };
    Ok(score(b.value, interval, t_test(value, std_error, degrees), Verdict::Undecided))
}

/// Degrees of freedom of a jackknife over groups 0..n.
fn degrees(n: usize, jackknife: &Jackknife) -> f64 {
    n.min(jackknife.blocks as usize) as f64 - 1.0
}

impl Timing {
    fn by(&self, clock: Clock) -> Option<f64> {
        match clock {
            Clock::Wall => Some(self.seconds),
            Clock::Processor => self.processor_seconds,
        }
    }
}

/// Costs of the images that belong together; None where there are none.
fn cost(pairs: &[(usize, usize)], (before, now): (&[Timing], &[Timing]), of: &dyn Fn(&Timing) -> Option<f64>) -> Option<Cost> {
    let by_image =
        |timings: &[Timing]| -> BTreeMap<usize, f64> { timings.iter().filter_map(|timing| Some((timing.index, of(timing)?))).collect() };
    let (before, now) = (by_image(before), by_image(now));
    let both = pairs.iter().filter_map(|(i, j)| Some((*before.get(i)?, *now.get(j)?)));
    let (before, now): (Vec<f64>, Vec<f64>) = both.filter(|(a, b)| *a > 0.0 && *b > 0.0).unzip();
    let ratios: Vec<f64> = before.iter().zip(&now).map(|(a, b)| (b / a).ln()).collect();
    let p = signed_rank(&ratios);
    Some(Cost {
        baseline: median(&before)?,
        run: median(&now)?,
        ratio: median(&ratios)?.exp(),
        other_clock_ratio: None,
        images: before.len(),
        // Decided when the number of tests is known.
        test: CostTest::SignedRank,
        p,
        p_holm: p,
        verdict: Verdict::Undecided,
    })
}

/// Adjusts the p-values, gives the verdicts and names what is worse.
fn judge(comparison: &mut Comparison) {
    let Criteria { alpha, slow_down, more_memory, .. } = comparison.criteria;
    let cells = &mut comparison.cells;
    // What is identical can never be rejected, so it is not among the tests.
    let mut tested: Vec<&mut Score> =
        cells.iter_mut().flat_map(|cell| &mut cell.scores).filter(|score| score.verdict != Verdict::Identical).collect();
    let adjusted = holm(&tested.iter().map(|score| score.p).collect::<Vec<_>>());
    for (score, p) in tested.iter_mut().zip(adjusted) {
        score.p_holm = p;
        let metric = metric_of(&score.column).map(|(metric, _)| metric);
        let is_better = metric.is_some_and(|metric| metric.lower_is_better() == (score.difference.value < 0.0));
        score.verdict = match (p <= alpha, is_better) {
            (false, _) => Verdict::Undecided,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        };
    }
    judge_costs(cells.iter_mut().filter_map(|cell| cell.speed.as_mut()).collect(), alpha, slow_down);
    judge_costs(cells.iter_mut().filter_map(|cell| cell.memory.as_mut()).collect(), alpha, more_memory);
    comparison.regressions = regressions(comparison);
}

/// One family of costs: those whose median ratio reaches `limit`, and for which the test says so.
fn judge_costs(mut costs: Vec<&mut Cost>, alpha: f64, limit: f64) {
    let adjusted = holm(&costs.iter().map(|cost| cost.p).collect::<Vec<_>>());
    let count = costs.len() as f64;
    for (cost, p) in costs.iter_mut().zip(adjusted) {
        cost.p_holm = p;
        let can_decide = smallest_signed_rank(cost.images) * count <= alpha;
        cost.test = if can_decide { CostTest::SignedRank } else { CostTest::Threshold };
        let is_resolved = !can_decide || p <= alpha;
        cost.verdict = match is_resolved {
            true if cost.ratio >= limit => Verdict::Worse,
            true if cost.ratio <= 1.0 / limit => Verdict::Better,
            _ if cost.ratio > 1.0 / limit && cost.ratio < limit => Verdict::WithinLimit,
            _ => Verdict::Undecided,
        };
    }
}

fn regressions(comparison: &Comparison) -> Vec<Regression> {
    let mut regressions = Vec::new();
    for cell in &comparison.cells {
        for score in cell.scores.iter().filter(|score| score.verdict == Verdict::Worse) {
            let (name, factor) = label(&score.column);
            let what = format!(
                "{name} is worse, {} → {}: {} (p = {})",
                number(score.baseline * factor),
                number(score.run * factor),
                change(score.difference, factor),
                probability(score.p_holm)
            );
            regressions.push(Regression { cell: cell.name.clone(), column: score.column.clone(), what });
        }
        if let Some(speed) = cell.speed.as_ref().filter(|speed| speed.verdict == Verdict::Worse) {
            let Criteria { slow_down, clock, .. } = comparison.criteria;
            let (unit, other) = (clock.unit(), clock.other().unit());
            let mut what = format!(
                "slower, {} → {} {unit}: {:+.0} % (limit {:+.0} %",
                number(speed.baseline),
                number(speed.run),
                (speed.ratio - 1.0) * 100.0,
                (slow_down - 1.0) * 100.0
            );
            // A wall clock runs on while other programs have the processor.
            match speed.other_clock_ratio {
                Some(ratio) => what += &format!("; {other} {:+.0} %)", (ratio - 1.0) * 100.0),
                None => what.push(')'),
            }
            regressions.push(Regression { cell: cell.name.clone(), column: SPEED.to_owned(), what });
        }
        if let Some(memory) = cell.memory.as_ref().filter(|memory| memory.verdict == Verdict::Worse) {
            let what = format!(
                "more memory, {} → {} MiB: {:+.0} % (limit {:+.0} %)",
                number(memory.baseline / MEBIBYTE),
                number(memory.run / MEBIBYTE),
                (memory.ratio - 1.0) * 100.0,
                (comparison.criteria.more_memory - 1.0) * 100.0
            );
            regressions.push(Regression { cell: cell.name.clone(), column: MEMORY.to_owned(), what });
        }
    }
    regressions
}
