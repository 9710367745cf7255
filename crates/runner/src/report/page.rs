//! The report as one HTML page that needs nothing beside itself: no file, no network, and no script to be read.

use std::fmt::{self, Write as _};

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use scalebench_metrics::Verdict;

use crate::experiment::methods::BASELINE;
use crate::experiment::resolved::{Prompts, Reference, Resolved};
use crate::report::figures::Chart;
use crate::report::grid;
use crate::run::file::RunFile;
use crate::run::numbers::{figure, value_and_half_width};
use crate::run::results::{Difference, Row, Score, Standing, label, lower_is_better};
use crate::words::html::escape;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

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

pub(crate) struct Column {
    pub(crate) prompt: String,
    pub(crate) seed: u64,
}

pub(crate) struct SampleRow {
    pub(crate) label: String,
    /// Whether the images were made with the columns' seeds: real ones were not.
    pub(crate) seeded: bool,
    pub(crate) tiles: Vec<Tile>,
}

/// An image of the page.
pub(crate) struct Tile {
    pub(crate) jpeg: Vec<u8>,
    /// Pixels of the image that it stands for.
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// What one method does at one scale.
pub(crate) struct ScheduleMap {
    /// Model and scale.
    pub(crate) place: String,
    pub(crate) method: String,
    pub(crate) description: String,
    /// None if there is nothing to draw.
    pub(crate) svg: Option<String>,
}

/// Writes the page.
pub(crate) fn page(page: &Page) -> Result<String> {
    let mut html = String::new();
    page.write(&mut html)?;
    Ok(html)
}

/// `FID<sub>r</sub> ·10³ ↓`
fn head(column: &str) -> String {
    let (label, _) = label(column);
    let (name, power) = label.split_once('·').map_or((label.as_str(), String::new()), |(name, power)| (name, format!(" ·{power}")));
    let arrow = match lower_is_better(column) {
        Some(true) => " <span title=\"lower is better\">↓</span>",
        Some(false) => " <span title=\"higher is better\">↑</span>",
        None => "",
    };
    match name.split_once('_') {
        Some((metric, id)) => format!("{}<sub>{}</sub>{power}{arrow}", escape(metric), escape(id)),
        None => format!("{}{power}{arrow}", escape(name)),
    }
}

fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// A value with its standing and, below, its difference to the baseline.
fn cell(html: &mut String, score: &Score) -> fmt::Result {
    let factor = label(&score.column).1;
    let Some(value) = score.value else { return html.write_str("<td>–</td>") };
    let (class, badge) = match score.standing {
        Some(Standing::Best) => (" class=\"best\"", "<span class=\"badge\">best</span>"),
        Some(Standing::Undecided) => ("", "<span class=\"badge\" title=\"the paired difference to the best is undecided\">≈ best</span>"),
        Some(Standing::Behind) | None => ("", ""),
    };
    write!(html, "<td{class}><span class=\"value\">{}</span>{badge}", minus(&value_and_half_width(value, factor)))?;
    if let Some(Difference { interval, verdict, n_to_decide }) = score.difference {
        let word = match verdict {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Undecided => "undecided",
        };
        write!(html, "<span class=\"delta\">Δ {}, {word}</span>", minus(&value_and_half_width(interval, factor)))?;
        if let (Verdict::Undecided, Some(n)) = (verdict, n_to_decide) {
            write!(html, "<span class=\"delta\">n ≈ {n} decides</span>")?;
        }
    }
    html.write_str("</td>")
}

impl Page<'_> {
    fn resolved(&self) -> &Resolved {
        &self.run.experiment
    }

    fn method_title<'a>(&'a self, name: &'a str) -> &'a str {
        self.resolved().methods.iter().find(|method| method.name == name).map_or(name, |method| &method.title)
    }

