//! What a run found out: one row per cell, as plain data.

use std::collections::BTreeMap;

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
    /// The method that differences are taken against; this one itself if it is a baseline.
    pub(crate) baseline: String,
    /// What sets the cell apart from others of its model and method.
    pub(crate) set: BTreeMap<String, String>,
    /// The same columns in every row of a run.
    pub(crate) scores: Vec<Score>,
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

/// Where a value stands among the methods of its model and scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Best,
    /// Not the best, but the paired difference to it is undecided.
    Undecided,
}

/// The standing of every score of every row; none where a value is behind, or has no rival.
///
/// Paired differences are taken against a baseline, so of two methods that differ the standing is only known if one
/// of them is the other one's baseline.
pub(crate) fn standings(rows: &[Row]) -> Vec<Vec<Option<Standing>>> {
    let n_columns = rows.first().map_or(0, |row| row.scores.len());
    let mut standings = vec![vec![None; n_columns]; rows.len()];
    let undecided = |row: &Row, column: usize| row.scores[column].difference.is_some_and(|d| d.verdict == Verdict::Undecided);
    for (r, row) in rows.iter().enumerate() {
        let rivals: Vec<&Row> = rows.iter().filter(|other| other.is_rival_of(row)).collect();
        for (column, score) in row.scores.iter().enumerate() {
            let Some((metric, _)) = metric_of(&score.column) else { continue };
            let value = |row: &Row| row.scores[column].value.map(|x| if metric.lower_is_better() { -x.value } else { x.value });
            let values: Vec<f64> = rivals.iter().filter_map(|rival| value(rival)).collect();
            let best = values.iter().copied().fold(f64::MIN, f64::max);
            let Some(own) = value(row).filter(|_| values.len() > 1) else { continue };
            let is_best = |method: &Row| value(method) == Some(best);
            standings[r][column] = if own == best {
                Some(Standing::Best)
            } else {
                let cannot_tell = |best: &Row| {
                    best.baseline == row.method && undecided(best, column) || row.baseline == best.method && undecided(row, column)
                };
                rivals.iter().any(|rival| is_best(rival) && cannot_tell(rival)).then_some(Standing::Undecided)
            };
        }
    }
    standings
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
        _ => (column.to_owned(), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row with one FID and one recall, each with a difference to the baseline that has this verdict.
    fn row(method: &str, fid: f64, recall: f64, verdicts: Option<[Verdict; 2]>) -> Row {
        let score = |column: &str, value: f64, verdict: Option<Verdict>| {
            let interval = Interval { value, lo: value - 1.0, hi: value + 1.0 };
            let difference = verdict.map(|verdict| Difference { interval, verdict, n_to_decide: None });
            Score { column: column.to_owned(), value: Some(interval), difference, published: None }
        };
        Row {
            model: "m".into(),
            scale: 4.0,
            width: 128,
            height: 128,
            method: method.into(),
            protocol: "pocket".into(),
            n_images: 3,
            n_reference: 8,
            baseline: "direct-inf".into(),
            set: BTreeMap::new(),
            scores: vec![score("fid_r", fid, verdicts.map(|v| v[0])), score("recall_r", recall, verdicts.map(|v| v[1]))],
            seconds_per_image: None,
            peak_memory_bytes: None,
        }
    }

    #[test]
    fn the_best_is_marked_and_so_is_who_cannot_be_told_from_it() {
        use Standing::{Best, Undecided};
        use Verdict::{Better, Worse};
        let rows = [
            row("direct-inf", 20.0, 0.5, None),
            row("a", 10.0, 0.4, Some([Better, Verdict::Undecided])),
            row("b", 11.0, 0.1, Some([Better, Worse])),
        ];
        // Of `a` and `b` there is no paired difference: nothing is said.
        assert_eq!(standings(&rows), [[None, Some(Best)], [Some(Best), Some(Undecided)], [None, None]]);
        let rows = [row("direct-inf", 20.0, 0.5, None), row("a", 19.0, 0.6, Some([Verdict::Undecided, Better]))];
        assert_eq!(standings(&rows), [[Some(Undecided), None], [Some(Best), Some(Best)]]);
        // Equal values are both best; one method alone, or alone at its scale, has won against nobody.
        let twins = [row("a", 1.0, 1.0, None), row("b", 1.0, 1.0, None)];
        assert_eq!(standings(&twins), [[Some(Best); 2]; 2]);
        // Every variant has its own baseline.
        let with = |method: &str, baseline: &str, fid: f64, verdicts| Row { baseline: baseline.into(), ..row(method, fid, 0.5, verdicts) };
        let own = Some([Verdict::Undecided, Verdict::Undecided]);
        let rows =
            [with("d=1", "d=1", 20.0, None), with("d=2", "d=2", 9.0, None), with("a=1", "d=1", 11.0, own), with("a=2", "d=2", 10.0, own)];
        assert_eq!(standings(&rows).iter().map(|s| s[0]).collect::<Vec<_>>(), [None, Some(Best), None, Some(Undecided)]);
        let apart = [row("a", 1.0, 1.0, None), Row { scale: 16.0, width: 256, height: 256, ..row("b", 1.0, 1.0, None) }];
        assert_eq!(standings(&apart), [[None; 2]; 2]);
    }

    #[test]
    fn columns_have_labels() {
        assert_eq!(label("fid_r"), ("FID_r".to_owned(), 1.0));
        assert_eq!(label("kid_dino_r"), ("KID_dino_r·10³".to_owned(), 1e3));
        assert_eq!(label("clip_score_t"), ("CLIP_t".to_owned(), 1.0));
        assert_eq!(label("recall_r"), ("recall_r".to_owned(), 1.0));
        assert_eq!(label("seconds"), ("seconds".to_owned(), 1.0));
    }
}
