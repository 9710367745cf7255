//! What happens at each site in one pass through the U-Net: plain data.
//!
//! ```
//! use scalebench_generation::plan::{
//!     AttentionAction, AttentionShape, ConvAction, Dilation, Geometry, Kernel, LayerAction, LowPass, Plan, Resize, ScaleFusion, ShiftedWindows,
//!     SkipAction,
//! };
//! use scalebench_generation::{Blueprint, Dispersion, FAMILIES};
//! let blueprint = Blueprint::of_family(&FAMILIES[0]).expect("a published family");
//! let plain = Plan::plain(blueprint.sites());
//! assert!(plain.is_plain());
//! // Any one action makes the network another one.
//! let twice = Dilation::new(2.0)?;
//! assert_eq!((twice.get(), Dilation::new(0.5).is_err()), (2.0, true));
//! let ones: std::sync::Arc<[f32]> = vec![1.0; 64].into();
//! let of_convs = [
//!     ConvAction { dilation: Some(twice), kernel: Kernel::Dispersed(Dispersion::PAPER), ..ConvAction::default() },
//!     ConvAction { geometry: Some(Geometry { stride: 1, padding: 2, dilation: 2 }), ..ConvAction::default() },
//!     ConvAction { low_pass: Some(LowPass { rows: ones.clone(), columns: ones }), ..ConvAction::default() },
//! ];
//! for action in of_convs {
//!     let mut plan = plain.clone();
//!     plan.convs[0] = action;
//!     assert!(!plan.is_plain());
//! }
//! let fusion = ScaleFusion { window: (64, 64), corners: vec![(0, 0)].into(), stride: (2, 2), taps: 3, sigma: 1.0 };
//! let shapes = [AttentionShape::Windows(ShiftedWindows { grid: (2, 2), quarters: 1 }), AttentionShape::Fused(fusion)];
//! for shape in shapes {
//!     let mut plan = plain.clone();
//!     plan.attentions[0] = AttentionAction { shape, ..AttentionAction::default() };
//!     assert!(!plan.is_plain());
//! }
//! let mut plan = plain.clone();
//! plan.skips[0] = SkipAction { backbone: 1.3, ..SkipAction::default() };
//! plan.layers[0] = LayerAction { resize: Some(Resize::AveragePool), skip_before: true };
//! assert!(!plan.is_plain());
//! # Ok::<(), String>(())
//! ```

use crate::disperse::Dispersion;
use crate::site::SiteTable;
use std::sync::Arc;

/// A dilation factor: finite and at least 1; it need not be whole.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Dilation(f64);

impl Dilation {
    /// Checks the range.
    /// Example: [`plan`](crate::plan).
    pub fn new(factor: f64) -> std::result::Result<Self, String> {
        if factor.is_finite() && factor >= 1.0 {
            Ok(Self(factor))
        } else {
            Err(format!("a dilation is a finite number of at least 1, not {factor}"))
        }
    }

    /// The factor.
    /// Example: [`plan`](crate::plan).
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Dilation {
    type Error = String;
    fn try_from(factor: f64) -> std::result::Result<Self, String> {
        Self::new(factor)
    }
}

impl From<Dilation> for f64 {
    fn from(d: Dilation) -> f64 {
        d.0
    }
}

/// The kernel a convolution uses.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Kernel {
    /// As trained.
    #[default]
    Trained,
    /// Spread onto a larger kernel.
    Dispersed(Dispersion),
}

/// A real mask on the two-dimensional spectrum of a map: the outer product of one mask a side.
///
/// The map is padded with zeros at its bottom and right to `rows.len() × columns.len()`, filtered, and cut back.
/// Masks are in the order of the shifted spectrum: frequency zero is at index `⌊n / 2⌋`.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct LowPass {
    /// Factor of each vertical frequency.
    pub rows: Arc<[f32]>,
    /// Factor of each horizontal frequency.
    pub columns: Arc<[f32]>,
}

/// Another stride, padding and dilation than the trained ones; sizes follow from them.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Distance of outputs.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
    /// Distance of taps.
    pub dilation: usize,
}

/// What a convolution does. The default is the unmodified layer.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConvAction {
    /// Which kernel.
    pub kernel: Kernel,
    /// Re-dilation by this factor; `None` is the layer as trained.
    ///
    /// `Some(1)` differs from `None` at one place: a strided re-dilated convolution rounds an odd
    /// size down, as the method's definition has it, and a plain one up.
    pub dilation: Option<Dilation>,
    /// A filter that the input goes through first.
    pub low_pass: Option<LowPass>,
    /// Another geometry, in place of a dilation.
    pub geometry: Option<Geometry>,
}

