//! Kernel distances: squared maximum mean discrepancies.
//!
//! | number | kernel | estimator | reference |
//! | --- | --- | --- | --- |
//! | [`kid`] | (x·y/D + 1)³ | unbiased, mean over random subsets | torch-fidelity 0.4.0, clean-fid 0.1.35 |
//! | [`kid_u`] | (x·y/D + 1)³ | unbiased, all pairs | Bińkowski et al., arXiv:1801.01401, sec. 4 |
//! | [`cmmd`] | exp(−\|x − y\|²/(2·10²)) | biased (with the diagonal), all pairs, × 1000 | Jayasumana et al., arXiv:2401.09603 |
//!
//! [`kid`] equals its reference to the last subset index. Its `std` is the spread between subsets, *not*
//! the uncertainty of the mean. [`kid_u`] has no randomness and the smallest variance: prefer it for
//! decisions, with an interval from [`crate::estimate()`]. Both are unbiased for independent rows, so
//! values of different n compare, and both can be slightly negative. Crops of one image are not
//! independent: they bias either by O(crops/n). [`cmmd`] is biased by O(1/n) and never negative.
//!
//! # Precision
//!
//! Up to [`EXACT_LIMIT`] multiplications everything is `f64`. Beyond, the inner products of centred rows
//! are `f32` matrix products, and all that follows (kernel, sums) is `f64`. The rounding of one product
//! is about 1e-7 of |x||y| and has no preferred sign, so it averages out over the pairs: on the stored
//! references (KID 0.21 to 0.32) the routes differ by at most 1.2e-9, 4e-9 relative, and a test holds them
//! to 1e-8 relative. The tools' own single precision costs more than that.

use std::ops::Range;

use faer::Mat;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::frechet::require;
use crate::products::{Real, Rows, Source, tiles};
use crate::random::RandomState;
use crate::{Error, FeatureSet, Result};

/// Rows and columns of a tile of a kernel matrix: 1 MiB of `f32` per thread.
const TILE: usize = 512;

/// Columns of a strip under the diagonal of a subset's matrix.
const STRIP: usize = 128;

/// Multiplications up to which products are `f64`, about a tenth of a second.
const EXACT_LIMIT: f64 = 4e9;

/// What CMMD is multiplied by.
const CMMD_SCALE: f64 = 1000.0;

/// A positive definite kernel of two rows of D features.
///
/// Example: [`kid`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// (x·y/D + 1)³, KID's.
    #[default]
    Cubic,
    /// exp(−|x − y|²/(2σ²)).
    Rbf {
        /// σ, in the units of the features; not zero.
        sigma: f64,
    },
}

impl Kernel {
    /// CMMD's kernel, for rows of length one.
    pub const CMMD: Self = Self::Rbf { sigma: 10.0 };

    fn validate(self) -> Result<()> {
        match self {
            Self::Rbf { sigma } if !(sigma > 0.0 && sigma.is_finite()) => Err(Error::BadKernel { sigma }),
            _ => Ok(()),
        }
    }

    /// Kernel values of row `i` of `x` with `columns` of `y` from the products of their centred rows.
    fn row<T: Real>(self, x: &Rows<T>, i: usize, y: &Rows<T>, columns: &Range<usize>, products: &[T], values: &mut [f64]) {
        let unit = x.unit;
        match self {
            Self::Cubic => {
                let (inverse, own) = (1.0 / x.dim as f64, x.offsets[i]);
                for ((value, product), offset) in values.iter_mut().zip(products).zip(&y.offsets[columns.clone()]) {
                    let product: f64 = (*product).into();
                    *value = cubed((product * unit + own + offset) * inverse + 1.0);
                }
            }
            Self::Rbf { sigma } => {
                let (factor, own) = (-0.5 / (sigma * sigma), x.norms[i]);
                for ((value, product), norm) in values.iter_mut().zip(products).zip(&y.norms[columns.clone()]) {
                    let product: f64 = (*product).into();
                    *value = (factor * (own + norm - 2.0 * unit * product).max(0.0)).exp();
                }
            }
        }
    }

    /// k(x, x) of row `i`.
    fn diagonal<T: Real>(self, x: &Rows<T>, i: usize) -> f64 {
        match self {
            Self::Cubic => cubed((x.norms[i] + 2.0 * x.offsets[i]) / x.dim as f64 + 1.0),
            Self::Rbf { .. } => 1.0,
        }
    }
}

fn cubed(v: f64) -> f64 {
    v * v * v
}

