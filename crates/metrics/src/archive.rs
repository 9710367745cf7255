//! Image sets in zip archives, without unpacking them.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

use crate::image::is_image;
use crate::{Error, Image, ImageSet, Result};

/// Deflate makes at most 258 bytes of 2 bits; no other method that is built in makes more.
const LARGEST_RATIO: u64 = 1032;

/// A zip archive of PNG, JPEG and WebP files, to be used as a folder of them is.
///
/// The directory is read once; any number of threads can then decode images at the same time, since reads
/// say where they are in the file.
///
/// ```
/// use std::io::Write;
///
/// use scalebench_metrics::{ImageArchive, ImageSet, Image};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("images.zip");
/// let mut zip = zip::ZipWriter::new(std::fs::File::create(&path)?);
/// zip.start_file("a/grid.png", zip::write::SimpleFileOptions::default())?;
/// zip.write_all(&std::fs::read("../../datasets/pocket/grid.png")?)?;
/// zip.finish()?;
/// let archive = ImageArchive::open(&path)?;
/// assert_eq!(archive.names().collect::<Vec<_>>(), ["a/grid.png"]);
/// assert_eq!(archive.image(0)?, Image::open("../../datasets/pocket/grid.png".as_ref())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ImageArchive {
    path: PathBuf,
    archive: ZipArchive<Positioned>,
    /// Name and index of each image, sorted by the name's bytes.
    entries: Vec<(String, usize)>,
}

impl ImageArchive {
    /// Opens an archive. Images are told by the endings of their names, as in folders; folders and macOS's
    /// `__MACOSX` entries are left out.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::NoImages`], and [`Error::Archive`] for what is no zip archive or has one name
    /// twice.
    ///
    /// Example: [`ImageArchive`].
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let bad = |message: String| Error::Archive { path: path.to_owned(), message };
        let reader = Positioned { file: Arc::new(File::open(path).map_err(read)?), position: 0 };
        let archive = ZipArchive::new(reader).map_err(|e| bad(e.to_string()))?;
        if archive.has_duplicate_names() {
            return Err(bad("two entries have the same name".into()));
        }
        let mut entries: Vec<(&[u8], String, usize)> = Vec::new();
        for (index, raw) in archive.file_names_raw().enumerate() {
            let name = String::from_utf8_lossy(raw).into_owned();
            let is_folder = name.ends_with(['/', '\\']);
            if !is_folder && is_image(Path::new(&name)) && !name.split('/').any(|part| part == "__MACOSX") {
                entries.push((raw, name, index));
            }
        }
        if entries.is_empty() {
            return Err(Error::NoImages { path: path.to_owned() });
        }
        entries.sort_unstable();
        let entries = entries.into_iter().map(|(_, name, index)| (name, index)).collect();
        Ok(Self { path: path.to_owned(), archive, entries })
    }

    /// Names of the images inside the archive, sorted by their bytes.
    /// Example: [`ImageArchive`].
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The whole entry, so that its checksum is compared even where a decoder would stop early.
    fn read(&self, index: usize) -> Result<Vec<u8>, String> {
        // The clone shares the file and the directory; its position is its own.
        let mut archive = self.archive.clone();
        let mut entry = archive.by_index(index).map_err(|e| e.to_string())?;
        let (size, packed) = (entry.size(), entry.compressed_size());
        if size > packed.saturating_mul(LARGEST_RATIO) {
            return Err(format!("{packed} bytes of the archive cannot hold the {size} that its directory announces"));
        }
        let mut bytes = Vec::new();
        // Memory grows with what is really there; one byte too many shows a false announcement.
        entry.by_ref().take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        if bytes.len() as u64 != size {
            return Err(format!("the archive's directory announces {size} bytes, found {}", bytes.len()));
        }
        Ok(bytes)
    }
}

impl ImageSet for ImageArchive {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn name(&self, place: usize) -> &str {
        &self.entries[place].0
    }

    fn image(&self, place: usize) -> Result<Image> {
        let (name, index) = &self.entries[place];
        let path = self.path.join(name);
        let bytes = self.read(*index).map_err(|message| Error::Decode { path: path.clone(), message })?;
        Image::decode(Cursor::new(bytes), &path)
    }
}

