//! From a decoded image to the network's input: the step that makes FIDs differ between tools.
//!
//! A [`Preprocess`] is plain data. Its [`id`](Preprocess::id) is written into every feature file, and
//! metrics refuse to compare files whose [`Profile`] or [`Aspect`] differs. Which part of the image is
//! looked at (crops, a resize or JPEG beforehand) may differ between the sides, since protocols ask for that.
//!
//! | profile | to the network's side | scaling | as in |
//! | --- | --- | --- | --- |
//! | `clean` | Pillow bicubic on floats, clipped to \[0, 255\] | (x − 128) / 128 | clean-fid 0.1.35 |
//! | `pytorch-fid` | bilinear, no antialiasing | 2x/255 − 1 | pytorch-fid 0.3.0 |
//! | `torch-fidelity` | TF1 bilinear, no antialiasing | (x − 128) / 128 | torch-fidelity 0.4.0 |
//! | `torchmetrics-aa` | bilinear, antialiased, `f32` sums | (x − 128) / 128 | torchmetrics since its default changed to `antialias=True` |
//! | `clip` | shortest side by Pillow bicubic on bytes, then a centre crop | CLIP's mean and deviation | transformers' `CLIPImageProcessor` |
//! | `cmmd` | centre crop to a square, then Pillow bicubic on bytes | CLIP's mean and deviation | cmmd-pytorch |
//! | `dgm-eval` | Pillow bicubic on bytes | ImageNet's mean and deviation | dgm-eval, DINOv2 |
//! | `lvdm` | bilinear, no antialiasing, squashed | 2x/255 − 1 | LVDM's `eval_cal_fvd_kvd.py`, TATS, cd-fvd: I3D |
//! | `videogpt` | shortest side to the network's (the other rounded up), bilinear, no antialiasing, centre crop | 2x/255 − 1 | VideoGPT, common_metrics: I3D |
//! | `i3d-tf` | TensorFlow's bilinear without half-pixel centres, squashed | 2x/255 − 1 | google-research's `frechet_video_distance`: I3D |
//! | `dgm-eval-clean` | Pillow bicubic on floats | ImageNet's mean and deviation | dgm-eval `--clean_resize`, DINOv2 |
//!
//! The first four are for Inception (299 × 299) and squash: a 2:1 image becomes a square, as in all the
//! tools, unless [`Aspect::CenterCrop`] is asked for.
//!
//! ```
//! use scalebench_metrics::preprocess::{Aspect, Clip, Crops, Position, Preprocess, Profile, Scales};
//! let whole = Preprocess::default();
//! assert_eq!((whole.profile, whole.aspect, whole.id().as_str()), (Profile::Clean, Aspect::Squash, "clean"));
//! assert!(Profile::ALL.iter().all(|profile| Preprocess::whole(*profile).id() == profile.name()));
//! // Ten crops of 512 pixels, of images that are first brought to 1024.
//! let crops = Crops::random(10, 512, 7);
//! assert_eq!((crops.position, crops.scales), (Position::Random, Scales::Native));
//! let patches = Preprocess { pre_resize: Some(1024), crops: Some(crops), ..Preprocess::default() };
//! assert_eq!(patches.id(), "clean/pre1024/crops10x512@7");
//! let video = Preprocess { clip: Some(Clip::first(16)), ..Preprocess::whole(Profile::Lvdm) };
//! assert_eq!(video.id(), "lvdm/clip16");
//! assert!(patches.validate().is_ok());
//! assert!(Preprocess { crops: Some(Crops { count: 0, ..crops }), ..patches }.validate().is_err());
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::jpeg;
use crate::random::keyed_interval;
use crate::resize::{Filter, Raster, pillow_f32, pillow_u8, tf1_bilinear, torch_antialias, torch_bilinear};
use crate::{Error, Image, Result, clip, dinov2};

