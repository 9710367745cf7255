//! Charts of quality against cost: every method of a model and size as a point, its name beside it, and the Pareto front.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::experiment::resolved::Method;
use crate::report::figures::{Chart, PALETTE, marker};
use crate::run::results::{Interval, Row, label, lower_is_better};

/// Fewest methods that make a chart.
const MIN_METHODS: usize = 3;
const WIDTH: u32 = 680;
/// Height of a chart; more where the names need it.
const HEIGHT: u32 = 440;
const LETTERS: i32 = 16;
/// Widest letter and a line, in pixels: what a name takes at most.
const LETTER_WIDTH: f64 = 0.62 * LETTERS as f64;
const LINE: i32 = LETTERS + 3;

/// What an image costs.
struct Kind {
    /// Part of the file's name.
    id: &'static str,
    of: fn(&Row) -> Option<f64>,
    /// In words, and the unit of an axis that ends at a value.
    name: &'static str,
    unit: fn(f64) -> (&'static str, f64),
}

const KINDS: [Kind; 2] = [
    Kind { id: "seconds", of: |row| row.seconds_per_image, name: "seconds an image", unit: |_| ("", 1.0) },
    Kind {
        id: "flops",
        of: |row| row.unet_flops_per_image,
        name: "U-Net operations an image",
        unit: |largest| if largest < 1e12 { (" (GFLOP)", 1e-9) } else { (" (TFLOP)", 1e-12) },
    },
];

/// A method in a chart.
struct Point {
    title: String,
    /// Chooses marker and colour.
    index: usize,
    cost: f64,
    quality: Interval,
}

/// Charts of every model and size that has three methods or more: the protocol's FID against the reference, or its first metric,
/// against seconds and against operations. `note` is printed into each.
pub(crate) fn charts(rows: &[Row], methods: &[Method], note: &str) -> Result<Vec<Chart>> {
    let columns: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    let column = columns.iter().find(|column| **column == "fid_r").or(columns.iter().find(|column| lower_is_better(column).is_some()));
    let Some(column) = column else { return Ok(Vec::new()) };
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| group[0].is_rival_of(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let several_models = rows.iter().any(|row| row.model != rows[0].model);
    let mut charts = Vec::new();
    for group in &groups {
        let first = group[0];
        let same_factor = groups.iter().filter(|other| (&other[0].model, other[0].scale) == (&first.model, first.scale)).count();
        for kind in &KINDS {
            let (lower, factor) = (lower_is_better(column) == Some(true), label(column).1);
            let point = |row: &&Row| {
                let index = methods.iter().position(|method| method.name == row.method)?;
                let quality = row.score(column)?.times(factor);
                let cost = (kind.of)(row).filter(|cost| *cost > 0.0)?;
                Some(Point { title: methods[index].title.clone(), index, cost, quality })
            };
            let points: Vec<Point> = group.iter().filter_map(point).collect();
            if points.len() < MIN_METHODS {
                continue;
            }
            let mut name = format!("{column}-against-{}-{}x", kind.id, first.scale);
            if same_factor > 1 {
                name += &format!("-{}x{}", first.width, first.height);
            }
            if several_models {
                name += &format!("-{}", first.model);
            }
            let svg = draw(points, kind, &label(column).0, lower, note).map_err(|error| anyhow!("cannot draw {name}: {error}"))?;
            let place = format!("{}, {}× ({}×{})", first.model, first.scale, first.width, first.height);
            let title = format!("{} against {}, {place}; the line joins what no other method betters in both", label(column).0, kind.name);
            charts.push(Chart { name, title, svg });
        }
    }
    Ok(charts)
}

/// The rows of one size that no other one betters in both a score and seconds, from the cheapest on.
pub(crate) fn worth_their_seconds<'a>(rows: &[&'a Row], column: &str) -> Vec<&'a Row> {
    let of = |row: &&'a Row| Some((*row, (row.seconds_per_image.filter(|seconds| *seconds > 0.0)?, row.score(column)?.value)));
    let (rows, points): (Vec<&Row>, Vec<(f64, f64)>) = rows.iter().filter_map(of).unzip();
    front(&points, lower_is_better(column) != Some(false)).into_iter().map(|i| rows[i]).collect()
}

