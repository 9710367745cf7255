//! What a run found out: one row per cell, as plain data.

use scalebench_metrics::{Estimate, Metric, Verdict};

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

/// A paired difference to the baseline method at the same size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    pub(crate) interval: Interval,
    pub(crate) verdict: Verdict,
    /// Images per cell that would decide a difference of this size.
    pub(crate) n_to_decide: Option<u64>,
}

/// One column's entry in a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// `METRIC_ID`, see [`crate::protocol`].
    pub(crate) column: String,
    /// None where there is nothing to compare with, as for base-resolution images against themselves.
    pub(crate) value: Option<Interval>,
    pub(crate) difference: Option<Difference>,
    pub(crate) published: Option<f64>,
}

/// One cell's results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) scale: f64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) method: String,
    pub(crate) protocol: String,
    pub(crate) n_images: u64,
    pub(crate) n_reference: u64,
    /// The same columns in every row of a run.
    pub(crate) scores: Vec<Score>,
    pub(crate) seconds_per_image: Option<f64>,
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Row {
    /// A score by its column name.
    pub(crate) fn score(&self, column: &str) -> Option<Interval> {
        self.scores.iter().find(|score| score.column == column)?.value
    }
}

/// The metric of a column: the longest metric name that the column starts with.
pub(crate) fn metric_of(column: &str) -> Option<(Metric, &str)> {
    let id = |metric: Metric| Some((metric, column.strip_prefix(metric.name())?.strip_prefix('_')?));
    Metric::ALL.into_iter().filter_map(id).min_by_key(|(_, id)| id.len())
}

/// How people write a column's name, and the factor that brings its values to a readable size.
pub(crate) fn label(column: &str) -> (String, f64) {
    match metric_of(column) {
        Some((Metric::Fid, id)) => (format!("FID_{id}"), 1.0),
        Some((Metric::Kid, id)) => (format!("KID_{id}·10³"), 1e3),
        Some((Metric::InceptionScore, id)) => (format!("IS_{id}"), 1.0),
        Some((Metric::Cmmd, id)) => (format!("CMMD_{id}"), 1.0),
        Some((Metric::ClipScore, id)) => (format!("CLIP_{id}"), 1.0),
        _ => (column.to_owned(), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_labels() {
        assert_eq!(label("fid_r"), ("FID_r".to_owned(), 1.0));
        assert_eq!(label("kid_dino_r"), ("KID_dino_r·10³".to_owned(), 1e3));
        assert_eq!(label("clip_score_t"), ("CLIP_t".to_owned(), 1.0));
        assert_eq!(label("recall_r"), ("recall_r".to_owned(), 1.0));
        assert_eq!(label("seconds"), ("seconds".to_owned(), 1.0));
    }
}
