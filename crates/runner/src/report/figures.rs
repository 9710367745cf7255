//! Charts of the scores against scale and settings, as SVG.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::experiment::resolved::Method;
use crate::run::results::{Interval, Row, label};

/// One chart: the scores of one model under one metric.
pub(crate) struct Chart {
    /// File name without extension.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// Okabe and Ito's palette without black and yellow, which colour-blind readers can tell apart:
/// <https://jfly.uni-koeln.de/color/>.
pub(crate) const PALETTE: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Charts of every model and metric that has values, against scale and against every numeric axis of the matrix; `note` is
/// printed into each.
pub(crate) fn charts(rows: &[Row], methods: &[Method], note: &str) -> Result<Vec<Chart>> {
    let mut models: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    models.dedup();
    let axes = axes(rows);
    let mut charts = Vec::new();
    let columns: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    for model in &models {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.model == *model).collect();
        // At one scale, lines against scale would be columns of points that the axes show better.
        let against_scale = axes.is_empty() || rows.iter().any(|row| row.scale != rows[0].scale);
        for column in &columns {
            let (label, factor) = label(column);
            let mut add = |file: &str, x: &Axis, lines: Vec<Line>| -> Result<()> {
                let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
                if lines.is_empty() {
                    return Ok(());
                }
                let name = if models.len() == 1 { file.to_owned() } else { format!("{file}-{model}") };
                let svg = draw(&lines, x, &label, note).map_err(|error| anyhow!("cannot draw {name}: {error}"))?;
                charts.push(Chart { name, title: format!("{label}, {model}, against {}", x.name), svg });
                Ok(())
            };
            if against_scale {
                let line = |(index, method): (usize, &Method)| {
                    let of_method = rows.iter().filter(|row| row.method == method.name);
                    let points = of_method.filter_map(|row| Some((row.scale, row.score(column)?.times(factor))));
                    Line::new(method.title.clone(), index, points.collect())
                };
                add(column, &Axis::scale(), methods.iter().enumerate().map(line).collect())?;
            }
            for axis in &axes {
                add(&format!("{column}-by-{axis}"), &Axis::setting(axis), along(axis, &rows, methods, column, factor))?;
            }
        }
    }
    Ok(charts)
}

/// Keys under which rows hold two different numbers or more.
fn axes(rows: &[Row]) -> Vec<String> {
    let keys: BTreeSet<&String> = rows.iter().flat_map(|row| row.set.keys()).collect();
    let is_axis = |key: &&String| {
        let mut numbers: Vec<f64> = rows.iter().filter_map(|row| row.set.get(*key)?.parse().ok()).filter(|x: &f64| x.is_finite()).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        numbers.len() > 1
    };
    keys.into_iter().filter(is_axis).cloned().collect()
}

