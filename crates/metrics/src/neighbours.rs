//! Precision, recall, density, coverage and realism: what nearest-neighbour balls say about two sets.
//!
//! Every row of a set gets a ball that reaches to its k-th nearest neighbour in the same set, itself not
//! counted. Then
//!
//! | number | meaning | boundary |
//! | --- | --- | --- |
//! | precision | share of generated rows inside some reference ball | [`Boundary`] |
//! | recall | share of reference rows inside some generated ball | [`Boundary`] |
//! | density | reference balls around a generated row, on average, over k | open |
//! | coverage | share of reference balls that hold a generated row | open |
//! | realism | of a generated row: largest radius over distance among the smaller half of reference balls | |
//!
//! Kynkäänniemi et al., arXiv:1904.06991 (precision, recall, realism); Naeem et al., arXiv:2002.09797
//! (density, coverage). torch-fidelity counts the boundary as inside (`<=`), prdc and dgm-eval do not.
//!
//! # Exactness
//!
//! Distances are screened by `f32` matrix products with a proven bound on their error,
//! (D + 16)·2⁻²⁴·(|x|² + |y|²) around the common mean; every comparison that the bound leaves open, and
//! every radius, is decided by Σ (x − y)² in `f64` from the stored features. So results are those of a
//! plain `f64` program, at the cost of an `f32` one, and duplicates and ties behave: d(x, x) is zero.
//!
//! Memory: both sets in `f32`, panels of [`PANEL`] products per thread, and a few numbers per row and
//! block. No n × m matrix is made.

use std::cell::OnceCell;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::frechet::require;
use crate::products::{Rows, Source, tiles};
use crate::{Error, FeatureSet, Result};

/// Products in flight per thread: 16 MiB of `f32`.
const PANEL: usize = 1 << 22;

/// Whether a row at exactly the radius is inside, for precision and recall.
///
/// Example: [`prdc`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// `<=`: the paper, torch-fidelity.
    #[default]
    Closed,
    /// `<`: prdc, dgm-eval.
    Open,
}

impl Boundary {
    fn holds(self, distance: f64, radius: f64) -> bool {
        match self {
            Self::Closed => distance <= radius,
            Self::Open => distance < radius,
        }
    }
}

/// Settings of [`prdc`].
///
/// Example: [`prdc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeighbourOptions {
    /// Which neighbour a ball reaches to.
    pub k: usize,
    /// Boundary of the balls, for precision and recall.
    #[serde(default)]
    pub boundary: Boundary,
}

impl NeighbourOptions {
    /// k = 3, closed balls: the paper's and torch-fidelity's.
    pub const TORCH_FIDELITY: Self = Self { k: 3, boundary: Boundary::Closed };
    /// k = 5, open balls: prdc's and dgm-eval's.
    pub const PRDC: Self = Self { k: 5, boundary: Boundary::Open };
}

/// Precision, recall, density and coverage.
///
/// Example: [`prdc`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prdc {
    /// Share of generated rows inside some reference ball, 0 to 1.
    pub precision: f64,
    /// Share of reference rows inside some generated ball, 0 to 1.
    pub recall: f64,
    /// Mean number of reference balls around a generated row, divided by k; 1 for equal distributions.
    pub density: f64,
    /// Share of reference balls that hold a generated row, 0 to 1.
    pub coverage: f64,
}

/// Precision, recall, density and coverage of a generated set against a reference.
///
/// Needs k + 1 rows on each side. All four depend on both numbers of rows: compare equal n only.
///
/// ```
/// use scalebench_metrics::{Boundary, FeatureSet, NeighbourOptions, Prdc, prdc, realism};
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// // Four corners of a rectangle, each two away from its nearest.
/// let at = |shift: f32| set(&[[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]].map(|[x, y]: [f32; 2]| vec![x + shift, y]));
/// let options = NeighbourOptions { k: 1, boundary: Boundary::Closed };
/// let Prdc { precision, recall, coverage, .. } = prdc(&at(0.0)?, &at(0.0)?, &options)?;
/// assert_eq!((precision, recall, coverage), (1.0, 1.0, 1.0));
/// assert_eq!(prdc(&at(9.0)?, &at(0.0)?, &options)?.precision, 0.0);
/// // Half a unit from a corner, in a ball of radius two.
/// assert!(realism(&at(0.5)?, &at(0.0)?, 1)?.iter().all(|found| (found - 4.0).abs() < 1e-6));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn prdc(generated: &FeatureSet, reference: &FeatureSet, options: &NeighbourOptions) -> Result<Prdc> {
    generated.check_comparable(reference)?;
    let (x_blocks, y_blocks) = (vec![0; generated.len()], vec![0; reference.len()]);
    Neighbours::new(generated, &x_blocks, reference, &y_blocks, 1, options)?.without(None, None)
}

