//! From sets of images to feature sets: which images, through which network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use scalebench_kernels::on_gpu;
use serde::{Deserialize, Serialize};

use crate::archive::ImageArchive;
use crate::clip::{Clip, clip_score};
use crate::dinov2::Dinov2;
use crate::files::read;
use crate::i3d::I3d;
use crate::inception::{Inception, Taps};
use crate::preprocess::Input;
use crate::shards::{Shards, is_shards};
use crate::videos::VideoSet;
use crate::weights::WeightsFile;
use crate::{Error, FeatureSet, Image, Preprocess, Profile, Provenance, Result, list_images, pixels};

/// Images in flight between two calls of the progress callback.
const BATCH: usize = 64;

/// One image to look at.
///
/// ```
/// use scalebench_metrics::{Image, Sample, Source};
/// let red = Image::new(1, 1, vec![255, 0, 0])?;
/// let sample = Sample::image("red", 7, red.clone());
/// assert_eq!(*sample.decode()?, red);
/// assert!(matches!(sample.source, Source::Memory(_)) && sample.frames().is_err());
/// // A folder with one image.
/// let folder = std::path::Path::new("../../datasets/pocket");
/// assert!(Sample::is_set(folder));
/// for found in [Sample::all(folder)?, Sample::folder(folder)?] {
///     assert_eq!((found.len(), found[0].name.as_str(), found[0].group), (1, "grid.png", 0));
/// }
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sample {
    /// Image id.
    pub name: String,
    /// See [`FeatureSet::groups`].
    pub group: u32,
    /// Where the pixels are.
    pub source: Source,
}

/// Where pixels are.
///
/// Example: [`Sample`].
#[derive(Clone, Debug)]
pub enum Source {
    /// In a file, decoded when its turn comes.
    File(PathBuf),
    /// One of a set, by its place.
    Set(Arc<dyn ImageSet>, usize),
    /// In memory.
    Memory(Image),
    /// A video: one of a set, by its place.
    Video(Arc<dyn VideoSet>, usize),
}

/// Images that are read by their place, in an order of their own: archives, and what other crates add.
///
/// ```
/// use scalebench_metrics::{Image, ImageSet, Result, Sample};
///
/// /// All greys.
/// #[derive(Debug)]
/// struct Greys;
///
/// impl ImageSet for Greys {
///     fn len(&self) -> usize {
///         256
///     }
///
///     fn name(&self, _place: usize) -> &str {
///         "grey"
///     }
///
///     fn image(&self, place: usize) -> Result<Image> {
///         Image::new(1, 1, vec![place as u8; 3])
///     }
/// }
///
/// let samples = Sample::set(std::sync::Arc::new(Greys));
/// assert_eq!((samples.len(), samples[9].group, &samples[9].decode()?.rgb[..]), (256, 9, &[9, 9, 9][..]));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
#[expect(clippy::len_without_is_empty, reason = "a set without images does not open")]
pub trait ImageSet: std::fmt::Debug + Send + Sync {
    /// Number of images; at least one.
    fn len(&self) -> usize;

    /// Id of the image at `place`; there must be such a place.
    fn name(&self, place: usize) -> &str;

    /// Decodes the image at `place`, as [`Image::open`] does a file; there must be such a place. Called by several threads at
    /// a time.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] for an image that may be left out; it names the set and the image, as `archive.zip/entry.png`.
    fn image(&self, place: usize) -> Result<Image>;
}

impl Sample {
    /// An image in memory.
    /// Example: [`Sample`].
    pub fn image(name: impl Into<String>, group: u32, image: Image) -> Self {
        Self { name: name.into(), group, source: Source::Memory(image) }
    }

    /// All images under a folder, in a zip archive or in tar shards (see [`Shards::images`]), in order: groups are 0, 1, 2, ….
    ///
    /// A folder with both images and `.tar` files is an error: either may be meant.
    /// Example: [`Sample`].
    pub fn all(path: &Path) -> Result<Vec<Self>> {
        match (path.is_dir(), is_shards(path)) {
            (true, true) if list_images(path).is_ok() => Err(Error::MixedFolder { path: path.to_owned() }),
            (_, true) => Ok(Self::set(Arc::new(Shards::images(path)?))),
            (true, false) => Self::folder(path),
            (false, false) => Ok(Self::set(Arc::new(ImageArchive::open(path)?))),
        }
    }

