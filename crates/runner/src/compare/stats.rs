//! Tests of hypotheses, as textbooks have them.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Pairs up to which the signed-rank distribution is counted out; beyond, its normal limit is good to three digits.
const EXACT_PAIRS: usize = 50;

/// Holm's (1979) step-down adjustment: reject where the result is at most the level, and the probability of any false
/// rejection among all of them is at most the level, however the tests depend on one another.
pub(crate) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        largest = largest.max(p[i] * (p.len() - rank) as f64).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

/// Two-sided p-value of a value with this standard error.
pub(crate) fn t_test(value: f64, std_error: f64, degrees: f64) -> f64 {
    if value == 0.0 {
        return 1.0;
    }
    // Without spread any difference is certain: t is infinite and its tail empty.
    let t = StudentsT::new(0.0, 1.0, degrees).expect("at least one degree of freedom");
    (2.0 * t.sf((value / std_error).abs())).min(1.0)
}

/// The value that Student's t stays below with this probability.
pub(crate) fn t_quantile(probability: f64, degrees: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees).expect("at least one degree of freedom").inverse_cdf(probability)
}

/// Welch's and Satterthwaite's degrees of freedom for the difference of two independent values, each given by its
/// standard error and degrees of freedom.
pub(crate) fn welch_degrees(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (a_variance, b_variance) = (a.0 * a.0, b.0 * b.0);
    let total = a_variance + b_variance;
    if total == 0.0 {
        return a.1 + b.1;
    }
    total * total / (a_variance * a_variance / a.1 + b_variance * b_variance / b.1)
}

/// Two-sided p-value of Wilcoxon's signed-rank test that differences lie symmetrically about zero. Zeros are left out;
/// ties share their ranks.
pub(crate) fn signed_rank(differences: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = sorted.len();
    // Twice the ranks, so that shared ones stay whole numbers.
    let mut ranks: Vec<usize> = Vec::with_capacity(n);
    while ranks.len() < n {
        let first = ranks.len();
        let tied = sorted[first..].iter().take_while(|d| d.abs() == sorted[first].abs()).count();
        ranks.extend(std::iter::repeat_n(2 * first + tied + 1, tied));
    }
    let positive: usize = ranks.iter().zip(&sorted).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();
    let larger = positive.max(ranks.iter().sum::<usize>() - positive);
    let tail = if n <= EXACT_PAIRS { exact_tail(&ranks, larger) } else { normal_tail(&ranks, larger) };
    (2.0 * tail).min(1.0)
}

/// Share of the 2ⁿ signs under which the doubled ranks that count as positive sum to `least` or more.
fn exact_tail(ranks: &[usize], least: usize) -> f64 {
    let all: usize = ranks.iter().sum();
    // Every count is a whole number below 2⁵³.
    let mut counts = vec![0.0; all + 1];
    counts[0] = 1.0;
    for &rank in ranks {
        for sum in (rank..=all).rev() {
            counts[sum] += counts[sum - rank];
        }
    }
    counts[least..].iter().sum::<f64>() / 2f64.powi(ranks.len() as i32)
}

/// Its limit for many ranks; sums of doubled ranks lie two apart, so one is half a step.
fn normal_tail(ranks: &[usize], least: usize) -> f64 {
    let mean = ranks.iter().sum::<usize>() as f64 / 2.0;
    let spread = ranks.iter().map(|rank| (rank * rank) as f64).sum::<f64>().sqrt() / 2.0;
    Normal::standard().sf((least as f64 - mean - 1.0) / spread)
}

/// The smallest p-value that [`signed_rank`] can give for so many differences.
pub(crate) fn smallest_signed_rank(n: usize) -> f64 {
    2f64.powi(1 - n as i32).min(1.0)
}

/// The middle value; None of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().checked_sub(1)?;
    Some((sorted[middle / 2] + sorted[middle.div_ceil(2)]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9 * expected.abs().max(1.0), "{value} {expected}");
    }

    /// Four p-values: 0.005·4 = 0.02, 0.01·3 = 0.03, 0.03·2 = 0.06, and 0.04·1 = 0.04, which may not be below the one before.
    #[test]
    fn holm_by_hand() {
        for (found, expected) in holm(&[0.01, 0.04, 0.03, 0.005]).into_iter().zip([0.03, 0.06, 0.06, 0.02]) {
            close(found, expected);
        }
        assert_eq!(holm(&[0.7, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    /// Counted out over all signs; five of one sign leave 2 of 32.
    #[test]
    fn signed_ranks_by_hand() {
        close(signed_rank(&[1.0, 2.0, 3.0, 4.0, 5.0]), 2.0 / 32.0);
        // W⁻ = 1: the sums 0 and 1 in either tail.
        close(signed_rank(&[-1.0, 2.0, 3.0, 4.0, 5.0]), 4.0 / 32.0);
        // Ties: ranks 1.5, 1.5, 3; the largest sum of the positive is 6, one sign of eight.
        close(signed_rank(&[1.0, 1.0, 2.0]), 2.0 / 8.0);
        // One of the tied is negative: sums ≥ 4.5 are those of {3, 1.5}, {3, 1.5} and all.
        close(signed_rank(&[-1.0, 1.0, 2.0]), 6.0 / 8.0);
        assert_eq!(signed_rank(&[0.0, 0.0]), 1.0);
        close(signed_rank(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), 2.0 / 32.0);
        close(smallest_signed_rank(5), 2.0 / 32.0);
        // Where the counting ends its limit is as good.
        let ranks: Vec<usize> = (1..=EXACT_PAIRS).map(|rank| 2 * rank).collect();
        let all: usize = ranks.iter().sum();
        for least in [all / 2 + 200, all / 2 + 400, all / 2 + 800] {
            let (exact, limit) = (exact_tail(&ranks, least), normal_tail(&ranks, least));
            assert!((exact - limit).abs() < 2e-3, "{least}: {exact} {limit}");
        }
    }

    /// Tables of Student's t: 2.228 leaves 5 % at ten degrees of freedom.
    #[test]
    fn t_by_the_table() {
        assert!((t_test(2.228, 1.0, 10.0) - 0.05).abs() < 1e-4);
        assert!((t_quantile(0.975, 10.0) - 2.228).abs() < 1e-3);
        assert_eq!(t_test(0.0, 0.0, 3.0), 1.0);
        assert_eq!(t_test(1.0, 0.0, 3.0), 0.0);
        // Equal spreads and sizes add their degrees.
        close(welch_degrees((2.0, 7.0), (2.0, 7.0)), 14.0);
        close(welch_degrees((2.0, 7.0), (0.0, 7.0)), 7.0);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
