//! Charts, samples and heat maps read back from a report's page.
//!
//! The page is one file that holds all of a report, so it is what people keep of a run, and what a site is made from. It is read by
//! the marks that [`page`](crate::report::page) has put there since the first version, not as any HTML.

use anyhow::{Context, Result, bail};

use crate::report::figures::Chart;
use crate::report::page::{CHART_NOTE, Column, SampleRow, Samples, ScheduleMap, Tile};

/// What a page shows besides numbers.
#[derive(Default)]
pub(crate) struct Shown {
    pub(crate) charts: Vec<Chart>,
    pub(crate) samples: Vec<Samples>,
    pub(crate) schedules: Vec<ScheduleMap>,
}

/// Reads a page.
pub(crate) fn read(page: &str) -> Result<Shown> {
    let section = |id: &str| {
        let (_, rest) = page.split_once(&format!("<section aria-labelledby=\"{id}\">"))?;
        rest.split_once("</section>").map(|(section, _)| section)
    };
    let part = |id: &str| section(id).with_context(|| format!("no section `{id}`, expected a page that `scalebench report` wrote"));
    let samples = part("samples")?.split("<h3 id=\"samples-").skip(1).map(samples).collect::<Result<_>>()?;
    let mut schedules = Vec::new();
    for place in part("schedules")?.split("<h3>").skip(1) {
        schedules.extend(maps(place)?);
    }
    let charts = part("charts")?.split("<figure>").skip(1).map(chart).collect::<Result<_>>()?;
    Ok(Shown { charts, samples, schedules })
}

/// A drawing and its caption; what its file was called is not known any more.
fn chart(figure: &str) -> Result<Chart> {
    let title = decoded(between(figure, "<figcaption>", "</figcaption>")?);
    let title = title.strip_suffix(CHART_NOTE).unwrap_or(&title).to_owned();
    Ok(Chart { name: String::new(), title, svg: drawing(figure)? })
}

fn drawing(figure: &str) -> Result<String> {
    Ok(format!("<svg {}</svg>", between(figure, "<svg ", "</svg>")?))
}

/// The text between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Result<&'a str> {
    let found = text.split_once(from).and_then(|(_, rest)| rest.split_once(to));
    found.map(|(found, _)| found).with_context(|| format!("expected `{from}` and then `{to}`"))
}

fn attribute(element: &str, name: &str) -> Result<String> {
    Ok(decoded(between(element, &format!("{name}=\""), "\"")?))
}

/// The samples of one place: what follows its heading's identifier.
fn samples(table: &str) -> Result<Samples> {
    let title = decoded(between(table, ">", "</h3>")?);
    let of_place = || format!("samples of {title}");
    let mut columns = Vec::new();
    for head in table.split("<bdi>").skip(1) {
        let (prompt, rest) = head.split_once("</bdi>").with_context(of_place)?;
        let seed = between(rest, "<small>seed ", "</small>").with_context(of_place)?;
        columns.push(Column { prompt: decoded(prompt), seed: seed.parse().with_context(of_place)? });
    }
    let mut rows = Vec::new();
    for row in table.split("<th scope=\"row\">").skip(1) {
        rows.push(sample_row(row).with_context(of_place)?);
    }
    Ok(Samples { title, columns, rows })
}

fn sample_row(row: &str) -> Result<SampleRow> {
    let (label, _) = row.split_once("</th>").context("expected the end of a row's head")?;
    let label = decoded(label);
    let (mut tiles, mut seeded) = (Vec::new(), true);
    for image in row.split("<img ").skip(1) {
        let side = |name: &str| -> Result<usize> { attribute(image, name)?.parse().with_context(|| format!("{label}: {name}")) };
        // Only images of the columns' seeds say which it is, at the end.
        let about = attribute(image, "alt")?;
        seeded &= about.rsplit_once(", seed ").is_some_and(|(_, seed)| seed.parse::<u64>().is_ok());
        tiles.push(Tile { src: attribute(image, "src")?, width: side("width")?, height: side("height")? });
    }
    if tiles.is_empty() {
        bail!("{label}: a row without images");
    }
    Ok(SampleRow { label, seeded, tiles })
}

