//! A page a run: its report, with the site's samples.

use anyhow::Result;
use maud::html;

use super::frame;
use super::source::Source;
use crate::report::page::Page;
use crate::report::readback::Shown;
use crate::report::{figures, tradeoff};

pub(super) fn page(source: &Source) -> Result<String> {
    let (resolved, note) = (source.resolved(), source.note());
    let Shown { charts, samples, schedules } = &source.shown;
    // Of a run whose page was not kept.
    let mut drawn = Vec::new();
    if charts.is_empty() {
        drawn = figures::charts(&source.rows, &resolved.methods, note)?;
        drawn.extend(tradeoff::charts(&source.rows, &resolved.methods, note)?);
    }
    let charts = if charts.is_empty() { &drawn } else { charts };
    let page = Page { run: &source.run, rows: &source.rows, charts, samples, schedules, note };
    Ok(frame::page(&format!("Run {}", source.name), "runs.html", &page.head(), &page.content()?))
}

/// The list of all runs.
pub(super) fn list(sources: &[Source]) -> String {
    let head = html! {
        h1 { "Runs" }
        p.lead { "Each is one experiment, with its samples, charts, and everything that it was made with." }
    };
    let content = html! {
        @for source in sources {
            section aria-labelledby={ "run-" (source.name) } {
                h2 id={ "run-" (source.name) } { a href=(frame::run_page(&source.name)) { (source.name) } }
                @if let Some(question) = &source.resolved().question { p { (question) } }
                p.soft {
                    (source.resolved().methods.len()) " methods, " (source.resolved().images_in_words(" a cell")) ", protocol "
                    a href=(frame::protocol_page(&source.resolved().metrics.protocol.name)) { (source.resolved().metrics.protocol.name) }
                    "; " code { (source.run.command) }
                }
            }
        }
    };
    frame::page("Runs", "runs.html", &head, &content)
}
