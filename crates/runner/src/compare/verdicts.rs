//! Comparisons as people and CI systems read them: text and JUnit.

use std::fmt::Write as _;

use crate::compare::judge::{Cell, Comparison, Cost, CostTest, Criteria, MEMORY, Pairing, Regression, SPEED, Verdict};
use crate::run::numbers::{MEBIBYTE, change, number, probability};
use crate::run::results::label;
use crate::words::html::escape;
use crate::words::table::aligned;

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Identical => "identical",
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Undecided => "undecided",
            Verdict::WithinLimit => "within limit",
        }
    }
}

impl Cell {
    /// How the images of this cell were compared, for a reader.
    fn describe(&self) -> String {
        let n = self.images;
        match (self.pairing, self.changed_images) {
            (Pairing::PromptAndSeed, Some(0)) => format!("{n} images, all files the same"),
            (Pairing::PromptAndSeed, changed) => format!("{n} images paired by prompt and seed, {} differ", changed.unwrap_or(n)),
            (Pairing::Prompt, _) => format!("{n} images paired by prompt, other seeds"),
            (Pairing::Unpaired, _) => format!("{n} images a side, unpaired: other prompts"),
        }
    }
}

/// What was judged of a cell's costs: with column, unit, and the factor that brings values to it.
fn costs<'a>(cell: &'a Cell, criteria: &Criteria) -> impl Iterator<Item = (&'a Cost, &'static str, &'static str, f64)> {
    let speed = cell.speed.as_ref().map(|cost| (cost, SPEED, criteria.clock.unit(), 1.0));
    let memory = cell.memory.as_ref().map(|cost| (cost, MEMORY, "MiB", 1.0 / MEBIBYTE));
    speed.into_iter().chain(memory)
}

/// The comparison for a terminal.
pub(crate) fn text(comparison: &Comparison) -> String {
    let Comparison { baseline, run, criteria, notes, only_in_baseline, only_in_run, cells, regressions } = comparison;
    let mut text = format!("{run} against {baseline}\n");
    let mut line = |what: String| writeln!(text, "{what}").expect("writing to a string");
    for note in notes {
        line(format!("note: {note}"));
    }
    for (names, place) in [(only_in_baseline, baseline), (only_in_run, run)] {
        if !names.is_empty() {
            line(format!("only in {place}: {}", names.join(", ")));
        }
    }
    line(String::new());
    for cell in cells {
        line(format!("{}: {}", cell.name, cell.describe()));
    }
    line(String::new());
    let mut lines = vec![["cell", "what", "baseline", "run", "change", "p", "p (Holm)", "verdict"].map(str::to_owned).to_vec()];
    for cell in cells {
        for score in &cell.scores {
            let (name, factor) = label(&score.column);
            let (change, p, adjusted) = match score.verdict {
                Verdict::Identical => ("0".to_owned(), String::new(), String::new()),
                _ => (change(score.difference, factor), probability(score.p), probability(score.p_holm)),
            };
            let (before, now) = (number(score.baseline * factor), number(score.run * factor));
            lines.push(vec![cell.name.clone(), name, before, now, change, p, adjusted, score.verdict.word().to_owned()]);
        }
        for (cost, _, unit, factor) in costs(cell, criteria) {
            let (p, adjusted) = match cost.test {
                CostTest::SignedRank => (probability(cost.p), probability(cost.p_holm)),
                CostTest::Threshold => ("–".to_owned(), "–".to_owned()),
            };
            lines.push(vec![
                cell.name.clone(),
                unit.to_owned(),
                number(cost.baseline * factor),
                number(cost.run * factor),
                format!("× {:.3}", cost.ratio),
                p,
                adjusted,
                cost.verdict.word().to_owned(),
            ]);
        }
    }
    text += &aligned(&lines);
    let Criteria { alpha, slow_down, more_memory, .. } = criteria;
    writeln!(
        text,
        "\nchange: with its own 95 % interval. Verdicts: Holm over all tests of quality, all of speed and all of memory, each at level {alpha}; \
         slower counts from × {slow_down}, more memory from × {more_memory}."
    )
    .expect("writing to a string");
    for Regression { cell, what, .. } in regressions {
        writeln!(text, "regression: {cell}: {what}").expect("writing to a string");
    }
    if regressions.is_empty() {
        text += "no regression\n";
    }
    text
}

/// The comparison as a JUnit report: one test case for every cell and column, which fails if it is worse.
pub(crate) fn junit(comparison: &Comparison) -> String {
    let mut cases = String::new();
    let (mut count, mut failures) = (0, 0);
    let mut case = |cell: &str, name: &str, verdict: Verdict, what: String| {
        count += 1;
        let (cell, name, what) = (escape(cell), escape(name), escape(&what));
        write!(cases, "    <testcase classname=\"{cell}\" name=\"{name}\">").expect("writing to a string");
        if verdict == Verdict::Worse {
            failures += 1;
            write!(cases, "<failure message=\"{what}\"/>").expect("writing to a string");
        } else {
            write!(cases, "<system-out>{}: {what}</system-out>", verdict.word()).expect("writing to a string");
        }
        cases += "</testcase>\n";
    };
    for cell in &comparison.cells {
        for score in &cell.scores {
            let (name, factor) = label(&score.column);
            let (before, now) = (number(score.baseline * factor), number(score.run * factor));
            let change = change(score.difference, factor);
            case(
                &cell.name,
                &score.column,
                score.verdict,
                format!("{name} {before} → {now}: {change} (p = {})", probability(score.p_holm)),
            );
        }
        for (cost, column, unit, factor) in costs(cell, &comparison.criteria) {
            let what = format!("{} → {} {unit}: × {:.3}", number(cost.baseline * factor), number(cost.run * factor), cost.ratio);
            case(&cell.name, column, cost.verdict, what);
        }
    }
    let mut skipped = 0;
    for (names, place) in [(&comparison.only_in_baseline, &comparison.baseline), (&comparison.only_in_run, &comparison.run)] {
        for name in names {
            skipped += 1;
            let (name, message) = (escape(name), escape(&format!("only in {place}")));
            writeln!(cases, "    <testcase classname=\"{name}\" name=\"cell\"><skipped message=\"{message}\"/></testcase>")
                .expect("writing to a string");
        }
    }
    let count = count + skipped;
    let name = escape(&format!("{} against {}", comparison.run, comparison.baseline));
    let numbers = format!("tests=\"{count}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\"");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {numbers}>\n  <testsuite name=\"{name}\" {numbers}>\n{cases}  \
         </testsuite>\n</testsuites>\n"
    )
}
