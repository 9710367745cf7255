//! FouriScale (Huang et al. 2024, arXiv 2403.12963): convolutions reach further by dilation, behind a low-pass filter that takes out
//! what a dilated kernel would alias (§3.2–3.3, equations 5–8); details come from a second text pass under a weaker filter, whose
//! self-attentions use queries and keys of the strongly filtered one (§3.4).
//!
//! A run at `D` times the base size dilates by `D` at first, and then by `max((D − 1) (stop − i) / (stop − start) + 1, 1)`, rounded up
//! for the kernel, as it is for the filter. A map is padded with zeros at its bottom and right to a whole multiple of its size at the
//! base resolution. Along a padded side of `H` the filter's mask, `n` frequencies from the centre, at a dilation of `h` by input stride, is
//! `clamp((1 − v) / R · (H / 2h + 1 − n) + 1, v, 1)`, with a ramp of `R = max(⌊H / 8⌋, 1)` in the strong filter and of
//! `R = ⌊(h − 1) H / 2h⌋`, up to the highest frequency, in the weak one.
//!
//! From the authors' code, which says more than the paper: the exact masks, SDXL's floor `v` of 0.6, its weak pass's dilation by `D / 1.5`, its
//! base sizes, and the option of amplified guidance. Theirs makes the third pass to the end of the run; from step `stop` on it is a copy of
//! the second one, and not made here. FreeU, which their scripts switch on, is an ingredient of its own.

use super::Resolving;
use super::redilation::{fifty, scaled_tau};
use crate::error::{Error, Result};
use crate::journey::{Journey, Route};
use crate::plan::{Geometry, LowPass, Plan};
use crate::site::{ConvSite, SiteTable};
use crate::step::{Conditioning, Intervention, Moment, Region, Step, View};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which convolutions, for how long, behind which filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FouriScale {
    /// The step from which on the dilation falls.
    pub(crate) start: f64,
    /// The first step of the plain network.
    pub(crate) stop: f64,
    /// The run length in which steps are counted; other lengths scale them.
    #[serde(default = "fifty")]
    pub(crate) of_steps: usize,
    /// Rules of the sites that are filtered and dilated.
    pub(crate) filtered: Vec<String>,
    /// Rules of the sites that are dilated alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dilated: Vec<String>,
    /// v: what is left of the highest frequencies.
    #[serde(default)]
    pub(crate) floor: f64,
    /// The weakly filtered pass's dilation is the strongly filtered one's by this.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) weak_divisor: f64,
    /// What counts as the base size.
    #[serde(default)]
    pub(crate) base: Base,
    /// Multiplies the guidance weight in the steps before `start`.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) amplified_guidance: f64,
}

/// The size that dilations and paddings refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Base {
    /// The training resolution.
    #[default]
    Native,
    /// That of SDXL's training sizes of which a whole multiple, the same both ways, needs the least padding; SDXL is told this
    /// size.
    Bucket,
}

fn one() -> f64 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_one(x: &f64) -> bool {
    *x == 1.0
}

/// (height, width) of the sizes that SDXL was trained at (Podell et al. 2023, appendix I, and the authors' list), in sixteenths of the
/// square one's side.
const BUCKETS: [(usize, usize); 40] = [
    (8, 32),
    (8, 31),
    (8, 30),
    (8, 29),
    (9, 28),
    (9, 27),
    (9, 26),
    (10, 25),
    (10, 24),
    (11, 23),
    (11, 22),
    (11, 21),
    (12, 21),
    (12, 20),
    (13, 19),
    (13, 18),
    (14, 18),
    (14, 17),
    (15, 17),
    (15, 16),
    (16, 16),
    (16, 15),
    (17, 15),
    (17, 14),
    (18, 14),
    (18, 13),
    (19, 13),
    (20, 12),
    (21, 12),
    (22, 11),
    (23, 11),
    (24, 10),
    (25, 10),
    (26, 9),
    (27, 9),
    (28, 9),
    (29, 8),
    (30, 8),
    (31, 8),
    (32, 8),
];

/// The two filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Strong,
    Weak,
}

#[derive(Debug)]
struct Resolved {
    settings: FouriScale,
    /// Convolutions, and whether they are filtered.
    sites: Vec<(usize, bool)>,
}