/// Realism of every generated row, in order; at least 1 means inside one of the balls used.
///
/// The largest radius(r) / d(r, x) over the reference rows r whose radius is less than the median (over
/// all, should no radius be). A row that coincides with such a reference row has infinite realism; the
/// authors' code caps that by adding 1e-5 to d.
///
/// Example: [`prdc`].
pub fn realism(generated: &FeatureSet, reference: &FeatureSet, k: usize) -> Result<Vec<f64>> {
    generated.check_comparable(reference)?;
    let space = Space::new(generated, reference, k)?;
    let blocks = vec![0; reference.len()];
    let radii: Vec<f64> = space.balls(&space.y, &blocks, k).iter().map(|ball| ball.base).collect();
    let mut sorted = radii.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    // Squares sort like the radii, but numpy's median of an even number is the mean of two radii.
    let median = match sorted.len().is_multiple_of(2) {
        true => ((sorted[middle - 1].sqrt() + sorted[middle].sqrt()) / 2.0).powi(2),
        false => sorted[middle],
    };
    let mut used: Vec<usize> = (0..radii.len()).filter(|j| radii[*j] < median).collect();
    if used.is_empty() {
        used = (0..radii.len()).collect();
    }
    let score = |rows: Range<usize>| {
        let mut scores = Vec::with_capacity(rows.len());
        space.panel(&space.x, rows.clone(), &space.y, |i, products| {
            let mut best = -1.0;
            for &j in &used {
                let (low, _) = space.bounds(&space.x, i, &space.y, j, products[j]);
                // Only a pair that may beat the best is worth its exact distance.
                if best < 0.0 || radii[j] > best * low {
                    let ratio = match space.exact((&space.x, i), (&space.y, j)) {
                        0.0 => f64::INFINITY,
                        distance => radii[j] / distance,
                    };
                    best = best.max(ratio);
                }
            }
            scores.push(best.max(0.0).sqrt());
        });
        scores
    };
    let panels: Vec<_> = space.panels(space.x.rows.len(), space.y.rows.len()).collect();
    Ok(panels.into_par_iter().map(score).collect::<Vec<_>>().concat())
}

/// Both sets with what bounds the error of their screened distances.
struct Space<'a> {
    x: Side<'a>,
    y: Side<'a>,
    /// Error of a squared distance per |x|² + |y|².
    relative: f64,
    /// Error where products underflow.
    absolute: f64,
}

struct Side<'a> {
    rows: Rows<f32>,
    data: &'a [f32],
}

impl<'a> Space<'a> {
    fn new(x: &'a FeatureSet, y: &'a FeatureSet, k: usize) -> Result<Self> {
        if k == 0 {
            return Err(Error::NoNeighbours);
        }
        let sources = [Source::of(x)?, Source::of(y)?];
        require("prdc", k.saturating_add(1), x.len(), y.len())?;
        let dim = x.dim as f64;
        let [a, b] = Rows::pair(sources[0], sources[1]);
        let absolute = 4.0 * dim * f64::from(f32::MIN_POSITIVE) * a.unit;
        let (x, y) = (Side { rows: a, data: &x.data }, Side { rows: b, data: &y.data });
        Ok(Self { x, y, relative: 1.05 * (dim + 16.0) * 0.5f64.powi(24), absolute })
    }