/// What the methods do at one place: what follows its heading's mark.
fn maps(place: &str) -> Result<Vec<ScheduleMap>> {
    let (name, rest) = place.split_once("</h3>").context("expected the end of a heading")?;
    let map = |caption: &str, svg: Option<String>| -> Result<ScheduleMap> {
        let (method, description) = caption.split_once("</strong>").context("expected the name of a method")?;
        let description = decoded(description.strip_prefix(": ").unwrap_or(description));
        Ok(ScheduleMap { place: decoded(name), method: decoded(method), description, svg })
    };
    let mut maps = Vec::new();
    for item in rest.split("<li><strong>").skip(1) {
        maps.push(map(item.split_once("</li>").context("expected the end of an item")?.0, None)?);
    }
    for figure in rest.split("<figure>").skip(1) {
        maps.push(map(between(figure, "<figcaption><strong>", "</figcaption>")?, Some(drawing(figure)?))?);
    }
    Ok(maps)
}

/// Text whose markup characters were escaped.
fn decoded(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (name, character)| text.replace(name, character))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::{charts, sample_table, schedule_maps};
    use maud::html;

    fn tile(src: &str) -> Tile {
        Tile { src: src.to_owned(), width: 256, height: 128 }
    }

    #[test]
    fn what_a_page_shows_is_read_back() {
        let hostile = "<b a=\"x\" b='y'>&amp;</h3>, seed 7";
        let samples = Samples {
            title: format!("m {hostile}, 4× (256×128)"),
            columns: vec![Column { prompt: hostile.to_owned(), seed: u64::MAX }, Column { prompt: "cat".to_owned(), seed: 1 }],
            rows: vec![
                SampleRow { label: "Reference".to_owned(), seeded: false, tiles: vec![tile("data:a"), tile("data:b")] },
                SampleRow { label: hostile.to_owned(), seeded: true, tiles: vec![tile("data:c"), tile("data:d")] },
            ],
        };
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"><text>a &lt; b</text></svg>".to_owned();
        let map = |method: &str, svg: Option<String>| ScheduleMap {
            place: "m, 4×".to_owned(),
            method: method.to_owned(),
            description: format!("does {hostile}"),
            svg,
        };
        let maps = [map("plain", None), map(hostile, Some(svg.clone()))];
        let chart = Chart { name: "c".to_owned(), title: format!("FID_r {hostile}"), svg: svg.clone() };
        let page = html! {
            section aria-labelledby="charts" { (charts(std::slice::from_ref(&chart))) }
            section aria-labelledby="samples" { h3 id="samples-0" { (samples.title) } (sample_table(&samples, "samples-0")) }
            section aria-labelledby="schedules" { h3 { "m, 4×" } (schedule_maps(&maps)) }
        };
        let found = read(&page.into_string()).unwrap();
        assert_eq!((&found.charts[0].title, &found.charts[0].svg), (&chart.title, &chart.svg));
        let [read] = &found.samples[..] else { panic!("{} tables", found.samples.len()) };
        assert_eq!((&read.title, &read.columns), (&samples.title, &samples.columns));
        let rows = |samples: &Samples| -> Vec<(String, bool, Vec<String>)> {
            let row = |row: &SampleRow| (row.label.clone(), row.seeded, row.tiles.iter().map(|tile| tile.src.clone()).collect());
            samples.rows.iter().map(row).collect()
        };
        // A prompt that ends like a seed makes a row of real images look seeded in that column alone.
        assert_eq!(rows(read), rows(&samples));
        assert_eq!((read.rows[0].tiles[0].width, read.rows[0].tiles[0].height), (256, 128));
        let shown = |maps: &[ScheduleMap]| -> Vec<[String; 4]> {
            let map =
                |map: &ScheduleMap| [map.place.clone(), map.method.clone(), map.description.clone(), map.svg.clone().unwrap_or_default()];
            maps.iter().map(map).collect()
        };
        assert_eq!(shown(&found.schedules), shown(&maps));
    }

    #[test]
    fn another_page_is_refused() {
        let message = read("<p>hello</p>").err().unwrap().to_string();
        assert!(message.contains("expected a page that `scalebench report` wrote"), "{message}");
    }
}
