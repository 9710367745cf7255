//! Matrix products over 32-bit words: all convolutions, linear layers and attentions end here.
//!
//! A word is an `f32`, or two `bf16` numbers that are neighbours in the summed dimension. Both kinds
//! move through caches and registers alike; only the innermost instruction differs, a fused
//! multiply-add or a `bf16` dot product (`vdpbf16ps`) that does twice the work. Sums are `f32`.
//!
//! Not every CPU that has the dot product is quick at it ([`pairs_pay`]). Where it does not pay, words of pairs
//! are taken apart, a part that stays in the caches at a time, and multiplied as `f32`: the operands are rounded all the same.

use crate::simd::dispatch;
use crate::words;
use std::cell::RefCell;
#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

/// What operands of products are rounded to; everything else stays `f32`.
///
/// Example: [`ConvWeight`](crate::ConvWeight).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To the nearest `bf16`, ties to even. The products of two `bf16` numbers are exact, their sums are `f32`.
    Bf16,
}

impl Precision {
    /// Words that `n` numbers along the summed dimension take.
    pub(crate) fn words(self, n: usize) -> usize {
        match self {
            Self::F32 => n,
            Self::Bf16 => n.div_ceil(2),
        }
    }
}

/// Columns of one panel of the right operand.
pub(crate) const PANEL: usize = 64;

/// Rows of a register tile.
const ROWS: usize = 6;

/// Words of the summed dimension in one pass: this much of a panel stays in a first-level cache.
pub(crate) const DEPTH: usize = 128;

/// The left operand: word `(i, p)` is at `ptr + i · row + p`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) ptr: *const u32,
    pub(crate) row: usize,
}

/// The right operand in panels of [`PANEL`] columns: word `(p, j)` is at
/// `ptr + j / PANEL · panel + p · PANEL + j % PANEL`.
#[derive(Clone, Copy)]
pub(crate) struct Right {
    pub(crate) ptr: *const u32,
    pub(crate) panel: usize,
}

/// `out = left · right`, or `+=`, on the calling thread; `out` `(m, n)` has rows `out_row` apart.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Words of the summed dimension.
    pub(crate) depth: usize,
    pub(crate) left: Left,
    pub(crate) right: Right,
    pub(crate) out: *mut f32,
    pub(crate) out_row: usize,
    pub(crate) accumulate: bool,
}

impl Product {
    /// Multiplies.
    ///
    /// # Safety
    /// The operands must hold `(m, depth)` and `(depth, n)` words, the last panel in full; `out` must be
    /// writable for `(m, n)`, initialised if `accumulate`, and disjoint from the operands.
    pub(crate) unsafe fn run(self, precision: Precision) {
        match precision {
            Precision::F32 => pulp::Arch::new().dispatch(MultiplyAdd(self)),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has the instructions; the rest is the caller's promise.
            Precision::Bf16 if pairs_pay() => unsafe { avx512_bf16::run(self) },
            // SAFETY: the caller's promise.
            Precision::Bf16 => APART.with_borrow_mut(|scratch| unsafe { self.apart(scratch) }),
        }
    }