    /// Bounds of the squared distance of row `i` of `a` and row `j` of `b` from the product of the two.
    fn bounds(&self, a: &Side<'_>, i: usize, b: &Side<'_>, j: usize, product: f32) -> (f64, f64) {
        let size = a.rows.norms[i] + b.rows.norms[j];
        let distance = size - 2.0 * a.rows.unit * f64::from(product);
        let error = self.relative * size + self.absolute;
        (distance - error, distance + error)
    }

    /// The squared distance in `f64`; the same bits in both directions.
    fn exact(&self, (a, i): (&Side<'_>, usize), (b, j): (&Side<'_>, usize)) -> f64 {
        let dim = a.rows.dim;
        let (a, b) = (&a.data[i * dim..][..dim], &b.data[j * dim..][..dim]);
        let difference = |a: f32, b: f32| {
            let d = f64::from(a) - f64::from(b);
            d * d
        };
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        let mut sums = [0.0; 8];
        for (a, b) in a.iter().zip(b) {
            for lane in 0..8 {
                sums[lane] += difference(a[lane], b[lane]);
            }
        }
        sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| difference(*a, *b)).sum::<f64>()
    }

    fn panels(&self, n: usize, m: usize) -> impl Iterator<Item = Range<usize>> {
        tiles(n, (PANEL / m.max(1)).clamp(16, 256))
    }

    /// Calls `row(i, products with all rows of b)` for a panel of rows of `a`.
    fn panel(&self, a: &Side<'_>, rows: Range<usize>, b: &Side<'_>, mut row: impl FnMut(usize, &[f32])) {
        let mut products = Vec::new();
        a.rows.product(rows.clone(), &b.rows, 0..b.rows.len(), &mut products);
        rows.zip(products.chunks_exact(b.rows.len())).for_each(|(i, products)| row(i, products));
    }

    /// The balls of a set.
    fn balls(&self, side: &Side<'_>, blocks: &[usize], k: usize) -> Vec<Ball> {
        let n = side.rows.len();
        let panels: Vec<_> = self.panels(n, n).collect();
        let one = |rows: Range<usize>| {
            let mut balls = Vec::with_capacity(rows.len());
            self.panel(side, rows, side, |i, products| balls.push(self.ball(side, i, products, blocks, k)));
            balls
        };
        panels.into_par_iter().map(one).collect::<Vec<_>>().concat()
    }

    /// The ball of one row from its products with all rows of its set.
    fn ball(&self, side: &Side<'_>, i: usize, products: &[f32], blocks: &[usize], k: usize) -> Ball {
        let low = |j: usize| self.bounds(side, i, side, j, products[j]).0;
        let exact = |candidates: &[usize]| {
            let mut near: Vec<Near> =
                candidates.iter().map(|&j| Near { distance: self.exact((side, i), (side, j)), block: blocks[j] }).collect();
            near.sort_by(|a, b| a.distance.total_cmp(&b.distance));
            near
        };
        let others = products.len() - 1;
        let mut wanted = (k + 6).min(others);
        loop {
            // The rows that may be nearest, by their lower bounds.
            let mut candidates: Vec<(f64, usize)> = Vec::with_capacity(wanted + 1);
            let mut worst = f64::INFINITY;
            for j in 0..products.len() {
                let low = low(j);
                if low < worst && j != i {
                    let at = candidates.partition_point(|c| c.0 <= low);
                    candidates.insert(at, (low, j));
                    candidates.truncate(wanted);
                    if candidates.len() == wanted {
                        worst = candidates[wanted - 1].0;
                    }
                }
            }
            let all = candidates.len() == others;
            let near = exact(&candidates.iter().map(|c| c.1).collect::<Vec<_>>());
            match needed(&near, blocks[i], k) {
                None if !all => wanted = (4 * wanted).min(others),
                None => return Ball::new(near, blocks[i], k),
                Some(count) if all || near[count - 1].distance < worst => {
                    return Ball::new(near[..count].to_vec(), blocks[i], k);
                }
                Some(count) => {
                    // A row that was passed over may yet be nearer than the last one needed.
                    let reach = near[count - 1].distance;
                    let near = exact(&(0..products.len()).filter(|&j| j != i && low(j) <= reach).collect::<Vec<_>>());
                    let count = needed(&near, blocks[i], k).unwrap_or(near.len());
                    return Ball::new(near[..count].to_vec(), blocks[i], k);
                }
            }
        }
    }
}