pub(super) fn resolve(settings: &FouriScale, at: &Resolving<'_>) -> Result<Arc<dyn Intervention>> {
    let FouriScale { start, stop, of_steps, floor, weak_divisor, amplified_guidance, .. } = *settings;
    if !(start >= 0.0 && start < stop && stop <= of_steps as f64) {
        return at.refuse(format!(
            "acts from step 0, falling from {start}, to {stop} of {of_steps}, expected 0 ≤ `start` < `stop` ≤ `of_steps`"
        ));
    }
    let positive = |value: f64| value.is_finite() && value > 0.0;
    if !((0.0..1.0).contains(&floor) && weak_divisor.is_finite() && weak_divisor >= 1.0 && positive(amplified_guidance)) {
        return at.refuse("expected a `floor` from 0 to less than 1, a `weak_divisor` of at least 1 and a positive `amplified_guidance`");
    }
    if settings.filtered.is_empty() {
        return at.refuse("has no `filtered` sites, expected at least one site rule");
    }
    for (key, there) in [("redilation", at.settings.redilation.is_some()), ("resized_blocks", at.settings.resized_blocks.is_some())] {
        if there {
            return at.refuse(format!("and `{key}` both say what convolutions do, expected one of them"));
        }
    }
    let mut sites: Vec<(usize, bool)> = Vec::new();
    for (pattern, filtered) in settings.filtered.iter().map(|p| (p, true)).chain(settings.dilated.iter().map(|p| (p, false))) {
        for site in at.sites.match_convs(at.method, pattern)? {
            if sites.iter().any(|(other, _)| *other == site) {
                return at.refuse(format!("two site rules match `{}`, expected one rule a site", at.sites.convs[site].path));
            }
            sites.push((site, filtered));
        }
    }
    Ok(Arc::new(Resolved { settings: settings.clone(), sites }))
}

impl FouriScale {
    /// Latent (height, width) of the base size, and how many times its sides the latents are, rounded up.
    fn base(&self, latent: (usize, usize), native: (usize, usize)) -> Option<((usize, usize), usize)> {
        let ratios = |base: (usize, usize)| (latent.0.div_ceil(base.0), latent.1.div_ceil(base.1));
        if self.base == Base::Native {
            let (down, across) = ratios(native);
            return Some((native, down.max(across)));
        }
        let sized = |(h, w): &(usize, usize)| (h * native.0 / 16, w * native.1 / 16);
        let fits = BUCKETS.iter().map(sized).filter(|base| ratios(*base).0 == ratios(*base).1).map(|base| (base, ratios(base).0));
        // The first of equals, as in the authors' list.
        fits.min_by_key(|(base, times)| base.0 * times - latent.0 + base.1 * times - latent.1)
    }
}

impl Resolved {
    /// The dilation in the step of `at`, of a run that begins with `times`; `None` once the network is plain.
    fn dilation(&self, at: &Moment, times: usize) -> Option<f64> {
        let scaled = |step: f64| scaled_tau(step, self.settings.of_steps, at.n_steps);
        let (i, start, stop, times) = (at.step as f64, scaled(self.settings.start), scaled(self.settings.stop), times as f64);
        if i >= stop || times == 1.0 {
            return None;
        }
        Some(if i >= start { ((times - 1.0) * ((stop - i) / (stop - start)) + 1.0).max(1.0) } else { times })
    }

    /// `plan` with what one filter stands for, for latents of `latent` at a base size of `base`.
    fn filter(&self, filter: Filter, dilation: f64, latent: (usize, usize), base: (usize, usize), sites: &SiteTable, plan: &mut Plan) {
        for &(i, filtered) in &self.sites {
            let site = &sites.convs[i];
            let divided = if filter == Filter::Weak { (dilation / self.settings.weak_divisor).max(1.0) } else { dilation };
            let dilated = divided.ceil() as usize;
            plan.convs[i].geometry = Some(Geometry { stride: site.stride, padding: dilated, dilation: dilated });
            if filtered {
                let by_stride = (dilation / site.stride as f64).max(1.0);
                let (rows, columns) = padded(site, latent, base);
                let side = |n: usize| mask(n, by_stride, self.settings.floor, filter);
                plan.convs[i].low_pass = Some(LowPass { rows: side(rows), columns: side(columns) });
            }
        }
    }

    /// The three passes of a view in place of its two.
    fn branch(&self, dilation: f64, at: &Moment, base: (usize, usize), sites: &SiteTable, view: &mut View) {
        let (_, latent) = view.region.maps(at.latent);
        let passes = &mut view.passes;
        let Some(text) = passes.iter().position(|pass| pass.conditioning == Conditioning::Text) else { return };
        let mut details = passes[text].clone();
        if (at.step as f64) < scaled_tau(self.settings.start, self.settings.of_steps, at.n_steps) {
            // ε(∅) + a w (ε(c) − ε(∅)): all weights but that of ε(∅) itself grow by a.
            let factor = self.settings.amplified_guidance;
            passes.iter_mut().for_each(|pass| pass.weight *= factor);
            details.weight *= factor;
            if let Some(empty) = passes.iter_mut().find(|pass| pass.conditioning == Conditioning::Empty) {
                empty.weight += 1.0 - factor;
            } else {
                details.weight = 1.0;
            }
        }
        passes.iter_mut().for_each(|pass| self.filter(Filter::Strong, dilation, latent, base, sites, &mut pass.plan));
        passes[text].weight = 0.0;
        self.filter(Filter::Weak, dilation, latent, base, sites, &mut details.plan);
        details.queries_of = Some(text);
        details.plan.attentions.iter_mut().for_each(|action| action.lent = 1.0);
        passes.push(details);
    }
}