/// How an image becomes a network's square input; see the [module](self) for the table.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Antialiased; the only one of Inception's that is safe above 512 pixels, hence the default.
    #[default]
    Clean,
    /// Aliases at high resolution; for comparison with published numbers.
    PytorchFid,
    /// Aliases at high resolution; for comparison with published numbers.
    TorchFidelity,
    /// Antialiased, in single precision.
    TorchmetricsAa,
    /// CLIP's own: what a CLIP score is computed from.
    Clip,
    /// CMMD's way to CLIP's input.
    Cmmd,
    /// FD-DINOv2's.
    DgmEval,
    /// FD-DINOv2's with clean-fid's resize.
    DgmEvalClean,
    /// FVD's of LVDM: frames squashed.
    Lvdm,
    /// FVD's of VideoGPT: the middle of frames.
    Videogpt,
    /// FVD's of its authors.
    I3dTf,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 11] = [
        Self::Clean,
        Self::PytorchFid,
        Self::TorchFidelity,
        Self::TorchmetricsAa,
        Self::Clip,
        Self::Cmmd,
        Self::DgmEval,
        Self::DgmEvalClean,
        Self::Lvdm,
        Self::Videogpt,
        Self::I3dTf,
    ];

    /// The name used in configurations and feature files.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::PytorchFid => "pytorch-fid",
            Self::TorchFidelity => "torch-fidelity",
            Self::TorchmetricsAa => "torchmetrics-aa",
            Self::Clip => "clip",
            Self::Cmmd => "cmmd",
            Self::DgmEval => "dgm-eval",
            Self::DgmEvalClean => "dgm-eval-clean",
            Self::Lvdm => "lvdm",
            Self::Videogpt => "videogpt",
            Self::I3dTf => "i3d-tf",
        }
    }

    /// Network input of an image: `(3, side, side)` planes in one vector.
    pub(crate) fn apply(self, image: &Image, side: usize) -> Result<Vec<f32>> {
        let bytes = Raster::from(image);
        let raster = || bytes.map(f32::from);
        let resized = match self {
            Self::Clean => pillow_f32(&bytes, side, side, Filter::Bicubic)?.map(|v| v.clamp(0.0, 255.0)),
            Self::PytorchFid | Self::Lvdm => torch_bilinear(&raster().map(|v| v / 255.0), side, side)?,
            Self::Videogpt => shortest_to(&raster().map(|v| v / 255.0), side)?,
            Self::I3dTf => tf1_bilinear(&raster(), side, side)?.map(|v| v / 255.0),
            Self::TorchFidelity => tf1_bilinear(&raster(), side, side)?,
            Self::TorchmetricsAa => torch_antialias(&bytes, side, side, Filter::Bilinear)?,
            Self::Clip => return clip::preprocess(image, side),
            Self::Cmmd => return clip::preprocess_cmmd(image, side),
            Self::DgmEval | Self::DgmEvalClean => return dinov2::preprocess_to(image, side, self == Self::DgmEvalClean),
        };
        let scale: fn(f32) -> f32 = match self {
            Self::PytorchFid | Self::Lvdm | Self::Videogpt | Self::I3dTf => |v| 2.0 * v - 1.0,
            _ => |v| (v - 128.0) / 128.0,
        };
        Ok((0..3).flat_map(|c| resized.pixels.iter().map(move |p| scale(p[c]))).collect())
    }

    /// An image's pixels as they are, in the range that Inception takes under this profile.
    fn scale_only(self, image: &Image) -> Result<Vec<f32>> {
        match self {
            Self::Clip | Self::Cmmd | Self::DgmEval | Self::DgmEvalClean | Self::Lvdm | Self::Videogpt | Self::I3dTf => {
                Err(Error::BadPreprocess(format!("crops without resizing need a network of any input size, {self} is for one size")))
            }
            _ => {
                let scale: fn(u8) -> f32 = match self {
                    Self::PytorchFid => |v| 2.0 * (f32::from(v) / 255.0) - 1.0,
                    _ => |v| (f32::from(v) - 128.0) / 128.0,
                };
                Ok((0..3).flat_map(|c| image.rgb.iter().skip(c).step_by(3).map(move |v| scale(*v))).collect())
            }
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name).join(", ");
        let unknown = || Error::BadPreprocess(format!("`{name}` is no profile; expected one of {names}"));
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(unknown)
    }
}