/// A neighbour of a row.
#[derive(Clone, Copy)]
struct Near {
    /// Squared.
    distance: f64,
    block: usize,
}

/// How many of the nearest rows are needed for k to remain whichever block leaves but the row's own.
fn needed(near: &[Near], own: usize, k: usize) -> Option<usize> {
    let mut counts = Vec::<(usize, usize)>::new();
    let mut largest = 0;
    for (i, near) in near.iter().enumerate() {
        if near.block != own {
            let count = match counts.iter_mut().find(|(block, _)| *block == near.block) {
                Some((_, count)) => {
                    *count += 1;
                    *count
                }
                None => {
                    counts.push((near.block, 1));
                    1
                }
            };
            largest = largest.max(count);
        }
        if i + 1 >= k + largest {
            return Some(i + 1);
        }
    }
    None
}

/// The squared radius of a row's ball, and those it has when a block is left out that it depends on.
#[derive(Clone)]
struct Ball {
    base: f64,
    /// `(block, radius without it)`; infinite where fewer than k rows would be left.
    changed: Vec<(usize, f64)>,
    /// The largest of all.
    reach: f64,
}

impl Ball {
    /// `near` is sorted and has at least k entries.
    fn new(near: Vec<Near>, own: usize, k: usize) -> Self {
        let base = near[k - 1].distance;
        let mut changed = Vec::<(usize, f64)>::new();
        for block in near[..k].iter().map(|near| near.block) {
            if block != own && changed.iter().all(|(b, _)| *b != block) {
                let left = near.iter().filter(|near| near.block != block).nth(k - 1);
                changed.push((block, left.map_or(f64::INFINITY, |near| near.distance)));
            }
        }
        let finite = changed.iter().map(|(_, radius)| *radius).filter(|radius| radius.is_finite());
        let reach = finite.fold(base, f64::max);
        Self { base, changed, reach }
    }
}

/// Who lies in whose ball, from which precision, recall, density and coverage with blocks left out follow
/// without another distance.
///
/// A block that leaves takes its rows *and* its balls, and widens the balls whose k-th neighbour it had.
/// So counts are kept per block for the balls as they are, and apart from these for the balls that some
/// block's leaving widens.
pub(crate) struct Neighbours {
    k: usize,
    x_blocks: Vec<usize>,
    y_blocks: Vec<usize>,
    blocks: usize,
    counts: Counts,
    /// Per reference row: its blocks in `y_changed_holds`.
    y_changed: Vec<Range<usize>>,
    y_changed_blocks: Vec<usize>,
}

/// All with rows of `blocks` values.
#[derive(Default)]
struct Counts {
    /// `[i][c]`: balls of reference block c around generated row i.
    x_inside: Vec<u32>,
    /// `[i][c]`: balls around generated row i only when block c has left.
    x_inside_wider: Vec<u32>,
    /// `[j][b]`: balls of generated block b around reference row j.
    y_inside: Vec<u32>,
    /// `[j][b]`: balls around reference row j only when generated block b has left.
    y_inside_wider: Vec<u32>,
    /// `[b][c]`: generated rows of b in open balls of reference block c, counted per pair.
    pairs: Vec<u64>,
    /// `[b][c]`: generated rows of b in open balls, only when reference block c has left.
    pairs_wider: Vec<u64>,
    /// `[j][b]`: generated rows of block b in the open ball of reference row j.
    y_holds: Vec<u32>,
    /// The same for the widened balls, in the order of `y_changed`.
    y_holds_wider: Vec<u32>,
}

