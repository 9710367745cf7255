//! PNG files with a key: equal pixels and equal keys give equal bytes.

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::Image;

/// Keyword of the text chunk that holds an image's run-store key.
const KEYWORD: &str = "scalebench:key";

/// Deflate makes at most 258 bytes of 2 bits.
const LARGEST_RATIO: usize = 1032;

/// Encodes an image; `key` goes into a text chunk.
pub(crate) fn encode(image: &Image, key: Option<&str>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, u32::try_from(image.width)?, u32::try_from(image.height)?);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    if let Some(key) = key {
        encoder.add_text_chunk(KEYWORD.into(), key.into())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.rgb)?;
    writer.finish()?;
    Ok(bytes)
}

/// Decodes a file written by [`encode`] to its last byte; a truncated or damaged one is an error.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Image, Option<String>)> {
    let mut reader = ::png::Decoder::new(std::io::Cursor::new(bytes)).read_info()?;
    let size = reader.output_buffer_size().context("image too large")?;
    ensure!(size <= bytes.len().saturating_mul(LARGEST_RATIO), "{} bytes cannot hold an image of {size}", bytes.len());
    let mut rgb = vec![0; size];
    let frame = reader.next_frame(&mut rgb)?;
    ensure!((frame.color_type, frame.bit_depth) == (::png::ColorType::Rgb, ::png::BitDepth::Eight), "not an 8-bit RGB image");
    reader.finish()?;
    let key = reader.info().uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    let key = key.map(|chunk| chunk.text.clone());
    match Image::new(frame.width as usize, frame.height as usize, rgb) {
        Ok(image) => Ok((image, key)),
        Err(error) => bail!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let image = Image::new(5, 3, (0..45).collect()).unwrap();
        let bytes = encode(&image, Some("abc")).unwrap();
        assert_eq!(bytes, encode(&image, Some("abc")).unwrap());
        assert_eq!(decode(&bytes).unwrap(), (image.clone(), Some("abc".into())));
        assert_eq!(decode(&encode(&image, None).unwrap()).unwrap().1, None);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        let mut flipped = bytes.clone();
        let middle = bytes.len() - 20;
        flipped[middle] ^= 1;
        assert!(decode(&flipped).is_err());
    }
}
