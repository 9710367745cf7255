//! Leaderboards: one a protocol, model and size. Within it every run has rows of its own, for differences are paired within a run,
//! and FID depends on how many images there are.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::frame;
use super::source::Source;
use crate::report::scores;
use crate::run::results::{Row, Score, Standing, label, lower_is_better};

pub(super) struct Board<'a> {
    pub(super) place: Place<'a>,
    /// In the order of the runs.
    pub(super) groups: Vec<Group<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place<'a> {
    pub(super) protocol: &'a str,
    pub(super) model: &'a str,
    /// Tells checkpoints of one name apart.
    digest: &'a str,
    pub(super) scale: f64,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Place<'_> {
    /// Of its table on the first page.
    pub(super) fn id(&self) -> String {
        frame::slug(&format!("{}-{}-{}x{}", self.protocol, self.model, self.width, self.height))
    }

    /// As the reports head it.
    pub(super) fn title(&self) -> String {
        format!("{}, {}× ({}×{})", self.model, self.scale, self.width, self.height)
    }
}

/// The rows of one run.
pub(super) struct Group<'a> {
    pub(super) source: &'a Source,
    pub(super) rows: Vec<&'a Row>,
}

/// Every board that the runs have rows for, by protocol, model and size.
pub(super) fn boards(sources: &[Source]) -> Vec<Board<'_>> {
    let mut boards: Vec<Board> = Vec::new();
    for source in sources {
        for row in &source.rows {
            let digest = source.resolved().models.iter().find(|model| model.name == row.model).map_or("", |model| &model.digest);
            let (protocol, model) = (row.protocol.as_str(), row.model.as_str());
            let place = Place { protocol, model, digest, scale: row.scale, width: row.width, height: row.height };
            let at = boards.iter().position(|board| board.place == place).unwrap_or_else(|| {
                boards.push(Board { place, groups: Vec::new() });
                boards.len() - 1
            });
            match boards[at].groups.last_mut() {
                Some(group) if std::ptr::eq(group.source, source) => group.rows.push(row),
                _ => boards[at].groups.push(Group { source, rows: vec![row] }),
            }
        }
    }
    let pixels = |place: &Place| u64::from(place.width) * u64::from(place.height);
    boards.sort_by(|a, b| {
        let key = |place: Place| (place.protocol.to_owned(), place.model.to_owned(), pixels(&place), place.width);
        key(a.place).cmp(&key(b.place))
    });
    boards
}

impl<'a> Board<'a> {
    /// The columns of all its runs, in their order.
    pub(super) fn columns(&self) -> Vec<&'a str> {
        let mut columns: Vec<&str> = Vec::new();
        for score in self.groups.iter().flat_map(|group| &group.rows[0].scores) {
            if !columns.contains(&score.column.as_str()) {
                columns.push(&score.column);
            }
        }
        columns
    }

    /// The run that says most: by its methods, variants of one counted once, times the root of its images, with which intervals narrow.
    pub(super) fn main_group(&self) -> &Group<'a> {
        let weight = |group: &&Group| {
            let methods: BTreeSet<&str> = group.rows.iter().map(|row| group.source.known(&row.method).base).collect();
            let n_images = group.rows.iter().map(|row| row.n_images).max().unwrap_or(0);
            (methods.len() as f64) * (n_images as f64).sqrt()
        };
        // The first of equals.
        self.groups.iter().rev().max_by(|a, b| weight(a).total_cmp(&weight(b))).expect("a board has rows")
    }
}

/// The score by which methods are ranked: FID against the reference, or the first that has a direction.
pub(super) fn main_column<'a>(columns: &[&'a str]) -> Option<&'a str> {
    let directed = || columns.iter().find(|column| lower_is_better(column).is_some());
    columns.iter().find(|column| **column == "fid_r").or_else(directed).copied()
}

pub(super) fn score<'a>(row: &'a Row, column: &str) -> Option<&'a Score> {
    row.scores.iter().find(|score| score.column == column)
}

