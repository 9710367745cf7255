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
use crate::inception_score::ScoreSums;
use crate::kernel::{KernelSums, directions};
use crate::neighbours::Neighbours;
use crate::{
    Error, FeatureSet, NeighbourOptions, Prdc, Provenance, Result, Splits, Tap, VideoMeasure, cmmd, fid, fid_from_statistics,
    inception_score, kid_u, pixels, prdc,
};

/// A number with its uncertainty.
///
/// Example: [`estimate`](fn@estimate).
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
    /// Images on the generated side; their crops count once.
    pub n: usize,
    /// Standard error.
    pub std_error: f64,
}

/// What an interval says about a difference.
///
/// Example: [`estimate`](fn@estimate).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval lies on the better side of zero.
    Better,
    /// The interval lies on the worse side of zero.
    Worse,
    /// The interval contains zero.
    Undecided,
}

impl Estimate {
    /// Whether the interval excludes zero: a difference that is resolved.
    pub(crate) fn excludes_zero(&self) -> bool {
        self.lo > 0.0 || self.hi < 0.0
    }

    /// What a difference of `metric` means for its first side.
    /// Example: [`estimate`](fn@estimate).
    pub fn verdict(&self, metric: Metric) -> Verdict {
        match (self.excludes_zero(), metric.lower_is_better() == (self.value < 0.0)) {
            (false, _) => Verdict::Undecided,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        }
    }

    /// Images at which the interval of a difference of this size would just exclude zero: its half-width falls as
    /// 1/√n. None for a difference of exactly zero, which no number of images decides.
    /// Example: [`estimate`](fn@estimate).
    pub fn n_to_decide(&self) -> Option<u64> {
        let half_width = (self.hi - self.lo) / 2.0;
        let ratio = half_width / self.value.abs();
        let n = self.n as f64 * ratio * ratio;
        n.is_finite().then(|| n.ceil() as u64)
    }
}

/// A metric that can be estimated with an interval.
///
/// ```
/// use scalebench_metrics::{Metric, Tap, VideoMeasure};
/// let names: std::collections::BTreeSet<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
/// assert_eq!(names.len(), Metric::ALL.len());
/// assert!(Metric::Fid.lower_is_better() && Metric::Fid.needs_reference() && Metric::Fid.is_frechet());
/// assert_eq!(Metric::Fid.tap(), Tap::Features);
/// assert!(Metric::Sharpness.is_of_pixels() && !Metric::Sharpness.needs_reference());
/// assert!(Metric::Flicker.is_of_videos());
/// assert_eq!(Metric::Flicker.video_measure(), Some(VideoMeasure::Flicker));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// [`fid`].
    Fid,
    /// [`kid_u`].
    Kid,
    /// [`inception_score`](crate::inception_score::inception_score) of logits, ten splits; the interval is that of the value without splits.
    #[serde(rename = "is")]
    InceptionScore,
    /// Share of the generated images among the real ones, k = 3 (Kynkäänniemi et al., arXiv:1904.06991).
    Precision,
    /// Share of the real images among the generated ones, k = 3.
    Recall,
    /// Naeem et al., arXiv:2002.09797, eq. 5, k = 5.
    Density,
    /// Naeem et al., eq. 6, k = 5.
    Coverage,
    /// [`cmmd`](crate::cmmd) of CLIP features.
    Cmmd,
    /// Mean over the images of what [`clip_scores`](crate::clip_scores) says of each: a set of dimension 1.
    ClipScore,
    /// Root mean square, over rings of frequency, of the difference between the two sides' mean power spectra, in decibels; of
    /// [`Extractor::pixels`](crate::Extractor::pixels).
    Spectrum,
    /// Mean over the images of log₁₀ of the variance of the Laplacian; of [`Extractor::pixels`](crate::Extractor::pixels).
    Sharpness,
    /// How much more alike the parts of an image are than those of an image of the other side: the mean over images of the mean cosine
    /// between the features of two crops of the image, less the same of the other side. Features are taken relative to the mean over all
    /// crops of the other side. 0: as there; 1 at most.
    Repetition,
    /// [`fid`] of I3D's logits of videos.
    Fvd,
    /// [`kid_u`] of I3D's logits of videos.
    Kvd,
    /// Mean over the videos of [`VideoMeasure::FrameDifference`](crate::VideoMeasure::FrameDifference): a set of dimension 1.
    FrameDifference,
    /// The same of [`VideoMeasure::Flicker`](crate::VideoMeasure::Flicker).
    Flicker,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 16] = [
        Self::Fid,
        Self::Kid,
        Self::InceptionScore,
        Self::Precision,
        Self::Recall,
        Self::Density,
        Self::Coverage,
        Self::Cmmd,
        Self::ClipScore,
        Self::Spectrum,
        Self::Sharpness,
        Self::Repetition,
        Self::Fvd,
        Self::Kvd,
        Self::FrameDifference,
        Self::Flicker,
    ];

    /// The name in configurations and tables.
    /// Example: [`Metric`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Fid => "fid",
            Self::Kid => "kid",
            Self::InceptionScore => "is",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::Density => "density",
            Self::Coverage => "coverage",
            Self::Cmmd => "cmmd",
            Self::ClipScore => "clip_score",
            Self::Spectrum => "spectrum",
            Self::Sharpness => "sharpness",
            Self::Repetition => "repetition",
            Self::Fvd => "fvd",
            Self::Kvd => "kvd",
            Self::FrameDifference => VideoMeasure::FrameDifference.name(),
            Self::Flicker => VideoMeasure::Flicker.name(),
        }
    }

    /// Whether small values are good: distances, as opposed to scores; and what changes between frames, as far as it goes: a video that
    /// stands still has none.
    /// Example: [`Metric`].
    pub fn lower_is_better(self) -> bool {
        matches!(self, Self::Fid | Self::Kid | Self::Cmmd | Self::Spectrum | Self::Repetition) || self.is_of_videos()
    }

    /// Whether it is of pixels and not of a network's features.
    /// Example: [`Metric`].
    pub fn is_of_pixels(self) -> bool {
        matches!(self, Self::Spectrum | Self::Sharpness)
    }

    /// What of the network's answer the metric is computed from.
    /// Example: [`Metric`].
    pub fn tap(self) -> Tap {
        match self {
            Self::InceptionScore => Tap::LogitsUnbiased,
            _ => Tap::Features,
        }
    }

    /// Balls as the metric's usual tool has them.
    fn neighbours(self) -> NeighbourOptions {
        match self {
            Self::Precision | Self::Recall => NeighbourOptions::TORCH_FIDELITY,
            _ => NeighbourOptions::PRDC,
        }
    }

    /// This metric among the four.
    fn of(self, all: Prdc) -> f64 {
        match self {
            Self::Recall => all.recall,
            Self::Density => all.density,
            Self::Coverage => all.coverage,
            _ => all.precision,
        }
    }

    /// Whether there is another side at all.
    /// Example: [`Metric`].
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::InceptionScore | Self::ClipScore | Self::Sharpness | Self::FrameDifference | Self::Flicker)
    }

    /// Whether it is a distance of means and covariances, which stored statistics are enough for.
    /// Example: [`Metric`].
    pub fn is_frechet(self) -> bool {
        matches!(self, Self::Fid | Self::Fvd)
    }

    /// Whether it is one of videos, not of images.
    /// Example: [`Metric`].
    pub fn is_of_videos(self) -> bool {
        matches!(self, Self::Fvd | Self::Kvd | Self::FrameDifference | Self::Flicker)
    }

    /// What is measured of each video without a network, if that is what this is the mean of.
    /// Example: [`Metric`].
    pub fn video_measure(self) -> Option<VideoMeasure> {
        match self {
            Self::FrameDifference => Some(VideoMeasure::FrameDifference),
            Self::Flicker => Some(VideoMeasure::Flicker),
            _ => None,
        }
    }
}

