//! What every page of a site has: its head, the way to the others, and their names.

use maud::{Markup, html};

use crate::report::frame::{Pictures, document};
use crate::report::page;

const STYLE: &str = include_str!("site.css");
const SCRIPT: &str = include_str!("site.js");

/// Pages that every page leads to.
const PAGES: [(&str, &str); 6] = [
    ("index.html", "Leaderboard"),
    ("costs.html", "Quality and cost"),
    ("compare.html", "Compare"),
    ("methods.html", "Methods"),
    ("protocols.html", "Protocols"),
    ("runs.html", "Runs"),
];

/// A page with `content` in its `main`. `above` is the page of the list that it belongs to.
pub(super) fn page(title: &str, above: &str, head: &Markup, content: &Markup) -> String {
    let body = html! {
        a.skip.hidden href="#content" { "Skip to the content" }
        header {
            nav.site aria-label="Site" {
                ul {
                    @for (file, name) in PAGES {
                        li { a href=(file) aria-current=[(file == above).then_some("page")] { (name) } }
                    }
                }
            }
            (head)
        }
        main id="content" tabindex="-1" { (content) }
        footer { p.soft { "Made by scalebench from finished runs; each page of a run says with which version." } }
        (page::lightbox())
    };
    document(&format!("{title} – scalebench"), Pictures::Beside, &[page::STYLE, STYLE], &[page::SCRIPT, SCRIPT], &body)
}

/// Text of a file, in which code stands between backticks.
pub(super) fn prose(text: &str) -> Markup {
    html! { @for (i, part) in text.split('`').enumerate() { @if i % 2 == 1 { code { (part) } } @else { (part) } } }
}

/// A name as a part of a file's name or of an identifier.
pub(super) fn slug(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    name.chars().map(keep).collect()
}

pub(super) fn method_page(base: &str) -> String {
    format!("method-{}.html", slug(base))
}

pub(super) fn protocol_page(name: &str) -> String {
    format!("protocol-{}.html", slug(name))
}

pub(super) fn run_page(name: &str) -> String {
    format!("run-{}.html", slug(name))
}
