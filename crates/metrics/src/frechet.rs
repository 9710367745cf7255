//! Fréchet distance between Gaussians fitted to two feature sets (FID), in `f64`.
//!
//! FID = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, with Σ divided by n − 1 as in every tool.
//! (Heusel et al., arXiv:1706.08500, eq. 6.)
//!
//! From features, the last trace is the nuclear norm of X Yᵀ / √((n−1)(m−1)) with X, Y centred: no
//! covariance is formed, so nothing is squared and rank-deficient sets (n ≤ dimension) lose no digits.
//! A set with more rows than dimensions is first replaced by a triangular factor with the same Gram matrix, which
//! leaves the nuclear norm as it is: QR's, or Cholesky's where there are rows enough and no digits to lose. Tools that take eigenvalues or matrix roots of
//! Σ₁Σ₂ are off by about 2e-6 relative for rank-deficient sets, and agree otherwise.
//!
//! From statistics, tr (Σ₁Σ₂)^½ = Σ √λ(S Σ₂ S) with S = Σ₁^½; both decompositions are symmetric.
//! [`Moments`] collects statistics of sets that do not fit into memory.
//!
//! A value does not depend on the number of threads, to the last bit.
//!
//! FID is biased by about c/n with a c of its own for every model, so a ranking at one n can be wrong;
//! [`fid_infinity`] extrapolates. [`Conditioning`] says how well a set determines its covariance.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::reborrow::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatRef, Side};
use serde::{Deserialize, Serialize};

use crate::random::RandomState;
use crate::{Error, FeatureSet, Result};

/// FID of two feature sets.
///
/// FID is biased by about c/n, so values of different n do not compare; [`crate::kid_u`] does.
///
/// ```
/// use scalebench_metrics::{Extrapolation, FeatureSet, InfinityOptions, fid, fid_infinity};
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// let at = |shift: f32| set(&[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]].map(|[x, y]: [f32; 2]| vec![x + shift, y]));
/// // Only the means differ, by 3.
/// assert!((fid(&at(0.0)?, &at(3.0)?)? - 9.0).abs() < 1e-9);
/// // The last point of an extrapolation is the FID of everything.
/// let rows: Vec<Vec<f32>> = (0..100).map(|i| vec![(0.7 * i as f32).sin(), (1.3 * i as f32).cos()]).collect();
/// let options = InfinityOptions { points: 5, first: 20, ..InfinityOptions::STANDARD };
/// let line: Extrapolation = fid_infinity(&set(&rows)?, &at(0.0)?, &options)?;
/// let (n, value) = line.points[4];
/// assert_eq!(n, 100);
/// assert!((value - fid(&set(&rows)?, &at(0.0)?)?).abs() < 1e-9);
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn fid(left: &FeatureSet, right: &FeatureSet) -> Result<f64> {
    left.check_comparable(right)?;
    require("fid", 2, left.len(), right.len())?;
    Factor::of(left)?.distance(&Factor::of(right)?)
}

/// A set reduced to what distances from features need.
struct Factor {
    mean: Vec<f64>,
    /// A matrix R with RᵀR the scatter of the rows, of at most as many rows as columns.
    root: Mat<f64>,
    trace: f64,
    degrees: f64,
}

impl Factor {
    /// Of two rows or more.
    fn of(set: &FeatureSet) -> Result<Self> {
        Ok(Self::new(set.matrix()?))
    }

    /// Of two rows or more.
    fn new(x: Mat<f64>) -> Self {
        let degrees = (x.nrows() - 1) as f64;
        let (mean, x) = centred(x);
        let trace = x.squared_norm_l2() / degrees;
        Self { mean, root: compact(x), trace, degrees }
    }

    fn distance(&self, other: &Self) -> Result<f64> {
        let cross = &self.root * other.root.transpose();
        let singular = singular_values(cross.as_ref())?;
        let root = singular.iter().sum::<f64>() / (self.degrees * other.degrees).sqrt();
        Ok(assemble(squared_distance(&self.mean, &other.mean), self.trace, other.trace, root))
    }
}

/// In how many parts a decomposition or product is cut, whatever the number of threads: how sums are grouped, and so their last
/// bits, follow from it.
const PARTS: usize = 8;

/// Lets decompositions and products have their last bits from their operands alone.
fn fix_parts() {
    static FIXED: std::sync::Once = std::sync::Once::new();
    FIXED.call_once(|| faer::set_global_parallelism(faer::Par::rayon(PARTS)));
}

fn singular_values(matrix: MatRef<'_, f64>) -> Result<Vec<f64>> {
    fix_parts();
    matrix.singular_values().map_err(|_| Error::NoConvergence { what: "singular value decomposition" })
}

