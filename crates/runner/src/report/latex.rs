//! The results as a LaTeX table that can be pasted into a paper; needs `booktabs` and nothing else.

use std::fmt::Write as _;

use crate::experiment::resolved::Resolved;
use crate::run::numbers::{figure, value_and_half_width};
use crate::run::results::{Row, Score, Standing, label, lower_is_better};

/// Text as LaTeX text.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped += "\\textbackslash{}",
            '{' | '}' | '$' | '&' | '#' | '%' | '_' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '<' => escaped += "\\textless{}",
            '>' => escaped += "\\textgreater{}",
            '|' => escaped += "\\textbar{}",
            '"' => escaped += "\\textquotedbl{}",
            // Characters that text files of papers can hold, but that fonts of pdfLaTeX lack.
            '×' => escaped += "\\ensuremath{\\times}",
            '±' => escaped += "\\ensuremath{\\pm}",
            '·' => escaped += "\\ensuremath{\\cdot}",
            '∞' => escaped += "\\ensuremath{\\infty}",
            '≤' => escaped += "\\ensuremath{\\leq}",
            'η' => escaped += "\\ensuremath{\\eta}",
            'τ' => escaped += "\\ensuremath{\\tau}",
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A column's head: `FID$_{r}$ $\downarrow$`.
fn head(column: &str) -> String {
    let (label, factor) = label(column);
    let name = label.split('·').next().unwrap_or_default();
    let (metric, id) = name.split_once('_').unwrap_or((name, ""));
    let index = if id.is_empty() { String::new() } else { format!("$_{{\\mathrm{{{}}}}}$", escape(id)) };
    let power = if factor == 1.0 { String::new() } else { format!("$\\,\\cdot 10^{{{:.0}}}$", factor.log10()) };
    let arrow = match lower_is_better(column) {
        Some(true) => " $\\downarrow$",
        Some(false) => " $\\uparrow$",
        None => "",
    };
    format!("{}{index}{power}{arrow}", escape(metric))
}

/// `$12.3 \pm 4.5$` with its mark, then the published figure in parentheses.
fn cell(score: &Score) -> String {
    let factor = label(&score.column).1;
    let ours = match score.value {
        None => "--".to_owned(),
        Some(x) => {
            let text = value_and_half_width(x, factor).replace('±', "\\pm");
            match score.standing {
                Some(Standing::Best) => format!("$\\mathbf{{{text}}}$"),
                Some(Standing::Undecided) => format!("${text}^\\dagger$"),
                Some(Standing::Behind) | None => format!("${text}$"),
            }
        }
    };
    match score.published {
        None => ours,
        Some(value) => format!("{ours} ({})", figure(value, factor)),
    }
}

/// The whole `table` environment.
pub(crate) fn table(resolved: &Resolved, rows: &[Row], note: &str) -> String {
    let several_models = resolved.models.len() > 1;
    let columns: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    let title = |name: &str| {
        let found = resolved.methods.iter().find(|method| method.name == name);
        escape(found.map_or(name, |method| &method.title))
    };
    let protocol = &resolved.metrics.protocol;
    let mut caption = format!(
        "{} Protocol {}, {}, \\(\\pm\\) 95\\,\\% intervals. Bold: best of its scale; \\(\\dagger\\): its paired \
         difference to the best is undecided.",
        resolved.question.as_deref().map(escape).unwrap_or_default(),
        escape(&protocol.name),
        resolved.images_in_words(" images per cell"),
    );
    if rows.iter().any(|row| row.scores.iter().any(|score| score.published.is_some())) {
        caption += " In parentheses: published.";
    }
    if !note.is_empty() {
        let _ = write!(caption, " {}.", escape(note));
    }
    let mut tex = format!(
        "% {}; \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n\\caption{{{}}}\n\\label{{tab:{}}}\n\\small\n\\begin{{tabular}}{{{}ll{}}}\n\\toprule\n",
        resolved.tool,
        caption.trim(),
        resolved.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
        if several_models { "l" } else { "" },
        "r".repeat(columns.len())
    );
    let model_head = if several_models { "Model & " } else { "" };
    let heads: String = columns.iter().map(|column| format!(" & {}", head(column))).collect();
    let _ = writeln!(tex, "{model_head}Scale & Method{heads} \\\\");
    // Shapes of one factor are told apart by their size.
    let size = |row: &Row| match rows.iter().any(|other| other.scale == row.scale && other.model == row.model && !other.is_rival_of(row)) {
        true => format!(" (${}\\times{}$)", row.width, row.height),
        false => String::new(),
    };
    let mut group = None;
    for row in rows {
        let begins = group.is_none_or(|group: &Row| !group.is_rival_of(row));
        group = Some(row);
        if begins {
            tex += "\\midrule\n";
        }
        let model = match (several_models, begins) {
            (false, _) => String::new(),
            (true, true) => format!("{} & ", escape(&row.model)),
            (true, false) => " & ".to_owned(),
        };
        let scale = if begins { format!("${}\\times${}", row.scale, size(row)) } else { String::new() };
        let cells: String = row.scores.iter().map(|score| format!(" & {}", cell(score))).collect();
        let _ = writeln!(tex, "{model}{scale} & {}{cells} \\\\", title(&row.method));
    }
    tex += "\\bottomrule\n\\end{tabular}\n\\end{table}\n";
    tex
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::results::Interval;

    #[test]
    fn special_characters_are_escaped() {
        assert_eq!(
            escape("50% of a_b & {x} #1 $2 ~^\\"),
            "50\\% of a\\_b \\& \\{x\\} \\#1 \\$2 \\textasciitilde{}\\textasciicircum{}\\textbackslash{}"
        );
        assert_eq!(escape("4× <|>"), "4\\ensuremath{\\times} \\textless{}\\textbar{}\\textgreater{}");
    }

    #[test]
    fn heads_and_cells_are_mathematics() {
        assert_eq!(head("fid_r"), "FID$_{\\mathrm{r}}$ $\\downarrow$");
        assert_eq!(head("kid_dino_r"), "KID$_{\\mathrm{dino\\_r}}$$\\,\\cdot 10^{3}$ $\\downarrow$");
        assert_eq!(head("recall_r"), "recall$_{\\mathrm{r}}$ $\\uparrow$");
        let interval = Interval { value: -0.0204, lo: -0.0304, hi: -0.0104 };
        let score = |published, standing| Score { column: "kid_r".into(), value: Some(interval), difference: None, standing, published };
        assert_eq!(cell(&score(None, None)), "$-20 \\pm 10$");
        assert_eq!(cell(&score(None, Some(Standing::Behind))), "$-20 \\pm 10$");
        assert_eq!(cell(&score(Some(0.0291), Some(Standing::Best))), "$\\mathbf{-20 \\pm 10}$ (29.1)");
        assert_eq!(cell(&score(None, Some(Standing::Undecided))), "$-20 \\pm 10^\\dagger$");
        assert_eq!(cell(&Score { value: None, ..score(None, None) }), "--");
    }
}
