//! From images to rows of results: features (cached by content), scores, paired differences.

use std::time::Instant;

use anyhow::{Context, Result};
use scalebench_emoji::{Split, emojis, prompt_order, render};
use scalebench_metrics::{
    Crops, FeatureSet, Image, Jackknife, Metric, Preprocess, ReferenceBlocks, Sample, Source, estimate, paired_difference,
};
use serde::Serialize;

use crate::execute::Progress;
use crate::methods::BASELINE;
use crate::plan::{Cell, Plan};
use crate::resolve::{Inputs, Reference, Resolved, Scale};
use crate::results::{Interval, Row, SCORES, published};
use crate::spec::BaseMode;
use crate::store::{Store, Timing};

/// Scores every cell that was asked for.
pub(crate) fn score(resolved: &Resolved, inputs: &Inputs, plan: &Plan, store: &Store, progress: &Progress) -> Result<Vec<Row>> {
    let scorer = Scorer { resolved, inputs, store, progress };
    let mut rows = Vec::new();
    for (model, described) in resolved.models.iter().enumerate() {
        let base = plan.find(model, &Scale::BASE, BASELINE).expect("the planner adds the base cell");
        let base_features = scorer.cell(base, &Preprocess::whole(resolved.metrics.preprocess))?;
        for scale in &resolved.scales {
            let cells: Vec<&Cell> = plan.cells.iter().filter(|c| c.asked_for && c.model == model && c.scale == *scale).collect();
            let Some(first) = cells.first() else { continue };
            let reference = scorer.reference(first.width, first.height)?;
            let whole = Preprocess::whole(resolved.metrics.preprocess);
            let baseline = cells.iter().find(|cell| cell.method_name == BASELINE);
            let baseline = baseline.map(|cell| scorer.cell(cell, &whole)).transpose()?;
            for cell in cells {
                let features = scorer.cell(cell, &whole)?;
                let look = scorer.look_at_base_size(cell, described.width.min(described.height));
                let against_base = match std::ptr::eq(cell, base) {
                    true => None,
                    false => Some(scorer.cell(cell, &look)?),
                };
                let fixed = Jackknife::STANDARD;
                let shared = Jackknife { reference: ReferenceBlocks::Shared, ..fixed };
                let row = || -> Result<Row> {
                    let mut scores = [None; SCORES.len()];
                    for (i, metric) in [Metric::Fid, Metric::KidU].into_iter().enumerate() {
                        scores[i] = Some(Interval::from(estimate(metric, &features, &reference, &fixed)?));
                        if let Some(patches) = &against_base {
                            scores[2 + i] = Some(estimate(metric, patches, &base_features, &shared)?.into());
                        }
                        if let Some(baseline) = baseline.as_ref().filter(|_| cell.method_name != BASELINE) {
                            let pair = ((&features, &reference), (baseline, &reference));
                            scores[4 + i] = Some(paired_difference(metric, pair.0, pair.1, &fixed)?.into());
                        }
                    }
                    let timings = store.all_timings(&cell.name)?;
                    Ok(Row {
                        model: described.name.clone(),
                        scale: cell.scale.factor,
                        width: cell.width,
                        height: cell.height,
                        method: cell.method_name.clone(),
                        n_images: cell.jobs.len() as u64,
                        n_reference: resolved.reference.n_images() as u64,
                        scores,
                        seconds_per_image: mean_seconds(&timings),
                        peak_memory_bytes: timings.iter().filter_map(|t| t.peak_memory_bytes).max(),
                        published: published(&described.family, cell.scale.factor, &cell.method_name),
                    })
                };
                rows.push(row().with_context(|| format!("cell {}", cell.name))?);
            }
        }
    }
    Ok(rows)
}

fn mean_seconds(timings: &[Timing]) -> Option<f64> {
    let sum: f64 = timings.iter().map(|timing| timing.seconds).sum();
    (!timings.is_empty()).then(|| sum / timings.len() as f64)
}

struct Scorer<'a> {
    resolved: &'a Resolved,
    inputs: &'a Inputs,
    store: &'a Store,
    progress: &'a Progress,
}

impl Scorer<'_> {
    /// How an image is looked at when it is compared with images of the base size.
    fn look_at_base_size(&self, cell: &Cell, side: u32) -> Preprocess {
        let metrics = &self.resolved.metrics;
        let whole = Preprocess::whole(metrics.preprocess);
        if cell.scale == Scale::BASE {
            return whole;
        }
        match metrics.fid_b_mode {
            BaseMode::Crops => {
                let crops = Crops { count: metrics.fid_b_crops, size: side, seed: self.resolved.seed };
                Preprocess { crops: Some(crops), ..whole }
            }
            BaseMode::Resize => Preprocess { pre_resize: Some(side), ..whole },
        }
    }

    /// Features of a cell's images; image `i` is group `i`, in every cell.
    fn cell(&self, cell: &Cell, preprocess: &Preprocess) -> Result<FeatureSet> {
        let keys: Vec<&str> = cell.jobs.iter().map(|job| job.key.as_str()).collect();
        let samples = (0..cell.jobs.len()).map(|i| Sample {
            name: format!("{i:06}"),
            group: i as u32,
            source: Source::File(self.store.path(&Store::image(&cell.name, i))),
        });
        self.features(&cell.name, &keys, samples, preprocess)
    }

    /// Features of the reference images for cells of this size.
    fn reference(&self, width: u32, height: u32) -> Result<FeatureSet> {
        let whole = Preprocess::whole(self.resolved.metrics.preprocess);
        match &self.resolved.reference {
            Reference::Emoji { images, seed } => {
                let identity = (&self.resolved.tool, "emoji", seed, images, width, height);
                let pixels = reference_images(*seed, 0..*images, width, height);
                // A drawing that cannot be rendered would be a fault of the embedded set itself.
                let samples = pixels.enumerate().map(|(i, image)| {
                    let image = image.expect("every emoji of the set can be rendered");
                    Sample::image(format!("{i:06}"), i as u32, image)
                });
                self.features(&format!("reference {width}x{height}"), &identity, samples, &whole)
            }
            Reference::Folder { digest, .. } => {
                let samples = self.inputs.reference.iter().enumerate().map(|(i, file)| Sample {
                    name: format!("{i:06}"),
                    group: i as u32,
                    source: Source::File(file.clone()),
                });
                self.features("reference", &("folder", digest), samples, &whole)
            }
        }
    }

    /// Features of `samples`, from the cache if the same content was looked at in the same way.
    fn features(
        &self,
        what: &str,
        identity: &impl Serialize,
        samples: impl ExactSizeIterator<Item = Sample>,
        preprocess: &Preprocess,
    ) -> Result<FeatureSet> {
        let provenance = self.inputs.extractor.provenance(preprocess);
        let key = blake3::hash(serde_json::to_string(&(&provenance, identity))?.as_bytes()).to_hex();
        let path = self.store.path(&format!("features/{}.safetensors", &key[..32]));
        // A damaged cache entry is as good as none.
        if let Ok(features) = FeatureSet::load(&path)
            && features.provenance == provenance
        {
            return Ok(features);
        }
        let folder = path.parent().expect("the features folder");
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let start = Instant::now();
        let n = samples.len();
        let bar = self.progress.bar(n as u64, &format!("features of {what}, {}", preprocess.id()));
        let features = self.inputs.extractor.features(samples, preprocess, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        self.progress.line(&format!("features of {what}, {}: {n} images, {:.1} s", preprocess.id(), start.elapsed().as_secs_f64()));
        features.save(&path)?;
        Ok(features)
    }
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
