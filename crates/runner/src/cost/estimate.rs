//! What a sweep costs, before it is paid: passes and operations by counting, seconds and memory by a short calibration.
//!
//! Of every image size a few steps are timed, plain ones and ones in which the method acts, and the decoder once. Seconds of a
//! whole image follow from the passes of its steps. Calibrations are kept beside other caches, since the same experiment is
//! asked for again and again with other numbers of images.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use scalebench_generation::journey::{Start, Through};
use scalebench_generation::step::Step;
use scalebench_generation::{Blueprint, Method, Request, StageSteps, Trace, beside};
use serde::Serialize;
use serde_json::json;

use crate::cost::calibration::{Cache, Speed};
use crate::experiment::plan::{Cell, Plan, Work};
use crate::experiment::resolve::Inputs;
use crate::experiment::resolved::Resolved;
use crate::host::machine::Machine;
use crate::host::memory;
use crate::run::flops::{Finishing, Flops};
use crate::run::images::{Sharing, missing};
use crate::run::shard::Shard;
use crate::run::store::Store;
use crate::words::table::aligned;
use crate::words::time::duration;

/// Longest calibration of one size, in seconds; what would take longer is extrapolated from smaller sizes.
const PATIENCE: f64 = 60.0;

/// Plain steps of a calibration: one to warm up, and what is timed.
const PLAIN_STEPS: usize = 3;

/// What an experiment makes and takes.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    experiment: String,
    machine: Machine,
    cells: Vec<CellCost>,
    total: Total,
}

#[derive(Debug, Serialize)]
struct CellCost {
    cell: String,
    width: u32,
    height: u32,
    /// Images of this shard, those of them that are there, and those that are not.
    images: usize,
    done: usize,
    to_do: usize,
    /// Sampling steps of an image, and the passes through the U-Net that they make.
    steps: usize,
    passes: usize,
    /// Floating-point operations of an image: its passes and its decoding.
    flops_per_image: f64,
    seconds_per_image: Option<f64>,
    /// Of all that is to do.
    hours: Option<f64>,
    peak_memory_bytes: Option<u64>,
    /// Whether the seconds were not measured at this size, but follow from operations and the speed at a smaller one.
    extrapolated: bool,
}

#[derive(Debug, Default, Serialize)]
struct Total {
    images: usize,
    done: usize,
    to_do: usize,
    passes: usize,
    flops: f64,
    /// None where there is something to do of which nobody knows how long it takes.
    hours: Option<f64>,
}

impl CellCost {
    /// Of images that another program made: they cost nothing here.
    fn of_brought(cell: &Cell, images: usize, to_do: usize) -> CellCost {
        CellCost {
            cell: cell.name.clone(),
            width: cell.width,
            height: cell.height,
            images,
            done: images - to_do,
            to_do,
            steps: 0,
            passes: 0,
            flops_per_image: 0.0,
            seconds_per_image: None,
            hours: Some(0.0),
            peak_memory_bytes: None,
            extrapolated: false,
        }
    }
}

/// Counts and calibrates.
pub(crate) fn estimate(resolved: &Resolved, plan: &Plan, inputs: &Inputs, store: &Store, shard: Shard) -> Result<Cost> {
    let machine = Machine::here();
    let mut calibrator = Calibrator { inputs, cache: Cache::open(&machine)?, largest: BTreeMap::new() };
    let mut cells: Vec<Option<CellCost>> = plan.cells.iter().map(|_| None).collect();
    // The small ones first: they tell how long the large ones would take to calibrate.
    let mut order: Vec<usize> = (0..plan.cells.len()).collect();
    order.sort_by_key(|i| u64::from(plan.cells[*i].width) * u64::from(plan.cells[*i].height));
    for i in order {
        let cell = &plan.cells[i];
        let held = (0..cell.jobs.len()).filter(|image| shard.holds(*image)).count();
        let missing = missing(cell, store, shard)?;
        cells[i] = Some(calibrator.cell(cell, held, missing.len()).with_context(|| format!("cell {}", cell.name))?);
    }
    calibrator.cache.save();
    let cells: Vec<CellCost> = cells.into_iter().flatten().collect();
    let mut total = Total { hours: cells.iter().map(|cell| cell.hours).sum(), ..Total::default() };
    for cell in &cells {
        total.images += cell.images;
        total.done += cell.done;
        total.to_do += cell.to_do;
        total.passes += cell.passes * cell.to_do;
        total.flops += cell.flops_per_image * cell.to_do as f64;
    }
    Ok(Cost { experiment: resolved.name.clone(), machine, cells, total })
}

