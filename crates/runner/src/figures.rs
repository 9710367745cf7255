//! Charts of the scores against the scale, as SVG. The only module that speaks plotters.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::results::{Interval, Row, label};

/// One chart: the scores of one model under one metric.
pub(crate) struct Chart {
    /// File name without extension.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// Okabe and Ito's palette without black and yellow, which colour-blind readers can tell apart:
/// <https://jfly.uni-koeln.de/color/>.
const PALETTE: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Charts of every model and metric that has values; `note` is printed into each.
pub(crate) fn charts(rows: &[Row], methods: &[(String, String)], note: &str) -> Result<Vec<Chart>> {
    let mut models: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    models.dedup();
    let mut charts = Vec::new();
    let columns: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    for model in &models {
        for column in &columns {
            let (label, factor) = label(column);
            let lines = methods.iter().enumerate().map(|(index, (name, title))| {
                let of_method = rows.iter().filter(|row| row.model == *model && row.method == *name);
                let mut points: Vec<(f64, Interval)> =
                    of_method.filter_map(|row| Some((row.scale, row.score(column)?.times(factor)))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Line { title, index, color: PALETTE[index % PALETTE.len()], points }
            });
            let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
            if lines.is_empty() {
                continue;
            }
            let name = if models.len() == 1 { (*column).to_owned() } else { format!("{column}-{model}") };
            let svg = draw(&lines, &label, note).map_err(|error| anyhow!("cannot draw {name}: {error}"))?;
            charts.push(Chart { name, title: format!("{label}, {model}"), svg });
        }
    }
    Ok(charts)
}

struct Line<'a> {
    title: &'a str,
    /// Index of the method, which has the same colour and marker in every chart.
    index: usize,
    color: RGBColor,
    points: Vec<(f64, Interval)>,
}

impl Interval {
    fn times(self, factor: f64) -> Interval {
        Interval { value: self.value * factor, lo: self.lo * factor, hi: self.hi * factor }
    }
}

/// Size of a chart. Small enough for its letters to be legible on a phone.
const SIZE: (u32, u32) = (520, 360);
/// Size of the letters, and the height of a line of them.
const LETTERS: i32 = 18;
const LINE: i32 = 22;

/// Where each entry of the legend stands: left edge and line. It is above the plot, where it can hide no point.
fn legend_places(titles: &[&str]) -> Vec<(i32, i32)> {
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
fn marker(i: usize) -> Vec<(i32, i32)> {
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
fn draw(lines: &[Line], label: &str, note: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut scales: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(scale, _)| *scale)).collect();
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    let bounds = || lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let top = bounds().map(|y| y.hi).fold(f64::MIN, f64::max);
    let bottom = bounds().map(|y| y.lo).fold(f64::MAX, f64::min);
    let room = ((top - bottom) * 0.08).max(1e-3);
    let (first, last) = (scales[0], scales[scales.len() - 1]);
    // Labels stand about a sixth of the span apart.
    let digits = (1.0 - (top - bottom + 2.0 * room).log10()).ceil().clamp(0.0, 6.0) as usize;
    let font = || ("sans-serif", LETTERS).into_font();

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let places = legend_places(&lines.iter().map(|line| line.title).collect::<Vec<_>>());
        let n_lines = places.last().map_or(0, |(_, line)| line + 1);
        for (line, (x, row)) in lines.iter().zip(&places) {
            let y = row * LINE + LINE / 2 + 4;
            root.draw(&PathElement::new([(*x, y), (x + 24, y)], line.color.stroke_width(2)))?;
            root.draw(&Polygon::new(
                marker(line.index).iter().map(|(dx, dy)| (x + 12 + dx, y + dy)).collect::<Vec<_>>(),
                line.color.filled(),
            ))?;
            root.draw(&Text::new(line.title.to_owned(), (x + 30, y - LETTERS / 2), font()))?;
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
            .build_cartesian_2d(range.log_scale().with_key_points(scales.clone()), (bottom - room)..(top + room))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .y_labels(6)
            .x_desc("pixels relative to training")
            .y_desc(label)
            .x_label_formatter(&|scale| format!("{scale}×"))
            .y_label_formatter(&|value| format!("{value:.digits$}").replace('-', "−"))
            .label_style(("sans-serif", LETTERS))
            .axis_desc_style(("sans-serif", LETTERS))
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            // Lines stand a little apart, so that their bars do not hide one another.
            let shift = 1.03f64.powf(i as f64 - (lines.len() as f64 - 1.0) / 2.0);
            let points: Vec<(f64, Interval)> = line.points.iter().map(|(x, y)| (x * shift, *y)).collect();
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
        let line = |title, index: usize, a, b| Line { title, index, color: PALETTE[index], points: vec![(4.0, y(a)), (16.0, y(b))] };
        let lines = [line("Direct-Inf", 0, 9.0, 20.0), line("Attn-SF", 1, 8.0, 18.0)];
        let svg = draw(&lines, "FID_r", "pocket features").unwrap();
        for text in ["Direct-Inf", "Attn-SF", "pocket features", "4×", "16×"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg, draw(&lines, "FID_r", "pocket features").unwrap());
        assert!(draw(&lines[..1], "one", "").is_ok());
        let shapes: std::collections::BTreeSet<_> = (0..PALETTE.len()).map(marker).collect();
        assert_eq!(shapes.len(), PALETTE.len());
        let places = legend_places(&["Direct-Inf", "Attn-SF", "Re-dilation", "Re-dilation + dispersion", "ScaleCrafter"]);
        assert!(places.iter().any(|(_, line)| *line > 0) && places.windows(2).all(|p| (p[0].1, p[0].0) < (p[1].1, p[1].0)), "{places:?}");
    }
}