/// A line for everything that differs in `axis` alone, and a level one for each baseline that knows no such setting.
fn along(axis: &str, rows: &[&Row], methods: &[Method], column: &str, factor: f64) -> Vec<Line> {
    let several_sizes = rows.iter().any(|row| !row.is_rival_of(rows[0]));
    let title = |row: &Row, of_axis: bool| {
        let method = methods.iter().find(|method| method.name == row.method);
        let mut title = method.map_or(row.method.as_str(), |method| &method.title);
        let mut parts = Vec::new();
        if let (true, Some(of)) = (of_axis, method.and_then(|method| method.variant_of.as_ref())) {
            let label = format!(", {}", &row.method[(of.len() + 1).min(row.method.len())..]);
            title = title.strip_suffix(&label).unwrap_or(title);
            parts.extend(
                row.set
                    .iter()
                    .filter(|(key, _)| *key != axis)
                    .map(|(key, value)| format!("{}={value}", key.rsplit('.').next().unwrap_or(key))),
            );
        }
        let size = several_sizes.then(|| format!("{}×{}", row.width, row.height));
        std::iter::once(title.to_owned()).chain(parts).chain(size).collect::<Vec<_>>().join(", ")
    };
    let mut lines: Vec<(String, Vec<(f64, Interval)>)> = Vec::new();
    for row in rows {
        let Some(x) = row.set.get(axis).and_then(|x| x.parse::<f64>().ok()).filter(|x| x.is_finite()) else { continue };
        let Some(y) = row.score(column) else { continue };
        let title = title(row, true);
        match lines.iter_mut().find(|(known, _)| *known == title) {
            Some((_, points)) => points.push((x, y.times(factor))),
            None => lines.push((title, vec![(x, y.times(factor))])),
        }
    }
    let xs = || lines.iter().flat_map(|(_, points)| points.iter().map(|(x, _)| *x));
    let (first, last) = (xs().fold(f64::MAX, f64::min), xs().fold(f64::MIN, f64::max));
    let level = |row: &&&Row| row.baseline == row.method && !row.set.contains_key(axis);
    let levels: Vec<_> = rows
        .iter()
        .filter(level)
        .filter_map(|row| {
            let y = row.score(column)?.times(factor);
            Some((title(row, false), vec![(first, y), (last, y)]))
        })
        .collect();
    if lines.is_empty() {
        return Vec::new();
    }
    levels.into_iter().chain(lines).enumerate().map(|(index, (title, points))| Line::new(title, index, points)).collect()
}

/// What lies along a chart.
struct Axis {
    name: String,
    /// Ratios count, rather than differences.
    logarithmic: bool,
    suffix: &'static str,
}

impl Axis {
    fn scale() -> Axis {
        Axis { name: "pixels relative to training".to_owned(), logarithmic: true, suffix: "×" }
    }

    fn setting(key: &str) -> Axis {
        Axis { name: key.to_owned(), logarithmic: false, suffix: "" }
    }
}

struct Line {
    title: String,
    /// Which line it is: it has the same colour and marker in every chart of its kind.
    index: usize,
    color: RGBColor,
    points: Vec<(f64, Interval)>,
}

impl Line {
    fn new(title: String, index: usize, mut points: Vec<(f64, Interval)>) -> Line {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { title, index, color: PALETTE[index % PALETTE.len()], points }
    }
}

/// Size of a chart. Small enough for its letters to be legible on a phone.
pub(crate) const SIZE: (u32, u32) = (520, 360);
/// Size of the letters, and the height of a line of them.
pub(crate) const LETTERS: i32 = 18;
pub(crate) const LINE: i32 = 22;

/// Where each entry of the legend stands: left edge and line. It is above the plot, where it can hide no point.
pub(crate) fn legend_places(titles: &[&str]) -> Vec<(i32, i32)> {
    let (mut x, mut line) = (12, 0);
    let place = |title: &&str| {
        let width = 38 + title.chars().count() as i32 * LETTERS / 2;
        if x > 12 && x + width > SIZE.0 as i32 {
            (x, line) = (12, line + 1);
        }
        let at = (x, line);
        x += width;
        at
    };
    titles.iter().map(place).collect()
}

