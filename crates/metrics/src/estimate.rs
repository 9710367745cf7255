//! Intervals for metrics and for differences of metrics, by a delete-a-block jackknife.
//!
//! The unit of resampling is the *group* (source image or prompt): crops of one image are correlated
//! and must leave together. Groups fall into `blocks` blocks by `group % blocks`, which is
//! deterministic and the same for every method, so that differences between methods are *paired*: the
//! variance that both share, from the prompts and seeds, cancels.
//!
//! With blocks of unequal size m_j out of n groups, h_j = n / m_j, the pseudo-values are
//! h_j θ − (h_j − 1) θ₋ⱼ and the variance is the mean of (pseudo_j − θ_J)² / (h_j − 1)
//! (Busing, Meijer, van der Leeden 1999, eq. 4 and 6); equal blocks give the textbook formula.
//! The interval is value ± t·se with (non-empty blocks − 1) degrees of freedom. A bootstrap would not
//! do for FID, which repeated images bias upwards.
//!
//! What the interval is about: the expectation of the metric *at this number of images*. FID's bias
//! of order 1/n is not removed; it cancels in differences at equal n only as far as it is shared.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::frechet::{Anchor, Statistics, centred, require};
use crate::kernel::KernelSums;
use crate::{Error, FeatureSet, Result, fid, kid_u};

/// A number with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The metric on all images, or the difference of two.
    pub value: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end of the interval.
    pub hi: f64,
    /// Coverage aimed at, such as 0.95.
    pub level: f64,
    /// Rows on the generated side (of the first set, for a difference).
    pub n: usize,
    /// Standard error.
    pub std_error: f64,
}

impl Estimate {
    /// Whether the interval excludes zero: a difference that is resolved.
    pub fn excludes_zero(&self) -> bool {
        self.lo > 0.0 || self.hi < 0.0
    }
}

/// A metric that can be estimated with an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// [`fid`].
    Fid,
    /// [`kid_u`].
    KidU,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Self::Fid => "fid",
            Self::KidU => "kid_u",
        }
    }
}

/// Whether the reference set is resampled too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceBlocks {
    /// The reference stays whole: the interval is conditional on it.
    Fixed,
    /// The reference has the same group ids and loses the same groups, as when it consists of base
    /// resolution images of the same prompts.
    Shared,
}

/// Settings of the jackknife.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jackknife {
    /// Number of blocks, 20 in [`Jackknife::STANDARD`].
    pub blocks: u32,
    /// Confidence level.
    pub level: f64,
    /// What happens to the reference.
    pub reference: ReferenceBlocks,
}

impl Jackknife {
    /// 20 blocks, 95 %, fixed reference.
    pub const STANDARD: Self = Self { blocks: 20, level: 0.95, reference: ReferenceBlocks::Fixed };
}

/// A metric with its interval.
pub fn estimate(metric: Metric, generated: &FeatureSet, reference: &FeatureSet, jackknife: &Jackknife) -> Result<Estimate> {
    let blocks = Blocks::new(generated, jackknife)?;
    let value = plain(metric, generated, reference)?;
    let replicates = replicates(metric, generated, reference, &blocks, jackknife)?;
    blocks.estimate(value, &replicates, generated.len(), jackknife.level)
}

/// metric(a) − metric(b) with an interval; negative means that `a` is closer to its reference.
///
/// `a` and `b` are pairs (generated, reference) whose generated sets have the same group ids: the same
/// prompts and seeds through two methods.
pub fn paired_difference(
    metric: Metric,
    a: (&FeatureSet, &FeatureSet),
    b: (&FeatureSet, &FeatureSet),
    jackknife: &Jackknife,
) -> Result<Estimate> {
    check_paired(a.0, b.0)?;
    a.0.check_comparable(b.0)?;
    let blocks = Blocks::new(a.0, jackknife)?;
    let value = plain(metric, a.0, a.1)? - plain(metric, b.0, b.1)?;
    let left = replicates(metric, a.0, a.1, &blocks, jackknife)?;
    let right = replicates(metric, b.0, b.1, &blocks, jackknife)?;
    let difference =
        Replicates { all: left.all - right.all, without: left.without.iter().zip(&right.without).map(|(l, r)| l - r).collect() };
    blocks.estimate(value, &difference, a.0.len(), jackknife.level)
}

fn plain(metric: Metric, generated: &FeatureSet, reference: &FeatureSet) -> Result<f64> {
    match metric {
        Metric::Fid => fid(generated, reference),
        Metric::KidU => kid_u(generated, reference),
    }
}

