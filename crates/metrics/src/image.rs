//! Image files to 8-bit RGB, the way `PIL.Image.open(path).convert("RGB")` gives it.

use std::path::{Path, PathBuf};

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use crate::{Error, Result};

/// Bytes of pixels for a byte of a file: deflate makes at most 258 of 2 bits, JPEG somewhat more of a plane of one colour.
const LARGEST_RATIO: u64 = 4096;

/// An RGB image, `(height, width, 3)` row-major, 8 bits per value, sRGB as stored in the file.
///
/// ```
/// use scalebench_metrics::{Image, list_images};
/// assert_eq!(Image::new(1, 1, vec![255, 0, 0])?.rgb, [255, 0, 0]);
/// // The one image of a folder, from its file and from the file's bytes.
/// let files = list_images("../../datasets/pocket".as_ref())?;
/// assert_eq!((files.len(), files[0].ends_with("grid.png")), (1, true));
/// let grid = Image::open(&files[0])?;
/// assert_eq!((grid.width, grid.height), Image::size(&files[0])?);
/// assert_eq!(Image::decode(std::io::Cursor::new(std::fs::read(&files[0])?), &files[0])?, grid);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `3 * width * height` values, red first.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Wraps pixels, checking their number.
    /// Example: [`Image`].
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let expected = 3 * width * height;
        if rgb.len() != expected || expected == 0 {
            return Err(Error::PixelCount { width, height, expected, found: rgb.len() });
        }
        Ok(Self { width, height, rgb })
    }

    /// Decodes a PNG, JPEG or WebP file; the format is taken from the content, not from the name.
    ///
    /// Alpha is dropped, not composited, and grey is repeated, as Pillow's `convert("RGB")` does.
    /// 16-bit files keep their high byte; of 16-bit grey without alpha Pillow makes white instead. EXIF orientation is
    /// ignored, as in all FID tools.
    /// Example: [`Image`].
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let file = std::io::BufReader::new(std::fs::File::open(path).map_err(read)?);
        Self::decode(file, path)
    }

    /// Decodes what [`open`](Self::open) reads from elsewhere; `path` is for messages.
    /// Example: [`Image`].
    pub fn decode(mut source: impl std::io::BufRead + std::io::Seek, path: &Path) -> Result<Self> {
        let decode = |message: String| Error::Decode { path: path.to_owned(), message };
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let length = source.seek(std::io::SeekFrom::End(0)).and_then(|length| source.rewind().map(|()| length)).map_err(read)?;
        let mut reader = ImageReader::new(source).with_guessed_format().map_err(read)?;
        // What the file can hold, not the default limit of 512 MiB: that refuses 16384x16384, a size this project is about.
        let largest = length.saturating_mul(LARGEST_RATIO);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(largest.saturating_add(64 << 20));
        reader.limits(limits);
        let webp = reader.format() == Some(image::ImageFormat::WebP);
        let decoder = reader.into_decoder().map_err(|e| decode(e.to_string()))?;
        let (width, height) = decoder.dimensions();
        // WebP may need next to nothing for a plane of one colour, and has no side above 16383.
        if !webp && decoder.total_bytes() > largest {
            return Err(decode(format!("{length} bytes cannot hold the {width}x{height} pixels that its header announces")));
        }
        let colour = decoder.color_type();
        let pixels = DynamicImage::from_decoder(decoder).map_err(|e| decode(e.to_string()))?;
        let rgb = match colour {
            ColorType::Rgb8 | ColorType::Rgba8 | ColorType::L8 | ColorType::La8 => pixels.into_rgb8().into_raw(),
            // `into_rgb8` would round to nearest here; the high byte is what 8-bit tools read.
            _ => pixels.into_rgb16().into_raw().into_iter().map(|v| (v >> 8) as u8).collect(),
        };
        Self::new(width as usize, height as usize, rgb)
    }

    /// Width and height of a file, from its header alone.
    /// Example: [`Image`].
    pub fn size(path: &Path) -> Result<(usize, usize)> {
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let reader = ImageReader::open(path).map_err(read)?.with_guessed_format().map_err(read)?;
        let size = reader.into_dimensions().map_err(|e| Error::Decode { path: path.to_owned(), message: e.to_string() });
        size.map(|(width, height)| (width as usize, height as usize))
    }

    /// Luma of every pixel (ITU-R 601-2), rounded as Pillow's `convert("L")` does.
    pub(crate) fn luma(&self) -> Vec<u8> {
        let of = |&[r, g, b]: &[u8; 3]| ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8;
        self.rgb.as_chunks::<3>().0.iter().map(of).collect()
    }

    /// Copies the `size` × `size` square whose top left corner is at `(left, top)`.
    ///
    /// The caller has checked that it lies inside.
    pub(crate) fn crop(&self, left: usize, top: usize, size: usize) -> Self {
        let rgb = (top..top + size)
            .flat_map(|y| {
                let start = 3 * (y * self.width + left);
                &self.rgb[start..start + 3 * size]
            })
            .copied()
            .collect();
        Self { width: size, height: size, rgb }
    }
}

