//! A page a method: what it does, where it comes from, how exactly it is the authors', and its results wherever it was run.

use std::path::Path;

use anyhow::Result;
use maud::{Markup, html};

use super::boards::{self, Board, Group};
use super::compare::Pairs;
use super::frame;
use super::maps::Maps;
use super::source::Source;
use super::spec::Golden;
use crate::experiment::methods::{self, BASELINE};
use crate::experiment::protocol::{self, Published};
use crate::report::page::{Samples, ScheduleMap, sample_table, schedule_maps};
use crate::report::scores;
use crate::run::numbers::figure;
use crate::run::results::{Row, label};

/// What a method's page shows.
pub(super) struct Described<'a> {
    pub(super) name: &'a str,
    pub(super) title: String,
    source: Option<String>,
    /// What its file says of it, and all of its settings.
    prose: String,
    settings: String,
    maps: Vec<ScheduleMap>,
}

/// Every method: the built-in ones in their order, then those that runs brought.
pub(super) fn all(sources: &[Source]) -> Result<Vec<Described<'_>>> {
    let mut maps = Maps::new()?;
    let mut found = Vec::new();
    for name in methods::names() {
        let (spec, text) = (methods::find(name, Path::new(""))?, methods::text(name).unwrap_or_default());
        let (title, source) = (spec.title().to_owned(), Some(spec.source().to_owned()));
        found.push(Described { name, title, source, prose: prose(text), settings: text.to_owned(), maps: maps.of(name)? });
    }
    for source in sources {
        for method in source.resolved().methods.iter().filter(|method| method.variant_of.is_none()) {
            if found.iter().any(|known| known.name == method.name) {
                continue;
            }
            let brought = method.images.as_ref();
            let prose = brought.map_or_else(String::new, |brought| format!("Another program made its images: {}", brought.images));
            let from = brought.map_or_else(|| method.settings["source"].as_str().map(str::to_owned), |brought| brought.source.clone());
            let maps = source.shown.schedules.iter().filter(|map| map.method == method.title).cloned().collect();
            let settings = serde_yaml::to_string(&method.settings)?;
            found.push(Described { name: &method.name, title: method.title.clone(), source: from, prose, settings, maps });
        }
    }
    Ok(found)
}

/// The comment that a method file begins with.
fn prose(text: &str) -> String {
    let comments = text.lines().map_while(|line| line.strip_prefix('#'));
    comments.map(str::trim).filter(|line| !line.starts_with("yaml-language-server")).collect::<Vec<_>>().join(" ")
}