fn check_paired(a: &FeatureSet, b: &FeatureSet) -> Result<()> {
    let [a, b] = [a, b].map(|set| set.groups.iter().collect::<BTreeSet<_>>());
    match a.symmetric_difference(&b).next() {
        Some(group) => Err(Error::UnpairedGroup { group: **group }),
        None => Ok(()),
    }
}

/// The non-empty blocks and how many groups each has.
struct Blocks {
    modulus: u32,
    /// `group % modulus` to a dense index and the number of groups.
    index: BTreeMap<u32, usize>,
    sizes: Vec<usize>,
}

impl Blocks {
    fn new(set: &FeatureSet, jackknife: &Jackknife) -> Result<Self> {
        let Jackknife { blocks: modulus, level, .. } = *jackknife;
        if !(level > 0.0 && level < 1.0) {
            return Err(Error::BadLevel { level });
        }
        let mut counts = BTreeMap::<u32, usize>::new();
        if modulus > 0 {
            for group in set.groups.iter().collect::<BTreeSet<_>>() {
                *counts.entry(group % modulus).or_default() += 1;
            }
        }
        if counts.len() < 2 {
            return Err(Error::TooFewBlocks { found: counts.len(), blocks: modulus });
        }
        let index = counts.keys().enumerate().map(|(i, block)| (*block, i)).collect();
        Ok(Self { modulus, index, sizes: counts.into_values().collect() })
    }

    fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Dense block index of every row. The set's groups are among those given to `new`.
    fn of(&self, set: &FeatureSet) -> Vec<usize> {
        set.groups.iter().map(|group| self.index[&(group % self.modulus)]).collect()
    }

    fn estimate(&self, value: f64, replicates: &Replicates, n: usize, level: f64) -> Result<Estimate> {
        let groups = self.sizes.iter().sum::<usize>() as f64;
        let pseudo = |(size, without): (&usize, &f64)| {
            let h = groups / *size as f64;
            (h, h * replicates.all - (h - 1.0) * without)
        };
        let pseudo: Vec<_> = self.sizes.iter().zip(&replicates.without).map(pseudo).collect();
        let count = self.len() as f64;
        // θ_J = g·θ − Σ (1 − m_j/n) θ₋ⱼ is the mean of the pseudo-values weighted by block size.
        let centre: f64 = pseudo.iter().map(|(h, pseudo)| pseudo / h).sum();
        let squares = pseudo.iter().map(|(h, pseudo)| (pseudo - centre).powi(2) / (h - 1.0));
        let std_error = (squares.sum::<f64>() / count).sqrt();
        // One degree of freedom or more, since there are two blocks or more.
        let t = StudentsT::new(0.0, 1.0, count - 1.0).map_err(|_| Error::BadLevel { level })?.inverse_cdf((1.0 + level) / 2.0);
        let (lo, hi) = (value - t * std_error, value + t * std_error);
        Ok(Estimate { value, lo, hi, level, n, std_error })
    }
}

/// The metric on everything and with each block left out, by one numerical route.
struct Replicates {
    all: f64,
    without: Vec<f64>,
}

fn replicates(
    metric: Metric,
    generated: &FeatureSet,
    reference: &FeatureSet,
    blocks: &Blocks,
    jackknife: &Jackknife,
) -> Result<Replicates> {
    let shared = jackknife.reference == ReferenceBlocks::Shared;
    if shared {
        check_paired(generated, reference)?;
    }
    let (x, y) = (generated.matrix()?, reference.matrix()?);
    let x_blocks = blocks.of(generated);
    let y_blocks = if shared { blocks.of(reference) } else { vec![0; y.nrows()] };
    let smallest = |of: &[usize]| {
        let size = |b| of.iter().filter(|o| **o == b).count();
        of.len() - (0..blocks.len()).map(size).max().unwrap_or(0)
    };
    let left_of_y = if shared { smallest(&y_blocks) } else { y.nrows() };
    require(metric.name(), 2, smallest(&x_blocks), left_of_y)?;
    match metric {
        Metric::KidU => {
            let sums = KernelSums::new(&x, &x_blocks, &y, &y_blocks, blocks.len());
            let without = (0..blocks.len()).map(|b| sums.kid_u(Some(b), shared.then_some(b))).collect();
            Ok(Replicates { all: sums.kid_u(None, None), without })
        }
        Metric::Fid => {
            let (x, y) = (Moments::new(x), Moments::new(y));
            let y_all = y.statistics(None);
            let anchor = Anchor::new(&y_all)?;
            let without = (0..blocks.len()).map(|b| {
                let x = x.statistics(Some((b, &x_blocks)));
                match shared {
                    false => anchor.distance(&x),
                    true => Anchor::new(&y.statistics(Some((b, &y_blocks))))?.distance(&x),
                }
            });
            let without = without.collect::<Result<_>>()?;
            Ok(Replicates { all: anchor.distance(&x.statistics(None))?, without })
        }
    }
}

