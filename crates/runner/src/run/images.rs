//! Making the images of a plan.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cpu_time::{ProcessTime, ThreadTime};
use scalebench_generation::{Injected, Method, Pipeline, Rgb, beside, on_gpu};
use scalebench_metrics::{Image, jpeg};

use crate::experiment::brought::File;
use crate::experiment::plan::{Cell, Plan, Work};
use crate::experiment::resolve::Inputs;
use crate::host::{device, interrupt, memory};
use crate::run::progress::{self, Event};
use crate::run::seal;
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, Timing, manifest_file};

/// Prompts that are embedded at a time, before the text encoders make room for the U-Net.
const EMBEDDED_AHEAD: usize = 64;

/// Number of a cell's images that are this shard's.
fn held(cell: &Cell, shard: Shard) -> usize {
    (0..cell.jobs.len()).filter(|i| shard.holds(*i)).count()
}

/// Indices of a cell's images that this shard has still to make.
pub(crate) fn missing(cell: &Cell, store: &Store, shard: Shard) -> Result<Vec<usize>> {
    // Another image under the same key is none of this run's: an older manifest knows better.
    let digests = digests(cell, store);
    let mut missing = Vec::new();
    for (i, job) in cell.jobs.iter().enumerate().filter(|(i, _)| shard.holds(*i)) {
        let bytes = store.read_image(&cell.name, i, &job.key)?;
        let is_it = |bytes: &Vec<u8>| digests.get(job.key.as_str()).is_none_or(|known| blake3::hash(bytes).to_string() == *known);
        if bytes.filter(is_it).is_none() {
            missing.push(i);
        }
    }
    Ok(missing)
}

/// Digests of a cell's images by their keys, as far as a manifest of before says so; a damaged one says nothing.
fn digests(cell: &Cell, store: &Store) -> BTreeMap<String, String> {
    let lines: Vec<ManifestLine> = store.read_lines(&manifest_file(&cell.name)).unwrap_or_default();
    lines.into_iter().map(|line| (line.key, line.blake3)).collect()
}

/// Bytes that the largest maps of all images that are made beside each other may take together.
const BESIDE: usize = 256 << 20;

/// How a cell's images share the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// So many in a batch, all threads at work in each operation.
    Batches(usize),
    /// So many beside each other, each on a thread of its own.
    Beside(usize),
}

impl Sharing {
    /// Where nobody says how many go together: on a GPU as many as fill it, which at 512 × 512 pixels of Stable Diffusion are eight; on a
    /// CPU one on each thread while they are small enough to be in memory together, since what operations lose by threads that wait
    /// for each other is most for small ones. Videos go one by one.
    pub(crate) fn of(cell: &Cell, pipeline: &Pipeline, batch_size: Option<u16>) -> Sharing {
        if cell.jobs.first().is_some_and(|job| job.request.frames > 1) {
            return Sharing::Batches(1);
        }
        let latents = (cell.width / pipeline.vae_factor()) as usize * (cell.height / pipeline.vae_factor()) as usize;
        let map = cell.jobs.first().map_or(usize::MAX, |job| pipeline.largest_map(&job.request));
        match (batch_size, rayon::current_num_threads()) {
            (Some(n), _) => Sharing::Batches(n.into()),
            _ if on_gpu(&device::current()) => Sharing::Batches((8 * 64 * 64 / latents.max(1)).clamp(1, 64)),
            (_, n) if n > 1 && map.saturating_mul(n) <= BESIDE => Sharing::Beside(n),
            _ => Sharing::Batches(1),
        }
    }

    /// Images that are begun together.
    fn at_once(self) -> usize {
        match self {
            Sharing::Batches(n) | Sharing::Beside(n) => n,
        }
    }

    /// Of `images` images, the first that go beside each other. Threads come in whole rows of images; a row that would leave half of
    /// them without one is left to operations that use all.
    fn beside(self, images: usize) -> usize {
        match self {
            Sharing::Batches(_) => 0,
            Sharing::Beside(n) => {
                if images % n * 2 > n {
                    images
                } else {
                    images / n * n
                }
            }
        }
    }
}

/// The frames of a video; one of an image.
type Frames = Vec<Image>;

/// Images, each with its index and what it cost, where that is known.
type Images = Vec<(usize, Frames, Option<Timing>)>;

/// Where they go.
type HandOn<'a> = dyn FnMut(Images) -> Result<()> + Send + 'a;

/// Images of a cell on their way to their files.
struct Made<'a> {
    cell: &'a Cell,
    images: Images,
}

