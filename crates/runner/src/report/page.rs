//! The report as one HTML page that needs nothing beside itself: no file, no network, and no script to be read.

use anyhow::Result;
use maud::{Markup, PreEscaped, html};

use crate::experiment::methods::BASELINE;
use crate::experiment::protocol::Protocol;
use crate::experiment::resolved::{Reference, Resolved};
use crate::report::figures::Chart;
use crate::report::frame::{self, Pictures};
use crate::report::{grid, provenance, scores};
use crate::run::file::RunFile;
use crate::run::results::Row;

/// How pages look.
pub(crate) const STYLE: &str = include_str!("page.css");
/// What enlarges samples.
pub(crate) const SCRIPT: &str = include_str!("page.js");

/// Everything that the page shows.
pub(crate) struct Page<'a> {
    pub(crate) run: &'a RunFile,
    pub(crate) rows: &'a [Row],
    pub(crate) charts: &'a [Chart],
    pub(crate) samples: &'a [Samples],
    pub(crate) schedules: &'a [ScheduleMap],
    /// Said beside numbers that could be mistaken for others.
    pub(crate) note: &'a str,
}

/// Sample images of one model at one scale: a column is one prompt and one seed.
pub(crate) struct Samples {
    pub(crate) title: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<SampleRow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) prompt: String,
    pub(crate) seed: u64,
}

#[derive(Clone)]
pub(crate) struct SampleRow {
    pub(crate) label: String,
    /// Whether the images were made with the columns' seeds: real ones were not.
    pub(crate) seeded: bool,
    pub(crate) tiles: Vec<Tile>,
}

