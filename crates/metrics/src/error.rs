//! The one error type of the crate.

use std::path::PathBuf;

/// What can go wrong when images are turned into numbers.
///
/// ```
/// use scalebench_metrics::{Error, Image, Result};
/// let image: Result<Image> = Image::new(2, 2, vec![0; 3]);
/// assert!(matches!(image, Err(Error::PixelCount { expected: 12, found: 3, .. })));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// `read`, `write`, `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder holds no PNG, JPEG or WebP file.
    #[error("no png, jpeg or webp image under {path}")]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// A file has an image's name but does not decode.
    #[error("cannot decode image {path}: {message}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The decoder's words.
        message: String,
    },
    /// Files have an image's name but do not decode.
    #[error("{} of {of} images cannot be decoded: {}", messages.len(), list(messages))]
    Corrupt {
        /// What was said of each.
        messages: Vec<String>,
        /// Images in all.
        of: usize,
    },
    /// A pixel buffer does not have the length its size demands.
    #[error("a {width}x{height} image needs {expected} values, found {found}")]
    PixelCount {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Values that the size demands.
        expected: usize,
        /// Values found.
        found: usize,
    },
    /// A crop is larger than the image it is taken from.
    #[error("image {name} is {width}x{height}, too small for crops of {size}x{size}")]
    CropTooLarge {
        /// Image id.
        name: String,
        /// Image width.
        width: usize,
        /// Image height.
        height: usize,
        /// Crop side.
        size: usize,
    },
    /// A preprocessing description makes no sense.
    #[error("bad preprocessing: {0}")]
    BadPreprocess(String),
    /// A safetensors file is truncated or is not one.
    #[error("{path} is truncated or not a safetensors file: {message}")]
    Container {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        message: String,
    },
    /// A file's content does not have the digest that was written with it.
    #[error("{path} is damaged: its content does not have the digest that was written with it")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A configuration or metadata entry could not be understood.
    #[error("bad configuration in {path}: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file that `torch.save` should have written cannot be read, or will not be.
    #[error("cannot read torch file {path}: {message}")]
    TorchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The tensors are those of another network.
    #[error("{path} does not hold the weights of the FID Inception: {message}")]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// How one can tell, and what to use.
        message: String,
    },
    /// A folder holds two kinds of image sets.
    #[error("{path} holds both images and tar shards; expected one of them")]
    MixedFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A folder of videos holds two kinds of them.
    #[error("{path} holds both folders and images; expected a folder of frames for each video, or animated files")]
    MixedVideos {
        /// The folder.
        path: PathBuf,
    },
    /// A pattern of file names makes no sense.
    #[error("bad pattern {pattern}: {message}")]
    Pattern {
        /// As it was written.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// A zip or tar archive cannot be read or written.
    #[error("bad archive {path}: {message}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// An array of an `.npz` file is missing, damaged or of another kind than needed.
    #[error("{path}: array {key}: {message}")]
    Array {
        /// The file.
        path: PathBuf,
        /// Name of the array.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A tensor is not in the file.
    #[error("{path} has no tensor {key} (expected shape {expected:?})")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The key looked for.
        key: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape or type than the network needs.
    #[error("{path}: tensor {key} should be {expected}, found {found}")]
    TensorMismatch {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Type and shape it should have, such as `F32[40]`.
        expected: String,
        /// Type and shape in the file.
        found: String,
    },
    /// A tensor in the file has no place in the network.
    #[error("{path}: tensor {key} is not part of the network")]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A network input has a shape the network cannot take.
    #[error("network input must be (batch, 3, height >= 75, width >= 75), found {found:?}")]
    InputShape {
        /// The shape given.
        found: Vec<usize>,
    },
    /// An input of a feature network has another shape than it takes.
    #[error("{network} takes {expected}, found {found:?}")]
    NetworkInput {
        /// `clip`, `dinov2`.
        network: &'static str,
        /// The shape it takes.
        expected: String,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A text could not be cut into tokens.
    #[error("cannot tokenize {text:?}: {message}")]
    Tokenize {
        /// The text.
        text: String,
        /// The tokenizer's words.
        message: String,
    },
    /// Features of images and of texts do not pair up.
    #[error("image features {images:?} and text features {texts:?} should both be (pairs, dim)")]
    FeaturePairs {
        /// Shape of the images' features.
        images: Vec<usize>,
        /// Shape of the texts' features.
        texts: Vec<usize>,
    },
    /// The tensor library failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A feature set's parts have different lengths.
    #[error("feature set with {names} names, {groups} groups and {values} values of dimension {dim}")]
    FeatureShape {
        /// Number of names.
        names: usize,
        /// Number of group ids.
        groups: usize,
        /// Number of feature values.
        values: usize,
        /// Feature dimension.
        dim: usize,
    },
    /// A feature is NaN or infinite.
    #[error("feature {column} of row {row} (image {name}) is {value}")]
    NonFinite {
        /// Row index.
        row: usize,
        /// Image id of the row.
        name: String,
        /// Column index.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A metric needs more images than there are.
    #[error("{metric} needs at least {needed} images on each side, found {left} and {right}")]
    TooFewImages {
        /// The metric.
        metric: &'static str,
        /// Images needed.
        needed: usize,
        /// Images on the first side.
        left: usize,
        /// Images on the second side.
        right: usize,
    },
    /// KID was asked for without subsets, or with subsets of fewer than two images.
    #[error("kid needs subsets of at least 2 images, asked for {subsets} of {size}")]
    BadSubsets {
        /// Number of subsets.
        subsets: usize,
        /// Rows per subset.
        size: usize,
    },
    /// A kernel's width is not a positive number.
    #[error("an rbf kernel needs a positive sigma, found {sigma}")]
    BadKernel {
        /// The width asked for.
        sigma: f64,
    },
    /// A row of zeros cannot be brought to length one.
    #[error("row {row} (image {name}) is all zeros, so it has no direction")]
    NoDirection {
        /// Row index.
        row: usize,
        /// Image id of the row.
        name: String,
    },
    /// Nearest neighbours were asked for with k = 0.
    #[error("nearest neighbours need k of at least 1")]
    NoNeighbours,
    /// A score was asked for with splits that the images cannot fill.
    #[error("{images} images cannot be split into {splits} parts of at least one image")]
    BadSplits {
        /// Images at hand.
        images: usize,
        /// Parts asked for.
        splits: usize,
    },
    /// An extrapolation was asked for through too few points.
    #[error("a line with an error needs at least 3 points, asked for {points}")]
    TooFewPoints {
        /// Points asked for.
        points: usize,
    },
    /// A batch of rows is not a whole number of rows.
    #[error("{values} values are not whole rows of {dim}")]
    BatchShape {
        /// Values in the batch.
        values: usize,
        /// Values per row.
        dim: usize,
    },
    /// Shards of statistics have different dimensions.
    #[error("cannot merge moments of dimension {right} into moments of dimension {left}")]
    MomentsShape {
        /// Dimension of the moments merged into.
        left: usize,
        /// Dimension of those merged.
        right: usize,
    },
    /// A metric cannot be computed from the mean and covariance of its other side.
    #[error("{metric} needs features on both sides, not statistics")]
    NotFromStatistics {
        /// The metric.
        metric: &'static str,
    },
    /// A metric has no other side to compare with.
    #[error("{metric} needs reference images")]
    NoReference {
        /// The metric.
        metric: &'static str,
    },
    /// A CLIP score was asked of another network.
    #[error("a CLIP score needs a CLIP network")]
    NotClip,
    /// A mean was asked of a set that is no list of scores.
    #[error("expected one score for each image, found {dim} values")]
    NotScores {
        /// Values per row.
        dim: usize,
    },
    /// An image has no prompt.
    #[error("image {group} has no prompt: there are {prompts}")]
    NoPrompt {
        /// Group of the image, which is the number of its prompt.
        group: u32,
        /// Prompts given.
        prompts: usize,
    },
    /// Two feature sets were not made in the same way.
    #[error("feature sets cannot be compared: {what} is {left} on one side and {right} on the other")]
    Incomparable {
        /// `extractor`, `weights`, `preprocess profile`, `dimension`.
        what: &'static str,
        /// The first set's.
        left: String,
        /// The second set's.
        right: String,
    },
    /// Two feature sets that should share their groups do not.
    #[error("group {group} is in one feature set but not in the other")]
    UnpairedGroup {
        /// The group id.
        group: u32,
    },
    /// Too few blocks for an interval.
    #[error("a jackknife needs at least 2 blocks with images, found {found} (of {blocks} asked for)")]
    TooFewBlocks {
        /// Blocks that hold an image.
        found: usize,
        /// Blocks asked for.
        blocks: u32,
    },
    /// A confidence level outside (0, 1).
    #[error("confidence level must lie between 0 and 1, found {level}")]
    BadLevel {
        /// The level.
        level: f64,
    },
    /// A covariance matrix has an eigenvalue that is negative beyond rounding.
    #[error("covariance is not positive semi-definite: eigenvalues from {smallest} to {largest}")]
    NotPositive {
        /// Smallest eigenvalue.
        smallest: f64,
        /// Largest eigenvalue.
        largest: f64,
    },
    /// A statistic's mean and covariance do not fit.
    #[error("statistics with a mean of {mean} values and a covariance of {rows}x{columns}")]
    StatisticsShape {
        /// Length of the mean.
        mean: usize,
        /// Rows of the covariance.
        rows: usize,
        /// Columns of the covariance.
        columns: usize,
    },
    /// A statistic is NaN or infinite.
    #[error("{path}: {key}{at:?} is {value}")]
    NonFiniteStatistic {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Index of the value.
        at: Vec<usize>,
        /// The value.
        value: f64,
    },
    /// A covariance in a file is not symmetric beyond rounding.
    #[error("{path}: {key} is not symmetric: [{row}, {column}] is {value}, [{column}, {row}] is {mirrored}")]
    Asymmetric {
        /// The file.
        path: PathBuf,
        /// The array.
        key: String,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
        /// The value.
        value: f64,
        /// The value across the diagonal.
        mirrored: f64,
    },
    /// A matrix decomposition did not converge.
    #[error("{what} did not converge")]
    NoConvergence {
        /// The decomposition.
        what: &'static str,
    },
}

/// The first few of many, and how many more there are.
fn list(messages: &[String]) -> String {
    const SHOWN: usize = 10;
    let more = messages.len().saturating_sub(SHOWN);
    let shown = messages[..messages.len() - more].join("; ");
    if more == 0 { shown } else { format!("{shown}; and {more} more") }
}

/// Result of this crate's functions.
///
/// Example: [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
