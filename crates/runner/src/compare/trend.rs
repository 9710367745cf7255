//! The trend chart of a history: every score with its interval, and what an image takes of time and memory, night after
//! night.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::compare::history::{Entry, score_names};
use crate::report::figures::PALETTE;
use crate::run::numbers::MEBIBYTE;
use crate::run::results::{Interval, label};

/// Width of the chart and height of one panel, in pixels.
const PANEL: (u32, u32) = (900, 280);

/// Cells in a row of the legend, and the row's height in pixels.
const LEGEND: (usize, u32) = (3, 22);

/// The charts' palette, and black.
const COLORS: [RGBColor; 7] = {
    let [a, b, c, d, e, f] = PALETTE;
    [a, b, c, d, e, f, BLACK]
};

/// One SVG with a panel for every score and one each for seconds and memory; None of an empty history.
pub(crate) fn chart(entries: &[Entry]) -> Result<Option<String>> {
    let mut panels: Vec<Panel> = Vec::new();
    for name in score_names(entries) {
        let (label, factor) = label(name);
        let value = |entry: &Entry| {
            let Interval { value, lo, hi } = entry.score(name)?;
            Some([value, lo, hi].map(|y| y * factor))
        };
        panels.extend(Panel::new(label, entries, &value));
    }
    panels.extend(Panel::new("s/image".to_owned(), entries, &|entry| entry.seconds_per_image.map(|seconds| [seconds; 3])));
    let mebibytes = |entry: &Entry| entry.peak_memory_bytes.map(|bytes| [bytes as f64 / MEBIBYTE; 3]);
    panels.extend(Panel::new("peak MiB".to_owned(), entries, &mebibytes));
    if panels.is_empty() {
        return Ok(None);
    }
    let mut dates: Vec<&str> = entries.iter().map(|entry| entry.night.date.as_str()).collect();
    dates.dedup();
    let mut cells: Vec<&str> = entries.iter().map(|entry| entry.cell.as_str()).collect();
    cells.sort_unstable();
    cells.dedup();
    draw(&panels, &dates, &cells).map(Some).map_err(|error| anyhow!("cannot draw the trend: {error}"))
}

struct Panel {
    label: String,
    lines: BTreeMap<String, Vec<Point>>,
}

struct Point {
    /// Index of the night.
    night: usize,
    /// Value and bounds.
    y: [f64; 3],
    regressed: bool,
}

impl Panel {
    fn new(label: String, entries: &[Entry], value: &dyn Fn(&Entry) -> Option<[f64; 3]>) -> Option<Panel> {
        let mut lines: BTreeMap<String, Vec<Point>> = BTreeMap::new();
        let (mut night, mut date) = (0, entries.first()?.night.date.as_str());
        for entry in entries {
            if entry.night.date != date {
                (night, date) = (night + 1, &entry.night.date);
            }
            if let Some(y) = value(entry) {
                lines.entry(entry.cell.clone()).or_default().push(Point { night, y, regressed: entry.regressions.is_some() });
            }
        }
        (!lines.is_empty()).then_some(Panel { label, lines })
    }
}

/// The day of a night, with the time where it had several.
fn name_of(date: &str, dates: &[&str]) -> String {
    let day = date.get(..10).unwrap_or(date);
    match dates.iter().filter(|other| other.starts_with(day)).count() {
        0 | 1 => day.to_owned(),
        _ => date.get(..16).unwrap_or(date).replace('T', " "),
    }
}

fn color(cells: &[&str], cell: &str) -> RGBColor {
    let index = cells.iter().position(|known| *known == cell).unwrap_or(0);
    COLORS[index % COLORS.len()]
}

