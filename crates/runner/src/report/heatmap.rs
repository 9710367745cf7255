//! Heat maps of what a method does to convolutions, sizes and the reach of attention, layer by step, as SVG.

use std::fmt::Write as _;

use crate::run::schedule::{Convolution, PassSchedule, Schedule, Track, blocks, number, steps};
use crate::words::html::escape;

const WIDTH: f64 = 450.0;
/// Left edge of the map; block names stand before it.
const LEFT: f64 = 98.0;
const RIGHT: f64 = WIDTH - 8.0;
/// Height of a layer, and the least height of a block, which has a name to show.
const LAYER: f64 = 5.0;
const BLOCK: f64 = 15.0;
/// Colours of dilations from just above 1 to the largest: light to dark, and apart for colour-blind readers.
const RAMP: [(f64, [f64; 3]); 3] = [(0.0, [247.0, 178.0, 92.0]), (0.5, [221.0, 81.0, 130.0]), (1.0, [104.0, 56.0, 180.0])];
const PLAIN: &str = "#e4e6ea";
/// Of what is no dilation, apart from the ramp and from each other.
const FILTERED: &str = "#56b4e9";
const REACH: &str = "#009e73";
const RESIZED: &str = "#0072b2";

/// The largest dilation of a schedule: what the colours of several maps are stretched to.
pub(crate) fn largest_dilation(schedule: &Schedule) -> f64 {
    dilations(schedule).into_iter().fold(1.0, f64::max)
}

fn dilations(schedule: &Schedule) -> Vec<f64> {
    let runs = schedule.passes.iter().flat_map(|pass| &pass.convolutions).flat_map(|track| &track.runs);
    let mut found: Vec<f64> = runs.filter_map(|run| run.action.dilation).collect();
    found.sort_by(f64::total_cmp);
    found.dedup();
    found
}

fn colour(dilation: Option<f64>, largest: f64) -> String {
    // A re-dilation by 1 differs from the plain layer only at odd sizes.
    let Some(dilation) = dilation.filter(|d| *d > 1.0) else { return PLAIN.to_owned() };
    let at = if largest > 2.0 { ((dilation - 1.0) / (largest - 1.0)).clamp(0.0, 1.0) } else { (dilation - 1.0).clamp(0.0, 1.0) * 0.5 };
    let upper = RAMP.iter().position(|(stop, _)| *stop >= at).unwrap_or(RAMP.len() - 1).max(1);
    let ((from, a), (to, b)) = (RAMP[upper - 1], RAMP[upper]);
    let share = (at - from) / (to - from);
    let part = |i: usize| (a[i] + (b[i] - a[i]) * share).round() as u8;
    format!("#{:02x}{:02x}{:02x}", part(0), part(1), part(2))
}

/// The map of a schedule, or none if there is nothing to show. Passes that do the same share a panel.
pub(crate) fn draw(schedule: &Schedule, largest: f64) -> Option<String> {
    if !schedule.passes.iter().any(PassSchedule::has_a_map) {
        return None;
    }
    let mut panels: Vec<(Vec<&PassSchedule>, &PassSchedule)> = Vec::new();
    for pass in &schedule.passes {
        match panels.iter_mut().find(|(_, first)| is_drawn_alike(first, pass)) {
            Some((passes, _)) => passes.push(pass),
            None => panels.push((vec![pass], pass)),
        }
    }
    let mut body = String::new();
    let mut top = 4.0;
    for (passes, first) in &panels {
        for (i, pass) in passes.iter().enumerate() {
            let title = format!("{}{}", if i == 0 { "Pass of " } else { "and of " }, pass.title(schedule.n_steps));
            write!(body, "<text x=\"{LEFT}\" y=\"{}\">{}</text>", top + 12.0, escape(&title)).ok()?;
            top += 16.0;
        }
        top = panel(&mut body, first, schedule.n_steps, largest, top + 2.0) + 12.0;
    }
    top = legend(&mut body, schedule, largest, top);
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#000000\">\
         <rect width=\"{WIDTH}\" height=\"{top}\" fill=\"#FFFFFF\"/>{body}</svg>"
    ))
}

/// Whether two passes make the same picture.
fn is_drawn_alike(a: &PassSchedule, b: &PassSchedule) -> bool {
    span(a) == span(b) && a.of == b.of && a.convolutions == b.convolutions && a.reach == b.reach && a.resizes == b.resizes
}

/// First and last step in which a pass is made.
fn span(pass: &PassSchedule) -> (usize, usize) {
    (pass.weight.first().map_or(1, |run| run.from), pass.weight.last().map_or(0, |run| run.to))
}