/// A shared file read at a position of one's own.
#[derive(Clone, Debug)]
struct Positioned {
    file: Arc<File>,
    position: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        #[cfg(unix)]
        let n = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.position)?;
        #[cfg(windows)]
        let n = std::os::windows::fs::FileExt::seek_read(&*self.file, buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Positioned {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.file.metadata()?.len().checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rayon::prelude::*;
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;
    use crate::test_data::{formula_image, png};

    fn zip(path: &Path, method: CompressionMethod, entries: &[(&str, &[u8])]) {
        let mut writer = ZipWriter::new(File::create(path).unwrap());
        let options = SimpleFileOptions::default().compression_method(method);
        for (name, bytes) in entries {
            if name.ends_with('/') {
                writer.add_directory(*name, options).unwrap();
            } else {
                writer.start_file(*name, options).unwrap();
                writer.write_all(bytes).unwrap();
            }
        }
        writer.finish().unwrap();
    }

    #[test]
    fn images_decode_in_parallel_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.zip");
        let images: Vec<Image> = (0..24).map(|seed| formula_image(seed, 40 + seed as usize, 30)).collect();
        let files: Vec<Vec<u8>> = images.iter().map(png).collect();
        let names: Vec<String> = (0..24).map(|i| format!("b/{:02}.PNG", i * 7 % 24)).collect();
        let mut entries: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(files.iter().map(Vec::as_slice)).collect();
        let others: [(&str, &[u8]); 6] =
            [("b/", b""), ("folder.png/", b""), ("__MACOSX/b/._00.PNG", b"x"), ("notes.txt", b"x"), ("a.webp", b"x"), ("B.jpeg", b"x")];
        entries.extend(others);
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            zip(&path, method, &entries);
            let archive = ImageArchive::open(&path).unwrap();
            let mut expected: Vec<&str> = names.iter().map(String::as_str).chain(["a.webp", "B.jpeg"]).collect();
            expected.sort_unstable();
            assert_eq!(archive.names().collect::<Vec<_>>(), expected);
            assert_eq!((expected[0], expected[1], archive.len()), ("B.jpeg", "a.webp", 26));
            // Eight rounds over the images at once, so that reads interleave.
            (0..8 * 24).into_par_iter().for_each(|k| {
                let i = k % 24;
                assert_eq!(archive.image(2 + i * 7 % 24).unwrap(), images[i]);
            });
        }
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set.zip");
        let file = png(&formula_image(1, 50, 60));
        zip(&path, CompressionMethod::Stored, &[("good.png", &file), ("sub/bad.png", &file), ("none.png", b"nothing")]);
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.windows(11).position(|w| w == b"sub/bad.png").unwrap();
        bytes[second + 11 + file.len() / 2] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let archive = ImageArchive::open(&path).unwrap();
        archive.image(0).unwrap();
        for (place, entry) in [(1, "set.zip/none.png"), (2, "set.zip/sub/bad.png")] {
            let error = archive.image(place).unwrap_err();
            assert!(matches!(error, Error::Decode { .. }) && error.to_string().contains(entry), "{error}");
        }
        assert!(archive.image(2).unwrap_err().to_string().to_lowercase().contains("checksum"));
        // A directory that announces other sizes than the entry has.
        for (announced, words) in [(u32::MAX - 1, "cannot hold"), (file.len() as u32 + 5, "announces")] {
            let mut lie = bytes.clone();
            let start = lie.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
            lie[start + 24..start + 28].copy_from_slice(&announced.to_le_bytes());
            std::fs::write(&path, &lie).unwrap();
            let message = ImageArchive::open(&path).unwrap().image(0).unwrap_err().to_string();
            assert!(message.contains("set.zip/good.png") && message.contains(words), "{message}");
        }
        for length in [0, 10, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = ImageArchive::open(&path).unwrap_err().to_string();
            assert!(message.contains("bad archive") && message.contains("set.zip"), "{message}");
        }
        zip(&path, CompressionMethod::Stored, &[("notes.txt", b"x")]);
        assert!(matches!(ImageArchive::open(&path), Err(Error::NoImages { .. })));
        assert!(matches!(ImageArchive::open(&dir.path().join("missing.zip")), Err(Error::Io { .. })));
    }
}
