//! `DIR/report`: one self-contained HTML page, and its parts as files of their own.
//!
//! Everything is read from the run directory, so the report can be rebuilt at any time.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use scalebench_metrics::Image;

use crate::execute::{RUN_FILE, RunFile};
use crate::plan::cell_name;
use crate::protocol::Comparison;
use crate::resolve::{Model, Prompts, Reference, Resolved, Scale};
use crate::results::Row;
use crate::store::{ManifestLine, Store};
use crate::{figures, grid, png, score, tables};

/// What is said beside numbers that were not made with the full-width network.
pub(crate) const NOT_COMPARABLE: &str = "pocket features: not comparable with published FID";

/// Writes the page, the charts, the grids and the table.
pub(crate) fn write(store: &Store) -> Result<()> {
    let path = store.path(RUN_FILE);
    let bytes = store.read(RUN_FILE)?;
    let bytes = bytes.with_context(|| format!("{}: expected the description of a run", path.display()))?;
    let run: RunFile = serde_yaml::from_slice(&bytes).with_context(|| format!("{}: not a run description", path.display()))?;
    let rows = tables::read(store)?;
    let resolved = &run.experiment;
    let note = if resolved.metrics.comparable() { "" } else { NOT_COMPARABLE };
    let methods: Vec<(String, String)> = resolved.methods.iter().map(|method| (method.name.clone(), method.title.clone())).collect();

    let charts = figures::charts(&rows, &methods, note)?;
    for chart in &charts {
        store.write(&format!("report/{}.svg", chart.name), chart.svg.as_bytes())?;
    }
    let grids = grids(store, resolved)?;
    for grid in &grids {
        let rows: Vec<Image> = grid.rows.iter().map(|(_, row)| row.clone()).collect();
        store.write(&format!("report/{}.png", grid.name), &png::encode(&grid::stack(&rows)?, None)?)?;
    }
    let mut markdown = tables::markdown(&rows);
    if !note.is_empty() {
        write!(markdown, "\n{note}\n")?;
    }
    store.write("report/table.md", markdown.as_bytes())?;
    store.write("report/index.html", page(&run, &rows, &charts, &grids, note)?.as_bytes())
}

/// Sample images of one model at one scale.
struct Grid {
    name: String,
    title: String,
    prompts: Vec<String>,
    /// Label and tiles.
    rows: Vec<(String, Image)>,
}

fn grids(store: &Store, resolved: &Resolved) -> Result<Vec<Grid>> {
    let columns = resolved.images.min(grid::MAX_COLUMNS);
    let mut grids = Vec::new();
    for model in &resolved.models {
        for scale in &resolved.scales {
            grids.push(make_grid(store, resolved, model, scale, columns)?);
        }
    }
    Ok(grids)
}

fn make_grid(store: &Store, resolved: &Resolved, model: &Model, scale: &Scale, columns: usize) -> Result<Grid> {
    let (width, height) = model.size(scale)?;
    let mut rows = Vec::new();
    // Reference images belong to the columns only if both come from the set in the same order.
    if let (Reference::Emoji { images, seed }, Prompts::Emoji { .. }) = (&resolved.reference, &resolved.prompts) {
        let images = score::reference_images(*seed, 0..columns.min(*images), width, height);
        rows.push(("Reference".to_owned(), grid::row(&images.collect::<Result<Vec<_>>>()?)?));
    }
    let mut prompts = Vec::new();
    for method in &resolved.methods {
        let cell = cell_name(&model.name, scale, &method.name);
        let manifest: Vec<ManifestLine> = store.read_lines(&format!("cells/{cell}/manifest.jsonl"))?;
        let images = manifest.iter().take(columns).map(|line| -> Result<Image> {
            let bytes = store.read_image(&cell, line.index, &line.key)?;
            let bytes = bytes.with_context(|| format!("cell {cell}: image {} is missing or damaged", line.index))?;
            Ok(png::decode(&bytes)?.0)
        });
        let images = images.collect::<Result<Vec<_>>>()?;
        anyhow::ensure!(!images.is_empty(), "cell {cell}: no manifest, expected a finished run");
        rows.push((method.title.clone(), grid::row(&images)?));
        prompts = manifest.into_iter().take(columns).map(|line| line.prompt).collect();
    }
    let name = format!("grid-{}-{}x", model.name, scale.factor);
    Ok(Grid { name, title: format!("{}, {}× ({width}×{height})", model.name, scale.factor), prompts, rows })
}

/// Text as HTML text or attribute value.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