/// Which set's rows are drawn first for a subset.
///
/// Example: [`kid`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrawOrder {
    /// The generated set's, as in torch-fidelity.
    #[default]
    GeneratedFirst,
    /// The reference's, as in clean-fid (called with the generated set as its first).
    ReferenceFirst,
}

/// How [`kid`] draws its subsets, and the kernel.
///
/// Example: [`kid`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Which side is drawn first.
    #[serde(default)]
    pub draw: DrawOrder,
    /// The kernel.
    #[serde(default)]
    pub kernel: Kernel,
}

impl KidOptions {
    /// torch-fidelity's defaults: 100 subsets of 1000, seed 2020, an error when rows are too few.
    pub const TORCH_FIDELITY: Self =
        Self { subsets: 100, subset_size: 1000, seed: 2020, shrink: false, draw: DrawOrder::GeneratedFirst, kernel: Kernel::Cubic };

    /// clean-fid's: subsets shrink with the sets and the reference is drawn first. clean-fid itself
    /// draws from numpy's global generator; the seed makes this what `np.random.seed(0)` would give.
    pub const CLEAN_FID: Self = Self { seed: 0, shrink: true, draw: DrawOrder::ReferenceFirst, ..Self::TORCH_FIDELITY };
}

/// Result of [`kid`].
///
/// Example: [`kid`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kid {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets, divided by their number (numpy's default).
    pub std: f64,
    /// Rows per subset actually used.
    pub subset_size: usize,
}

/// KID over random subsets, as torch-fidelity and clean-fid compute it.
///
/// Memory: both sets in `f32`, plus a tile or the rows of one subset per thread.
///
/// ```
/// use scalebench_metrics::{DrawOrder, FeatureSet, Kernel, Kid, KidOptions, cmmd, kid, kid_u};
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// let at = |shift: f32| set(&[[0.0, 1.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]].map(|[x, y]: [f32; 2]| vec![x + shift, y]));
/// let (generated, reference) = (at(1.0)?, at(0.0)?);
/// // One subset of all rows is the estimator of all pairs.
/// let options = KidOptions { subsets: 1, subset_size: 4, draw: DrawOrder::ReferenceFirst, kernel: Kernel::Cubic, ..KidOptions::TORCH_FIDELITY };
/// let Kid { mean, std, .. } = kid(&generated, &reference, &options)?;
/// assert!((mean - kid_u(&generated, &reference)?).abs() < 1e-9);
/// assert_eq!(std, 0.0);
/// assert!(cmmd(&generated, &generated)? < 1e-9);
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn kid(generated: &FeatureSet, reference: &FeatureSet, options: &KidOptions) -> Result<Kid> {
    generated.check_comparable(reference)?;
    options.kernel.validate()?;
    let (x, y) = (Source::of(generated)?, Source::of(reference)?);
    let (n, m) = (x.len(), y.len());
    let size = match options.shrink {
        true => options.subset_size.min(n).min(m),
        false => options.subset_size,
    };
    if options.subsets == 0 || options.subset_size < 2 {
        return Err(Error::BadSubsets { subsets: options.subsets, size: options.subset_size });
    }
    require("kid", size.max(2), n, m)?;
    let subsets: Vec<_> = subset_indices(n, m, size, options).collect();
    let count = options.subsets as f64;
    let gathered = count * 2.0 * square(size);
    let whole = (square(n) + square(m)) / 2.0 + n as f64 * m as f64;
    let route = if whole <= gathered { Route::Whole } else { Route::Gathered };
    let values = match whole.min(gathered) * x.dim() as f64 <= EXACT_LIMIT {
        true => discrepancies(Rows::<f64>::pair(x, y), options.kernel, &subsets, route),
        false => discrepancies(Rows::<f32>::pair(x, y), options.kernel, &subsets, route),
    };
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    Ok(Kid { mean, std: variance.sqrt(), subset_size: size })
}

fn square(n: usize) -> f64 {
    n as f64 * n as f64
}

/// The subsets of the reference tools: `[generated, reference]` row indices, in the order of their draws.
fn subset_indices(n: usize, m: usize, size: usize, options: &KidOptions) -> impl Iterator<Item = [Vec<usize>; 2]> {
    let mut state = RandomState::new(options.seed);
    let draw = options.draw;
    (0..options.subsets).map(move |_| match draw {
        DrawOrder::GeneratedFirst => [n, m].map(|n| state.choice(n as u32, size)),
        DrawOrder::ReferenceFirst => {
            let [y, x] = [m, n].map(|n| state.choice(n as u32, size));
            [x, y]
        }
    })
}