impl Cost {
    /// The table for people.
    pub(crate) fn text(&self) -> String {
        let head = ["cell", "size", "images", "done", "to do", "steps", "passes", "TFLOP/image", "s/image", "time", "MiB"];
        let mut lines = vec![head.map(String::from).to_vec()];
        for cell in &self.cells {
            let about = if cell.extrapolated { "~" } else { "" };
            let shown = |value: Option<f64>, show: &dyn Fn(f64) -> String| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{about}{}", show(value)))
            };
            lines.push(vec![
                cell.cell.clone(),
                format!("{}x{}", cell.width, cell.height),
                cell.images.to_string(),
                cell.done.to_string(),
                cell.to_do.to_string(),
                cell.steps.to_string(),
                cell.passes.to_string(),
                significant(cell.flops_per_image / 1e12),
                shown(cell.seconds_per_image, &|seconds| format!("{seconds:.2}")),
                shown(cell.hours, &|hours| duration(hours * 3600.0)),
                cell.peak_memory_bytes.map_or_else(|| "–".to_owned(), |bytes| format!("{:.0}", bytes as f64 / f64::from(1 << 20))),
            ]);
        }
        let Total { images, done, to_do, passes, flops, hours } = &self.total;
        let mut text = aligned(&lines);
        let time = hours.map_or_else(|| "a time unknown without the checkpoint".to_owned(), |h| format!("about {}", duration(h * 3600.0)));
        text += &format!("{images} images, {done} done, {to_do} to make in {time}: ");
        text += &format!("{passes} U-Net passes, {} TFLOP; on {}\n", significant(flops / 1e12), self.machine);
        if self.cells.iter().any(|cell| cell.extrapolated) {
            text += "~ from the operations and the speed at a smaller size: a calibration would take over a minute\n";
        }
        text
    }
}

/// Three significant digits.
fn significant(x: f64) -> String {
    let magnitude = if x > 0.0 { x.log10().floor() as i32 } else { 0 };
    format!("{x:.digits$}", digits = (2 - magnitude).clamp(0, 6) as usize)
}

struct Calibrator<'a> {
    inputs: &'a Inputs,
    cache: Cache,
    /// Of each model: the plain speed at the largest size that was measured, and the operations of a pass and of the decoder there.
    largest: BTreeMap<usize, (Speed, f64, f64)>,
}

/// What is known of an image before anything is timed.
struct Counted {
    run: Vec<StageSteps>,
    unet: Flops,
    /// Latent (height, width) of the image.
    latent: (usize, usize),
    /// Evaluations of the U-Net.
    passes: usize,
    /// Operations of a plain pass at full size, of the decoder, and of the last stage.
    of_pass: f64,
    of_decoder: f64,
    of_run: f64,
    /// Operations of all stages before the last one, and of both ways through the autoencoder where a stage starts from the image of
    /// the one before.
    before: f64,
    /// Of what becomes of the finished image.
    finishing: Finishing,
}

impl Counted {
    fn of(checkpoint: &Blueprint, request: &Request, method: &Method) -> Result<Counted> {
        let unet = Flops::unet_of_videos(checkpoint, request.frames)?;
        let decoder = Flops::decoder(checkpoint)?.with_frames(request.frames);
        let run = checkpoint.outline(request, method)?;
        let (last, before) = run.split_last().context("a run without stages")?;
        // That of the image, or of the smaller one that is enlarged when it is finished.
        let latent = last.stage.latent;
        let of_all = |stage: &StageSteps| -> usize { stage.steps.iter().map(|step| evaluations(step, stage.stage.latent)).sum() };
        let of_stage = |stage: &StageSteps| unet.of_stage(checkpoint.sites(), stage);
        let before = before.iter().zip(&run[1..]).map(|(stage, next)| {
            let through = matches!(&next.stage.start, Start::Enlarged(enlarge) if enlarge.through != Through::Latents);
            let ways = if through { decoder.at(stage.stage.latent) + decoder.at(next.stage.latent) } else { 0.0 };
            of_stage(stage) + ways
        });
        let (before, of_run, passes) = (before.sum(), of_stage(last), run.iter().map(of_all).sum());
        let finishing = Finishing::of(checkpoint, request, method)?;
        Ok(Counted { of_pass: unet.at(latent), of_decoder: decoder.at(latent), of_run, before, passes, latent, unet, run, finishing })
    }

