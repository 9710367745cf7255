//! Videos as files: folders of frames, and animations that browsers show.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::ImageEncoder as _;
use scalebench_metrics::Image;

use crate::run::png;

/// Refuses a folder that [`write_folder`] would not replace: one with anything but frames in it.
pub(crate) fn check_folder(folder: &Path) -> Result<()> {
    ensure!(folder.file_name().is_some(), "{}: expected the name of a folder", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{}: expected a folder for frames", folder.display())),
    };
    for entry in entries {
        let name = entry.with_context(|| format!("cannot list {}", folder.display()))?.file_name().to_string_lossy().into_owned();
        let is_frame = name.strip_suffix(".png").is_some_and(|stem| stem.len() == 6 && stem.bytes().all(|b| b.is_ascii_digit()));
        ensure!(is_frame, "{}: holds `{name}`, expected a new folder, or one of frames alone, which are replaced", folder.display());
    }
    Ok(())
}

/// Writes `000000.png` and so on into `folder`, which appears with all of them.
pub(crate) fn write_folder(folder: &Path, frames: &[Image]) -> Result<()> {
    check_folder(folder)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(folder.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = folder.with_file_name(name);
    let write = || -> std::io::Result<()> {
        if temporary.exists() {
            fs::remove_dir_all(&temporary)?;
        }
        fs::create_dir_all(&temporary)
    };
    write().with_context(|| format!("cannot write {}", temporary.display()))?;
    for (i, frame) in frames.iter().enumerate() {
        let file = temporary.join(format!("{i:06}.png"));
        fs::write(&file, png::encode(frame, None)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let replace = || -> std::io::Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::rename(&temporary, folder)
    };
    replace().with_context(|| format!("cannot write {}", folder.display()))
}

/// Frames of one size as an animated WebP that repeats for ever, without losses.
pub(crate) fn animated_webp(frames: &[Image], fps: f64) -> Result<Vec<u8>> {
    animated(frames, fps, |frame| {
        let mut still = Vec::new();
        let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut still);
        encoder.write_image(&frame.rgb, frame.width as u32, frame.height as u32, image::ExtendedColorType::Rgb8)?;
        Ok(still)
    })
}

/// The same from what writes a frame as a WebP file. The crates at hand write still images: the container of an animation around them
/// follows RFC 9649, section 2.7.
pub(crate) fn animated(frames: &[Image], fps: f64, encode: impl Fn(&Image) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let Some(first) = frames.first() else { bail!("a video without frames") };
    ensure!(frames.iter().all(|f| (f.width, f.height) == (first.width, first.height)), "frames of different sizes");
    let size = |n: usize| -> Result<[u8; 3]> {
        let bytes = u32::try_from(n - 1)?.to_le_bytes();
        ensure!(bytes[3] == 0 && n <= 1 << 14, "a side of {n} pixels, expected up to 16384 of a WebP");
        Ok([bytes[0], bytes[1], bytes[2]])
    };
    let sides = [size(first.width)?, size(first.height)?].concat();
    let mut body = b"WEBP".to_vec();
    // It is animated; nothing else is set.
    chunk(&mut body, b"VP8X", &[&[2u8, 0, 0, 0][..], &sides].concat());
    // Background, and repeats: without end.
    chunk(&mut body, b"ANIM", &[0; 6]);
    let start = |i: usize| (i as f64 * 1000.0 / fps).round() as u32;
    for (i, frame) in frames.iter().enumerate() {
        let still = encode(frame)?;
        let duration = (start(i + 1) - start(i)).min(0x00ff_ffff).to_le_bytes();
        // At the origin, in place of what was there; then the still image's chunk, behind its file's header.
        let data = [&[0u8; 6][..], &sides, &duration[..3], &[2], still.get(12..).context("a WebP without a header")?].concat();
        chunk(&mut body, b"ANMF", &data);
    }
    let mut file = Vec::new();
    chunk(&mut file, b"RIFF", &body);
    Ok(file)
}

/// Appends a chunk: name, length, content, and a byte to an even length.
fn chunk(to: &mut Vec<u8>, name: &[u8; 4], content: &[u8]) {
    to.extend_from_slice(name);
    to.extend_from_slice(&(content.len() as u32).to_le_bytes());
    to.extend_from_slice(content);
    to.extend(std::iter::repeat_n(0, content.len() % 2));
}

#[cfg(test)]
mod tests {
    use image::AnimationDecoder as _;

    use super::*;

    fn frames() -> Vec<Image> {
        (0..5u32).map(|i| Image::new(7, 3, (0..63).map(|k| (k * (3 + i) % 251) as u8).collect()).unwrap()).collect()
    }

    #[test]
    fn an_animated_webp_holds_every_pixel_and_its_time() {
        let frames = frames();
        let file = animated_webp(&frames, 7.0).unwrap();
        let decoder = image::codecs::webp::WebPDecoder::new(std::io::Cursor::new(file)).unwrap();
        assert!(decoder.has_animation());
        let found = decoder.into_frames().collect_frames().unwrap();
        assert_eq!(found.len(), 5);
        let mut time = 0.0;
        for (found, frame) in found.iter().zip(&frames) {
            let rgb = image::DynamicImage::from(found.buffer().clone()).into_rgb8();
            assert_eq!(rgb.as_raw(), &frame.rgb);
            let (numerator, denominator) = found.delay().numer_denom_ms();
            time += f64::from(numerator) / f64::from(denominator);
        }
        assert!((time - 5000.0 / 7.0).abs() < 0.5, "{time}");
        let other = Image::new(3, 7, vec![0; 63]).unwrap();
        assert!(animated_webp(&[frames[0].clone(), other], 8.0).is_err());
    }

    #[test]
    fn only_frames_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cat");
        write_folder(&folder, &frames()).unwrap();
        write_folder(&folder, &frames()[..2]).unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["000000.png", "000001.png"]);
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        let message = write_folder(&folder, &frames()).unwrap_err().to_string();
        assert!(message.contains("notes.txt"), "{message}");
        assert!(folder.join("000001.png").exists());
    }
}
