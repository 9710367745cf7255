//! Kernel distances: the squared maximum mean discrepancy with k(x, y) = (x·y/D + 1)³ (KID).
//!
//! Bińkowski et al., arXiv:1801.01401, sec. 4. Two estimators of the same number:
//!
//! - [`kid`]: mean over random subsets, equal to torch-fidelity to the last subset index. Its `std`
//!   is the spread between subsets, *not* the uncertainty of the mean.
//! - [`kid_u`]: the U-statistic of all images; no randomness, smallest variance. Prefer it for
//!   decisions, with an interval from [`crate::estimate()`].
//!
//! Both are unbiased for independent rows, so values of different n compare, and both can be slightly
//! negative. Crops of one image are not independent: they bias either by O(crops/n).

use faer::{Mat, MatRef, Scale};
use serde::{Deserialize, Serialize};

use crate::frechet::require;
use crate::random::RandomState;
use crate::{Error, FeatureSet, Result};

/// Rows of a tile of a kernel matrix that is only summed.
const TILE: usize = 1024;

/// Largest number of kernel values held at once when subsets are cut from the whole matrix: 1 GiB.
const WHOLE_LIMIT: usize = 1 << 27;

/// How [`kid`] draws its subsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KidOptions {
    /// Number of subsets.
    pub subsets: usize,
    /// Rows per subset and side, drawn without replacement.
    pub subset_size: usize,
    /// Seed of numpy's legacy generator.
    pub seed: u32,
    /// Take smaller subsets when a set has fewer rows (as clean-fid does) instead of an error.
    #[serde(default)]
    pub shrink: bool,
}

impl KidOptions {
    /// torch-fidelity's defaults: 100 subsets of 1000, seed 2020, an error when rows are too few.
    pub const TORCH_FIDELITY: Self = Self { subsets: 100, subset_size: 1000, seed: 2020, shrink: false };
}

/// Result of [`kid`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kid {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets, divided by their number (numpy's default).
    pub std: f64,
    /// Rows per subset actually used.
    pub subset_size: usize,
}

/// KID as torch-fidelity computes it; `generated` is its first input, which is drawn first.
pub fn kid(generated: &FeatureSet, reference: &FeatureSet, options: &KidOptions) -> Result<Kid> {
    generated.check_comparable(reference)?;
    let (x, y) = (generated.matrix()?, reference.matrix()?);
    let (n, m) = (x.nrows(), y.nrows());
    let size = match options.shrink {
        true => options.subset_size.min(n).min(m),
        false => options.subset_size,
    };
    if options.subsets == 0 || options.subset_size < 2 {
        return Err(Error::BadSubsets { subsets: options.subsets, size: options.subset_size });
    }
    require("kid", size.max(2), n, m)?;
    // Small sets: every kernel value is needed many times, so compute it once.
    let entries = n * n + m * m + n * m;
    let whole =
        (entries <= 3 * options.subsets * size * size && entries <= WHOLE_LIMIT).then(|| [kernel(&x, &x), kernel(&y, &y), kernel(&x, &y)]);
    let subsets = subset_indices(n, m, size, options);
    let values: Vec<f64> = subsets
        .map(|[i, j]| match &whole {
            Some([xx, yy, xy]) => {
                let pick = |k: &Mat<f64>, i: &[usize], j: &[usize]| Mat::from_fn(i.len(), j.len(), |a, b| k[(i[a], j[b])]);
                discrepancy(&pick(xx, &i, &i), &pick(yy, &j, &j), &pick(xy, &i, &j))
            }
            None => {
                let (x, y) = (rows(&x, &i), rows(&y, &j));
                discrepancy(&kernel(&x, &x), &kernel(&y, &y), &kernel(&x, &y))
            }
        })
        .collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    Ok(Kid { mean, std: variance.sqrt(), subset_size: size })
}

/// The subsets of torch-fidelity: per subset first the generated set's rows, then the reference's.
fn subset_indices(n: usize, m: usize, size: usize, options: &KidOptions) -> impl Iterator<Item = [Vec<usize>; 2]> {
    let mut state = RandomState::new(options.seed);
    (0..options.subsets).map(move |_| [n, m].map(|n| state.choice(n as u32, size)))
}

/// The unbiased estimate from three kernel matrices: x–x, y–y, x–y.
fn discrepancy(xx: &Mat<f64>, yy: &Mat<f64>, xy: &Mat<f64>) -> f64 {
    let off_diagonal = |k: &Mat<f64>| {
        let n = k.nrows() as f64;
        (k.sum() - k.diagonal().column_vector().sum()) / (n * (n - 1.0))
    };
    off_diagonal(xx) + off_diagonal(yy) - 2.0 * xy.sum() / (xy.nrows() * xy.ncols()) as f64
}