impl Neighbours {
    /// `x` are generated rows, `y` reference rows; `x_blocks[i]` in `0..blocks` is the block of row `i`.
    pub(crate) fn new(
        x: &FeatureSet,
        x_blocks: &[usize],
        y: &FeatureSet,
        y_blocks: &[usize],
        blocks: usize,
        options: &NeighbourOptions,
    ) -> Result<Self> {
        let NeighbourOptions { k, boundary } = *options;
        let space = Space::new(x, y, k)?;
        let x_balls = space.balls(&space.x, x_blocks, k);
        let y_balls = space.balls(&space.y, y_blocks, k);
        let (mut y_changed, mut y_changed_blocks) = (Vec::with_capacity(y.len()), Vec::new());
        for ball in &y_balls {
            let start = y_changed_blocks.len();
            y_changed_blocks.extend(ball.changed.iter().map(|(block, _)| *block));
            y_changed.push(start..y_changed_blocks.len());
        }
        let zeros = |rows: usize| vec![0; rows * blocks];
        let empty = || Counts {
            y_inside: zeros(y.len()),
            y_inside_wider: zeros(y.len()),
            pairs: vec![0; blocks * blocks],
            pairs_wider: vec![0; blocks * blocks],
            y_holds: zeros(y.len()),
            y_holds_wider: zeros(y_changed_blocks.len()),
            ..Counts::default()
        };
        let work = |rows: Range<usize>, counts: &mut Counts| {
            let (mut inside, mut inside_wider) = (zeros(rows.len()), zeros(rows.len()));
            let first = rows.start;
            space.panel(&space.x, rows, &space.y, |i, products| {
                let (b, x_ball) = (x_blocks[i], &x_balls[i]);
                let inside = &mut inside[(i - first) * blocks..][..blocks];
                let inside_wider = &mut inside_wider[(i - first) * blocks..][..blocks];
                for (j, (y_ball, product)) in y_balls.iter().zip(products).enumerate() {
                    let (low, high) = space.bounds(&space.x, i, &space.y, j, *product);
                    if low > x_ball.reach && low > y_ball.reach {
                        continue;
                    }
                    let exact = OnceCell::new();
                    let within = |radius: f64, boundary: Boundary| {
                        if low > radius || radius.is_infinite() {
                            false
                        } else if high < radius {
                            true
                        } else {
                            boundary.holds(*exact.get_or_init(|| space.exact((&space.x, i), (&space.y, j))), radius)
                        }
                    };
                    let c = y_blocks[j];
                    let base = within(y_ball.base, boundary);
                    let base_open = within(y_ball.base, Boundary::Open);
                    inside[c] += u32::from(base);
                    counts.pairs[b * blocks + c] += u64::from(base_open);
                    counts.y_holds[j * blocks + b] += u32::from(base_open);
                    for ((c, radius), at) in y_ball.changed.iter().zip(y_changed[j].clone()) {
                        inside_wider[*c] += u32::from(!base && within(*radius, boundary));
                        let open = !base_open && within(*radius, Boundary::Open);
                        counts.pairs_wider[b * blocks + c] += u64::from(open);
                        counts.y_holds_wider[at * blocks + b] += u32::from(open);
                    }
                    let base = within(x_ball.base, boundary);
                    counts.y_inside[j * blocks + b] += u32::from(base);
                    for (b, radius) in &x_ball.changed {
                        counts.y_inside_wider[j * blocks + b] += u32::from(!base && within(*radius, boundary));
                    }
                }
            });
            (first, inside, inside_wider)
        };
        // One set of counters per thread; integers, so the order of the additions does not matter.
        let panels: Vec<_> = space.panels(x.len(), y.len()).collect();
        let threads = rayon::current_num_threads().max(1);
        let shares: Vec<Vec<_>> = (0..threads)
            .map(|t| panels.iter().skip(t).step_by(threads).cloned().collect())
            .filter(|share: &Vec<_>| !share.is_empty())
            .collect();
        let parts: Vec<_> = shares
            .into_par_iter()
            .map(|share| {
                let mut counts = empty();
                let rows: Vec<_> = share.into_iter().map(|rows| work(rows, &mut counts)).collect();
                (counts, rows)
            })
            .collect();
        let mut counts = Counts { x_inside: zeros(x.len()), x_inside_wider: zeros(x.len()), ..empty() };
        for (part, rows) in parts {
            counts.add(&part);
            for (first, inside, inside_wider) in rows {
                counts.x_inside[first * blocks..][..inside.len()].copy_from_slice(&inside);
                counts.x_inside_wider[first * blocks..][..inside.len()].copy_from_slice(&inside_wider);
            }
        }
        let (x_blocks, y_blocks) = (x_blocks.to_vec(), y_blocks.to_vec());
        Ok(Self { k, x_blocks, y_blocks, blocks, counts, y_changed, y_changed_blocks })
    }