/// Mean and covariance of a feature set.
///
/// ```
/// use scalebench_metrics::{Conditioning, FeatureSet, Moments, Statistics, fid_from_statistics};
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// // Of two numbers' distributions: (μ₁ − μ₂)² + (σ₁ − σ₂)².
/// let wide = Statistics::new(vec![1.0], &[9.0])?;
/// let narrow = Statistics::new(vec![0.0], &[4.0])?;
/// assert!((fid_from_statistics(&wide, &narrow)? - 2.0).abs() < 1e-9);
/// assert_eq!((wide.dim(), Conditioning::of_statistics(&wide)?.rank), (1, 1));
/// // The same from rows at once, and from rows that came in two parts.
/// let rows = set(&[vec![-2.0], vec![0.0], vec![2.0]])?;
/// let (mut moments, mut rest) = (Moments::new(1), Moments::new(1));
/// moments.push(&[-2.0, 0.0])?;
/// rest.push(&[2.0])?;
/// moments.merge(&rest)?;
/// assert_eq!((moments.count(), Conditioning::of(&rows)?.n), (3, Some(3)));
/// for found in [Statistics::of(&rows)?, moments.statistics()?] {
///     assert!(fid_from_statistics(&found, &narrow)? < 1e-9);
/// }
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) covariance: Mat<f64>,
}

impl Statistics {
    /// From values computed elsewhere: `mean` of D values, `covariance` of D·D, divided by n − 1.
    /// Example: [`Statistics`].
    pub fn new(mean: Vec<f64>, covariance: &[f64]) -> Result<Self> {
        let dim = mean.len();
        if dim == 0 || covariance.len() != dim * dim {
            let columns = covariance.len().checked_div(dim).unwrap_or(0);
            return Err(Error::StatisticsShape { mean: dim, rows: dim, columns });
        }
        let covariance = Mat::from_fn(dim, dim, |i, j| covariance[i * dim + j]);
        Ok(Self { mean, covariance })
    }

    /// Of a feature set of at least two rows.
    /// Example: [`Statistics`].
    pub fn of(set: &FeatureSet) -> Result<Self> {
        let x = set.matrix()?;
        require("fid", 2, x.nrows(), x.nrows())?;
        let (mean, x) = centred(x);
        let covariance = x.transpose() * &x * faer::Scale(1.0 / (x.nrows() - 1) as f64);
        Ok(Self { mean, covariance })
    }

    /// Values of a feature.
    /// Example: [`Statistics`].
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    fn trace(&self) -> f64 {
        self.covariance.diagonal().column_vector().iter().sum()
    }
}

/// Count, mean and scatter of rows that arrive in batches: the statistics of any number of images in the
/// memory of one covariance matrix, in `f64`.
///
/// A batch is centred on its own mean before its products are taken, so a common offset costs no digits
/// (Chan, Golub, LeVeque 1979). Cutting rows into other batches or shards changes the last bits only;
/// the same batches merged in the same order give the same bits.
///
/// Example: [`Statistics`].
#[derive(Clone, Debug)]
pub struct Moments {
    count: usize,
    mean: Vec<f64>,
    /// Σ (x − mean)(x − mean)ᵀ.
    scatter: Mat<f64>,
}

impl Moments {
    /// Of no rows yet.
    /// Example: [`Statistics`].
    pub fn new(dim: usize) -> Self {
        Self { count: 0, mean: vec![0.0; dim], scatter: Mat::zeros(dim, dim) }
    }

    /// Rows so far.
    /// Example: [`Statistics`].
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds rows, `(rows, dim)` row-major. Nothing is added if a value is not finite; the error then
    /// counts rows from the first one ever added.
    /// Example: [`Statistics`].
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        let dim = self.mean.len();
        if dim == 0 || !rows.len().is_multiple_of(dim) {
            return Err(Error::BatchShape { values: rows.len(), dim });
        }
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            let row = self.count + at / dim;
            return Err(Error::NonFinite { row, name: format!("number {row}"), column: at % dim, value: rows[at] });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (mean, centred) = centred(Mat::from_fn(rows.len() / dim, dim, |i, j| f64::from(rows[i * dim + j])));
        let scatter = centred.transpose() * &centred;
        self.combine(centred.nrows(), &mean, &scatter);
        Ok(())
    }

    /// Adds the rows of another shard. Merge shards in a fixed order for the same bits.
    /// Example: [`Statistics`].
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (left, right) = (self.mean.len(), other.mean.len());
        if left != right {
            return Err(Error::MomentsShape { left, right });
        }
        self.combine(other.count, &other.mean, &other.scatter);
        Ok(())
    }

    fn combine(&mut self, count: usize, mean: &[f64], scatter: &Mat<f64>) {
        let total = self.count + count;
        if count == 0 {
            return;
        }
        let share = count as f64 / total as f64;
        let weight = self.count as f64 * share;
        let shift: Vec<f64> = mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        for (j, column) in self.scatter.as_mut().col_iter_mut().enumerate() {
            for (i, value) in column.iter_mut().enumerate() {
                *value += scatter[(i, j)] + weight * shift[i] * shift[j];
            }
        }
        self.mean.iter_mut().zip(&shift).for_each(|(mean, shift)| *mean += share * shift);
        self.count = total;
    }

    /// Mean and covariance of the rows, of which there must be two or more.
    /// Example: [`Statistics`].
    pub fn statistics(&self) -> Result<Statistics> {
        require("fid", 2, self.count, self.count)?;
        let covariance = &self.scatter * faer::Scale(1.0 / (self.count - 1) as f64);
        Ok(Statistics { mean: self.mean.clone(), covariance })
    }
}

