//! Methods: YAML in, passes out.
//!
//! A method file names the method and lists its settings per model and scale:
//!
//! ```yaml
//! name: scalecrafter
//! title: ScaleCrafter
//! source: He et al., ICLR 2024 (arXiv 2310.07702)
//! variants:
//!   - models: [sd15, pocket]     # model families; leave out for all
//!     scales: [4]                # pixel factors; leave out for all
//!     redilation: {tau: 30, dilation: {"mid_block.**": 2}}
//! ```
//!
//! Every ingredient is one file here and one line in the list below; a variant may combine them freely. They are
//! applied in the order of that list.

mod attention_modulation;
mod attention_scale;
mod cascade;
mod dilated_sampling;
mod dispersion;
mod fouriscale;
mod freeu;
mod frequency_guidance;
mod frequency_modulation;
mod joint_diffusion;
mod map_reuse;
mod noise_damped;
mod noise_refresh;
mod redilation;
mod resized_blocks;
mod restrained_dilation;
mod scale_fusion;
mod sdedit;
mod shifted_cascade;
mod skip_residual;
mod structure_guidance;
mod upsample_guidance;
mod upscale;
mod window_attention;
mod window_prompts;

#[cfg(test)]
pub(crate) use freeu::Trigger;
pub(crate) use joint_diffusion::starts as window_starts;
#[cfg(test)]
pub(crate) use upscale::BaseSize;

use crate::error::{Error, Result};
use crate::journey::{Journey, Route, Upscaling};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Pass, Step};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// What an ingredient's settings are looked up in.
struct Resolving<'a> {
    /// The method's name, for messages.
    method: &'a str,
    /// The ingredient's key.
    key: &'static str,
    sites: &'a SiteTable,
    /// All of the method's ingredients.
    settings: &'a Settings,
}

impl Resolving<'_> {
    /// An error in the ingredient's settings.
    fn refuse<T>(&self, reason: impl std::fmt::Display) -> Result<T> {
        Err(Error::method(self.method, format!("`{}`: {reason}", self.key)))
    }

    /// Indices, in order, of the convolutions that `rules` name; each must name one.
    fn convs(&self, rules: &[String]) -> Result<Vec<usize>> {
        self.named(rules, SiteTable::match_convs)
    }

    /// The same of self-attentions.
    fn attentions(&self, rules: &[String]) -> Result<Vec<usize>> {
        self.named(rules, SiteTable::match_attentions)
    }

    fn named(&self, rules: &[String], matching: fn(&SiteTable, &str, &str) -> Result<Vec<usize>>) -> Result<Vec<usize>> {
        let mut sites = Vec::new();
        for rule in rules {
            sites.extend(matching(self.sites, self.method, rule)?);
        }
        sites.sort_unstable();
        sites.dedup();
        Ok(sites)
    }

    /// Which of the ingredients that lay out stages there are.
    fn journeys(&self) -> Vec<&'static str> {
        let Settings { sdedit, cascade, noise_refresh, shifted_cascade, upscale, .. } = self.settings;
        let all = [
            ("sdedit", sdedit.is_some()),
            ("cascade", cascade.is_some()),
            ("noise_refresh", noise_refresh.is_some()),
            ("shifted_cascade", shifted_cascade.is_some()),
            ("upscale", upscale.is_some()),
        ];
        all.into_iter().filter_map(|(key, there)| there.then_some(key)).collect()
    }

    /// Refuses a second ingredient that lays out stages.
    fn only_journey(&self) -> Result<()> {
        match &self.journeys()[..] {
            [_] => Ok(()),
            several => self.refuse(format!("{} all say which stages a run has, expected one of them", several.join(" and "))),
        }
    }

    /// Refuses a method without stages.
    fn needs_journey(&self) -> Result<()> {
        if self.journeys().is_empty() {
            return self.refuse("needs a stage with an enlarged start, expected `cascade` or another ingredient with stages beside it");
        }
        Ok(())
    }
}