/// Local attention for the low frequencies of the result and global attention for the high ones: with `G` a Gaussian blur,
/// `global + G(local − global)`.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleFusion {
    /// (height, width) of the windows of the local attention, whose results are averaged where they overlap.
    pub window: (usize, usize),
    /// Their top left corners (row, column). Windows may reach beyond the map, which is surrounded by zeros there.
    pub corners: Arc<[(i64, i64)]>,
    /// Distances (down, across) of the pixels that see each other in the global attention; they divide the map's sides.
    pub stride: (usize, usize),
    /// Side of the blur's kernel, which is a cube of rows, columns and channels; odd.
    pub taps: usize,
    /// Its standard deviation.
    pub sigma: f64,
}

/// Which tokens a self-attention's queries see.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Default)]
pub enum AttentionShape {
    /// All.
    #[default]
    Full,
    /// Those of their own window, after a cyclic shift of the map.
    Windows(ShiftedWindows),
    /// Those nearby and all, for different frequencies of the result.
    Fused(ScaleFusion),
}

/// A map cut into a grid of windows after a cyclic shift, which is undone afterwards.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShiftedWindows {
    /// Windows down and across; each is `⌈side / n⌉` tokens.
    pub grid: (usize, usize),
    /// Shift down and across, in quarters of a window, each rounded down.
    pub quarters: usize,
}

/// What a self-attention does. The default is the unmodified layer.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionAction {
    /// Multiplies the softmax scale `1/√d`.
    pub temperature: f64,
    /// Which tokens are seen.
    pub shape: AttentionShape,
    /// Share of the attention map that another pass's queries and keys make, those of
    /// [`Pass::queries_of`](crate::step::Pass::queries_of); the rest is the layer's own.
    pub lent: f64,
}

impl Default for AttentionAction {
    fn default() -> Self {
        Self { temperature: 1.0, shape: AttentionShape::Full, lent: 0.0 }
    }
}

/// A change of a map's size after a layer. Deeper layers run on the new size; where a skip connection joins, the
/// backbone takes the skip's size again.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resize {
    /// Means of 2×2 pixels; the last row and column may be means of fewer.
    AveragePool,
    /// To `side / factor`, rounded to the nearest (ties to even), by the cubic of `torch.nn.functional.interpolate` (a = −¾).
    Bicubic(f64),
}

/// What happens after a layer of the down path. The default is nothing.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerAction {
    /// A change of size.
    pub resize: Option<Resize>,
    /// Whether the skip connection carries the map as it was before the change.
    pub skip_before: bool,
}

/// What happens where a skip connection joins. The default is the unmodified network.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SkipAction {
    /// Multiplies the first half of the backbone's channels.
    pub backbone: f64,
    /// Multiplies the four lowest frequencies of the skip connection.
    pub low_frequencies: f64,
}

impl Default for SkipAction {
    fn default() -> Self {
        Self { backbone: 1.0, low_frequencies: 1.0 }
    }
}

/// One action for every site, by the dense indices of a [`SiteTable`].
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Per convolution site.
    pub convs: Vec<ConvAction>,
    /// Per self-attention site.
    pub attentions: Vec<AttentionAction>,
    /// Per skip connection.
    pub skips: Vec<SkipAction>,
    /// Per layer of the down path.
    pub layers: Vec<LayerAction>,
}

impl Plan {
    /// The unmodified network.
    /// Example: [`plan`](crate::plan).
    pub fn plain(sites: &SiteTable) -> Self {
        Self {
            convs: vec![ConvAction::default(); sites.convs.len()],
            attentions: vec![AttentionAction::default(); sites.attentions.len()],
            skips: vec![SkipAction::default(); sites.skips.len()],
            layers: vec![LayerAction::default(); sites.layers.len()],
        }
    }

    /// Whether nothing is modified.
    /// Example: [`plan`](crate::plan).
    pub fn is_plain(&self) -> bool {
        let convs = self.convs.iter().all(|a| *a == ConvAction::default());
        let attentions = self.attentions.iter().all(|a| *a == AttentionAction::default());
        let layers = self.layers.iter().all(|a| *a == LayerAction::default());
        convs && attentions && layers && self.skips.iter().all(|a| *a == SkipAction::default())
    }
}