/// The two ways to the sums over subsets; they differ in cost only.
#[derive(Clone, Copy)]
enum Route {
    /// Every kernel value once, added to all subsets that hold its pair. For subsets that overlap.
    Whole,
    /// The rows of every subset by themselves.
    Gathered,
}

/// The unbiased estimate of every subset.
fn discrepancies<T: Real>([x, y]: [Rows<T>; 2], kernel: Kernel, subsets: &[[Vec<usize>; 2]], route: Route) -> Vec<f64> {
    let size = subsets.first().map_or(0, |[i, _]| i.len()) as f64;
    let assemble = |[xx, yy, xy]: [f64; 3]| (xx + yy) / (size * (size - 1.0)) - 2.0 * xy / (size * size);
    match route {
        Route::Whole => {
            let [mx, my] = [(0, x.len()), (1, y.len())].map(|(side, n)| Members::new(n, subsets.iter().map(|s| s[side].as_slice())));
            let xx = subset_sums(kernel, (&x, &mx), None);
            let yy = subset_sums(kernel, (&y, &my), None);
            let xy = subset_sums(kernel, (&x, &mx), Some((&y, &my)));
            (0..subsets.len()).map(|s| assemble([xx[s], yy[s], xy[s]])).collect()
        }
        Route::Gathered => {
            let one = |[i, j]: &[Vec<usize>; 2]| {
                let (x, y) = (x.select(i), y.select(j));
                // Narrow columns under the diagonal: little of the upper half is computed in vain.
                let within = |x: &Rows<T>| tiles(x.len(), STRIP).map(|j| tile_sum(kernel, x, j.start..x.len(), None, j)).sum::<f64>();
                let between = tiles(y.len(), TILE).map(|j| tile_sum(kernel, &x, 0..x.len(), Some(&y), j)).sum();
                assemble([within(&x), within(&y), between])
            };
            subsets.par_iter().map(one).collect()
        }
    }
}

/// The tiles of an n × m matrix, or those of the lower half of a symmetric one.
fn tile_pairs(n: usize, m: Option<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    tiles(n, TILE).flat_map(move |i| {
        let end = i.end;
        tiles(m.unwrap_or(end), TILE).map(move |j| (i.clone(), j))
    })
}

/// Calls `row(i, kernel values of row i with the columns)` for every row of a tile.
///
/// `y` is `None` for a tile of the kernel matrix of `x` with itself; its diagonal is given as zero.
fn each_row<T: Real>(
    kernel: Kernel,
    x: &Rows<T>,
    rows: Range<usize>,
    y: Option<&Rows<T>>,
    columns: Range<usize>,
    mut row: impl FnMut(usize, &[f64]),
) {
    let other = y.unwrap_or(x);
    let mut products = Vec::new();
    x.product(rows.clone(), other, columns.clone(), &mut products);
    let mut values = vec![0.0; columns.len()];
    for (i, products) in rows.zip(products.chunks_exact(columns.len())) {
        kernel.row(x, i, other, &columns, products, &mut values);
        if y.is_none() && columns.contains(&i) {
            values[i - columns.start] = 0.0;
        }
        row(i, &values);
    }
}

/// Σ k over a tile; what lies below the diagonal of a symmetric matrix counts for its mirror image, too.
fn tile_sum<T: Real>(kernel: Kernel, x: &Rows<T>, rows: Range<usize>, y: Option<&Rows<T>>, columns: Range<usize>) -> f64 {
    let mut sum = 0.0;
    let mirrored = |i: usize| y.is_none() && !columns.contains(&i);
    each_row(kernel, x, rows, y, columns.clone(), |i, values| sum += if mirrored(i) { 2.0 } else { 1.0 } * lanes(values));
    sum
}

/// A sum in eight interleaved parts, which the compiler can vectorise.
fn lanes(values: &[f64]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v);
    }
    sums.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// Which subsets hold which rows.
struct Members {
    /// Per row, the subsets that hold it.
    subsets_of: Vec<Vec<u32>>,
    /// `in_tile[t][s]`: the rows of subset s in tile t, counted from the tile's first.
    in_tile: Vec<Vec<Vec<u32>>>,
}

impl Members {
    fn new<'a>(n: usize, subsets: impl Iterator<Item = &'a [usize]>) -> Self {
        let subsets: Vec<_> = subsets.collect();
        let mut subsets_of = vec![Vec::new(); n];
        let mut in_tile = vec![vec![Vec::new(); subsets.len()]; n.div_ceil(TILE)];
        for (s, subset) in subsets.iter().enumerate() {
            for &i in *subset {
                subsets_of[i].push(s as u32);
                in_tile[i / TILE][s].push((i % TILE) as u32);
            }
        }
        Self { subsets_of, in_tile }
    }
}