    fn write(&self, html: &mut String) -> Result<()> {
        let resolved = self.resolved();
        let title = escape(&resolved.name);
        write!(
            html,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'\">\n<link rel=\"icon\" href=\"data:,\">\n\
             <title>{title} – scalebench</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        )?;
        if let Some(question) = &resolved.question {
            writeln!(html, "<p class=\"lead\">{}</p>", escape(question))?;
        }
        if !self.note.is_empty() {
            writeln!(html, "<p class=\"note\">{}</p>", escape(self.note))?;
        }
        *html += "<nav aria-label=\"Sections\"><ul>\n";
        for (id, name) in SECTIONS {
            writeln!(html, "<li><a href=\"#{id}\">{name}</a></li>")?;
        }
        *html += "</ul></nav>\n</header>\n<main>\n";
        for (id, name) in SECTIONS {
            writeln!(html, "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{name}</h2>")?;
            match id {
                "results" => self.results(html)?,
                "charts" => self.charts(html)?,
                "samples" => self.samples(html)?,
                "schedules" => self.schedules(html)?,
                _ => self.provenance(html)?,
            }
            *html += "</section>\n";
        }
        write!(
            html,
            "</main>\n<dialog id=\"lightbox\" aria-label=\"Sample\">\n<p aria-live=\"polite\"></p>\n<div>\n\
             <button type=\"button\" data-down=\"0\" data-right=\"-1\">← prompt</button>\n\
             <button type=\"button\" data-down=\"-1\" data-right=\"0\">↑ method</button>\n\
             <button type=\"button\" data-down=\"1\" data-right=\"0\">↓ method</button>\n\
             <button type=\"button\" data-down=\"0\" data-right=\"1\">prompt →</button>\n\
             <button type=\"button\" data-close>Close</button>\n</div>\n</dialog>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
        )?;
        Ok(())
    }

    fn results(&self, html: &mut String) -> Result<()> {
        for model in &self.resolved().models {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.model == model.name).collect();
            self.result_table(html, &model.name, &rows)?;
        }
        self.legend(html)
    }

    fn result_table(&self, html: &mut String, model: &str, rows: &[&Row]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let columns: Vec<&str> = first.scores.iter().map(|score| score.column.as_str()).collect();
        let published: Vec<bool> = (0..columns.len()).map(|i| rows.iter().any(|row| row.scores[i].published.is_some())).collect();
        let two_lines = published.contains(&true);
        let model = escape(model);
        writeln!(
            html,
            "<div class=\"scroll\" role=\"region\" aria-labelledby=\"results-{model}\" tabindex=\"0\">\n<table class=\"results\">\n\
             <caption id=\"results-{model}\">Scores of {model} by scale and method</caption>\n<thead>\n<tr>"
        )?;
        let span = if two_lines { " rowspan=\"2\"" } else { "" };
        writeln!(html, "<th scope=\"col\"{span}>Method</th>")?;
        for (column, published) in columns.iter().zip(&published) {
            match published {
                true => writeln!(html, "<th scope=\"colgroup\" colspan=\"2\">{}</th>", head(column))?,
                false => writeln!(html, "<th scope=\"col\"{span}>{}</th>", head(column))?,
            }
        }
        writeln!(html, "<th scope=\"col\"{span}>s/image</th>\n<th scope=\"col\"{span}>MiB</th></tr>")?;
        if two_lines {
            let n = published.iter().filter(|published| **published).count();
            writeln!(html, "<tr>{}</tr>", "<th scope=\"col\">here</th><th scope=\"col\">published</th>".repeat(n))?;
        }
        *html += "</thead>\n";
        let n_columns = 3 + columns.len() + published.iter().filter(|published| **published).count();
        let mut group: Option<&Row> = None;
        for row in rows {
            if group.is_none_or(|group| !group.is_rival_of(row)) {
                *html += if group.is_some() { "</tbody>\n" } else { "" };
                group = Some(row);
                let reference = row.n_reference.map_or_else(String::new, |n| format!(", {n} in the reference"));
                writeln!(
                    html,
                    "<tbody>\n<tr class=\"group\"><th scope=\"rowgroup\" colspan=\"{n_columns}\"><span>{}× the training pixels, {}×{} px: {} \
                     images{reference}</span></th></tr>",
                    row.scale, row.width, row.height, row.n_images
                )?;
            }
            write!(html, "<tr><th scope=\"row\">{}</th>", escape(self.method_title(&row.method)))?;
            for (i, score) in row.scores.iter().enumerate() {
                cell(html, score)?;
                if published[i] {
                    let text = score.published.map_or_else(|| "–".to_owned(), |value| minus(&figure(value, label(&score.column).1)));
                    write!(html, "<td>{text}</td>")?;
                }
            }
            let cost = |value: Option<f64>, digits: usize| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"));
            let mebibytes = row.peak_memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            writeln!(html, "<td>{}</td><td>{}</td></tr>", cost(row.seconds_per_image, 2), cost(mebibytes, 0))?;
        }
        *html += "</tbody>\n</table>\n</div>\n";
        Ok(())
    }