/// How well a covariance is determined.
///
/// With n ≤ D it is singular whatever the images: FID is then still defined, but tools that take roots
/// of Σ₁Σ₂ add noise of about 2e-6 relative, and the bias in n is large.
///
/// Example: [`Statistics`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditioning {
    /// Rows, where known.
    pub n: Option<usize>,
    /// Features per row.
    pub dim: usize,
    /// Eigenvalues of the covariance that are not rounding noise.
    pub rank: usize,
    /// Smallest eigenvalue of the covariance, zeros and noise included.
    pub smallest: f64,
    /// Largest eigenvalue.
    pub largest: f64,
}

impl Conditioning {
    /// Of a feature set of two rows or more, from its singular values: eigenvalues are accurate to
    /// 1e-32 of the largest, since nothing is squared before.
    /// Example: [`Statistics`].
    pub fn of(set: &FeatureSet) -> Result<Self> {
        require("fid", 2, set.len(), set.len())?;
        let Factor { root, degrees, .. } = Factor::of(set)?;
        let dim = root.ncols();
        let singular = singular_values(root.as_ref())?;
        let largest = singular.iter().copied().fold(0.0, f64::max);
        // As numpy's `matrix_rank`.
        let noise = largest * set.len().max(dim) as f64 * f64::EPSILON;
        // Centring takes one dimension exactly; what rounding leaves of it can pass for more than noise where the
        // mean is large.
        let rank = singular.iter().filter(|v| **v > noise).count().min(set.len() - 1);
        // Fewer rows than columns leave out eigenvalues that are zero.
        let smallest = if singular.len() < dim { 0.0 } else { singular.iter().copied().fold(largest, f64::min) };
        Ok(Self { n: Some(set.len()), dim, rank, smallest: smallest * smallest / degrees, largest: largest * largest / degrees })
    }

    /// Of statistics; eigenvalues below about 1e-13 of the largest are noise and may be negative.
    /// Example: [`Statistics`].
    pub fn of_statistics(statistics: &Statistics) -> Result<Self> {
        fix_parts();
        let values = statistics
            .covariance
            .self_adjoint_eigenvalues(Side::Lower)
            .map_err(|_| Error::NoConvergence { what: "eigenvalue decomposition" })?;
        let dim = values.len();
        let largest = values.iter().copied().fold(0.0, f64::max);
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let noise = largest * dim as f64 * f64::EPSILON;
        Ok(Self { n: None, dim, rank: values.iter().filter(|v| **v > noise).count(), smallest, largest })
    }

    /// Whether the number of rows alone makes the covariance singular.
    pub(crate) fn too_few_rows(&self) -> bool {
        self.n.is_some_and(|n| n <= self.dim)
    }
}

impl std::fmt::Display for Conditioning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n, dim, rank, smallest, largest } = self;
        let n = n.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
        write!(f, "{n} images, {dim} values each; covariance of rank {rank}, eigenvalues from {smallest:.3e} to {largest:.3e}")?;
        match self.too_few_rows() {
            true => write!(f, "; singular for want of images: more than {dim} are needed"),
            false => Ok(()),
        }
    }
}

/// How a metric is extrapolated to infinitely many images.
///
/// Example: [`fid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InfinityOptions {
    /// Numbers of images at which the metric is taken, evenly spaced.
    pub points: usize,
    /// Smallest of them; a tenth of the images, if that is less.
    pub first: usize,
    /// Seed of numpy's legacy generator, from which the subsets come in turn.
    pub seed: u32,
}

impl InfinityOptions {
    /// 15 points from 5000, as Chong & Forsyth; the seed is this project's, theirs is not fixed.
    pub const STANDARD: Self = Self { points: 15, first: 5000, seed: 2020 };
}