/// The outline of the `i`-th line's marker around (0, 0): shapes differ as colours do, for those who cannot tell the
/// colours apart.
pub(crate) fn marker(i: usize) -> Vec<(i32, i32)> {
    match i % PALETTE.len() {
        0 => vec![(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        1 => vec![(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => vec![(0, -6), (5, 4), (-5, 4)],
        3 => vec![(0, -6), (6, 0), (0, 6), (-6, 0)],
        4 => vec![(0, 6), (5, -4), (-5, -4)],
        _ => vec![(-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)],
    }
}

/// Draws `lines` and, above them, their names.
fn draw(lines: &[Line], x: &Axis, label: &str, note: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut values: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(value, _)| *value)).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    // The coordinate is logarithmic: where differences count, it is given powers.
    let (least, span) = (values[0], values[values.len() - 1] - values[0]);
    let place = |value: f64| match x.logarithmic {
        true => value,
        false => (1.5 * (value - least) / if span > 0.0 { span } else { 1.0 }).exp(),
    };
    let places: Vec<f64> = values.iter().map(|value| place(*value)).collect();
    let bounds = || lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let top = bounds().map(|y| y.hi).fold(f64::MIN, f64::max);
    let bottom = bounds().map(|y| y.lo).fold(f64::MAX, f64::min);
    let room = ((top - bottom) * 0.08).max(1e-3);
    let (first, last) = (places[0], places[places.len() - 1]);
    // What a place on the axis is called: coordinates are shifted by rounding.
    let name = |at: &f64| {
        let nearest = places.iter().zip(&values).min_by(|a, b| (a.0 - at).abs().total_cmp(&(b.0 - at).abs()));
        nearest.map_or_else(String::new, |(_, value)| format!("{value}{}", x.suffix))
    };
    // Labels stand about a sixth of the span apart.
    let digits = (1.0 - (top - bottom + 2.0 * room).log10()).ceil().clamp(0.0, 6.0) as usize;
    let font = || ("sans-serif", LETTERS).into_font();

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let entries = legend_places(&lines.iter().map(|line| line.title.as_str()).collect::<Vec<_>>());
        let n_lines = entries.last().map_or(0, |(_, line)| line + 1);
        for (line, (x, row)) in lines.iter().zip(&entries) {
            let y = row * LINE + LINE / 2 + 4;
            root.draw(&PathElement::new([(*x, y), (x + 24, y)], line.color.stroke_width(2)))?;
            root.draw(&Polygon::new(
                marker(line.index).iter().map(|(dx, dy)| (x + 12 + dx, y + dy)).collect::<Vec<_>>(),
                line.color.filled(),
            ))?;
            root.draw(&Text::new(line.title.clone(), (x + 30, y - LETTERS / 2), font()))?;
        }
        let (_, below) = root.split_vertically(n_lines * LINE + 6);
        let note_height = if note.is_empty() { 0 } else { LINE + 2 };
        let (plot, foot) = below.split_vertically(SIZE.1 as i32 - n_lines * LINE - 6 - note_height);
        foot.draw(&Text::new(note.to_owned(), (12, 2), font().color(&BLACK.mix(0.7))))?;
        let range = (first / 1.25)..(last * 1.25);
        let mut chart = ChartBuilder::on(&plot)
            .margin(8)
            .x_label_area_size(48)
            .y_label_area_size(74)
            .build_cartesian_2d(range.log_scale().with_key_points(places.clone()), (bottom - room)..(top + room))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .y_labels(6)
            .x_desc(x.name.clone())
            .y_desc(label)
            .x_label_formatter(&name)
            .y_label_formatter(&|value| format!("{value:.digits$}").replace('-', "−"))
            .label_style(("sans-serif", LETTERS))
            .axis_desc_style(("sans-serif", LETTERS))
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            // Lines stand a little apart, so that their bars do not hide one another.
            let shift = 1.03f64.powf(i as f64 - (lines.len() as f64 - 1.0) / 2.0);
            let points: Vec<(f64, Interval)> = line.points.iter().map(|(x, y)| (place(*x) * shift, *y)).collect();
            let stroke = line.color.stroke_width(2);
            chart.draw_series(LineSeries::new(points.iter().map(|(x, y)| (*x, y.value)), stroke))?;
            chart.draw_series(points.iter().map(|(x, y)| PathElement::new([(*x, y.lo), (*x, y.hi)], stroke)))?;
            let caps = points.iter().flat_map(|(x, y)| [(*x, y.lo), (*x, y.hi)]);
            chart.draw_series(caps.map(|at| EmptyElement::at(at) + PathElement::new([(-4, 0), (4, 0)], stroke)))?;
            let filled = line.color.filled();
            chart.draw_series(points.iter().map(|(x, y)| EmptyElement::at((*x, y.value)) + Polygon::new(marker(line.index), filled)))?;
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_every_method_and_the_note() {
        let y = |value| Interval { value, lo: value - 1.0, hi: value + 1.0 };
        let line = |title: &str, index: usize, a, b| Line::new(title.into(), index, vec![(4.0, y(a)), (16.0, y(b))]);
        let scale = Axis::scale();
        let lines = [line("Direct-Inf", 0, 9.0, 20.0), line("Attn-SF", 1, 8.0, 18.0)];
        let svg = draw(&lines, &scale, "FID_r", "pocket features").unwrap();
        for text in ["Direct-Inf", "Attn-SF", "pocket features", "4×", "16×"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg, draw(&lines, &scale, "FID_r", "pocket features").unwrap());
        assert!(draw(&lines[..1], &scale, "one", "").is_ok());
        let shapes: std::collections::BTreeSet<_> = (0..PALETTE.len()).map(marker).collect();
        assert_eq!(shapes.len(), PALETTE.len());
        let places = legend_places(&["Direct-Inf", "Attn-SF", "Re-dilation", "Re-dilation + dispersion", "ScaleCrafter"]);
        assert!(places.iter().any(|(_, line)| *line > 0) && places.windows(2).all(|p| (p[0].1, p[0].0) < (p[1].1, p[1].0)), "{places:?}");
    }

    #[test]
    fn an_axis_of_numbers_has_a_chart_of_its_own() {
        let method = |name: &str, of: Option<&str>, title: &str| Method {
            name: name.into(),
            title: title.into(),
            images: None,
            settings: serde_yaml::Value::Null,
            variant_of: of.map(str::to_owned),
            set: Default::default(),
            sampler: None,
            seed: None,
        };
        let methods = [
            method("direct-inf", None, "Direct-Inf"),
            method("redilation_tau=10", Some("redilation"), "Re-dilation, tau=10"),
            method("redilation_tau=40", Some("redilation"), "Re-dilation, tau=40"),
        ];
        let row = |i: usize, fid: f64| Row {
            model: "m".into(),
            scale: 4.0,
            width: 128,
            height: 128,
            method: methods[i].name.clone(),
            protocol: "pocket".into(),
            n_images: 3,
            n_reference: Some(8),
            baseline: "direct-inf".into(),
            set: methods[i].name.split_once('=').map(|(_, tau)| ("redilation.tau".to_owned(), tau.to_owned())).into_iter().collect(),
            scores: vec![crate::run::results::Score {
                column: "fid_r".into(),
                value: Some(Interval { value: fid, lo: fid - 1.0, hi: fid + 1.0 }),
                difference: None,
                standing: None,
                published: None,
            }],
            unet_flops_per_image: None,
            seconds_per_image: None,
            peak_memory_bytes: None,
        };
        let rows = [row(0, 30.0), row(1, 20.0), row(2, 10.0)];
        let charts = charts(&rows, &methods, "").unwrap();
        let names: Vec<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
        assert_eq!(names, ["fid_r-by-redilation.tau"]);
        assert_eq!(charts[0].title, "FID_r, m, against redilation.tau");
        for text in [">\nDirect-Inf\n<", ">\nRe-dilation\n<", ">\n10\n<", ">\n40\n<"] {
            assert!(charts[0].svg.contains(text), "{text}: {}", charts[0].svg);
        }
        let lines = along("redilation.tau", &rows.iter().collect::<Vec<_>>(), &methods, "fid_r", 1.0);
        let points: Vec<Vec<(f64, f64)>> = lines.iter().map(|line| line.points.iter().map(|(x, y)| (*x, y.value)).collect()).collect();
        assert_eq!(points, [[(10.0, 30.0), (40.0, 30.0)], [(10.0, 20.0), (40.0, 10.0)]]);
    }
}