    /// What the columns and marks of the table mean in this run.
    fn legend(&self, html: &mut String) -> Result<()> {
        let resolved = self.resolved();
        let protocol = &resolved.metrics.protocol;
        let baseline = escape(self.method_title(BASELINE));
        writeln!(
            html,
            "<p><strong>best</strong> of its scale; <strong>≈ best</strong> where the paired difference to the best is \
             undecided. Δ: paired difference to {baseline} at the same scale (by the same sampler and seed, where \
             methods have their own), with what its \
             interval says. Intervals are 95 % (delete-a-block jackknife over prompts and seeds, t distribution). FID depends on the \
             number of images, KID does not.</p>"
        )?;
        let reference = match &resolved.reference {
            Reference::Emoji { images, .. } => format!("{images} images rendered at the same size"),
            Reference::Folder { images, .. } => format!("the {images} images of the reference folder"),
            Reference::Parquet { images, .. } => format!("the {images} images of the reference table"),
            Reference::Shards { images, .. } => format!("the {images} images of the reference shards"),
            Reference::Statistics { path, .. } => format!("{}, mean and covariance of features", escape(&path.display().to_string())),
        };
        writeln!(
            html,
            "<p>Protocol <strong>{}</strong>, {}. The reference is {reference}.</p>\n<ul>",
            escape(&protocol.name),
            escape(&protocol.title)
        )?;
        for comparison in &protocol.compare {
            let text = comparison.describe();
            let (id, what) = text.split_once(": ").unwrap_or(("", &text));
            writeln!(html, "<li><code>{}</code>: {}</li>", escape(id), escape(what))?;
        }
        *html += "</ul>\n";
        for (column, reason) in resolved.absences() {
            writeln!(html, "<p>{} is empty: {}.</p>", head(&column), escape(&reason))?;
        }
        if !protocol.uncertain.is_empty() {
            writeln!(html, "<details><summary>What protocol {} leaves open</summary>\n<ul>", escape(&protocol.name))?;
            for sentence in &protocol.uncertain {
                writeln!(html, "<li>{}</li>", escape(sentence))?;
            }
            *html += "</ul></details>\n";
        }
        Ok(())
    }

    fn charts(&self, html: &mut String) -> Result<()> {
        *html += "<div class=\"charts\">\n";
        for chart in self.charts {
            let title = escape(&chart.title);
            writeln!(
                html,
                "<figure><div class=\"drawing\" role=\"img\" aria-label=\"{title}; the table above has the numbers\">{}</div>\
                 <figcaption>{title}. Bars are 95 % intervals.</figcaption></figure>",
                chart.svg
            )?;
        }
        *html += "</div>\n";
        Ok(())
    }

