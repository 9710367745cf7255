//! Super-resolution: an image of about the training size, sampled by the plain network, enlarged when it is finished. By a filter,
//! which is the least that any other method has to beat, or by a diffusion upscaler (Rombach et al. 2022, §4.5; Stability AI's
//! x4 upscaler), the "SD + SR" of ScaleCrafter's comparison.
//!
//! The papers do not say at which size images of another shape than the training images are made, nor what becomes of factors that
//! are not the upscaler's: [`BaseSize`] and [`Reduce`](crate::journey::Reduce) are settings.

use super::Resolving;
use crate::error::Result;
use crate::journey::{Finish, ImageFilter, Journey, Route, Stage, Tile, Upscaling};
use crate::step::Intervention;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How, and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upscale {
    /// Size of the smaller image.
    #[serde(default)]
    pub(crate) base: BaseSize,
    /// Resizes the image; beside an upscaler, where its factor does not fit.
    pub(crate) filter: ImageFilter,
    /// The network; without one the filter does it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upscaler: Option<Upscaling>,
}

/// The size of the smaller image: it has the target's shape, rounded to whole latents. A square one is of the training size anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BaseSize {
    /// Its shorter side is the trained one.
    #[default]
    ShorterSide,
    /// Its longer side is the trained one.
    LongerSide,
    /// It has as many pixels as a training image.
    Area,
}

impl BaseSize {
    /// Latent (height, width) for a target of that of the `route`.
    fn latent(self, route: &Route) -> (usize, usize) {
        let (height, width) = (route.latent.0 as f64, route.latent.1 as f64);
        let (tall, wide) = (height / route.native.0 as f64, width / route.native.1 as f64);
        let factor = match self {
            Self::ShorterSide => tall.min(wide),
            Self::LongerSide => tall.max(wide),
            Self::Area => (tall * wide).sqrt(),
        };
        // What is no larger than that already is sampled as it is.
        let side = |n: f64| ((n / factor.max(1.0)).round() as usize).max(1);
        (side(height), side(width))
    }
}

pub(super) fn resolve(settings: &Upscale, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    at.only_journey()?;
    if let Some(upscaling) = &settings.upscaler {
        if upscaling.steps == 0 {
            return at.refuse("`upscaler.steps` is 0, expected at least 1");
        }
        if !(0.0..=1.0).contains(&upscaling.eta) || !(0.0..=1e3).contains(&upscaling.guidance_scale) {
            let (eta, w) = (upscaling.eta, upscaling.guidance_scale);
            return at.refuse(format!(
                "`upscaler` has eta {eta} and guidance_scale {w}, expected an eta from 0 to 1 and a scale from 0 to 1000"
            ));
        }
        if let Some(Tile { side, overlap }) = upscaling.tile
            && overlap >= side
        {
            return at.refuse(format!("`upscaler.tile` has an overlap of {overlap} in a side of {side}, expected less than the side"));
        }
    }
    Ok(Arc::new(settings.clone()))
}

impl Intervention for Upscale {
    fn route(&self, route: &Route, journey: &mut Journey) {
        let latent = self.base.latent(route);
        journey.stages = vec![Stage::new(latent)];
        journey.finish = (latent != route.latent).then(|| Finish { filter: self.filter, upscaler: self.upscaler.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_image_has_the_targets_shape() {
        let route = |latent| Route { latent, native: (16, 16), n_steps: 10, alphas_cumprod: Arc::from([0.5]), guidance_scale: 1.0 };
        let size = |base: BaseSize, latent| base.latent(&route(latent));
        for base in [BaseSize::ShorterSide, BaseSize::LongerSide, BaseSize::Area] {
            for latent in [(16, 16), (32, 32), (40, 40), (64, 64)] {
                assert_eq!(size(base, latent), (16, 16), "{base:?} {latent:?}");
            }
            assert_eq!(size(base, (12, 12)), (12, 12), "{base:?}");
        }
        assert_eq!(size(BaseSize::ShorterSide, (32, 64)), (16, 32));
        assert_eq!(size(BaseSize::LongerSide, (32, 64)), (8, 16));
        assert_eq!(size(BaseSize::Area, (32, 64)), (11, 23));
    }
}
