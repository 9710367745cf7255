//! One step of the sampler as a method wants it: which parts of the latents are looked at, by which passes through the U-Net,
//! and how their predictions become one. Plain data.
//!
//! ```
//! use scalebench_generation::plan::Plan;
//! use scalebench_generation::step::{
//!     Band, Bands, Blend, Conditioning, Maps, Moment, Pass, Pooled, Region, Step, Strided, Target, View, Windows, Words, classifier_free,
//! };
//! use scalebench_generation::SiteTable;
//! let sites = SiteTable::default();
//! let at = Moment { latent: (16, 16), native: (8, 8), guidance_scale: 7.5, ..Moment::default() };
//! let mut step = Step::plain(&sites, &at);
//! assert!(step.is_plain());
//! // Guidance: ε(∅) + w (ε(c) − ε(∅)).
//! let passes = classifier_free(&sites, &at);
//! let plan = || Plan::plain(&sites);
//! assert_eq!(passes, [Pass::new(plan(), Conditioning::Empty, -6.5), Pass::new(plan(), Conditioning::Text, 7.5)]);
//! assert_eq!(passes[0].maps, Maps { keep: false, reuse: 0.0 });
//! // Four windows of the training size beside the whole, each of them told its own words, and frequencies guided apart.
//! let words = Some(Words { maps: "first stage".to_owned(), threshold: 0.3, opening: 0.0 });
//! let corners = vec![(0, 0), (0, 8), (8, 0), (8, 8)];
//! let region = Region::Windows(Windows { size: (8, 8), corners, told_corners: None, words });
//! step.views[0].weight = 0.5;
//! step.views.push(View { region, weight: 0.5, passes, bands: Some(Bands { size: (8, 8), high: vec![-9.0, 10.0] }) });
//! step.blends.push(Blend { target: Target::Latents, band: Band::All, weight: 0.1 });
//! assert!(!step.is_plain());
//! // As many pixels again.
//! let pixels: usize = step.evaluations(at.latent).map(|(n, (height, width), _)| n * height * width).sum();
//! assert_eq!(pixels, 2 * (16 * 16 + 4 * 8 * 8));
//! // So do strided subsets; a pooled copy has a quarter of them.
//! assert_eq!(Region::Strided(Strided { factor: 2, blur: None, shuffle: None }).maps(at.latent), (4, (8, 8)));
//! assert_eq!(Region::Pooled(Pooled { factor: 2, timestep: 500.0, scale: 1.0 }).maps(at.latent), (1, (8, 8)));
//! ```

use crate::dice::Dice;
use crate::error::Result;
use crate::journey::{Journey, Route};
use crate::plan::Plan;
use crate::site::SiteTable;
use std::sync::Arc;

/// The moment for which a method plans.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moment {
    /// Step index, 0 at the noisiest step that is run in this stage.
    pub step: usize,
    /// Steps of the whole run that the stage's steps are part of.
    pub n_steps: usize,
    /// The network's timestep; some samplers stop between the trained ones.
    pub timestep: f64,
    /// Latent (height, width) now.
    pub latent: (usize, usize),
    /// Latent (height, width) of the training resolution.
    pub native: (usize, usize),
    /// Weight of the text direction.
    pub guidance_scale: f64,
    /// Index of this step in the whole run; `step` and the number of the steps that the stage leaves out.
    pub index: usize,
    /// Steps that are run in this stage.
    pub n_run: usize,
    /// Index of the stage of the journey.
    pub stage: usize,
    /// Stages of the journey.
    pub n_stages: usize,
    /// Latent (height, width) of the stage before.
    pub previous: Option<(usize, usize)>,
    /// The image's seed.
    pub seed: u64,
    /// Weights of clean latents and of unit noise in the latents now.
    pub level: (f64, f64),
    /// ᾱ at each of the training timesteps.
    pub alphas_cumprod: Arc<[f64]>,
}

impl Moment {
    /// The random integers of this step.
    pub(crate) fn dice(&self) -> Dice {
        Dice::new(self.seed, self.stage, self.step)
    }
}

/// What a pass is conditioned on.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conditioning {
    /// The prompt.
    Text,
    /// The negative prompt, which is usually empty.
    Empty,
}

