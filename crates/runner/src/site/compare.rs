//! Two methods on the same prompts and seeds: a slider between the images, or one after the other.

use anyhow::Result;
use maud::{Markup, PreEscaped, html};
use serde::Serialize;

use super::frame;
use super::source::Source;
use crate::experiment::methods::BASELINE;
use crate::report::page::Tile;

/// Everything that can be compared: one entry a run and place.
pub(super) struct Pairs<'a>(Vec<Entry<'a>>);

#[derive(Serialize)]
struct Entry<'a> {
    run: &'a str,
    title: &'a str,
    columns: Vec<Column<'a>>,
    rows: Vec<Line<'a>>,
    #[serde(skip)]
    plain: usize,
}

/// Seeds are text: JavaScript's numbers would lose digits of them.
#[derive(Serialize)]
struct Column<'a> {
    prompt: &'a str,
    seed: String,
}

#[derive(Serialize)]
struct Line<'a> {
    label: &'a str,
    seeded: bool,
    tiles: Vec<&'a str>,
    width: usize,
    height: usize,
}

/// Those of all runs that have two rows of samples at a place.
pub(super) fn pairs(sources: &[Source]) -> Pairs<'_> {
    let mut entries = Vec::new();
    for source in sources {
        for samples in source.shown.samples.iter().filter(|samples| samples.rows.len() > 1) {
            let first = |tiles: &'_ [Tile]| tiles.first().map_or((0, 0), |tile| (tile.width, tile.height));
            let rows: Vec<Line> = samples
                .rows
                .iter()
                .map(|row| {
                    let (width, height) = first(&row.tiles);
                    let tiles = row.tiles.iter().map(|tile| tile.src.as_str()).collect();
                    Line { label: &row.label, seeded: row.seeded, tiles, width, height }
                })
                .collect();
            let columns = samples.columns.iter().map(|column| Column { prompt: &column.prompt, seed: column.seed.to_string() }).collect();
            let is_plain = |row: &Line| source.titles(BASELINE).any(|title| title == row.label);
            let plain = rows.iter().position(is_plain).unwrap_or(0);
            entries.push(Entry { run: &source.name, title: &samples.title, columns, rows, plain });
        }
    }
    Pairs(entries)
}

impl Entry<'_> {
    /// What is shown first: plain sampling, and the last method.
    fn first_pair(&self) -> (usize, usize) {
        let last = self.rows.len() - 1;
        if self.plain == last { (0, last) } else { (self.plain, last) }
    }
}

impl Pairs<'_> {
    /// The page with plain sampling beside a method: `compare.html#ENTRY-A-B-COLUMN`.
    pub(super) fn link(&self, source: &Source, title: &str, method: &str) -> Option<String> {
        let at = self.0.iter().position(|entry| entry.run == source.name && entry.title == title)?;
        let entry = &self.0[at];
        let row = entry.rows.iter().position(|row| row.label == method).filter(|row| *row != entry.plain)?;
        Some(format!("compare.html#{at}-{}-{row}-0", entry.plain))
    }

    pub(super) fn page(&self) -> Result<String> {
        let head = html! {
            h1 { "Compare two methods" }
            p.lead { "The same prompt and seed under both: what differs between the images is the method’s doing." }
        };
        let Some(first) = self.0.first() else {
            return Ok(frame::page("Compare", "compare.html", &head, &html! { p { "No run of this site keeps samples of two methods." } }));
        };
        let data = serde_json::to_string(&self.0)?.replace('<', "\\u003c");
        let content = html! {
            (self.form(first))
            (stage(first))
            script type="application/json" id="pairs" { (PreEscaped(data)) }
            noscript { p { "This page needs JavaScript; the samples are on the " a href="runs.html" { "pages of the runs" } " as well." } }
        };
        Ok(frame::page("Compare", "compare.html", &head, &content))
    }

    fn form(&self, first: &Entry) -> Markup {
        let (a, b) = first.first_pair();
        let choice = |name: &str, title: &str, chosen: usize, options: &[&str]| {
            html! {
                label {
                    (title)
                    select name=(name) { @for (i, option) in options.iter().enumerate() { option value=(i) selected[i == chosen] { (option) } } }
                }
            }
        };
        let places: Vec<String> = self.0.iter().map(|entry| format!("{}: {}", entry.run, entry.title)).collect();
        let labels: Vec<&str> = first.rows.iter().map(|row| row.label).collect();
        let prompts: Vec<&str> = first.columns.iter().map(|column| column.prompt).collect();
        html! {
            form.filters id="compare" aria-label="What is compared" {
                (choice("entry", "Run and size", 0, &places.iter().map(String::as_str).collect::<Vec<_>>()))
                (choice("a", "Left", a, &labels))
                (choice("b", "Right", b, &labels))
                (choice("column", "Prompt", 0, &prompts))
            }
        }
    }
}

/// The images, one upon the other, and what moves the border between them.
fn stage(first: &Entry) -> Markup {
    let (a, b) = first.first_pair();
    let prompt = first.columns.first().map_or("", |column| column.prompt);
    let image = |class: &str, row: &Line| {
        html! { img class=(class) alt={ (row.label) ": " (prompt) } width=(row.width) height=(row.height) src=(row.tiles.first().copied().unwrap_or_default()); }
    };
    html! {
        figure.stage id="stage" {
            div.pair { (image("a", &first.rows[a])) (image("b", &first.rows[b])) span.border aria-hidden="true" {} }
            input type="range" name="share" min="0" max="100" value="50" aria-label="Border between left and right image";
            figcaption aria-live="polite" {}
            div.buttons {
                button type="button" data-step="-1" { "← prompt" }
                button type="button" data-step="1" { "prompt →" }
                button type="button" data-swap { "Swap" }
                button type="button" data-flicker aria-pressed="false" { "Flicker" }
            }
        }
        p.soft {
            "Drag the border, or move it with the arrow keys when the slider has the focus. “Flicker” shows one image, then the other, once a second."
        }
    }
}
