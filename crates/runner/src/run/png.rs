//! PNG files with a key, still or animated: equal pixels and equal keys give equal bytes.

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

/// Encodes a video as an animated PNG, which browsers play, without end; one frame is a still image.
pub(crate) fn encode_frames(frames: &[Image], fps: f64, key: Option<&str>) -> Result<Vec<u8>> {
    let (first, n) = match frames {
        [image] => return encode(image, key),
        [first, ..] => (first, u32::try_from(frames.len())?),
        [] => bail!("a video without frames"),
    };
    ensure!(frames.iter().all(|frame| (frame.width, frame.height) == (first.width, first.height)), "frames of different sizes");
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, u32::try_from(first.width)?, u32::try_from(first.height)?);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    encoder.set_animated(n, 0)?;
    // In milliseconds.
    encoder.set_frame_delay((1000.0 / fps).round().clamp(1.0, 65535.0) as u16, 1000)?;
    if let Some(key) = key {
        encoder.add_text_chunk(KEYWORD.into(), key.into())?;
    }
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(&frame.rgb)?;
    }
    writer.finish()?;
    Ok(bytes)
}

/// Decodes a file written by [`encode_frames`] to its last byte.
pub(crate) fn decode_frames(bytes: &[u8]) -> Result<(Vec<Image>, Option<String>)> {
    let mut reader = ::png::Decoder::new(std::io::Cursor::new(bytes)).read_info()?;
    let Some(animation) = reader.info().animation_control().copied() else {
        let (image, key) = decode(bytes)?;
        return Ok((vec![image], key));
    };
    let size = reader.output_buffer_size().context("image too large")?;
    ensure!(size <= bytes.len().saturating_mul(LARGEST_RATIO), "{} bytes cannot hold an image of {size}", bytes.len());
    let mut frames = Vec::new();
    for _ in 0..animation.num_frames {
        let mut rgb = vec![0; size];
        let frame = reader.next_frame(&mut rgb)?;
        ensure!((frame.color_type, frame.bit_depth) == (::png::ColorType::Rgb, ::png::BitDepth::Eight), "not an 8-bit RGB image");
        // What this program writes has whole frames; others' are composed.
        ensure!(frame.buffer_size() == size, "a frame that covers a part of the image");
        frames.push(Image::new(frame.width as usize, frame.height as usize, rgb)?);
    }
    reader.finish()?;
    let key = reader.info().uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    Ok((frames, key.map(|chunk| chunk.text.clone())))
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
    fn videos_round_trip_and_damage() {
        let frames: Vec<Image> = (0..4u8).map(|i| Image::new(5, 3, (0..45).map(|k| k * (i + 1)).collect()).unwrap()).collect();
        let bytes = encode_frames(&frames, 8.0, Some("abc")).unwrap();
        assert_eq!(bytes, encode_frames(&frames, 8.0, Some("abc")).unwrap());
        assert_eq!(decode_frames(&bytes).unwrap(), (frames.clone(), Some("abc".into())));
        assert_eq!(decode(&bytes).unwrap(), (frames[0].clone(), Some("abc".into())), "a reader of stills sees the first frame");
        // As other programs see it.
        let found = scalebench_metrics::videos::animation(std::io::Cursor::new(&bytes), "a test".as_ref()).unwrap();
        assert_eq!(found, frames);
        for length in 0..bytes.len() {
            assert!(decode_frames(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
        assert_eq!(encode_frames(&frames[..1], 8.0, None).unwrap(), encode(&frames[0], None).unwrap());
        assert_eq!(decode_frames(&encode(&frames[0], None).unwrap()).unwrap().0, frames[..1]);
    }

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