/// Declares the ingredients: for each its key in method files and its settings, a type of the module that has the function
/// `resolve` for them.
macro_rules! ingredients {
    ($($(#[$doc:meta])* $key:ident: $module:ident::$settings:ident,)*) => {
        $(pub(crate) use $module::$settings;)*

        /// The ingredients of a method; absent ones leave the network plain.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct Settings {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")]
            pub(crate) $key: Option<$settings>,)*
        }

        /// The settings for some models and scales.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Variant {
            #[serde(default, skip_serializing_if = "Option::is_none")]
            models: Option<Vec<String>>,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            scales: Option<Vec<f64>>,
            $(#[serde(default, skip_serializing_if = "Option::is_none")]
            $key: Option<$settings>,)*
        }

        impl Variant {
            fn settings(&self) -> Settings {
                Settings { $($key: self.$key.clone(),)* }
            }
        }

        impl Settings {
            fn resolve(&self, method: &str, sites: &SiteTable) -> Result<Vec<Arc<dyn Intervention>>> {
                let mut parts = Vec::new();
                $(if let Some(settings) = &self.$key {
                    parts.push($module::resolve(settings, &Resolving { method, key: stringify!($key), sites, settings: self })?);
                })*
                Ok(parts)
            }
        }
    };
}

// In the order in which they are applied.
ingredients! {
    /// Re-dilated convolutions.
    redilation: redilation::Redilation,
    /// A lighter network for the noise estimate.
    noise_damped_guidance: noise_damped::NoiseDampedGuidance,
    /// Dispersed kernels.
    dispersion: dispersion::Dispersion,
    /// Entropy-preserving softmax scale.
    attention_scale: attention_scale::AttentionScale,
    /// Amplified backbone, damped skip connections.
    freeu: freeu::FreeU,
    /// A start from an enlarged smaller image.
    sdedit: sdedit::Sdedit,
    /// Stages of growing size.
    cascade: cascade::Cascade,
    /// Stages whose guidance grows, each from an image with fresh noise.
    noise_refresh: noise_refresh::NoiseRefresh,
    /// Stages whose timesteps follow from the noise that larger images bear.
    shifted_cascade: shifted_cascade::ShiftedCascade,
    /// Guidance by a weight for high frequencies and another for low ones.
    frequency_guidance: frequency_guidance::FrequencyGuidance,
    /// Cross-attention maps of the stage before mixed into this one's.
    map_reuse: map_reuse::MapReuse,
    /// The coarse part of the enlarged image kept in the first steps.
    structure_guidance: structure_guidance::StructureGuidance,
    /// The enlarged start mixed in before each step.
    skip_residual: skip_residual::SkipResidual,
    /// Overlapping windows in place of the whole latents.
    joint_diffusion: joint_diffusion::JointDiffusion,
    /// Each window told what is seen in it.
    window_prompts: window_prompts::WindowPrompts,
    /// Strided subsets beside what else is looked at.
    dilated_sampling: dilated_sampling::DilatedSampling,
    /// Low frequencies corrected by a smaller map's.
    upsample_guidance: upsample_guidance::UpsampleGuidance,
    /// Deep blocks at a smaller size.
    resized_blocks: resized_blocks::ResizedBlocks,
    /// Self-attention in shifted windows.
    window_attention: window_attention::WindowAttention,
    /// Dilated convolutions behind low-pass filters, and a third pass for details.
    fouriscale: fouriscale::FouriScale,
    /// A few convolutions dilated by the size's factor.
    restrained_dilation: restrained_dilation::RestrainedDilation,
    /// Local self-attention for low frequencies, global for high ones.
    scale_fusion: scale_fusion::ScaleFusion,
    /// The enlarged start's low frequencies before each step.
    frequency_modulation: frequency_modulation::FrequencyModulation,
    /// Attention maps mixed with the smaller image's.
    attention_modulation: attention_modulation::AttentionModulation,
    /// A smaller image enlarged when it is finished.
    upscale: upscale::Upscale,
}

/// A method file as written.
///
/// ```
/// use scalebench_generation::{Blueprint, FAMILIES, Method, MethodSpec};
/// let text = r#"
/// name: gentle
/// title: A gentle re-dilation
/// source: this example
/// variants:
///   - scales: [4]
///     redilation: {tau: 10, dilation: {"mid_block.**": 1.5}}
/// "#;
/// let spec = MethodSpec::parse(text, "gentle.yaml".as_ref())?;
/// assert_eq!((spec.name(), spec.title(), spec.source()), ("gentle", "A gentle re-dilation", "this example"));
/// let blueprint = Blueprint::of_family(&FAMILIES[0]).expect("a published family");
/// let method: Method = spec.resolve("sd15", 4.0, blueprint.sites())?;
/// assert_eq!((method.name(), method.upscaling()), ("gentle", None));
/// method.check((128, 128), (64, 64))?;
/// // There is no variant for 16 times the pixels.
/// assert!(spec.resolve("sd15", 16.0, blueprint.sites()).is_err());
/// # Ok::<(), scalebench_generation::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSpec {
    name: String,
    title: String,
    /// Paper, section, and where the settings come from.
    source: String,
    variants: Vec<Variant>,
}