    /// Whether a path is one for [`all`](Self::all), by its name or as a folder; other files may hold features or statistics.
    /// Example: [`Sample`].
    pub fn is_set(path: &Path) -> bool {
        path.is_dir() || is_shards(path) || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("zip"))
    }

    /// All images of a set: groups are 0, 1, 2, ….
    /// Example: [`ImageSet`].
    pub fn set(images: Arc<dyn ImageSet>) -> Vec<Self> {
        let sample = |i| Self { name: images.name(i).to_owned(), group: i as u32, source: Source::Set(Arc::clone(&images), i) };
        (0..images.len()).map(sample).collect()
    }

    /// All images under a folder in sorted order: names are relative paths, groups 0, 1, 2, ….
    /// Example: [`Sample`].
    pub fn folder(folder: &Path) -> Result<Vec<Self>> {
        let paths = list_images(folder)?;
        let sample = |(group, path): (usize, PathBuf)| Self {
            name: path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned(),
            group: group as u32,
            source: Source::File(path),
        };
        Ok(paths.into_iter().enumerate().map(sample).collect())
    }

    /// The pixels.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Decode`].
    ///
    /// Example: [`Sample`].
    pub fn decode(&self) -> Result<std::borrow::Cow<'_, Image>> {
        use std::borrow::Cow::{Borrowed, Owned};
        Ok(match &self.source {
            Source::Memory(image) => Borrowed(image),
            Source::File(path) => Owned(Image::open(path)?),
            Source::Set(images, place) => Owned(images.image(*place)?),
            Source::Video(..) => return Err(Error::BadPreprocess(format!("{} is a video, expected an image", self.name))),
        })
    }

    /// The frames of a video.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode), or if it is an image.
    ///
    /// Example: [`Sample`].
    pub fn frames(&self) -> Result<Vec<Image>> {
        match &self.source {
            Source::Video(videos, place) => videos.frames(*place),
            _ => Err(Error::BadPreprocess(format!("{} is an image, expected a video", self.name))),
        }
    }
}

/// What of a network's answer is taken.
///
/// Example: [`Extractor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tap {
    /// The features proper: Inception's 2048, CLIP's projection, DINOv2's class token.
    #[default]
    #[serde(rename = "features")]
    Features,
    /// Inception after the first max pool, averaged over space.
    #[serde(rename = "64")]
    Pool64,
    /// Inception after the second max pool, averaged over space.
    #[serde(rename = "192")]
    Pool192,
    /// Inception after `Mixed_6e`, averaged over space.
    #[serde(rename = "768")]
    Pool768,
    /// Inception's classifier without its bias: what the Inception Score uses.
    #[serde(rename = "logits_unbiased")]
    LogitsUnbiased,
    /// Inception's classifier.
    #[serde(rename = "logits")]
    Logits,
}

impl Tap {
    /// Every tap, with the name under which torch-fidelity has it.
    pub const ALL: [(&'static str, Self); 6] = [
        ("2048", Self::Features),
        ("64", Self::Pool64),
        ("192", Self::Pool192),
        ("768", Self::Pool768),
        ("logits_unbiased", Self::LogitsUnbiased),
        ("logits", Self::Logits),
    ];

    /// The name in configurations and provenances.
    /// Example: [`Extractor`].
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, tap)| *tap == self);
        found.map_or("2048", |(name, _)| name)
    }

    fn of(self, taps: &Taps) -> &Tensor {
        match self {
            Self::Features => &taps.pool_2048,
            Self::Pool64 => &taps.pool_64,
            Self::Pool192 => &taps.pool_192,
            Self::Pool768 => &taps.pool_768,
            Self::LogitsUnbiased => &taps.logits_unbiased,
            Self::Logits => &taps.logits,
        }
    }
}

impl std::str::FromStr for Tap {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|(name, _)| name).join(", ");
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name || (name == "features" && *known == "2048"));
        found.map(|(_, tap)| tap).ok_or_else(|| format!("`{name}` is no tap; expected one of {names}"))
    }
}

