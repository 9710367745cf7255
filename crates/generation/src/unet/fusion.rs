//! Self-attention in overlapping windows and among all, fused by frequency.

use crate::error::Result;
use crate::plan::ScaleFusion;
use candle_core::Tensor;

/// What local and global attention find on a map of `size` (height, width), whose `[q, k, v]` are `(batch, tokens, width)`.
pub(super) fn both(
    fusion: &ScaleFusion,
    size: (usize, usize),
    qkv: [&Tensor; 3],
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<[Tensor; 2]> {
    let local = in_groups(&windows(fusion, size), qkv, &attend)?;
    let [q, k, v] = qkv;
    let global = if fusion.stride == (1, 1) { attend(q, k, v)? } else { in_groups(&subsets(fusion.stride, size), qkv, &attend)? };
    Ok([local, global])
}

/// `global + G(local − global)`, both `(batch, tokens, width)` on a map of `size`.
pub(super) fn fused(fusion: &ScaleFusion, size: (usize, usize), local: &Tensor, global: &Tensor) -> Result<Tensor> {
    Ok((global + blurred(&(local - global)?, size, fusion.taps, fusion.sigma)?)?)
}

/// Gaussian blur over rows, columns and channels, with zeros around.
fn blurred(x: &Tensor, (h, w): (usize, usize), taps: usize, sigma: f64) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    let reach = taps / 2;
    let bell: Vec<f64> = (0..taps).map(|i| (-0.5 * ((i as f64 - reach as f64) / sigma).powi(2)).exp()).collect();
    let sum: f64 = bell.iter().sum();
    let mut x = x.reshape((batch, h, w, channels))?;
    for (dim, n) in [(1, h), (2, w), (3, channels)] {
        let padded = x.pad_with_zeros(dim, reach, reach)?;
        let term = |i: usize| padded.narrow(dim, i, n)?.contiguous()? * (bell[i] / sum);
        x = (1..taps).try_fold(term(0)?, |sum, i| sum + term(i)?)?;
    }
    Ok(x.reshape((batch, tokens, channels))?)
}

/// The tokens of each window, row by row; `h · w` stands for what lies outside.
fn windows(fusion: &ScaleFusion, (h, w): (usize, usize)) -> Vec<Vec<u32>> {
    let token = |row: i64, column: i64| {
        let inside = (0..h as i64).contains(&row) && (0..w as i64).contains(&column);
        if inside { (row as usize * w + column as usize) as u32 } else { (h * w) as u32 }
    };
    let window = |&(top, left): &(i64, i64)| {
        let (rows, columns) = (fusion.window.0 as i64, fusion.window.1 as i64);
        (top..top + rows).flat_map(|row| (left..left + columns).map(move |column| token(row, column))).collect()
    };
    fusion.corners.iter().map(window).collect()
}

/// The tokens of each strided subset.
fn subsets((down, across): (usize, usize), (h, w): (usize, usize)) -> Vec<Vec<u32>> {
    let subset = |i: usize, j: usize| {
        let row = move |row: usize| (j..w).step_by(across).map(move |column| (row * w + column) as u32);
        (i..h).step_by(down).flat_map(row).collect()
    };
    (0..down).flat_map(|i| (0..across).map(move |j| (i, j))).map(|(i, j)| subset(i, j)).collect()
}

/// Attention among the tokens of each group; where several groups hold a token, the mean of what they find. Groups have one size.
fn in_groups(groups: &[Vec<u32>], qkv: [&Tensor; 3], attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (batch, tokens, width) = qkv[2].dims3()?;
    let (n, each) = (groups.len(), groups[0].len());
    let mut counts = vec![0f32; tokens + 1];
    groups.iter().flatten().for_each(|&token| counts[token as usize] += 1.0);
    let shares: Vec<f32> = counts[..tokens].iter().map(|count| 1.0 / count.max(1.0)).collect();
    let device = qkv[2].device();
    let ids = Tensor::from_vec(groups.concat(), n * each, device)?;
    let gathered =
        |x: &Tensor| -> Result<Tensor> { Ok(x.pad_with_zeros(1, 0, 1)?.index_select(&ids, 1)?.reshape((batch * n, each, x.dim(2)?))?) };
    let [q, k, v] = qkv;
    let found = attend(&gathered(q)?, &gathered(k)?, &gathered(v)?)?.reshape((batch, n * each, width))?;
    let sum = Tensor::zeros((batch, tokens + 1, width), found.dtype(), device)?.index_add(&ids, &found, 1)?;
    let shares = Tensor::from_vec(shares, (1, tokens, 1), device)?.to_dtype(found.dtype())?;
    Ok(sum.narrow(1, 0, tokens)?.broadcast_mul(&shares)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn fusion(corners: &[(i64, i64)]) -> ScaleFusion {
        ScaleFusion { window: (2, 3), corners: corners.into(), stride: (1, 1), taps: 3, sigma: 1.0 }
    }

    #[test]
    fn groups_hold_their_tokens() {
        assert_eq!(windows(&fusion(&[(0, 0), (2, -1)]), (3, 4)), [vec![0, 1, 2, 4, 5, 6], vec![12, 8, 9, 12, 12, 12]]);
        assert_eq!(subsets((1, 2), (2, 4)), [vec![0, 2, 4, 6], vec![1, 3, 5, 7]]);
    }

    /// Groups that hand their values through give the mean, which is the value itself.
    #[test]
    fn overlapping_groups_are_averaged() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let x = Tensor::from_vec(values.clone(), (1, 12, 2), &Device::Cpu).unwrap();
        let groups = windows(&fusion(&[(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0)]), (3, 4));
        let found = in_groups(&groups, [&x, &x, &x], |_, _, v| Ok(v.clone())).unwrap();
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
    }

    /// A point spreads over rows, columns and channels alike; equal attentions are not changed by fusing them.
    #[test]
    fn the_blur_is_a_cube() {
        let mut values = vec![0f32; 5 * 5 * 5];
        values[2 * 25 + 2 * 5 + 2] = 1.0;
        let x = Tensor::from_vec(values, (1, 25, 5), &Device::Cpu).unwrap();
        let y = blurred(&x, (5, 5), 3, 1.0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let side = (-0.5f32).exp() / (1.0 + 2.0 * (-0.5f32).exp());
        let centre = 1.0 - 2.0 * side;
        let at = |row: usize, column: usize, channel: usize| y[row * 25 + column * 5 + channel];
        for (row, column, channel, want) in [
            (2, 2, 2, centre.powi(3)),
            (1, 2, 2, side * centre * centre),
            (2, 2, 3, side * centre * centre),
            (1, 3, 1, side.powi(3)),
            (0, 2, 2, 0.0),
        ] {
            assert!((at(row, column, channel) - want).abs() < 1e-6);
        }
        let same = fused(&fusion(&[]), (5, 5), &x, &x).unwrap();
        assert_eq!(same.flatten_all().unwrap().to_vec1::<f32>().unwrap(), x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
}