    fn samples(&self, html: &mut String) -> Result<()> {
        writeln!(
            html,
            "<p>Each column is one prompt and one seed, each row a method. Click an image to enlarge it; then the arrow keys go through \
             methods (↑ ↓) and prompts (← →). Images are shown as JPEG of at most {} pixels; the PNG files are in the run's \
             <code>cells/</code>.</p>",
            grid::EMBEDDED
        )?;
        for (i, samples) in self.samples.iter().enumerate() {
            let title = escape(&samples.title);
            writeln!(
                html,
                "<h3 id=\"samples-{i}\">{title}</h3>\n<div class=\"scroll\" role=\"region\" aria-labelledby=\"samples-{i}\" tabindex=\"0\">\n\
                 <table class=\"samples\">\n<caption class=\"hidden\">Samples of {title}</caption>\n<thead>\n<tr><td></td>"
            )?;
            for Column { prompt, seed } in &samples.columns {
                writeln!(html, "<th scope=\"col\"><bdi>{}</bdi> <small>seed {seed}</small></th>", escape(prompt))?;
            }
            *html += "</tr>\n</thead>\n<tbody>\n";
            for row in &samples.rows {
                let label = escape(&row.label);
                writeln!(html, "<tr><th scope=\"row\">{label}</th>")?;
                for (Column { prompt, seed }, tile) in samples.columns.iter().zip(&row.tiles) {
                    let seed = if row.seeded { format!(", seed {seed}") } else { String::new() };
                    let about = format!("{}{seed}", escape(prompt));
                    writeln!(
                        html,
                        "<td><button type=\"button\" class=\"tile\" data-about=\"{about} · {title}\"><img alt=\"{label}: {about}\" width=\"{}\" \
                         height=\"{}\" src=\"data:image/jpeg;base64,{}\"></button></td>",
                        tile.width,
                        tile.height,
                        BASE64_STANDARD.encode(&tile.jpeg)
                    )?;
                }
                *html += "</tr>\n";
            }
            *html += "</tbody>\n</table>\n</div>\n";
        }
        Ok(())
    }

    fn schedules(&self, html: &mut String) -> Result<()> {
        if self.schedules.is_empty() {
            *html +=
                "<p>This run keeps no record of it: an earlier version made it. The same sweep command on the finished run adds it.</p>\n";
            return Ok(());
        }
        *html +=
            "<p>Dilation of every 3×3 convolution at every sampling step; step 1 is the noisiest. The passes of guidance may differ.</p>\n";
        for maps in self.schedules.chunk_by(|a, b| a.place == b.place) {
            writeln!(html, "<h3>{}</h3>", escape(&maps[0].place))?;
            let (drawn, told): (Vec<_>, Vec<_>) = maps.iter().partition(|map| map.svg.is_some());
            let caption = |map: &ScheduleMap| format!("<strong>{}</strong>: {}", escape(&map.method), escape(&map.description));
            if !told.is_empty() {
                let items: String = told.into_iter().map(|map| format!("<li>{}</li>\n", caption(map))).collect();
                writeln!(html, "<ul>\n{items}</ul>")?;
            }
            *html += "<div class=\"schedules\">\n";
            for map in drawn {
                writeln!(
                    html,
                    "<figure><div class=\"drawing\" role=\"img\" aria-label=\"{}: dilation by layer and step\">{}</div>\
                     <figcaption>{}</figcaption></figure>",
                    escape(&map.method),
                    map.svg.as_deref().unwrap_or_default(),
                    caption(map)
                )?;
            }
            *html += "</div>\n";
        }
        Ok(())
    }

