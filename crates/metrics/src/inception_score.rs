//! Inception score: exp of the mean divergence of an image's class probabilities from their mean.
//!
//! Salimans et al., arXiv:1606.03498, sec. 4. Rows are logits, by custom those without the bias
//! (`logits_unbiased`, 1008 classes); softmax and sums are `f64`.
//!
//! | convention | order | splits |
//! | --- | --- | --- |
//! | [`Splits::TORCH_FIDELITY`] | shuffled by `RandomState(2020).permutation` | 10, split i from ⌊i·n/10⌋ |
//! | [`Splits::OPENAI`] | as given | of 5000 rows, the last one shorter |
//!
//! The score depends on the rows per split: never compare different numbers of images or splits.
//! Without a shuffle, crops of one image share a split and the score collapses.

use serde::{Deserialize, Serialize};

use crate::frechet::{Extrapolation, InfinityOptions, extrapolate, require};
use crate::products::Source;
use crate::random::RandomState;
use crate::{Error, FeatureSet, Result};

/// How rows are split; the score is the mean over the splits.
///
/// Example: [`inception_score`](fn@inception_score).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Splits {
    /// A number of splits of nearly equal size, of shuffled rows.
    Shuffled {
        /// Number of splits.
        count: usize,
        /// Seed of numpy's legacy generator.
        seed: u32,
    },
    /// A number of splits of nearly equal size, of rows as they come.
    InOrder {
        /// Number of splits.
        count: usize,
    },
    /// Splits of a size, of rows as they come.
    OfSize {
        /// Rows per split; the last split has what is left.
        rows: usize,
    },
}

impl Splits {
    /// torch-fidelity 0.4.0.
    pub const TORCH_FIDELITY: Self = Self::Shuffled { count: 10, seed: 2020 };
    /// OpenAI's evaluator of guided diffusion.
    pub const OPENAI: Self = Self::OfSize { rows: 5000 };

    /// The row indices of every split.
    fn of(self, n: usize) -> Result<Vec<Vec<usize>>> {
        let order = match self {
            Self::Shuffled { seed, .. } => RandomState::new(seed).permutation(n as u32),
            _ => (0..n).collect(),
        };
        match self {
            Self::Shuffled { count, .. } | Self::InOrder { count } => {
                if count == 0 || count > n {
                    return Err(Error::BadSplits { images: n, splits: count });
                }
                Ok((0..count).map(|i| order[i * n / count..(i + 1) * n / count].to_vec()).collect())
            }
            Self::OfSize { rows: 0 } => Err(Error::BadSplits { images: n, splits: 0 }),
            Self::OfSize { rows } => Ok(order.chunks(rows).map(<[usize]>::to_vec).collect()),
        }
    }
}

/// Result of [`inception_score`].
///
/// Example: [`inception_score`](fn@inception_score).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InceptionScore {
    /// Mean over the splits, from 1 to the number of classes.
    pub mean: f64,
    /// Standard deviation over the splits, divided by their number (numpy's default); no standard error.
    pub std: f64,
    /// Number of splits.
    pub splits: usize,
}

/// Inception score of a set of logits, `(n, classes)`.
///
/// ```
/// use scalebench_metrics::{
///     FeatureSet, InceptionScore, InfinityOptions, Splits, inception_score, inception_score_infinity, inception_score_whole,
/// };
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// // Sure of one of two classes, each as often as the other.
/// let rows: Vec<Vec<f32>> = (0..20).map(|i| if i % 2 == 0 { vec![100.0, 0.0] } else { vec![0.0, 100.0] }).collect();
/// let logits = set(&rows)?;
/// let InceptionScore { mean, std, .. } = inception_score(&logits, &Splits::InOrder { count: 2 })?;
/// assert!((mean - 2.0).abs() < 1e-9 && std < 1e-9);
/// assert!((inception_score_whole(&logits)? - 2.0).abs() < 1e-9);
/// let line = inception_score_infinity(&logits, &InfinityOptions { points: 5, first: 10, ..InfinityOptions::STANDARD })?;
/// assert!(line.points[4].0 == 20 && (line.points[4].1 - 2.0).abs() < 1e-9);
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn inception_score(logits: &FeatureSet, splits: &Splits) -> Result<InceptionScore> {
    Source::of(logits)?;
    require("inception score", 1, logits.len(), logits.len())?;
    let scores: Vec<f64> = splits
        .of(logits.len())?
        .iter()
        .map(|rows| {
            let mut sums = Sums::new(logits.dim);
            rows.iter().for_each(|i| sums.add(&logits.data[i * logits.dim..][..logits.dim]));
            sums.score()
        })
        .collect();
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / count;
    Ok(InceptionScore { mean, std: variance.sqrt(), splits: scores.len() })
}

