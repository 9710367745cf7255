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
//! Every ingredient is one file here; a variant may combine them freely. They are applied in the
//! order of [`Settings`]' fields.

mod attention_scale;
mod dispersion;
mod freeu;
mod noise_damped;
mod redilation;
mod sdedit;

pub use attention_scale::AttentionScale;
pub use dispersion::Dispersion;
pub use freeu::{FreeU, Trigger};
pub use noise_damped::NoiseDampedGuidance;
pub use redilation::Redilation;
pub use sdedit::Sdedit;

use crate::error::{Error, Result};
use crate::plan::{Intervention, Moment, Pass, classifier_free};
use crate::site::SiteTable;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The ingredients of a method; absent ones leave the network plain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Re-dilated convolutions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redilation: Option<Redilation>,
    /// A lighter network for the noise estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_damped_guidance: Option<NoiseDampedGuidance>,
    /// Dispersed kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<Dispersion>,
    /// Entropy-preserving softmax scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_scale: Option<AttentionScale>,
    /// Amplified backbone, damped skip connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeu: Option<FreeU>,
    /// A start from an enlarged smaller image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sdedit: Option<Sdedit>,
}

/// The settings for some models and scales.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    models: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scales: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redilation: Option<Redilation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noise_damped_guidance: Option<NoiseDampedGuidance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dispersion: Option<Dispersion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attention_scale: Option<AttentionScale>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeu: Option<FreeU>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sdedit: Option<Sdedit>,
}

/// A method file as written.
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
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let spec: Self = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(|e| Error::malformed(file, format!("`{}`: {}", e.path(), e.inner())))?;
        if spec.variants.is_empty() {
            return Err(Error::malformed(file, "`variants` is empty, expected at least one"));
        }
        Ok(spec)
    }

    /// Short name, as on the command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name for tables and charts.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Where the method and its settings come from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The settings of the first variant for this model family and pixel factor, checked against the
    /// model's sites.
    pub fn resolve(&self, model: &str, scale: f64, sites: &SiteTable) -> Result<Method> {
        let fits = |v: &&Variant| {
            v.models.as_ref().is_none_or(|m| m.iter().any(|m| m == model))
                && v.scales.as_ref().is_none_or(|s| s.iter().any(|s| (s - scale).abs() < 1e-6))
        };
        let v = self.variants.iter().find(fits).ok_or_else(|| {
            let reason = format!("no variant for model `{model}` at {scale}× the pixels, expected one in `variants`");
            Error::method(&self.name, reason)
        })?;
        let settings = Settings {
            redilation: v.redilation.clone(),
            noise_damped_guidance: v.noise_damped_guidance.clone(),
            dispersion: v.dispersion.clone(),
            attention_scale: v.attention_scale,
            freeu: v.freeu,
            sdedit: v.sdedit,
        };
        Method::new(&self.name, settings, sites)
    }
}

/// A method resolved for one model and scale. Serialises as its settings.
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
    pub fn new(name: &str, settings: Settings, sites: &SiteTable) -> Result<Self> {
        let redilation = settings.redilation.as_ref().map(|r| r.resolve(name, "redilation", sites)).transpose()?;
        let damped = settings
            .noise_damped_guidance
            .as_ref()
            .map(|r| r.resolve(name, "noise_damped_guidance", sites))
            .transpose()?
            .map(noise_damped::Resolved);
        if damped.is_some() && redilation.is_none() {
            return Err(Error::method(name, "`noise_damped_guidance` without `redilation` has no strong network, expected both"));
        }
        let dispersion = match &settings.dispersion {
            None => None,
            Some(d) => {
                let dilated: Vec<_> = redilation.iter().chain(damped.iter().map(|d| &d.0)).collect();
                Some(d.resolve(name, sites, &dilated)?)
            }
        };
        let mut parts: Vec<Arc<dyn Intervention>> = Vec::new();
        parts.extend(redilation.map(|p| Arc::new(p) as Arc<dyn Intervention>));
        parts.extend(damped.map(|p| Arc::new(p) as Arc<dyn Intervention>));
        parts.extend(dispersion.map(|p| Arc::new(p) as Arc<dyn Intervention>));
        parts.extend(settings.attention_scale.map(|p| Arc::new(p) as Arc<dyn Intervention>));
        let freeu = settings.freeu.map(|f| f.resolve(name, sites)).transpose()?;
        parts.extend(freeu.map(|p| Arc::new(p) as Arc<dyn Intervention>));
        settings.sdedit.map_or(Ok(()), |s| s.check(name))?;
        Ok(Self { name: name.to_owned(), settings, parts })
    }

    /// The unmodified network.
    pub fn direct(sites: &SiteTable) -> Self {
        Self::new("direct-inf", Settings::default(), sites).expect("no settings, nothing to refuse")
    }

    /// Short name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resolved settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Refuses what cannot take effect at this size.
    pub fn check(&self, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.check(&self.name, latent, native))
    }

    /// The passes of one step.
    pub fn passes(&self, sites: &SiteTable, at: &Moment) -> Vec<Pass> {
        let mut passes = classifier_free(sites, at);
        for part in &self.parts {
            part.apply(sites, at, &mut passes);
        }
        passes
    }
}