/// Whether the reference set is resampled too.
///
/// Example: [`estimate`](fn@estimate).
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
///
/// Example: [`estimate`](fn@estimate).
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

/// What a generated set is compared with.
///
/// Example: [`estimate`](fn@estimate).
#[derive(Clone, Copy, Debug)]
pub enum OtherSide<'a> {
    /// Nothing: see [`Metric::needs_reference`].
    None,
    /// Features, for every metric.
    Features(&'a FeatureSet),
    /// Their mean and covariance: for FID, and with [`ReferenceBlocks::Fixed`] only.
    Statistics(&'a Statistics),
}

impl<'a> From<Option<&'a FeatureSet>> for OtherSide<'a> {
    fn from(features: Option<&'a FeatureSet>) -> Self {
        features.map_or(Self::None, Self::Features)
    }
}

impl<'a> From<&'a Statistics> for OtherSide<'a> {
    fn from(statistics: &'a Statistics) -> Self {
        Self::Statistics(statistics)
    }
}

/// A metric with its interval.
///
/// ```
/// use scalebench_metrics::{
///     Estimate, FeatureSet, Jackknife, Jackknifed, Metric, OtherSide, ReferenceBlocks, Verdict, estimate, measure, paired_difference,
/// };
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// // Scores of twenty images: the error of their mean is s / √n.
/// let scores: Vec<Vec<f32>> = (0..20).map(|i| vec![i as f32]).collect();
/// let images = set(&scores)?;
/// let jackknife = Jackknife { reference: ReferenceBlocks::Fixed, ..Jackknife::STANDARD };
/// let Estimate { value, std_error, .. } = estimate(Metric::ClipScore, &images, OtherSide::None, &jackknife)?;
/// assert_eq!((value, measure(Metric::ClipScore, &images, OtherSide::None)?), (9.5, 9.5));
/// assert!((std_error - (35f64 / 20.0).sqrt()).abs() < 1e-9);
/// // Another method is worse by 1 in every second image.
/// let others = set(&(0..20).map(|i| vec![(i - i % 2) as f32]).collect::<Vec<_>>())?;
/// let difference = paired_difference(Metric::ClipScore, (&images, OtherSide::None), (&others, OtherSide::None), &jackknife)?;
/// assert_eq!((difference.value, difference.verdict(Metric::ClipScore)), (0.5, Verdict::Better));
/// assert!(difference.n_to_decide().is_some_and(|n| n < 20));
/// // With what is computed once for several comparisons.
/// let jackknifed = |set: &FeatureSet| Jackknifed::new(Metric::ClipScore, set, OtherSide::None, &jackknife);
/// let (left, right) = (jackknifed(&images)?, jackknifed(&others)?);
/// assert_eq!((left.value(), left.estimate()?.value, left.minus(&right)?.value), (9.5, 9.5, 0.5));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn estimate<'a>(metric: Metric, generated: &'a FeatureSet, other: impl Into<OtherSide<'a>>, jackknife: &Jackknife) -> Result<Estimate> {
    Jackknifed::new(metric, generated, other, jackknife)?.estimate()
}