/// Draws one pass below `top`; returns where it ends.
fn panel(body: &mut String, pass: &PassSchedule, n_steps: usize, largest: f64, top: f64) -> f64 {
    let x = |step: usize| LEFT + (RIGHT - LEFT) * (step - 1) as f64 / n_steps as f64;
    let (first, last) = span(pass);
    let mut y = top;
    for (name, tracks) in blocks(&pass.convolutions) {
        let height = (tracks.len() as f64 * LAYER).max(BLOCK);
        let layer = height / tracks.len() as f64;
        let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, y + height / 2.0 + 4.0, escape(name));
        let _ = write!(
            body,
            "<rect class=\"plain\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{PLAIN}\"/>",
            x(first),
            x(last + 1) - x(first),
            height - 1.0
        );
        // Neighbouring layers that do the same are one rectangle.
        let mut at = 0;
        while at < tracks.len() {
            let same = tracks[at..].iter().take_while(|track| track.runs == tracks[at].runs).count();
            for run in &tracks[at].runs {
                let (left, right) = (x(run.from), x(run.to + 1));
                let bottom = if at + same == tracks.len() { 1.0 } else { 0.4 };
                let outline = if run.action.kernel.is_some() { " stroke=\"#000000\" stroke-width=\"1\"" } else { "" };
                let _ = write!(
                    body,
                    "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"{outline}><title>{}</title></rect>",
                    y + at as f64 * layer,
                    right - left,
                    same as f64 * layer - bottom,
                    if run.action.low_pass.is_some() { FILTERED.to_owned() } else { colour(run.action.dilation, largest) },
                    escape(&hover(&tracks[at..at + same], run.action, run.from, run.to))
                );
            }
            at += same;
        }
        y += height;
    }
    for site in &pass.reach {
        y = strip(body, "attention", site, REACH, &x, y);
    }
    for site in &pass.resizes {
        y = strip(body, "size", site, RESIZED, &x, y);
    }
    // Ticks at the first step, the last one and round numbers between them.
    let every = [1, 2, 5, 10, 20, 50, 100, 200].into_iter().find(|every| n_steps / every <= 8).unwrap_or(n_steps);
    let round = (1..=n_steps).filter(|step| step % every == 0 && n_steps - step >= every / 2);
    let mut ticks: Vec<usize> = std::iter::once(1).chain(round).chain([n_steps]).collect();
    ticks.dedup();
    for step in ticks {
        let middle = (x(step) + x(step + 1)) / 2.0;
        let _ = write!(body, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step}</text>", y + 13.0);
    }
    let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">step</text>", LEFT - 6.0, y + 13.0);
    y + 18.0
}

/// Draws what happens at one site that is no convolution below `top`; returns where it ends.
fn strip(body: &mut String, name: &str, track: &Track<String>, fill: &str, x: &dyn Fn(usize) -> f64, top: f64) -> f64 {
    let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 6.0, top + BLOCK / 2.0 + 4.0);
    for run in &track.runs {
        let _ = write!(
            body,
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
            x(run.from),
            x(run.to + 1) - x(run.from),
            BLOCK - 1.0,
            escape(&format!("{}: {}, {}", track.site, run.action, steps(run.from, run.to)))
        );
    }
    top + BLOCK
}

fn hover(tracks: &[&Track<Convolution>], action: Convolution, from: usize, to: usize) -> String {
    let sites = match tracks {
        [only] => only.site.clone(),
        several => format!("{} … {} ({} layers)", several[0].site, several[several.len() - 1].site, several.len()),
    };
    let mut what = Vec::new();
    what.extend(action.dilation.map(|dilation| format!("dilation {}", number(dilation))));
    what.extend(action.kernel.map(|side| format!("kernel dispersed to {side}×{side}")));
    what.extend(action.stride.map(|stride| format!("stride {stride}")));
    what.extend(action.low_pass.map(|share| format!("spectrum cut to {}", number(share))));
    format!("{sites}: {}, {}", what.join(", "), steps(from, to))
}

