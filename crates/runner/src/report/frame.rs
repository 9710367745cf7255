//! What is around the content of every HTML page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::words::html::printable;

/// Where the images of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pictures {
    /// In the page itself: it is one file.
    Inside,
    /// In files of the same folder or others beside it.
    Beside,
}

/// A page: style and script are part of it, so that it is whole wherever it lies, and it may fetch nothing from elsewhere.
pub(crate) fn document(title: &str, pictures: Pictures, styles: &[&str], scripts: &[&str], body: &Markup) -> String {
    let images = match pictures {
        Pictures::Inside => "data:",
        Pictures::Beside => "'self' file: data:",
    };
    let policy = format!("default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src 'unsafe-inline'");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(policy);
                link rel="icon" href="data:,";
                title { (title) }
                style { @for style in styles { (PreEscaped(style)) } }
            }
            body {
                (body)
                script { @for script in scripts { (PreEscaped(script)) } }
            }
        }
    };
    printable(page.into_string())
}
