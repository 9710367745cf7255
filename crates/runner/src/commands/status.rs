//! `scalebench status`
//!
//! Looks at a run directory and nothing else, so it works beside the run, after it, and on any node that sees the disk.
//! An image counts once its file has its final name; the times are those of the files.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::cli::Status;
use crate::experiment::plan::outline;
use crate::run::file::RunFile;
use crate::run::shard::Shard;
use crate::run::store::{Store, Timing};
use crate::words::table::aligned;
use crate::words::time::duration;

/// Minutes; ten years.
const LONGEST_WINDOW: f64 = 5_256_000.0;

#[derive(Debug, Serialize)]
struct Found {
    experiment: String,
    /// Whether the results are there.
    finished: bool,
    done: usize,
    planned: usize,
    /// Over the window; None where no image was made in it.
    images_per_second: Option<f64>,
    /// None where nothing moves.
    seconds_left: Option<f64>,
    /// Since the last image; None before the first.
    seconds_since_last_image: Option<f64>,
    cells: Vec<Cell>,
    shards: Vec<Seen>,
}

#[derive(Debug, Serialize)]
struct Cell {
    name: String,
    width: u32,
    height: u32,
    done: usize,
    planned: usize,
    /// Mean of the images that are done.
    seconds_per_image: Option<f64>,
}

/// A shard that has left timings.
#[derive(Debug, Serialize)]
struct Seen {
    shard: String,
    images: usize,
    seconds_since_last_image: f64,
}

pub(super) fn run(args: &Status) -> Result<()> {
    let range = args.window > 0.0 && args.window <= LONGEST_WINDOW;
    ensure!(range, "--window: expected minutes above 0, at most {LONGEST_WINDOW}, found {}", args.window);
    ensure!(args.dir.is_dir(), "{}: expected a run directory, found none", args.dir.display());
    let window = Duration::from_secs_f64(args.window * 60.0);
    let found = look(&Store::new(&args.dir, Shard::WHOLE), SystemTime::now(), window)?;
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        print!("{}", text(&found, args.window));
    }
    Ok(())
}

fn look(store: &Store, now: SystemTime, window: Duration) -> Result<Found> {
    let resolved = RunFile::read(store)?.experiment;
    // Clocks of nodes differ a little: what was written in the future was written now.
    let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
    let mut cells = Vec::new();
    let mut shards: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
    // Age and pixels of every image: larger ones take longer, so what is left is counted in pixels.
    let mut images: Vec<(Duration, f64)> = Vec::new();
    for outline in outline(&resolved) {
        let (width, height) = resolved.models[outline.model].size(&outline.scale)?;
        let ages: Vec<Duration> = store.image_times(&outline.name, outline.images)?.into_iter().map(age).collect();
        images.extend(ages.iter().map(|age| (*age, f64::from(width) * f64::from(height))));
        let mut timings: Vec<Timing> = Vec::new();
        for file in store.timing_files(&outline.name) {
            let of_shard: Vec<Timing> = store.read_lines(&file)?;
            let name = file.rsplit('/').next().unwrap_or_default();
            let shard = name.trim_start_matches("timings.").trim_end_matches("jsonl").trim_end_matches('.').replace("of", "/");
            let written = store.path(&file).metadata().and_then(|data| data.modified()).map_or(Duration::MAX, age);
            let seen = shards.entry(if shard.is_empty() { "0/1".to_owned() } else { shard }).or_insert((0, Duration::MAX));
            *seen = (seen.0 + of_shard.len(), seen.1.min(written));
            timings.extend(of_shard);
        }
        let seconds: f64 = timings.iter().map(|timing| timing.seconds).sum();
        cells.push(Cell {
            name: outline.name,
            width,
            height,
            done: ages.len(),
            planned: outline.images,
            seconds_per_image: (!timings.is_empty()).then(|| seconds / timings.len() as f64),
        });
    }
    let recent: Vec<(Duration, f64)> = images.iter().copied().filter(|(age, _)| *age <= window).collect();
    // Between the oldest and now lie the others: the first one's own time is not in the span.
    let span = recent.iter().map(|(age, _)| age.as_secs_f64()).fold(0.0, f64::max);
    let oldest = recent.iter().max_by_key(|(age, _)| *age);
    let rate = |of: &dyn Fn(&(Duration, f64)) -> f64| -> Option<f64> {
        let sum = recent.iter().map(of).sum::<f64>() - oldest.map_or(0.0, of);
        (span > 0.0 && sum > 0.0).then(|| sum / span)
    };
    let left: f64 = cells.iter().map(|cell| (cell.planned - cell.done) as f64 * f64::from(cell.width) * f64::from(cell.height)).sum();
    let seconds_left = if left == 0.0 { Some(0.0) } else { rate(&|(_, pixels)| *pixels).map(|rate| left / rate) };
    Ok(Found {
        experiment: resolved.name,
        // Results of before may lie there while images are made again.
        finished: left == 0.0 && store.path("results.csv").is_file(),
        done: cells.iter().map(|cell| cell.done).sum(),
        planned: cells.iter().map(|cell| cell.planned).sum(),
        images_per_second: rate(&|_| 1.0),
        seconds_left,
        seconds_since_last_image: images.iter().map(|(age, _)| age.as_secs_f64()).min_by(f64::total_cmp),
        shards: shards
            .into_iter()
            .map(|(shard, (images, age))| Seen { shard, images, seconds_since_last_image: age.as_secs_f64() })
            .collect(),
        cells,
    })
}

