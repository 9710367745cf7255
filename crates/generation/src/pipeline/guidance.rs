//! From the predictions of a view's passes to one.

use crate::error::{Error, Result};
use crate::step::{Bands, Conditioning, Pass};
use candle_core::Tensor;
use scalebench_kernels as kernels;

/// The sum of the passes by the weights of each band, partly rescaled to the spread of the text prediction: of each `frames` maps
/// together.
pub(super) fn combine(passes: &[Pass], predictions: &[Tensor], bands: Option<&Bands>, rescale: f64, frames: usize) -> Result<Tensor> {
    let low = weighted(predictions, passes.iter().map(|pass| pass.weight))?;
    let guided = match bands {
        None => low,
        Some(bands) => {
            let high = weighted(predictions, bands.high.iter().copied())?;
            let smooth = |x: &Tensor| -> Result<Tensor> {
                let (_, _, h, w) = x.dims4()?;
                let small = kernels::resize_bilinear(x, bands.size.0, bands.size.1)?;
                Ok(kernels::resize_bilinear(&small, h, w)?)
            };
            ((&high - smooth(&high)?)? + smooth(&low)?)?
        }
    };
    let text = passes.iter().position(|p| p.conditioning == Conditioning::Text && p.weight != 0.0);
    match text {
        Some(text) if rescale > 0.0 => {
            // Each image to its own spread.
            let one = |i: usize| -> Result<Tensor> {
                let (guided, text) = (guided.narrow(0, i, frames)?, predictions[text].narrow(0, i, frames)?);
                let rescaled = (&guided * (deviation(&text)? / deviation(&guided)?))?;
                Ok(((rescaled * rescale)? + (guided * (1.0 - rescale))?)?)
            };
            Ok(Tensor::cat(&(0..guided.dim(0)?).step_by(frames).map(one).collect::<Result<Vec<_>>>()?, 0)?)
        }
        _ => Ok(guided),
    }
}

fn weighted(predictions: &[Tensor], weights: impl Iterator<Item = f64>) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    // A pass of weight 0 may have another size.
    for (prediction, weight) in predictions.iter().zip(weights).filter(|(_, weight)| *weight != 0.0) {
        let term = (prediction * weight)?;
        sum = Some(match sum {
            None => term,
            Some(sum) => (sum + term)?,
        });
    }
    sum.ok_or_else(|| Error::method("", "a step without passes"))
}

/// Sample standard deviation over all elements.
pub(super) fn deviation(x: &Tensor) -> Result<f64> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    Ok((values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::site::SiteTable;
    use candle_core::Device;

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    /// Equal weights for both bands are ordinary guidance; for constant maps, which have no high frequencies, only the low one counts.
    #[test]
    fn bands_of_equal_weights_are_plain_guidance() {
        let pass = |conditioning, weight| Pass::new(Plan::plain(&SiteTable::default()), conditioning, weight);
        let passes = [pass(Conditioning::Empty, -6.5), pass(Conditioning::Text, 7.5)];
        let predictions = [0, 1].map(|k| {
            let values: Vec<f32> = (0..4 * 12 * 12).map(|i| ((i * (37 + k) + 11 * k) % 29) as f32 / 14.0 - 1.0).collect();
            Tensor::from_vec(values, (1, 4, 12, 12), &Device::Cpu).unwrap()
        });
        let plain = combine(&passes, &predictions, None, 0.0, 1).unwrap();
        let with =
            |high: f64, of: &[Tensor]| combine(&passes, of, Some(&Bands { size: (6, 6), high: vec![1.0 - high, high] }), 0.0, 1).unwrap();
        assert!(difference(&with(7.5, &predictions), &plain) < 1e-5);
        assert!(difference(&with(30.0, &predictions), &plain) > 1.0);
        let flat =
            [1f32, 2.0].map(|v| (Tensor::ones((1, 4, 12, 12), candle_core::DType::F32, &Device::Cpu).unwrap() * f64::from(v)).unwrap());
        assert!(difference(&with(30.0, &flat), &combine(&passes, &flat, None, 0.0, 1).unwrap()) < 1e-5);
    }
}