/// A feature network with its weights.
///
/// ```
/// use candle_core::Device;
/// use scalebench_metrics::{Corrupt, Extractor, Image, Preprocess, Profile, Sample, Skipped, Tap};
/// // The Inception of the pocket model, an eighth as wide as FID's.
/// let extractor = Extractor::load_on("../../datasets/pocket-inception".as_ref(), &Device::Cpu)?;
/// assert_eq!((extractor.dim(), extractor.usual_profile()), (256, Profile::Clean));
/// assert!(!extractor.is_published_inception() && !extractor.is_dinov2() && extractor.clip().is_none());
/// assert!(!extractor.takes_videos() && !extractor.is_published_i3d());
/// // Two taps of one pass over one image.
/// let image = || Sample::image("grey", 0, Image { width: 64, height: 64, rgb: vec![128; 3 * 64 * 64] });
/// let whole = Preprocess::default();
/// let (sets, skipped): (_, Vec<Skipped>) = extractor.taps(&[Tap::Features, Tap::Pool64], [image()], &whole, Corrupt::Skip, |_| {})?;
/// assert_eq!((sets[0].dim, sets[1].dim, skipped.len()), (256, 8, 0));
/// assert_eq!(sets[1].provenance, extractor.provenance(Tap::Pool64, &whole));
/// assert_eq!(extractor.features([image()], &whole, |_| {})?, sets[0]);
/// assert_eq!("64".parse(), Ok(Tap::Pool64));
/// assert_eq!(Tap::ALL.map(|(name, _)| name), Tap::ALL.map(|(_, tap)| tap.name()));
/// // Without a network.
/// assert!(Extractor::pixels().is_pixels());
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
#[derive(Debug)]
pub struct Extractor {
    network: Network,
    device: Device,
}

#[derive(Debug)]
enum Network {
    Inception(Box<Inception>),
    Clip(Box<Clip>),
    Dinov2(Box<Dinov2>),
    /// None: what [`pixels`] says.
    Pixels,
    I3d(Box<I3d>),
}

/// What happens to images that cannot be decoded.
///
/// Example: [`Extractor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corrupt {
    /// The rest is only decoded, and the error names all that cannot be.
    Fail,
    /// They are left out and returned.
    Skip,
}

/// An image that was left out, and why.
///
/// Example: [`Extractor`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Image id.
    pub name: String,
    /// What the decoder said.
    pub message: String,
}

/// Rows of one image, one list of rows per tap.
type Rows = Vec<Vec<Vec<f32>>>;