/// An image of the page.
#[derive(Clone)]
pub(crate) struct Tile {
    /// Its address: a file beside the page, or all of it.
    pub(crate) src: String,
    /// Pixels of the image that it stands for.
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// What one method does at one scale.
#[derive(Clone)]
pub(crate) struct ScheduleMap {
    /// Model and scale.
    pub(crate) place: String,
    pub(crate) method: String,
    pub(crate) description: String,
    /// None if there is nothing to draw.
    pub(crate) svg: Option<String>,
}

/// The page as a file of its own.
pub(crate) fn page(page: &Page) -> Result<String> {
    let body = html! { header { (page.head()) } main { (page.content()?) } (lightbox()) };
    let title = format!("{} – scalebench", page.run.experiment.name);
    Ok(frame::document(&title, Pictures::Inside, &[STYLE], &[SCRIPT], &body))
}

/// What shows an enlarged sample; [`SCRIPT`] opens it.
pub(crate) fn lightbox() -> Markup {
    html! {
        dialog id="lightbox" aria-label="Sample" {
            p aria-live="polite" {}
            div {
                button type="button" data-down="0" data-right="-1" { "← prompt" }
                button type="button" data-down="-1" data-right="0" { "↑ method" }
                button type="button" data-down="1" data-right="0" { "↓ method" }
                button type="button" data-down="0" data-right="1" { "prompt →" }
                button type="button" data-close { "Close" }
            }
        }
    }
}

/// What ends the caption of every chart.
pub(crate) const CHART_NOTE: &str = ". Bars are 95 % intervals.";

/// Charts, two beside each other where there is room.
pub(crate) fn charts(charts: &[Chart]) -> Markup {
    html! {
        div.charts {
            @for chart in charts {
                figure {
                    div.drawing role="img" aria-label={ (chart.title) "; the tables have the numbers" } { (PreEscaped(&chart.svg)) }
                    figcaption { (chart.title) (CHART_NOTE) }
                }
            }
        }
    }
}

/// The samples of one model and scale, below their heading; `id` is the heading's.
pub(crate) fn sample_table(samples: &Samples, id: &str) -> Markup {
    let title = &samples.title;
    html! {
        div.scroll role="region" aria-labelledby=(id) tabindex="0" {
            table.samples {
                caption.hidden { "Samples of " (title) }
                thead {
                    tr {
                        td {}
                        @for Column { prompt, seed } in &samples.columns {
                            th scope="col" { bdi { (prompt) } " " small { "seed " (seed) } }
                        }
                    }
                }
                tbody {
                    @for row in &samples.rows {
                        tr {
                            th scope="row" { (row.label) }
                            @for (Column { prompt, seed }, tile) in samples.columns.iter().zip(&row.tiles) {
                                @let about = if row.seeded { format!("{prompt}, seed {seed}") } else { prompt.clone() };
                                td {
                                    button.tile type="button" data-about={ (about) " · " (title) } {
                                        img alt={ (row.label) ": " (about) } width=(tile.width) height=(tile.height) src=(tile.src);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What methods do at one place: sentences, then heat maps.
pub(crate) fn schedule_maps(maps: &[ScheduleMap]) -> Markup {
    let (drawn, told): (Vec<_>, Vec<_>) = maps.iter().partition(|map| map.svg.is_some());
    let caption = |map: &ScheduleMap| html! { strong { (map.method) } @if !map.description.is_empty() { ": " (map.description) } };
    html! {
        @if !told.is_empty() { ul { @for map in told { li { (caption(map)) } } } }
        div.schedules {
            @for map in drawn {
                figure {
                    div.drawing role="img" aria-label={ (map.method) ": dilation by layer and step" } {
                        (PreEscaped(map.svg.as_deref().unwrap_or_default()))
                    }
                    figcaption { (caption(map)) }
                }
            }
        }
    }
}

/// Identifier and name of the page's sections, in order.
const SECTIONS: [(&str, &str); 5] = [
    ("results", "Results"),
    ("charts", "Charts"),
    ("samples", "Samples"),
    ("schedules", "What the methods do"),
    ("provenance", "Provenance"),
];

impl Page<'_> {
    fn resolved(&self) -> &Resolved {
        &self.run.experiment
    }

    fn method_title<'a>(&'a self, name: &'a str) -> &'a str {
        self.resolved().methods.iter().find(|method| method.name == name).map_or(name, |method| &method.title)
    }

    /// Name, question and a way to the sections.
    pub(crate) fn head(&self) -> Markup {
        let resolved = self.resolved();
        html! {
            h1 { (resolved.name) }
            @if let Some(question) = &resolved.question { p.lead { (question) } }
            @if !self.note.is_empty() { p.note { (self.note) } }
            nav aria-label="Sections" { ul { @for (id, name) in SECTIONS { li { a href={ "#" (id) } { (name) } } } } }
        }
    }

    /// The sections.
    pub(crate) fn content(&self) -> Result<Markup> {
        let mut sections = Vec::new();
        for (id, name) in SECTIONS {
            let section = match id {
                "results" => self.results(),
                "charts" => charts(self.charts),
                "samples" => self.samples(),
                "schedules" => self.schedules(),
                _ => provenance::section(self.run)?,
            };
            sections.push((id, name, section));
        }
        Ok(html! {
            @for (id, name, section) in &sections { section aria-labelledby=(id) { h2 id=(id) { (name) } (section) } }
        })
    }

    fn results(&self) -> Markup {
        html! {
            @for model in &self.resolved().models {
                @let rows: Vec<&Row> = self.rows.iter().filter(|row| row.model == model.name).collect();
                (scores::table(&model.name, &rows, &|name| self.method_title(name)))
            }
            (self.legend())
        }
    }

    /// What the columns and marks of the table mean in this run.
    fn legend(&self) -> Markup {
        let resolved = self.resolved();
        let protocol = &resolved.metrics.protocol;
        html! {
            p {
                strong { "best" } " of its scale; " strong { "≈ best" } " where the paired difference to the best is undecided. Δ: paired difference to "
                (self.method_title(BASELINE))
                " at the same scale (by the same sampler and seed, where methods have their own), with what its interval says. Intervals are 95 % \
                 (delete-a-block jackknife over prompts and seeds, t distribution). FID depends on the number of images, KID does not."
            }
            p {
                "Protocol " strong { (protocol.name) } ", " (protocol.title) ". The reference is " (reference(resolved)) "."
            }
            (compared(protocol))
            @for (column, reason) in resolved.absences() { p { (scores::head(&column)) " is empty: " (reason) "." } }
            @if !protocol.uncertain.is_empty() {
                details {
                    summary { "What protocol " (protocol.name) " leaves open" }
                    ul { @for sentence in &protocol.uncertain { li { (sentence) } } }
                }
            }
        }
    }

    fn samples(&self) -> Markup {
        if self.samples.is_empty() {
            return html! { p { "No samples were kept of this run." } };
        }
        let (what, shown) = match self.resolved().video {
            None => ("an image", format!("Images are shown as WebP of at most {} pixels; the PNG files", grid::EMBEDDED)),
            Some(video) => {
                let most = grid::EMBEDDED_VIDEO;
                ("a video", format!("Videos of {} frames are shown as WebP of at most {most} pixels; the animated PNG files", video.frames))
            }
        };
        html! {
            p {
                "Each column is one prompt and one seed, each row a method. Click " (what) " to enlarge it; then the arrow keys go through methods (↑ ↓) \
                 and prompts (← →). " (shown) " are in the run's " code { "cells/" } "."
            }
            @for (i, samples) in self.samples.iter().enumerate() {
                @let id = format!("samples-{i}");
                h3 id=(id) { (samples.title) }
                (sample_table(samples, &id))
            }
        }
    }

    fn schedules(&self) -> Markup {
        if self.schedules.is_empty() {
            return html! {
                p { "This run keeps no record of it. If an earlier version made it, the same sweep command on the finished run adds it." }
            };
        }
        html! {
            p { "Dilation of every 3×3 convolution at every sampling step; step 1 is the noisiest. The passes of guidance may differ." }
            @for maps in self.schedules.chunk_by(|a, b| a.place == b.place) {
                h3 { (maps[0].place) }
                (schedule_maps(maps))
            }
        }
    }
}

/// What each comparison of a protocol compares.
pub(crate) fn compared(protocol: &Protocol) -> Markup {
    html! {
        ul {
            @for comparison in &protocol.compare {
                @let text = comparison.describe();
                @let (id, what) = text.split_once(": ").unwrap_or(("", &text));
                li { code { (id) } ": " (what) }
            }
        }
    }
}

fn reference(resolved: &Resolved) -> String {
    match &resolved.reference {
        Reference::Emoji { images, .. } if resolved.video.is_some() => format!("{images} videos rendered at the same size"),
        Reference::Emoji { images, .. } => format!("{images} images rendered at the same size"),
        Reference::Folder { images, .. } => format!("the {images} images of the reference folder"),
        Reference::Parquet { images, .. } => format!("the {images} images of the reference table"),
        Reference::Shards { images, .. } => format!("the {images} images of the reference shards"),
        Reference::Statistics { path, .. } => format!("{}, mean and covariance of features", path.display()),
    }
}