/// KID by the U-statistic of all rows.
pub fn kid_u(generated: &FeatureSet, reference: &FeatureSet) -> Result<f64> {
    generated.check_comparable(reference)?;
    let (x, y) = (generated.matrix()?, reference.matrix()?);
    require("kid", 2, x.nrows(), y.nrows())?;
    let (x_blocks, y_blocks) = (vec![0; x.nrows()], vec![0; y.nrows()]);
    Ok(KernelSums::new(&x, &x_blocks, &y, &y_blocks, 1).kid_u(None, None))
}

/// Sums of the kernel over pairs of blocks, from which any U-statistic with blocks left out follows.
pub(crate) struct KernelSums {
    xx: Within,
    yy: Within,
    /// `xy[(b, c)]`: sum over x in block b and y in block c.
    xy: Mat<f64>,
}

/// Sums over ordered pairs of distinct rows of one set.
struct Within {
    sums: Mat<f64>,
    counts: Vec<usize>,
}

impl Within {
    fn new(parts: &[Mat<f64>]) -> Self {
        let mut sums = Mat::zeros(parts.len(), parts.len());
        for (b, x) in parts.iter().enumerate() {
            for (c, y) in parts[..=b].iter().enumerate() {
                let mut sum = kernel_sum(x, y);
                if b == c {
                    sum -= diagonal_sum(x);
                }
                sums[(b, c)] = sum;
                sums[(c, b)] = sum;
            }
        }
        Self { sums, counts: parts.iter().map(Mat::nrows).collect() }
    }

    /// Number of rows and mean over their distinct pairs, block `without` left out.
    fn mean(&self, without: Option<usize>) -> (f64, f64) {
        let mut sum = self.sums.sum();
        let mut n = self.counts.iter().sum::<usize>() as f64;
        if let Some(b) = without {
            sum += self.sums[(b, b)] - 2.0 * self.sums.row(b).sum();
            n -= self.counts[b] as f64;
        }
        (n, sum / (n * (n - 1.0)))
    }
}

impl KernelSums {
    /// `x_blocks[i]` in `0..blocks` is the block of row `i` of `x`; likewise for `y`.
    pub(crate) fn new(x: &Mat<f64>, x_blocks: &[usize], y: &Mat<f64>, y_blocks: &[usize], blocks: usize) -> Self {
        let split = |x: &Mat<f64>, of: &[usize]| -> Vec<Mat<f64>> {
            let members = |b| (0..x.nrows()).filter(|i| of[*i] == b).collect::<Vec<_>>();
            (0..blocks).map(|b| rows(x, &members(b))).collect()
        };
        let (x, y) = (split(x, x_blocks), split(y, y_blocks));
        let xy = Mat::from_fn(blocks, blocks, |b, c| kernel_sum(&x[b], &y[c]));
        Self { xx: Within::new(&x), yy: Within::new(&y), xy }
    }

    /// The U-statistic without a block of x and a block of y.
    pub(crate) fn kid_u(&self, without_x: Option<usize>, without_y: Option<usize>) -> f64 {
        let (n, xx) = self.xx.mean(without_x);
        let (m, yy) = self.yy.mean(without_y);
        let mut cross = self.xy.sum();
        if let Some(b) = without_x {
            cross -= self.xy.row(b).sum();
        }
        if let Some(c) = without_y {
            cross -= self.xy.col(c).sum();
        }
        if let (Some(b), Some(c)) = (without_x, without_y) {
            cross += self.xy[(b, c)];
        }
        xx + yy - 2.0 * cross / (n * m)
    }
}

/// k(x, y) of all pairs of rows: `(x rows, y rows)`.
fn kernel(x: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
    kernel_ref(x.as_ref(), y.as_ref())
}

fn kernel_ref(x: MatRef<'_, f64>, y: MatRef<'_, f64>) -> Mat<f64> {
    let mut k = x * y.transpose() * Scale(1.0 / x.ncols() as f64);
    for column in k.as_mut().col_iter_mut() {
        column.iter_mut().for_each(|v| *v = cubed(*v + 1.0));
    }
    k
}

fn cubed(v: f64) -> f64 {
    v * v * v
}

/// Σ k(x, y) over all pairs of rows, a tile at a time.
fn kernel_sum(x: &Mat<f64>, y: &Mat<f64>) -> f64 {
    let tiles = |n: usize| (0..n).step_by(TILE).map(move |i| (i, TILE.min(n - i)));
    tiles(x.nrows())
        .flat_map(|(i, rows)| tiles(y.nrows()).map(move |(j, columns)| (i, rows, j, columns)))
        .map(|(i, rows, j, columns)| kernel_ref(x.subrows(i, rows), y.subrows(j, columns)).sum())
        .sum()
}

/// Σ k(x, x) over the rows.
fn diagonal_sum(x: &Mat<f64>) -> f64 {
    x.row_iter().map(|row| cubed(row.squared_norm_l2() / row.ncols() as f64 + 1.0)).sum()
}

