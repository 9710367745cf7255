//! Sets of videos, and measures of them that need no network.
//!
//! | form | videos | order |
//! | --- | --- | --- |
//! | folder of folders | each folder with images, whose frames they are | of the names' bytes, of folders and of frames |
//! | folder of animated PNG or WebP files | each file | of the names' bytes |
//! | `.npy`, `.npz` of `uint8` `(videos, frames, height, width, 3)` | along the first axis; of an archive the array `arr_0`, or its only one | as stored |
//!
//! Lossy files (MP4, GIF) are not read: what a codec does to frames is part of no metric.
//!
//! ```
//! use scalebench_metrics::videos::{VideoMeasure, VideoSet, animation};
//! use scalebench_metrics::{Image, Result, Sample, Source};
//!
//! /// Black, white, black.
//! #[derive(Debug)]
//! struct Blinking;
//!
//! impl VideoSet for Blinking {
//!     fn len(&self) -> usize {
//!         1
//!     }
//!
//!     fn name(&self, _place: usize) -> String {
//!         "blinking".to_owned()
//!     }
//!
//!     fn frames(&self, _place: usize) -> Result<Vec<Image>> {
//!         [0, 255, 0].into_iter().map(|grey| Image::new(1, 1, vec![grey; 3])).collect()
//!     }
//! }
//!
//! let sample = Sample { name: "blinking".to_owned(), group: 0, source: Source::Video(std::sync::Arc::new(Blinking), 0) };
//! for measure in [VideoMeasure::FrameDifference, VideoMeasure::Flicker] {
//!     assert_eq!(measure.of(&sample.frames()?), Some(1.0));
//!     let scores = measure.scores(&[sample.clone()], None)?;
//!     assert_eq!((&scores.data[..], &scores.provenance), (&[1.0][..], &measure.provenance(None)));
//!     assert_eq!(scores.provenance.extractor, measure.name());
//! }
//! // Readers of files.
//! assert!(Sample::is_video_array("clips.npy".as_ref()));
//! assert!(Sample::videos("no-such-folder".as_ref()).is_err());
//! assert!(animation(std::io::Cursor::new("no animation"), "clip.png".as_ref()).is_err());
//! # Ok::<(), scalebench_metrics::Error>(())
//! ```

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use image::AnimationDecoder;
use rayon::prelude::*;

use crate::extract::Sample;
use crate::image::is_image;
use crate::npz::{ByteArray, Npz};
use crate::{Error, FeatureSet, Image, Preprocess, Provenance, Result, Source, VideoClip, list_images};

/// Videos that are read by their place.
///
/// Example: [this module](self).
#[expect(clippy::len_without_is_empty, reason = "a set without videos does not open")]
pub trait VideoSet: std::fmt::Debug + Send + Sync {
    /// Number of videos; at least one.
    fn len(&self) -> usize;

    /// Id of the video at `place`; there must be such a place.
    fn name(&self, place: usize) -> String;

    /// Decodes the frames of the video at `place`, in order; there must be such a place. Called by several threads at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] for a video that may be left out.
    fn frames(&self, place: usize) -> Result<Vec<Image>>;
}

impl Sample {
    /// All videos under a path, in any of the forms of this module's table: groups are 0, 1, 2, ….
    /// Example: [`videos`](crate::videos).
    pub fn videos(path: &Path) -> Result<Vec<Self>> {
        let set: Arc<dyn VideoSet> = match path.extension().and_then(|e| e.to_str()) {
            Some("npy" | "npz") if path.is_file() => Arc::new(VideoArray::open(path)?),
            _ => Arc::new(VideoFiles::open(path)?),
        };
        Ok(Self::video_set(set))
    }

    /// Whether a file holds an array of videos, by its name and of an archive by the number of axes.
    /// Example: [`videos`](crate::videos).
    pub fn is_video_array(path: &Path) -> bool {
        let five_axes = |archive: &mut Npz| {
            let name = archive.names().first().map(|name| (*name).to_owned());
            name.is_some_and(|name| archive.shape(&name).is_ok_and(|shape| shape.len() == 5))
        };
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => true,
            Some("npz") => Npz::open(path).is_ok_and(|mut archive| five_axes(&mut archive)),
            _ => false,
        }
    }

    /// All videos of a set: groups are 0, 1, 2, ….
    pub(crate) fn video_set(videos: Arc<dyn VideoSet>) -> Vec<Self> {
        let sample = |i| Self { name: videos.name(i), group: i as u32, source: Source::Video(Arc::clone(&videos), i) };
        (0..videos.len()).map(sample).collect()
    }
}

