//! What a run found out: one row per cell, as plain data.

use scalebench_metrics::Estimate;

/// A value with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) value: f64,
    pub(crate) lo: f64,
    pub(crate) hi: f64,
}

impl From<Estimate> for Interval {
    fn from(estimate: Estimate) -> Interval {
        Interval { value: estimate.value, lo: estimate.lo, hi: estimate.hi }
    }
}

/// The scores that have columns of their own, each with `_lo` and `_hi`.
///
/// `_r` is against the reference at the cell's size, `_b` against base-resolution generations, and
/// `d_` is the paired difference to the baseline method at the same size (negative: better).
pub(crate) const SCORES: [&str; 6] = ["fid_r", "kid_r", "fid_b", "kid_b", "d_fid_r", "d_kid_r"];

/// The scores of which papers publish values.
pub(crate) const PUBLISHED: [&str; 4] = ["published_fid_r", "published_kid_r", "published_fid_b", "published_kid_b"];

/// One cell's results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) scale: f64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) method: String,
    pub(crate) n_images: u64,
    pub(crate) n_reference: u64,
    /// In the order of [`SCORES`].
    pub(crate) scores: [Option<Interval>; SCORES.len()],
    pub(crate) seconds_per_image: Option<f64>,
    pub(crate) peak_memory_bytes: Option<u64>,
    /// In the order of [`PUBLISHED`].
    pub(crate) published: [Option<f64>; PUBLISHED.len()],
}

impl Row {
    /// A score by its column name.
    pub(crate) fn score(&self, name: &str) -> Option<Interval> {
        let at = SCORES.iter().position(|score| *score == name).expect("a column of SCORES");
        self.scores[at]
    }
}

/// Table 1 of ScaleCrafter (arXiv:2310.07702), as published.
const PUBLISHED_TABLE: &str = include_str!("../../../datasets/published/scalecrafter_table1.csv");

/// Published values of a cell in the order of [`PUBLISHED`], where the paper has it.
pub(crate) fn published(family: &str, scale: f64, method: &str) -> [Option<f64>; PUBLISHED.len()] {
    let row = PUBLISHED_TABLE.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>()).find(|cells| {
        let factor = cells[1].trim_end_matches('x').parse::<f64>();
        cells[0] == family && factor == Ok(scale) && cells[4] == method
    });
    // model, scale, width, height, method, then the values.
    let value = |i: usize| row.as_ref().and_then(|cells| cells[5 + i].parse().ok());
    std::array::from_fn(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values_are_found() {
        assert_eq!(published("sd15", 4.0, "direct-inf"), [Some(38.50), Some(0.014), Some(29.30), Some(0.008)]);
        assert_eq!(published("pocket", 4.0, "direct-inf"), [None; 4]);
        assert_eq!(published("sd15", 4.0, "redilation"), [None; 4]);
    }
}