/// A metric without an interval.
///
/// Example: [`estimate`](fn@estimate).
pub fn measure<'a>(metric: Metric, generated: &'a FeatureSet, other: impl Into<OtherSide<'a>>) -> Result<f64> {
    plain(metric, Pair::new(metric, generated, other.into())?)
}

/// metric(a) − metric(b) with an interval; see [`Jackknifed::minus`].
///
/// Example: [`estimate`](fn@estimate).
pub fn paired_difference<'a>(
    metric: Metric,
    a: (&'a FeatureSet, impl Into<OtherSide<'a>>),
    b: (&'a FeatureSet, impl Into<OtherSide<'a>>),
    jackknife: &Jackknife,
) -> Result<Estimate> {
    check_paired(a.0, b.0)?;
    a.0.check_comparable(b.0)?;
    Jackknifed::new(metric, a.0, a.1, jackknife)?.minus(&Jackknifed::new(metric, b.0, b.1, jackknife)?)
}

/// A metric on all images and with each block of them left out: what its interval and its differences to other sets are made
/// from, so that nothing is computed twice for one that is compared with several.
///
/// Example: [`estimate`](fn@estimate).
pub struct Jackknifed {
    metric: Metric,
    value: f64,
    replicates: Replicates,
    blocks: Blocks,
    level: f64,
    groups: BTreeSet<u32>,
    provenance: Provenance,
}

impl Jackknifed {
    /// Computes all of it.
    /// Example: [`estimate`](fn@estimate).
    pub fn new<'a>(metric: Metric, generated: &'a FeatureSet, other: impl Into<OtherSide<'a>>, jackknife: &Jackknife) -> Result<Self> {
        let pair = Pair::new(metric, generated, other.into())?;
        let blocks = Blocks::new(generated, jackknife)?;
        Ok(Self {
            metric,
            replicates: replicates(metric, pair, &blocks, jackknife)?,
            value: plain(metric, pair)?,
            blocks,
            level: jackknife.level,
            groups: generated.groups.iter().copied().collect(),
            provenance: generated.provenance.clone(),
        })
    }

    /// The metric on all images.
    /// Example: [`estimate`](fn@estimate).
    pub fn value(&self) -> f64 {
        self.value
    }

    /// With its interval.
    /// Example: [`estimate`](fn@estimate).
    pub fn estimate(&self) -> Result<Estimate> {
        self.blocks.estimate(self.value, &self.replicates, self.level)
    }

    /// This metric minus that of another set, with an interval; see [`Estimate::verdict`] for what it means.
    ///
    /// The generated sets must have the same group ids: the same prompts and seeds through two methods.
    ///
    /// # Panics
    ///
    /// If the two are not the same metric.
    ///
    /// Example: [`estimate`](fn@estimate).
    pub fn minus(&self, other: &Self) -> Result<Estimate> {
        assert_eq!(self.metric, other.metric, "a difference of two metrics means nothing");
        check_same_groups(&self.groups, &other.groups)?;
        self.provenance.check_comparable(&other.provenance)?;
        let without = self.replicates.without.iter().zip(&other.replicates.without).map(|(l, r)| l - r).collect();
        let difference = Replicates { all: self.replicates.all - other.replicates.all, without };
        self.blocks.estimate(self.value - other.value, &difference, self.level)
    }
}

/// The two sides of a metric; one that has no other side looks at the generated side only.
#[derive(Clone, Copy)]
struct Pair<'a> {
    generated: &'a FeatureSet,
    other: Other<'a>,
}