    /// As [`run`](Self::run), of words of pairs, by products of `f32`.
    ///
    /// # Safety
    /// As there.
    unsafe fn apart(self, Apart { left, right }: &mut Apart) {
        const WORDS: usize = DEPTH / 2;
        right.resize(DEPTH * PANEL, 0);
        if left.len() < self.m * DEPTH {
            left.resize(self.m * DEPTH, 0);
        }
        for start in (0..self.depth).step_by(WORDS) {
            let words = WORDS.min(self.depth - start);
            dispatch(
                #[inline(always)]
                || {
                    for i in 0..self.m {
                        // SAFETY: the caller's promise.
                        let row = unsafe { std::slice::from_raw_parts(self.left.ptr.add(i * self.left.row + start), words) };
                        part(row, &mut left[i * DEPTH..][..2 * words]);
                    }
                },
            );
            for j in (0..self.n).step_by(PANEL) {
                dispatch(
                    #[inline(always)]
                    || {
                        // SAFETY: as above.
                        let panel = unsafe {
                            let first = self.right.ptr.add(j / PANEL * self.right.panel + start * PANEL);
                            std::slice::from_raw_parts(first, words * PANEL)
                        };
                        part(panel, &mut right[..2 * words * PANEL]);
                    },
                );
                let product = Product {
                    n: PANEL.min(self.n - j),
                    depth: 2 * words,
                    left: Left { ptr: left.as_ptr(), row: DEPTH },
                    right: Right { ptr: right.as_ptr(), panel: DEPTH * PANEL },
                    // SAFETY: column `j` is one of the output's.
                    out: unsafe { self.out.add(j) },
                    accumulate: self.accumulate || start > 0,
                    ..self
                };
                // SAFETY: the buffers hold what the product names; the output is the caller's promise.
                unsafe { product.run(Precision::F32) };
            }
        }
    }

