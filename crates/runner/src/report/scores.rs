//! The table of a run's scores as HTML.

use maud::{Markup, html};
use scalebench_metrics::Verdict;

use crate::run::numbers::{MEBIBYTE, figure, value_and_half_width};
use crate::run::results::{Difference, Row, Score, Standing, label, lower_is_better};

/// `FID<sub>r</sub> ·10³ ↓`
pub(crate) fn head(column: &str) -> Markup {
    let (label, _) = label(column);
    let (name, power) = label.split_once('·').map_or((label.as_str(), String::new()), |(name, power)| (name, format!(" ·{power}")));
    html! {
        @match name.split_once('_') {
            Some((metric, id)) => { (metric) sub { (id) } }
            None => { (name) }
        }
        (power)
        @match lower_is_better(column) {
            Some(true) => { " " span title="lower is better" { "↓" } }
            Some(false) => { " " span title="higher is better" { "↑" } }
            None => {}
        }
    }
}

pub(crate) fn minus(text: &str) -> String {
    text.replace('-', "−")
}

/// A published figure, or a dash.
pub(crate) fn published(score: &Score) -> String {
    score.published.map_or_else(|| "–".to_owned(), |value| minus(&figure(value, label(&score.column).1)))
}

/// What stands in a cell: a value with its standing and, below, its difference to the baseline.
pub(crate) fn value(score: &Score) -> Markup {
    let factor = label(&score.column).1;
    if score.value.is_none() {
        return html! { "–" };
    }
    html! {
        span.value { (short(score)) }
        @match score.standing {
            Some(Standing::Best) => { span.badge { "best" } }
            Some(Standing::Undecided) => { span.badge title="the paired difference to the best is undecided" { "≈ best" } }
            Some(Standing::Behind) | None => {}
        }
        @if let Some(Difference { interval, verdict, n_to_decide }) = score.difference {
            span.delta { "Δ " (minus(&value_and_half_width(interval, factor))) ", " (word(verdict)) }
            @if let (Verdict::Undecided, Some(n)) = (verdict, n_to_decide) {
                span.delta { "n ≈ " (n) " decides" }
            }
        }
    }
}

/// A value and its interval alone.
pub(crate) fn short(score: &Score) -> String {
    score.value.map_or_else(|| "–".to_owned(), |value| minus(&value_and_half_width(value, label(&score.column).1)))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Undecided => "undecided",
    }
}

/// Whether a score is the best of its model and size.
pub(crate) fn is_best(score: &Score) -> bool {
    score.value.is_some() && score.standing == Some(Standing::Best)
}

/// Seconds of an image, and its peak memory in MiB.
pub(crate) fn costs(row: &Row) -> [String; 2] {
    let cost = |value: Option<f64>, digits: usize| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.digits$}"));
    [cost(row.seconds_per_image, 2), cost(row.peak_memory_bytes.map(|bytes| bytes as f64 / MEBIBYTE), 0)]
}

/// The rows of one model, a group for each size.
pub(crate) fn table<'a>(model: &str, rows: &[&'a Row], title_of: &dyn Fn(&'a str) -> &'a str) -> Markup {
    let Some(first) = rows.first() else { return html! {} };
    let columns: Vec<&str> = first.scores.iter().map(|score| score.column.as_str()).collect();
    let has_published: Vec<bool> = (0..columns.len()).map(|i| rows.iter().any(|row| row.scores[i].published.is_some())).collect();
    let n_published = has_published.iter().filter(|published| **published).count();
    let span = (n_published > 0).then_some("2");
    let groups: Vec<&[&Row]> = rows.chunk_by(|a, b| a.is_rival_of(b)).collect();
    html! {
        div.scroll role="region" aria-labelledby={ "results-" (model) } tabindex="0" {
            table.results {
                caption id={ "results-" (model) } { "Scores of " (model) " by scale and method" }
                thead {
                    tr {
                        th scope="col" rowspan=[span] { "Method" }
                        @for (column, published) in columns.iter().zip(&has_published) {
                            @if *published {
                                th scope="colgroup" colspan="2" { (head(column)) }
                            } @else {
                                th scope="col" rowspan=[span] { (head(column)) }
                            }
                        }
                        th scope="col" rowspan=[span] { "s/image" }
                        th scope="col" rowspan=[span] { "MiB" }
                    }
                    @if n_published > 0 {
                        tr { @for _ in 0..n_published { th scope="col" { "here" } th scope="col" { "published" } } }
                    }
                }
                @for group in groups {
                    tbody {
                        tr.group { th scope="rowgroup" colspan=(3 + columns.len() + n_published) { span { (place(group[0])) } } }
                        @for row in group {
                            tr {
                                th scope="row" { (title_of(&row.method)) }
                                @for (score, published) in row.scores.iter().zip(&has_published) {
                                    td.best[is_best(score)] { (value(score)) }
                                    @if *published { td { (self::published(score)) } }
                                }
                                @for cost in costs(row) { td { (cost) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Scale, size and how many images, in words.
fn place(row: &Row) -> String {
    let reference = row.n_reference.map_or_else(String::new, |n| format!(", {n} in the reference"));
    format!("{}× the training pixels, {}×{} px: {} images{reference}", row.scale, row.width, row.height, row.n_images)
}