impl<'a> Group<'a> {
    /// From the best value of a column on; rows without one are last.
    pub(super) fn ranked(&self, column: &str) -> Vec<&'a Row> {
        let lower = lower_is_better(column) != Some(false);
        let badness = |row: &&Row| row.score(column).map_or(f64::INFINITY, |x| if lower { x.value } else { -x.value });
        let mut rows = self.rows.clone();
        rows.sort_by(|a, b| badness(a).total_cmp(&badness(b)));
        rows
    }

    /// Time of an image over that of the method that it is compared with.
    pub(super) fn times(&self, row: &Row) -> Option<f64> {
        let plain = self.rows.iter().find(|other| other.method == row.baseline)?;
        Some(row.seconds_per_image? / plain.seconds_per_image.filter(|seconds| *seconds > 0.0)?)
    }

    /// How good and how certain it is: the best method, those not told apart from it, and the cheapest of all these.
    fn answer(&self, column: &str) -> Option<(&'a Row, Vec<&'a Row>, Option<&'a Row>)> {
        let ranked = self.ranked(column);
        let standing = |row: &&&Row, wanted: Standing| score(row, column).is_some_and(|score| score.standing == Some(wanted));
        let best = *ranked.iter().find(|row| standing(row, Standing::Best)).or(ranked.first())?;
        best.score(column)?;
        let equal: Vec<&Row> = ranked.iter().filter(|row| standing(row, Standing::Undecided)).copied().collect();
        let seconds = |row: &&&Row| row.seconds_per_image.unwrap_or(f64::INFINITY);
        let all = std::iter::once(&best).chain(&equal);
        let cheapest = all.min_by(|a, b| seconds(a).total_cmp(&seconds(b))).copied();
        Some((best, equal, cheapest.filter(|cheapest| cheapest.method != best.method && cheapest.seconds_per_image.is_some())))
    }
}

/// `1.7× (0.52 s)`
pub(super) fn cost(group: &Group, row: &Row) -> String {
    let seconds = row.seconds_per_image.map(|seconds| format!("{seconds:.2} s"));
    match (group.times(row), seconds) {
        (Some(times), Some(seconds)) => format!("{times:.1}× ({seconds})"),
        (None, Some(seconds)) => seconds,
        _ => "not known".to_owned(),
    }
}

/// A link to the page of a method.
pub(super) fn method_link(source: &Source, name: &str) -> Markup {
    let known = source.known(name);
    html! { a href=(frame::method_page(known.base)) { (known.title) } }
}

/// Which method at which size: the best of every board's largest run, what it costs, and what does as well for less.
pub(super) fn answers(boards: &[Board]) -> Markup {
    html! {
        div.scroll role="region" aria-labelledby="answers" tabindex="0" {
            table.answers {
                caption.hidden { "The best method by size" }
                thead {
                    tr {
                        th scope="col" { "Scale" }
                        th scope="col" { "Best" }
                        th scope="col" { "Score" }
                        th scope="col" { "Time of an image" }
                        th scope="col" { "Not told apart from it" }
                        th scope="col" { "Cheapest of these" }
                        th scope="col" { "Run" }
                    }
                }
                tbody { @for board in boards { (answer(board)) } }
            }
        }
    }
}

fn answer(board: &Board) -> Markup {
    let (place, group) = (&board.place, board.main_group());
    let Some(column) = main_column(&board.columns()) else { return html! {} };
    let Some((best, equal, cheapest)) = group.answer(column) else { return html! {} };
    let links =
        |rows: &[&Row]| html! { @for (i, row) in rows.iter().enumerate() { @if i > 0 { ", " } (method_link(group.source, &row.method)) } };
    html! {
        tr {
            th scope="row" {
                a href={ "#" (place.id()) } { (place.scale) "×" }
                " " small { (place.model) ", " (place.width) "×" (place.height) " px, by " (place.protocol) }
            }
            td { strong { (method_link(group.source, &best.method)) } }
            td { (scores::head(column)) br; @if let Some(score) = score(best, column) { (scores::value(score)) } }
            td { (cost(group, best)) }
            td {
                @match score(best, column).and_then(|score| score.standing) {
                    None => { "not said by this run" }
                    Some(_) if equal.is_empty() => { "–" }
                    Some(_) => { (links(&equal)) }
                }
            }
            td { @match cheapest { Some(row) => { (links(&[row])) ": " (cost(group, row)) } None => { "–" } } }
            td { a href=(frame::run_page(&group.source.name)) { (group.source.name) } br; small { (best.n_images) " images, " (group.rows.len()) " methods" } }
        }
    }
}