/// A least-squares line of a metric over 1/n.
///
/// Example: [`fid`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extrapolation {
    /// The line at 1/n = 0.
    pub value: f64,
    /// Standard error of `value` by the usual formula. Subsets overlap, so it is a measure of how well the
    /// line fits, not of how well the value is known.
    pub std_error: f64,
    /// The line's slope: the c of the bias c/n.
    pub slope: f64,
    /// Share of the variance of the points that the line explains.
    pub r_squared: f64,
    /// Numbers of images and the metric there.
    pub points: Vec<(usize, f64)>,
}

/// FID at infinitely many generated images (Chong & Forsyth, arXiv:1911.07023): FIDs of random subsets of
/// `generated` against all of `reference`, extrapolated in 1/n. The reference's own bias stays.
///
/// Example: [`fid`].
pub fn fid_infinity(generated: &FeatureSet, reference: &FeatureSet, options: &InfinityOptions) -> Result<Extrapolation> {
    generated.check_comparable(reference)?;
    require("fid", 2, generated.len(), reference.len())?;
    let (x, anchor) = (generated.matrix()?, Factor::of(reference)?);
    extrapolate("fid", x.nrows(), options, |rows| {
        let subset = Mat::from_fn(rows.len(), x.ncols(), |i, j| x[(rows[i], j)]);
        Factor::new(subset).distance(&anchor)
    })
}

/// A metric of random subsets without replacement of `n` rows, extrapolated in 1/n.
pub(crate) fn extrapolate(
    metric: &'static str,
    n: usize,
    options: &InfinityOptions,
    mut value: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Extrapolation> {
    let InfinityOptions { points, first, seed } = *options;
    if points < 3 {
        return Err(Error::TooFewPoints { points });
    }
    let first = first.min(n / 10).max(2);
    // Three different numbers of images, or there is no line with a residual.
    require(metric, first + 2, n, n)?;
    let mut state = RandomState::new(seed);
    let points = (0..points).map(|k| {
        // numpy's `linspace` cast to integers.
        let size = (first as f64 + k as f64 * ((n - first) as f64 / (points - 1) as f64)) as usize;
        let size = if k + 1 == points { n } else { size };
        Ok((size, value(&state.choice(n as u32, size))?))
    });
    let points = points.collect::<Result<Vec<(usize, f64)>>>()?;
    let count = points.len() as f64;
    let inverse = |size: usize| 1.0 / size as f64;
    let mean_x = points.iter().map(|p| inverse(p.0)).sum::<f64>() / count;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / count;
    let squares_x: f64 = points.iter().map(|p| (inverse(p.0) - mean_x).powi(2)).sum();
    let squares_y: f64 = points.iter().map(|p| (p.1 - mean_y).powi(2)).sum();
    let slope = points.iter().map(|p| (inverse(p.0) - mean_x) * (p.1 - mean_y)).sum::<f64>() / squares_x;
    let value = mean_y - slope * mean_x;
    let residual: f64 = points.iter().map(|p| (p.1 - value - slope * inverse(p.0)).powi(2)).sum();
    let std_error = (residual / (count - 2.0) * (1.0 / count + mean_x * mean_x / squares_x)).sqrt();
    let r_squared = if squares_y > 0.0 { 1.0 - residual / squares_y } else { 1.0 };
    Ok(Extrapolation { value, std_error, slope, r_squared, points })
}

/// FID of two sets of which only the statistics are at hand.
///
/// For rank-deficient covariances this route, unlike [`fid`], carries the noise of the square roots
/// of rounding-sized eigenvalues, about 2e-6 relative.
///
/// Example: [`Statistics`].
pub fn fid_from_statistics(left: &Statistics, right: &Statistics) -> Result<f64> {
    Anchor::new(left)?.distance(right)
}

/// One side of many distances: its covariance's square root is taken once.
pub(crate) struct Anchor<'a> {
    statistics: &'a Statistics,
    root: Mat<f64>,
}

impl<'a> Anchor<'a> {
    pub(crate) fn new(statistics: &'a Statistics) -> Result<Self> {
        fix_parts();
        let eigen =
            statistics.covariance.self_adjoint_eigen(Side::Lower).map_err(|_| Error::NoConvergence { what: "eigenvalue decomposition" })?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        check_positive(&values, 0.0)?;
        let u = eigen.U();
        let scaled = Mat::from_fn(u.nrows(), u.ncols(), |i, j| u[(i, j)] * values[j].max(0.0).sqrt());
        Ok(Self { statistics, root: scaled * u.transpose() })
    }

