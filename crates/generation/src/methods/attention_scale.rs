//! Attn-SF (Jin et al. 2023, arXiv 2306.08645): keep the entropy of self-attention when the number of
//! tokens changes, by the softmax scale `√(log_T N / d)` instead of `√(1 / d)`, with N tokens now and
//! T tokens of the same layer at the training resolution.

use super::Resolving;
use crate::error::{Error, Result};
use crate::site::SiteTable;
use crate::step::{Intervention, Moment, Step};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// No settings: all self-attentions, all steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionScale {}

pub(super) fn resolve(settings: &AttentionScale, _at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    Ok(Arc::new(*settings))
}

impl Intervention for AttentionScale {
    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        for pass in step.passes_mut() {
            for (site, action) in sites.attentions.iter().zip(&mut pass.plan.attentions) {
                action.temperature = factor(site.n_tokens(at.latent), at.latent, at.native);
            }
        }
    }

    fn check(&self, method: &str, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        if latent == native {
            return Err(Error::method(method, "`attention_scale` has no effect at the training resolution"));
        }
        Ok(())
    }
}

/// `√(ln N / ln T)`, T from N by the ratio of areas; 1 for a layer of one token, whose softmax has
/// nothing to choose.
fn factor(n_tokens: usize, latent: (usize, usize), native: (usize, usize)) -> f64 {
    let n = n_tokens as f64;
    let trained = n * (native.0 * native.1) as f64 / (latent.0 * latent.1) as f64;
    if n <= 1.0 || trained <= 1.0 { 1.0 } else { (n.ln() / trained.ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn stable_diffusion_values() {
        // SD 1.5 at 4× the pixels, outermost layer and mid block (128² latents, 64² trained).
        assert!((factor(16384, (128, 128), (64, 64)) - 1.0801).abs() < 5e-5);
        assert!((factor(256, (128, 128), (64, 64)) - 1.1547).abs() < 5e-5);
        assert_eq!(factor(4096, (64, 64), (64, 64)), 1.0);
    }
}