/// (height, width) of what `site` sees, padded to a whole multiple of what it sees at the `base` size.
fn padded(site: &ConvSite, latent: (usize, usize), base: (usize, usize)) -> (usize, usize) {
    let size = site.size(latent);
    let halved = (1usize << site.halvings) as f64;
    let base = (base.0 as f64 / halved, base.1 as f64 / halved);
    let times = (size.0 as f64 / base.0).ceil().max((size.1 as f64 / base.1).ceil());
    (size.0.max((base.0 * times) as usize), size.1.max((base.1 * times) as usize))
}

/// One side of a filter's mask over `n` frequencies, in the order of a shifted spectrum; symmetric about half a frequency below 0, as
/// the authors have it.
fn mask(n: usize, by_stride: f64, floor: f64, filter: Filter) -> Arc<[f32]> {
    let side = n as f64;
    let half = n / 2;
    let ramp = match filter {
        Filter::Strong => (n / 8).max(1) as f64,
        Filter::Weak => ((by_stride - 1.0) * side / (by_stride * 2.0)).floor(),
    };
    if ramp == 0.0 {
        return vec![1.0; n].into();
    }
    let at = |i: usize| {
        let from_centre = if i >= half { i - half } else { half - 1 - i };
        ((1.0 - floor) / ramp * (half as f64 / by_stride + 1.0 - from_centre as f64) + 1.0).clamp(floor, 1.0) as f32
    };
    (0..n).map(at).collect()
}

impl Intervention for Resolved {
    fn route(&self, route: &Route, journey: &mut Journey) {
        if self.settings.base == Base::Bucket {
            for stage in journey.stages.iter_mut().filter(|stage| !stage.plain) {
                stage.told_size = self.settings.base(stage.latent, route.native).map(|(base, _)| base);
            }
        }
    }

    fn apply(&self, sites: &SiteTable, at: &Moment, step: &mut Step) {
        for view in &mut step.views {
            let (_, latent) = view.region.maps(at.latent);
            let Some((base, times)) = self.settings.base(latent, at.native) else { continue };
            if let (Some(dilation), false) = (self.dilation(at, times), matches!(view.region, Region::Pooled(_))) {
                self.branch(dilation, at, base, sites, view);
            }
        }
    }

    fn check(&self, method: &str, latent: (usize, usize), native: (usize, usize)) -> Result<()> {
        let reason = match self.settings.base(latent, native) {
            None => "`fouriscale` finds no SDXL size of which this one is about a multiple, expected a less extreme shape",
            Some((_, 1)) => "`fouriscale` has no effect at the base resolution or below",
            Some(_) => return Ok(()),
        };
        Err(Error::method(method, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_flat_then_fall() {
        // Nothing is filtered at a dilation of 1 by the weak filter.
        assert!(mask(32, 1.0, 0.0, Filter::Weak).iter().all(|v| *v == 1.0));
        // 32 frequencies at a dilation of 2: flat up to 8 + 1 from the centre, then down by a quarter each; by an eighth in the weak one.
        let right = |filter: Filter, floor: f64| mask(32, 2.0, floor, filter)[16..].to_vec();
        let strong = right(Filter::Strong, 0.0);
        assert!(strong[..10].iter().all(|v| *v == 1.0) && strong[10..14] == [0.75, 0.5, 0.25, 0.0], "{strong:?}");
        assert_eq!(right(Filter::Weak, 0.0)[10..12], [0.875, 0.75]);
        assert_eq!(right(Filter::Strong, 0.6)[13..], [0.6f32; 3]);
        // Mirrored between 0 and −1.
        let whole = mask(32, 2.0, 0.0, Filter::Strong);
        assert!((0..16).all(|i| whole[15 - i] == whole[16 + i]));
    }

    #[test]
    fn bases_and_dilations() {
        let of = |base| FouriScale {
            start: 20.0,
            stop: 35.0,
            of_steps: 50,
            filtered: Vec::new(),
            dilated: Vec::new(),
            floor: 0.0,
            weak_divisor: 1.0,
            base,
            amplified_guidance: 1.0,
        };
        let native = of(Base::Native);
        assert_eq!(native.base((128, 256), (64, 64)), Some(((64, 64), 4)));
        assert_eq!(native.base((160, 160), (64, 64)), Some(((64, 64), 3)));
        let bucket = of(Base::Bucket);
        assert_eq!(bucket.base((256, 256), (128, 128)), Some(((128, 128), 2)));
        // 2048 × 4096 px are at most 3 × 704 by 3 × 1408.
        assert_eq!(bucket.base((256, 512), (128, 128)), Some(((88, 176), 3)));
        let resolved = Resolved { settings: native, sites: Vec::new() };
        let dilation = |step: usize| resolved.dilation(&Moment { step, n_steps: 50, ..Moment::default() }, 4);
        assert_eq!([dilation(0), dilation(20), dilation(30), dilation(35)], [Some(4.0), Some(4.0), Some(2.0), None]);
        let site = |halvings| ConvSite { path: String::new(), stride: 1, halvings };
        assert_eq!(padded(&site(2), (128, 256), (64, 64)), (64, 64));
        assert_eq!(padded(&site(3), (160, 160), (64, 64)), (24, 24));
        assert_eq!(padded(&site(1), (256, 512), (88, 176)), (132, 264));
    }
}