    /// The four numbers without a block of x and a block of y; an error if fewer than k + 1 rows remain.
    pub(crate) fn without(&self, without_x: Option<usize>, without_y: Option<usize>) -> Result<Prdc> {
        let Self { k, blocks, counts, .. } = self;
        let kept = |of: &[usize], without: Option<usize>| -> Vec<usize> { (0..of.len()).filter(|i| Some(of[*i]) != without).collect() };
        let (x, y) = (kept(&self.x_blocks, without_x), kept(&self.y_blocks, without_y));
        require("prdc", k + 1, x.len(), y.len())?;
        let row = |values: &[u32], i: usize, without: Option<usize>| -> u64 {
            let row = &values[i * blocks..][..*blocks];
            row.iter().enumerate().filter(|(b, _)| Some(*b) != without).map(|(_, count)| u64::from(*count)).sum()
        };
        let wider = |values: &[u32], i: usize, without: Option<usize>| without.map_or(0, |b| u64::from(values[i * blocks + b]));
        let share = |n: usize, of: usize| n as f64 / of as f64;
        let precise = x.iter().filter(|&&i| row(&counts.x_inside, i, without_y) + wider(&counts.x_inside_wider, i, without_y) > 0).count();
        let recalled = y.iter().filter(|&&j| row(&counts.y_inside, j, without_x) + wider(&counts.y_inside_wider, j, without_x) > 0).count();
        let covered = y.iter().filter(|&&j| {
            let widened = self.y_changed[j].clone().find(|at| Some(self.y_changed_blocks[*at]) == without_y);
            let more = widened.map_or(0, |at| row(&counts.y_holds_wider, at, without_x));
            row(&counts.y_holds, j, without_x) + more > 0
        });
        let mut pairs = 0;
        for b in (0..*blocks).filter(|b| Some(*b) != without_x) {
            pairs += (0..*blocks).filter(|c| Some(*c) != without_y).map(|c| counts.pairs[b * blocks + c]).sum::<u64>();
            pairs += without_y.map_or(0, |c| counts.pairs_wider[b * blocks + c]);
        }
        Ok(Prdc {
            precision: share(precise, x.len()),
            recall: share(recalled, y.len()),
            density: pairs as f64 / (k * x.len()) as f64,
            coverage: share(covered.count(), y.len()),
        })
    }
}