/// Per subset, Σ k over its pairs: distinct pairs of one set, or all pairs of two.
fn subset_sums<T: Real>(kernel: Kernel, (x, mx): (&Rows<T>, &Members), y: Option<(&Rows<T>, &Members)>) -> Vec<f64> {
    let count = mx.in_tile.first().map_or(0, Vec::len);
    let pairs: Vec<_> = tile_pairs(x.len(), y.map(|(y, _)| y.len())).collect();
    let tile = |(rows, columns): &(Range<usize>, Range<usize>)| {
        let members = &y.map_or(mx, |(_, my)| my).in_tile[columns.start / TILE];
        let factor = if y.is_none() && rows.start != columns.start { 2.0 } else { 1.0 };
        let mut sums = vec![0.0; count];
        each_row(kernel, x, rows.clone(), y.map(|(y, _)| y), columns.clone(), |i, values| {
            for &s in &mx.subsets_of[i] {
                let sum: f64 = members[s as usize].iter().map(|j| values[*j as usize]).sum();
                sums[s as usize] += factor * sum;
            }
        });
        sums
    };
    // Tiles finish in any order and are added in theirs.
    let parts: Vec<Vec<f64>> = pairs.par_iter().map(tile).collect();
    let mut total = vec![0.0; count];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
    }
    total
}

/// KID by the U-statistic of all rows.
///
/// Example: [`kid`].
pub fn kid_u(generated: &FeatureSet, reference: &FeatureSet) -> Result<f64> {
    generated.check_comparable(reference)?;
    let (x, y) = (Source::of(generated)?, Source::of(reference)?);
    require("kid", 2, x.len(), y.len())?;
    let (x_blocks, y_blocks) = (vec![0; x.len()], vec![0; y.len()]);
    Ok(KernelSums::with_kernel(Kernel::Cubic, (x, &x_blocks), (y, &y_blocks), 1).kid_u(None, None))
}

/// CMMD: 1000 times the biased squared discrepancy of the directions of all rows (CLIP embeddings).
///
/// Rows are divided by their length here; a row of zeros is an error. Values are at least zero, and
/// exactly zero for equal sets up to rounding (1e-9).
///
/// Example: [`kid`].
pub fn cmmd(generated: &FeatureSet, reference: &FeatureSet) -> Result<f64> {
    generated.check_comparable(reference)?;
    require("cmmd", 1, generated.len(), reference.len())?;
    let (x, y) = (directions(generated)?, directions(reference)?);
    let (x_blocks, y_blocks) = (vec![0; x.nrows()], vec![0; y.nrows()]);
    Ok(KernelSums::cmmd_sums(&x, &x_blocks, &y, &y_blocks, 1).cmmd(None, None))
}

/// Rows divided by their Euclidean length, as CMMD needs them.
pub(crate) fn directions(set: &FeatureSet) -> Result<Mat<f64>> {
    let mut x = set.matrix()?;
    for (i, row) in x.as_mut().row_iter_mut().enumerate() {
        let length = row.norm_l2();
        if length == 0.0 {
            return Err(Error::NoDirection { row: i, name: set.names[i].clone() });
        }
        row.iter_mut().for_each(|v| *v /= length);
    }
    Ok(x)
}

/// Sums of a kernel over pairs of blocks, from which the statistics with blocks left out follow.
pub(crate) struct KernelSums {
    xx: Within,
    yy: Within,
    /// `xy[(b, c)]`: sum over x in block b and y in block c.
    xy: Mat<f64>,
}

/// Sums over ordered pairs of distinct rows of one set.
struct Within {
    sums: Mat<f64>,
    /// Σ k(x, x) per block.
    diagonals: Vec<f64>,
    counts: Vec<usize>,
}

impl Within {
    fn new<T: Real>(kernel: Kernel, x: &Rows<T>, ends: &[usize]) -> Self {
        let counts = (0..ends.len()).map(|b| members(ends, b).len()).collect();
        let diagonals = (0..ends.len()).map(|b| members(ends, b).map(|i| kernel.diagonal(x, i)).sum()).collect();
        Self { sums: block_sums(kernel, x, ends, None), diagonals, counts }
    }

    fn rows(&self, without: Option<usize>) -> f64 {
        (self.counts.iter().sum::<usize>() - without.map_or(0, |b| self.counts[b])) as f64
    }

