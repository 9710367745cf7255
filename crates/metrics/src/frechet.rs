//! Fréchet distance between Gaussians fitted to two feature sets (FID), in `f64`.
//!
//! FID = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, with Σ divided by n − 1 as in every tool.
//! (Heusel et al., arXiv:1706.08500, eq. 6.)
//!
//! From features, the last trace is the nuclear norm of X Yᵀ / √((n−1)(m−1)) with X, Y centred: no
//! covariance is formed, so nothing is squared and rank-deficient sets (n ≤ dimension) lose no digits.
//! A set with more rows than dimensions is first replaced by the triangular factor of its QR
//! decomposition, which has the same nuclear norm. Tools that take eigenvalues or matrix roots of
//! Σ₁Σ₂ are off by about 2e-6 relative for rank-deficient sets, and agree otherwise.
//!
//! From statistics, tr (Σ₁Σ₂)^½ = Σ √λ(S Σ₂ S) with S = Σ₁^½; both decompositions are symmetric.

use faer::reborrow::{Reborrow, ReborrowMut};
use faer::{Mat, Side};

use crate::{Error, FeatureSet, Result};

/// FID of two feature sets.
///
/// FID is biased by about c/n, so values of different n do not compare; [`crate::kid_u`] does.
pub fn fid(left: &FeatureSet, right: &FeatureSet) -> Result<f64> {
    left.check_comparable(right)?;
    let (x, y) = (left.matrix()?, right.matrix()?);
    require("fid", 2, x.nrows(), y.nrows())?;
    let (mean_x, x) = centred(x);
    let (mean_y, y) = centred(y);
    let (degrees_x, degrees_y) = ((x.nrows() - 1) as f64, (y.nrows() - 1) as f64);
    let trace_x = x.squared_norm_l2() / degrees_x;
    let trace_y = y.squared_norm_l2() / degrees_y;
    let cross = compact(x) * compact(y).transpose();
    let singular = cross.singular_values().map_err(|_| Error::NoConvergence { what: "singular value decomposition" })?;
    let root = singular.iter().sum::<f64>() / (degrees_x * degrees_y).sqrt();
    Ok(assemble(squared_distance(&mean_x, &mean_y), trace_x, trace_y, root))
}

/// Mean and covariance of a feature set.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) covariance: Mat<f64>,
}

impl Statistics {
    /// From values computed elsewhere: `mean` of D values, `covariance` of D·D, divided by n − 1.
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
    pub fn of(set: &FeatureSet) -> Result<Self> {
        let x = set.matrix()?;
        require("fid", 2, x.nrows(), x.nrows())?;
        let (mean, x) = centred(x);
        let covariance = x.transpose() * &x * faer::Scale(1.0 / (x.nrows() - 1) as f64);
        Ok(Self { mean, covariance })
    }

    fn trace(&self) -> f64 {
        self.covariance.diagonal().column_vector().iter().sum()
    }
}

/// FID of two sets of which only the statistics are at hand.
///
/// For rank-deficient covariances this route, unlike [`fid`], carries the noise of the square roots
/// of rounding-sized eigenvalues, about 2e-6 relative.
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
        let eigen =
            statistics.covariance.self_adjoint_eigen(Side::Lower).map_err(|_| Error::NoConvergence { what: "eigenvalue decomposition" })?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        check_positive(&values)?;
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
        check_positive(&values)?;
        let root = values.iter().map(|v| v.max(0.0).sqrt()).sum();
        let shift = squared_distance(&self.statistics.mean, &other.mean);
        Ok(assemble(shift, self.statistics.trace(), other.trace(), root))
    }
}

/// Negative eigenvalues of rounding size are zeros; larger ones mean that the input is no covariance.
fn check_positive(values: &[f64]) -> Result<()> {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(0.0, f64::max);
    if smallest < -1e-7 * largest || (largest == 0.0 && smallest < 0.0) {
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
    let n = x.nrows() as f64;
    let mut means = Vec::with_capacity(x.ncols());
    for mut column in x.as_mut().col_iter_mut() {
        let mean = column.rb().iter().sum::<f64>() / n;
        column.rb_mut().iter_mut().for_each(|v| *v -= mean);
        means.push(mean);
    }
    (means, x)
}

/// A matrix with the same Gram matrix XᵀX and at most as many rows as columns.
fn compact(x: Mat<f64>) -> Mat<f64> {
    if x.nrows() <= x.ncols() { x } else { x.qr().thin_R().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{close, features, formula_features, golden, json, tensors};

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
}
