//! What happens at each site in one pass through the U-Net: plain data.

use crate::disperse::Dispersion;
use crate::error::Result;
use crate::site::SiteTable;

/// A dilation factor: finite and at least 1; it need not be whole.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Dilation(f64);

impl Dilation {
    /// Checks the range.
    pub fn new(factor: f64) -> std::result::Result<Self, String> {
        if factor.is_finite() && factor >= 1.0 {
            Ok(Self(factor))
        } else {
            Err(format!("a dilation is a finite number of at least 1, not {factor}"))
        }
    }

    /// The factor.
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
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Kernel {
    /// As trained.
    #[default]
    Trained,
    /// Spread onto a larger kernel.
    Dispersed(Dispersion),
}

/// What a convolution does. The default is the unmodified layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ConvAction {
    /// Which kernel.
    pub kernel: Kernel,
    /// Re-dilation by this factor; `None` is the layer as trained.
    ///
    /// `Some(1)` differs from `None` at one place: a strided re-dilated convolution rounds an odd
    /// size down, as the method's definition has it, and a plain one up.
    pub dilation: Option<Dilation>,
}

/// What a self-attention does. The default is the unmodified layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionAction {
    /// Multiplies the softmax scale `1/√d`.
    pub temperature: f64,
}

impl Default for AttentionAction {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

/// What happens where a skip connection joins. The default is the unmodified network.
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
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Per convolution site.
    pub convs: Vec<ConvAction>,
    /// Per self-attention site.
    pub attentions: Vec<AttentionAction>,
    /// Per skip connection.
    pub skips: Vec<SkipAction>,
}

impl Plan {
    /// The unmodified network.
    pub fn plain(sites: &SiteTable) -> Self {
        Self {
            convs: vec![ConvAction::default(); sites.convs.len()],
            attentions: vec![AttentionAction::default(); sites.attentions.len()],
            skips: vec![SkipAction::default(); sites.skips.len()],
        }
    }

    /// Whether nothing is modified.
    pub fn is_plain(&self) -> bool {
        let convs = self.convs.iter().all(|a| *a == ConvAction::default());
        let attentions = self.attentions.iter().all(|a| *a == AttentionAction::default());
        convs && attentions && self.skips.iter().all(|a| *a == SkipAction::default())
    }
}

/// The moment for which a method plans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Step index, 0 at the noisiest step.
    pub step: usize,
    /// Steps of the whole run.
    pub n_steps: usize,
    /// The network's timestep; some samplers stop between the trained ones.
    pub timestep: f64,
    /// Latent (height, width) now.
    pub latent: (usize, usize),
    /// Latent (height, width) of the training resolution.
    pub native: (usize, usize),
    /// Weight of the text direction.
    pub guidance_scale: f64,
}

/// What a pass is conditioned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conditioning {
    /// The prompt.
    Text,
    /// The negative prompt, which is usually empty.
    Empty,
}

/// One pass through the U-Net and its weight in the guided prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// What the network does.
    pub plan: Plan,
    /// What it is told.
    pub conditioning: Conditioning,
    /// The guided prediction is the weighted sum of all passes' predictions; the weights sum to 1.
    pub weight: f64,
}

/// The passes of ordinary classifier-free guidance, `ε(∅) + w (ε(c) − ε(∅))`: empty first, as in
/// diffusers; at `w ≤ 1` there is only the text pass, also as there.
pub fn classifier_free(sites: &SiteTable, moment: &Moment) -> Vec<Pass> {
    let plan = Plan::plain(sites);
    let w = moment.guidance_scale;
    if w <= 1.0 {
        return vec![Pass { plan, conditioning: Conditioning::Text, weight: 1.0 }];
    }
    vec![
        Pass { plan: plan.clone(), conditioning: Conditioning::Empty, weight: 1.0 - w },
        Pass { plan, conditioning: Conditioning::Text, weight: w },
    ]
}

/// One ingredient of a method: a pure function from sites and moment to passes.
///
/// Ingredients are applied in a fixed order, each changing the passes that the ones before it made.
pub trait Intervention: std::fmt::Debug + Send + Sync {
    /// Changes the passes of one step.
    fn apply(&self, sites: &SiteTable, at: &Moment, passes: &mut Vec<Pass>);

    /// Refuses what could not take effect in a run at `latent` size on a model trained at `native`.
    fn check(&self, _method: &str, _latent: (usize, usize), _native: (usize, usize)) -> Result<()> {
        Ok(())
    }
}