fn rows(x: &Mat<f64>, indices: &[usize]) -> Mat<f64> {
    Mat::from_fn(indices.len(), x.ncols(), |i, j| x[(indices[i], j)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{close, features, formula_features, golden, indices, json, tensors};

    #[test]
    fn reference_values() {
        let golden = golden();
        let [f1, f2] = formula_features();
        let options = KidOptions { subsets: 10, subset_size: 50, seed: 2020, shrink: false };
        let result = kid(&f1, &f2, &options).unwrap();
        let expected = |i: usize| golden["kid_f64_subsets10_size50"][i].as_f64().unwrap();
        close("kid mean", result.mean, expected(0), 1e-10);
        close("kid std", result.std, expected(1), 1e-10);
        let full = golden["kid_full_unbiased_f64"].as_f64().unwrap();
        close("kid_u", kid_u(&f1, &f2).unwrap(), full, 1e-10);
    }

    #[test]
    fn torch_fidelity_subsets_and_values() {
        let cases = json("fid_kid.json");
        let sets = tensors("fid_kid.safetensors");
        for case in ["a500x64", "b300x512_rankdef"] {
            let [f1, f2] = ["f1", "f2"].map(|f| features(&sets[&format!("{case}.{f}")], 1));
            let n = f1.len();
            for (kind, name, subsets, subset_size) in
                [("kid_subsets", "subsets S=10 m=100", 10, 100), ("kid_single_full", &*format!("single_full S=1 m={n}"), 1, n)]
            {
                let options = KidOptions { subsets, subset_size, seed: 2020, shrink: false };
                for (s, drawn) in subset_indices(n, n, subset_size, &options).enumerate() {
                    for (side, drawn) in ["idx1", "idx2"].iter().zip(drawn) {
                        let stored = indices("fid_kid.safetensors", &format!("{case}.{kind}.{side}"));
                        assert_eq!(drawn, stored[s * subset_size..][..subset_size], "{case} {kind}");
                    }
                }
                let result = kid(&f1, &f2, &options).unwrap();
                let stored = |dtype: &str| {
                    let value = &cases["cases"][case][format!("torch_fidelity.kid {name} {dtype}")];
                    ["mean", "std"].map(|s| value[format!("kernel_inception_distance_{s}")].as_f64().unwrap())
                };
                let [mean, std] = stored("fp64");
                close(&format!("{case} {kind} mean"), result.mean, mean, 1e-9);
                assert!((result.std - std).abs() < 1e-9, "{case} {kind} std");
                // The shipped tool computes in f32; the difference is its rounding.
                assert!((result.mean - stored("fp32")[0]).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn whole_and_gathered_kernels_agree() {
        let [f1, f2] = formula_features();
        let options = |subsets| KidOptions { subsets, subset_size: 20, seed: 1, shrink: false };
        // One subset of 20 is cheaper than the whole matrix, a hundred are not.
        let one = kid(&f1, &f2, &options(1)).unwrap().mean;
        let [i, j] = subset_indices(80, 96, 20, &options(1)).next().unwrap();
        let (x, y) = (rows(&f1.matrix().unwrap(), &i), rows(&f2.matrix().unwrap(), &j));
        close("one", one, discrepancy(&kernel(&x, &x), &kernel(&y, &y), &kernel(&x, &y)), 1e-12);
        assert!(kid(&f1, &f2, &options(100)).unwrap().std > 0.0);
    }

    #[test]
    fn too_few_rows_are_an_error_unless_shrinking_is_asked_for() {
        let [f1, f2] = formula_features();
        let message = kid(&f1, &f2, &KidOptions::TORCH_FIDELITY).unwrap_err().to_string();
        assert_eq!(message, "kid needs at least 1000 images on each side, found 80 and 96");
        let options = KidOptions { shrink: true, subsets: 3, ..KidOptions::TORCH_FIDELITY };
        assert_eq!(kid(&f1, &f2, &options).unwrap().subset_size, 80);
        let one = features(&(vec![1, 16], f1.data[..16].into()), 1);
        assert!(kid(&one, &f2, &options).is_err());
        assert!(kid_u(&one, &f2).is_err());
    }

    #[test]
    fn leaving_a_block_out_equals_not_having_it() {
        let [f1, f2] = formula_features();
        let (x, y) = (f1.matrix().unwrap(), f2.matrix().unwrap());
        let blocks = |n: usize| (0..n).map(|i| i % 7).collect::<Vec<_>>();
        let sums = KernelSums::new(&x, &blocks(80), &y, &blocks(96), 7);
        close("all", sums.kid_u(None, None), kid_u(&f1, &f2).unwrap(), 1e-11);
        let keep = |x: &Mat<f64>| rows(x, &(0..x.nrows()).filter(|i| i % 7 != 2).collect::<Vec<_>>());
        let part = |x: &Mat<f64>, y: &Mat<f64>| KernelSums::new(x, &vec![0; x.nrows()], y, &vec![0; y.nrows()], 1).kid_u(None, None);
        close("x", sums.kid_u(Some(2), None), part(&keep(&x), &y), 1e-11);
        close("both", sums.kid_u(Some(2), Some(2)), part(&keep(&x), &keep(&y)), 1e-11);
    }
}