const STYLE: &str = "
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 70rem; margin: 0 auto; padding: 1rem }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem }
.note { border-left: 4px solid #d55e00; padding: .4rem .8rem; background: #fdf3ec }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
figure { margin: 0 } svg, img { max-width: 100%; height: auto; display: block }
.row { margin: .6rem 0 } .row b { font-size: .9rem } .row img { min-width: min(100%, 20rem) }
pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: .8rem }
code { overflow-wrap: anywhere }
";

fn page(run: &RunFile, rows: &[Row], charts: &[figures::Chart], grids: &[Grid], note: &str) -> Result<String> {
    let resolved = &run.experiment;
    let title = escape(&resolved.name);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>scalebench: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    if let Some(question) = &resolved.question {
        writeln!(html, "<p>{}</p>", escape(question))?;
    }
    if !note.is_empty() {
        writeln!(html, "<p class=\"note\">{}</p>", escape(note))?;
    }

    html += "<h2>Results</h2>\n<div class=\"scroll\"><table>\n";
    for (i, line) in tables::compact(rows).iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        let cells: String = line.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        writeln!(html, "<tr>{cells}</tr>")?;
    }
    html += "</table></div>\n";
    writeln!(html, "<p>{}</p>", escape(&legend(resolved)))?;
    let protocol = &resolved.metrics.protocol;
    if !protocol.uncertain.is_empty() {
        writeln!(html, "<details><summary>What protocol {} leaves open</summary>\n<ul>", escape(&protocol.name))?;
        for sentence in &protocol.uncertain {
            writeln!(html, "<li>{}</li>", escape(sentence))?;
        }
        html += "</ul></details>\n";
    }

    html += "<h2>Scores against scale</h2>\n<div class=\"charts\">\n";
    for chart in charts {
        let label = escape(&chart.title);
        writeln!(html, "<figure role=\"img\" aria-label=\"{label}\">{}</figure>", chart.svg)?;
    }
    html += "</div>\n<h2>Samples</h2>\n<p>Each column is one prompt and one seed.</p>\n";
    for grid in grids {
        writeln!(html, "<h3>{}</h3>\n<p>{}</p>", escape(&grid.title), escape(&grid.prompts.join(" · ")))?;
        for (label, row) in &grid.rows {
            let label = escape(label);
            let data = BASE64_STANDARD.encode(png::encode(row, None)?);
            let (width, height) = (row.width, row.height);
            writeln!(
                html,
                "<div class=\"row\"><b>{label}</b>\n<img alt=\"{label}\" width=\"{width}\" height=\"{height}\" \
                 src=\"data:image/png;base64,{data}\"></div>"
            )?;
        }
    }

    html += "<h2>Provenance</h2>\n<ul>\n";
    let mut item = |name: &str, value: &str| writeln!(html, "<li>{name}: <code>{}</code></li>", escape(value));
    item("command", &run.command)?;
    item("version", &resolved.tool)?;
    for model in &resolved.models {
        item(&format!("checkpoint {}", escape(&model.name)), &model.digest)?;
    }
    item("protocol", &format!("{}: {}", resolved.metrics.protocol.name, resolved.metrics.protocol.source))?;
    for network in &resolved.metrics.networks {
        item("feature network", &format!("{} {}", network.features, network.digest))?;
    }
    let yaml = escape(&serde_yaml::to_string(resolved)?);
    write!(html, "</ul>\n<details><summary>The experiment as it ran</summary>\n<pre>{yaml}</pre></details>\n</body>\n</html>\n")?;
    Ok(html)
}

/// What the columns of the table mean in this run.
fn legend(resolved: &Resolved) -> String {
    let protocol = &resolved.metrics.protocol;
    let reference = match &resolved.reference {
        Reference::Emoji { images, .. } => format!("{images} images rendered at the same size"),
        Reference::Folder { images, .. } => format!("the {images} images of the reference folder"),
    };
    let columns: Vec<String> = protocol.compare.iter().map(Comparison::describe).collect();
    let networks: Vec<&str> = resolved.metrics.networks.iter().map(|network| network.features.as_str()).collect();
    format!(
        "Protocol {} ({}). {}. The reference is {reference}. Δ: paired difference to direct-inf at the same scale, with what its \
         interval says. Intervals are 95 % (delete-a-block jackknife over prompts and seeds, t distribution); FID depends on n, KID \
         does not. Features: {}.",
        protocol.name,
        protocol.title,
        columns.join(". "),
        networks.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_cannot_break_out_of_the_page() {
        assert_eq!(escape("<b a=\"x\" b='y'>&"), "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;");
    }
}
