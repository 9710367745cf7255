//! What a run found out: one row per cell, as plain data.

use std::collections::BTreeMap;

use scalebench_metrics::{Estimate, Metric, Verdict};
use serde::{Deserialize, Serialize};

/// A value with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) value: f64,
    pub(crate) lo: f64,
    pub(crate) hi: f64,
}

impl Interval {
    /// In another unit.
    pub(crate) fn times(self, factor: f64) -> Interval {
        Interval { value: self.value * factor, lo: self.lo * factor, hi: self.hi * factor }
    }
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

/// Where a value stands among the methods of its model and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Best,
    /// Not the best, but the paired difference to it is undecided.
    Undecided,
    Behind,
}

/// One column's entry in a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// `METRIC_ID`, see [`crate::experiment::protocol`].
    pub(crate) column: String,
    /// None where there is nothing to compare with, as for base-resolution images against themselves.
    pub(crate) value: Option<Interval>,
    pub(crate) difference: Option<Difference>,
    /// None without rivals, and in results that an earlier version wrote.
    pub(crate) standing: Option<Standing>,
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
    /// None where the reference does not say.
    pub(crate) n_reference: Option<u64>,
    /// The method that differences are taken against; this one itself if it is a baseline.
    pub(crate) baseline: String,
    /// What sets the cell apart from others of its model and method.
    pub(crate) set: BTreeMap<String, String>,
    /// The same columns in every row of a run.
    pub(crate) scores: Vec<Score>,
    /// Floating-point operations of an image's passes through the U-Net; None in results that an earlier version wrote.
    pub(crate) unet_flops_per_image: Option<f64>,
    pub(crate) seconds_per_image: Option<f64>,
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Row {
    /// Whether two cells stand beside one another: the same model at the same size.
    pub(crate) fn is_rival_of(&self, other: &Row) -> bool {
        (&self.model, self.width, self.height) == (&other.model, other.width, other.height)
    }

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

/// Whether small values of a column are good, if it is a metric's.
pub(crate) fn lower_is_better(column: &str) -> Option<bool> {
    metric_of(column).map(|(metric, _)| metric.lower_is_better())
}

/// How people write a column's name, and the factor that brings its values to a readable size.
pub(crate) fn label(column: &str) -> (String, f64) {
    match metric_of(column) {
        Some((Metric::Fid, id)) => (format!("FID_{id}"), 1.0),
        Some((Metric::Kid, id)) => (format!("KID_{id}·10³"), 1e3),
        Some((Metric::InceptionScore, id)) => (format!("IS_{id}"), 1.0),
        Some((Metric::Cmmd, id)) => (format!("CMMD_{id}"), 1.0),
        Some((Metric::ClipScore, id)) => (format!("CLIP_{id}"), 1.0),
        Some((Metric::Spectrum, id)) => (format!("spectrum_{id}, dB"), 1.0),
        Some((Metric::Fvd, id)) => (format!("FVD_{id}"), 1.0),
        // As it is published: not by the thousand.
        Some((Metric::Kvd, id)) => (format!("KVD_{id}"), 1.0),
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
        assert_eq!((label("fvd_r"), label("kvd_r")), (("FVD_r".to_owned(), 1.0), ("KVD_r".to_owned(), 1.0)));
        assert_eq!(label("recall_r"), ("recall_r".to_owned(), 1.0));
        assert_eq!(label("seconds"), ("seconds".to_owned(), 1.0));
    }
}