/// Indices of the points that no other one is better than in one and at least as good in the other, from the cheapest on.
fn front(points: &[(f64, f64)], lower_is_better: bool) -> Vec<usize> {
    let badness = |i: usize| if lower_is_better { points[i].1 } else { -points[i].1 };
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| points[*a].0.total_cmp(&points[*b].0).then(badness(*a).total_cmp(&badness(*b))));
    let mut found: Vec<usize> = Vec::new();
    for i in order {
        let is_equal = |last: &usize| points[*last] == points[i];
        if found.last().is_none_or(|last| badness(i) < badness(*last) || is_equal(last)) {
            found.push(i);
        }
    }
    found
}

/// A place: right, and up in a chart or down in pixels.
type At = (f64, f64);

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Area {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn around((x, y): (f64, f64), reach: f64) -> Area {
        Area { left: x - reach, top: y - reach, width: 2.0 * reach, height: 2.0 * reach }
    }

    fn meets(&self, other: &Area) -> bool {
        self.left < other.left + other.width
            && other.left < self.left + self.width
            && self.top < other.top + other.height
            && other.top < self.top + self.height
    }

    fn lies_in(&self, other: &Area) -> bool {
        self.left >= other.left
            && self.top >= other.top
            && self.left + self.width <= other.left + other.width
            && self.top + self.height <= other.top + other.height
    }

    /// The point of the rectangle that is nearest to another one.
    fn nearest(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x.clamp(self.left, self.left + self.width), y.clamp(self.top, self.top + self.height))
    }
}

/// Places for names of these widths beside their points, inside `plot`, clear of each other and of `taken`; None if there is no room.
/// The nearest place counts, names of crowded points first.
fn places(points: &[(f64, f64)], widths: &[f64], plot: Area, taken: &[Area]) -> Option<Vec<Area>> {
    let height = f64::from(LINE);
    let crowd = |i: &usize| points.iter().map(|p| 1.0 / (20.0 + (p.0 - points[*i].0).hypot(p.1 - points[*i].1))).sum::<f64>();
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| crowd(b).total_cmp(&crowd(a)));
    let mut placed: Vec<Option<Area>> = vec![None; points.len()];
    for i in order {
        let ((x, y), width) = (points[i], widths[i]);
        // To the right or left of the point, above or below it, and then wherever there is room.
        let at = |left: f64, top: f64| Area { left, top, width, height };
        let (middle, above, below) = (y - height / 2.0, y - height - 9.0, y + 9.0);
        let beside = [at(x + 9.0, middle), at(x - width - 9.0, middle), at(x - width / 2.0, above), at(x - width / 2.0, below)];
        let row = |k: i32| {
            (0..)
                .map(|i| plot.left + 6.0 * f64::from(i))
                .take_while(|left| left + width <= plot.left + plot.width)
                .map(move |left| at(left, plot.top + 4.0 * f64::from(k)))
        };
        let rows = (0..).take_while(|k| 4.0 * f64::from(*k) + height <= plot.height);
        let candidates = beside.into_iter().chain(rows.flat_map(row));
        let is_free = |area: &Area| area.lies_in(&plot) && !taken.iter().chain(placed.iter().flatten()).any(|other| area.meets(other));
        let distance = |area: &Area| {
            let (nx, ny) = area.nearest((x, y));
            (nx - x).hypot(ny - y)
        };
        let found = candidates.filter(is_free).min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        placed[i] = Some(found);
    }
    placed.into_iter().collect()
}

/// Round values between two, for a logarithmic axis.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let decades = || (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = decades().flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
        all.filter(|value| (from..=to).contains(value)).collect()
    };
    let known: [&[f64]; 4] = [&[1.0], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]];
    if let Some(found) = known.iter().map(|steps| of(steps)).find(|found| found.len() >= 3) {
        return found;
    }
    let step = 10f64.powf(((to - from) / 3.0).log10().floor());
    let step = [5.0, 2.0, 1.0].into_iter().map(|times| times * step).find(|step| (to - from) / step >= 3.0).unwrap_or(step);
    let first = (from / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|value| *value <= to).collect()
}

