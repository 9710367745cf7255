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
            let lines = methods.iter().enumerate().map(|(color, (name, title))| {
                let of_method = rows.iter().filter(|row| row.model == *model && row.method == *name);
                let mut points: Vec<(f64, Interval)> =
                    of_method.filter_map(|row| Some((row.scale, row.score(column)?.times(factor)))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Line { title, color: PALETTE[color % PALETTE.len()], points }
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
    color: RGBColor,
    points: Vec<(f64, Interval)>,
}

impl Interval {
    fn times(self, factor: f64) -> Interval {
        Interval { value: self.value * factor, lo: self.lo * factor, hi: self.hi * factor }
    }
}

fn draw(lines: &[Line], label: &str, note: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut scales: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(scale, _)| *scale)).collect();
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    let bounds = || lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y));
    let top = bounds().map(|y| y.hi).fold(f64::MIN, f64::max);
    let bottom = bounds().map(|y| y.lo).fold(f64::MAX, f64::min);
    let room = ((top - bottom) * 0.08).max(1e-3);
    let (first, last) = (scales[0], scales[scales.len() - 1]);

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (720, 460)).into_drawing_area();
        root.fill(&WHITE)?;
        let (upper, lower) = root.split_vertically(432);
        lower.draw(&Text::new(note.to_owned(), (12, 4), ("sans-serif", 14).into_font().color(&BLACK.mix(0.7))))?;
        let range = (first / 1.25)..(last * 1.25);
        let mut chart = ChartBuilder::on(&upper)
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(range.log_scale().with_key_points(scales.clone()), (bottom - room)..(top + room))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc("pixels relative to training")
            .y_desc(label)
            .x_label_formatter(&|scale| format!("{scale}×"))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 15))
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            // Lines stand a little apart, so that their bars do not hide one another.
            let shift = 1.012f64.powf(i as f64 - (lines.len() as f64 - 1.0) / 2.0);
            let points: Vec<(f64, Interval)> = line.points.iter().map(|(x, y)| (x * shift, *y)).collect();
            let stroke = line.color.stroke_width(2);
            let color = line.color;
            chart
                .draw_series(LineSeries::new(points.iter().map(|(x, y)| (*x, y.value)), stroke))?
                .label(line.title)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
            chart.draw_series(points.iter().map(|(x, y)| PathElement::new([(*x, y.lo), (*x, y.hi)], stroke)))?;
            let caps = points.iter().flat_map(|(x, y)| [(*x, y.lo), (*x, y.hi)]);
            chart.draw_series(caps.map(|at| EmptyElement::at(at) + PathElement::new([(-4, 0), (4, 0)], stroke)))?;
            chart.draw_series(points.iter().map(|(x, y)| Circle::new((*x, y.value), 4, color.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.2))
            .label_font(("sans-serif", 14))
            .draw()?;
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
        let line = |title, color, a, b| Line { title, color, points: vec![(4.0, y(a)), (16.0, y(b))] };
        let lines = [line("Direct-Inf", PALETTE[0], 9.0, 20.0), line("Attn-SF", PALETTE[1], 8.0, 18.0)];
        let svg = draw(&lines, "FID_r", "pocket features").unwrap();
        for text in ["Direct-Inf", "Attn-SF", "pocket features", "4×", "16×"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg, draw(&lines, "FID_r", "pocket features").unwrap());
        assert!(draw(&lines[..1], "one", "").is_ok());
    }
}