    /// Sum over distinct pairs, block `without` left out.
    fn sum(&self, without: Option<usize>) -> f64 {
        let left_out = without.map_or(0.0, |b| self.sums[(b, b)] - 2.0 * self.sums.row(b).sum());
        self.sums.sum() + left_out
    }

    /// Number of rows and mean over their distinct pairs.
    fn mean(&self, without: Option<usize>) -> (f64, f64) {
        let n = self.rows(without);
        (n, self.sum(without) / (n * (n - 1.0)))
    }

    /// Number of rows and mean over all their pairs, each with itself included.
    fn biased_mean(&self, without: Option<usize>) -> (f64, f64) {
        let n = self.rows(without);
        let diagonal = self.diagonals.iter().sum::<f64>() - without.map_or(0.0, |b| self.diagonals[b]);
        (n, (self.sum(without) + diagonal) / (n * n))
    }
}

/// Rows of block `b` in the order of blocks.
fn members(ends: &[usize], b: usize) -> Range<usize> {
    b.checked_sub(1).map_or(0, |a| ends[a])..ends[b]
}

/// Σ k per pair of blocks, of rows in the order of their blocks; of distinct rows when `y` is `None`.
fn block_sums<T: Real>(kernel: Kernel, x: &Rows<T>, ends: &[usize], y: Option<(&Rows<T>, &[usize])>) -> Mat<f64> {
    let pairs: Vec<_> = tile_pairs(x.len(), y.map(|(y, _)| y.len())).collect();
    let columns_end = y.map_or(ends, |(_, ends)| ends);
    let block_of = |ends: &[usize], i: usize| ends.partition_point(|end| *end <= i);
    let tile = |(rows, columns): &(Range<usize>, Range<usize>)| {
        // Blocks are contiguous, so a tile meets few of them.
        let first = block_of(columns_end, columns.start);
        let last = block_of(columns_end, columns.end - 1);
        let top = block_of(ends, rows.start);
        let mut sums = vec![vec![0.0; last - first + 1]; block_of(ends, rows.end - 1) - top + 1];
        each_row(kernel, x, rows.clone(), y.map(|(y, _)| y), columns.clone(), |i, values| {
            let sums = &mut sums[block_of(ends, i) - top];
            for (sum, c) in sums.iter_mut().zip(first..) {
                let part = members(columns_end, c);
                let local = |at: usize| at.clamp(columns.start, columns.end) - columns.start;
                *sum += lanes(&values[local(part.start)..local(part.end)]);
            }
        });
        (top, first, sums)
    };
    let parts: Vec<_> = pairs.par_iter().map(tile).collect();
    let mut total = Mat::zeros(ends.len(), columns_end.len());
    for ((rows, columns), (top, first, sums)) in pairs.iter().zip(parts) {
        for (b, sums) in (top..).zip(sums) {
            for (c, sum) in (first..).zip(sums) {
                total[(b, c)] += sum;
                if y.is_none() && rows.start != columns.start {
                    total[(c, b)] += sum;
                }
            }
        }
    }
    total
}

impl KernelSums {
    /// Of KID's kernel; `x_blocks[i]` in `0..blocks` is the block of row `i` of `x`, likewise for `y`.
    pub(crate) fn new(x: &Mat<f64>, x_blocks: &[usize], y: &Mat<f64>, y_blocks: &[usize], blocks: usize) -> Self {
        Self::with_kernel(Kernel::Cubic, (Source::Matrix(x), x_blocks), (Source::Matrix(y), y_blocks), blocks)
    }

    /// Of CMMD's kernel, for rows from [`directions`].
    pub(crate) fn cmmd_sums(x: &Mat<f64>, x_blocks: &[usize], y: &Mat<f64>, y_blocks: &[usize], blocks: usize) -> Self {
        Self::with_kernel(Kernel::CMMD, (Source::Matrix(x), x_blocks), (Source::Matrix(y), y_blocks), blocks)
    }

    fn with_kernel(kernel: Kernel, x: (Source<'_>, &[usize]), y: (Source<'_>, &[usize]), blocks: usize) -> Self {
        let (n, m) = (x.0.len(), y.0.len());
        let multiplications = ((square(n) + square(m)) / 2.0 + n as f64 * m as f64) * x.0.dim() as f64;
        match multiplications <= EXACT_LIMIT {
            true => Self::of(kernel, Rows::<f64>::pair(x.0, y.0), [x.1, y.1], blocks),
            false => Self::of(kernel, Rows::<f32>::pair(x.0, y.0), [x.1, y.1], blocks),
        }
    }