    /// # Safety
    /// As [`run`](Self::run), and the CPU must have the kernel's instructions.
    #[inline(always)]
    unsafe fn tiles<K: Kernel>(self, kernel: K) {
        let Self { m, n, depth, left, right, out, out_row, accumulate } = self;
        let mut scratch = [0f32; ROWS * PANEL];
        for start in (0..depth).step_by(DEPTH) {
            let depth = DEPTH.min(depth - start);
            let add = accumulate || start > 0;
            for j in (0..n).step_by(PANEL) {
                let width = PANEL.min(n - j);
                for i in (0..m).step_by(ROWS) {
                    let rows = ROWS.min(m - i);
                    for q in (0..width).step_by(K::VECTORS * K::LANES) {
                        let columns = (K::VECTORS * K::LANES).min(width - q);
                        let vectors = columns.div_ceil(K::LANES);
                        // SAFETY: all offsets stay inside the operands; a ragged tile goes through `scratch`.
                        unsafe {
                            let a = Left { ptr: left.ptr.add(i * left.row + start), row: left.row };
                            let b = right.ptr.add(j / PANEL * right.panel + start * PANEL + q);
                            let c = out.add(i * out_row + j + q);
                            if columns == vectors * K::LANES {
                                tile(kernel, rows, vectors, depth, a, b, c, out_row, add);
                                continue;
                            }
                            tile(kernel, rows, vectors, depth, a, b, scratch.as_mut_ptr(), PANEL, false);
                            for r in 0..rows {
                                for (column, &v) in scratch[r * PANEL..][..columns].iter().enumerate() {
                                    let c = c.add(r * out_row + column);
                                    c.write(if add { c.read() + v } else { v });
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Operands of products of pairs, in `f32`.
#[derive(Default)]
struct Apart {
    /// `(m, DEPTH)`
    left: Vec<u32>,
    /// `(DEPTH, PANEL)`
    right: Vec<u32>,
}

thread_local! {
    static APART: RefCell<Apart> = RefCell::default();
}

/// The first numbers of all words, then the second ones: the order in which they are summed is as good as any.
#[inline(always)]
fn part(from: &[u32], to: &mut [u32]) {
    let n = from.len();
    let (first, second) = to.split_at_mut(n);
    let second = &mut second[..n];
    for i in 0..n {
        let [low, high] = words::apart(from[i]);
        (first[i], second[i]) = (low.to_bits(), high.to_bits());
    }
}

/// Whether products of pairs of `bf16` numbers are made as such, twice as fast as those of `f32`. Intel's cores start a
/// 512-bit dot product every other cycle, two of the multiply-adds every cycle: there `f32` is twice as fast.
pub(crate) fn pairs_pay() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static PAY: LazyLock<bool> = LazyLock::new(|| avx512_bf16::available() && !avx512_bf16::by_intel());
        *PAY
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The instructions of one register tile.
trait Kernel: Copy {
    type Vector: Copy;
    const LANES: usize;
    /// Vectors side by side; with `ROWS` rows they fill the registers.
    const VECTORS: usize;
    fn zero(self) -> Self::Vector;
    /// # Safety
    /// `p` must be valid for `LANES` reads.
    unsafe fn load(self, p: *const f32) -> Self::Vector;
    /// # Safety
    /// `p` must be valid for `LANES` writes.
    unsafe fn store(self, p: *mut f32, v: Self::Vector);
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `acc` plus the product of `word`, in every lane, with the words of `b`.
    fn dot(self, word: u32, b: Self::Vector, acc: Self::Vector) -> Self::Vector;
}

/// # Safety
/// As [`Product::run`], for `rows` rows and `vectors` whole vectors of one panel.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // Sizes, then operands.
unsafe fn tile<K: Kernel>(k: K, rows: usize, vectors: usize, depth: usize, a: Left, b: *const u32, c: *mut f32, c_row: usize, add: bool) {
    macro_rules! by_size {
        ($($r:literal: $($v:literal)*;)*) => {
            match (rows, vectors) {
                // SAFETY: the caller's promise.
                $($(($r, $v) => unsafe { registers::<K, $r, $v>(k, depth, a, b, c, c_row, add) },)*)*
                _ => unreachable!("a tile has 1 to {ROWS} rows and 1 to 4 vectors"),
            }
        };
    }
    by_size! { 6: 4 3 2 1; 5: 4 3 2 1; 4: 4 3 2 1; 3: 4 3 2 1; 2: 4 3 2 1; 1: 4 3 2 1; }
}

/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn registers<K: Kernel, const R: usize, const V: usize>(
    k: K,
    depth: usize,
    a: Left,
    mut b: *const u32,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    let mut acc = [[k.zero(); V]; R];
    // SAFETY: all reads and writes stay inside what the caller promised.
    unsafe {
        let rows: [*const u32; R] = std::array::from_fn(|r| a.ptr.add(r * a.row));
        for p in 0..depth {
            let panel: [K::Vector; V] = std::array::from_fn(|v| k.load(b.add(v * K::LANES).cast()));
            for r in 0..R {
                let word = *rows[r].add(p);
                for v in 0..V {
                    acc[r][v] = k.dot(word, panel[v], acc[r][v]);
                }
            }
            b = b.add(PANEL);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &sum) in acc.iter().enumerate() {
                let c = c.add(r * c_row + v * K::LANES);
                k.store(c, if add { k.add(k.load(c), sum) } else { sum });
            }
        }
    }
}

/// `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
mod avx512_bf16 {
    use super::{Kernel, Product};
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{__m512, __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_set1_epi32};

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }

    pub(super) fn by_intel() -> bool {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    }

    /// # Safety
    /// As [`Product::run`], on a CPU where [`available`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn run(product: Product) {
        // SAFETY: the caller's promise.
        unsafe { product.tiles(Dot) }
    }

    /// Only made in [`run`], where its instructions exist.
    #[derive(Clone, Copy)]
    struct Dot;

    impl Kernel for Dot {
        type Vector = __m512;
        const LANES: usize = 16;
        const VECTORS: usize = 4;

        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: all bits zero are sixteen zeros.
            unsafe { std::mem::zeroed() }
        }

        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<__m512>().read_unaligned() }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m512) {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<__m512>().write_unaligned(v) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see [`Dot`].
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn dot(self, word: u32, b: __m512, acc: __m512) -> __m512 {
            // SAFETY: see [`Dot`]; the vector types differ in name only.
            unsafe {
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(word.cast_signed()));
                _mm512_dpbf16_ps(acc, a, std::mem::transmute::<__m512, __m512bh>(b))
            }
        }
    }
}

/// Fused multiply-adds of whatever vectors the CPU has.
struct MultiplyAdd(Product);

impl pulp::WithSimd for MultiplyAdd {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        // SAFETY: `Product::run`'s caller made the promise.
        unsafe { self.0.tiles(Fma(simd)) }
    }
}

#[derive(Clone, Copy)]
struct Fma<S>(S);

impl<S: pulp::Simd> Kernel for Fma<S> {
    type Vector = S::f32s;
    const LANES: usize = size_of::<S::f32s>() / size_of::<f32>();
    // AVX2 has 16 registers, AVX-512 and NEON 32.
    const VECTORS: usize = if Self::LANES == 8 { 2 } else { 4 };

    #[inline(always)]
    fn zero(self) -> S::f32s {
        self.0.splat_f32s(0.0)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> S::f32s {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<S::f32s>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: S::f32s) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<S::f32s>().write_unaligned(v) }
    }

    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }

