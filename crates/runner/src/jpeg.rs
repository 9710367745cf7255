//! What JPEG does to an image: published pipelines store JPEG files, and metrics see the damage.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use scalebench_metrics::Image;

/// The pixels of `image` after JPEG of this quality with 4:2:0 chroma and the standard tables, which is
/// what Pillow writes by default (its quality is 75).
pub(crate) fn round_trip(image: &Image, quality: u8) -> Result<Image> {
    let side = |n: usize| u16::try_from(n).ok().context("JPEG holds at most 65535 pixels a side");
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&image.rgb, side(image.width)?, side(image.height)?, ColorType::Rgb)?;
    let decoded = Image::decode(std::io::Cursor::new(bytes), Path::new("an image in memory"))?;
    ensure!((decoded.width, decoded.height) == (image.width, image.height), "JPEG changed the size");
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_falls_with_quality() {
        let (width, height) = (40, 24);
        let rgb = (0..width * height * 3).map(|i| ((i * 7 / 3) % 256) as u8).collect();
        let image = Image::new(width, height, rgb).unwrap();
        let damage = |quality| {
            let other = round_trip(&image, quality).unwrap();
            image.rgb.iter().zip(&other.rgb).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>()
        };
        assert!(damage(75) > 0.0 && damage(10) > damage(75));
        assert_eq!(round_trip(&image, 75).unwrap(), round_trip(&image, 75).unwrap());
    }
}