    fn of<T: Real>(kernel: Kernel, [x, y]: [Rows<T>; 2], of: [&[usize]; 2], blocks: usize) -> Self {
        let sorted = |rows: Rows<T>, of: &[usize]| {
            let mut order: Vec<usize> = (0..of.len()).collect();
            order.sort_by_key(|i| of[*i]);
            let ends: Vec<usize> = (0..blocks).map(|b| order.partition_point(|i| of[*i] <= b)).collect();
            (rows.select(&order), ends)
        };
        let ((x, x_ends), (y, y_ends)) = (sorted(x, of[0]), sorted(y, of[1]));
        let xy = block_sums(kernel, &x, &x_ends, Some((&y, &y_ends)));
        Self { xx: Within::new(kernel, &x, &x_ends), yy: Within::new(kernel, &y, &y_ends), xy }
    }

    /// The U-statistic without a block of x and a block of y.
    pub(crate) fn kid_u(&self, without_x: Option<usize>, without_y: Option<usize>) -> f64 {
        let (n, xx) = self.xx.mean(without_x);
        let (m, yy) = self.yy.mean(without_y);
        xx + yy - 2.0 * self.cross(without_x, without_y) / (n * m)
    }

    /// CMMD without a block of x and a block of y.
    pub(crate) fn cmmd(&self, without_x: Option<usize>, without_y: Option<usize>) -> f64 {
        let (n, xx) = self.xx.biased_mean(without_x);
        let (m, yy) = self.yy.biased_mean(without_y);
        CMMD_SCALE * (xx + yy - 2.0 * self.cross(without_x, without_y) / (n * m)).max(0.0)
    }

    /// Σ k(x, y) over the rows that are left.
    fn cross(&self, without_x: Option<usize>, without_y: Option<usize>) -> f64 {
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
        cross
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Gaussian, close, features, formula_features, golden, indices, json, part, tensors};

    const SMALL: KidOptions = KidOptions { subsets: 10, subset_size: 50, ..KidOptions::TORCH_FIDELITY };

    /// The definition, for any kernel of two rows.
    fn naive(x: &FeatureSet, y: &FeatureSet, kernel: impl Fn(&[f64], &[f64]) -> f64) -> f64 {
        let rows = |set: &FeatureSet| -> Vec<Vec<f64>> {
            set.data.chunks(set.dim).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
        };
        let (x, y) = (rows(x), rows(y));
        let within = |x: &[Vec<f64>]| -> f64 {
            let pairs = (0..x.len()).flat_map(|i| (0..x.len()).filter(move |j| *j != i).map(move |j| (i, j)));
            pairs.map(|(i, j)| kernel(&x[i], &x[j])).sum::<f64>() / (x.len() * (x.len() - 1)) as f64
        };
        let cross: f64 = x.iter().flat_map(|x| y.iter().map(|y| kernel(x, y))).sum();
        within(&x) + within(&y) - 2.0 * cross / (x.len() * y.len()) as f64
    }

    #[test]
    fn reference_values() {
        let golden = golden();
        let [f1, f2] = formula_features();
        let result = kid(&f1, &f2, &SMALL).unwrap();
        let expected = |i: usize| golden["kid_f64_subsets10_size50"][i].as_f64().unwrap();
        close("kid mean", result.mean, expected(0), 1e-10);
        close("kid std", result.std, expected(1), 1e-10);
        let full = golden["kid_full_unbiased_f64"].as_f64().unwrap();
        close("kid_u", kid_u(&f1, &f2).unwrap(), full, 1e-10);
        let expected = golden["cmmd_on_l2_normalised_f1_f2_f64"].as_f64().unwrap();
        close("cmmd", cmmd(&f1, &f2).unwrap(), expected, 1e-9);
        let mut longer = f1.clone();
        longer.data.chunks_mut(16).enumerate().for_each(|(i, row)| row.iter_mut().for_each(|v| *v *= (1 << (i % 5)) as f32));
        close("cmmd sees directions only", cmmd(&longer, &f2).unwrap(), expected, 1e-9);
        assert!(cmmd(&f1, &f1).unwrap() < 1e-9);
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
                let options = KidOptions { subsets, subset_size, ..KidOptions::TORCH_FIDELITY };
                let drawn: Vec<_> = subset_indices(n, n, subset_size, &options).collect();
                for (s, drawn) in drawn.iter().enumerate() {
                    for (side, drawn) in ["idx1", "idx2"].iter().zip(drawn) {
                        let stored = indices("fid_kid.safetensors", &format!("{case}.{kind}.{side}"));
                        assert_eq!(*drawn, stored[s * subset_size..][..subset_size], "{case} {kind}");
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
                // Both routes in single precision, as large problems take them.
                let pair = || [&f1, &f2].map(|f| Source::of(f).unwrap());
                for route in [Route::Whole, Route::Gathered] {
                    let [x, y] = pair();
                    let values = discrepancies(Rows::<f32>::pair(x, y), Kernel::Cubic, &drawn, route);
                    let difference = values.iter().sum::<f64>() / subsets as f64 - mean;
                    eprintln!("{case} {kind} in f32: {difference:e}");
                    assert!(difference.abs() < 1e-8 * mean, "{case} {kind}: {difference:e}");
                }
            }
        }
    }

