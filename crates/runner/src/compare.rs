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
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::{FeatureSet, Jackknife, Metric, Preprocess, Provenance, Stored, Tap, estimate, measure, paired_difference};
use serde::Serialize;

use crate::cli::{Clock, Shard};
use crate::execute::{RUN_FILE, RunFile};
use crate::plan::{Outline, cell_name, outline};
use crate::protocol::{Against, Comparison as Columns};
use crate::resolve::{Model, Reference, Resolved, Scale, difference};
use crate::results::{Interval, label, metric_of};
use crate::score::{Other, feature_file, prompt_scores_identity, reference_identity};
use crate::stats::{holm, median, signed_rank, smallest_signed_rank, t_quantile, t_test, welch_degrees};
use crate::store::{ManifestLine, Store, Timing};
use crate::verdicts::{MEBIBYTE, change, number, probability};

/// Fewest images that a difference with an interval can be computed from.
const MIN_IMAGES: usize = 3;

/// The column of times, beside those of the protocol.
pub(crate) const SPEED: &str = "seconds_per_image";

/// The column of memory.
pub(crate) const MEMORY: &str = "peak_memory_bytes";

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

impl Serialize for Interval {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written {
            value: f64,
            lo: f64,
            hi: f64,
        }
        let Interval { value, lo, hi } = *self;
        Written { value, lo, hi }.serialize(serializer)
    }
}

/// A finished run, or what was kept of one.
pub(crate) struct Run {
    shown: String,
    store: Store,
    pub(crate) resolved: Resolved,
    pub(crate) cells: Vec<RunCell>,
}

/// One cell of it.
pub(crate) struct RunCell {
    pub(crate) outline: Outline,
    pub(crate) manifest: Vec<ManifestLine>,
}

/// Features of a cell and of what it is compared with, for one column.
struct Sides {
    generated: FeatureSet,
    other: Other,
}

impl Run {
    /// Reads the description and the manifests of a run.
    pub(crate) fn open(folder: &Path) -> Result<Run> {
        let shown = folder.display().to_string();
        ensure!(folder.is_dir(), "{shown}: expected a run directory, found none");
        let store = Store::new(folder, Shard::WHOLE);
        let resolved = RunFile::read(&store)?.experiment;
        let cell = |outline: Outline| -> Result<RunCell> {
            let file = manifest_file(&outline.name);
            let manifest: Vec<ManifestLine> = store.read_lines(&file)?;
            ensure!(
                manifest.len() == resolved.images,
                "{}: expected {} images of a finished run, found {}",
                store.path(&file).display(),
                resolved.images,
                manifest.len()
            );
            Ok(RunCell { outline, manifest })
        };
        let cells = outline(&resolved).into_iter().map(cell).collect::<Result<_>>()?;
        Ok(Run { shown, store, resolved, cells })
    }

