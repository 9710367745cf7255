//! `DIR/report`: one self-contained HTML page, and its parts as files of their own.
//!
//! Everything is read from the run directory, so the report can be rebuilt at any time.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use scalebench_metrics::Image;

use crate::experiment::matrix::SEED;
use crate::experiment::resolved::{Model, Prompts, Reference, Resolved, Scale, cell_name};
use crate::report::page::{self, Column, Page, SampleRow, Samples, ScheduleMap, Tile};
use crate::report::{figures, grid, heatmap, latex, spectrum, tables, tradeoff};
use crate::run::file::RunFile;
use crate::run::results::label;
use crate::run::schedule::{self, Schedule};
use crate::run::store::{ManifestLine, Store, manifest_file};
use crate::run::{png, score, seal};

/// What is said beside numbers that were not made with the full-width network.
pub(crate) const NOT_COMPARABLE: &str = "pocket features: not comparable with published FID";

/// Writes the page, the charts, the heat maps, the grids and the tables.
pub(crate) fn write(store: &Store) -> Result<()> {
    let run = RunFile::read(store)?;
    let rows = tables::read(store)?;
    let resolved = &run.experiment;
    let note = if resolved.metrics.comparable() { "" } else { NOT_COMPARABLE };
    let mut charts = figures::charts(&rows, &resolved.methods, note)?;
    charts.extend(tradeoff::charts(&rows, &resolved.methods, note)?);
    charts.extend(spectrum::charts(store, resolved, note)?);
    for chart in &charts {
        store.write(&format!("report/{}.svg", chart.name), chart.svg.as_bytes())?;
    }
    let mut samples = Vec::new();
    for model in &resolved.models {
        for scale in &resolved.scales {
            // A column is one prompt and one seed, so each seed has a grid of its own.
            let seeds: BTreeSet<u64> = resolved.methods.iter().map(|method| resolved.seed_of(&method.name)).collect();
            for seed in &seeds {
                let (mut found, image) = sample(store, resolved, model, scale, *seed)?;
                let mut name = format!("grid-{}-{}", model.name, scale.label());
                if seeds.len() > 1 {
                    write!(name, "-{SEED}={seed}")?;
                    write!(found.title, ", seeds from {seed}")?;
                }
                store.write(&format!("report/{name}.png"), &png::encode(&image, None)?)?;
                samples.push(found);
            }
        }
    }
    let schedules = schedules(store, resolved)?;
    let mut markdown = tables::markdown(&rows);
    markdown += "\nBold: best of its scale. †: its paired difference to the best is undecided.\n";
    for (column, reason) in resolved.absences() {
        write!(markdown, "\n{} is empty: {reason}.\n", label(&column).0)?;
    }
    for method in &resolved.methods {
        for cell in method.images.iter().flat_map(|brought| &brought.missing) {
            write!(markdown, "\ncell {cell} is empty: no images were brought for it.\n")?;
        }
    }
    if !note.is_empty() {
        write!(markdown, "\n{note}\n")?;
    }
    store.write("report/table.md", markdown.as_bytes())?;
    store.write("report/table.tex", latex::table(resolved, &rows, note).as_bytes())?;
    let page = Page { run: &run, rows: &rows, charts: &charts, samples: &samples, schedules: &schedules, note };
    store.write("report/index.html", page::page(&page)?.as_bytes())
}

/// Model and scale, for a heading.
fn place(model: &Model, scale: &Scale) -> Result<String> {
    let (width, height) = model.size(scale)?;
    Ok(format!("{}, {}× ({width}×{height})", model.name, scale.factor))
}