    /// More than one tile per side, in both precisions, with rows that do not fill the last one.
    #[test]
    fn routes_and_tiles_agree() {
        let mut random = Gaussian::new(17);
        let (f1, f2) = (random.features(1100, 8, 0.4, 0.5), random.features(700, 8, 0.5, 0.5));
        let options = KidOptions { subsets: 3, subset_size: 600, seed: 5, ..KidOptions::TORCH_FIDELITY };
        let drawn: Vec<_> = subset_indices(1100, 700, 600, &options).collect();
        let pair = || [Source::of(&f1).unwrap(), Source::of(&f2).unwrap()];
        let by = |route| {
            let [x, y] = pair();
            discrepancies(Rows::<f64>::pair(x, y), Kernel::Cubic, &drawn, route)
        };
        let cubic = |x: &[f64], y: &[f64]| cubed(x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() / 8.0 + 1.0);
        for ((whole, gathered), [i, j]) in by(Route::Whole).iter().zip(by(Route::Gathered)).zip(&drawn) {
            let expected = naive(&part(&f1, |r| i.contains(&r)), &part(&f2, |r| j.contains(&r)), cubic);
            assert!((whole - expected).abs() < 1e-12 && (gathered - expected).abs() < 1e-12, "{whole} {gathered} {expected}");
        }
        let all = kid_u(&f1, &f2).unwrap();
        let single = KernelSums::of(Kernel::Cubic, Rows::<f32>::pair(pair()[0], pair()[1]), [&[0; 1100], &[0; 700]], 1);
        assert!((single.kid_u(None, None) - all).abs() < 1e-9);
        // A common offset that single precision could not hold beside the features.
        let [mut g1, mut g2] = [f1.clone(), f2.clone()];
        for set in [&mut g1, &mut g2] {
            set.data.iter_mut().for_each(|v| *v = (*v * 512.0).round() / 512.0 + 64.0);
        }
        let exact = KernelSums::of(
            Kernel::Cubic,
            Rows::<f64>::pair(Source::of(&g1).unwrap(), Source::of(&g2).unwrap()),
            [&[0; 1100], &[0; 700]],
            1,
        );
        let single = KernelSums::of(
            Kernel::Cubic,
            Rows::<f32>::pair(Source::of(&g1).unwrap(), Source::of(&g2).unwrap()),
            [&[0; 1100], &[0; 700]],
            1,
        );
        close("offset", single.kid_u(None, None), exact.kid_u(None, None), 1e-6);
    }

    #[test]
    fn other_kernels_and_draws() {
        let [f1, f2] = formula_features();
        let rbf = KidOptions { subsets: 1, subset_size: 80, kernel: Kernel::Rbf { sigma: 2.0 }, shrink: true, ..SMALL };
        let squared = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        let [i, j] = subset_indices(80, 96, 80, &rbf).next().unwrap();
        let expected = naive(&part(&f1, |r| i.contains(&r)), &part(&f2, |r| j.contains(&r)), |x, y| (-squared(x, y) / 8.0).exp());
        close("rbf", kid(&f1, &f2, &rbf).unwrap().mean, expected, 1e-11);
        let bad = KidOptions { kernel: Kernel::Rbf { sigma: 0.0 }, ..SMALL };
        assert!(matches!(kid(&f1, &f2, &bad), Err(Error::BadKernel { .. })));
        // clean-fid draws the reference first: with the sides exchanged its draws are torch-fidelity's.
        let clean = KidOptions { draw: DrawOrder::ReferenceFirst, ..SMALL };
        let (ours, exchanged) = (kid(&f1, &f2, &clean).unwrap(), kid(&f2, &f1, &SMALL).unwrap());
        close("draw order", ours.mean, exchanged.mean, 1e-10);
        assert!((ours.mean - kid(&f1, &f2, &SMALL).unwrap().mean).abs() > 1e-6);
        assert_eq!(kid(&f1, &f2, &KidOptions { subsets: 2, ..KidOptions::CLEAN_FID }).unwrap().subset_size, 80);
    }