impl MethodSpec {
    /// Parses a method file; `file` is for messages.
    /// Example: [`MethodSpec`].
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let spec: Self = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(|e| Error::malformed(file, format!("`{}`: {}", e.path(), e.inner())))?;
        if spec.variants.is_empty() {
            return Err(Error::malformed(file, "`variants` is empty, expected at least one"));
        }
        Ok(spec)
    }

    /// Short name, as on the command line.
    /// Example: [`MethodSpec`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name for tables and charts.
    /// Example: [`MethodSpec`].
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Where the method and its settings come from.
    /// Example: [`MethodSpec`].
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Models and scales of every variant, in order; `None` stands for all.
    #[cfg(test)]
    pub(crate) fn covers(&self) -> impl Iterator<Item = (Option<&[String]>, Option<&[f64]>)> {
        self.variants.iter().map(|variant| (variant.models.as_deref(), variant.scales.as_deref()))
    }

    /// The settings of the first variant for this model family and pixel factor, checked against the
    /// model's sites.
    /// Example: [`MethodSpec`].
    pub fn resolve(&self, model: &str, scale: f64, sites: &SiteTable) -> Result<Method> {
        let fits = |v: &&Variant| {
            v.models.as_ref().is_none_or(|m| m.iter().any(|m| m == model))
                && v.scales.as_ref().is_none_or(|s| s.iter().any(|s| (s - scale).abs() < 1e-6))
        };
        let v = self.variants.iter().find(fits).ok_or_else(|| {
            let reason = format!("no variant for model `{model}` at {scale}× the pixels, expected one in `variants`");
            Error::method(&self.name, reason)
        })?;
        Method::new(&self.name, v.settings(), sites)
    }
}

/// A method resolved for one model and scale. Serialises as its settings.
///
/// Example: [`MethodSpec`].
#[derive(Debug, Clone)]
pub struct Method {
    name: String,
    settings: Settings,
    parts: Vec<Arc<dyn Intervention>>,
}

impl Serialize for Method {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.settings.serialize(serializer)
    }
}

impl Method {
    /// Looks up every rule. A rule that matches nothing, or a setting without effect, is an error.
    pub(crate) fn new(name: &str, settings: Settings, sites: &SiteTable) -> Result<Self> {
        let parts = settings.resolve(name, sites)?;
        Ok(Self { name: name.to_owned(), settings, parts })
    }

    /// The unmodified network.
    /// Example: [`Pipeline`](crate::Pipeline).
    pub fn direct(sites: &SiteTable) -> Self {
        Self::new("direct-inf", Settings::default(), sites).expect("no settings, nothing to refuse")
    }

    /// Short name.
    /// Example: [`MethodSpec`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network that finished images are enlarged with, if there is one.
    /// Example: [`MethodSpec`].
    pub fn upscaling(&self) -> Option<&Upscaling> {
        self.settings.upscale.as_ref()?.upscaler.as_ref()
    }

    /// Refuses what cannot take effect at this size.
    /// Example: [`MethodSpec`].
    pub fn check(&self, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.check(&self.name, latent, native))
    }

    /// The stages of a run.
    pub(crate) fn journey(&self, route: &Route) -> Journey {
        let mut journey = Journey::direct(route.latent);
        for part in &self.parts {
            part.route(route, &mut journey);
        }
        journey
    }

    /// One step.
    pub(crate) fn step(&self, sites: &SiteTable, at: &Moment) -> Step {
        let mut step = Step::plain(sites, at);
        for part in &self.parts {
            part.apply(sites, at, &mut step);
        }
        step
    }

    /// The passes of a step's first view.
    pub(crate) fn passes(&self, sites: &SiteTable, at: &Moment) -> Vec<Pass> {
        self.step(sites, at).views.swap_remove(0).passes
    }

    /// Whether steps depend on the image's seed, so that images of other seeds cannot share them.
    pub(crate) fn rolls_dice(&self) -> bool {
        self.parts.iter().any(|part| part.rolls_dice())
    }
}
