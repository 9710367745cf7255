//! The residual block.

use super::{Build, Context, SiteConv};
use crate::error::Result;
use crate::layers::{Conv, GroupNorm, Linear};
use crate::weights::Scope;
use candle_core::Tensor;
use scalebench_kernels as kernels;

/// `x + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`, with a 1×1 shortcut where channels change.
#[derive(Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: SiteConv,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: SiteConv,
    conv_shortcut: Option<Conv>,
}

impl ResnetBlock {
    pub(crate) fn load(build: &mut Build, at: &Scope<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        let c = &build.config;
        let (groups, eps, time) = (c.norm_num_groups, c.norm_eps, c.time_width());
        Ok(Self {
            norm1: GroupNorm::load(&at.pp("norm1"), c_in, groups, eps)?,
            conv1: SiteConv::load(build, &at.pp("conv1"), c_in, c_out, 1)?,
            time_emb_proj: Linear::load(&at.pp("time_emb_proj"), time, c_out)?,
            norm2: GroupNorm::load(&at.pp("norm2"), c_out, groups, eps)?,
            conv2: SiteConv::load(build, &at.pp("conv2"), c_out, c_out, 1)?,
            conv_shortcut: if c_in == c_out { None } else { Some(Conv::load(&at.pp("conv_shortcut"), c_in, c_out, 1, 1)?) },
        })
    }

    /// `x` `(batch, c_in, h, w)` → `(batch, c_out, h, w)`.
    pub(crate) fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        // The time embedding is one vector for the whole batch, or one for each image: a shift of conv1's bias.
        let shift = self.time_emb_proj.forward(&cx.time_silu)?;
        let shift = if shift.dims()[0] == 1 { shift.squeeze(0)? } else { shift };
        let h = self.norm1.forward_silu(x)?;
        let h = self.conv1.forward(&h, cx.conv(&self.conv1), Some(&shift))?;
        let h = self.norm2.forward_silu(&h)?;
        let h = self.conv2.forward(&h, cx.conv(&self.conv2), None)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok(kernels::add(&shortcut.forward(x)?, &h)?),
            None => Ok(kernels::add(x, &h)?),
        }
    }
}
