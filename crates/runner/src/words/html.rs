//! Text in HTML, SVG and XML.

/// Whether HTML and XML cannot hold a character, not even escaped.
fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r') || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// A whole page with what it cannot hold replaced: the template engine escapes markup, and lets control characters pass.
pub(crate) fn printable(page: String) -> String {
    if page.contains(is_forbidden) { page.replace(is_forbidden, "\u{fffd}") } else { page }
}

/// Text as XML text or attribute value.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\t' | '\n' | '\r' => escaped.push(' '),
            c if is_forbidden(c) => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a=\"x\" b='y'>&"), "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;");
        assert_eq!(escape("a\0b\u{1b}[31m\u{85}\nc\r\u{ffff}"), "a\u{fffd}b\u{fffd}[31m\u{fffd} c \u{fffd}");
        assert_eq!(printable("<p>a\0b\u{1b}[31m\u{85}\nc\u{ffff}".to_owned()), "<p>a\u{fffd}b\u{fffd}[31m\u{fffd}\nc\u{fffd}");
        assert_eq!(printable("<p>Ⓜ️\n".to_owned()), "<p>Ⓜ️\n");
    }
}