/// Draws the points, making the chart higher until every name has its place.
fn draw(mut points: Vec<Point>, kind: &Kind, label: &str, lower: bool, note: &str) -> Result<String, Box<dyn std::error::Error>> {
    let (unit, factor) = (kind.unit)(points.iter().map(|point| point.cost).fold(0.0, f64::max));
    points.iter_mut().for_each(|point| point.cost *= factor);
    let mut height = HEIGHT;
    loop {
        if let Some(svg) = attempt(&points, &format!("{}{unit}", kind.name), label, lower, note, height)? {
            return Ok(svg);
        }
        height += HEIGHT / 2;
        if height > 10 * HEIGHT {
            return Err("no room for the names of the methods".into());
        }
    }
}

/// A chart of this height; None if there is no room for the names.
fn attempt(
    points: &[Point],
    x_name: &str,
    label: &str,
    lower: bool,
    note: &str,
    height: u32,
) -> Result<Option<String>, Box<dyn std::error::Error>> {
    let costs = || points.iter().map(|point| point.cost);
    let (cheapest, dearest) = (costs().fold(f64::MAX, f64::min), costs().fold(f64::MIN, f64::max));
    // Names stand beside the outermost points, too.
    let room = (dearest / cheapest).powf(0.12).max(1.2);
    let (first, last) = (cheapest / room, dearest * room);
    let top = points.iter().map(|point| point.quality.hi).fold(f64::MIN, f64::max);
    let bottom = points.iter().map(|point| point.quality.lo).fold(f64::MAX, f64::min);
    let room = ((top - bottom) * 0.08).max(1e-3);
    let (bottom, top) = (bottom - room, top + room);
    let digits = (1.0 - (top - bottom).log10()).ceil().clamp(0.0, 6.0) as usize;
    let font = || ("sans-serif", LETTERS).into_font();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let foot = if note.is_empty() { 0 } else { LINE + 6 };
        let (plot, below) = root.split_vertically(height as i32 - foot);
        below.draw(&Text::new(note.to_owned(), (12, 2), font().color(&BLACK.mix(0.7))))?;
        let mut chart = ChartBuilder::on(&plot)
            .margin(10)
            .x_label_area_size(46)
            .y_label_area_size(70)
            .build_cartesian_2d((first..last).log_scale().with_key_points(ticks(first, last)), bottom..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .y_labels(6)
            .x_desc(x_name)
            .y_desc(label)
            .x_label_formatter(&|value| tick_name(*value))
            .y_label_formatter(&|value| format!("{value:.digits$}").replace('-', "−"))
            .label_style(("sans-serif", LETTERS))
            .axis_desc_style(("sans-serif", LETTERS))
            .draw()?;
        let values: Vec<(f64, f64)> = points.iter().map(|point| (point.cost, point.quality.value)).collect();
        let stairs =
            stairs(&front(&values, lower).into_iter().map(|i| values[i]).collect::<Vec<_>>(), (last, if lower { top } else { bottom }));
        chart.draw_series(LineSeries::new(stairs.clone(), BLACK.mix(0.45).stroke_width(2)))?;
        for Point { index, cost, quality, .. } in points {
            let color = PALETTE[index % PALETTE.len()];
            let stroke = color.stroke_width(2);
            chart.draw_series([PathElement::new([(*cost, quality.lo), (*cost, quality.hi)], stroke)])?;
            let caps = [quality.lo, quality.hi].map(|y| EmptyElement::at((*cost, y)) + PathElement::new([(-4, 0), (4, 0)], stroke));
            chart.draw_series(caps)?;
            chart.draw_series([EmptyElement::at((*cost, quality.value)) + Polygon::new(marker(*index), color.filled())])?;
        }
        let pixel = |at: &(f64, f64)| {
            let (x, y) = chart.backend_coord(at);
            (f64::from(x), f64::from(y))
        };
        let at: Vec<(f64, f64)> = values.iter().map(pixel).collect();
        let (corner, opposite) = (pixel(&(first, top)), pixel(&(last, bottom)));
        let plot = Area { left: corner.0, top: corner.1, width: opposite.0 - corner.0, height: opposite.1 - corner.1 };
        let taken = drawn(points, &stairs, &pixel);
        let widths: Vec<f64> = points.iter().map(|point| point.title.chars().count() as f64 * LETTER_WIDTH).collect();
        // Where these leave no room, names stand over them, on white.
        let (areas, on_white) = match places(&at, &widths, plot, &taken) {
            Some(areas) => (areas, false),
            None => match places(&at, &widths, plot, &taken[..at.len()]) {
                Some(areas) => (areas, true),
                None => return Ok(None),
            },
        };
        for ((point, area), at) in points.iter().zip(&areas).zip(&at) {
            let end = area.nearest(*at);
            // A line to a name that is not beside its point.
            if (end.0 - at.0).hypot(end.1 - at.1) > 14.0 {
                let ends = [*at, end].map(|(x, y)| (x.round() as i32, y.round() as i32));
                root.draw(&PathElement::new(ends, PALETTE[point.index % PALETTE.len()].mix(0.6).stroke_width(1)))?;
            }
            if on_white {
                let corners = [(area.left, area.top), (area.left + area.width, area.top + area.height)];
                let corners = corners.map(|(x, y)| (x.round() as i32, y.round() as i32));
                root.draw(&Rectangle::new(corners, WHITE.mix(0.8).filled()))?;
            }
            // Letters are narrower than the room for them: they begin, or end, at the point's side.
            let (side, x) = if area.left + area.width < at.0 { (HPos::Right, area.left + area.width) } else { (HPos::Left, area.left) };
            let style = font().into_text_style(&root).pos(Pos::new(side, VPos::Top));
            root.draw(&Text::new(point.title.clone(), (x.round() as i32, area.top.round() as i32 + 1), style))?;
        }
        root.present()?;
    }
    Ok(Some(svg))
}

