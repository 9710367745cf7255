//! Inner products between the rows of two matrices, on the calling thread.

use crate::product::{Left, PANEL, Precision, Product, Right};
use crate::weight::transpose;
use std::cell::RefCell;

/// Columns whose panels are laid out at a time.
const COLUMNS: usize = 4 * PANEL;

thread_local! {
    static PANELS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Writes `out[i, j] = Σ_k x[i, k] y[j, k]` for row-major `x` `(n, dim)`, `y` `(m, dim)` and `out` `(n, m)`.
///
/// For callers that share out their work themselves. It pays to have many rows in `x`: those of `y` are laid out anew
/// in every call.
///
/// # Panics
/// If a slice is not a whole number of rows, or `out` does not have `n · m` elements.
///
/// ```
/// let (x, y) = ([1.0, 0.0, 1.0, 2.0], [3.0, 4.0, 5.0, 6.0]);
/// let mut products = [0.0; 4];
/// scalebench_kernels::inner_products(&x, &y, 2, &mut products);
/// assert_eq!(products, [3.0, 5.0, 11.0, 17.0]);
/// ```
pub fn inner_products(x: &[f32], y: &[f32], dim: usize, out: &mut [f32]) {
    let rows = |v: &[f32]| v.len().checked_div(dim).filter(|n| n * dim == v.len()).expect("whole rows");
    let (n, m) = (rows(x), rows(y));
    assert_eq!(out.len(), n * m, "the output has {n} × {m} elements");
    PANELS.with_borrow_mut(|panels| {
        panels.resize(COLUMNS.min(m.next_multiple_of(PANEL)) * dim, 0);
        for first in (0..m).step_by(COLUMNS) {
            let columns = COLUMNS.min(m - first);
            let y = &y[first * dim..][..columns * dim];
            for (rows, panel) in y.chunks(PANEL * dim).zip(panels.chunks_exact_mut(PANEL * dim)) {
                transpose(rows.chunks_exact(dim), Precision::F32, panel);
            }
            let product = Product {
                m: n,
                n: columns,
                depth: dim,
                left: Left { ptr: x.as_ptr().cast(), row: dim },
                right: Right { ptr: panels.as_ptr(), panel: PANEL * dim },
                out: out[first..].as_mut_ptr(),
                out_row: m,
                accumulate: false,
            };
            // SAFETY: `x` has n rows of `dim` words, the panels hold all columns, and `out` has `n` rows of `m`.
            unsafe { product.run(Precision::F32) };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_match_the_definition() {
        for (n, m, dim) in [(1, 1, 1), (7, 300, 33), (130, 65, 200), (0, 5, 3)] {
            let number = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
            let (x, y): (Vec<f32>, Vec<f32>) = ((0..n * dim).map(number).collect(), (0..m * dim).map(|i| number(3 * i + 1)).collect());
            let mut out = vec![0f32; n * m];
            inner_products(&x, &y, dim, &mut out);
            for i in 0..n {
                for j in 0..m {
                    let want: f32 = (0..dim).map(|k| x[i * dim + k] * y[j * dim + k]).sum();
                    assert_eq!(out[i * m + j], want);
                }
            }
        }
    }
}