fn draw(panels: &[Panel], dates: &[&str], cells: &[&str]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let legend = (cells.len().div_ceil(LEGEND.0) as u32 + 1) * LEGEND.1 + 12;
        let root = SVGBackend::with_string(&mut svg, (PANEL.0, legend + PANEL.1 * panels.len() as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        // One legend above all panels, where it hides no points.
        let (above, below) = root.split_vertically(legend);
        let font = ("sans-serif", 14).into_font().color(&BLACK.mix(0.8));
        for (i, cell) in cells.iter().enumerate() {
            let x = 12 + (i % LEGEND.0) as i32 * (PANEL.0 as i32 / LEGEND.0 as i32);
            let y = 12 + (i / LEGEND.0) as i32 * LEGEND.1 as i32;
            above.draw(&PathElement::new([(x, y + 6), (x + 20, y + 6)], color(cells, cell).stroke_width(3)))?;
            above.draw(&Text::new((*cell).to_owned(), (x + 28, y), font.clone()))?;
        }
        let note = "bars: 95 % intervals; a cross: something regressed in this cell that night";
        above.draw(&Text::new(note, (12, legend as i32 - LEGEND.1 as i32), font))?;
        for (panel, area) in panels.iter().zip(below.split_evenly((panels.len(), 1))) {
            draw_panel(panel, dates, cells, &area)?;
        }
        root.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(panel: &Panel, dates: &[&str], cells: &[&str], area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let points = || panel.lines.values().flatten();
    let top = points().map(|point| point.y[2]).fold(f64::MIN, f64::max);
    let bottom = points().map(|point| point.y[1]).fold(f64::MAX, f64::min);
    let room = ((top - bottom) * 0.08).max(top.abs() * 0.02).max(1e-6);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(28)
        .y_label_area_size(72)
        // Nights stand side by side, however many days lie between them.
        .build_cartesian_2d(-0.5..(dates.len() as f64 - 0.5), (bottom - room)..(top + room))?;
    let day = |x: &f64| -> String {
        let night = x.round();
        let found = if (x - night).abs() < 1e-6 && night >= 0.0 { dates.get(night as usize) } else { None };
        found.map_or_else(String::new, |date| name_of(date, dates))
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(dates.len().clamp(2, 8))
        .x_label_formatter(&day)
        .y_desc(&panel.label)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    for (i, (cell, points)) in panel.lines.iter().enumerate() {
        let color = color(cells, cell);
        let stroke = color.stroke_width(2);
        // Cells stand a little apart, so that their bars do not hide one another.
        let shift = (i as f64 - (panel.lines.len() as f64 - 1.0) / 2.0) * 0.3 / panel.lines.len() as f64;
        let at = |point: &Point| point.night as f64 + shift;
        chart.draw_series(LineSeries::new(points.iter().map(|point| (at(point), point.y[0])), stroke))?;
        let bars = points.iter().filter(|point| point.y[1] < point.y[2]);
        chart.draw_series(bars.map(|point| PathElement::new([(at(point), point.y[1]), (at(point), point.y[2])], stroke)))?;
        chart.draw_series(points.iter().map(|point| Circle::new((at(point), point.y[0]), 3, color.filled())))?;
        let regressed = points.iter().filter(|point| point.regressed);
        chart.draw_series(regressed.map(|point| Cross::new((at(point), point.y[0]), 8, BLACK.stroke_width(2))))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::history::tests::entry;

    #[test]
    fn a_chart_has_every_cell_night_and_score() {
        assert_eq!(chart(&[]).unwrap(), None);
        let mut entries = vec![entry("2026-01-01T00:00:00Z", "m/4x-a", 3.0), entry("2026-01-01T00:00:00Z", "m/4x-b", 5.0)];
        assert!(chart(&entries).unwrap().is_some(), "one night is a chart too");
        entries.push(Entry { regressions: Some("slower".into()), ..entry("2026-02-03T00:00:00Z", "m/4x-a", 4.0) });
        let svg = chart(&entries).unwrap().unwrap();
        for text in ["m/4x-a", "m/4x-b", "FID_r", "s/image", "peak MiB", "2026-01-01", "2026-02-03"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("FID_b") && !svg.contains("2026-02-03 "), "a score without values has no panel, a night alone no time");
        entries.push(entry("2026-02-03T08:30:00Z", "m/4x-a", 4.0));
        let svg = chart(&entries).unwrap().unwrap();
        assert!(svg.contains("2026-02-03 00:00") && svg.contains("2026-02-03 08:30") && !svg.contains("2026-01-01 "));
    }
}
