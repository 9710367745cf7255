//! Making the images of a plan.

use std::fmt::Write as _;
use std::io::Cursor;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cpu_time::ProcessTime;
use scalebench_generation::{Method, Pipeline, Rgb, on_gpu};
use scalebench_metrics::{Image, jpeg};

use crate::experiment::brought::File;
use crate::experiment::plan::{Cell, Plan, Work};
use crate::experiment::resolve::Inputs;
use crate::host::{device, interrupt, memory};
use crate::run::progress::{self, Event};
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, Timing};

/// Prompts that are embedded at a time, before the text encoders make room for the U-Net.
const EMBEDDED_AHEAD: usize = 64;

/// Number of a cell's images that are this shard's.
fn held(cell: &Cell, shard: Shard) -> usize {
    (0..cell.jobs.len()).filter(|i| shard.holds(*i)).count()
}

/// Indices of a cell's images that this shard has still to make.
pub(crate) fn missing(cell: &Cell, store: &Store, shard: Shard) -> Result<Vec<usize>> {
    let mut missing = Vec::new();
    for (i, job) in cell.jobs.iter().enumerate().filter(|(i, _)| shard.holds(*i)) {
        if store.read_image(&cell.name, i, &job.key)?.is_none() {
            missing.push(i);
        }
    }
    Ok(missing)
}

/// Images that are made together unless told otherwise: a GPU is full at eight of 512 × 512 pixels of Stable Diffusion.
fn usual_batch(cell: &Cell, pipeline: &Pipeline) -> usize {
    let latents = (cell.width / pipeline.vae_factor()) as usize * (cell.height / pipeline.vae_factor()) as usize;
    if on_gpu(&device::current()) { (8 * 64 * 64 / latents.max(1)).clamp(1, 64) } else { 1 }
}

/// Images on their way to their files, each with its index and what it cost, where that is known.
struct Made<'a> {
    cell: &'a Cell,
    images: Vec<(usize, Image, Option<Timing>)>,
}

