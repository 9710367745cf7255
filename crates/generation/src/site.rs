//! The places in the U-Net where a method may act.
//!
//! A site's name *is* its diffusers module path (`down_blocks.1.resnets.0.conv1`); the table is built
//! while the weights load, and everything afterwards goes by dense index.
//!
//! ```
//! use scalebench_generation::site::{AttentionSite, ConvSite, LayerSite, SiteTable, SkipSite, TemporalSite};
//! use scalebench_generation::{Blueprint, FAMILIES};
//! let sd15 = Blueprint::of_family(&FAMILIES[0]).expect("a published family");
//! let SiteTable { convs, attentions, skips, layers, temporals } = sd15.sites();
//! // In the middle, latents of 64 × 64 have been halved three times.
//! let middle: &ConvSite = convs.iter().find(|site| site.path == "mid_block.resnets.0.conv1").expect("a convolution");
//! assert_eq!((middle.stride, middle.size((64, 64))), (1, (8, 8)));
//! let first: &AttentionSite = &attentions[0];
//! assert_eq!(first.path, "down_blocks.0.attentions.0.transformer_blocks.0.attn1");
//! assert_eq!((first.size((64, 64)), first.n_tokens((64, 64))), ((64, 64), 4096));
//! // As many skip connections end as there are maps on the way down: the first, and one after each layer.
//! let (joined, left): (&[SkipSite], &[LayerSite]) = (skips, layers);
//! assert_eq!(joined.len(), 1 + left.len());
//! // It makes no videos.
//! assert_eq!(temporals, &[] as &[TemporalSite]);
//! ```

use crate::error::{Error, Result};
use globset::GlobBuilder;

/// A convolution with a 3×3 kernel. (1×1 convolutions have no neighbourhood to act on.)
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvSite {
    /// Module path.
    pub path: String,
    /// Stride of the trained convolution.
    pub stride: usize,
    /// How many stride-2 convolutions lie between the latents and what this layer sees.
    pub halvings: usize,
}

impl ConvSite {
    /// (height, width) of what this layer sees of latents of `(height, width)`.
    /// Example: [`site`](crate::site).
    pub fn size(&self, latent: (usize, usize)) -> (usize, usize) {
        halved(latent, self.halvings)
    }
}

/// A self-attention.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionSite {
    /// Module path (`….attn1`).
    pub path: String,
    /// How many stride-2 convolutions lie between the latents and this layer.
    pub halvings: usize,
}

impl AttentionSite {
    /// Tokens of this layer for latents of `(height, width)`.
    /// Example: [`site`](crate::site).
    pub fn n_tokens(&self, latent: (usize, usize)) -> usize {
        let (height, width) = self.size(latent);
        height * width
    }

    /// (height, width) of this layer's map for latents of `(height, width)`.
    /// Example: [`site`](crate::site).
    pub fn size(&self, latent: (usize, usize)) -> (usize, usize) {
        halved(latent, self.halvings)
    }
}

/// A stride-2 convolution with padding 1 rounds up.
fn halved(latent: (usize, usize), halvings: usize) -> (usize, usize) {
    let side = |n: usize| (0..halvings).fold(n, |n, _| n.div_ceil(2));
    (side(latent.0), side(latent.1))
}

/// A place on the way up where a skip connection joins.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkipSite {
    /// Module path of the residual block that the joined maps go into.
    pub path: String,
    /// Index of its up block.
    pub block: usize,
    /// Channels of the map that comes from below, the backbone.
    pub channels: usize,
}

/// A layer of the down path, after which a map may change its size: a residual block with its attention, or a
/// downsampler.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSite {
    /// Module path: of the attention, of the residual block where there is none, or of the downsampler.
    pub path: String,
}

/// A layer over the frames of a video: an attention or convolutions. It has no extent in the picture, and stays as trained.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemporalSite {
    /// Module path.
    pub path: String,
}

/// Every site of one U-Net, in the order in which its modules are loaded.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteTable {
    /// Convolutions.
    pub convs: Vec<ConvSite>,
    /// Self-attentions.
    pub attentions: Vec<AttentionSite>,
    /// Skip connections.
    pub skips: Vec<SkipSite>,
    /// Layers of the down path.
    pub layers: Vec<LayerSite>,
    /// Layers over frames.
    pub temporals: Vec<TemporalSite>,
}

impl SiteTable {
    pub(crate) fn add_conv(&mut self, path: &str, stride: usize, halvings: usize) -> usize {
        self.convs.push(ConvSite { path: path.to_owned(), stride, halvings });
        self.convs.len() - 1
    }

    pub(crate) fn add_attention(&mut self, path: &str, halvings: usize) -> usize {
        self.attentions.push(AttentionSite { path: path.to_owned(), halvings });
        self.attentions.len() - 1
    }

    pub(crate) fn add_skip(&mut self, path: &str, block: usize, channels: usize) -> usize {
        self.skips.push(SkipSite { path: path.to_owned(), block, channels });
        self.skips.len() - 1
    }

    pub(crate) fn add_layer(&mut self, path: &str) -> usize {
        self.layers.push(LayerSite { path: path.to_owned() });
        self.layers.len() - 1
    }

    pub(crate) fn add_temporal(&mut self, path: &str) {
        self.temporals.push(TemporalSite { path: path.to_owned() });
    }

    /// Indices of the convolutions that `pattern` names.
    ///
    /// `*` stands for any part of one path segment, `**` for any number of segments, `{a,b}` for
    /// alternatives. A pattern that names nothing is an error.
    pub(crate) fn match_convs(&self, method: &str, pattern: &str) -> Result<Vec<usize>> {
        self.matching(method, pattern, "convolution", self.convs.iter().map(|s| s.path.as_str()))
    }

    /// Indices of the self-attentions that `pattern` names, as in [`match_convs`](Self::match_convs).
    pub(crate) fn match_attentions(&self, method: &str, pattern: &str) -> Result<Vec<usize>> {
        self.matching(method, pattern, "self-attention", self.attentions.iter().map(|s| s.path.as_str()))
    }

    fn matching<'a>(&self, method: &str, pattern: &str, what: &str, paths: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<usize>> {
        let slashed = |path: &str| path.replace('.', "/");
        let glob = GlobBuilder::new(&slashed(pattern))
            .literal_separator(true)
            .build()
            .map_err(|e| Error::method(method, format!("site rule `{pattern}` is not a valid pattern: {e}")))?
            .compile_matcher();
        let found: Vec<usize> = paths.clone().enumerate().filter(|(_, path)| glob.is_match(slashed(path))).map(|(i, _)| i).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let hint = match self.temporals.iter().find(|site| glob.is_match(slashed(&site.path))) {
            Some(site) => format!("; `{}` works over frames and stays as trained", site.path),
            None => {
                let near = paths.min_by_key(|path| distance(path, pattern));
                near.map(|path| format!("; the nearest site is `{path}`")).unwrap_or_default()
            }
        };
        Err(Error::method(method, format!("site rule `{pattern}` matches no {what} of this model{hint}")))
    }
}

/// Levenshtein distance, for hints.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