/// One pass through the U-Net and its weight in the guided prediction.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// What the network does.
    pub plan: Plan,
    /// What it is told.
    pub conditioning: Conditioning,
    /// The guided prediction is the weighted sum of all passes' predictions; the weights sum to 1. A pass of weight 0 is made for
    /// what it lends.
    pub weight: f64,
    /// Index of the pass of the same view that lends queries and keys to this one's self-attentions, as far as
    /// [`AttentionAction::lent`](crate::plan::AttentionAction::lent) says.
    pub queries_of: Option<usize>,
    /// Whether the pass looks at the latents that the stage before had at the same step, and their (height, width). Its weight is 0.
    pub before: Option<(usize, usize)>,
    /// What becomes of its cross-attentions' maps.
    pub maps: Maps,
}

/// What a pass on the whole latents does with its cross-attentions' maps, the shares of the text's tokens in each position. What is
/// kept is one map: the mean over heads and over layers of a size, brought to the largest size and averaged over the sizes.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Maps {
    /// Whether it is kept after this step, in place of the one that was kept for this conditioning before.
    pub keep: bool,
    /// Share that the kept map has in every cross-attention; nothing is taken where none was kept.
    pub reuse: f64,
}

impl Pass {
    /// A pass that lends from no other.
    /// Example: [`step`](crate::step).
    pub fn new(plan: Plan, conditioning: Conditioning, weight: f64) -> Self {
        Self { plan, conditioning, weight, queries_of: None, before: None, maps: Maps::default() }
    }
}

/// The passes of ordinary classifier-free guidance, `ε(∅) + w (ε(c) − ε(∅))`: empty first, as in
/// diffusers; at `w ≤ 1` there is only the text pass, also as there.
///
/// Example: [this module](self).
pub fn classifier_free(sites: &SiteTable, moment: &Moment) -> Vec<Pass> {
    let plan = Plan::plain(sites);
    let w = moment.guidance_scale;
    if w <= 1.0 {
        return vec![Pass::new(plan, Conditioning::Text, 1.0)];
    }
    vec![Pass::new(plan.clone(), Conditioning::Empty, 1.0 - w), Pass::new(plan, Conditioning::Text, w)]
}

/// A grid of windows on the latents.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Latent (height, width) of each.
    pub size: (usize, usize),
    /// Top left corners (row, column), relative to the latents' own. Windows may reach beyond the latents, which are
    /// surrounded by zeros there.
    pub corners: Vec<(i64, i64)>,
    /// SDXL is told each window's corner, in pixels, with this offset (row, column) in latents; otherwise (0, 0).
    pub told_corners: Option<(i64, i64)>,
    /// Each window is told those words of the prompt that are seen in it; otherwise the whole prompt.
    pub words: Option<Words>,
}

/// Which words of the prompt are seen in a window: those whose pixels cover a share of it. A word's pixels are those that attend to
/// it more than the mean pixel does, less what a morphological opening takes away.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Words {
    /// Name of the [`KeptMaps`](crate::journey::KeptMaps).
    pub maps: String,
    /// Share of the window.
    pub threshold: f64,
    /// The opening's square reaches this share of the map's height, rounded down to whole pixels, to each side.
    pub opening: f64,
}

/// All strided subsets `[i::factor, j::factor]` of the latents, each of them a small map.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strided {
    /// Distance of a subset's pixels; sides that it does not divide are padded with zeros at the top and left.
    pub factor: usize,
    /// Gaussian blur before, of this standard deviation, on `2 · factor − 1` taps a side; the blurred latents get mean and
    /// deviation of the latents before.
    pub blur: Option<f64>,
    /// Which subset holds each pixel is permuted, for every channel and place anew, by random integers of this seed; undone on the
    /// prediction.
    pub shuffle: Option<u64>,
}

/// The latents' means over `factor × factor` pixels as a noisier small map, whose prediction corrects the low frequencies of the
/// other views' (Hwang et al. 2024, arXiv 2404.01709, equation 9): `ε += weight · U[ε_low / factor − D[ε]]`.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pooled {
    /// Linear factor.
    pub factor: usize,
    /// The network's timestep for the small map.
    pub timestep: f64,
    /// Multiplies the means.
    pub scale: f64,
}

/// Which part of the latents a view looks at.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub enum Region {
    /// All of them as one map.
    Whole,
    /// Windows; where several cover a pixel, the mean of their predictions counts.
    Windows(Windows),
    /// Strided subsets.
    Strided(Strided),
    /// A smaller copy.
    Pooled(Pooled),
}

/// Guidance with other weights for high frequencies than for low ones.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Bands {
    /// Low is what is left after resizing to this latent (height, width) and back, both bilinear.
    pub size: (usize, usize),
    /// Weights of the passes in the high frequencies; [`Pass::weight`] is that in the low ones.
    pub high: Vec<f64>,
}