/// The samples of a model at a scale by methods of one seed for the page, and as one image.
pub(crate) fn sample(store: &Store, resolved: &Resolved, model: &Model, scale: &Scale, seed: u64) -> Result<(Samples, Image)> {
    let n_columns = resolved.images.at(scale).min(grid::MAX_COLUMNS);
    let (mut rows, mut strips, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |label: &str, seeded: bool, images: &mut dyn Iterator<Item = Result<Vec<Image>>>| -> Result<()> {
        // Full-size images are held one at a time: eight at 4096² are 400 MB.
        let (mut tiles, mut small) = (Vec::new(), Vec::new());
        for frames in images {
            let frames = frames?;
            let first = frames.first().context("an image without pixels")?;
            let webp = match resolved.video {
                Some(video) if frames.len() > 1 => grid::embedded_video(&frames, video.fps)?,
                _ => grid::embedded(first)?,
            };
            let src = format!("data:image/webp;base64,{}", BASE64_STANDARD.encode(webp));
            tiles.push(Tile { src, width: first.width, height: first.height });
            small.push(grid::tile_of(&frames)?);
        }
        strips.push(grid::row(&small)?);
        rows.push(SampleRow { label: label.to_owned(), seeded, tiles });
        Ok(())
    };
    // Reference images belong to the columns only if both come from the set in the same order.
    if let (Reference::Emoji { images, seed }, Prompts::Emoji { .. }) = (&resolved.reference, &resolved.prompts) {
        let (width, height) = model.size(scale)?;
        let n = n_columns.min(*images);
        if resolved.video.is_some() {
            let videos = score::RenderedVideos::new(*seed, n, resolved.frames(), width, height);
            add("Reference", false, &mut (0..n).map(|i| videos.video(i)))?;
        } else {
            let images = score::reference_images(*seed, 0..n, width, height);
            add("Reference", false, &mut images.map(|image| Ok(vec![image?])))?;
        }
    }
    for method in resolved.methods.iter().filter(|method| resolved.seed_of(&method.name) == seed) {
        let cell = cell_name(&model.name, scale, &method.name);
        if resolved.is_missing(&cell) {
            continue;
        }
        let manifest: Vec<ManifestLine> = seal::read_lines(store, &manifest_file(&cell))?;
        ensure!(!manifest.is_empty(), "cell {cell}: no manifest, expected a finished run");
        let mut images = manifest.iter().take(n_columns).map(|line| -> Result<Vec<Image>> {
            let bytes = store.read_image(&cell, line.index, &line.key)?;
            let bytes = bytes.with_context(|| format!("cell {cell}: image {} is missing or damaged", line.index))?;
            Ok(png::decode_frames(&bytes)?.0)
        });
        add(&method.title, true, &mut images)?;
        columns = manifest.into_iter().take(n_columns).map(|line| Column { prompt: line.prompt, seed: line.seed }).collect();
    }
    Ok((Samples { title: place(model, scale)?, columns, rows }, grid::stack(&strips)?))
}

/// The schedules of all cells that have one; their heat maps are written and returned.
fn schedules(store: &Store, resolved: &Resolved) -> Result<Vec<ScheduleMap>> {
    let mut found: Vec<(String, String, String, Schedule)> = Vec::new();
    for model in &resolved.models {
        for scale in &resolved.scales {
            for method in &resolved.methods {
                if let Some(schedule) = schedule::read(store, &cell_name(&model.name, scale, &method.name))? {
                    let file = format!("schedule-{}-{}-{}", model.name, scale.label(), method.name);
                    found.push((place(model, scale)?, method.title.clone(), file, schedule));
                }
            }
        }
    }
    // One scale of colours for the whole report.
    let largest = found.iter().map(|(_, _, _, schedule)| heatmap::largest_dilation(schedule)).fold(1.0, f64::max);
    let map = |(place, method, file, schedule): (String, String, String, Schedule)| -> Result<ScheduleMap> {
        let svg = heatmap::draw(&schedule, largest);
        if let Some(svg) = &svg {
            store.write(&format!("report/{file}.svg"), svg.as_bytes())?;
        }
        Ok(ScheduleMap { place, method, description: schedule::describe(&schedule), svg })
    };
    found.into_iter().map(map).collect()
}