    /// Steps of the last stage.
    fn last(&self) -> &[Step] {
        self.run.last().map_or(&[], |stage| &stage.steps)
    }
}

struct Timed {
    seconds_per_image: f64,
    peak_memory_bytes: Option<u64>,
    extrapolated: bool,
}

impl Calibrator<'_> {
    fn cell(&mut self, cell: &Cell, images: usize, to_do: usize) -> Result<CellCost> {
        let Work::Sample(method) = &cell.work else { return Ok(CellCost::of_brought(cell, images, to_do)) };
        let counted = Counted::of(&self.inputs.blueprints[cell.model], &cell.jobs[0].request, method)?;
        let timed = match self.inputs.pipelines.get(cell.model) {
            Some(_) if to_do > 0 => Some(self.timed(cell, method, &counted)?),
            _ => None,
        };
        let seconds_per_image = timed.as_ref().map(|timed| timed.seconds_per_image);
        Ok(CellCost {
            cell: cell.name.clone(),
            width: cell.width,
            height: cell.height,
            images,
            done: images - to_do,
            to_do,
            steps: counted.run.iter().map(|stage| stage.steps.len()).sum::<usize>() + counted.finishing.steps,
            passes: counted.passes + counted.finishing.passes,
            flops_per_image: counted.of_run + counted.of_decoder + counted.before + counted.finishing.unet + counted.finishing.decoder,
            seconds_per_image,
            hours: if to_do == 0 { Some(0.0) } else { seconds_per_image.map(|seconds| seconds * to_do as f64 / 3600.0) },
            peak_memory_bytes: timed.as_ref().and_then(|timed| timed.peak_memory_bytes),
            extrapolated: timed.is_some_and(|timed| timed.extrapolated),
        })
    }

    /// How long an image takes, by steps that are timed.
    fn timed(&mut self, cell: &Cell, method: &Method, counted: &Counted) -> Result<Timed> {
        let pipeline = &self.inputs.pipelines[cell.model];
        let request = &cell.jobs[0].request;
        if pipeline.ending(request, method)?.is_some() {
            // Another size, and another network: a step of each is timed.
            pipeline.embed_ahead([request])?;
            memory::release();
            memory::reset_peak();
            let seconds_per_image = pipeline.estimate_seconds(request, method)?;
            return Ok(Timed { seconds_per_image, peak_memory_bytes: memory::peak(), extrapolated: false });
        }
        let Counted { unet, latent, of_pass, of_decoder, .. } = counted;
        let plain_passes = pipeline.outline(&cell.jobs[0].request, &Method::direct(pipeline.sites()))?[0].steps[0].views[0].passes.len();
        let calibration = PLAIN_STEPS as f64 * plain_passes as f64 * of_pass;
        let steps = counted.last();
        let active: Option<&Step> = steps.iter().find(|step| !step.is_plain());
        let expected = self
            .largest
            .get(&cell.model)
            .map(|(speed, pass, decoder)| calibration * (speed.seconds_per_pass / pass) + of_decoder * (speed.seconds_to_decode / decoder));
        let (mut extrapolated, mut peak_memory_bytes) = (false, None);
        let (plain, acting) = match (expected.filter(|seconds| *seconds > PATIENCE), self.largest.get(&cell.model)) {
            (Some(_), Some((speed, pass, decoder))) => {
                extrapolated = true;
                let speed = Speed {
                    seconds_per_pass: speed.seconds_per_pass * of_pass / pass,
                    seconds_to_decode: speed.seconds_to_decode * of_decoder / decoder,
                    peak_memory_bytes: None,
                };
                (speed, speed)
            }
            _ => {
                let plain = self.speed(cell, &Method::direct(pipeline.sites()), unet, PLAIN_STEPS, None)?;
                let acting = active.map(|step| self.speed(cell, method, unet, 1, Some(step))).transpose()?;
                self.largest.insert(cell.model, (plain, *of_pass, *of_decoder));
                peak_memory_bytes = plain.peak_memory_bytes.max(acting.and_then(|speed| speed.peak_memory_bytes));
                (plain, acting.unwrap_or(plain))
            }
        };
        // A pass on a part of the latents is as long as its share of the operations.
        let of_step = |step: &Step| {
            let speed = if step.is_plain() { plain } else { acting };
            step.evaluations(*latent).map(|(n, size, _)| n as f64 * unet.at(size) / of_pass).sum::<f64>() * speed.seconds_per_pass
        };
        let before = counted.before * plain.seconds_per_pass / of_pass;
        let seconds_per_image = steps.iter().map(of_step).sum::<f64>() + plain.seconds_to_decode + before;
        Ok(Timed { seconds_per_image, peak_memory_bytes, extrapolated })
    }

    /// Times the first `steps` steps of an image's last stage and its decoding; the fastest step counts, but not one that warms up.
    fn speed(&mut self, cell: &Cell, method: &Method, unet: &Flops, steps: usize, acting: Option<&Step>) -> Result<Speed> {
        let pipeline = &self.inputs.pipelines[cell.model];
        let request = &cell.jobs[0].request;
        let what = (cell.width, cell.height, pipeline.digest(), pipeline.dtype(), request.vae_decode, steps);
        let what = if request.frames == 1 { json!(what) } else { json!((what, request.frames)) };
        // Passes have no serialised form; what they print is all that they are.
        let key = blake3::hash(format!("{what}{acting:?}").as_bytes()).to_hex()[..32].to_owned();
        if let Some(known) = self.cache.known.get(&key) {
            return Ok(*known);
        }
        pipeline.embed_ahead([request])?;
        memory::release();
        memory::reset_peak();
        let latent = (request.height as usize / pipeline.vae_factor() as usize, request.width as usize / pipeline.vae_factor() as usize);
        let whole = unet.at(latent);
        let of_step = |step: &Step| step.evaluations(latent).map(|(n, size, _)| n as f64 * unet.at(size) / whole).sum::<f64>();
        let run = pipeline.outline(request, method)?;
        let n_passes = run.last().and_then(|stage| stage.steps.first()).map_or(1.0, of_step);
        let run = |_| -> Result<(f64, f64)> {
            let mut trace = Trace::of_times();
            pipeline.first_steps(request, method, steps, Some(&mut trace))?;
            let seconds = |stage: &str| -> Vec<f64> {
                trace.seconds.iter().filter(|(name, _)| name.starts_with(stage)).map(|(_, seconds)| *seconds).collect()
            };
            let times = seconds("step ");
            let timed = if times.len() > 1 { &times[1..] } else { &times[..] };
            Ok((timed.iter().copied().fold(f64::INFINITY, f64::min) / n_passes, seconds("decode").iter().sum()))
        };
        // As images will be made: of each that is beside others, its share.
        let times = match Sharing::of(cell, pipeline, None) {
            Sharing::Batches(_) => vec![run(0)?],
            Sharing::Beside(n) => beside(n, run).into_iter().collect::<Result<Vec<_>>>()?,
        };
        let share = |of: &dyn Fn(&(f64, f64)) -> f64| times.iter().map(of).sum::<f64>() / (times.len() * times.len()) as f64;
        let found = Speed {
            seconds_per_pass: share(&|(pass, _)| *pass),
            seconds_to_decode: share(&|(_, decode)| *decode),
            peak_memory_bytes: memory::peak(),
        };
        self.cache.known.insert(key, found);
        Ok(found)
    }
}

