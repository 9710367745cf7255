//! Quality against cost: charts, and in words what no other method betters in both.

use anyhow::Result;
use maud::html;

use super::boards::{self, Board};
use super::frame;
use super::source::Source;
use crate::report::page::charts;
use crate::report::{scores, tradeoff};

pub(super) fn page(sources: &[Source], boards: &[Board]) -> Result<String> {
    let head = html! {
        h1 { "Quality against cost" }
        p.lead { "A line joins the methods that no other one betters in both: what is worth its price lies on it." }
    };
    let mut drawn = Vec::new();
    for source in sources {
        let found = tradeoff::charts(&source.rows, &source.resolved().methods, source.note())?;
        if !found.is_empty() {
            drawn.push((source, found));
        }
    }
    let content = html! {
        section aria-labelledby="fronts" {
            h2 id="fronts" { "Worth their price" }
            p { "The same in words, by seconds of an image, for the run of every size that the first page goes by; from the cheapest on." }
            ul {
                @for board in boards {
                    @let group = board.main_group();
                    @let column = boards::main_column(&board.columns()).unwrap_or_default();
                    @let worth = tradeoff::worth_their_seconds(&group.rows, column);
                    @if !worth.is_empty() {
                        li {
                            a href={ "index.html#" (board.place.id()) } { (board.place.title()) } ": "
                            @for (i, row) in worth.iter().enumerate() {
                                @if i > 0 { "; " }
                                (boards::method_link(group.source, &row.method)) " " (boards::cost(group, row))
                                @if let Some(score) = boards::score(row, column) { ", " (scores::head(column)) " " (scores::short(score)) }
                            }
                            "."
                        }
                    }
                }
            }
        }
        @for (source, found) in &drawn {
            section aria-labelledby={ "run-" (source.name) } {
                h2 id={ "run-" (source.name) } { "Run " a href=(frame::run_page(&source.name)) { (source.name) } }
                div.wide { (charts(found)) }
            }
        }
        @if drawn.is_empty() { p { "No run has three methods at one size yet: no chart is drawn of fewer." } }
    };
    Ok(frame::page("Quality and cost", "costs.html", &head, &content))
}