    fn provenance(&self, html: &mut String) -> Result<()> {
        let resolved = self.resolved();
        let mut facts: Vec<(String, String)> = Vec::new();
        let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
        fact("Command", self.run.command.clone());
        fact("Version", resolved.tool.clone());
        fact("Machine", self.run.machine.as_ref().map_or_else(|| "not recorded".to_owned(), ToString::to_string));
        for model in &resolved.models {
            let variant = model.variant.as_ref().map_or_else(String::new, |variant| format!(", variant {variant}"));
            fact(
                &format!("Checkpoint {}", model.name),
                format!(
                    "{}{variant}, family {}, weights as {}, trained at {}×{} px, BLAKE3 {}",
                    model.path.display(),
                    model.family,
                    plain(&model.dtype),
                    model.width,
                    model.height,
                    model.digest
                ),
            );
        }
        let protocol = &resolved.metrics.protocol;
        fact("Protocol", format!("{}: {}", protocol.name, protocol.source));
        for network in &resolved.metrics.networks {
            fact("Feature network", format!("{}: {}, {}", network.path.display(), network.features, network.digest));
        }
        fact(
            "Prompts",
            match &resolved.prompts {
                Prompts::Emoji { seed } => format!("names of the embedded emoji set, in an order keyed by seed {seed}"),
                Prompts::File { path, column, seed, digest } => {
                    let column = column.as_ref().map_or_else(String::new, |column| format!("column {column} of "));
                    let seed = seed.map_or_else(String::new, |seed| format!(", one caption an image, chosen by seed {seed}"));
                    format!("{column}{}{seed}, {digest}", path.display())
                }
            },
        );
        fact(
            "Reference",
            match &resolved.reference {
                Reference::Emoji { images, seed } => format!("{images} renders of the embedded emoji set, order keyed by seed {seed}"),
                Reference::Folder { path, images, digest }
                | Reference::Shards { path, images, digest }
                | Reference::Parquet { path, images, digest, .. } => {
                    format!("{}, {images} images, {digest}", path.display())
                }
                Reference::Statistics { path, images, provenance, stated, digest } => {
                    let n = images.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
                    let says = if *stated { "made with" } else { "taken to be made with" };
                    let (network, preprocess) = (&provenance.extractor, provenance.preprocess.id());
                    format!("{}, statistics of {n} images, {says} {network} and {preprocess}, {digest}", path.display())
                }
            },
        );
        let seeds = match resolved.sampler.seed_once_per_batch_of {
            None => format!("image i is made with seed {} + i, the same in every cell", resolved.seed),
            Some(batch) => format!("every batch of {batch} begins with seed {}", resolved.seed),
        };
        let own: Vec<String> = resolved.methods.iter().filter_map(|m| Some(format!("; {}: {}", m.name, m.seed?))).collect();
        fact("Images and seeds", format!("{}; {seeds}{}", resolved.images_in_words(" a cell"), own.concat()));
        fact("Sampler", settings(&serde_yaml::to_value(&resolved.sampler)?));
        let methods: Vec<String> = resolved.methods.iter().map(|method| format!("{} ({})", method.title, method.name)).collect();
        fact("Methods", methods.join(", "));

        *html += "<table class=\"facts\">\n<caption class=\"hidden\">What the results were made with</caption>\n<tbody>\n";
        for (name, value) in facts {
            writeln!(html, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(&name), escape(&value))?;
        }
        let yaml = serde_yaml::to_string(resolved)?;
        // Line by line: line breaks are the only control characters that are meant.
        let yaml: Vec<String> = yaml.lines().map(escape).collect();
        writeln!(
            html,
            "</tbody>\n</table>\n<details><summary>The experiment as it ran, with every setting</summary>\n<pre tabindex=\"0\">{}</pre></details>",
            yaml.join("\n")
        )?;
        Ok(())
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

/// A value as a YAML file has it.
fn plain(value: &impl serde::Serialize) -> String {
    serde_yaml::to_string(value).unwrap_or_default().trim().to_owned()
}

/// `name: ddim, steps: 50`: what is set, in the order of the experiment file.
fn settings(value: &serde_yaml::Value) -> String {
    let Some(map) = value.as_mapping() else { return String::new() };
    let set = map.iter().filter(|(_, value)| !value.is_null());
    set.map(|(key, value)| format!("{}: {}", plain(key), plain(value))).collect::<Vec<_>>().join(", ")
}