/// The shortest side to `side` and the other in proportion, rounded up, then a square in the middle.
fn shortest_to(image: &Raster<f32, 3>, side: usize) -> Result<Raster<f32, 3>> {
    let (w, h) = (image.width, image.height);
    // In floats, as the reference rounds.
    let scale = side as f64 / w.min(h) as f64;
    let long = |n: usize| (n as f64 * scale).ceil() as usize;
    let (width, height) = if h < w { (long(w), side) } else { (side, long(h)) };
    let resized = torch_bilinear(image, width, height)?;
    let (left, top) = ((width - side) / 2, (height - side) / 2);
    let rows = (top..top + side).flat_map(|y| resized.pixels[y * width + left..][..side].iter().copied());
    Ok(Raster::new(side, side, rows.collect())?)
}

/// What happens to an image that is not square.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// The profile decides: Inception's squash, CLIP's crop.
    #[default]
    Squash,
    /// The largest square in the middle is cut out first. The rest is not looked at.
    CenterCrop,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Squash => "squash",
            Self::CenterCrop => "center-crop",
        })
    }
}

/// Where crops are taken.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Anywhere, by seed, image and number of the crop.
    #[default]
    Random,
    /// Evenly spread in rows and columns that come as close to the image's shape as the count allows.
    Grid,
    /// At the same relative places in every image, by seed and number of the crop: both sides of a
    /// comparison see the same places (Anyres-GAN, sec. 4.2).
    Shared,
}

/// Largest side of a crop, or of an image that is resized first.
const LARGEST_SIDE: u32 = 1 << 15;

/// Most crops of an image.
const MOST_CROPS: u32 = 10_000;

/// At which size an image is when crops are taken of it.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// Its own.
    #[default]
    Native,
    /// For every crop another: its shorter side is drawn evenly from the crop's size to its own, and it is reduced to that by Pillow's
    /// Lanczos filter on 8 bits (Anyres-GAN: Chai et al. 2022, arXiv 2204.07156, sec. 4.2 and its code).
    Random,
}

impl Scales {
    fn is_native(&self) -> bool {
        *self == Self::Native
    }
}

/// Square crops, taken before the profile's resize.
///
/// A crop's position is a function of the seed, the image's index and the crop's number only.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crops {
    /// Crops per image.
    pub count: u32,
    /// Side of a crop in pixels, usually the model's base resolution.
    pub size: u32,
    /// Where they are taken.
    #[serde(default)]
    pub position: Position,
    /// Seed of the positions.
    #[serde(default)]
    pub seed: u64,
    /// Resize crops to the network's side; else they enter at their own size (Inception only).
    #[serde(default = "yes")]
    pub resize: bool,
    /// Of an image at which size.
    #[serde(default, skip_serializing_if = "Scales::is_native")]
    pub scales: Scales,
}

fn yes() -> bool {
    true
}