impl Counts {
    /// All but what belongs to generated rows, which every panel counts for itself.
    fn add(&mut self, other: &Self) {
        fn add<T: Copy + std::ops::AddAssign>(to: &mut [T], from: &[T]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
        }
        add(&mut self.y_inside, &other.y_inside);
        add(&mut self.y_inside_wider, &other.y_inside_wider);
        add(&mut self.pairs, &other.pairs);
        add(&mut self.pairs_wider, &other.pairs_wider);
        add(&mut self.y_holds, &other.y_holds);
        add(&mut self.y_holds_wider, &other.y_holds_wider);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{Gaussian, close, features, formula_features, golden, part};

    /// The definitions, word by word, in `f64`.
    fn naive(x: &FeatureSet, y: &FeatureSet, options: &NeighbourOptions) -> Prdc {
        let row = |set: &FeatureSet, i: usize| set.data[i * set.dim..][..set.dim].to_vec();
        let distance = |a: (&FeatureSet, usize), b: (&FeatureSet, usize)| -> f64 {
            let (a, b) = (row(a.0, a.1), row(b.0, b.1));
            a.iter().zip(&b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>()
        };
        let radii = |set: &FeatureSet| -> Vec<f64> {
            let radius = |i| {
                let mut all: Vec<f64> = (0..set.len()).map(|j| distance((set, i), (set, j))).collect();
                all.sort_by(f64::total_cmp);
                all[options.k]
            };
            (0..set.len()).map(radius).collect()
        };
        let (rx, ry) = (radii(x), radii(y));
        let d = |i, j| distance((x, i), (y, j));
        let (n, m) = (x.len(), y.len());
        let inside = |a, b| options.boundary.holds(a, b);
        let share = |hits: usize, of: usize| hits as f64 / of as f64;
        let open: usize = (0..n).map(|i| (0..m).filter(|&j| d(i, j) < ry[j]).count()).sum();
        Prdc {
            precision: share((0..n).filter(|&i| (0..m).any(|j| inside(d(i, j), ry[j]))).count(), n),
            recall: share((0..m).filter(|&j| (0..n).any(|i| inside(d(i, j), rx[i]))).count(), m),
            density: open as f64 / (options.k * n) as f64,
            coverage: share((0..m).filter(|&j| (0..n).any(|i| d(i, j) < ry[j])).count(), m),
        }
    }

    #[test]
    fn reference_values() {
        let golden = golden();
        let [f1, f2] = formula_features();
        for (k, key) in [(3, "prdc_k3_real_f2_fake_f1"), (5, "prdc_k5_real_f2_fake_f1")] {
            let value = prdc(&f1, &f2, &NeighbourOptions { k, boundary: Boundary::Open }).unwrap();
            let expected: Prdc = serde_json::from_value(golden[key].clone()).unwrap();
            for (name, value, expected) in [
                ("precision", value.precision, expected.precision),
                ("recall", value.recall, expected.recall),
                ("density", value.density, expected.density),
                ("coverage", value.coverage, expected.coverage),
            ] {
                close(&format!("k={k} {name}"), value, expected, 1e-12);
            }
        }
        let value = prdc(&f1, &f2, &NeighbourOptions::TORCH_FIDELITY).unwrap();
        // torch-fidelity averages in f32.
        close("precision", value.precision, golden["prc_torch_fidelity_k3"]["precision"].as_f64().unwrap(), 1e-7);
        close("recall", value.recall, golden["prc_torch_fidelity_k3"]["recall"].as_f64().unwrap(), 1e-7);
    }

    /// Sets with duplicates inside and across, and rounded features full of ties.
    #[test]
    fn ties_and_duplicates_are_decided_as_by_definition() {
        let mut random = Gaussian::new(4);
        let coarse = |mut set: FeatureSet, step: f32| {
            set.data.iter_mut().for_each(|v| *v = (*v / step).round() * step + 1000.0);
            set
        };
        let x = coarse(random.features(70, 3, 0.0, 1.0), 0.5);
        let mut y = coarse(random.features(60, 3, 0.2, 1.0), 0.5);
        y.data[..30].copy_from_slice(&x.data[..30]);
        for k in [1, 2, 5, 59] {
            for boundary in [Boundary::Closed, Boundary::Open] {
                let options = NeighbourOptions { k, boundary };
                assert_eq!(prdc(&x, &y, &options).unwrap(), naive(&x, &y, &options), "{options:?}");
            }
        }
        let options = NeighbourOptions { k: 3, boundary: Boundary::Closed };
        let identical = prdc(&x, &x, &options).unwrap();
        assert_eq!((identical.precision, identical.recall), (1.0, 1.0));
        let point = features(&(vec![20, 3], vec![7.0; 60]), 1);
        let collapsed = prdc(&point, &point, &options).unwrap();
        assert_eq!(collapsed, Prdc { precision: 1.0, recall: 1.0, density: 0.0, coverage: 0.0 });
    }

    #[test]
    fn leaving_a_block_out_equals_not_having_it() {
        let mut random = Gaussian::new(8);
        // Groups of three near-copies: a block that leaves takes the nearest neighbours of nobody else,
        // or all of somebody's.
        let clumps = |random: &mut Gaussian, n: usize, mean: f64| {
            let (mut set, noise) = (random.features(n, 4, mean, 1.0), random.features(n, 4, 0.0, 0.05));
            for i in 0..n {
                for c in 0..4 {
                    set.data[4 * i + c] = set.data[4 * (i / 3 * 3) + c] + noise.data[4 * i + c];
                }
            }
            set
        };
        let (x, y) = (clumps(&mut random, 90, 0.3), clumps(&mut random, 75, 0.0));
        for blocks in [5, 7] {
            let of = |n: usize| (0..n).map(|i| (i / 3 + i % 2) % blocks).collect::<Vec<_>>();
            let (x_blocks, y_blocks) = (of(90), of(75));
            for boundary in [Boundary::Closed, Boundary::Open] {
                let options = NeighbourOptions { k: 3, boundary };
                let neighbours = Neighbours::new(&x, &x_blocks, &y, &y_blocks, blocks, &options).unwrap();
                for (b, c) in [(None, None), (Some(2), None), (None, Some(0)), (Some(1), Some(1)), (Some(4), Some(3))] {
                    let left_x = part(&x, |i| Some(x_blocks[i]) != b);
                    let left_y = part(&y, |j| Some(y_blocks[j]) != c);
                    assert_eq!(neighbours.without(b, c).unwrap(), naive(&left_x, &left_y, &options), "{b:?} {c:?} {boundary:?}");
                }
            }
        }
        // A fixed reference: all its rows in block 0, which never leaves.
        let options = NeighbourOptions::PRDC;
        let x_blocks: Vec<usize> = (0..90).map(|i| i / 9).collect();
        let fixed = Neighbours::new(&x, &x_blocks, &y, &[0; 75], 10, &options).unwrap();
        assert_eq!(fixed.without(Some(0), None).unwrap(), naive(&part(&x, |i| i >= 9), &y, &options));
        assert!(fixed.without(None, Some(0)).is_err());
    }

    /// A blurry generated set: every row lies in every ball. Counts, not lists of pairs, keep that cheap.
    #[test]
    fn points_at_the_centre_are_in_all_balls() {
        let mut random = Gaussian::new(2);
        let (y, x) = (random.features(60, 400, 0.0, 1.0), random.features(50, 400, 0.0, 0.01));
        let options = NeighbourOptions::PRDC;
        let value = prdc(&x, &y, &options).unwrap();
        assert_eq!(value, naive(&x, &y, &options));
        assert_eq!((value.precision, value.coverage, value.density), (1.0, 1.0, 12.0));
    }

    #[test]
    fn realism_by_definition() {
        let [f1, f2] = formula_features();
        let scores = realism(&f1, &f2, 3).unwrap();
        let distance = |a: &FeatureSet, i: usize, b: &FeatureSet, j: usize| -> f64 {
            let row = |set: &FeatureSet, i: usize| set.data[i * 16..][..16].to_vec();
            row(a, i).iter().zip(row(b, j)).map(|(a, b)| (f64::from(*a) - f64::from(b)).powi(2)).sum::<f64>().sqrt()
        };
        let radius = |j| {
            let mut all: Vec<f64> = (0..96).map(|l| distance(&f2, j, &f2, l)).collect();
            all.sort_by(f64::total_cmp);
            all[3]
        };
        let radii: Vec<f64> = (0..96).map(radius).collect();
        let mut sorted = radii.clone();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted[47] + sorted[48]) / 2.0;
        for (i, score) in scores.iter().enumerate() {
            let small = (0..96).filter(|j| radii[*j] < median);
            let expected = small.map(|j| radii[j] / distance(&f1, i, &f2, j)).fold(0.0, f64::max);
            assert!((score - expected).abs() <= 1e-12 * expected, "{i}: {score} {expected}");
        }
        assert_eq!(realism(&f2, &f2, 3).unwrap().iter().filter(|s| s.is_infinite()).count(), 48);
    }

    #[test]
    fn impossible_settings_are_refused() {
        let [f1, f2] = formula_features();
        let run = |k| prdc(&f1, &f2, &NeighbourOptions { k, boundary: Boundary::Closed });
        assert!(matches!(run(0), Err(Error::NoNeighbours)));
        let message = run(80).unwrap_err().to_string();
        assert_eq!(message, "prdc needs at least 81 images on each side, found 80 and 96");
        assert!(run(79).is_ok());
        let mut broken = f2.clone();
        broken.data[16 * 9 + 2] = f32::INFINITY;
        let message = prdc(&f1, &broken, &NeighbourOptions::PRDC).unwrap_err().to_string();
        assert_eq!(message, "feature 2 of row 9 (image 9) is inf");
    }
}