    /// What every file is called that [`Run::open`] and the comparison read, relative to the run directory.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let mut files = vec![RUN_FILE.to_owned()];
        for cell in &self.cells {
            files.push(manifest_file(&cell.outline.name));
            files.extend(self.store.timing_files(&cell.outline.name));
            for columns in &self.resolved.metrics.protocol.compare {
                for metric in &columns.metrics {
                    files.extend(self.generated_file(cell, columns, *metric)?);
                    files.extend(self.other_file(cell, columns, *metric)?);
                }
            }
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn find(&self, name: &str) -> Option<&RunCell> {
        self.cells.iter().find(|cell| cell.outline.name == name)
    }

    fn size(&self, cell: &Outline) -> Result<(u32, u32)> {
        self.resolved.models[cell.model].size(&cell.scale)
    }

    fn base_size(&self, cell: &Outline) -> u32 {
        let model = &self.resolved.models[cell.model];
        model.width.min(model.height)
    }

    pub(crate) fn provenance(&self, columns: &Columns, tap: Tap, preprocess: Preprocess) -> Result<Provenance> {
        let network = self.resolved.metrics.networks.iter().find(|network| network.network == columns.network);
        let network = network.with_context(|| format!("{}: {RUN_FILE}: expected {:?} among the networks", self.shown, columns.network))?;
        Ok(network.provenance(tap, preprocess))
    }

    /// The feature file of a cell's images for a metric; None where the cell would be compared with itself, was not asked for, or the
    /// reference cannot serve the metric.
    pub(crate) fn generated_file(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<String>> {
        let is_base = cell.outline.scale == Scale::BASE && cell.outline.method == self.resolved.base_method(cell.outline.seed);
        let is_absent = self.resolved.absence(columns, metric).is_some();
        if !cell.outline.asked_for || is_absent || is_base && columns.against == Against::Base {
            return Ok(None);
        }
        let preprocess = columns.generated(self.resolved.seed, self.base_size(&cell.outline), self.size(&cell.outline)?);
        let keys = keys(&cell.manifest);
        let provenance = self.provenance(columns, metric.tap(), preprocess)?;
        let file = match columns.against {
            Against::Prompts => feature_file(&provenance, &prompt_scores_identity(&keys))?,
            Against::Reference | Against::Base => feature_file(&provenance, &keys)?,
        };
        Ok(Some(file))
    }

    /// The feature file of what a cell is compared with.
    pub(crate) fn other_file(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<String>> {
        if !cell.outline.asked_for || !metric.needs_reference() || self.resolved.absence(columns, metric).is_some() {
            return Ok(None);
        }
        let (seed, base) = (self.resolved.seed, self.base_size(&cell.outline));
        let file = match columns.against {
            Against::Prompts => return Ok(None),
            Against::Reference => {
                let (width, height) = self.size(&cell.outline)?;
                let provenance = self.provenance(columns, Tap::Features, columns.other(seed, base, (width, height)))?;
                feature_file(&provenance, &reference_identity(&self.resolved, width, height))?
            }
            Against::Base => {
                let model = &self.resolved.models[cell.outline.model];
                let name = cell_name(&model.name, &Scale::BASE, &self.resolved.base_method(cell.outline.seed));
                let base_cell = self.find(&name).with_context(|| format!("{}: cell {name} is missing", self.shown))?;
                let provenance = self.provenance(columns, Tap::Features, columns.other(seed, base, self.size(&base_cell.outline)?))?;
                feature_file(&provenance, &keys(&base_cell.manifest))?
            }
        };
        Ok(Some(file))
    }

    fn stored(&self, file: &str) -> Result<Other> {
        let path = self.store.path(file);
        let again = || format!("{}: expected the features of a finished run; the same `scalebench sweep` restores them", self.shown);
        ensure!(path.is_file(), "{} ({} is missing)", again(), file);
        match Stored::load(&path).with_context(again)? {
            Stored::Features(features) => Ok(Other::Features(features)),
            Stored::Statistics(found) => Ok(Other::Statistics(found.statistics)),
            Stored::Array(_) => bail!("{} ({file} is of another tool)", again()),
        }
    }

    fn features(&self, file: &str) -> Result<FeatureSet> {
        match self.stored(file)? {
            Other::Features(features) => Ok(features),
            Other::Statistics(_) | Other::None => bail!("{}: {file}: expected features, found statistics", self.shown),
        }
    }

    /// Both sides of a column; None where the column is empty for this cell.
    fn sides(&self, cell: &RunCell, columns: &Columns, metric: Metric) -> Result<Option<Sides>> {
        let Some(generated) = self.generated_file(cell, columns, metric)? else { return Ok(None) };
        let other = self.other_file(cell, columns, metric)?.map(|file| self.stored(&file)).transpose()?;
        Ok(Some(Sides { generated: self.features(&generated)?, other: other.unwrap_or(Other::None) }))
    }

    /// Digests of a cell's image files and of the features that its columns are computed from.
    pub(crate) fn digests(&self, cell: &str) -> Result<(String, String)> {
        let cell = self.find(cell).with_context(|| format!("{}: cell {cell} is missing", self.shown))?;
        let (mut images, mut features) = (blake3::Hasher::new(), blake3::Hasher::new());
        for line in &cell.manifest {
            images.update(line.blake3.as_bytes());
        }
        for columns in &self.resolved.metrics.protocol.compare {
            for metric in &columns.metrics {
                if let Some(file) = self.generated_file(cell, columns, *metric)? {
                    self.features(&file)?.data.iter().for_each(|value| {
                        features.update(&value.to_le_bytes());
                    });
                }
            }
        }
        Ok((images.finalize().to_string(), features.finalize().to_string()))
    }
}

pub(crate) fn manifest_file(cell: &str) -> String {
    format!("cells/{cell}/manifest.jsonl")
}

fn keys(manifest: &[ManifestLine]) -> Vec<&str> {
    manifest.iter().map(|line| line.key.as_str()).collect()
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
    note("", Resolved { images: run.images, ..baseline.clone() })?;
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
    let (pairing, pairs) = pair(&a.manifest, &b.manifest);
    ensure!(pairs.len() >= MIN_IMAGES, "expected at least {MIN_IMAGES} images that both runs have, found {}", pairs.len());
    let whole = pairs.len() == a.manifest.len() && pairs.len() == b.manifest.len();
    let changed = pairs.iter().filter(|(i, j)| a.manifest[*i].blake3 != b.manifest[*j].blake3).count();
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
    let timings = (baseline.store.all_timings(&a.outline.name)?, run.store.all_timings(&b.outline.name)?);
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
fn pair(a: &[ManifestLine], b: &[ManifestLine]) -> (Pairing, Vec<(usize, usize)>) {
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

impl Sides {
    /// Whether everything that a metric looks at is the same to the last bit.
    fn is_same(&self, other: &Sides) -> bool {
        let same = |a: &FeatureSet, b: &FeatureSet| a.dim == b.dim && a.groups == b.groups && bits(&a.data).eq(bits(&b.data));
        let others = match (&self.other, &other.other) {
            (Other::Features(a), Other::Features(b)) => same(a, b),
            // Of one digest, or the runs would not be compared.
            (Other::Statistics(_), Other::Statistics(_)) | (Other::None, Other::None) => true,
            _ => false,
        };
        others && same(&self.generated, &other.generated)
    }

    /// The sides of the images `indices`; the k-th becomes group k.
    fn select(&self, indices: impl Iterator<Item = usize> + Clone, columns: &Columns) -> Sides {
        let other = match (&self.other, columns.against) {
            (Other::Features(other), Against::Base) => Other::Features(select(other, indices.clone())),
            (Other::Features(other), Against::Reference | Against::Prompts) => Other::Features(other.clone()),
            (Other::Statistics(other), _) => Other::Statistics(other.clone()),
            (Other::None, _) => Other::None,
        };
        Sides { generated: select(&self.generated, indices), other }
    }
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// The rows of the groups `indices`, in their order; the k-th becomes group k.
fn select(set: &FeatureSet, indices: impl Iterator<Item = usize>) -> FeatureSet {
    let mut rows: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, group) in set.groups.iter().enumerate() {
        rows.entry(*group).or_default().push(row);
    }
    let mut selected =
        FeatureSet { names: Vec::new(), groups: Vec::new(), data: Vec::new(), dim: set.dim, provenance: set.provenance.clone() };
    for (k, index) in indices.enumerate() {
        for row in rows.get(&(index as u32)).into_iter().flatten() {
            selected.names.push(set.names[*row].clone());
            selected.groups.push(k as u32);
            selected.data.extend(&set.data[row * set.dim..(row + 1) * set.dim]);
        }
    }
    selected
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::{Change, PLAIN, resolved, write};
    use crate::verdicts::{junit, text};

    const CRITERIA: Criteria = Criteria { alpha: 0.05, slow_down: 1.2, clock: Clock::Wall, more_memory: 1.1 };
    const ALL: Costs = Costs { speed: true, memory: true };

    /// Writes and compares two runs.
    fn check(before: (&Resolved, &Change), now: (&Resolved, &Change)) -> Result<Comparison> {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["before", "now"].map(|name| dir.path().join(name));
        write(&a, before.0, before.1);
        write(&b, now.0, now.1);
        compare(&Run::open(&a)?, &Run::open(&b)?, CRITERIA, ALL)
    }

    fn worse(comparison: &Comparison) -> Vec<(&str, &str)> {
        comparison.regressions.iter().map(|found| (found.cell.as_str(), found.column.as_str())).collect()
    }

    #[test]
    fn the_same_run_is_identical() {
        let plain = resolved(16);
        let comparison = check((&plain, &PLAIN), (&plain, &PLAIN)).unwrap();
        assert!(comparison.regressions.is_empty() && comparison.notes.is_empty(), "{comparison:?}");
        assert_eq!(comparison.cells.iter().map(|cell| cell.scores.len()).collect::<Vec<_>>(), [0, 4, 4]);
        for cell in &comparison.cells {
            assert_eq!((cell.pairing, cell.changed_images), (Pairing::PromptAndSeed, Some(0)));
            assert!(cell.scores.iter().all(|score| score.verdict == Verdict::Identical && score.difference.value == 0.0));
            assert_eq!(cell.speed.as_ref().unwrap().ratio, 1.0);
        }
        assert!(text(&comparison).ends_with("no regression\n"));
    }

    /// One cell is drawn from elsewhere: it is named, the other one is not, and its mirror image is an improvement.
    #[test]
    fn worse_quality_is_caught_and_named() {
        let plain = resolved(24);
        let changed = Change { worse: Some(("m/4x-other", -0.5)), ..PLAIN };
        let comparison = check((&plain, &PLAIN), (&plain, &changed)).unwrap();
        let found = worse(&comparison);
        assert!(found.contains(&("m/4x-other", "fid_r")) && found.iter().all(|(cell, _)| *cell == "m/4x-other"), "{comparison:?}");
        let shown = text(&comparison);
        assert!(shown.contains("regression: m/4x-other: FID_r is worse"), "{shown}");
        assert!(shown.contains("m/4x-other: 24 images paired by prompt and seed, 24 differ"), "{shown}");
        let score = &comparison.cells[2].scores[0];
        assert!((score.baseline + score.difference.value - score.run).abs() < 1e-9);
        let back = check((&plain, &changed), (&plain, &PLAIN)).unwrap();
        assert!(back.regressions.is_empty());
        assert_eq!(back.cells[2].scores[0].verdict, Verdict::Better);
        assert!((back.cells[2].scores[0].difference.value + score.difference.value).abs() < 1e-9);
    }

    #[test]
    fn a_slow_down_is_caught_and_named() {
        let ratio = |ratio: f64, images: usize| {
            let plain = resolved(images);
            let changed = Change { slower: Some(("m/4x-other", ratio)), ..PLAIN };
            check((&plain, &PLAIN), (&plain, &changed)).unwrap()
        };
        let slower = ratio(1.3, 16);
        assert_eq!(worse(&slower), [("m/4x-other", SPEED)]);
        assert_eq!(slower.cells[2].speed.as_ref().unwrap().test, CostTest::SignedRank);
        assert!(text(&slower).contains("regression: m/4x-other: slower"), "{}", text(&slower));
        assert!(slower.cells.iter().all(|cell| cell.scores.iter().all(|score| score.verdict == Verdict::Identical)));
        let faster = ratio(1.0 / 1.3, 16);
        assert_eq!(faster.cells[2].speed.as_ref().unwrap().verdict, Verdict::Better);
        let little = ratio(1.08, 16);
        assert!(worse(&faster).is_empty() && worse(&little).is_empty());
        assert!(little.cells.iter().all(|cell| cell.speed.as_ref().unwrap().verdict == Verdict::WithinLimit), "{little:?}");
        // The processor had no more to do, so by its clock nothing happened; the wall clock's regression says so.
        assert!(text(&slower).contains("; processor s/image +0 %)"), "{}", text(&slower));
        // Four images cannot decide among three cells: the ratio does.
        let few = ratio(1.5, 4);
        assert_eq!((worse(&few), few.cells[2].speed.as_ref().unwrap().test), (vec![("m/4x-other", SPEED)], CostTest::Threshold));
    }

    #[test]
    fn costs_that_are_not_judged_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["before", "now"].map(|name| dir.path().join(name));
        write(&a, &resolved(8), &PLAIN);
        write(&b, &resolved(8), &Change { slower: Some(("m/4x-other", 3.0)), larger: Some(("m/4x-other", 1.5)), ..PLAIN });
        let (a, b) = (Run::open(&a).unwrap(), Run::open(&b).unwrap());
        let columns = |clock, speed, memory| -> Vec<String> {
            let comparison = compare(&a, &b, Criteria { clock, ..CRITERIA }, Costs { speed, memory }).unwrap();
            assert!(comparison.cells.iter().all(|cell| (cell.speed.is_some(), cell.memory.is_some()) == (speed, memory)));
            comparison.regressions.into_iter().map(|found| found.column).collect()
        };
        assert_eq!(columns(Clock::Wall, true, true), [SPEED, MEMORY]);
        assert_eq!(columns(Clock::Processor, true, true), [MEMORY]);
        assert_eq!(columns(Clock::Wall, true, false), [SPEED]);
        assert_eq!(columns(Clock::Wall, false, false), [""; 0]);
    }

    /// By how much counts, and that it is more than pages that come and go.
    #[test]
    fn more_memory_is_caught_and_named() {
        let plain = resolved(24);
        let with = |ratio| check((&plain, &PLAIN), (&plain, &Change { larger: Some(("m/4x-other", ratio)), ..PLAIN })).unwrap();
        let comparison = with(1.3);
        assert_eq!(worse(&comparison), [("m/4x-other", MEMORY)]);
        let shown = text(&comparison);
        assert!(shown.contains("regression: m/4x-other: more memory, ") && shown.contains(" MiB: +30 % (limit +10 %)"), "{shown}");
        let verdicts = |comparison: &Comparison| -> Vec<Verdict> {
            comparison.cells.iter().filter_map(|cell| Some(cell.memory.as_ref()?.verdict)).collect()
        };
        use Verdict::{Better, WithinLimit, Worse};
        assert_eq!(verdicts(&comparison), [WithinLimit, WithinLimit, Worse]);
        assert_eq!(verdicts(&with(1.05)), [WithinLimit; 3]);
        assert_eq!(verdicts(&with(0.8)), [WithinLimit, WithinLimit, Better]);
    }

    #[test]
    fn images_are_paired_as_far_as_they_can_be() {
        let line = |prompt: &str, seed| ManifestLine { index: 0, prompt: prompt.into(), seed, key: String::new(), blake3: String::new() };
        let a = [line("cat", 0), line("dog", 1), line("cat", 0), line("owl", 3)];
        // What repeats is matched in order; what only one side has is left out.
        let b = [line("owl", 3), line("cat", 0), line("cat", 0)];
        assert_eq!(pair(&a, &b), (Pairing::PromptAndSeed, vec![(0, 1), (2, 2), (3, 0)]));
        let seeds = [line("cat", 7), line("dog", 8), line("owl", 3)];
        assert_eq!(pair(&a, &seeds), (Pairing::Prompt, vec![(0, 0), (1, 1), (3, 2)]));
        let others = [line("ape", 0), line("bee", 1)];
        assert_eq!(pair(&a, &others), (Pairing::Unpaired, vec![(0, 0), (1, 1)]));

        let plain = resolved(12);
        let seed = Resolved { seed: 100, ..plain.clone() };
        let comparison = check((&plain, &PLAIN), (&seed, &Change { draw: 1, ..PLAIN })).unwrap();
        assert!(comparison.cells.iter().all(|cell| cell.pairing == Pairing::Prompt && cell.changed_images.is_none()));
        assert!(comparison.notes.iter().any(|note| note.contains("seed is 0 there and 100 here")), "{:?}", comparison.notes);
        assert!(text(&comparison).contains("paired by prompt, other seeds"));
        let prompts = check((&plain, &PLAIN), (&seed, &Change { draw: 1, first_prompt: 50, ..PLAIN })).unwrap();
        assert!(prompts.cells.iter().all(|cell| cell.pairing == Pairing::Unpaired));
        assert!(text(&prompts).contains("unpaired: other prompts"));
        // Fewer images of the same kind: those that both have.
        let fewer = check((&plain, &PLAIN), (&resolved(8), &PLAIN)).unwrap();
        assert!(fewer.cells.iter().all(|cell| (cell.images, cell.changed_images) == (8, Some(0))));
        assert!(fewer.regressions.is_empty());
    }

    #[test]
    fn what_differs_is_said_or_refused() {
        let plain = resolved(8);
        let mut other = plain.clone();
        other.methods[1].name = "new".into();
        other.methods[0].settings = serde_yaml::Value::from(3);
        other.sampler.steps = 5;
        let comparison = check((&plain, &PLAIN), (&other, &PLAIN)).unwrap();
        assert_eq!(
            (&comparison.only_in_baseline[..], &comparison.only_in_run[..]),
            (&["m/4x-other".to_owned()][..], &["m/4x-new".to_owned()][..])
        );
        let notes = comparison.notes.join("; ");
        assert!(notes.contains("sampler.steps is 2 there and 5 here") && notes.contains("method direct-inf: "), "{notes}");
        let shown = text(&comparison);
        assert!(shown.contains("only in") && shown.contains("m/4x-new"), "{shown}");

        let mut reference = plain.clone();
        reference.reference = Reference::Emoji { images: 65, seed: 0 };
        let error = format!("{:#}", check((&plain, &PLAIN), (&reference, &PLAIN)).unwrap_err());
        assert!(error.contains("measure different things: reference.images is 64 there and 65 here"), "{error}");
        let mut all = plain.clone();
        all.models[0].name = "n".into();
        let error = format!("{:#}", check((&plain, &PLAIN), (&all, &PLAIN)).unwrap_err());
        assert!(error.contains("no cell in common"), "{error}");
    }

    #[test]
    fn incomplete_runs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |folder: &Path| format!("{:#}", Run::open(folder).err().expect("an error"));
        assert!(open(&dir.path().join("none")).contains("none: expected a run directory"));
        assert!(open(dir.path()).contains("run.yaml: expected the description of a run"));
        write(dir.path(), &resolved(8), &PLAIN);
        let run = Run::open(dir.path()).unwrap();
        let feature = run.files().unwrap().into_iter().find(|file| file.starts_with("features/")).unwrap();
        let manifest = dir.path().join(manifest_file("m/4x-other"));
        let lines = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(&manifest, lines.lines().next().unwrap()).unwrap();
        let error = open(dir.path());
        assert!(error.contains("manifest.jsonl: expected 8 images of a finished run, found 1"), "{error}");
        std::fs::remove_file(dir.path().join(&feature)).unwrap();
        let error = format!("{:#}", compare(&run, &run, CRITERIA, ALL).unwrap_err());
        assert!(error.contains("expected the features of a finished run") && error.contains(&feature), "{error}");
        let refused =
            [Criteria { alpha: 1.0, ..CRITERIA }, Criteria { slow_down: 1.0, ..CRITERIA }, Criteria { more_memory: 0.9, ..CRITERIA }];
        assert!(refused.into_iter().all(|criteria| criteria.check().is_err()));
    }

    #[test]
    fn junit_is_xml_that_counts() {
        let plain = resolved(24);
        let changed = Change { worse: Some(("m/4x-other", -0.5)), slower: Some(("m/1x-direct-inf", 1.6)), ..PLAIN };
        let mut comparison = check((&plain, &PLAIN), (&plain, &changed)).unwrap();
        comparison.only_in_run.push("a <b> & \"c\"\u{1}".into());
        let xml = junit(&comparison);
        let document = roxmltree::Document::parse(&xml).unwrap();
        let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).unwrap();
        let cases: Vec<_> = suite.children().filter(|node| node.has_tag_name("testcase")).collect();
        let failed: Vec<_> = cases.iter().filter(|case| case.children().any(|node| node.has_tag_name("failure"))).collect();
        assert_eq!(suite.attribute("tests"), Some(cases.len().to_string().as_str()));
        // Two cells of four columns, three times, three peaks of memory, one cell of one side.
        assert_eq!(cases.len(), 15);
        assert_eq!(suite.attribute("failures"), Some(failed.len().to_string().as_str()));
        let named: Vec<_> = failed.iter().map(|case| (case.attribute("classname").unwrap(), case.attribute("name").unwrap())).collect();
        assert_eq!(named, worse(&comparison));
        assert!(named.contains(&("m/4x-other", "fid_r")) && named.contains(&("m/1x-direct-inf", SPEED)), "{named:?}");
        assert!(cases.iter().any(|case| case.attribute("classname") == Some("a <b> & \"c\"?")));
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!(json["regressions"][0]["cell"], failed[0].attribute("classname").unwrap());
        assert_eq!(json["cells"][0]["pairing"], "prompt-and-seed");
    }

    /// Runs that differ in nothing but what was drawn raise alarms no more often than was said: `alpha` for a regression
    /// or an improvement together. Prints the rates for `--nocapture`; `crates/README.md` has those of 200 repeats.
    #[test]
    fn false_alarms_keep_the_level() {
        const REPEATS: u64 = 20;
        let rate = |images: usize, pairing: Pairing| {
            let plain = resolved(images);
            let other = Resolved { seed: 1000, ..plain.clone() };
            let first_prompt = if pairing == Pairing::Unpaired { 500 } else { 0 };
            let (mut alarms, mut regressed) = (0, 0);
            for draw in 0..REPEATS {
                let changes = [Change { draw: 2 * draw, ..PLAIN }, Change { draw: 2 * draw + 1, first_prompt, ..PLAIN }];
                let comparison = check((&plain, &changes[0]), (&other, &changes[1])).unwrap();
                assert!(comparison.cells.iter().all(|cell| cell.pairing == pairing));
                let decided = |score: &Score| matches!(score.verdict, Verdict::Better | Verdict::Worse);
                alarms += u64::from(comparison.cells.iter().any(|cell| cell.scores.iter().any(decided)));
                regressed += u64::from(!comparison.regressions.is_empty());
            }
            eprintln!("{images} images, {pairing:?}: {alarms} of {REPEATS} decided, {regressed} regressed");
            (alarms, regressed)
        };
        for (images, pairing) in [(8, Pairing::Prompt), (16, Pairing::Prompt), (32, Pairing::Prompt), (16, Pairing::Unpaired)] {
            let (alarms, regressed) = rate(images, pairing);
            // More than 4 of 20 at 5 % happen once in 400 times.
            assert!(alarms <= 4 && regressed <= 4, "{images} {pairing:?}: {alarms} {regressed}");
        }
    }
}