impl Crops {
    /// Random crops that are resized to the network.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn random(count: u32, size: u32, seed: u64) -> Self {
        Self { count, size, position: Position::Random, seed, resize: true, scales: Scales::Native }
    }

    /// Shorter side that image `index` has when crop `k` is taken of it; at random scales its top left corner is drawn like any other.
    fn scaled_side(&self, index: u64, k: u64, native: usize) -> usize {
        let room = native.saturating_sub(self.size as usize);
        match (self.scales, self.position) {
            (Scales::Native, _) => native,
            (Scales::Random, Position::Random) => self.size as usize + keyed_interval(&[self.seed, index, k, 2], room),
            (Scales::Random, _) => self.size as usize + keyed_interval(&[self.seed, k, 2], room),
        }
    }

    /// Crop `k` of image `index`, which is large enough.
    fn cut(&self, image: &Image, index: u64, k: usize) -> Result<Image> {
        let native = image.width.min(image.height);
        let side = self.scaled_side(index, k as u64, native);
        let size = self.size as usize;
        let scaled = |n: usize| ((n as f64 * side as f64 / native as f64).round() as usize).max(size);
        let (width, height) = if side == native { (image.width, image.height) } else { (scaled(image.width), scaled(image.height)) };
        let (left, top) = self.positions(index, width, height)[k];
        if side == native {
            return Ok(image.crop(left, top, size));
        }
        let reduced = pillow_u8(&Raster::from(image), width, height, Filter::Lanczos)?;
        Ok(Image::new(width, height, reduced.pixels.into_flattened())?.crop(left, top, size))
    }

    /// Top left corners `(left, top)` of the crops of image `index`.
    pub(crate) fn positions(&self, index: u64, width: usize, height: usize) -> Vec<(usize, usize)> {
        let room = |side: usize| side.saturating_sub(self.size as usize);
        let count = u64::from(self.count);
        match self.position {
            Position::Random => {
                let draw = |k, axis, max| keyed_interval(&[self.seed, index, k, axis], max);
                (0..count).map(|k| (draw(k, 0, room(width)), draw(k, 1, room(height)))).collect()
            }
            Position::Shared => {
                let draw = |k, axis, max| keyed_interval(&[self.seed, k, axis], max);
                (0..count).map(|k| (draw(k, 0, room(width)), draw(k, 1, room(height)))).collect()
            }
            Position::Grid => {
                // The divisor whose grid is closest to the image's shape.
                let misfit = |columns: &u64| {
                    let grid = (columns * columns) as f64 / count as f64;
                    (grid * height as f64 / width as f64).ln().abs()
                };
                let divisors = (1..=count).filter(|c| count.is_multiple_of(*c));
                let columns = divisors.min_by(|a, b| misfit(a).total_cmp(&misfit(b))).unwrap_or(1);
                let rows = count / columns;
                // One of several lies at i·room/(n−1), rounded; a single one in the middle.
                let at = |i: u64, n: u64, room: usize| match n {
                    1 => room / 2,
                    _ => (2 * i as usize * room + n as usize - 1) / (2 * (n as usize - 1)),
                };
                (0..count).map(|k| (at(k % columns, columns, room(width)), at(k / columns, rows, room(height)))).collect()
            }
        }
    }
}

/// Everything that happens between a decoded image and the network.
///
/// In this order: JPEG, grey, resize to `pre_resize`, crops, aspect, profile.
///
/// Example: [this module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The resize to the network's side and the scaling.
    #[serde(default)]
    pub profile: Profile,
    /// What happens to an image that is not square.
    #[serde(default, skip_serializing_if = "Aspect::is_squash")]
    pub aspect: Aspect,
    /// Pass the image through JPEG of this quality first (4:2:0), to compare with a reference of JPEG files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg_quality: Option<u8>,
    /// Replace colours by their luma, as Pillow's `convert("L")` does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub grey: bool,
    /// Resize to a square of this side first (Pillow bicubic, 8 bits), as a user's own
    /// down-sampling to the base resolution would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_resize: Option<u32>,
    /// Look at crops instead of the whole image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crops: Option<Crops>,
    /// Which frames of a video; otherwise all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
}

/// Which frames of a video are looked at.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// How many.
    pub frames: u32,
    /// Distance from one to the next.
    #[serde(default = "one")]
    pub stride: u32,
    /// Seed of the first frame, which is drawn for each video; the first of all if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<u64>,
}

fn one() -> u32 {
    1
}

impl Clip {
    /// The first `frames` frames.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn first(frames: u32) -> Self {
        Self { frames, stride: 1, random: None }
    }

    /// Places of the frames of video `index` of a set, which has `n`; `None` if it is too short.
    pub(crate) fn places(&self, index: u64, n: usize) -> Option<impl Iterator<Item = usize>> {
        let stride = self.stride as usize;
        let reach = (self.frames as usize).checked_sub(1)? * stride;
        let last_start = n.checked_sub(reach + 1)?;
        let start = self.random.map_or(0, |seed| keyed_interval(&[seed, index], last_start));
        Some((0..self.frames as usize).map(move |i| start + i * stride))
    }
}