/// Draws what the colours mean below `top`; returns where it ends.
fn legend(body: &mut String, schedule: &Schedule, largest: f64, top: f64) -> f64 {
    let all: Vec<f64> = dilations(schedule).into_iter().filter(|d| *d > 1.0).collect();
    // Progressive schedules have many values: the ends and some between them will do.
    let shown: Vec<f64> = match all.len() {
        0..=7 => all,
        n => (0..7).map(|i| all[i * (n - 1) / 6]).collect(),
    };
    let mut entries = vec![("as trained".to_owned(), PLAIN.to_owned(), "")];
    entries.extend(shown.iter().map(|d| (number(*d), colour(Some(*d), largest), "")));
    let kernel = schedule.passes.iter().flat_map(|pass| &pass.convolutions).flat_map(|t| &t.runs).find_map(|run| run.action.kernel);
    if let Some(side) = kernel {
        entries.push((format!("kernel dispersed to {side}×{side}"), "none".to_owned(), " stroke=\"#000000\" stroke-width=\"1\""));
    }
    let all = || schedule.passes.iter().flat_map(|pass| &pass.convolutions).flat_map(|track| &track.runs);
    for (is_there, name, fill) in [
        (all().any(|run| run.action.low_pass.is_some()), "low-pass", FILTERED),
        (schedule.passes.iter().any(|pass| !pass.reach.is_empty()), "reach of attention", REACH),
        (schedule.passes.iter().any(|pass| !pass.resizes.is_empty()), "resized", RESIZED),
    ] {
        if is_there {
            entries.push((name.to_owned(), fill.to_owned(), ""));
        }
    }
    let (mut x, mut y) = (LEFT, top);
    let _ = write!(body, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">dilation</text>", LEFT - 6.0, y + 10.0);
    for (text, fill, stroke) in entries {
        let width = 24.0 + 6.8 * text.chars().count() as f64;
        if x + width > RIGHT {
            (x, y) = (LEFT, y + 16.0);
        }
        let class = if fill == PLAIN { " class=\"plain\"" } else { "" };
        let _ = write!(body, "<rect{class} x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"11\" fill=\"{fill}\"{stroke}/>");
        let _ = write!(body, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 16.0, y + 10.0, escape(&text));
        x += width + 6.0;
    }
    y + 18.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::schedule::tests::{example, staged};

    #[test]
    fn a_map_has_a_panel_for_every_kind_of_pass_and_names_what_it_shows() {
        let mut schedule = example();
        assert_eq!(largest_dilation(&schedule), 2.0);
        let svg = draw(&schedule, 4.0).unwrap();
        // Both strong passes do the same; the third is made in two of three steps.
        assert_eq!(svg.matches("Pass of ").count(), 2, "{svg}");
        for text in ["mid_block", "conv_in", "mid_block.resnets.0.conv1: dilation 2, steps 1–2", "dilation 1.5, step 3", "as trained"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        for dilation in [2.0, 1.5] {
            assert!(svg.contains(&colour(Some(dilation), 4.0)), "{dilation}");
        }
        for pass in &mut schedule.passes {
            pass.convolutions.iter_mut().for_each(|track| track.runs.clear());
        }
        assert!(draw(&schedule, 4.0).is_none(), "nothing to show");
    }

    #[test]
    fn low_pass_windows_and_sizes_are_shown() {
        let svg = draw(&staged(), 4.0).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
        for text in [
            "down_blocks.1.resnets.0.conv1: spectrum cut to 0.25, steps 1–2",
            "mid_block.resnets.0.conv1: dilation 2, stride 4, steps 1–2",
            "transformer_blocks.0.attn1: 2×2 windows, steps 1–2",
            "down_blocks.1.resnets.0: 1/2 a side, bicubic, its skip connection as it was, steps 1–2",
            "Pass of the prompt on windows",
            "and of the prompt on strided subsets",
            ">low-pass<",
            ">reach of attention<",
            ">resized<",
        ] {
            let is_other_panel = text.starts_with("and of");
            assert_eq!(svg.contains(text), !is_other_panel, "{text}: {svg}");
        }
        assert!(svg.contains("Pass of the prompt on strided subsets"));
        // Either alone is reason enough for a map.
        let mut windows = staged();
        for pass in &mut windows.passes {
            pass.convolutions.iter_mut().for_each(|track| track.runs.clear());
            pass.resizes.clear();
        }
        let svg = draw(&windows, 1.0).unwrap();
        assert!(svg.contains(">reach of attention<") && !svg.contains(">resized<") && !svg.contains(">low-pass<"));
    }

    #[test]
    fn larger_dilations_are_darker() {
        let light = |hex: &str| (1..7).step_by(2).map(|i| u32::from_str_radix(&hex[i..i + 2], 16).unwrap()).sum::<u32>();
        let colours: Vec<u32> = [1.2, 2.0, 3.0, 4.0].map(|d| light(&colour(Some(d), 4.0))).to_vec();
        assert!(colours.windows(2).all(|pair| pair[0] > pair[1]), "{colours:?}");
        assert_eq!(colour(Some(1.0), 4.0), colour(None, 4.0));
        assert_ne!(colour(Some(2.0), 2.0), colour(Some(1.5), 2.0));
    }
}