    #[inline(always)]
    fn dot(self, word: u32, b: S::f32s, acc: S::f32s) -> S::f32s {
        self.0.mul_add_f32s(self.0.splat_f32s(f32::from_bits(word)), b, acc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All tile sizes, ragged edges, several depths; integers, so that every order of summation gives the same.
    #[test]
    fn products_of_integers_are_exact_on_every_kernel() {
        for (m, n, k) in [(1, 1, 1), (6, 64, 128), (7, 65, 3), (5, 100, 600), (12, 33, 257), (4, 17, 2)] {
            let number = |i: usize| ((i * 37 + 11) % 17) as f32 - 8.0;
            let (a, b): (Vec<f32>, Vec<f32>) = ((0..m * k).map(number).collect(), (0..k * n).map(|i| number(3 * i + 1)).collect());
            for precision in [Precision::F32, Precision::Bf16] {
                let depth = precision.words(k);
                let mut left = vec![0u32; m * depth];
                crate::words::rows(&a, k, precision, &mut left);
                let mut right = vec![0u32; n.div_ceil(PANEL) * depth * PANEL];
                for p in 0..k {
                    for j in 0..n {
                        let (word, shift) = if precision == Precision::F32 { (p, 0) } else { (p / 2, p % 2 * 16) };
                        let bits = if precision == Precision::F32 { b[p * n + j].to_bits() } else { b[p * n + j].to_bits() >> 16 };
                        right[(j / PANEL * depth + word) * PANEL + j % PANEL] |= bits << shift;
                    }
                }
                let run = |accumulate: bool, kernel: &str| {
                    let mut out = vec![1f32; m * (n + 3)];
                    let product = Product {
                        m,
                        n,
                        depth,
                        left: Left { ptr: left.as_ptr(), row: depth },
                        right: Right { ptr: right.as_ptr(), panel: depth * PANEL },
                        out: out.as_mut_ptr(),
                        out_row: n + 3,
                        accumulate,
                    };
                    // SAFETY: the buffers have the sizes that the product names.
                    unsafe {
                        match (kernel, precision) {
                            ("chosen", _) => product.run(precision),
                            ("scalar", Precision::F32) => product.tiles(Fma(pulp::Scalar)),
                            #[cfg(target_arch = "x86_64")]
                            ("pairs", Precision::Bf16) if avx512_bf16::available() => avx512_bf16::run(product),
                            // What machines run whose dot products do not pay.
                            ("apart", Precision::Bf16) => product.apart(&mut Apart::default()),
                            _ => product.run(precision),
                        }
                    }
                    out
                };
                for (accumulate, kernel) in [false, true].into_iter().flat_map(|a| ["chosen", "scalar", "pairs", "apart"].map(|k| (a, k))) {
                    let out = run(accumulate, kernel);
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f32 = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
                            assert_eq!(out[i * (n + 3) + j], sum + f32::from(accumulate as u8), "{m} {n} {k} {precision:?} at {i}, {j}");
                        }
                        assert_eq!(out[i * (n + 3) + n..][..3], [1.0; 3], "the gap between rows is not touched");
                    }
                }
            }
        }
    }
}