fn text(found: &Found, window: f64) -> String {
    let mut lines = vec![["cell", "size", "done", "planned", "s/image"].map(str::to_owned).to_vec()];
    for cell in &found.cells {
        let seconds = cell.seconds_per_image.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.2}"));
        let size = format!("{}x{}", cell.width, cell.height);
        lines.push(vec![cell.name.clone(), size, cell.done.to_string(), cell.planned.to_string(), seconds]);
    }
    let mut text = aligned(&lines);
    let state = match (found.finished, found.seconds_left) {
        (true, _) => "finished".to_owned(),
        (false, Some(0.0)) => "all images are there; no results yet".to_owned(),
        (false, Some(seconds)) => {
            format!("{:.3} images/s over the last {window} min, about {} left", found.images_per_second.unwrap_or(0.0), duration(seconds))
        }
        (false, None) => format!("fewer than two images in the last {window} min"),
    };
    text += &format!("{}: {} of {} images, {state}\n", found.experiment, found.done, found.planned);
    for Seen { shard, images, seconds_since_last_image } in &found.shards {
        text += &format!("shard {shard}: {images} images, the last one {} ago\n", duration(*seconds_since_last_image));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_half_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Shard::WHOLE);
        let error = format!("{:#}", look(&store, SystemTime::now(), Duration::from_secs(60)).unwrap_err());
        assert!(error.contains("run.yaml") && error.contains("expected the description of a run"), "{error}");

        let resolved = crate::compare::made_up::resolved(4);
        let file = RunFile { command: String::new(), machine: None, experiment: resolved };
        store.write("run.yaml", serde_yaml::to_string(&file).unwrap().as_bytes()).unwrap();
        let start = SystemTime::now() - Duration::from_secs(30);
        let image = |cell: &str, index: usize, after: u64| {
            let path = store.path(&Store::image(cell, index));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = std::fs::File::create(path).unwrap();
            file.set_modified(start + Duration::from_secs(after)).unwrap();
        };
        // The base cell is whole, one image every two seconds; then a larger one, and half of another file.
        (0..4).for_each(|i| image("m/1x-direct-inf", i, 2 * i as u64));
        image("m/4x-direct-inf", 0, 14);
        std::fs::write(store.path("cells/m/4x-direct-inf/images/.000001.png.0of1.tmp"), b"half").unwrap();
        for (shard, index) in [(0, 0), (1, 1)] {
            let store = Store::new(dir.path(), Shard { index: shard, count: 2 });
            let timing = Timing { index, seconds: 2.0, processor_seconds: None, peak_memory_bytes: None };
            store.write_lines(&store.timings("m/1x-direct-inf"), &[timing]).unwrap();
        }
        let now = start + Duration::from_secs(20);
        let found = look(&store, now, Duration::from_secs(60)).unwrap();
        assert_eq!((found.done, found.planned, found.finished), (5, 12, false));
        store.write("results.csv", b"").unwrap();
        assert!(!look(&store, now, Duration::from_secs(60)).unwrap().finished, "images are missing");
        assert_eq!(found.cells.iter().map(|cell| cell.done).collect::<Vec<_>>(), [4, 1, 0]);
        assert_eq!(found.cells[0].seconds_per_image, Some(2.0));
        assert!((found.images_per_second.unwrap() - 4.0 / 20.0).abs() < 1e-9);
        // 7 images of four units left; three of one and one of four were made in twenty seconds.
        assert!((found.seconds_left.unwrap() - 28.0 / (7.0 / 20.0)).abs() < 1e-6, "{found:?}");
        assert!((found.seconds_since_last_image.unwrap() - 6.0).abs() < 1e-9);
        let shards: Vec<(&str, usize)> = found.shards.iter().map(|seen| (seen.shard.as_str(), seen.images)).collect();
        assert_eq!(shards, [("0/2", 1), ("1/2", 1)]);
        let shown = text(&found, 1.0);
        assert!(shown.contains("5 of 12 images, 0.200 images/s over the last 1 min, about 1 min 20 s left"), "{shown}");

        let later = look(&store, now + Duration::from_secs(3600), Duration::from_secs(60)).unwrap();
        assert_eq!((later.images_per_second, later.seconds_left), (None, None));
    }
}