/// One look at the latents: a region, the passes made of it, and the weight of what they predict.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Where.
    pub region: Region,
    /// Weight of this view's prediction. Those of all views but [`Region::Pooled`] sum to 1.
    pub weight: f64,
    /// By which passes.
    pub passes: Vec<Pass>,
    /// Frequencies apart.
    pub bands: Option<Bands>,
}

/// Which part of the latents a [`Blend`] replaces.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub enum Band {
    /// All.
    All,
    /// These frequencies.
    Fourier(crate::plan::LowPass),
    /// The coarse part of the decoded image in a wavelet basis, of [`Target::Estimate`] alone: the latents are decoded, and the mean of
    /// what the result is encoded to takes their place. The reference is the enlarged image itself.
    WaveletOfImage,
}

/// What a [`Blend`] acts on.
///
/// Example: [this module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The latents before the step; the reference has the noise of this step.
    Latents,
    /// The clean latents that the prediction implies; the reference is clean.
    Estimate,
}

/// `band(x) ← (1 − weight) · band(x) + weight · band(reference)`, with the stage's enlarged start as the reference.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// On what.
    pub target: Target,
    /// Which part.
    pub band: Band,
    /// Share of the reference.
    pub weight: f64,
}

/// All that happens in one step.
///
/// Example: [this module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Never empty.
    pub views: Vec<View>,
    /// In order. Stages that start from noise have no reference and no blends.
    pub blends: Vec<Blend>,
}

impl Step {
    /// The whole latents under ordinary guidance.
    /// Example: [`step`](crate::step).
    pub fn plain(sites: &SiteTable, at: &Moment) -> Self {
        let view = View { region: Region::Whole, weight: 1.0, passes: classifier_free(sites, at), bands: None };
        Self { views: vec![view], blends: Vec::new() }
    }

    /// All passes, of all views.
    pub(crate) fn passes_mut(&mut self) -> impl Iterator<Item = &mut Pass> {
        self.views.iter_mut().flat_map(|view| &mut view.passes)
    }

    /// Every evaluation of the network: how many times on latents of which (height, width), for latents of `latent`, by which pass.
    /// Example: [`step`](crate::step).
    pub fn evaluations(&self, latent: (usize, usize)) -> impl Iterator<Item = (usize, (usize, usize), &Pass)> {
        self.views.iter().flat_map(move |view| {
            let (count, size) = view.region.maps(latent);
            view.passes.iter().map(move |pass| pass.before.map_or((count, size, pass), |before| (count, before, pass)))
        })
    }

    /// Whether it is a plain network's step on the whole latents.
    /// Example: [`step`](crate::step).
    pub fn is_plain(&self) -> bool {
        let view = &self.views[0];
        self.blends.is_empty()
            && self.views.len() == 1
            && view.region == Region::Whole
            && view.bands.is_none()
            && view
                .passes
                .iter()
                .all(|pass| pass.plan.is_plain() && pass.queries_of.is_none() && pass.before.is_none() && pass.maps == Maps::default())
    }
}

impl Region {
    /// How many maps of which latent (height, width) the network sees.
    /// Example: [`step`](crate::step).
    pub fn maps(&self, latent: (usize, usize)) -> (usize, (usize, usize)) {
        let divided = |factor: usize| (latent.0.div_ceil(factor), latent.1.div_ceil(factor));
        match self {
            Self::Whole => (1, latent),
            Self::Windows(windows) => (windows.corners.len(), windows.size),
            Self::Strided(strided) => (strided.factor * strided.factor, divided(strided.factor)),
            Self::Pooled(pooled) => (1, divided(pooled.factor)),
        }
    }
}

/// One ingredient of a method: a pure function from sites and moment to a step, and from sizes to a journey.
///
/// Ingredients are applied in a fixed order, each changing what the ones before it made.
pub(crate) trait Intervention: std::fmt::Debug + Send + Sync {
    /// Changes the stages of the run.
    fn route(&self, _route: &Route, _journey: &mut Journey) {}

    /// Changes one step.
    fn apply(&self, _sites: &SiteTable, _at: &Moment, _step: &mut Step) {}

    /// Whether steps depend on the image's seed, so that images cannot share them.
    fn rolls_dice(&self) -> bool {
        false
    }

    /// Refuses what could not take effect in a run at `latent` size on a model trained at `native`.
    fn check(&self, _method: &str, _latent: (usize, usize), _native: (usize, usize)) -> Result<()> {
        Ok(())
    }
}
