//! Inner products between the rows of two sets, a tile at a time.
//!
//! Kernel distances and nearest neighbours both come down to n·m inner products of long rows. They run
//! here as matrix products of tiles in `f32` or `f64`, never as one n × m matrix.
//!
//! Rows are first centred on a point that both sets share, and scaled by a power of two. Distances do
//! not see that, inner products get back in `f64` what it took away, and what is left in single
//! precision is as small as it can be: a common offset of the features costs no digits.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use scalebench_kernels::inner_products;

use crate::{Error, FeatureSet, Result};

/// The two precisions of a tile.
pub(crate) trait Real: Copy + Into<f64> + Send + Sync {
    fn rounded(value: f64) -> Self;

    /// Products of the rows of `x` `(n, dim)` and `y` `(m, dim)`: `(n, m)` in `out`, on the calling thread.
    fn products(x: &[Self], y: &[Self], dim: usize, out: &mut [Self]);
}

impl Real for f32 {
    fn rounded(value: f64) -> Self {
        value as f32
    }

    fn products(x: &[f32], y: &[f32], dim: usize, out: &mut [f32]) {
        inner_products(x, y, dim, out);
    }
}

impl Real for f64 {
    fn rounded(value: f64) -> Self {
        value
    }

    fn products(x: &[f64], y: &[f64], dim: usize, out: &mut [f64]) {
        let (n, m) = (x.len() / dim, y.len() / dim);
        let (x, y) = (MatRef::from_row_major_slice(x, n, dim), MatRef::from_row_major_slice(y, m, dim));
        matmul(MatMut::from_row_major_slice_mut(out, n, m), Accum::Replace, x, y.transpose(), 1.0, Par::Seq);
    }
}

