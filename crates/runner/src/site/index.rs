//! The first page: which method at which size, and the leaderboards.

use maud::{Markup, html};

use super::boards::{self, Board};
use super::frame;
use super::source::Source;

const QUESTION: &str = "Which method makes the best images above a model's training resolution, and at what cost?";

pub(super) fn page(title: Option<&str>, sources: &[Source], boards: &[Board]) -> String {
    let notes: Vec<&str> = sources.iter().map(Source::note).filter(|note| !note.is_empty()).collect();
    let head = html! {
        h1 { (title.unwrap_or(QUESTION)) }
        p.lead {
            "Every score stands with its 95 % interval. Methods are told apart by paired differences, on the same prompts and seeds, within one run; \
             numbers of different protocols never share a table."
        }
        @if let Some(note) = notes.first() { p.note { "Runs on the pocket model have " (note) "." } }
    };
    let content = html! {
        section aria-labelledby="answers" {
            h2 id="answers" { "The best, size by size" }
            p {
                "By the run that says most: of many methods, of many images. “Not told apart”: the paired difference to the best has an interval with zero in it. \
                 Time is that of an image, over plain sampling’s at the same size; "
                a href="costs.html" { "quality against cost" } " as charts."
            }
            (boards::answers(boards))
        }
        section aria-labelledby="boards" {
            h2 id="boards" { "Leaderboards" }
            (filters(boards))
            p id="none" hidden { "No table has all of this." }
            @for board in boards { (boards::table(board)) }
            p {
                strong { "best" } " of its run and size; " strong { "≈ best" } " where the paired difference to the best is undecided. Δ: paired \
                 difference to plain sampling, and what its interval says. n: images at which a difference of this size would be decided. \
                 × time: over plain sampling, in the same run."
            }
        }
    };
    frame::page("Leaderboard", "index.html", &head, &content)
}

/// Choices of what the tables show.
fn filters(boards: &[Board]) -> Markup {
    let mut protocols: Vec<&str> = boards.iter().map(|board| board.place.protocol).collect();
    let mut models: Vec<&str> = boards.iter().map(|board| board.place.model).collect();
    let mut scales: Vec<f64> = boards.iter().map(|board| board.place.scale).collect();
    protocols.dedup();
    models.sort_unstable();
    models.dedup();
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    html! {
        form.filters id="filters" aria-label="What the tables show" {
            (choice("protocol", "Protocol", protocols.iter().map(|name| ((*name).to_owned(), (*name).to_owned()))))
            (choice("model", "Model", models.iter().map(|name| ((*name).to_owned(), (*name).to_owned()))))
            (choice("scale", "Scale", scales.iter().map(|scale| (scale.to_string(), format!("{scale}×")))))
            (choice("metric", "Metric", boards::metrics(boards).into_iter().map(|(name, label)| (name.to_owned(), label))))
            label { "Method" input type="search" name="method" autocomplete="off" placeholder="part of a name"; }
        }
    }
}

fn choice(name: &str, title: &str, options: impl Iterator<Item = (String, String)>) -> Markup {
    html! {
        label {
            (title)
            select name=(name) {
                option value="" { "all" }
                @for (value, text) in options { option value=(value) { (text) } }
            }
        }
    }
}
