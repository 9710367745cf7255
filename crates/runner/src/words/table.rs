//! Tables for a terminal.

/// Lines with columns of equal width, two spaces apart.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |i: usize| lines.iter().filter_map(|line| line.get(i)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let pad = |(cell, width): (&String, &usize)| format!("{cell:width$}");
    let line = |line: &Vec<String>| {
        let cells: Vec<String> = line.iter().zip(&widths).map(pad).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}