impl Extractor {
    /// Loads a network, whichever the path holds: the FID Inception as a weights file or as a folder with
    /// `model.safetensors` (see [`Inception::load`]), I3D likewise, or a Hugging Face folder of CLIP or DINOv2
    /// (by `model_type` in its `config.json`).
    /// Example: [`clip_scores`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_on(path, &Device::Cpu)
    }

    /// [`load`](Self::load), onto a device.
    /// Example: [`Extractor`].
    pub fn load_on(path: &Path, device: &Device) -> Result<Self> {
        let model_type = match path.is_dir() {
            true => model_type(path)?,
            false => None,
        };
        let network = match model_type.as_deref() {
            Some("clip") => Network::Clip(Box::new(Clip::load_on(path, device)?)),
            Some("dinov2") => Network::Dinov2(Box::new(Dinov2::load_on(path, device)?)),
            None | Some("i3d") => {
                let file = if path.is_dir() { path.join("model.safetensors") } else { path.to_owned() };
                let is_i3d = WeightsFile::open(&read(&file)?, &file).is_ok_and(|file| I3d::is_meant(&file));
                match is_i3d || model_type.is_some() {
                    true => Network::I3d(Box::new(I3d::load_on(&file, device)?)),
                    false => Network::Inception(Box::new(Inception::load_on(&file, device)?)),
                }
            }
            Some(other) => {
                let message = format!("model_type is `{other}`, expected clip, dinov2 or i3d (or none, for the FID Inception)");
                return Err(Error::Config { path: path.join("config.json"), message });
            }
        };
        Ok(Self { network, device: device.clone() })
    }

    /// No network: spectrum and sharpness of the pixels themselves, see [`pixels`]. No profile plays a part.
    /// Example: [`Extractor`].
    pub fn pixels() -> Self {
        Self { network: Network::Pixels, device: Device::Cpu }
    }

    /// Whether it is [`pixels`](Self::pixels).
    /// Example: [`Extractor`].
    pub fn is_pixels(&self) -> bool {
        matches!(self.network, Network::Pixels)
    }

    /// The profile that tools use with this network unless told otherwise.
    /// Example: [`Extractor`].
    pub fn usual_profile(&self) -> Profile {
        match self.network {
            Network::Inception(_) | Network::Pixels => Profile::Clean,
            Network::Clip(_) => Profile::Clip,
            Network::Dinov2(_) => Profile::DgmEval,
            Network::I3d(_) => Profile::Lvdm,
        }
    }

    /// The CLIP inside, which also reads text.
    /// Example: [`Extractor`].
    pub fn clip(&self) -> Option<&Clip> {
        match &self.network {
            Network::Clip(clip) => Some(clip),
            _ => None,
        }
    }

    /// Whether the network looks at videos.
    /// Example: [`Extractor`].
    pub fn takes_videos(&self) -> bool {
        matches!(self.network, Network::I3d(_))
    }

    /// Whether the network is DINOv2.
    /// Example: [`Extractor`].
    pub fn is_dinov2(&self) -> bool {
        matches!(self.network, Network::Dinov2(_))
    }

    /// Whether published FIDs are made with a network of this architecture: Inception at full width.
    /// Example: [`Extractor`].
    pub fn is_published_inception(&self) -> bool {
        matches!(&self.network, Network::Inception(network) if network.config().width == 1.0)
    }

    /// Whether published FVDs are made with a network of this architecture: I3D at full width.
    /// Example: [`Extractor`].
    pub fn is_published_i3d(&self) -> bool {
        matches!(&self.network, Network::I3d(network) if network.config().width == 1.0)
    }

    /// Values of a feature.
    /// Example: [`Extractor`].
    pub fn dim(&self) -> usize {
        match &self.network {
            Network::Inception(network) => network.config().feature_dim(),
            Network::Clip(clip) => clip.dim(),
            Network::Dinov2(dino) => dino.dim(),
            Network::Pixels => pixels::DIM,
            Network::I3d(network) => network.config().num_classes,
        }
    }

    /// The provenance that sets made with `preprocess` carry; good as a cache key.
    /// Example: [`Extractor`].
    pub fn provenance(&self, tap: Tap, preprocess: &Preprocess) -> Provenance {
        let (extractor, weights) = match &self.network {
            Network::Inception(network) => (format!("inception-v3-fid/w{}/{}", network.config().width, tap.name()), network.digest()),
            Network::Clip(clip) => (clip.name(), clip.digest()),
            Network::Dinov2(dino) => (dino.name(), dino.digest()),
            Network::Pixels => (pixels::NAME.to_owned(), "none"),
            Network::I3d(network) => (network.name(), network.digest()),
        };
        Provenance { extractor, weights: weights.to_owned(), preprocess: preprocess.clone() }
    }

    /// Features of all images, in the order given; an image that cannot be decoded is an error.
    ///
    /// On the CPU images run in parallel, each on one thread; on a GPU in batches, while the next ones are decoded and resized. Either
    /// way a result depends on its image alone. `progress` is told, from the calling thread, how many images are done.
    /// Example: [`Extractor`].
    pub fn features(
        &self,
        samples: impl IntoIterator<Item = Sample>,
        preprocess: &Preprocess,
        progress: impl FnMut(usize),
    ) -> Result<FeatureSet> {
        let (mut sets, _) = self.taps(&[Tap::Features], samples, preprocess, Corrupt::Fail, progress)?;
        Ok(sets.remove(0))
    }

    /// As [`features`](Self::features), for several taps of one pass: one set per tap, in the order given.
    /// Example: [`Extractor`].
    pub fn taps(
        &self,
        taps: &[Tap],
        samples: impl IntoIterator<Item = Sample>,
        preprocess: &Preprocess,
        corrupt: Corrupt,
        mut progress: impl FnMut(usize),
    ) -> Result<(Vec<FeatureSet>, Vec<Skipped>)> {
        preprocess.validate()?;
        let (mut names, mut groups) = (Vec::new(), Vec::new());
        let mut data = vec![Vec::new(); taps.len()];
        let mut skipped = Vec::new();
        let mut samples = samples.into_iter();
        let (announced, _) = samples.size_hint();
        let mut take = || samples.by_ref().take(BATCH).collect::<Vec<Sample>>();
        let (mut next, mut done) = (take(), 0);
        let mut ready = None;
        while !next.is_empty() {
            let batch = std::mem::replace(&mut next, take());
            // After the first image that cannot be decoded the set is lost; what is left to do is to find the others.
            let only_decode = corrupt == Corrupt::Fail && !skipped.is_empty();
            let rows: Vec<Result<Rows>> = if on_gpu(&self.device) {
                let inputs = ready.take().unwrap_or_else(|| self.inputs(&batch, done, preprocess));
                std::thread::scope(|scope| {
                    let ahead = scope.spawn(|| self.inputs(&next, done + batch.len(), preprocess));
                    let rows = self.rows_of(taps, inputs, only_decode);
                    ready = ahead.join().ok();
                    rows
                })
            } else {
                let one = |(i, sample): (usize, &Sample)| match only_decode {
                    true if self.takes_videos() => sample.frames().map(|_| Rows::new()),
                    true => sample.decode().map(|_| Rows::new()),
                    false if self.is_pixels() => self.rows_of_pixels(taps, sample, done + i, preprocess),
                    false => self.answers(taps, self.inputs_of(sample, done + i, preprocess)?),
                };
                batch.par_iter().enumerate().map(one).collect()
            };
            done += batch.len();
            for (sample, rows) in batch.into_iter().zip(rows) {
                let rows = match rows {
                    Ok(rows) => rows,
                    Err(error @ Error::Decode { .. }) => {
                        skipped.push(Skipped { name: sample.name, message: error.to_string() });
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let n_rows = rows.first().map_or(0, Vec::len);
                names.extend((0..n_rows).map(|k| match preprocess.crops {
                    Some(_) => format!("{}#{k}", sample.name),
                    None => sample.name.clone(),
                }));
                groups.extend((0..n_rows).map(|_| sample.group));
                for (data, rows) in data.iter_mut().zip(rows) {
                    if data.is_empty() {
                        // Growth by doubling would hold up to three times the features.
                        data.reserve_exact(announced * rows.iter().map(Vec::len).sum::<usize>());
                    }
                    data.extend(rows.into_iter().flatten());
                }
            }
            progress(done);
        }
        if corrupt == Corrupt::Fail && !skipped.is_empty() {
            return Err(Error::Corrupt { messages: skipped.into_iter().map(|s| s.message).collect(), of: done });
        }
        let n = names.len();
        let sets = taps.iter().zip(data).map(|(tap, data)| {
            let dim = data.len().checked_div(n).unwrap_or(1);
            FeatureSet::new(names.clone(), groups.clone(), data, dim, self.provenance(*tap, preprocess))
        });
        Ok((sets.collect::<Result<_>>()?, skipped))
    }

    /// What the network sees of image `index` of a set.
    fn inputs_of(&self, sample: &Sample, index: usize, preprocess: &Preprocess) -> Result<Vec<Input>> {
        let side = match &self.network {
            Network::Inception(_) => Inception::SIDE,
            Network::Clip(clip) => clip.side(),
            Network::Dinov2(dino) => dino.side(),
            // Its rows are not made from inputs.
            Network::Pixels => 0,
            Network::I3d(network) => return preprocess.video(&sample.frames()?, network.config().side, index as u64, &sample.name),
        };
        preprocess.inputs(sample.decode()?.as_ref(), side, index as u64, &sample.name)
    }

    /// What [`pixels`] says of image `index`.
    fn rows_of_pixels(&self, taps: &[Tap], sample: &Sample, index: usize, preprocess: &Preprocess) -> Result<Rows> {
        self.only_features(taps)?;
        let pieces = preprocess.pieces(sample.decode()?.as_ref(), index as u64, &sample.name)?;
        let rows = pieces.iter().map(|piece| pixels::row(piece, &sample.name)).collect::<Result<Vec<_>>>()?;
        Ok(vec![rows; taps.len()])
    }

    /// Refuses taps that are Inception's.
    fn only_features(&self, taps: &[Tap]) -> Result<()> {
        if taps.iter().all(|tap| *tap == Tap::Features) {
            return Ok(());
        }
        let distinct: BTreeSet<&str> = taps.iter().map(|tap| tap.name()).collect();
        let message = format!("taps {distinct:?} are Inception's; this network has its features only");
        Err(Error::BadPreprocess(message))
    }

    /// The same of images `first` and on.
    fn inputs(&self, samples: &[Sample], first: usize, preprocess: &Preprocess) -> Vec<Result<Vec<Input>>> {
        samples.par_iter().enumerate().map(|(i, sample)| self.inputs_of(sample, first + i, preprocess)).collect()
    }

    /// Rows of several images, whose inputs go through the network in batches.
    fn rows_of(&self, taps: &[Tap], images: Vec<Result<Vec<Input>>>, only_decode: bool) -> Vec<Result<Rows>> {
        if only_decode {
            return images.into_iter().map(|inputs| inputs.map(|_| Rows::new())).collect();
        }
        let (mut counts, mut inputs) = (Vec::new(), Vec::new());
        for image in images {
            counts.push(image.map(|of_image| {
                let n = of_image.len();
                inputs.extend(of_image);
                n
            }));
        }
        let mut answers: Vec<_> = match self.answers(taps, inputs) {
            Ok(rows) => rows.into_iter().map(Vec::into_iter).collect(),
            Err(error) => return vec![Err(error)],
        };
        counts.into_iter().map(|n| n.map(|n| answers.iter_mut().map(|rows| rows.take(n).collect()).collect())).collect()
    }

    /// What the network says of inputs of one size: for each tap, a row for each.
    fn answers(&self, taps: &[Tap], inputs: Vec<Input>) -> Result<Rows> {
        // One at a time on the CPU, where an image then stays in a core's cache.
        let together = if on_gpu(&self.device) && !self.takes_videos() { BATCH } else { 1 };
        let mut rows: Rows = vec![Vec::new(); taps.len()];
        for part in inputs.chunks(together) {
            let side = part[0].side;
            let planes: Vec<f32> = part.iter().flat_map(|input| &input.planes).copied().collect();
            let maps = planes.len() / (3 * side * side);
            let x = Tensor::from_vec(planes, (maps, 3, side, side), &Device::Cpu)?;
            let answers: Vec<Tensor> = match &self.network {
                Network::Inception(network) => {
                    let answer = network.forward(&x)?;
                    taps.iter().map(|tap| tap.of(&answer).clone()).collect()
                }
                other => {
                    self.only_features(taps)?;
                    let features = match other {
                        Network::Clip(clip) => clip.image_features(&x)?,
                        Network::Dinov2(dino) => dino.features(&x)?,
                        Network::I3d(network) => network.forward(&x)?.unsqueeze(0)?,
                        _ => return Err(Error::BadPreprocess("pixels are looked at without a network".to_owned())),
                    };
                    vec![features; taps.len()]
                }
            };
            for (rows, answer) in rows.iter_mut().zip(answers) {
                rows.extend(answer.to_vec2::<f32>()?);
            }
        }
        Ok(rows)
    }
}

/// What CLIP says of each image and its prompt: a set of dimension 1, 100·cos and at least 0.
///
/// `images` are features that `extractor`, a CLIP, made; the prompt of a row is that of its group: `prompts[group]`.
///
/// ```
/// use scalebench_metrics::{Extractor, Image, Preprocess, Sample, clip_scores};
/// // A tiny CLIP on random weights.
/// let extractor = Extractor::load("tests/data/networks/clip".as_ref())?;
/// let grey = Sample::image("grey", 1, Image::new(28, 28, vec![128; 3 * 28 * 28])?);
/// let features = extractor.features([grey], &Preprocess::whole(extractor.usual_profile()), |_| {})?;
/// // The image is of group 1, so its prompt is the second.
/// let scores = clip_scores(&extractor, &features, &["a dog", "a cat"])?;
/// assert_eq!((scores.len(), scores.dim), (1, 1));
/// assert!((0.0..=100.0).contains(&scores.data[0]));
/// assert!(clip_scores(&extractor, &features, &["a dog"]).is_err());
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub fn clip_scores(extractor: &Extractor, images: &FeatureSet, prompts: &[&str]) -> Result<FeatureSet> {
    let clip = extractor.clip().ok_or(Error::NotClip)?;
    if let Some(group) = images.groups.iter().find(|group| **group as usize >= prompts.len()) {
        return Err(Error::NoPrompt { group: *group, prompts: prompts.len() });
    }
    let texts = clip.text_features(prompts)?;
    let texts = texts.index_select(&Tensor::new(images.groups.as_slice(), &Device::Cpu)?, 0)?;
    let rows = Tensor::from_slice(&images.data, (images.len(), images.dim), &Device::Cpu)?;
    let data = clip_score(&rows, &texts)?.into_iter().map(|score| score as f32).collect();
    let mut provenance = images.provenance.clone();
    provenance.extractor = format!("{}/score", provenance.extractor);
    FeatureSet::new(images.names.clone(), images.groups.clone(), data, 1, provenance)
}

/// `model_type` of a folder's `config.json`; none if there is no such file or no such key.
fn model_type(folder: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Config {
        model_type: Option<String>,
    }
    let path = folder.join("config.json");
    match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "read", path, source }),
        Ok(bytes) => {
            let config: Config = serde_json::from_slice(&bytes).map_err(|e| Error::Config { path, message: e.to_string() })?;
            Ok(config.model_type)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows belong to images, not to batches, threads or positions; crops share their group.
    #[test]
    fn rows_do_not_depend_on_order_or_source() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("weights.safetensors");
        std::fs::write(&weights, crate::inception::tests::narrow_file()).unwrap();
        let extractor = Extractor::load(&weights).unwrap();
        let images: Vec<Image> = (0..3).map(|seed| crate::test_data::formula_image(seed, 70, 80)).collect();
        for (i, image) in images.iter().enumerate() {
            let pixels = image::RgbImage::from_raw(80, 70, image.rgb.clone()).unwrap();
            pixels.save(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let whole = Preprocess::default();
        let mut seen = Vec::new();
        let files = Sample::folder(dir.path()).unwrap();
        let from_files = extractor.features(files, &whole, |done| seen.push(done)).unwrap();
        assert_eq!(seen, [3]);
        assert_eq!(from_files.names, ["0.png", "1.png", "2.png"]);
        assert_eq!((from_files.groups.as_slice(), from_files.dim), ([0, 1, 2].as_slice(), 256));
        let memory = images.iter().enumerate().rev();
        let memory = memory.map(|(i, image)| Sample::image("x", i as u32, image.clone()));
        let reversed = extractor.features(memory, &whole, |_| {}).unwrap();
        let backwards: Vec<f32> = reversed.data.rchunks(256).flatten().copied().collect();
        assert_eq!(backwards, from_files.data);
        assert_ne!(from_files.data[..256], from_files.data[256..512]);

        let crops = Some(serde_json::from_str(r#"{"count": 2, "size": 64, "seed": 1}"#).unwrap());
        let crops = Preprocess { crops, ..Preprocess::default() };
        let sample = Sample::image("a", 9, images[0].clone());
        let cropped = extractor.features([sample], &crops, |_| {}).unwrap();
        assert_eq!((cropped.names, cropped.groups), (vec!["a#0".into(), "a#1".into()], vec![9, 9]));

        let taps = [Tap::Features, Tap::LogitsUnbiased];
        for name in ["1a.png", "3.png"] {
            std::fs::write(dir.path().join(name), b"nothing").unwrap();
        }
        let files = || Sample::folder(dir.path()).unwrap();
        let message = extractor.features(files(), &whole, |_| {}).unwrap_err().to_string();
        assert!(
            message.starts_with("2 of 5 images cannot be decoded") && message.contains("1a.png") && message.contains("3.png"),
            "{message}"
        );
        let (sets, skipped) = extractor.taps(&taps, files(), &whole, Corrupt::Skip, |_| {}).unwrap();
        assert_eq!(skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["1a.png", "3.png"]);
        assert_eq!((sets[0].data.as_slice(), sets[0].groups.as_slice()), (from_files.data.as_slice(), [0, 1, 3].as_slice()));
        assert_eq!((sets[1].dim, sets[1].provenance.extractor.as_str()), (10, "inception-v3-fid/w0.125/logits_unbiased"));
    }

    #[test]
    fn taps_have_names() {
        for (name, tap) in Tap::ALL {
            assert_eq!(name.parse::<Tap>(), Ok(tap));
        }
        assert_eq!("features".parse::<Tap>(), Ok(Tap::Features));
        assert!("2049".parse::<Tap>().unwrap_err().contains("expected one of 2048, 64"));
    }
}