/// Paths of all PNG, JPEG and WebP files under `folder`, recursively, sorted by path.
///
/// The order is that of the path's components as bytes, so it is the same on every machine.
/// A missing folder and a folder without images are errors: both are nearly always a mistyped path.
///
/// Example: [`Image`].
pub fn list_images(folder: &Path) -> Result<Vec<PathBuf>> {
    fn visit(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        let error = |source| Error::Io { action: "list", path: folder.to_owned(), source };
        for entry in std::fs::read_dir(folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.is_dir() {
                visit(&path, found)?;
            } else if is_image(&path) {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    visit(folder, &mut found)?;
    if found.is_empty() {
        return Err(Error::NoImages { path: folder.to_owned() });
    }
    found.sort();
    Ok(found)
}

/// Whether the name ends like an image's.
pub(crate) fn is_image(path: &Path) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| ["png", "jpg", "jpeg", "webp"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_dropped_and_grey_is_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        image::RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 40, 50, 60, 255]).unwrap().save(&path).unwrap();
        assert_eq!(Image::open(&path).unwrap().rgb, [10, 20, 30, 40, 50, 60]);
        image::GrayImage::from_raw(2, 1, vec![7, 9]).unwrap().save(&path).unwrap();
        assert_eq!(Image::open(&path).unwrap().rgb, [7, 7, 7, 9, 9, 9]);
        let deep = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(1, 1, vec![0x12ffu16]);
        deep.unwrap().save(&path).unwrap();
        assert_eq!(Image::open(&path).unwrap().rgb, [0x12; 3]);
        image::GrayImage::from_raw(3, 2, vec![0; 6]).unwrap().save(&path).unwrap();
        assert_eq!(Image::size(&path).unwrap(), (3, 2));
    }

    #[test]
    fn folders_are_listed_recursively_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["c.PNG", "b/a.jpeg", "a.webp", "notes.txt"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let found = list_images(dir.path()).unwrap();
        let expected: Vec<_> = ["a.webp", "b/a.jpeg", "c.PNG"].iter().map(|n| dir.path().join(n)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_folders_and_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(list_images(dir.path()), Err(Error::NoImages { .. })));
        let missing = dir.path().join("missing");
        assert!(list_images(&missing).unwrap_err().to_string().contains("missing"));
        let corrupt = dir.path().join("corrupt.png");
        std::fs::write(&corrupt, b"\x89PNG\r\n\x1a\nbroken").unwrap();
        let message = Image::open(&corrupt).unwrap_err().to_string();
        assert!(message.contains("corrupt.png"), "{message}");
        assert!(Image::open(&missing).unwrap_err().to_string().contains("missing"));
    }
}