/// Where rows come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// `f32` features, row-major.
    Features(&'a FeatureSet),
    /// One row per image.
    Matrix(&'a Mat<f64>),
}

impl<'a> Source<'a> {
    /// The rows of a set; an error if its parts do not fit or a value is not finite.
    pub(crate) fn of(set: &'a FeatureSet) -> Result<Self> {
        let FeatureSet { names, groups, data, dim, .. } = set;
        if names.len() != groups.len() || data.len() != names.len() * dim || *dim == 0 {
            return Err(Error::FeatureShape { names: names.len(), groups: groups.len(), values: data.len(), dim: *dim });
        }
        match data.iter().position(|v| !v.is_finite()) {
            Some(at) => {
                let (row, column) = (at / dim, at % dim);
                Err(Error::NonFinite { row, name: names[row].clone(), column, value: data[at] })
            }
            None => Ok(Self::Features(set)),
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::Features(set) => set.len(),
            Self::Matrix(matrix) => matrix.nrows(),
        }
    }

    pub(crate) fn dim(self) -> usize {
        match self {
            Self::Features(set) => set.dim,
            Self::Matrix(matrix) => matrix.ncols(),
        }
    }

    /// The columns from `first` on of row `i`, as many as `row` holds.
    fn read(self, i: usize, first: usize, row: &mut [f64]) {
        match self {
            Self::Features(set) => row.iter_mut().zip(&set.data[i * set.dim + first..]).for_each(|(to, from)| *to = f64::from(*from)),
            Self::Matrix(matrix) => row.iter_mut().enumerate().for_each(|(j, to)| *to = matrix[(i, first + j)]),
        }
    }

    /// Adds the sums of the columns from `first` on.
    fn add_to(self, sums: &mut [f64], first: usize) {
        let mut row = vec![0.0; sums.len()];
        for i in 0..self.len() {
            self.read(i, first, &mut row);
            sums.iter_mut().zip(row.iter()).for_each(|(sum, v)| *sum += v);
        }
    }

    /// `of(row)` of every row, in order.
    fn each_row<V: Send>(self, dim: usize, of: impl Fn(&[f64]) -> V + Sync) -> Vec<V> {
        let start = || vec![0.0; dim];
        let one = |row: &mut Vec<f64>, i: usize| {
            self.read(i, 0, row);
            of(row)
        };
        (0..self.len()).into_par_iter().map_init(start, one).collect()
    }
}

/// Columns whose sums a thread makes at a time.
const COLUMNS: usize = 256;

/// Rows less a common centre c, `(len, dim)` row-major.
pub(crate) struct Rows<T> {
    pub(crate) dim: usize,
    values: Vec<T>,
    /// |x − c|² of every row.
    pub(crate) norms: Vec<f64>,
    /// c·(x − c) + |c|²/2 of every row: x·y is the product of the centred rows plus both offsets.
    pub(crate) offsets: Vec<f64>,
    /// What a product of two stored rows is multiplied by: the inverse square of their scale.
    pub(crate) unit: f64,
}

impl<T: Real> Rows<T> {
    /// Both sets, centred on the mean of all their rows. Every sum has one order, whatever the number of threads.
    pub(crate) fn pair(x: Source<'_>, y: Source<'_>) -> [Self; 2] {
        let mut centre = vec![0.0; x.dim()];
        let count = (x.len() + y.len()).max(1) as f64;
        centre.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
            x.add_to(sums, i * COLUMNS);
            y.add_to(sums, i * COLUMNS);
            sums.iter_mut().for_each(|v| *v /= count);
        });
        let farthest = |row: &[f64]| row.iter().zip(&centre).fold(0f64, |largest, (v, c)| largest.max((v - c).abs()));
        let largest = [x, y].into_iter().flat_map(|source| source.each_row(centre.len(), farthest)).fold(0f64, f64::max);
        // A power of two loses nothing, and no square leaves the range of f32.
        let scale = if largest > 0.0 { (-largest.log2().ceil()).exp2() } else { 1.0 };
        [x, y].map(|source| Self::new(source, &centre, scale))
    }

    fn new(source: Source<'_>, centre: &[f64], scale: f64) -> Self {
        let (n, dim) = (source.len(), centre.len());
        let unit = 1.0 / (scale * scale);
        let half = centre.iter().map(|c| c * c).sum::<f64>() / 2.0;
        let mut values = vec![T::rounded(0.0); n * dim];
        let fill = |row: &mut Vec<f64>, (i, values): (usize, &mut [T])| {
            source.read(i, 0, row);
            let (mut norm, mut offset) = (0.0, 0.0);
            for ((stored, v), c) in values.iter_mut().zip(row.iter()).zip(centre) {
                *stored = T::rounded((v - c) * scale);
                let value: f64 = (*stored).into();
                norm += value * value;
                offset += c * value;
            }
            (norm * unit, offset / scale + half)
        };
        let (norms, offsets) = values.par_chunks_mut(dim.max(1)).enumerate().map_init(|| vec![0.0; dim], fill).unzip();
        Self { dim, values, norms, offsets, unit }
    }

    pub(crate) fn len(&self) -> usize {
        self.norms.len()
    }

    /// The rows with these indices, in this order.
    pub(crate) fn select(&self, indices: &[usize]) -> Self {
        let mut values = Vec::with_capacity(indices.len() * self.dim);
        indices.iter().for_each(|i| values.extend_from_slice(&self.values[i * self.dim..][..self.dim]));
        let pick = |from: &[f64]| indices.iter().map(|i| from[*i]).collect();
        Self { dim: self.dim, values, norms: pick(&self.norms), offsets: pick(&self.offsets), unit: self.unit }
    }

    /// Products of `rows` of this set with `columns` of another, on the calling thread:
    /// `(rows, columns)` row-major in `out`, to be multiplied by [`Rows::unit`].
    pub(crate) fn product(&self, rows: Range<usize>, other: &Self, columns: Range<usize>, out: &mut Vec<T>) {
        let (height, width) = (rows.len(), columns.len());
        out.clear();
        out.resize(height * width, T::rounded(0.0));
        let part = |range: Range<usize>| (self.dim * range.start)..(self.dim * range.end);
        T::products(&self.values[part(rows)], &other.values[part(columns)], self.dim, out);
    }
}

/// `0..n` in ranges of `size`.
pub(crate) fn tiles(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..(start + size).min(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{close, formula_features};

    #[test]
    fn products_and_distances_survive_centring() {
        let [mut f1, mut f2] = formula_features();
        for set in [&mut f1, &mut f2] {
            set.data.iter_mut().for_each(|v| *v = (*v * 1024.0).round() / 1024.0 + 100.0);
        }
        let (x, y) = (f1.matrix().unwrap(), f2.matrix().unwrap());
        let naive = x.row(7) * y.row(90).transpose();
        let distance = (x.row(7) - y.row(90)).squared_norm_l2();
        fn check<T: Real>([x, y]: [Rows<T>; 2], product: f64, distance: f64, tolerance: f64) {
            let mut out = Vec::new();
            x.product(5..9, &y, 88..96, &mut out);
            let p = out[2 * 8 + 2].into() * x.unit;
            close("product", p + x.offsets[7] + y.offsets[90], product, tolerance / 100.0);
            close("distance", x.norms[7] + y.norms[90] - 2.0 * p, distance, tolerance);
            let chosen = y.select(&[3, 90]);
            x.product(7..8, &chosen, 1..2, &mut out);
            close("selected", out[0].into() * x.unit, p, 1e-5);
        }
        check(Rows::<f64>::pair(Source::Matrix(&x), Source::Matrix(&y)), naive, distance, 1e-12);
        check(Rows::<f32>::pair(Source::of(&f1).unwrap(), Source::of(&f2).unwrap()), naive, distance, 1e-6);
    }
}