/// Inception score of all rows as one split: the value that an interval is about.
///
/// Example: [`inception_score`](fn@inception_score).
pub fn inception_score_whole(logits: &FeatureSet) -> Result<f64> {
    ScoreSums::new(logits, &vec![0; logits.len()], 1)?.score(None)
}

/// Score at infinitely many images: of random subsets, without splits, extrapolated in 1/n.
///
/// The score is biased downwards by about c/n, as FID is upwards (Chong & Forsyth, arXiv:1911.07023).
///
/// Example: [`inception_score`](fn@inception_score).
pub fn inception_score_infinity(logits: &FeatureSet, options: &InfinityOptions) -> Result<Extrapolation> {
    Source::of(logits)?;
    extrapolate("inception score", logits.len(), options, |rows| {
        let mut sums = Sums::new(logits.dim);
        rows.iter().for_each(|i| sums.add(&logits.data[i * logits.dim..][..logits.dim]));
        Ok(sums.score())
    })
}

/// What the score of a set of rows follows from.
#[derive(Clone)]
struct Sums {
    n: f64,
    /// Σ p over the rows.
    probabilities: Vec<f64>,
    /// Σ Σ p log p over rows and classes.
    negentropy: f64,
}

impl Sums {
    fn new(classes: usize) -> Self {
        Self { n: 0.0, probabilities: vec![0.0; classes], negentropy: 0.0 }
    }

    fn add(&mut self, logits: &[f32]) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shifted = |v: f32| f64::from(v) - f64::from(largest);
        let normaliser: f64 = logits.iter().map(|v| shifted(*v).exp()).sum();
        let log = normaliser.ln();
        for (sum, v) in self.probabilities.iter_mut().zip(logits) {
            let log_p = shifted(*v) - log;
            let p = log_p.exp();
            *sum += p;
            self.negentropy += p * log_p;
        }
        self.n += 1.0;
    }

    /// Adds (`sign` 1) or takes away (−1) another set's sums.
    fn merge(&mut self, other: &Self, sign: f64) {
        self.n += sign * other.n;
        self.negentropy += sign * other.negentropy;
        self.probabilities.iter_mut().zip(&other.probabilities).for_each(|(sum, p)| *sum += sign * p);
    }

    /// exp(mean Σ p log p − Σ p̄ log p̄), which is exp(mean KL(p ‖ p̄)).
    fn score(&self) -> f64 {
        let plogp = |sum: &f64| {
            let p = (sum / self.n).max(0.0);
            if p > 0.0 { p * p.ln() } else { 0.0 }
        };
        (self.negentropy / self.n - self.probabilities.iter().map(plogp).sum::<f64>()).exp()
    }
}

/// Sums per block of rows, for the score without splits and with a block left out.
pub(crate) struct ScoreSums {
    total: Sums,
    blocks: Vec<Sums>,
}

impl ScoreSums {
    /// `of[i]` in `0..blocks` is the block of row `i`.
    pub(crate) fn new(logits: &FeatureSet, of: &[usize], blocks: usize) -> Result<Self> {
        Source::of(logits)?;
        let mut sums = vec![Sums::new(logits.dim); blocks];
        logits.data.chunks_exact(logits.dim).zip(of).for_each(|(row, b)| sums[*b].add(row));
        let mut total = Sums::new(logits.dim);
        sums.iter().for_each(|block| total.merge(block, 1.0));
        Ok(Self { total, blocks: sums })
    }