    pub(crate) fn distance(&self, other: &Statistics) -> Result<f64> {
        if self.statistics.mean.len() != other.mean.len() {
            let (mean, rows) = (self.statistics.mean.len(), other.covariance.nrows());
            return Err(Error::StatisticsShape { mean, rows, columns: rows });
        }
        let product = &self.root * &other.covariance * &self.root;
        let values =
            product.self_adjoint_eigenvalues(Side::Lower).map_err(|_| Error::NoConvergence { what: "eigenvalue decomposition" })?;
        // Sets that vary in different directions leave nothing but the rounding of their product.
        check_positive(&values, 1e-12 * self.statistics.trace() * other.trace())?;
        let root = values.iter().map(|v| v.max(0.0).sqrt()).sum();
        let shift = squared_distance(&self.statistics.mean, &other.mean);
        Ok(assemble(shift, self.statistics.trace(), other.trace(), root))
    }
}

/// Negative eigenvalues of rounding size are zeros; larger ones mean that the input is no covariance. `rounding` is a size that
/// rounding is known to have besides.
fn check_positive(values: &[f64], rounding: f64) -> Result<()> {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(0.0, f64::max);
    if smallest < -(1e-7 * largest).max(rounding) {
        return Err(Error::NotPositive { smallest, largest });
    }
    Ok(())
}

/// A distance is never negative; rounding of equal sets is.
fn assemble(shift: f64, trace_x: f64, trace_y: f64, root: f64) -> f64 {
    (shift + trace_x + trace_y - 2.0 * root).max(0.0)
}

fn squared_distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
}

pub(crate) fn require(metric: &'static str, needed: usize, left: usize, right: usize) -> Result<()> {
    if left.min(right) < needed {
        return Err(Error::TooFewImages { metric, needed, left, right });
    }
    Ok(())
}

/// Column means, and the matrix less its means.
pub(crate) fn centred(mut x: Mat<f64>) -> (Vec<f64>, Mat<f64>) {
    fix_parts();
    let n = x.nrows() as f64;
    let mut means = Vec::with_capacity(x.ncols());
    for mut column in x.as_mut().col_iter_mut() {
        let mean = column.rb().iter().sum::<f64>() / n;
        column.rb_mut().iter_mut().for_each(|v| *v -= mean);
        means.push(mean);
    }
    (means, x)
}

/// Smallest ratio of a Cholesky factor's diagonal entries for which that factor is used: singular values down to
/// this share of the largest come out to 1e-11 of it, which a sum over thousands of them does not feel.
const WELL_CONDITIONED: f64 = 1e-5;

/// A matrix with the same Gram matrix XᵀX and at most as many rows as columns.
///
/// Of many rows it is the Cholesky factor of XᵀX, which costs a quarter of a QR decomposition; where that squares away
/// digits (features that are nearly constant or nearly multiples of others), or fails, it is QR's triangle.
fn compact(x: Mat<f64>) -> Mat<f64> {
    if x.nrows() <= x.ncols() {
        return x;
    }
    let by_cholesky = (x.nrows() >= 2 * x.ncols()).then(|| cholesky(&x)).flatten();
    by_cholesky.unwrap_or_else(|| x.qr().thin_R().to_owned())
}