/// What names should not hide, in pixels: the markers first, then intervals and front.
fn drawn(points: &[Point], stairs: &[At], pixel: &dyn Fn(&At) -> At) -> Vec<Area> {
    let marker = |Point { cost, quality, .. }: &Point| Area::around(pixel(&(*cost, quality.value)), 7.0);
    let interval = |Point { cost, quality, .. }: &Point| {
        let ((x, upper), (_, lower)) = (pixel(&(*cost, quality.hi)), pixel(&(*cost, quality.lo)));
        Area { left: x - 5.0, top: upper - 2.0, width: 10.0, height: lower - upper + 4.0 }
    };
    let line = |pair: &[(f64, f64)]| {
        let ((x0, y0), (x1, y1)) = (pixel(&pair[0]), pixel(&pair[1]));
        Area { left: x0.min(x1) - 2.0, top: y0.min(y1) - 2.0, width: (x1 - x0).abs() + 4.0, height: (y1 - y0).abs() + 4.0 }
    };
    points.iter().map(marker).chain(points.iter().map(interval)).chain(stairs.windows(2).map(line)).collect()
}

/// The border of what the points of a front better: from each one straight to the next one's cost, then to its quality; from the
/// worst quality in sight to the highest cost.
fn stairs(front: &[(f64, f64)], (dearest, worst): (f64, f64)) -> Vec<(f64, f64)> {
    let mut line = vec![(front[0].0, worst)];
    for pair in front.windows(2) {
        line.extend([pair[0], (pair[1].0, pair[0].1)]);
    }
    let last = front[front.len() - 1];
    line.extend([last, (dearest, last.1)]);
    line
}