    /// The score of all rows as one split, a block left out; an error if no row is left.
    pub(crate) fn score(&self, without: Option<usize>) -> Result<f64> {
        let mut sums = self.total.clone();
        if let Some(b) = without {
            sums.merge(&self.blocks[b], -1.0);
        }
        require("inception score", 1, sums.n as usize, sums.n as usize)?;
        Ok(sums.score())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Gaussian, close, features, formula_features, golden};

    #[test]
    fn torch_fidelity_values() {
        let golden = golden();
        let [mut logits, _] = formula_features();
        logits.data.iter_mut().for_each(|v| *v *= 3.0);
        let score = inception_score(&logits, &Splits::Shuffled { count: 5, seed: 2020 }).unwrap();
        let expected = |key: &str| golden["isc_splits5"][key].as_f64().unwrap();
        close("mean", score.mean, expected("inception_score_mean"), 1e-12);
        close("std", score.std, expected("inception_score_std"), 1e-10);
    }

    #[test]
    fn closed_forms() {
        // n certain and different classes score n, equal rows score 1.
        let mut data = vec![0.0; 40 * 40];
        (0..40).for_each(|i| data[41 * i] = 800.0);
        let certain = features(&(vec![40, 40], data), 1);
        let all = Splits::InOrder { count: 1 };
        close("certain", inception_score(&certain, &all).unwrap().mean, 40.0, 1e-12);
        let halves = inception_score(&certain, &Splits::InOrder { count: 2 }).unwrap();
        close("halves", halves.mean, 20.0, 1e-12);
        let sized = inception_score(&certain, &Splits::OfSize { rows: 30 }).unwrap();
        assert_eq!(sized.splits, 2);
        close("of 30 and 10", sized.mean, 20.0, 1e-12);
        close("std", sized.std, 10.0, 1e-12);
        let flat = features(&(vec![6, 40], vec![1.5; 240]), 1);
        close("flat", inception_score(&flat, &all).unwrap().mean, 1.0, 1e-12);
    }

    #[test]
    fn blocks_leave_exactly() {
        let set = Gaussian::new(9).features(60, 12, 0.0, 2.0);
        let of: Vec<usize> = (0..60).map(|i| i % 7).collect();
        let sums = ScoreSums::new(&set, &of, 7).unwrap();
        let one = Splits::InOrder { count: 1 };
        close("all", sums.score(None).unwrap(), inception_score(&set, &one).unwrap().mean, 1e-12);
        close("whole", inception_score_whole(&set).unwrap(), sums.score(None).unwrap(), 1e-12);
        let rest: Vec<f32> = set.data.chunks(12).zip(&of).filter(|(_, b)| **b != 3).flat_map(|(r, _)| r).copied().collect();
        let rest = features(&(vec![rest.len() / 12, 12], rest), 1);
        close("without", sums.score(Some(3)).unwrap(), inception_score(&rest, &one).unwrap().mean, 1e-12);
        assert!(ScoreSums::new(&set, &[0; 60], 1).unwrap().score(Some(0)).is_err());
    }

    /// The score of a sample is too low; extrapolation takes most of the bias away.
    #[test]
    fn infinity_is_nearer_to_the_truth() {
        let mut random = Gaussian::new(13);
        let population = random.features(20_000, 20, 0.0, 1.0);
        let one = Splits::InOrder { count: 1 };
        let truth = inception_score(&population, &one).unwrap().mean;
        let sample = random.features(600, 20, 0.0, 1.0);
        let plain = inception_score(&sample, &one).unwrap().mean;
        let infinity = inception_score_infinity(&sample, &InfinityOptions::STANDARD).unwrap();
        assert!((infinity.value - truth).abs() < 0.6 * (plain - truth).abs() + 3.0 * infinity.std_error, "{plain} {infinity:?} {truth}");
        assert!(infinity.value > plain);
    }

    #[test]
    fn impossible_splits_are_refused() {
        let [set, _] = formula_features();
        for splits in [Splits::InOrder { count: 0 }, Splits::InOrder { count: 81 }, Splits::OfSize { rows: 0 }] {
            assert!(matches!(inception_score(&set, &splits), Err(Error::BadSplits { images: 80, .. })));
        }
        let empty = features(&(vec![0, 4], vec![]), 1);
        assert!(inception_score(&empty, &Splits::InOrder { count: 1 }).is_err());
    }
}