/// Makes what is missing of this shard's images.
pub(crate) fn make_images(inputs: &Inputs, plan: &Plan, store: &Store, shard: Shard, batch_size: Option<u16>) -> Result<()> {
    let todo: Vec<(&Cell, Vec<usize>)> = plan.cells.iter().map(|cell| Ok((cell, missing(cell, store, shard)?))).collect::<Result<_>>()?;
    let n_todo: usize = todo.iter().map(|(_, missing)| missing.len()).sum();
    // The bar counts pixels, so that its estimate knows that larger images take longer.
    let pixels = |cell: &Cell| u64::from(cell.width) * u64::from(cell.height);
    let bar = progress::bar(todo.iter().map(|(cell, missing)| pixels(cell) * missing.len() as u64).sum(), "");
    progress::say(&Event::Started { images: plan.cells.iter().map(|cell| held(cell, shard)).sum(), to_make: n_todo });
    let start = Instant::now();
    let mut done = 0;
    // Images are encoded and written while the next ones are made.
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Made<'_>>(2);
        let writer = scope.spawn(|| write_images(receive, store, n_todo, &|cell| bar.inc(pixels(cell))));
        let made = todo.iter().try_for_each(|(cell, missing)| {
            memory::release();
            let (cell_start, pipeline) = (Instant::now(), &inputs.pipelines[cell.model]);
            let batch = batch_size.map_or_else(|| usual_batch(cell, pipeline), usize::from);
            for ahead in missing.chunks(EMBEDDED_AHEAD.next_multiple_of(batch)) {
                if let Work::Sample(_) = cell.work {
                    pipeline.embed_ahead(ahead.iter().map(|&i| &cell.jobs[i].request))?;
                }
                for batch in ahead.chunks(batch) {
                    interrupt::check()?;
                    let mut message = format!("{done}/{n_todo} images");
                    if done > 0 {
                        let rate = done as f64 / start.elapsed().as_secs_f64();
                        write!(message, ", {rate:.2} images/s").expect("writing to a string");
                    }
                    bar.set_message(format!("{message}, {}", cell.name));
                    let images = match &cell.work {
                        Work::Sample(method) => make(inputs, cell, method, batch)?,
                        Work::Bring(files) => bring(cell, files, batch)?,
                    };
                    done += images.len();
                    if send.send(Made { cell, images }).is_err() {
                        // The writer's own error says why.
                        bail!("images can no longer be written");
                    }
                }
            }
            if !missing.is_empty() {
                let seconds = cell_start.elapsed().as_secs_f64();
                progress::say(&Event::Cell { cell: &cell.name, images: missing.len(), seconds, done, of: n_todo });
            }
            Ok(())
        });
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(made)
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Writes what comes: times first, so that every image has its own.
fn write_images(made: Receiver<Made<'_>>, store: &Store, n_todo: usize, written: &dyn Fn(&Cell)) -> Result<()> {
    let mut done = 0;
    let mut of_cell: Option<(&str, Vec<Timing>)> = None;
    for Made { cell, images } in made {
        let timings = match &mut of_cell {
            Some((name, timings)) if *name == cell.name => timings,
            _ => &mut of_cell.insert((&cell.name, store.read_lines(&store.timings(&cell.name))?)).1,
        };
        for (index, _, timing) in &images {
            timings.retain(|known| known.index != *index);
            timings.extend(timing);
        }
        if !timings.is_empty() {
            store.write_lines(&store.timings(&cell.name), timings)?;
        }
        for (index, mut image, timing) in images {
            let seconds = timing.map_or(0.0, |timing| timing.seconds);
            // What was brought is measured as it is.
            if let (Some(quality), Work::Sample(_)) = (cell.sampler.jpeg_quality, &cell.work) {
                image = jpeg::round_trip(&image, quality)?;
            }
            store.write_image(&cell.name, index, &cell.jobs[index].key, &image)?;
            done += 1;
            progress::say(&Event::Image { cell: &cell.name, index, seconds, done, of: n_todo });
            written(cell);
        }
    }
    Ok(())
}

/// Makes some images of a cell together, and says what each cost: its share.
fn make(inputs: &Inputs, cell: &Cell, method: &Method, indices: &[usize]) -> Result<Vec<(usize, Image, Option<Timing>)>> {
    memory::reset_peak();
    let (start, processor_start) = (Instant::now(), ProcessTime::now());
    let requests: Vec<_> = indices.iter().map(|&i| &cell.jobs[i].request).collect();
    let images = inputs.pipelines[cell.model].generate_batch(&requests, method);
    let share = |elapsed: Duration| elapsed.as_secs_f64() / indices.len() as f64;
    let (seconds, processor_seconds) = (share(start.elapsed()), Some(share(processor_start.elapsed())));
    let peak_memory_bytes = memory::peak();
    let images = images.with_context(|| format!("cell {}, images {indices:?}", cell.name))?;
    let one = |(image, &index): (Rgb, &usize)| {
        let timing = Timing { index, seconds, processor_seconds, peak_memory_bytes };
        Ok((index, Image::new(image.width as usize, image.height as usize, image.data)?, Some(timing)))
    };
    images.into_iter().zip(indices).map(one).collect()
}

/// Takes over some images that another program made.
fn bring(cell: &Cell, files: &[File], indices: &[usize]) -> Result<Vec<(usize, Image, Option<Timing>)>> {
    let one = |&index: &usize| -> Result<_> {
        let file = &files[index];
        let bytes = std::fs::read(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
        let is_same = blake3::hash(&bytes).to_string() == file.digest;
        ensure!(is_same, "{}: was replaced while the sweep ran; expected what it was when it began", file.path.display());
        let image = Image::decode(Cursor::new(bytes), &file.path)?;
        let timing = file.seconds.map(|seconds| Timing { index, seconds, processor_seconds: None, peak_memory_bytes: None });
        Ok((index, image, timing))
    };
    indices.iter().map(one).collect::<Result<_>>().with_context(|| format!("cell {}", cell.name))
}

/// Makes the images of a cell once more, for their times alone, and keeps each one's best: what else the machine did can
/// only have added to them.
pub(crate) fn time_again(inputs: &Inputs, cell: &Cell, store: &Store) -> Result<()> {
    let Work::Sample(method) = &cell.work else { return Ok(()) };
    let mut timings: Vec<Timing> = store.read_lines(&store.timings(&cell.name))?;
    for i in 0..cell.jobs.len() {
        if i % EMBEDDED_AHEAD == 0 {
            inputs.pipelines[cell.model].embed_ahead(cell.jobs[i..].iter().take(EMBEDDED_AHEAD).map(|job| &job.request))?;
        }
        let (_, _, again) = make(inputs, cell, method, &[i])?.remove(0);
        for (timing, again) in timings.iter_mut().filter(|timing| timing.index == i).zip(again) {
            timing.seconds = timing.seconds.min(again.seconds);
            timing.processor_seconds = timing.processor_seconds.zip(again.processor_seconds).map(|(first, second)| first.min(second));
        }
    }
    store.write_lines(&store.timings(&cell.name), &timings)
}

/// Writes the manifest of every whole cell; returns the number of images that are missing elsewhere.
pub(crate) fn write_manifests(plan: &Plan, store: &Store) -> Result<usize> {
    let mut n_missing = 0;
    for cell in &plan.cells {
        let mut lines = Vec::with_capacity(cell.jobs.len());
        for (index, job) in cell.jobs.iter().enumerate() {
            if let Some(bytes) = store.read_image(&cell.name, index, &job.key)? {
                lines.push(ManifestLine {
                    index,
                    prompt: job.request.prompt.clone(),
                    seed: job.request.seed,
                    key: job.key.clone(),
                    blake3: blake3::hash(&bytes).to_string(),
                    brought: match &cell.work {
                        Work::Sample(_) => None,
                        Work::Bring(files) => files.get(index).map(|file| file.digest.clone()),
                    },
                });
            }
        }
        n_missing += cell.jobs.len() - lines.len();
        if lines.len() == cell.jobs.len() {
            store.write_lines(&format!("cells/{}/manifest.jsonl", cell.name), &lines)?;
        }
    }
    Ok(n_missing)
}

/// Says on stderr what of a prompt the text encoder does not see.
pub(crate) fn warn_of_overflow(pipeline: &Pipeline, prompt: &str) -> Result<()> {
    let cut = pipeline.overflow(prompt)?;
    if !cut.is_empty() {
        progress::say(&Event::Warning { text: &format!("the prompt is longer than the text encoder takes; not seen: `{cut}`") });
    }
    Ok(())
}