impl Described<'_> {
    pub(super) fn page(&self, sources: &[Source], boards: &[Board], goldens: &[Golden], pairs: &Pairs) -> String {
        let head = html! {
            h1 { (self.title) }
            @if let Some(source) = &self.source { p.lead { (source) } }
            @if !self.prose.is_empty() { p { (frame::prose(&self.prose)) } }
        };
        let sections = [
            ("results", "Results", self.results(boards)),
            ("samples", "Samples", self.samples(sources, pairs)),
            ("published", "Published figures", self.published(boards)),
            ("does", "What it does", self.does()),
            ("goldens", "How faithful it is", self.faithful(goldens)),
            ("file", "Its file", html! { p { "What an experiment calls " code { (self.name) } ":" } pre tabindex="0" { (self.settings) } }),
        ];
        let content = html! {
            @for (id, name, section) in &sections { section aria-labelledby=(id) { h2 id=(id) { (name) } (section) } }
        };
        frame::page(&self.title, "methods.html", &head, &content)
    }

    /// The rows of the method and its variants on a board.
    fn rows<'b, 'a>(&self, board: &'b Board<'a>) -> Vec<(&'b Group<'a>, &'a Row)> {
        let of = |group: &'b Group<'a>| {
            let rows = group.rows.iter().filter(|row| group.source.known(&row.method).base == self.name);
            rows.map(|row| (group, *row)).collect::<Vec<_>>()
        };
        board.groups.iter().flat_map(of).collect()
    }

    fn results(&self, boards: &[Board]) -> Markup {
        let with_rows: Vec<&Board> = boards.iter().filter(|board| !self.rows(board).is_empty()).collect();
        if with_rows.is_empty() {
            return html! { p { "It is in no run of this site." } };
        }
        html! {
            @for boards in with_rows.chunk_by(|a, b| a.place.protocol == b.place.protocol) {
                @let protocol = boards[0].place.protocol;
                h3 id={ "results-" (protocol) } { "By protocol " a href=(frame::protocol_page(protocol)) { (protocol) } }
                (self.result_table(boards, protocol))
            }
            @if self.name != BASELINE { p { "Δ: paired difference to plain sampling at the same size, in the same run. × time: over it." } }
        }
    }

    fn result_table(&self, boards: &[&Board], protocol: &str) -> Markup {
        let mut columns: Vec<&str> = Vec::new();
        for column in boards.iter().flat_map(|board| board.columns()) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        html! {
            div.scroll role="region" aria-labelledby={ "results-" (protocol) } tabindex="0" {
                table.results {
                    caption.hidden { "Results of " (self.title) " by protocol " (protocol) }
                    thead {
                        tr {
                            th scope="col" { "Run" }
                            th scope="col" { "Images" }
                            @for column in &columns { th scope="col" { (scores::head(column)) } }
                            th scope="col" { "× time" }
                        }
                    }
                    @for board in boards {
                        tbody {
                            tr.group {
                                th scope="rowgroup" colspan=(3 + columns.len()) {
                                    span { a href={ "index.html#" (board.place.id()) } { (board.place.title()) } }
                                }
                            }
                            @for (group, row) in self.rows(board) {
                                tr {
                                    th scope="row" {
                                        a href=(frame::run_page(&group.source.name)) { (group.source.name) }
                                        @if row.method != self.name { " " small { (group.source.known(&row.method).title) } }
                                    }
                                    td { (row.n_images) }
                                    @for column in &columns {
                                        @match boards::score(row, column) {
                                            Some(score) => { td.best[scores::is_best(score)] { (scores::value(score)) } }
                                            None => { td { "–" } }
                                        }
                                    }
                                    td { (boards::cost(group, row)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Samples of every size beside plain sampling: from the run with the most images that has the method itself.
    fn samples(&self, sources: &[Source], pairs: &Pairs) -> Markup {
        let mut chosen: Vec<(&Source, Samples)> = Vec::new();
        let mut order: Vec<&Source> = sources.iter().collect();
        let has_itself = |source: &Source| source.rows.iter().any(|row| row.method == self.name);
        order.sort_by_key(|source| std::cmp::Reverse((has_itself(source), source.resolved().images.most())));
        for source in order {
            for samples in source.samples_of(self.name) {
                if !chosen.iter().any(|(_, known)| known.title == samples.title) {
                    chosen.push((source, samples));
                }
            }
        }
        html! {
            @if chosen.is_empty() { p { "No run of this site keeps samples of it." } }
            @for (i, (source, samples)) in chosen.iter().enumerate() {
                @let id = format!("samples-{i}");
                h3 id=(id) { (samples.title) }
                p.soft {
                    "Of run " a href=(frame::run_page(&source.name)) { (source.name) } ": same prompts and seeds in a column."
                    @if let Some(link) = pairs.link(source, &samples.title, &self.title) {
                        " " a href=(link) { "Compare with plain sampling" } "."
                    }
                }
                (sample_table(samples, &id))
            }
        }
    }

    fn published(&self, boards: &[Board]) -> Markup {
        let of = |name: &'static str| {
            let found = protocol::find(name, Path::new("")).ok()?;
            let rows: Vec<Published> = protocol::published_rows(&found.published?).filter(|row| row.method == self.name).collect();
            (!rows.is_empty()).then_some((name, rows))
        };
        let tables: Vec<(&str, Vec<Published>)> = protocol::names().filter_map(of).collect();
        if tables.is_empty() {
            return html! { p { "No table of published figures here has it." } };
        }
        html! {
            p { "As printed in the papers, each by a protocol of its own; beside it ours, where a run of this site has the same protocol, model and scale." }
            @for (name, rows) in &tables {
                h3 id={ "published-" (name) } { "By protocol " a href=(frame::protocol_page(name)) { (name) } }
                (published_table(name, rows, &|row, column| self.ours(boards, name, row, column), false))
            }
        }
    }

    /// Our value of a published one.
    fn ours(&self, boards: &[Board], protocol: &str, published: &Published, column: &str) -> Option<String> {
        let rows = boards.iter().filter(|board| board.place.protocol == protocol && board.place.scale == published.scale);
        let is_family = |group: &Group, row: &Row| {
            group.source.resolved().models.iter().any(|model| model.name == row.model && model.family == published.family)
        };
        let mut rows = rows.flat_map(|board| self.rows(board)).filter(|(group, row)| is_family(group, row) && row.method == self.name);
        rows.find_map(|(_, row)| boards::score(row, column)).map(scores::short)
    }

    fn does(&self) -> Markup {
        html! {
            @if self.maps.is_empty() { p { "Nothing is known of what it does to layers." } } @else {
                p { "To every 3×3 convolution at every sampling step of " code { "pocket" } "; step 1 is the noisiest." }
            }
            @for maps in self.maps.chunk_by(|a, b| a.place == b.place) {
                h3 { (maps[0].place) }
                (schedule_maps(maps))
            }
        }
    }

    fn faithful(&self, goldens: &[Golden]) -> Markup {
        let goldens: Vec<&Golden> = goldens.iter().filter(|golden| golden.method == self.name).collect();
        if goldens.is_empty() {
            return html! { p { "No golden of its own." } };
        }
        html! {
            p {
                "Whole runs of the reference on tiny models with random weights, noise included, are compared tensor by tensor; the largest difference \
                 is over the root mean square of the reference’s values. Tests hold it to 1e-4."
            }
            div.scroll role="region" aria-labelledby="goldens" tabindex="0" {
                table {
                    caption.hidden { "Goldens of " (self.title) }
                    thead { tr { th scope="col" { "Golden" } th scope="col" { "Made by" } th scope="col" { "Tensors" } th scope="col" { "Largest difference" } } }
                    tbody {
                        @for golden in goldens {
                            tr {
                                th scope="row" { code { (golden.golden) } }
                                td { (golden.reference) }
                                td { (golden.comparisons) }
                                td { (format!("{:.1e}", golden.largest)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Published figures, and ours below them where there are any.
pub(super) fn published_table(name: &str, rows: &[Published], ours: &dyn Fn(&Published, &str) -> Option<String>, methods: bool) -> Markup {
    let Some(first) = rows.first() else { return html! {} };
    let id = format!("published-{name}");
    html! {
        div.scroll role="region" aria-labelledby=(id) tabindex="0" {
            table.results {
                caption.hidden { "Published figures by protocol " (name) }
                thead {
                    tr {
                        th scope="col" { @if methods { "Method" } @else { "Model" } }
                        th scope="col" { "Scale" }
                        @for (column, _) in &first.values { th scope="col" { (scores::head(column)) } }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            th scope="row" { @if methods { (row.method) " " small { (row.family) } } @else { (row.family) } }
                            td { (row.scale) "× " small { (row.size.0) "×" (row.size.1) } }
                            @for (column, value) in &row.values {
                                td {
                                    (value.map_or_else(|| "–".to_owned(), |value| scores::minus(&figure(value, label(column).1))))
                                    @if let Some(ours) = ours(row, column) { span.delta { "ours " (ours) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The list of all methods.
pub(super) fn list(all: &[Described], sources: &[Source]) -> String {
    let head = html! { h1 { "Methods" } p.lead { "Each is a file of settings; any of them may be the start of one of your own." } };
    let runs = |name: &str| sources.iter().filter(|source| source.titles(name).next().is_some()).collect::<Vec<_>>();
    let content = html! {
        div.scroll role="region" aria-label="Methods" tabindex="0" {
            table.list {
                caption.hidden { "All methods" }
                thead { tr { th scope="col" { "Method" } th scope="col" { "From" } th scope="col" { "In runs" } } }
                tbody {
                    @for method in all {
                        tr {
                            th scope="row" { a href=(frame::method_page(method.name)) { (method.title) } }
                            td { (method.source.as_deref().unwrap_or("–")) }
                            td {
                                @for (i, source) in runs(method.name).into_iter().enumerate() {
                                    @if i > 0 { ", " }
                                    a href=(frame::run_page(&source.name)) { (source.name) }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    frame::page("Methods", "methods.html", &head, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_first_comment_is_its_prose() {
        assert_eq!(prose("# yaml-language-server: $schema=x\n# One\n#  two.\nname: a\n# three\n"), "One two.");
        assert_eq!(prose("name: a\n# three\n"), "");
    }

    /// Every method has settings for the pocket model at one of the scales at least, and so something to show.
    #[test]
    fn every_builtin_method_is_described() {
        for method in all(&[]).unwrap() {
            assert!(!method.maps.is_empty(), "{}", method.name);
            assert!(method.source.is_some() && method.settings.contains("variants"), "{}", method.name);
        }
    }
}