/// Folders of frames, or animated files.
#[derive(Debug)]
struct VideoFiles {
    folder: PathBuf,
    videos: Vec<PathBuf>,
}

impl VideoFiles {
    fn open(folder: &Path) -> Result<Self> {
        let list = |source| Error::Io { action: "list", path: folder.to_owned(), source };
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(list)? {
            let path = entry.map_err(list)?.path();
            let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if is_hidden {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if is_image(&path) {
                files.push(path);
            }
        }
        let mut videos = match (folders.is_empty(), files.is_empty()) {
            (false, true) => folders,
            (true, false) => files,
            (true, true) => return Err(Error::NoImages { path: folder.to_owned() }),
            (false, false) => return Err(Error::MixedVideos { path: folder.to_owned() }),
        };
        videos.sort();
        Ok(Self { folder: folder.to_owned(), videos })
    }
}

impl VideoSet for VideoFiles {
    fn len(&self) -> usize {
        self.videos.len()
    }

    fn name(&self, place: usize) -> String {
        let path = &self.videos[place];
        path.strip_prefix(&self.folder).unwrap_or(path).to_string_lossy().into_owned()
    }

    fn frames(&self, place: usize) -> Result<Vec<Image>> {
        let path = &self.videos[place];
        match path.is_dir() {
            true => list_images(path)?.iter().map(|frame| Image::open(frame)).collect(),
            false => animation(BufReader::new(File::open(path).map_err(|source| unreadable(path, source))?), path),
        }
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "read", path: path.to_owned(), source }
}

/// The frames of an animated PNG or WebP; a still image has one. `path` is for messages.
///
/// Example: [this module](self).
pub fn animation(mut source: impl std::io::BufRead + Seek, path: &Path) -> Result<Vec<Image>> {
    let bad = |e: image::ImageError| Error::Decode { path: path.to_owned(), message: e.to_string() };
    let format = image::guess_format(source.fill_buf().map_err(|e| unreadable(path, e))?).map_err(bad)?;
    let frames = match format {
        image::ImageFormat::Png => {
            let decoder = image::codecs::png::PngDecoder::new(&mut source).map_err(bad)?;
            if !decoder.is_apng().map_err(bad)? {
                source.seek(SeekFrom::Start(0)).map_err(|e| unreadable(path, e))?;
                return Ok(vec![Image::decode(source, path)?]);
            }
            decoder.apng().map_err(bad)?.into_frames().collect_frames().map_err(bad)?
        }
        image::ImageFormat::WebP => {
            let decoder = image::codecs::webp::WebPDecoder::new(&mut source).map_err(bad)?;
            if !decoder.has_animation() {
                source.seek(SeekFrom::Start(0)).map_err(|e| unreadable(path, e))?;
                return Ok(vec![Image::decode(source, path)?]);
            }
            decoder.into_frames().collect_frames().map_err(bad)?
        }
        _ => return Ok(vec![Image::decode(source, path)?]),
    };
    let rgb = |frame: image::Frame| image::DynamicImage::from(frame.into_buffer()).into_rgb8();
    frames.into_iter().map(rgb).map(|rgb| Image::new(rgb.width() as usize, rgb.height() as usize, rgb.into_raw())).collect()
}

/// An array of bytes. One of a `.npy` file stays there; one of an archive is in memory.
#[derive(Debug)]
struct VideoArray {
    path: PathBuf,
    /// Videos, frames, height, width.
    shape: [usize; 4],
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    /// From this place on.
    File(Mutex<File>, u64),
}

impl VideoArray {
    fn open(path: &Path) -> Result<Self> {
        let (shape, bytes) = if path.extension().is_some_and(|e| e == "npy") {
            let array = ByteArray::open(path)?;
            (array.shape, Bytes::File(Mutex::new(array.file), array.start))
        } else {
            let mut archive = Npz::open(path)?;
            let names = archive.names();
            let name = match names[..] {
                [only] => only.to_owned(),
                _ => "arr_0".to_owned(),
            };
            let array = archive.u8(&name)?;
            (array.shape, Bytes::Memory(array.data))
        };
        match shape[..] {
            [videos, frames, height, width, 3] if videos * frames * height * width > 0 => {
                Ok(Self { path: path.to_owned(), shape: [videos, frames, height, width], bytes })
            }
            _ => {
                let message = format!("has shape {shape:?}, expected (videos, frames, height, width, 3)");
                Err(Error::Array { path: path.to_owned(), key: "videos".into(), message })
            }
        }
    }
}

impl VideoSet for VideoArray {
    fn len(&self) -> usize {
        self.shape[0]
    }

