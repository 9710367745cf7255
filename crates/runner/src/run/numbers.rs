//! How numbers are written.

use crate::run::results::Interval;

/// Bytes of a MiB.
pub(crate) const MEBIBYTE: f64 = 1_048_576.0;

/// Four significant digits.
pub(crate) fn number(value: f64) -> String {
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let digits = (3 - magnitude).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

/// `12.3 ± 4.5`: as many decimals as give the half-width two significant digits.
pub(crate) fn value_and_half_width(x: Interval, factor: f64) -> String {
    let half_width = (x.hi - x.lo) / 2.0 * factor;
    let magnitude = if half_width > 0.0 { half_width.log10().floor() as i32 } else { 0 };
    let digits = (1 - magnitude).clamp(0, 6) as usize;
    format!("{:.digits$} ± {half_width:.digits$}", x.value * factor)
}

/// `+12.3 ± 4.5`: the same of a difference, which always has a sign.
pub(crate) fn change(difference: Interval, factor: f64) -> String {
    let text = value_and_half_width(difference, factor);
    if text.starts_with('-') { text } else { format!("+{text}") }
}

/// A p-value to four digits.
pub(crate) fn probability(p: f64) -> String {
    if p < 0.0001 { "<0.0001".to_owned() } else { format!("{p:.4}") }
}

/// A published figure, as printed but for the factor.
pub(crate) fn figure(value: f64, factor: f64) -> String {
    // 0.0291 × 10³ is not 29.099999999999998.
    format!("{}", (value * factor * 1e6).round() / 1e6)
}