/// The other side of a metric that is known to be able to use it.
#[derive(Clone, Copy)]
enum Other<'a> {
    Features(&'a FeatureSet),
    Statistics(&'a Statistics),
}

impl<'a> Pair<'a> {
    fn new(metric: Metric, generated: &'a FeatureSet, other: OtherSide<'a>) -> Result<Self> {
        if metric.is_of_pixels() != (generated.provenance.extractor == pixels::NAME) {
            let (name, found) = (metric.name(), &generated.provenance.extractor);
            let expected = if metric.is_of_pixels() { "pixels, without a network" } else { "a network's features" };
            return Err(Error::BadPreprocess(format!("{name} is of {expected}, found {found}")));
        }
        let other = match (metric.needs_reference(), other) {
            (true, OtherSide::None) => return Err(Error::NoReference { metric: metric.name() }),
            (true, OtherSide::Features(features)) => {
                generated.check_comparable(features)?;
                Other::Features(features)
            }
            (true, OtherSide::Statistics(statistics)) if metric.is_frechet() => Other::Statistics(statistics),
            (true, OtherSide::Statistics(_)) => return Err(Error::NotFromStatistics { metric: metric.name() }),
            (false, _) => Other::Features(generated),
        };
        Ok(Self { generated, other })
    }

    /// Both sides as features.
    fn features(self, metric: Metric) -> Result<(&'a FeatureSet, &'a FeatureSet)> {
        match self.other {
            Other::Features(other) => Ok((self.generated, other)),
            Other::Statistics(_) => Err(Error::NotFromStatistics { metric: metric.name() }),
        }
    }
}

fn plain(metric: Metric, pair: Pair) -> Result<f64> {
    if let Other::Statistics(other) = pair.other
        && metric.is_frechet()
    {
        return fid_from_statistics(&Statistics::of(pair.generated)?, other);
    }
    let (generated, reference) = pair.features(metric)?;
    match metric {
        Metric::Fid | Metric::Fvd => fid(generated, reference),
        Metric::Kid | Metric::Kvd => kid_u(generated, reference),
        Metric::InceptionScore => {
            // `Splits::TORCH_FIDELITY`, with fewer splits where there are fewer images.
            let splits = Splits::Shuffled { count: generated.len().min(10), seed: 2020 };
            Ok(inception_score(generated, &splits)?.mean)
        }
        Metric::Precision | Metric::Recall | Metric::Density | Metric::Coverage => {
            Ok(metric.of(prdc(generated, reference, &metric.neighbours())?))
        }
        Metric::Cmmd => cmmd(generated, reference),
        Metric::ClipScore | Metric::FrameDifference | Metric::Flicker => {
            Ok(MeanSums::new(generated, &vec![0; generated.len()], 1)?.mean(None))
        }
        Metric::Sharpness => Ok(MeanSums::of_sharpness(generated, &vec![0; generated.len()], 1).mean(None)),
        Metric::Spectrum => {
            let [x, y] = [generated, reference].map(|set| SpectrumSums::new(set, &vec![0; set.len()], 1));
            Ok(x.distance(None, &y, None))
        }
        Metric::Repetition => {
            let (x, y) = repetitions((generated, &vec![0; generated.len()]), (reference, &vec![0; reference.len()]), 1)?;
            Ok(x.mean(None) - y.mean(None))
        }
    }
}

fn check_paired(a: &FeatureSet, b: &FeatureSet) -> Result<()> {
    let [a, b] = [a, b].map(|set| set.groups.iter().copied().collect::<BTreeSet<_>>());
    check_same_groups(&a, &b)
}

fn check_same_groups(a: &BTreeSet<u32>, b: &BTreeSet<u32>) -> Result<()> {
    match a.symmetric_difference(b).next() {
        Some(group) => Err(Error::UnpairedGroup { group: *group }),
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

    /// Fewest rows that remain when one block leaves.
    fn smallest_rest(&self, of: &[usize]) -> usize {
        let size = |b| of.iter().filter(|o| **o == b).count();
        of.len() - (0..self.len()).map(size).max().unwrap_or(0)
    }

    fn estimate(&self, value: f64, replicates: &Replicates, level: f64) -> Result<Estimate> {
        let n = self.sizes.iter().sum::<usize>();
        let groups = n as f64;
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

fn replicates(metric: Metric, pair: Pair, blocks: &Blocks, jackknife: &Jackknife) -> Result<Replicates> {
    let shared = metric.needs_reference() && jackknife.reference == ReferenceBlocks::Shared;
    if let (Other::Statistics(other), false) = (pair.other, shared) {
        let x_blocks = blocks.of(pair.generated);
        let x = pair.generated.matrix()?;
        require(metric.name(), 2, blocks.smallest_rest(&x_blocks), 2)?;
        return fid_replicates(&Anchor::new(other)?, &Scatter::new(x), &x_blocks, blocks.len());
    }
    let (generated, reference) = pair.features(metric)?;
    if shared {
        check_paired(generated, reference)?;
    }
    let x_blocks = blocks.of(generated);
    let y_blocks = if shared { blocks.of(reference) } else { vec![0; reference.len()] };
    let left_of_y = if shared { blocks.smallest_rest(&y_blocks) } else { reference.len() };
    require(metric.name(), 2, blocks.smallest_rest(&x_blocks), left_of_y)?;
    // What a block's leaving takes with it on the other side.
    let with = |b: usize| shared.then_some(b);
    let each = |value: &dyn Fn(Option<usize>, Option<usize>) -> Result<f64>| -> Result<Replicates> {
        let without = (0..blocks.len()).map(|b| value(Some(b), with(b))).collect::<Result<_>>()?;
        Ok(Replicates { all: value(None, None)?, without })
    };
    match metric {
        Metric::Kid | Metric::Kvd => {
            let sums = KernelSums::new(&generated.matrix()?, &x_blocks, &reference.matrix()?, &y_blocks, blocks.len());
            each(&|x, y| Ok(sums.kid_u(x, y)))
        }
        Metric::Cmmd => {
            let sums = KernelSums::cmmd_sums(&directions(generated)?, &x_blocks, &directions(reference)?, &y_blocks, blocks.len());
            each(&|x, y| Ok(sums.cmmd(x, y)))
        }
        Metric::Precision | Metric::Recall | Metric::Density | Metric::Coverage => {
            let balls = Neighbours::new(generated, &x_blocks, reference, &y_blocks, blocks.len(), &metric.neighbours())?;
            each(&|x, y| Ok(metric.of(balls.without(x, y)?)))
        }
        Metric::InceptionScore => {
            let sums = ScoreSums::new(generated, &x_blocks, blocks.len())?;
            each(&|x, _| sums.score(x))
        }
        Metric::ClipScore | Metric::FrameDifference | Metric::Flicker => {
            let sums = MeanSums::new(generated, &x_blocks, blocks.len())?;
            each(&|x, _| Ok(sums.mean(x)))
        }
        Metric::Sharpness => {
            let sums = MeanSums::of_sharpness(generated, &x_blocks, blocks.len());
            each(&|x, _| Ok(sums.mean(x)))
        }
        Metric::Spectrum => {
            let sums = [(generated, &x_blocks), (reference, &y_blocks)].map(|(set, of)| SpectrumSums::new(set, of, blocks.len()));
            each(&|x, y| Ok(sums[0].distance(x, &sums[1], y)))
        }
        Metric::Repetition => {
            let (ours, theirs) = repetitions((generated, &x_blocks), (reference, &y_blocks), blocks.len())?;
            each(&|x, y| Ok(ours.mean(x) - theirs.mean(y)))
        }
        Metric::Fid | Metric::Fvd => {
            let (x, y) = (Scatter::new(generated.matrix()?), Scatter::new(reference.matrix()?));
            let whole = y.statistics(None);
            let anchor = Anchor::new(&whole)?;
            if !shared {
                return fid_replicates(&anchor, &x, &x_blocks, blocks.len());
            }
            let without = (0..blocks.len()).map(|b| {
                let y = y.statistics(Some((b, &y_blocks)));
                Anchor::new(&y)?.distance(&x.statistics(Some((b, &x_blocks))))
            });
            Ok(Replicates { without: without.collect::<Result<_>>()?, all: anchor.distance(&x.statistics(None))? })
        }
    }
}

/// Sums of spectra per block, and how many they are.
struct SpectrumSums(Vec<([f64; pixels::RINGS], f64)>);

impl SpectrumSums {
    fn new(set: &FeatureSet, of: &[usize], blocks: usize) -> Self {
        let mut sums = vec![([0.0; pixels::RINGS], 0.0); blocks];
        for (row, b) in set.data.chunks(set.dim).zip(of) {
            sums[*b].0.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            sums[*b].1 += 1.0;
        }
        Self(sums)
    }

    fn mean(&self, without: Option<usize>) -> [f64; pixels::RINGS] {
        let left = || self.0.iter().enumerate().filter(|(b, _)| Some(*b) != without).map(|(_, block)| block);
        let n: f64 = left().map(|(_, n)| n).sum();
        std::array::from_fn(|k| left().map(|(sums, _)| sums[k]).sum::<f64>() / n)
    }

    fn distance(&self, without: Option<usize>, other: &Self, without_there: Option<usize>) -> f64 {
        let (x, y) = (self.mean(without), other.mean(without_there));
        (x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
    }
}

/// Sums of the images' self-similarities on both sides, relative to the second's mean: sets, and the block of each row.
fn repetitions(x: (&FeatureSet, &[usize]), y: (&FeatureSet, &[usize]), blocks: usize) -> Result<(MeanSums, MeanSums)> {
    let matrix = y.0.matrix()?;
    let centre: Vec<f64> = matrix.col_iter().map(|column| column.iter().sum::<f64>() / column.nrows() as f64).collect();
    let sums = |(set, of): (&FeatureSet, &[usize])| {
        let mut sums = vec![(0.0, 0.0); blocks];
        let alike = self_similarities(set, &centre);
        alike.iter().for_each(|(row, value)| (sums[of[*row]].0, sums[of[*row]].1) = (sums[of[*row]].0 + value, sums[of[*row]].1 + 1.0));
        if alike.is_empty() {
            let reason = "repetition compares parts of one image, expected two crops or more of every image, on both sides".to_owned();
            return Err(Error::BadPreprocess(reason));
        }
        Ok(MeanSums(sums))
    };
    Ok((sums(x)?, sums(y)?))
}

/// Of every image with several rows: its first row, and the mean cosine between two of its rows, relative to `centre`.
fn self_similarities(set: &FeatureSet, centre: &[f64]) -> Vec<(usize, f64)> {
    let mut members: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    set.groups.iter().enumerate().for_each(|(row, group)| members.entry(*group).or_default().push(row));
    let direction = |row: usize| -> Vec<f64> {
        let values = set.data[row * set.dim..][..set.dim].iter().zip(centre).map(|(v, c)| f64::from(*v) - c);
        let values: Vec<f64> = values.collect();
        let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        values.into_iter().map(|v| v / norm).collect()
    };
    let alike = |rows: Vec<usize>| {
        // Σ over pairs i ≠ j of uᵢ·uⱼ is |Σ u|² − n.
        let n = rows.len() as f64;
        let mut sum = vec![0.0; set.dim];
        rows.iter().for_each(|row| sum.iter_mut().zip(direction(*row)).for_each(|(sum, u)| *sum += u));
        (rows[0], (sum.iter().map(|v| v * v).sum::<f64>() - n) / (n * (n - 1.0)))
    };
    members.into_values().filter(|rows| rows.len() > 1).map(alike).collect()
}

/// Sums of one number an image, or of a set of dimension 1, per block.
struct MeanSums(Vec<(f64, f64)>);

impl MeanSums {
    fn new(set: &FeatureSet, of: &[usize], blocks: usize) -> Result<Self> {
        if set.dim != 1 {
            return Err(Error::NotScores { dim: set.dim });
        }
        let mut sums = vec![(0.0, 0.0); blocks];
        for (value, b) in set.matrix()?.col(0).iter().zip(of) {
            sums[*b].0 += value;
            sums[*b].1 += 1.0;
        }
        Ok(Self(sums))
    }

    /// Of the sharpness of pixels.
    fn of_sharpness(set: &FeatureSet, of: &[usize], blocks: usize) -> Self {
        let mut sums = vec![(0.0, 0.0); blocks];
        for (row, b) in set.data.chunks(set.dim).zip(of) {
            sums[*b].0 += f64::from(row[pixels::RINGS]);
            sums[*b].1 += 1.0;
        }
        Self(sums)
    }

    fn mean(&self, without: Option<usize>) -> f64 {
        let left = self.0.iter().enumerate().filter(|(b, _)| Some(*b) != without);
        let (sum, n) = left.fold((0.0, 0.0), |(sum, n), (_, block)| (sum + block.0, n + block.1));
        sum / n
    }
}

fn fid_replicates(reference: &Anchor, x: &Scatter, x_blocks: &[usize], blocks: usize) -> Result<Replicates> {
    let without = (0..blocks).map(|b| reference.distance(&x.statistics(Some((b, x_blocks)))));
    Ok(Replicates { without: without.collect::<Result<_>>()?, all: reference.distance(&x.statistics(None))? })
}

/// Centred rows with their scatter matrix, from which blocks of rows can be taken away.
///
/// Rows are centred on the mean of all, so that the downdate of the scatter does not cancel.
struct Scatter {
    mean: Vec<f64>,
    centred: Mat<f64>,
    scatter: Mat<f64>,
}

impl Scatter {
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
        for metric in [Metric::Fid, Metric::Kid] {
            let pair = |set| Pair::new(metric, set, OtherSide::Features(&f2)).unwrap();
            let replicates = replicates(metric, pair(&f1), &blocks, &jackknife).unwrap();
            close("all", replicates.all, plain(metric, pair(&f1)).unwrap(), 1e-9);
            close("without", replicates.without[4], plain(metric, pair(&part)).unwrap(), 1e-9);
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
        let estimate = blocks.estimate(sum / 6.0, &replicates, 0.95).unwrap();
        let variance = values.iter().map(|v| (v - sum / 6.0).powi(2)).sum::<f64>() / 5.0;
        close("se", estimate.std_error, (variance / 6.0).sqrt(), 1e-12);
        // t quantile with 5 degrees of freedom.
        close("hi", (estimate.hi - estimate.value) / estimate.std_error, 2.570_581_835_636_3, 1e-8);
    }

    /// E k(x, y) over x ~ N(μ, σ²I) for KID's kernel (x·y/D + 1)³: 1 + x·y/D is normal.
    fn expected_kernel(mu: f64, sigma: f64, y: &[f32]) -> f64 {
        let dim = y.len() as f64;
        let (sum, square) = y.iter().fold((0.0, 0.0), |(s, q), v| (s + f64::from(*v), q + f64::from(*v).powi(2)));
        let (mean, variance) = (1.0 + mu * sum / dim, sigma * sigma * square / (dim * dim));
        mean.powi(3) + 3.0 * mean * variance
    }

    /// The same with y ~ N(μ, σ²I), too: E (1+m)³ + 3 E (1+m) v with m = μ·y/D and v = σ²|y|²/D².
    fn expected_kernel_within(mu: f64, sigma: f64, dim: f64) -> f64 {
        let (norm, variance) = (dim * mu * mu, sigma * sigma);
        let (m, v) = (1.0 + norm / dim, variance * norm / (dim * dim));
        let length = norm + dim * variance;
        let product = norm * (length + 2.0 * variance) / dim;
        m.powi(3) + 3.0 * m * v + 3.0 * variance / (dim * dim) * (length + product)
    }

    /// 95 % intervals cover in 93 to 97 % of a thousand simulations. KID's truth, given the reference, is a closed form; FID's
    /// expectation at this n is the simulations' mean, whose own error is a thirtieth of an interval's.
    #[test]
    fn coverage_on_gaussians() {
        let (n, dim, mu, sigma) = (160, 4, 0.3, 1.1);
        let mut random = Gaussian::new(7);
        let reference = random.features(150, dim, 0.0, 1.0);
        let sets: Vec<_> = (0..1000).map(|_| random.features(n, dim, mu, sigma)).collect();
        let y: Vec<&[f32]> = reference.data.chunks(dim).collect();
        let across = y.iter().map(|y| expected_kernel(mu, sigma, y)).sum::<f64>() / y.len() as f64;
        let kernel = |a: &[f32], b: &[f32]| (1.0 + a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>() / dim as f64).powi(3);
        let pairs = y.iter().enumerate().flat_map(|(i, a)| y[..i].iter().map(|b| kernel(a, b)));
        let within = pairs.sum::<f64>() / (y.len() * (y.len() - 1) / 2) as f64;
        let kid = expected_kernel_within(mu, sigma, dim as f64) + within - 2.0 * across;
        for metric in [Metric::Kid, Metric::Fid] {
            let estimates: Vec<_> = sets.iter().map(|set| estimate(metric, set, Some(&reference), &Jackknife::STANDARD).unwrap()).collect();
            let mean = estimates.iter().map(|e| e.value).sum::<f64>() / 1000.0;
            let truth = if metric == Metric::Kid { kid } else { mean };
            let spread = (estimates.iter().map(|e| (e.value - mean).powi(2)).sum::<f64>() / 999.0).sqrt();
            assert!((truth - mean).abs() < 4.0 * spread / 1000f64.sqrt(), "{metric:?}: {truth} {mean} {spread}");
            let covered = estimates.iter().filter(|e| e.lo <= truth && truth <= e.hi).count();
            eprintln!("{metric:?}: {covered} of 1000");
            assert!((930..=970).contains(&covered), "{metric:?}: {covered} of 1000");
        }
    }

    #[test]
    fn a_measured_value_is_the_estimated_one() {
        let [f1, f2] = formula_features();
        for metric in [Metric::Fid, Metric::Kid, Metric::Recall] {
            let estimated = estimate(metric, &f1, Some(&f2), &Jackknife::STANDARD).unwrap();
            assert_eq!(measure(metric, &f1, Some(&f2)).unwrap(), estimated.value);
        }
        assert!(matches!(measure(Metric::Fid, &f1, OtherSide::None), Err(Error::NoReference { .. })));
    }

    /// Rows of two an image: what is the same twice has cosine 1, what is opposite −1, and rotations of all features change nothing.
    #[test]
    fn repetition_is_the_excess_of_self_similarity() {
        let of = |rows: &[[f32; 2]]| {
            let mut set = features(&(vec![rows.len(), 2], rows.concat()), 1);
            set.groups = (0..rows.len() as u32).map(|i| i / 2).collect();
            set
        };
        // Mean (1, 0); relative to it every image's parts are opposite.
        let reference = of(&[[2.0, 0.0], [0.0, 0.0], [1.0, 3.0], [1.0, -3.0]]);
        let same = of(&[[2.0, 2.0], [2.0, 2.0], [5.0, 0.0], [5.0, 0.0]]);
        let across = of(&[[2.0, 0.0], [1.0, 1.0], [3.0, 0.0], [1.0, -7.0]]);
        let value = |set: &FeatureSet, other: &FeatureSet| measure(Metric::Repetition, set, Some(other)).unwrap();
        close("itself", value(&reference, &reference), 0.0, 1e-12);
        close("the same twice", value(&same, &reference), 2.0, 1e-12);
        close("unrelated", value(&across, &reference), 1.0, 1e-12);
        let turned =
            |set: &FeatureSet| FeatureSet { data: set.data.chunks(2).flat_map(|v| [-v[1] + 4.0, v[0] - 2.0]).collect(), ..set.clone() };
        close("turned and moved", value(&turned(&across), &turned(&reference)), 1.0, 1e-6);
        let mut random = Gaussian::new(2);
        let (mut a, mut b) = (random.features(160, 6, 0.0, 1.0), random.features(200, 6, 0.0, 1.0));
        for set in [&mut a, &mut b] {
            set.groups = (0..set.len() as u32).map(|i| i / 4).collect();
        }
        let found = estimate(Metric::Repetition, &a, Some(&b), &Jackknife::STANDARD).unwrap();
        assert!((found.value - measure(Metric::Repetition, &a, Some(&b)).unwrap()).abs() < 1e-12);
        assert!(found.lo < 0.0 && found.hi > 0.0 && found.n == 40, "{found:?}");
        // One row an image: there is nothing to compare.
        let single = random.features(10, 6, 0.0, 1.0);
        let message = measure(Metric::Repetition, &single, Some(&b)).unwrap_err().to_string();
        assert!(message.contains("expected two crops or more"), "{message}");
    }

    #[test]
    fn spectra_and_sharpness_are_means_of_pixels() {
        let set = |rows: &[[f32; 2]]| {
            let row = |[ring, sharp]: [f32; 2]| [vec![ring; pixels::RINGS], vec![sharp]].concat();
            let data = rows.iter().flat_map(|r| row(*r)).collect::<Vec<f32>>();
            let mut set = features(&(vec![rows.len(), pixels::DIM], data), 1);
            set.provenance.extractor = pixels::NAME.to_owned();
            set
        };
        let (a, b) = (set(&[[10.0, 1.0], [14.0, 2.0], [12.0, 3.0]]), set(&[[9.0, 0.0], [9.0, 0.0]]));
        close("spectrum", measure(Metric::Spectrum, &a, Some(&b)).unwrap(), 3.0, 1e-12);
        close("sharpness", measure(Metric::Sharpness, &a, OtherSide::None).unwrap(), 2.0, 1e-12);
        let found = estimate(Metric::Spectrum, &a, Some(&b), &Jackknife::STANDARD).unwrap();
        close("error", found.std_error, (4.0f64 / 3.0).sqrt(), 1e-9);
        let [f1, f2] = formula_features();
        assert!(measure(Metric::Spectrum, &f1, Some(&f2)).unwrap_err().to_string().contains("spectrum is of pixels"));
        assert!(measure(Metric::Fid, &a, Some(&b)).unwrap_err().to_string().contains("fid is of a network's features"));
    }

    #[test]
    fn verdicts_and_what_would_decide() {
        let difference =
            |value: f64, half: f64| Estimate { value, lo: value - half, hi: value + half, level: 0.95, n: 100, std_error: half / 2.0 };
        assert_eq!(difference(-2.0, 1.0).verdict(Metric::Fid), Verdict::Better);
        assert_eq!(difference(-2.0, 1.0).verdict(Metric::Recall), Verdict::Worse);
        assert_eq!(difference(2.0, 1.0).verdict(Metric::Kid), Verdict::Worse);
        assert_eq!(difference(2.0, 1.0).verdict(Metric::InceptionScore), Verdict::Better);
        assert_eq!(difference(2.0, 3.0).verdict(Metric::Fid), Verdict::Undecided);
        // Half the width needs four times the images.
        assert_eq!(difference(1.0, 2.0).n_to_decide(), Some(400));
        assert_eq!(difference(0.0, 2.0).n_to_decide(), None);
        assert_eq!(difference(0.0, 0.0).n_to_decide(), None);
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
            let pair = ((&b, Some(&reference)), (&a, Some(&reference)));
            let paired = paired_difference(Metric::Fid, pair.0, pair.1, &Jackknife::STANDARD).unwrap();
            let single = estimate(Metric::Fid, &a, Some(&reference), &Jackknife::STANDARD).unwrap();
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
        let kid = estimate(Metric::Kid, &a, Some(&b), &Jackknife::STANDARD).unwrap();
        // The reference's own error counts too: with it fixed the interval is half the variance.
        assert!(kid.value.abs() < 3.0 * 2f64.sqrt() * kid.std_error, "{kid:?}");
        let same = paired_difference(Metric::Kid, (&a, Some(&b)), (&a, Some(&b)), &Jackknife::STANDARD);
        let same = same.unwrap();
        assert_eq!((same.value, same.std_error), (0.0, 0.0));
    }

    #[test]
    fn statistics_stand_for_their_features() {
        let mut random = Gaussian::new(9);
        let (a, b) = (random.features(120, 4, 0.2, 1.0), random.features(150, 4, 0.0, 1.0));
        let features = estimate(Metric::Fid, &a, Some(&b), &Jackknife::STANDARD).unwrap();
        let of_b = Statistics::of(&b).unwrap();
        let statistics = estimate(Metric::Fid, &a, &of_b, &Jackknife::STANDARD).unwrap();
        close("value", statistics.value, features.value, 1e-9);
        close("error", statistics.std_error, features.std_error, 1e-9);
        let mut c = a.clone();
        c.data.iter_mut().step_by(3).for_each(|v| *v += 0.2);
        let features = paired_difference(Metric::Fid, (&a, Some(&b)), (&c, Some(&b)), &Jackknife::STANDARD).unwrap();
        let statistics = paired_difference(Metric::Fid, (&a, &of_b), (&c, &of_b), &Jackknife::STANDARD).unwrap();
        close("difference", statistics.value, features.value, 1e-8);
        close("its error", statistics.std_error, features.std_error, 1e-8);
        let kid = |other: OtherSide| estimate(Metric::Kid, &a, other, &Jackknife::STANDARD);
        assert!(matches!(kid(OtherSide::None), Err(Error::NoReference { metric: "kid" })));
        assert!(matches!(kid(OtherSide::Statistics(&of_b)), Err(Error::NotFromStatistics { metric: "kid" })));
        let shared = Jackknife { reference: ReferenceBlocks::Shared, ..Jackknife::STANDARD };
        assert!(matches!(estimate(Metric::Fid, &a, &of_b, &shared), Err(Error::NotFromStatistics { metric: "fid" })));
    }

    #[test]
    fn shared_references_lose_the_same_groups() {
        let mut random = Gaussian::new(5);
        let base = random.features(120, 4, 0.0, 1.0);
        let mut generated = base.clone();
        let noise = random.features(120, 4, 0.1, 0.2);
        generated.data.iter_mut().zip(&noise.data).for_each(|(v, n)| *v += n);
        let shared = Jackknife { reference: ReferenceBlocks::Shared, ..Jackknife::STANDARD };
        let fixed = estimate(Metric::Fid, &generated, Some(&base), &Jackknife::STANDARD).unwrap();
        let paired = estimate(Metric::Fid, &generated, Some(&base), &shared).unwrap();
        assert_eq!(paired.value, fixed.value);
        assert!(paired.std_error < fixed.std_error, "{paired:?} {fixed:?}");
        let mut other = base.clone();
        other.groups[0] = 1000;
        let error = estimate(Metric::Fid, &generated, Some(&other), &shared).unwrap_err();
        assert!(matches!(error, Error::UnpairedGroup { group: 0 | 1000 }), "{error}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let [f1, f2] = formula_features();
        let run = |jackknife| estimate(Metric::Fid, &f1, Some(&f2), &jackknife);
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
        estimate(Metric::Fid, &a, Some(&b), &Jackknife::STANDARD).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 10.0, "{seconds} s");
    }
}