/// Centred rows with their scatter matrix, from which blocks of rows can be taken away.
///
/// Rows are centred on the mean of all, so that the downdate of the scatter does not cancel.
struct Moments {
    mean: Vec<f64>,
    centred: Mat<f64>,
    scatter: Mat<f64>,
}

impl Moments {
    fn new(x: Mat<f64>) -> Self {
        let (mean, centred) = centred(x);
        let scatter = centred.transpose() * &centred;
        Self { mean, centred, scatter }
    }

    /// Mean and covariance without the rows of a block.
    fn statistics(&self, without: Option<(usize, &[usize])>) -> Statistics {
        let dim = self.mean.len();
        let members: Vec<usize> = match without {
            Some((block, of)) => (0..of.len()).filter(|i| of[*i] == block).collect(),
            None => Vec::new(),
        };
        let left = Mat::from_fn(members.len(), dim, |i, j| self.centred[(members[i], j)]);
        let n = (self.centred.nrows() - members.len()) as f64;
        // The centred rows sum to zero, so what remains sums to minus what left.
        let offset: Vec<f64> = left.col_iter().map(|column| -column.iter().sum::<f64>() / n).collect();
        let mut covariance = left.transpose() * &left;
        for j in 0..dim {
            for i in 0..dim {
                let scatter = self.scatter[(i, j)] - covariance[(i, j)];
                covariance[(i, j)] = (scatter - n * offset[i] * offset[j]) / (n - 1.0);
            }
        }
        let mean = self.mean.iter().zip(&offset).map(|(m, o)| m + o).collect();
        Statistics { mean, covariance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Gaussian, close, features, formula_features};

    #[test]
    fn replicates_equal_metrics_of_the_remaining_rows() {
        let [mut f1, f2] = formula_features();
        f1.groups = (0..80).map(|i| i / 2).collect();
        let jackknife = Jackknife { blocks: 6, ..Jackknife::STANDARD };
        let blocks = Blocks::new(&f1, &jackknife).unwrap();
        assert_eq!(blocks.sizes, [7, 7, 7, 7, 6, 6]);
        let of = blocks.of(&f1);
        let kept: Vec<f32> = f1.data.chunks(16).zip(&of).filter(|(_, b)| **b != 4).flat_map(|(r, _)| r).copied().collect();
        let part = features(&(vec![kept.len() / 16, 16], kept), 1);
        for metric in [Metric::Fid, Metric::KidU] {
            let replicates = replicates(metric, &f1, &f2, &blocks, &jackknife).unwrap();
            close("all", replicates.all, plain(metric, &f1, &f2).unwrap(), 1e-9);
            close("without", replicates.without[4], plain(metric, &part, &f2).unwrap(), 1e-9);
        }
    }

    #[test]
    fn a_mean_has_the_textbook_error() {
        // θ = mean of n values: the jackknife over single values gives s/√n exactly.
        let values: [f64; 6] = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0];
        let set = features(&(vec![6, 1], vec![0.0; 6]), 1);
        let jackknife = Jackknife { blocks: 6, ..Jackknife::STANDARD };
        let blocks = Blocks::new(&set, &jackknife).unwrap();
        let sum: f64 = values.iter().sum();
        let without = values.iter().map(|v| (sum - v) / 5.0).collect();
        let replicates = Replicates { all: sum / 6.0, without };
        let estimate = blocks.estimate(sum / 6.0, &replicates, 6, 0.95).unwrap();
        let variance = values.iter().map(|v| (v - sum / 6.0).powi(2)).sum::<f64>() / 5.0;
        close("se", estimate.std_error, (variance / 6.0).sqrt(), 1e-12);
        // t quantile with 5 degrees of freedom.
        close("hi", (estimate.hi - estimate.value) / estimate.std_error, 2.570_581_835_636_3, 1e-8);
    }

    /// Intervals of a conditional-on-reference KID cover its expectation about as often as they say.
    #[test]
    fn coverage_on_gaussians() {
        let mut random = Gaussian::new(7);
        let reference = random.features(150, 4, 0.0, 1.0);
        let sets: Vec<_> = (0..120).map(|_| random.features(150, 4, 0.3, 1.1)).collect();
        for metric in [Metric::KidU, Metric::Fid] {
            let estimates: Vec<_> = sets.iter().map(|set| estimate(metric, set, &reference, &Jackknife::STANDARD).unwrap()).collect();
            // The mean over simulations is the expectation at this n, up to a tenth of an error.
            let truth = estimates.iter().map(|e| e.value).sum::<f64>() / 120.0;
            let covered = estimates.iter().filter(|e| e.lo <= truth && truth <= e.hi).count();
            assert!((106..=119).contains(&covered), "{metric:?}: {covered} of 120");
        }
    }