    fn name(&self, place: usize) -> String {
        format!("{place:06}")
    }

    fn frames(&self, place: usize) -> Result<Vec<Image>> {
        let [_, frames, height, width] = self.shape;
        let frame = 3 * height * width;
        let n = frames * frame;
        let bytes = match &self.bytes {
            Bytes::Memory(bytes) => bytes[place * n..][..n].to_vec(),
            Bytes::File(file, start) => {
                let mut bytes = vec![0; n];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let read = file.seek(SeekFrom::Start(start + (place * n) as u64)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(|source| unreadable(&self.path, source))?;
                bytes
            }
        };
        bytes.chunks_exact(frame).map(|rgb| Image::new(width, height, rgb.to_vec())).collect()
    }
}

/// A property of a video by itself, without a network. Values are of pixels in [0, 1], averaged over pixels, channels and times.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VideoMeasure {
    /// Mean `|x[t+1] − x[t]|`: how much changes from frame to frame. 1 − it is VBench's temporal flickering score (arXiv:2311.17982).
    FrameDifference,
    /// Mean `|x[t+1] − 2 x[t] + x[t−1]| / 2`: what changes and changes back. A pixel that brightens or darkens steadily adds nothing, one
    /// that alternates as much as to the frame difference; nothing is warped.
    Flicker,
}

impl VideoMeasure {
    /// Of frames of one size; at least two, for flicker three.
    /// Example: [`videos`](crate::videos).
    pub fn of(self, frames: &[Image]) -> Option<f64> {
        let window = match self {
            Self::FrameDifference => 2,
            Self::Flicker => 3,
        };
        let is_one_size = frames.windows(2).all(|pair| (pair[0].width, pair[0].height) == (pair[1].width, pair[1].height));
        if frames.len() < window || !is_one_size {
            return None;
        }
        let value = |window: &[Image]| -> u64 {
            let at = |k: usize, i: usize| i64::from(window[k].rgb[i]);
            let n = window[0].rgb.len();
            match self {
                Self::FrameDifference => (0..n).map(|i| (at(1, i) - at(0, i)).unsigned_abs()).sum(),
                Self::Flicker => (0..n).map(|i| (at(2, i) - 2 * at(1, i) + at(0, i)).unsigned_abs()).sum(),
            }
        };
        let windows = frames.len() - window + 1;
        let sum: u64 = frames.windows(window).map(value).sum();
        let largest = if self == Self::Flicker { 510.0 } else { 255.0 };
        Some(sum as f64 / (largest * (windows * frames[0].rgb.len()) as f64))
    }

    /// The name in tables.
    /// Example: [`videos`](crate::videos).
    pub fn name(self) -> &'static str {
        match self {
            Self::FrameDifference => "frame_difference",
            Self::Flicker => "flicker",
        }
    }

    /// How a set of its values was made.
    /// Example: [`videos`](crate::videos).
    pub fn provenance(self, clip: Option<VideoClip>) -> Provenance {
        let preprocess = Preprocess { clip, ..Preprocess::default() };
        Provenance { extractor: self.name().to_owned(), weights: String::new(), preprocess }
    }