/// Without the digits that rounding adds.
fn tick_name(value: f64) -> String {
    let rounded = format!("{value:.3e}").parse::<f64>().unwrap_or(value);
    format!("{rounded}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::run::results::Score;

    /// By the definition, pair by pair.
    fn undominated(points: &[(f64, f64)], sign: f64) -> Vec<usize> {
        let betters = |a: (f64, f64), b: (f64, f64)| {
            let (q, r) = (a.1 * sign, b.1 * sign);
            a.0 <= b.0 && q <= r && (a.0 < b.0 || q < r)
        };
        (0..points.len()).filter(|i| !points.iter().any(|other| betters(*other, points[*i]))).collect()
    }

    #[test]
    fn the_front_is_what_nothing_betters() {
        let points = [(1.0, 9.0), (2.0, 5.0), (2.0, 7.0), (3.0, 5.0), (4.0, 2.0), (5.0, 3.0), (4.0, 2.0), (0.5, 20.0)];
        assert_eq!(front(&points, true), [7, 0, 1, 4, 6]);
        assert_eq!(front(&points, false), [7]);
        // Whatever the points.
        let mut state = 7u64;
        for n in 1..40 {
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 60) + 1) as f64
            };
            let points: Vec<(f64, f64)> = (0..n).map(|_| (draw(), draw())).collect();
            for (lower, sign) in [(true, 1.0), (false, -1.0)] {
                let mut found = front(&points, lower);
                assert!(found.windows(2).all(|pair| points[pair[0]].0 <= points[pair[1]].0));
                found.sort_unstable();
                assert_eq!(found, undominated(&points, sign), "{points:?} {lower}");
            }
        }
        assert_eq!(stairs(&[(1.0, 9.0), (2.0, 5.0)], (8.0, 20.0)), [(1.0, 20.0), (1.0, 9.0), (2.0, 9.0), (2.0, 5.0), (8.0, 5.0)]);
    }

    #[test]
    fn axes_have_round_values() {
        assert_eq!(ticks(0.9, 120.0), [1.0, 10.0, 100.0]);
        assert_eq!(ticks(1.8, 11.0), [2.0, 5.0, 10.0]);
        for (from, to) in [(1.0, 1.3), (0.013, 0.017), (700.0, 1000.0), (2.4e-3, 9.0)] {
            let found = ticks(from, to);
            assert!((3..9).contains(&found.len()) && found.iter().all(|x| (from..=to).contains(x)), "{from} {to}: {found:?}");
        }
        assert_eq!([0.30000000000000004, 20.0, 1.5].map(tick_name), ["0.3", "20", "1.5"]);
    }

    fn row(method: usize, cost: f64, fid: f64) -> Row {
        let score = Score {
            column: "fid_r".into(),
            value: Some(Interval { value: fid, lo: fid - 6.0, hi: fid + 6.0 }),
            difference: None,
            standing: None,
            published: None,
        };
        Row {
            model: "m".into(),
            scale: 4.0,
            width: 128,
            height: 128,
            method: format!("method-{method}"),
            protocol: "pocket".into(),
            n_images: 3,
            n_reference: Some(8),
            baseline: "direct-inf".into(),
            set: BTreeMap::new(),
            scores: vec![score],
            unet_flops_per_image: Some(cost * 1e10),
            seconds_per_image: Some(cost),
            peak_memory_bytes: None,
        }
    }

    fn methods(n: usize) -> Vec<Method> {
        let method = |i: usize| Method {
            name: format!("method-{i}"),
            title: format!("Method number {i} & co"),
            settings: serde_yaml::Value::Null,
            images: None,
            variant_of: None,
            set: BTreeMap::new(),
            sampler: None,
            seed: None,
        };
        (0..n).map(method).collect()
    }

    /// Every name once, none on another one; measured in the picture itself, with letters of another width than the program's.
    fn check_names(svg: &str, methods: &[Method]) {
        let document = roxmltree::Document::parse(svg).unwrap();
        let size: Vec<f64> = ["width", "height"].map(|side| document.root_element().attribute(side).unwrap().parse().unwrap()).to_vec();
        let place = |method: &Method| {
            let is_it = |node: &roxmltree::Node| node.has_tag_name("text") && node.text().is_some_and(|text| text.trim() == method.title);
            let found: Vec<roxmltree::Node> = document.descendants().filter(is_it).collect();
            assert_eq!(found.len(), 1, "{}", method.title);
            let number = |name: &str| found[0].attribute(name).unwrap().parse::<f64>().unwrap();
            let width = 0.55 * number("font-size") * method.title.chars().count() as f64;
            let left = if found[0].attribute("text-anchor") == Some("end") { number("x") - width } else { number("x") };
            (left, number("y"), width, number("font-size"))
        };
        let places: Vec<_> = methods.iter().map(place).collect();
        for (i, a) in places.iter().enumerate() {
            assert!(a.0 > 0.0 && a.0 + a.2 < size[0] && a.1 > 0.0 && a.1 + a.3 < size[1], "{}: {a:?}", methods[i].title);
            for b in &places[..i] {
                let apart = a.0 + a.2 <= b.0 || b.0 + b.2 <= a.0 || a.1 + a.3 <= b.1 || b.1 + b.3 <= a.1;
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn methods_are_named_and_names_do_not_overlap() {
        // Far apart, in one place, and in a row.
        let spread = |i: usize| (1.3f64.powi(i as i32), 200.0 - 11.0 * i as f64);
        let crowd = |i: usize| (2.0 + 0.01 * i as f64, 50.0 + 0.1 * i as f64);
        let row_of = |i: usize| (2.0 + i as f64, 50.0);
        for (n, at) in [(3, &spread as &dyn Fn(usize) -> (f64, f64)), (16, &spread), (5, &crowd), (24, &crowd), (16, &row_of)] {
            let methods = methods(n);
            let rows: Vec<Row> = (0..n).map(|i| row(i, at(i).0, at(i).1)).collect();
            let charts = charts(&rows, &methods, "pocket features").unwrap();
            let names: Vec<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
            assert_eq!(names, ["fid_r-against-seconds-4x", "fid_r-against-flops-4x"]);
            for chart in &charts {
                check_names(&chart.svg, &methods);
                assert!(chart.svg.contains("pocket features") && chart.svg.contains("FID_r"));
            }
            assert!(charts[0].svg.contains("seconds an image") && charts[1].svg.contains("operations an image (GFLOP)"));
        }
    }

    #[test]
    fn charts_are_made_where_there_are_three_methods() {
        let (methods, rows) = (methods(3), [row(0, 1.0, 30.0), row(1, 2.0, 20.0), row(2, 3.0, 25.0)]);
        assert!(charts(&rows[..2], &methods, "").unwrap().is_empty() && charts(&[], &methods, "").unwrap().is_empty());
        let without: Vec<Row> = rows.iter().map(|row| Row { unet_flops_per_image: None, ..row.clone() }).collect();
        assert_eq!(charts(&without, &methods, "").unwrap().len(), 1, "results of an earlier version have no operations");
        // Two shapes of one factor, two models.
        let mut all = rows.to_vec();
        all.extend(rows.iter().map(|row| Row { width: 256, height: 64, ..row.clone() }));
        all.extend(rows.iter().map(|row| Row { model: "n".into(), ..row.clone() }));
        let names: Vec<String> = charts(&all, &methods, "").unwrap().into_iter().map(|chart| chart.name).collect();
        let expected = ["-4x-128x128-m", "-4x-256x64-m", "-4x-n"];
        let expected = expected.iter().flat_map(|end| ["seconds", "flops"].map(|kind| format!("fid_r-against-{kind}{end}")));
        assert_eq!(names, expected.collect::<Vec<_>>());
        // The front in pixels: as many corners as its stairs have.
        let svg = &charts(&rows, &methods, "").unwrap()[0].svg;
        let document = roxmltree::Document::parse(svg).unwrap();
        let lines: Vec<usize> = document
            .descendants()
            .filter(|node| node.has_tag_name("polyline") && node.attribute("stroke") == Some("#000000"))
            .filter_map(|node| Some(node.attribute("points")?.split_whitespace().count()))
            .collect();
        assert!(lines.contains(&5), "two methods on the front: {lines:?}");
    }
}