    /// Two methods that share most of their noise: paired intervals cover and are much shorter.
    #[test]
    fn pairing_pays() {
        let mut random = Gaussian::new(11);
        let reference = random.features(200, 4, 0.0, 1.0);
        let (mut covered, mut resolved) = (0, 0);
        let mut differences = Vec::new();
        for _ in 0..60 {
            let a = random.features(200, 4, 0.3, 1.0);
            let mut b = a.clone();
            let noise = random.features(200, 4, 0.06, 0.1);
            b.data.iter_mut().zip(&noise.data).for_each(|(v, n)| *v += n);
            let pair = ((&b, &reference), (&a, &reference));
            let paired = paired_difference(Metric::Fid, pair.0, pair.1, &Jackknife::STANDARD).unwrap();
            let single = estimate(Metric::Fid, &a, &reference, &Jackknife::STANDARD).unwrap();
            assert!(paired.std_error < 0.6 * single.std_error, "{paired:?} {single:?}");
            resolved += usize::from(paired.excludes_zero() && paired.value > 0.0);
            differences.push(paired);
        }
        let truth = differences.iter().map(|e| e.value).sum::<f64>() / 60.0;
        covered += differences.iter().filter(|e| e.lo <= truth && truth <= e.hi).count();
        assert!(covered >= 51, "{covered} of 60");
        assert!(resolved >= 50, "{resolved} of 60");
    }

    #[test]
    fn halves_of_one_set_are_not_resolved() {
        let mut random = Gaussian::new(3);
        let (a, b) = (random.features(200, 8, 1.0, 1.0), random.features(200, 8, 1.0, 1.0));
        let kid = estimate(Metric::KidU, &a, &b, &Jackknife::STANDARD).unwrap();
        // The reference's own error counts too: with it fixed the interval is half the variance.
        assert!(kid.value.abs() < 3.0 * 2f64.sqrt() * kid.std_error, "{kid:?}");
        let same = paired_difference(Metric::KidU, (&a, &b), (&a, &b), &Jackknife::STANDARD);
        let same = same.unwrap();
        assert_eq!((same.value, same.std_error), (0.0, 0.0));
    }

    #[test]
    fn shared_references_lose_the_same_groups() {
        let mut random = Gaussian::new(5);
        let base = random.features(120, 4, 0.0, 1.0);
        let mut generated = base.clone();
        let noise = random.features(120, 4, 0.1, 0.2);
        generated.data.iter_mut().zip(&noise.data).for_each(|(v, n)| *v += n);
        let shared = Jackknife { reference: ReferenceBlocks::Shared, ..Jackknife::STANDARD };
        let fixed = estimate(Metric::Fid, &generated, &base, &Jackknife::STANDARD).unwrap();
        let paired = estimate(Metric::Fid, &generated, &base, &shared).unwrap();
        assert_eq!(paired.value, fixed.value);
        assert!(paired.std_error < fixed.std_error, "{paired:?} {fixed:?}");
        let mut other = base.clone();
        other.groups[0] = 1000;
        let error = estimate(Metric::Fid, &generated, &other, &shared).unwrap_err();
        assert!(matches!(error, Error::UnpairedGroup { group: 0 | 1000 }), "{error}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let [f1, f2] = formula_features();
        let run = |jackknife| estimate(Metric::Fid, &f1, &f2, &jackknife);
        let none = Jackknife { blocks: 0, ..Jackknife::STANDARD };
        assert!(matches!(run(none), Err(Error::TooFewBlocks { found: 0, .. })));
        let one = Jackknife { blocks: 1, ..Jackknife::STANDARD };
        assert!(matches!(run(one), Err(Error::TooFewBlocks { found: 1, .. })));
        let level = Jackknife { level: 1.0, ..Jackknife::STANDARD };
        assert!(matches!(run(level), Err(Error::BadLevel { .. })));
    }

    #[test]
    fn a_wide_jackknife_is_affordable() {
        let mut random = Gaussian::new(1);
        let (a, b) = (random.features(600, 256, 0.0, 1.0), random.features(600, 256, 0.1, 1.0));
        let start = std::time::Instant::now();
        estimate(Metric::Fid, &a, &b, &Jackknife::STANDARD).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 10.0, "{seconds} s");
    }
}