/// How often a step evaluates the network.
fn evaluations(step: &Step, latent: (usize, usize)) -> usize {
    step.evaluations(latent).map(|(n, _, _)| n).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_extrapolations_a_mark() {
        assert_eq!([0.0, 0.01234, 1.0, 12.345, 1234.5].map(significant), ["0.00", "0.0123", "1.00", "12.3", "1234"]);
        let cell = CellCost {
            cell: "m/4x-a".into(),
            width: 128,
            height: 64,
            images: 5,
            done: 2,
            to_do: 3,
            steps: 4,
            passes: 9,
            flops_per_image: 2e12,
            seconds_per_image: Some(1.5),
            hours: Some(0.5),
            peak_memory_bytes: None,
            extrapolated: true,
        };
        let machine = Machine { system: "s".into(), processor: None, gpu: None, threads: 1, memory_bytes: None };
        let total = Total { images: 5, done: 2, to_do: 3, passes: 27, flops: 6e12, hours: Some(0.5) };
        let text = Cost { experiment: "e".into(), machine, cells: vec![cell], total }.text();
        let fields: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(fields, ["m/4x-a", "128x64", "5", "2", "3", "4", "9", "2.00", "~1.50", "~30", "min", "00", "s", "–"]);
        assert!(
            text.contains("5 images, 2 done, 3 to make in about 30 min 00 s: 27 U-Net passes, 6.00 TFLOP; on unknown processor"),
            "{text}"
        );
        assert!(text.contains("~ from the operations"), "{text}");
    }
}