/// Makes what is missing of this shard's images.
pub(crate) fn make_images(inputs: &Inputs, plan: &Plan, store: &Store, shard: Shard, batch_size: Option<u16>) -> Result<()> {
    let todo: Vec<(&Cell, Vec<usize>)> = plan.cells.iter().map(|cell| Ok((cell, missing(cell, store, shard)?))).collect::<Result<_>>()?;
    let n_todo: usize = todo.iter().map(|(_, missing)| missing.len()).sum();
    // The bar counts pixels, so that its estimate knows that larger images take longer.
    let pixels = |cell: &Cell| u64::from(cell.width) * u64::from(cell.height);
    let bar = progress::bar(todo.iter().map(|(cell, missing)| pixels(cell) * missing.len() as u64).sum(), "");
    if n_todo > 0 {
        seal::remove(store)?;
    }
    progress::say(&Event::Started { images: plan.cells.iter().map(|cell| held(cell, shard)).sum(), to_make: n_todo });
    let start = Instant::now();
    let mut done = 0;
    // Images are encoded and written while the next ones are made.
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Made<'_>>(2);
        let writer = scope.spawn(|| write_images(receive, store, plan.fps, n_todo, &|cell| bar.inc(pixels(cell))));
        let made = todo.iter().try_for_each(|(cell, missing)| {
            memory::release();
            let cell_start = Instant::now();
            bar.set_message(format!("{done}/{n_todo} images, {}", cell.name));
            let mut hand_on = |images: Images| {
                done += images.len();
                let rate = done as f64 / start.elapsed().as_secs_f64();
                bar.set_message(format!("{done}/{n_todo} images, {rate:.2} images/s, {}", cell.name));
                // The writer's own error says why.
                send.send(Made { cell, images }).map_err(|_| anyhow!("images can no longer be written"))
            };
            match &cell.work {
                Work::Sample(method) => {
                    let pipeline = &inputs.pipelines[cell.model];
                    make_all(pipeline, cell, method, missing, Sharing::of(cell, pipeline, batch_size), &mut hand_on)?;
                }
                Work::Bring(files) => bring_all(cell, files, missing, &mut hand_on)?,
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
fn write_images(made: Receiver<Made<'_>>, store: &Store, fps: f64, n_todo: usize, written: &dyn Fn(&Cell)) -> Result<()> {
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
        for (index, mut frames, timing) in images {
            let seconds = timing.map_or(0.0, |timing| timing.seconds);
            // What was brought is measured as it is.
            if let (Some(quality), Work::Sample(_)) = (cell.sampler.jpeg_quality, &cell.work) {
                frames = frames.iter().map(|frame| jpeg::round_trip(frame, quality)).collect::<Result<_, _>>()?;
            }
            store.write_image(&cell.name, index, &cell.jobs[index].key, &frames, fps)?;
            done += 1;
            progress::say(&Event::Image { cell: &cell.name, index, seconds, done, of: n_todo });
            written(cell);
        }
    }
    Ok(())
}

/// Makes images of a cell, and hands them on as they come. Told to stop, it finishes those in hand.
fn make_all(
    pipeline: &Pipeline,
    cell: &Cell,
    method: &Method,
    indices: &[usize],
    sharing: Sharing,
    hand_on: &mut HandOn<'_>,
) -> Result<()> {
    for ahead in indices.chunks(EMBEDDED_AHEAD.next_multiple_of(sharing.at_once())) {
        pipeline.embed_ahead(ahead.iter().map(|&i| &cell.jobs[i].request))?;
        let (beside, others) = ahead.split_at(sharing.beside(ahead.len()));
        make_beside(pipeline, cell, method, beside, sharing.at_once(), hand_on)?;
        let batch = if let Sharing::Batches(n) = sharing { n } else { 1 };
        for batch in others.chunks(batch) {
            interrupt::check()?;
            memory::reset_peak();
            let (start, processor_start) = (Instant::now(), ProcessTime::now());
            let images = make(pipeline, cell, method, batch)?;
            let share = |elapsed: Duration| elapsed.as_secs_f64() / batch.len() as f64;
            hand_on(timed(batch, images, share(start.elapsed()), share(processor_start.elapsed())))?;
        }
    }
    Ok(())
}

/// Makes images beside each other, `n` at a time.
fn make_beside(pipeline: &Pipeline, cell: &Cell, method: &Method, indices: &[usize], n: usize, hand_on: &mut HandOn<'_>) -> Result<()> {
    memory::reset_peak();
    let (next, hand_on) = (AtomicUsize::new(0), Mutex::new(hand_on));
    let on_thread = || -> Result<()> {
        while let Some(index) = indices.get(next.fetch_add(1, Ordering::Relaxed)) {
            interrupt::check()?;
            let (start, processor_start) = (Instant::now(), ThreadTime::now());
            let images = make(pipeline, cell, method, slice::from_ref(index))?;
            // Its share of the machine, as if the others had waited.
            let seconds = start.elapsed().as_secs_f64() / n.min(indices.len()) as f64;
            let images = timed(&[*index], images, seconds, processor_start.elapsed().as_secs_f64());
            hand_on.lock().unwrap_or_else(PoisonError::into_inner)(images)?;
        }
        Ok(())
    };
    // Where one fails, the others begin nothing new.
    let results = beside(n.min(indices.len()), |_| on_thread().inspect_err(|_| next.store(indices.len(), Ordering::Relaxed)));
    results.into_iter().collect()
}

/// Some images of a cell, made together, or videos one after the other.
fn make(pipeline: &Pipeline, cell: &Cell, method: &Method, indices: &[usize]) -> Result<Vec<Frames>> {
    let requests: Vec<_> = indices.iter().map(|&i| &cell.jobs[i].request).collect();
    let images: Result<Vec<Vec<Rgb>>, _> = match requests.first().is_some_and(|request| request.frames > 1) {
        true => requests.iter().map(|request| pipeline.generate_frames(request, method, &Injected::default(), None)).collect(),
        false => pipeline.generate_batch(&requests, method).map(|images| images.into_iter().map(|image| vec![image]).collect()),
    };
    let images = images.with_context(|| format!("cell {}, images {indices:?}", cell.name))?;
    let image = |frame: Rgb| Ok(Image::new(frame.width as usize, frame.height as usize, frame.data)?);
    images.into_iter().map(|frames| frames.into_iter().map(image).collect()).collect()
}

/// What images cost each: seconds, processor seconds, and the peak since the last reset.
fn timed(indices: &[usize], images: Vec<Frames>, seconds: f64, processor_seconds: f64) -> Images {
    let peak_memory_bytes = memory::peak();
    let timing = |index| Timing { index, seconds, processor_seconds: Some(processor_seconds), peak_memory_bytes };
    indices.iter().zip(images).map(|(&index, image)| (index, image, Some(timing(index)))).collect()
}

/// Takes over images that another program made.
fn bring_all(cell: &Cell, files: &[File], indices: &[usize], hand_on: &mut HandOn<'_>) -> Result<()> {
    let one = |index: usize| -> Result<_> {
        let file = &files[index];
        let bytes = std::fs::read(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
        let is_same = blake3::hash(&bytes).to_string() == file.digest;
        ensure!(is_same, "{}: was replaced while the sweep ran; expected what it was when it began", file.path.display());
        let image = Image::decode(Cursor::new(bytes), &file.path)?;
        let timing = file.seconds.map(|seconds| Timing { index, seconds, processor_seconds: None, peak_memory_bytes: None });
        Ok((index, vec![image], timing))
    };
    for &index in indices {
        interrupt::check()?;
        hand_on(vec![one(index).with_context(|| format!("cell {}", cell.name))?])?;
    }
    Ok(())
}

/// Makes the images of a cell once more, for their times alone, and keeps each one's best: what else the machine did can
/// only have added to them.
pub(crate) fn time_again(inputs: &Inputs, cell: &Cell, store: &Store, batch_size: Option<u16>) -> Result<()> {
    let Work::Sample(method) = &cell.work else { return Ok(()) };
    let mut timings: Vec<Timing> = store.read_lines(&store.timings(&cell.name))?;
    let mut keep = |images: Images| {
        for (index, _, again) in images {
            for (timing, again) in timings.iter_mut().filter(|timing| timing.index == index).zip(again) {
                timing.seconds = timing.seconds.min(again.seconds);
                timing.processor_seconds = timing.processor_seconds.zip(again.processor_seconds).map(|(first, second)| first.min(second));
            }
        }
        Ok(())
    };
    let pipeline = &inputs.pipelines[cell.model];
    let all: Vec<usize> = (0..cell.jobs.len()).collect();
    make_all(pipeline, cell, method, &all, Sharing::of(cell, pipeline, batch_size), &mut keep)?;
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
            store.write_lines(&manifest_file(&cell.name), &lines)?;
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
