//! Charts of power spectra: the reference's and the methods', as means with bands.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::experiment::resolved::{Resolved, cell_name};
use crate::report::figures::{Chart, LETTERS, LINE, PALETTE, SIZE, legend_places};
use crate::run::spectra::{self, Curve};
use crate::run::store::Store;

/// A chart of every model and scale whose spectra were measured; `note` is printed into each.
pub(crate) fn charts(store: &Store, resolved: &Resolved, note: &str) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for comparison in &resolved.metrics.protocol.compare {
        for model in &resolved.models {
            for scale in &resolved.scales {
                let mut lines: Vec<(String, RGBColor, Curve)> = Vec::new();
                for (i, method) in resolved.methods.iter().enumerate() {
                    let Some(found) = spectra::read(store, &cell_name(&model.name, scale, &method.name), &comparison.id)? else { continue };
                    if lines.is_empty() {
                        lines.push(("Reference".to_owned(), BLACK, found.other));
                    }
                    lines.push((method.title.clone(), PALETTE[i % PALETTE.len()], found.generated));
                }
                if lines.is_empty() {
                    continue;
                }
                let name = format!("power_{}-{}-{}", comparison.id, model.name, scale.label());
                let svg = draw(&lines, note).map_err(|error| anyhow!("cannot draw {name}: {error}"))?;
                charts.push(Chart { name, title: format!("power spectrum, {}, {}", model.name, scale.label()), svg });
            }
        }
    }
    Ok(charts)
}

/// Draws curves in decibels against frequency, with bands, and above them their names.
fn draw(lines: &[(String, RGBColor, Curve)], note: &str) -> Result<String, Box<dyn std::error::Error>> {
    let ends = || lines.iter().flat_map(|(_, _, curve)| curve.iter().flat_map(|point| [point.lo, point.hi]));
    let (bottom, top) = (ends().fold(f64::MAX, f64::min) - 2.0, ends().fold(f64::MIN, f64::max) + 2.0);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let font = || ("sans-serif", LETTERS).into_font();
        let entries = legend_places(&lines.iter().map(|(title, _, _)| title.as_str()).collect::<Vec<_>>());
        let n_lines = entries.last().map_or(0, |(_, line)| line + 1);
        for ((title, color, _), (x, row)) in lines.iter().zip(&entries) {
            let y = row * LINE + LINE / 2 + 4;
            root.draw(&PathElement::new([(*x, y), (x + 24, y)], color.stroke_width(3)))?;
            root.draw(&Text::new(title.clone(), (x + 30, y - LETTERS / 2), font()))?;
        }
        let (_, below) = root.split_vertically(n_lines * LINE + 6);
        let note_height = if note.is_empty() { 0 } else { LINE + 2 };
        let (plot, foot) = below.split_vertically(SIZE.1 as i32 - n_lines * LINE - 6 - note_height);
        foot.draw(&Text::new(note.to_owned(), (12, 2), font().color(&BLACK.mix(0.7))))?;
        let mut chart =
            ChartBuilder::on(&plot).margin(8).x_label_area_size(48).y_label_area_size(74).build_cartesian_2d(0f64..0.5, bottom..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(6)
            .y_labels(6)
            .x_desc("cycles per pixel")
            .y_desc("power, dB")
            .y_label_formatter(&|value| format!("{value:.0}").replace('-', "−"))
            .label_style(("sans-serif", LETTERS))
            .axis_desc_style(("sans-serif", LETTERS))
            .draw()?;
        for (_, color, curve) in lines {
            let at = |i: usize| (i as f64 + 0.5) / curve.len() as f64 / 2.0;
            let upper = curve.iter().enumerate().map(|(i, point)| (at(i), point.hi));
            let lower = curve.iter().enumerate().rev().map(|(i, point)| (at(i), point.lo));
            chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), color.mix(0.2))])?;
            chart.draw_series(LineSeries::new(curve.iter().enumerate().map(|(i, point)| (at(i), point.value)), color.stroke_width(2)))?;
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::results::Interval;

    #[test]
    fn a_chart_shows_every_curve_with_its_band() {
        let curve =
            |from: f64| (0..32).map(|i| Interval { value: from - f64::from(i), lo: from - 1.0 - f64::from(i), hi: from + 1.0 }).collect();
        let lines = [("Reference".to_owned(), BLACK, curve(30.0)), ("Bicubic".to_owned(), PALETTE[0], curve(20.0))];
        let svg = draw(&lines, "pocket features").unwrap();
        for text in ["Reference", "Bicubic", "pocket features", "cycles per pixel", "power, dB"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<polygon").count(), 2);
        assert_eq!(svg, draw(&lines, "pocket features").unwrap());
    }
}