/// The board as a table that the page's script sorts and filters.
pub(super) fn table(board: &Board) -> Markup {
    let (place, columns) = (&board.place, board.columns());
    let id = place.id();
    let has_published =
        |column: &str| board.groups.iter().flat_map(|g| &g.rows).any(|row| score(row, column).is_some_and(|s| s.published.is_some()));
    let published: Vec<bool> = columns.iter().map(|column| has_published(column)).collect();
    let n_columns = 4 + columns.len() + published.iter().filter(|published| **published).count();
    html! {
        section.board aria-labelledby=(id) data-protocol=(place.protocol) data-model=(place.model) data-scale=(place.scale) {
            h3 id=(id) { (place.title()) }
            p.soft { "Protocol " a href=(frame::protocol_page(place.protocol)) { (place.protocol) } ". Heads sort the rows of each run." }
            div.scroll role="region" aria-labelledby=(id) tabindex="0" {
                table.results.sortable {
                    caption.hidden { "Methods on " (place.title()) " by protocol " (place.protocol) }
                    thead {
                        tr {
                            (sort_head(None, &html! { "Method" }))
                            @for (column, published) in columns.iter().zip(&published) {
                                (sort_head(Some(column), &scores::head(column)))
                                @if *published { (sort_head(Some(column), &html! { "published" })) }
                            }
                            (sort_head(None, &html! { "× time" }))
                            (sort_head(None, &html! { "s/image" }))
                            (sort_head(None, &html! { "MiB" }))
                        }
                    }
                    @for group in &board.groups {
                        tbody {
                            (group_head(group, n_columns))
                            @for row in group.ranked(main_column(&columns).unwrap_or_default()) { (line(group, row, &columns, &published)) }
                        }
                    }
                }
            }
        }
    }
}

fn sort_head(column: Option<&str>, text: &Markup) -> Markup {
    html! { th scope="col" data-metric=[column] { button type="button" data-sort { (text) } } }
}

fn group_head(group: &Group, n_columns: usize) -> Markup {
    let (source, first) = (group.source, group.rows[0]);
    html! {
        tr.group {
            th scope="rowgroup" colspan=(n_columns) {
                span {
                    a href=(frame::run_page(&source.name)) { (source.name) } ": " (first.n_images) " images"
                    @if let Some(n) = first.n_reference { ", " (n) " in the reference" }
                }
            }
        }
    }
}

fn line(group: &Group, row: &Row, columns: &[&str], published: &[bool]) -> Markup {
    let number = |value: Option<f64>| value.map(|value| value.to_string());
    let [seconds, memory] = scores::costs(row);
    html! {
        tr data-method=(group.source.known(&row.method).title) {
            th scope="row" data-value=(group.source.known(&row.method).title) { (method_link(group.source, &row.method)) }
            @for (column, published) in columns.iter().zip(published) {
                @match score(row, column) {
                    Some(score) => {
                        td.best[scores::is_best(score)] data-metric=(column) data-value=[number(score.value.map(|x| x.value))] { (scores::value(score)) }
                        @if *published { td data-metric=(column) data-value=[number(score.published)] { (scores::published(score)) } }
                    }
                    None => {
                        td data-metric=(column) { "–" }
                        @if *published { td data-metric=(column) { "–" } }
                    }
                }
            }
            td data-value=[number(group.times(row))] { (group.times(row).map_or_else(|| "–".to_owned(), |times| format!("{times:.1}"))) }
            td data-value=[number(row.seconds_per_image)] { (seconds) }
            td data-value=[row.peak_memory_bytes] { (memory) }
        }
    }
}

/// Name and label of every score of the boards, for the choice of one.
pub(super) fn metrics<'a>(boards: &[Board<'a>]) -> Vec<(&'a str, String)> {
    let mut seen = Vec::new();
    for column in boards.iter().flat_map(Board::columns) {
        if !seen.iter().any(|(known, _)| *known == column) {
            seen.push((column, label(column).0));
        }
    }
    seen
}
