//! What JPEG does to an image: published pipelines store JPEG files, and metrics see the damage.
//!
//! ```
//! use scalebench_metrics::{Image, jpeg};
//! // A colour in the middle of the range has no coefficients to round.
//! let grey = Image::new(16, 16, vec![128; 3 * 16 * 16])?;
//! assert_eq!(jpeg::round_trip(&grey, 50)?, grey);
//! # Ok::<(), scalebench_metrics::Error>(())
//! ```

use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::{Error, Image, Result};

/// The pixels of `image` after JPEG of this quality (1 to 100) with 4:2:0 chroma and the standard tables, which is
/// what Pillow writes by default (its quality is 75). Sides up to 65535 pixels.
///
/// Example: [this module](self).
pub fn round_trip(image: &Image, quality: u8) -> Result<Image> {
    let too_large =
        |_| Error::BadPreprocess(format!("JPEG holds at most 65535 pixels a side, the image is {}x{}", image.width, image.height));
    let (width, height) = (u16::try_from(image.width).map_err(too_large)?, u16::try_from(image.height).map_err(too_large)?);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    let path = Path::new("an image in memory");
    let failed = |e: jpeg_encoder::EncodingError| Error::Decode { path: path.to_owned(), message: e.to_string() };
    encoder.encode(&image.rgb, width, height, ColorType::Rgb).map_err(failed)?;
    Image::decode(std::io::Cursor::new(bytes), path)
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
            assert_eq!((other.width, other.height), (width, height));
            image.rgb.iter().zip(&other.rgb).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>()
        };
        assert!(damage(75) > 0.0 && damage(10) > damage(75));
        assert_eq!(round_trip(&image, 75).unwrap(), round_trip(&image, 75).unwrap());
    }
}
