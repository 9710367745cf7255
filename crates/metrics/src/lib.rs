//! Metrics between sets of images: exact preprocessing, features, distances, intervals.
//!
//! | metric | function | needs | compares across n | reference |
//! | --- | --- | --- | --- | --- |
//! | FID | [`fid`], [`fid_from_statistics`] | features or mean and covariance | no, biased by c/n | arXiv:1706.08500 |
//! | FID at infinity | [`fid_infinity`] | features | yes, on the generated side | arXiv:1911.07023 |
//! | KID, subsets | [`kid`] | features | yes | torch-fidelity 0.4.0, clean-fid 0.1.35 |
//! | KID, all pairs | [`kid_u`] | features | yes | arXiv:1801.01401 |
//! | CMMD | [`cmmd`] | CLIP embeddings | no, biased by c/n | arXiv:2401.09603 |
//! | precision, recall, density, coverage | [`prdc()`] | features | no | arXiv:1904.06991, arXiv:2002.09797 |
//! | realism of every image | [`realism`] | features | no | arXiv:1904.06991 |
//! | Inception score | [`inception_score()`] | logits | no | torch-fidelity 0.4.0, OpenAI |
//! | spectrum, sharpness | [`measure`] | [`Extractor::pixels`] | yes | [`pixels`] |
//! | repetition | [`measure`] | features of crops, several an image | yes | this crate's `README.md` |
//! | interval of any of them | [`estimate()`] | features with group ids | | block jackknife |
//! | interval of a difference | [`paired_difference`] | two feature sets of the same groups | | block jackknife |
//!
//! The way from files to a number:
//!
//! ```no_run
//! use scalebench_metrics::{
//!     Crops, Extractor, Jackknife, Metric, Preprocess, Sample, estimate, fid,
//! };
//! # fn main() -> Result<(), scalebench_metrics::Error> {
//! let extractor = Extractor::load("inception.safetensors".as_ref())?;
//! let whole = Preprocess::default();
//! let crops = Preprocess {
//!     crops: Some(Crops::random(10, 512, 0)),
//!     ..Preprocess::default()
//! };
//! let real = extractor.features(Sample::folder("real".as_ref())?, &whole, |_| {})?;
//! let patches = extractor.features(Sample::folder("generated".as_ref())?, &crops, |_| {})?;
//! let value = fid(&patches, &real)?;
//! let interval = estimate(Metric::Fid, &patches, Some(&real), &Jackknife::STANDARD)?;
//! assert_eq!(value, interval.value);
//! # Ok(())
//! # }
//! ```
//!
//! Definitions to the digit, and what differs from which tool: this crate's `README.md`.
//!
//! What is *not* promised: JPEG files decode to within rounding of libjpeg-turbo, not to its bits; and
//! distances depend on the machine's vector width in the last few bits. Features do not depend on the
//! batch, the order of the images or the number of threads.

mod archive;
mod clip;
mod dinov2;
mod error;
mod estimate;
mod extract;
mod features;
mod files;
mod frechet;
mod i3d;
mod image;
mod inception;
mod inception_score;
pub mod jpeg;
mod kernel;
mod model_folder;
mod neighbours;
pub mod npz;
mod pickle;
pub mod pixels;
pub mod preprocess;
mod products;
pub mod random;
mod raw;
pub mod resize;
mod shards;
mod statistics_file;
pub mod torch_file;
pub mod videos;
mod weights;

#[cfg(test)]
mod test_data;

pub use archive::ImageArchive;
pub use clip::Clip;
pub use dinov2::Dinov2;
pub use error::{Error, Result};
pub use estimate::{Estimate, Jackknife, Jackknifed, Metric, OtherSide, ReferenceBlocks, Verdict, estimate, measure, paired_difference};
pub use extract::{Corrupt, Extractor, ImageSet, Sample, Skipped, Source, Tap, clip_scores};
pub use features::{FeatureSet, Provenance};
pub use frechet::{Conditioning, Extrapolation, InfinityOptions, Moments, Statistics, fid, fid_from_statistics, fid_infinity};
pub use image::{Image, list_images};
pub use inception::{Inception, Taps};
pub use inception_score::{InceptionScore, Splits, inception_score, inception_score_infinity, inception_score_whole};
pub use kernel::{DrawOrder, Kernel, Kid, KidOptions, cmmd, kid, kid_u};
pub use neighbours::{Boundary, NeighbourOptions, Prdc, prdc, realism};
pub use preprocess::{Aspect, Clip as VideoClip, Crops, Position, Preprocess, Profile, Scales};
pub use shards::Shards;
pub use statistics_file::{FeatureArray, StatisticsFile, Stored};
pub use videos::{VideoMeasure, VideoSet};
pub use weights::{ConvertedWeights, convert_weights};