/// The upper factor R of XᵀX = RᵀR, if it is accurate enough.
fn cholesky(x: &Mat<f64>) -> Option<Mat<f64>> {
    let dim = x.ncols();
    let mut gram = Mat::zeros(dim, dim);
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(&mut gram, lower, Accum::Replace, x.transpose(), full, x, full, 1.0, faer::get_global_parallelism());
    let factor = gram.llt(Side::Lower).ok()?;
    let diagonal = || factor.L().diagonal().column_vector().iter().copied();
    let (smallest, largest) = (diagonal().fold(f64::INFINITY, f64::min), diagonal().fold(0.0, f64::max));
    (smallest > WELL_CONDITIONED * largest).then(|| factor.L().transpose().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Gaussian, close, features, formula_features, golden, json, tensors};

    #[test]
    fn reference_values() {
        let golden = golden();
        let [f1, f2] = formula_features();
        let value = fid(&f1, &f2).unwrap();
        close("fid 80/96x16", value, golden["fid_f64_sqrtm"].as_f64().unwrap(), 1e-9);
        let cases = json("fid_kid.json");
        let sets = tensors("fid_kid.safetensors");
        for (case, key) in
            [("a500x64", "reference: symmetric eigh, float64"), ("b300x512_rankdef", "reference: 2*nuclear_norm(X1c X2c^T) form, float64")]
        {
            let [f1, f2] = ["f1", "f2"].map(|f| features(&sets[&format!("{case}.{f}")], 1));
            let expected = cases["cases"][case][key].as_f64().unwrap();
            close(case, fid(&f1, &f2).unwrap(), expected, 1e-9);
            let [s1, s2] = [&f1, &f2].map(|f| Statistics::of(f).unwrap());
            let tolerance = if case.contains("rankdef") { 1e-5 } else { 1e-9 };
            let value = fid_from_statistics(&s1, &s2).unwrap();
            close(&format!("{case} from statistics"), value, expected, tolerance);
        }
    }

    #[test]
    fn identities() {
        let [f1, f2] = formula_features();
        assert!(fid(&f1, &f1).unwrap() < 1e-10);
        let (forth, back) = (fid(&f1, &f2).unwrap(), fid(&f2, &f1).unwrap());
        close("symmetry", forth, back, 1e-11);
        // Dyadic shifts and features: exact in f32.
        let mut coarse = f1.clone();
        coarse.data.iter_mut().for_each(|v| *v = (*v * 256.0).round() / 256.0);
        let mut shifted = coarse.clone();
        shifted.data.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 16) as f32 / 8.0);
        let expected: f64 = (0..16).map(|j| (f64::from(j) / 8.0).powi(2)).sum();
        close("shift", fid(&coarse, &shifted).unwrap(), expected, 1e-9);
        let mut reversed = f1.clone();
        reversed.data = f1.data.rchunks(16).flatten().copied().collect();
        close("permutation", fid(&reversed, &f2).unwrap(), forth, 1e-11);
    }

    /// Rows enough for Cholesky, and the two ways in which it is not taken: a constant feature, a nearly constant one.
    #[test]
    fn either_factor_gives_the_same_distance() {
        let mut random = Gaussian::new(13);
        for spoil in [1.0, 0.0, 1e-6] {
            let mut sets = [random.features(60, 8, 0.0, 1.0), random.features(70, 8, 0.5, 1.3)];
            for set in &mut sets {
                set.data.iter_mut().skip(3).step_by(8).for_each(|v| *v *= spoil);
            }
            let factors = sets.each_ref().map(|set| centred(set.matrix().unwrap()).1);
            assert_eq!(factors.iter().all(|x| cholesky(x).is_some()), spoil == 1.0, "{spoil}");
            let by_qr = factors.each_ref().map(|x| x.qr().thin_R().to_owned());
            let cross = &by_qr[0] * by_qr[1].transpose();
            let root = singular_values(cross.as_ref()).unwrap().iter().sum::<f64>();
            let [x, y] = sets.each_ref().map(|set| Factor::of(set).unwrap());
            let expected = assemble(squared_distance(&x.mean, &y.mean), x.trace, y.trace, root / (59.0f64 * 69.0).sqrt());
            close(&format!("{spoil}"), fid(&sets[0], &sets[1]).unwrap(), expected, 1e-12);
        }
    }

    /// Sets large enough for products and decompositions to be cut into parts; of few rows, of many, and from statistics.
    #[test]
    fn threads_change_no_bit() {
        let mut random = Gaussian::new(21);
        let [few, many] = [300, 900].map(|n| [random.features(n, 400, 0.0, 1.0), random.features(n + 50, 400, 0.3, 1.2)]);
        let values = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let statistics = [&many[0], &many[1]].map(|set| Statistics::of(set).unwrap());
                let distances = [fid(&few[0], &few[1]), fid(&many[0], &many[1]), fid_from_statistics(&statistics[0], &statistics[1])];
                let bits = distances.map(|value| value.unwrap().to_bits());
                (bits, Conditioning::of(&many[0]).unwrap().smallest.to_bits())
            })
        };
        let one = values(1);
        assert_eq!(values(2), one);
        assert_eq!(values(4), one);
    }

    #[test]
    fn both_sides_of_the_rank_boundary_agree() {
        let [f1, f2] = formula_features();
        let head = |set: &FeatureSet, n: usize| features(&(vec![n, 16], set.data[..16 * n].into()), 1);
        for n in [2, 15, 16, 17, 40] {
            let (x, y) = (head(&f1, n), head(&f2, 30));
            let statistics = [&x, &y].map(|f| Statistics::of(f).unwrap());
            let expected = fid_from_statistics(&statistics[0], &statistics[1]).unwrap();
            close(&format!("n = {n}"), fid(&x, &y).unwrap(), expected, 1e-6);
        }
    }

    #[test]
    fn moments_do_not_depend_on_batches_or_shards() {
        let [f1, mut f2] = formula_features();
        f2.data.iter_mut().for_each(|v| *v = (*v * 1024.0).round() / 1024.0 + 500.0);
        let whole = Statistics::of(&f2).unwrap();
        let agree = |statistics: &Statistics| {
            let difference = &statistics.covariance - &whole.covariance;
            assert!(difference.norm_max() < 1e-11, "{}", difference.norm_max());
            assert!(statistics.mean.iter().zip(&whole.mean).all(|(a, b)| (a - b).abs() < 1e-12 * b.abs()));
        };
        let collect = |data: &[f32], rows: usize| {
            let mut moments = Moments::new(16);
            data.chunks(16 * rows).for_each(|batch| moments.push(batch).unwrap());
            moments
        };
        for rows in [1, 7, 96, 1000] {
            agree(&collect(&f2.data, rows).statistics().unwrap());
        }
        let shards: Vec<_> = f2.data.chunks(16 * 37).map(|shard| collect(shard, 10)).collect();
        let merged = shards.iter().fold(Moments::new(16), |mut all, shard| {
            all.merge(shard).unwrap();
            all
        });
        assert_eq!(merged.count(), 96);
        agree(&merged.statistics().unwrap());
        let backwards: Vec<f32> = f2.data.rchunks(16).flatten().copied().collect();
        agree(&collect(&backwards, 9).statistics().unwrap());
        let mut moments = collect(&f1.data, 80);
        let error = moments.push(&[[0.0; 16], [f32::NAN; 16]].concat()).unwrap_err().to_string();
        assert_eq!(error, "feature 0 of row 81 (image number 81) is NaN");
        assert_eq!(moments.count(), 80);
        assert!(matches!(moments.push(&[0.0; 17]), Err(Error::BatchShape { values: 17, dim: 16 })));
        assert!(matches!(moments.merge(&Moments::new(3)), Err(Error::MomentsShape { left: 16, right: 3 })));
        assert!(collect(&f1.data[..16], 1).statistics().is_err());
    }

    #[test]
    fn conditioning_counts_directions() {
        let mut random = Gaussian::new(6);
        let full = random.features(200, 8, 1.0, 2.0);
        let good = Conditioning::of(&full).unwrap();
        assert_eq!((good.rank, good.dim, good.n, good.too_few_rows()), (8, 8, Some(200), false));
        let from = Conditioning::of_statistics(&Statistics::of(&full).unwrap()).unwrap();
        close("smallest", from.smallest, good.smallest, 1e-10);
        close("largest", from.largest, good.largest, 1e-10);
        // The first feature twice, and fewer rows than dimensions.
        let mut twice = full.clone();
        twice.data.chunks_mut(8).for_each(|row| row[7] = row[0]);
        let twice = Conditioning::of(&twice).unwrap();
        assert_eq!(twice.rank, 7);
        assert!(twice.smallest < 1e-28 * twice.largest);
        let few = Conditioning::of(&random.features(5, 8, 0.0, 1.0)).unwrap();
        assert_eq!((few.rank, few.smallest, few.too_few_rows()), (4, 0.0, true));
        let same = Conditioning::of(&features(&(vec![9, 3], vec![0.5; 27]), 1)).unwrap();
        assert_eq!((same.rank, same.largest), (0, 0.0));
    }

    /// Two samples of one distribution have a FID of c/n; at infinity it is the reference's share.
    #[test]
    fn infinity_takes_the_bias_of_the_generated_side_away() {
        let mut random = Gaussian::new(21);
        let (generated, reference) = (random.features(1500, 12, 0.0, 1.0), random.features(20_000, 12, 0.0, 1.0));
        let plain = fid(&generated, &reference).unwrap();
        let infinity = fid_infinity(&generated, &reference, &InfinityOptions::STANDARD).unwrap();
        assert_eq!(infinity.points.len(), 15);
        assert_eq!((infinity.points[0].0, infinity.points[1].0), (150, 246));
        assert_eq!(infinity.points[14].0, 1500);
        close("last point", infinity.points[14].1, plain, 1e-9);
        assert!(infinity.value.abs() < 0.5 * plain, "{plain} {infinity:?}");
        assert!(infinity.r_squared > 0.9 && infinity.slope > 0.0, "{infinity:?}");
        let two = InfinityOptions { points: 2, ..InfinityOptions::STANDARD };
        assert!(matches!(fid_infinity(&generated, &reference, &two), Err(Error::TooFewPoints { points: 2 })));
    }

    #[test]
    fn a_line_is_found_exactly() {
        let line = extrapolate("fid", 1000, &InfinityOptions::STANDARD, |rows| Ok(3.0 + 50.0 / rows.len() as f64)).unwrap();
        close("value", line.value, 3.0, 1e-12);
        close("slope", line.slope, 50.0, 1e-12);
        assert!(line.std_error < 1e-12 && line.r_squared > 1.0 - 1e-12);
        // Noise of a known size around the line: the textbook error of an intercept.
        let sizes: Vec<f64> = line.points.iter().map(|p| 1.0 / p.0 as f64).collect();
        let mut k = 0;
        let noisy = extrapolate("fid", 1000, &InfinityOptions::STANDARD, |_| {
            k += 1;
            Ok(if k % 2 == 0 { 1.0 } else { -1.0 })
        });
        let noisy = noisy.unwrap();
        let residuals: Vec<f64> = noisy.points.iter().zip(&sizes).map(|(p, x)| p.1 - noisy.value - noisy.slope * x).collect();
        // Normal equations: residuals are orthogonal to the constant and to 1/n.
        assert!(residuals.iter().sum::<f64>().abs() < 1e-12);
        assert!(residuals.iter().zip(&sizes).map(|(r, x)| r * x).sum::<f64>().abs() < 1e-12);
        let design = Mat::from_fn(15, 2, |i, j| if j == 0 { 1.0 } else { sizes[i] });
        let gram = design.transpose() * &design;
        let inverse = gram[(1, 1)] / (gram[(0, 0)] * gram[(1, 1)] - gram[(0, 1)] * gram[(1, 0)]);
        let variance = residuals.iter().map(|r| r * r).sum::<f64>() / 13.0;
        close("standard error", noisy.std_error, (variance * inverse).sqrt(), 1e-9);
    }

    #[test]
    fn degenerate_sets_have_their_distances() {
        let [f1, f2] = formula_features();
        // Every row twice: the same mean, and a scatter twice as large over 2n − 1 degrees.
        let twice = features(&(vec![160, 16], [f1.data.clone(), f1.data.clone()].concat()), 1);
        let factor: f64 = 2.0 * 79.0 / 159.0;
        let trace = Factor::of(&f1).unwrap().trace;
        close("duplicates", fid(&twice, &f1).unwrap(), trace * (1.0 - factor.sqrt()).powi(2), 1e-8);
        // A set without variance is a point.
        let point = features(&(vec![30, 16], vec![0.25; 480]), 1);
        let mean = Factor::of(&f2).unwrap();
        let shift: f64 = mean.mean.iter().map(|m| (m - 0.25).powi(2)).sum();
        close("a point", fid(&point, &f2).unwrap(), shift + mean.trace, 1e-12);
        assert_eq!(fid(&point, &point).unwrap(), 0.0);
        // A constant feature adds nothing.
        let mut constant = [f1.clone(), f2.clone()];
        constant.iter_mut().for_each(|set| set.data.chunks_mut(16).for_each(|row| row[3] = 8.0));
        let without = [&f1, &f2].map(|set| {
            let rows: Vec<f32> = set.data.chunks(16).flat_map(|row| [&row[..3], &row[4..]].concat()).collect();
            features(&(vec![set.len(), 15], rows), 1)
        });
        close("constant", fid(&constant[0], &constant[1]).unwrap(), fid(&without[0], &without[1]).unwrap(), 1e-9);
    }

    #[test]
    fn bad_sets_are_refused() {
        let [f1, f2] = formula_features();
        let one = features(&(vec![1, 16], f1.data[..16].into()), 1);
        let message = fid(&one, &f2).unwrap_err().to_string();
        assert_eq!(message, "fid needs at least 2 images on each side, found 1 and 96");
        let mut broken = f1.clone();
        broken.data[3 * 16 + 5] = f32::NAN;
        let message = fid(&broken, &f2).unwrap_err().to_string();
        assert_eq!(message, "feature 5 of row 3 (image 3) is NaN");
        let mut other = f2.clone();
        other.provenance.weights = "other".to_owned();
        assert!(matches!(fid(&f1, &other), Err(Error::Incomparable { what: "weights", .. })));
        let negative = Statistics::new(vec![0.0], &[-1.0]).unwrap();
        assert!(matches!(fid_from_statistics(&negative, &negative), Err(Error::NotPositive { .. })));
    }

    /// Two sets of three images that vary in directions at right angles: the product of their covariances is rounding, of either sign,
    /// and the distance that of the means and the traces.
    #[test]
    fn sets_may_vary_in_different_directions() {
        let angle = |i: usize| (i as f64 * 0.7).sin();
        let d = 48;
        let direction: Vec<f64> = (0..d).map(angle).collect();
        let other: Vec<f64> = (0..d).map(|i| if i % 2 == 0 { -angle(i + 1) } else { angle(i - 1) }).collect();
        let outer = |v: &[f64], scale: f64| v.iter().flat_map(|a| v.iter().map(move |b| a * b * scale)).collect::<Vec<f64>>();
        let [x, y] = [(&direction, 1e-5), (&other, 3e-6)].map(|(v, scale)| Statistics::new(vec![0.0; d], &outer(v, scale)).unwrap());
        let expected = x.trace() + y.trace();
        assert!((fid_from_statistics(&x, &y).unwrap() - expected).abs() < 1e-6 * expected);
    }
}