impl std::fmt::Display for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "clip{}", self.frames)?;
        if self.stride != 1 {
            write!(f, "x{}", self.stride)?;
        }
        self.random.map_or(Ok(()), |seed| write!(f, "@{seed}"))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Aspect {
    fn is_squash(&self) -> bool {
        *self == Aspect::Squash
    }
}

/// A network's input: `(3, side, side)` planes, of a video those of each frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Input {
    /// Side in pixels.
    pub(crate) side: usize,
    /// `3 * side * side` values a frame.
    pub(crate) planes: Vec<f32>,
}

impl Preprocess {
    /// Whole images through a profile.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn whole(profile: Profile) -> Self {
        Self { profile, ..Self::default() }
    }

    /// Checks that sizes and counts are neither zero nor beyond all measure.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn validate(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::BadPreprocess(what.to_owned()));
        match (self.pre_resize, self.crops) {
            _ if self.clip.is_some_and(|clip| clip.frames == 0 || clip.stride == 0) => {
                bad("a clip needs frames and a stride of at least 1")
            }
            _ if self.jpeg_quality.is_some_and(|quality| !(1..=100).contains(&quality)) => bad("jpeg_quality is not in 1..=100"),
            (Some(side), _) if !(1..=LARGEST_SIDE).contains(&side) => bad(&format!("pre_resize is {side}, expected 1 to {LARGEST_SIDE}")),
            (_, Some(Crops { count, .. })) if !(1..=MOST_CROPS).contains(&count) => {
                bad(&format!("crops.count is {count}, expected 1 to {MOST_CROPS}"))
            }
            (_, Some(Crops { size, .. })) if !(1..=LARGEST_SIDE).contains(&size) => {
                bad(&format!("crops.size is {size}, expected 1 to {LARGEST_SIDE}"))
            }
            (Some(side), Some(crops)) if crops.size > side => bad(&format!("crops of {} do not fit into pre_resize {side}", crops.size)),
            _ => Ok(()),
        }
    }

    /// The canonical name, such as `clean`, `clean/pre512` or `clean/pre1024/crops10x512@7`.
    /// Example: [`preprocess`](crate::preprocess).
    pub fn id(&self) -> String {
        let mut id = self.profile.name().to_owned();
        if self.aspect == Aspect::CenterCrop {
            id += "/center-crop";
        }
        if let Some(quality) = self.jpeg_quality {
            id += &format!("/jpeg{quality}");
        }
        if self.grey {
            id += "/grey";
        }
        if let Some(side) = self.pre_resize {
            id += &format!("/pre{side}");
        }
        if let Some(Crops { count, size, position, seed, resize, scales }) = self.crops {
            id += &match position {
                Position::Random => format!("/crops{count}x{size}@{seed}"),
                Position::Grid => format!("/grid{count}x{size}"),
                Position::Shared => format!("/shared{count}x{size}@{seed}"),
            };
            if scales == Scales::Random {
                id += "/scales";
            }
            if !resize {
                id += "/native";
            }
        }
        if let Some(clip) = self.clip {
            id += &format!("/{clip}");
        }
        id
    }

    /// What a network of videos sees of one: frame after frame of the clip, each as [`inputs`](Self::inputs) has it; one per crop, or
    /// just one. `index` is the video's place in its set.
    pub(crate) fn video(&self, frames: &[Image], side: usize, index: u64, name: &str) -> Result<Vec<Input>> {
        let clip = self.clip.unwrap_or(Clip::first(frames.len() as u32));
        let places = clip.places(index, frames.len());
        let places = places.ok_or_else(|| Error::BadPreprocess(format!("{name} has {} frames, too few for {clip}", frames.len())))?;
        let mut videos: Vec<Input> = Vec::new();
        for at in places {
            for (k, frame) in self.inputs(&frames[at], side, index, name)?.into_iter().enumerate() {
                match videos.get_mut(k) {
                    Some(video) => video.planes.extend(frame.planes),
                    None => videos.push(frame),
                }
            }
        }
        Ok(videos)
    }

    /// What is looked at of one image, before the profile: the crops, or the whole.
    ///
    /// `index` is the image's place in its set; it keys the crop positions. `name` is for errors.
    pub(crate) fn pieces(&self, image: &Image, index: u64, name: &str) -> Result<Vec<Image>> {
        let mut image = std::borrow::Cow::Borrowed(image);
        if let Some(quality) = self.jpeg_quality {
            *image.to_mut() = jpeg::round_trip(&image, quality)?;
        }
        if self.grey {
            let luma = image.luma();
            image.to_mut().rgb = luma.into_iter().flat_map(|v| [v; 3]).collect();
        }
        if let Some(side) = self.pre_resize.map(|side| side as usize).filter(|side| (image.width, image.height) != (*side, *side)) {
            let raster = pillow_u8(&Raster::from(&*image), side, side, Filter::Bicubic)?;
            *image.to_mut() = Image::new(side, side, raster.pixels.into_flattened())?;
        }
        let Some(crops) = self.crops else {
            if self.aspect == Aspect::CenterCrop && image.width != image.height {
                let side = image.width.min(image.height);
                return Ok(vec![image.crop((image.width - side) / 2, (image.height - side) / 2, side)]);
            }
            return Ok(vec![image.into_owned()]);
        };
        let size = crops.size as usize;
        if image.width.min(image.height) < size {
            let (width, height, name) = (image.width, image.height, name.to_owned());
            return Err(Error::CropTooLarge { name, width, height, size });
        }
        (0..crops.count as usize).map(|k| crops.cut(&image, index, k)).collect()
    }

    /// Network inputs of one image; one per crop, or just one.
    ///
    /// `side` is the network's. `index` is the image's place in its set; it keys the crop positions.
    /// `name` is for errors.
    pub(crate) fn inputs(&self, image: &Image, side: usize, index: u64, name: &str) -> Result<Vec<Input>> {
        let at_own_size = self.crops.filter(|crops| !crops.resize).map(|crops| crops.size as usize);
        let input = |piece: Image| {
            Ok(match at_own_size {
                None => Input { side, planes: self.profile.apply(&piece, side)? },
                Some(size) => Input { side: size, planes: self.profile.scale_only(&piece)? },
            })
        };
        self.pieces(image, index, name)?.into_iter().map(input).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CROPS: Crops = Crops { count: 1, size: 1, position: Position::Random, seed: 0, resize: true, scales: Scales::Native };

    fn ramp(width: usize, height: usize) -> Image {
        let rgb = (0..3 * width * height).map(|i| (i % 251) as u8).collect();
        Image::new(width, height, rgb).unwrap()
    }

    #[test]
    fn ids_and_json_name_the_same_thing() {
        let json = r#"{"profile":"clean","pre_resize":96,"crops":{"count":3,"size":64,"position":"random","seed":7,"resize":true}}"#;
        let full: Preprocess = serde_json::from_str(json).unwrap();
        assert_eq!(full.id(), "clean/pre96/crops3x64@7");
        assert_eq!(serde_json::to_string(&full).unwrap(), json);
        assert_eq!(Preprocess::default().id(), "clean");
        assert_eq!(Preprocess::whole(Profile::TorchFidelity).id(), "torch-fidelity");
        assert!(serde_json::from_str::<Preprocess>(r#"{"crop":1}"#).is_err());
    }

    #[test]
    fn crops_are_a_function_of_seed_and_index() {
        let crops = Crops { count: 64, size: 64, seed: 1, ..CROPS };
        let positions = crops.positions(5, 100, 64);
        assert_eq!(positions, crops.positions(5, 100, 64));
        assert_ne!(positions, crops.positions(6, 100, 64));
        assert_ne!(positions, Crops { seed: 2, ..crops }.positions(5, 100, 64));
        assert!(positions.iter().all(|&(left, top)| left <= 36 && top == 0));
        let seen: std::collections::HashSet<_> = positions.iter().map(|p| p.0).collect();
        assert!(seen.len() > 20, "{seen:?}");
    }

    #[test]
    fn a_crop_equals_the_cut_out_image() {
        let image = ramp(40, 30);
        let crops = Crops { count: 2, size: 20, seed: 3, ..CROPS };
        let preprocess = Preprocess { crops: Some(crops), ..Preprocess::default() };
        let inputs = preprocess.inputs(&image, 299, 9, "x").unwrap();
        let (left, top) = crops.positions(9, 40, 30)[1];
        assert_eq!(inputs[1].planes, Profile::Clean.apply(&image.crop(left, top, 20), 299).unwrap());
        let small = preprocess.inputs(&ramp(19, 30), 299, 0, "small.png").unwrap_err();
        assert!(small.to_string().contains("small.png is 19x30"));
    }

    /// Every crop of an image that is reduced for it, by a side that depends on seed, image and crop alone.
    #[test]
    fn crops_at_random_scales_are_of_reduced_images() {
        let image = ramp(60, 40);
        let crops = Crops { count: 40, size: 20, seed: 3, scales: Scales::Random, ..CROPS };
        let preprocess = Preprocess { crops: Some(crops), ..Preprocess::default() };
        assert_eq!(preprocess.id(), "clean/crops40x20@3/scales");
        let pieces = preprocess.pieces(&image, 9, "x").unwrap();
        let sides: Vec<usize> = (0..40).map(|k| crops.scaled_side(9, k, 40)).collect();
        assert!(sides.iter().all(|side| (20..=40).contains(side)), "{sides:?}");
        assert!(sides.iter().collect::<std::collections::BTreeSet<_>>().len() > 8, "{sides:?}");
        for (k, side) in sides.iter().enumerate().take(6) {
            let (width, height) = ((60.0 * *side as f64 / 40.0).round() as usize, *side);
            let reduced = pillow_u8(&Raster::from(&image), width, height, Filter::Lanczos).unwrap();
            let reduced = Image::new(width, height, reduced.pixels.into_flattened()).unwrap();
            let (left, top) = crops.positions(9, width, height)[k];
            assert_eq!(pieces[k], reduced.crop(left, top, 20), "crop {k} at {side}");
        }
        // The same list of scales for every image where places are shared.
        let shared = Crops { position: Position::Shared, ..crops };
        assert_eq!(shared.scaled_side(1, 5, 40), shared.scaled_side(2, 5, 40));
        assert_ne!(sides, (0..40).map(|k| crops.scaled_side(10, k, 40)).collect::<Vec<_>>());
    }

    #[test]
    fn grey_is_pillows() {
        let image = Image::new(2, 1, vec![255, 0, 0, 10, 200, 90]).unwrap();
        let grey = Preprocess { grey: true, ..Preprocess::default() };
        assert_eq!(grey.id(), "clean/grey");
        // By Pillow: 76 and 131.
        assert_eq!(grey.pieces(&image, 0, "x").unwrap()[0].rgb, [76, 76, 76, 131, 131, 131]);
    }

    #[test]
    fn inputs_are_planes_in_range() {
        let image = Image::new(1, 1, vec![0, 128, 255]).unwrap();
        let plane = 299 * 299;
        for (profile, expected) in [
            (Profile::Clean, [-1.0, 0.0, 127.0 / 128.0]),
            (Profile::TorchFidelity, [-1.0, 0.0, 127.0 / 128.0]),
            (Profile::PytorchFid, [-1.0, 1.0 / 255.0, 1.0]),
            (Profile::TorchmetricsAa, [-1.0, 0.0, 127.0 / 128.0]),
        ] {
            let input = profile.apply(&image, 299).unwrap();
            assert_eq!(input.len(), 3 * plane);
            for (plane, expected) in input.chunks(plane).zip(expected) {
                assert!(plane.iter().all(|v: &f32| (v - expected).abs() < 1e-6), "{profile}");
            }
        }
    }

    #[test]
    fn zero_sizes_are_refused() {
        let crops = Some(Crops { count: 1, size: 65, ..CROPS });
        let pre = |pre_resize, crops| Preprocess { pre_resize, crops, ..Preprocess::default() };
        assert!(pre(Some(0), None).validate().is_err());
        assert!(pre(Some(64), crops).validate().is_err());
        assert!(pre(Some(65), crops).validate().is_ok());
        assert!(Preprocess { jpeg_quality: Some(0), ..Preprocess::default() }.validate().is_err());
    }

    #[test]
    fn grids_follow_the_shape_and_shared_places_the_size() {
        let grid = Crops { count: 8, size: 10, position: Position::Grid, ..CROPS };
        // A 2:1 image: four columns, two rows.
        let across = [0, 30, 60, 90];
        let expected: Vec<_> = [0, 40].into_iter().flat_map(|top| across.map(|left| (left, top))).collect();
        assert_eq!(grid.positions(3, 100, 50), expected);
        assert_eq!(Crops { count: 1, ..grid }.positions(0, 100, 50), [(45, 20)]);
        let shared = Crops { count: 9, size: 10, position: Position::Shared, seed: 4, ..CROPS };
        let small = shared.positions(0, 110, 60);
        assert_eq!(small, shared.positions(1, 110, 60));
        // Ten times the room: the same places, up to rounding down.
        for ((left, top), (x, y)) in small.iter().zip(shared.positions(2, 1018, 518)) {
            assert!(x / 10 == *left && y / 10 == *top, "{left} {top} {x} {y}");
        }
        assert_ne!(small, Crops { seed: 5, ..shared }.positions(0, 110, 60));
    }

    #[test]
    fn crops_at_their_own_size_are_only_scaled() {
        let image = ramp(40, 30);
        let crops = Crops { count: 2, size: 20, resize: false, ..CROPS };
        let preprocess = Preprocess { crops: Some(crops), ..Preprocess::default() };
        assert_eq!(preprocess.id(), "clean/crops2x20@0/native");
        let inputs = preprocess.inputs(&image, 299, 0, "x").unwrap();
        let (left, top) = crops.positions(0, 40, 30)[0];
        let expected = (f32::from(image.rgb[3 * (top * 40 + left) + 1]) - 128.0) / 128.0;
        assert_eq!((inputs[0].side, inputs[0].planes[400]), (20, expected));
        // A resize to the size it has changes nothing.
        assert_eq!(Profile::Clean.apply(&image.crop(left, top, 20), 20).unwrap(), inputs[0].planes);
        let clip = Preprocess { profile: Profile::Clip, ..preprocess };
        assert!(clip.inputs(&image, 224, 0, "x").is_err());
    }

    #[test]
    fn the_middle_and_the_jpeg_are_what_they_say() {
        let image = ramp(40, 30);
        let middle = Preprocess { aspect: Aspect::CenterCrop, ..Preprocess::default() };
        let input = middle.inputs(&image, 299, 0, "x").unwrap().remove(0);
        assert_eq!(input.planes, Profile::Clean.apply(&image.crop(5, 0, 30), 299).unwrap());
        let jpeg = Preprocess { jpeg_quality: Some(75), ..Preprocess::default() };
        let input = jpeg.inputs(&image, 299, 0, "x").unwrap().remove(0);
        assert_eq!(input.planes, Profile::Clean.apply(&jpeg::round_trip(&image, 75).unwrap(), 299).unwrap());
        assert_ne!(input.planes, Profile::Clean.apply(&image, 299).unwrap());
        assert_eq!((middle.id().as_str(), jpeg.id().as_str()), ("clean/center-crop", "clean/jpeg75"));
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse::<Profile>().unwrap(), profile);
        }
        assert!("clear".parse::<Profile>().unwrap_err().to_string().contains("expected one of clean, "));
    }
}