    /// Unbiased: over repetitions, KID between halves of one distribution is zero within its error.
    #[test]
    fn halves_have_mean_zero() {
        let mut random = Gaussian::new(23);
        let values: Vec<f64> =
            (0..200).map(|_| kid_u(&random.features(24, 6, 0.5, 1.0), &random.features(30, 6, 0.5, 1.0)).unwrap()).collect();
        let mean = values.iter().sum::<f64>() / 200.0;
        let error = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 199.0 / 200.0).sqrt();
        assert!(mean.abs() < 3.0 * error, "{mean} {error}");
        assert!(values.iter().any(|v| *v < 0.0));
        // The biased estimate is not: it sees the diagonal.
        let biased = cmmd(&random.features(24, 6, 0.5, 1.0), &random.features(30, 6, 0.5, 1.0)).unwrap();
        assert!(biased > 0.0);
    }

    #[test]
    fn symmetry_permutation_and_duplicates() {
        let [f1, f2] = formula_features();
        let value = kid_u(&f1, &f2).unwrap();
        close("symmetry", kid_u(&f2, &f1).unwrap(), value, 1e-11);
        let reversed = features(&(vec![80, 16], f1.data.rchunks(16).flatten().copied().collect()), 1);
        close("permutation", kid_u(&reversed, &f2).unwrap(), value, 1e-11);
        close("cmmd permutation", cmmd(&reversed, &f2).unwrap(), cmmd(&f1, &f2).unwrap(), 1e-9);
        let point = features(&(vec![9, 16], vec![0.5; 144]), 1);
        assert!(kid_u(&point, &point).unwrap().abs() < 1e-14);
        assert_eq!(cmmd(&point, &point).unwrap(), 0.0);
    }

    #[test]
    fn bad_sets_are_refused() {
        let [f1, f2] = formula_features();
        let message = kid(&f1, &f2, &KidOptions::TORCH_FIDELITY).unwrap_err().to_string();
        assert_eq!(message, "kid needs at least 1000 images on each side, found 80 and 96");
        let options = KidOptions { shrink: true, subsets: 3, ..KidOptions::TORCH_FIDELITY };
        assert_eq!(kid(&f1, &f2, &options).unwrap().subset_size, 80);
        let one = features(&(vec![1, 16], f1.data[..16].into()), 1);
        assert!(kid(&one, &f2, &options).is_err());
        assert!(kid_u(&one, &f2).is_err());
        let mut broken = f2.clone();
        broken.data[16 * 4 + 1] = f32::NAN;
        for message in [kid(&f1, &broken, &SMALL).unwrap_err().to_string(), kid_u(&f1, &broken).unwrap_err().to_string()] {
            assert_eq!(message, "feature 1 of row 4 (image 4) is NaN");
        }
        let mut zero = f2.clone();
        zero.data[16 * 6..][..16].fill(0.0);
        assert_eq!(cmmd(&f1, &zero).unwrap_err().to_string(), "row 6 (image 6) is all zeros, so it has no direction");
    }

    #[test]
    fn leaving_a_block_out_equals_not_having_it() {
        let [f1, f2] = formula_features();
        let (x, y) = (f1.matrix().unwrap(), f2.matrix().unwrap());
        let blocks = |n: usize| (0..n).map(|i| i % 7).collect::<Vec<_>>();
        let sums = KernelSums::new(&x, &blocks(80), &y, &blocks(96), 7);
        close("all", sums.kid_u(None, None), kid_u(&f1, &f2).unwrap(), 1e-11);
        let keep = |set: &FeatureSet| part(set, |i| i % 7 != 2);
        close("x", sums.kid_u(Some(2), None), kid_u(&keep(&f1), &f2).unwrap(), 1e-11);
        close("both", sums.kid_u(Some(2), Some(2)), kid_u(&keep(&f1), &keep(&f2)).unwrap(), 1e-11);
        let (x, y) = (directions(&f1).unwrap(), directions(&f2).unwrap());
        let sums = KernelSums::cmmd_sums(&x, &blocks(80), &y, &blocks(96), 7);
        close("cmmd x", sums.cmmd(Some(2), None), cmmd(&keep(&f1), &f2).unwrap(), 1e-9);
        close("cmmd both", sums.cmmd(Some(2), Some(2)), cmmd(&keep(&f1), &keep(&f2)).unwrap(), 1e-9);
    }
}