    /// One value for each video: a set of dimension 1, whose mean and its interval [`Metric`](crate::Metric) gives.
    /// Example: [`videos`](crate::videos).
    pub fn scores(self, videos: &[Sample], clip: Option<VideoClip>) -> Result<FeatureSet> {
        let one = |(index, sample): (usize, &Sample)| -> Result<f32> {
            let frames = sample.frames()?;
            let too_few = || Error::BadPreprocess(format!("{} has {} frames, too few for {}", sample.name, frames.len(), self.name()));
            let clip = clip.unwrap_or(VideoClip::first(frames.len() as u32));
            let places = clip.places(index as u64, frames.len()).ok_or_else(too_few)?;
            let frames: Vec<Image> = places.map(|at| frames[at].clone()).collect();
            self.of(&frames).map(|value| value as f32).ok_or_else(too_few)
        };
        let data = videos.par_iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        let (names, groups) = videos.iter().map(|sample| (sample.name.clone(), sample.group)).unzip();
        FeatureSet::new(names, groups, data, 1, self.provenance(clip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{formula_image, png};

    fn frames(seed: u64, n: usize) -> Vec<Image> {
        (0..n).map(|i| formula_image(seed + 10 * i as u64, 6, 8)).collect()
    }

    fn decoded(path: &Path) -> Vec<(String, Vec<Image>)> {
        Sample::videos(path).unwrap().iter().map(|sample| (sample.name.clone(), sample.frames().unwrap())).collect()
    }

    #[test]
    fn every_form_holds_the_same_frames() {
        let dir = tempfile::tempdir().unwrap();
        let videos: Vec<Vec<Image>> = (1..4).map(|seed| frames(seed, 5)).collect();
        let [folders, animated] = ["folders", "animated"].map(|name| dir.path().join(name));
        std::fs::create_dir(&animated).unwrap();
        let mut bytes = Vec::new();
        for (k, video) in videos.iter().enumerate() {
            let folder = folders.join(format!("v{k}"));
            std::fs::create_dir_all(&folder).unwrap();
            let file = File::create(animated.join(format!("v{k}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 8, 6);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_animated(5, 0).unwrap();
            let mut writer = encoder.write_header().unwrap();
            for (i, frame) in video.iter().enumerate() {
                std::fs::write(folder.join(format!("{i}.png")), self::png(frame)).unwrap();
                writer.write_image_data(&frame.rgb).unwrap();
                bytes.extend(&frame.rgb);
            }
            writer.finish().unwrap();
        }
        let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 5, 6, 8, 3), }";
        let header = format!("{header:<117}\n");
        let npy = [b"\x93NUMPY\x01\x00".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), &bytes].concat();
        std::fs::write(dir.path().join("videos.npy"), &npy).unwrap();
        let mut archive = zip::ZipWriter::new(File::create(dir.path().join("videos.npz")).unwrap());
        archive.start_file("arr_0.npy", zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut archive, &npy).unwrap();
        archive.finish().unwrap();
        for (path, names) in [
            (folders.clone(), ["v0", "v1", "v2"]),
            (animated, ["v0.png", "v1.png", "v2.png"]),
            (dir.path().join("videos.npy"), ["000000", "000001", "000002"]),
            (dir.path().join("videos.npz"), ["000000", "000001", "000002"]),
        ] {
            let found = decoded(&path);
            assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
            for ((_, found), video) in found.iter().zip(&videos) {
                assert_eq!(found, video, "{}", path.display());
            }
        }
        std::fs::write(folders.join("stray.png"), self::png(&videos[0][0])).unwrap();
        assert!(matches!(Sample::videos(&folders), Err(Error::MixedVideos { .. })));
        std::fs::write(dir.path().join("cut.npy"), &npy[..npy.len() - 1]).unwrap();
        assert!(Sample::videos(&dir.path().join("cut.npy")).is_err());
        let image = Sample::image("still", 0, videos[0][0].clone());
        assert!(image.frames().unwrap_err().to_string().contains("still is an image"));
        let video = &Sample::videos(&dir.path().join("videos.npy")).unwrap()[0];
        assert!(video.decode().unwrap_err().to_string().contains("000000 is a video"));
    }

    /// Closed forms: a still video has neither, a steady change no flicker, an alternation as much flicker as difference.
    #[test]
    fn measures_of_made_videos() {
        let grey = |values: &[u8]| -> Vec<Image> { values.iter().map(|v| Image::new(2, 2, vec![*v; 12]).unwrap()).collect() };
        let both = |values: &[u8]| [VideoMeasure::FrameDifference, VideoMeasure::Flicker].map(|m| m.of(&grey(values)));
        assert_eq!(both(&[9, 9, 9]), [Some(0.0), Some(0.0)]);
        assert_eq!(both(&[0, 51, 102, 153]), [Some(0.2), Some(0.0)]);
        assert_eq!(both(&[0, 51, 0, 51]), [Some(0.2), Some(0.2)]);
        assert_eq!(both(&[0, 255]), [Some(1.0), None]);
        let mut uneven = grey(&[1, 2]);
        uneven.push(Image::new(1, 1, vec![0; 3]).unwrap());
        assert_eq!(VideoMeasure::Flicker.of(&uneven), None);
    }
}
