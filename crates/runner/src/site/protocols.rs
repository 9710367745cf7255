//! A page a protocol: what is measured, what its source leaves open, and who used it.

use std::path::Path;

use anyhow::Result;
use maud::{Markup, html};

use super::boards::Board;
use super::frame;
use super::methods::published_table;
use super::source::Source;
use crate::experiment::protocol::{self, Protocol, Published};
use crate::report::page::compared;
use crate::report::scores;

/// Every protocol: the built-in ones, then those that runs brought.
pub(super) fn all(sources: &[Source]) -> Result<Vec<Protocol>> {
    let mut found: Vec<Protocol> = protocol::names().map(|name| protocol::find(name, Path::new(""))).collect::<Result<_>>()?;
    for source in sources {
        let its = &source.resolved().metrics.protocol;
        if !found.iter().any(|known| known.name == its.name) {
            found.push(its.clone());
        }
    }
    Ok(found)
}

pub(super) fn page(protocol: &Protocol, sources: &[Source], boards: &[Board]) -> String {
    let head = html! {
        h1 { "Protocol " (protocol.name) }
        p.lead { (protocol.title) }
        p { "From " (protocol.source) }
    };
    let content = html! {
        section aria-labelledby="measures" {
            h2 id="measures" { "What is measured" }
            p { "Columns: " @for (i, score) in protocol.scores().iter().enumerate() { @if i > 0 { ", " } (scores::head(&score.column)) } "." }
            (compared(protocol))
            @if !protocol.n_images.is_empty() {
                p {
                    "Images a cell in the source: "
                    @for (i, (size, n)) in protocol.n_images.iter().enumerate() {
                        @if i > 0 { ", " }
                        (n) @if size != "default" { " up to " (size.trim_start_matches("<=").replace('x', "×")) " px" } @else { " elsewhere" }
                    }
                    "."
                }
            }
        }
        section aria-labelledby="open" {
            h2 id="open" { "What its source leaves open" }
            @if protocol.uncertain.is_empty() { p { "Nothing that is known." } }
            ul { @for sentence in &protocol.uncertain { li { (frame::prose(sentence)) } } }
        }
        section aria-labelledby="used" {
            h2 id="used" { "Who used it" }
            (used(protocol, sources, boards))
        }
    };
    frame::page(&format!("Protocol {}", protocol.name), "protocols.html", &head, &content)
}

fn used(protocol: &Protocol, sources: &[Source], boards: &[Board]) -> Markup {
    let runs: Vec<&Source> = sources.iter().filter(|source| source.resolved().metrics.protocol.name == protocol.name).collect();
    let rows: Vec<Published> = protocol.published.iter().flat_map(|table| protocol::published_rows(table)).collect();
    let boards: Vec<&Board> = boards.iter().filter(|board| board.place.protocol == protocol.name).collect();
    html! {
        @if runs.is_empty() { p { "No run of this site." } } @else {
            p {
                "Runs of this site: "
                @for (i, source) in runs.iter().enumerate() { @if i > 0 { ", " } a href=(frame::run_page(&source.name)) { (source.name) } }
                ". Leaderboards: "
                @for (i, board) in boards.iter().enumerate() {
                    @if i > 0 { "; " }
                    a href={ "index.html#" (board.place.id()) } { (board.place.title()) }
                }
                "."
            }
        }
        @if !rows.is_empty() {
            h3 id={ "published-" (protocol.name) } { "What its source published" }
            (published_table(&protocol.name, &rows, &|_, _| None, true))
        }
    }
}

/// The list of all protocols.
pub(super) fn list(all: &[Protocol], sources: &[Source]) -> String {
    let head = html! {
        h1 { "Protocols" }
        p.lead { "Papers of this field share the name FID and little else. A protocol writes down what one of them measured, and numbers of two never share a table." }
    };
    let n_runs = |name: &str| sources.iter().filter(|source| source.resolved().metrics.protocol.name == name).count();
    let content = html! {
        div.scroll role="region" aria-label="Protocols" tabindex="0" {
            table.list {
                caption.hidden { "All protocols" }
                thead { tr { th scope="col" { "Protocol" } th scope="col" { "What" } th scope="col" { "Runs here" } } }
                tbody {
                    @for protocol in all {
                        tr {
                            th scope="row" { a href=(frame::protocol_page(&protocol.name)) { (protocol.name) } }
                            td { (protocol.title) }
                            td { (n_runs(&protocol.name)) }
                        }
                    }
                }
            }
        }
    };
    frame::page("Protocols", "protocols.html", &head, &content)
}
