//! The transformer block: self-attention, cross-attention, feed-forward.

use super::{Build, Context, Lent, Tape};
use crate::error::Result;
use crate::layers::{GroupNorm, IntoMap, IntoTokens, LayerNorm, Linear};
use crate::plan::{AttentionAction, AttentionShape};
use crate::weights::Scope;
use candle_core::{DType, Device, Tensor};
use scalebench_kernels as kernels;
use scalebench_kernels::Precision;

/// An attention layer over `(batch, tokens, width)`.
#[derive(Debug)]
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    /// `1 / √d` of one head.
    scale: f64,
    precision: Precision,
}

impl Attention {
    pub(super) fn load(at: &Scope<'_>, width: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: Linear::load_no_bias(&at.pp("to_q"), width, width)?,
            to_k: Linear::load_no_bias(&at.pp("to_k"), context, width)?,
            to_v: Linear::load_no_bias(&at.pp("to_v"), context, width)?,
            to_out: Linear::load(&at.pp("to_out.0"), width, width)?,
            heads,
            scale: 1.0 / ((width / heads) as f64).sqrt(),
            precision: at.precision(),
        })
    }

    /// Attention to the text, its map kept or mixed with another as `cx` says. `site` is the self-attention beside it, if that is one.
    fn cross(&self, x: &Tensor, site: Option<usize>, cx: &Context<'_>) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(cx.text)?, self.to_v.forward(cx.text)?);
        let map = |q: &Tensor, k: &Tensor| Ok(kernels::attention_map(q, k, self.heads, self.scale)?);
        cx.maps.see(|| map(&q, &k))?;
        // Sums over sites and steps, on the CPU.
        let host = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        if let Some(site) = site {
            cx.prompt.see(site, || map(&host(&q)?, &host(&k)?))?;
        }
        let found = cx.maps.mixed(self.attend(&q, &k, &v, 1.0)?, &v)?;
        self.to_out.forward(&found)
    }

    /// Attention to the text and nothing else.
    fn text(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(cx.text)?, self.to_v.forward(cx.text)?);
        self.to_out.forward(&self.attend(&q, &k, &v, 1.0)?)
    }

    /// Attention among the pixels of a map of `size` (height, width), under `action`.
    fn own(&self, x: &Tensor, size: (usize, usize), action: &AttentionAction, site: usize, tape: &Tape) -> Result<Tensor> {
        let v = self.to_v.forward(x)?;
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor| self.attend(q, k, v, action.temperature);
        let own = || -> Result<Tensor> {
            let (q, k) = (self.to_q.forward(x)?, self.to_k.forward(x)?);
            if tape.wants(site) {
                tape.keep(site, Lent { q: q.clone(), k: k.clone(), size });
            }
            match &action.shape {
                AttentionShape::Full => self.to_out.forward(&attend(&q, &k, &v)?),
                AttentionShape::Windows(windows) => self.to_out.forward(&super::windows::shifted(windows, size, [&q, &k, &v], attend)?),
                AttentionShape::Fused(fusion) => {
                    let [local, global] = super::fusion::both(fusion, size, [&q, &k, &v], attend)?;
                    super::fusion::fused(fusion, size, &self.to_out.forward(&local)?, &self.to_out.forward(&global)?)
                }
            }
        };
        let theirs = || self.to_out.forward(&borrowed(tape.lent(site)?, &v, size, attend)?);
        match action.lent {
            0.0 => own(),
            1.0 => theirs(),
            share => Ok(((own()? * (1.0 - share))? + (theirs()? * share)?)?),
        }
    }

    /// Attention among the tokens of each sequence, as trained.
    pub(super) fn among(&self, x: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(x)?, self.to_v.forward(x)?);
        self.to_out.forward(&self.attend(&q, &k, &v, 1.0)?)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, temperature: f64) -> Result<Tensor> {
        Ok(kernels::attention(q, k, v, self.heads, self.scale * temperature, self.precision)?)
    }
}

/// Attention to `v` `(batch, tokens, width)` of a map of `size` by lent queries and keys. Those of a smaller map are those of all
/// pixels that one of its own stands for: keys see the mean of their values, queries share what they find.
fn borrowed(
    lent: &Lent,
    v: &Tensor,
    (h, w): (usize, usize),
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if lent.size == (h, w) {
        return attend(&lent.q, &lent.k, v);
    }
    let (batch, _, c) = v.dims3()?;
    let (rows, columns) = lent.size;
    let map = v.transpose(1, 2)?.contiguous()?.reshape((batch, c, h, w))?;
    let means = kernels::area_mean(&map, rows, columns)?.reshape((batch, c, rows * columns))?.transpose(1, 2)?.contiguous()?;
    let found = attend(&lent.q, &lent.k, &means)?.transpose(1, 2)?.contiguous()?.reshape((batch, c, rows, columns))?;
    Ok(kernels::upsample_nearest(&found, h, w)?.reshape((batch, c, h * w))?.transpose(1, 2)?.contiguous()?)
}

#[derive(Debug)]
struct Block {
    /// Index of `attn1` among the self-attention sites; None where it attends to the text as well.
    site: Option<usize>,
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl Block {
    fn load(build: &mut Build, at: &Scope<'_>, width: usize, level: usize, only_cross: bool) -> Result<Self> {
        let (context, heads) = (build.config.cross_attention_dim, build.config.heads[level]);
        let attn1 = at.pp("attn1");
        Ok(Self {
            site: (!only_cross).then(|| build.sites.add_attention(attn1.path(), level)),
            norm1: LayerNorm::load(&at.pp("norm1"), width)?,
            attn1: Attention::load(&attn1, width, if only_cross { context } else { width }, heads)?,
            norm2: LayerNorm::load(&at.pp("norm2"), width)?,
            attn2: Attention::load(&at.pp("attn2"), width, context, heads)?,
            norm3: LayerNorm::load(&at.pp("norm3"), width)?,
            ff_in: Linear::load(&at.pp("ff.net.0.proj"), width, 8 * width)?,
            ff_out: Linear::load(&at.pp("ff.net.2"), 4 * width, width)?,
        })
    }

    /// `x` `(batch, tokens, width)`, the pixels of a map of `size` (height, width).
    fn forward(&self, x: &Tensor, size: (usize, usize), cx: &Context<'_>) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let found = match self.site {
            Some(site) => self.attn1.own(&h, size, &cx.plan.attentions[site], site, cx.tape)?,
            None => self.attn1.text(&h, cx)?,
        };
        let x = kernels::add(x, &found)?;
        let x = kernels::add(&x, &self.attn2.cross(&self.norm2.forward(&x)?, self.site, cx)?)?;
        let h = self.ff_in.forward_geglu(&self.norm3.forward(&x)?)?;
        Ok(kernels::add(&x, &self.ff_out.forward(&h)?)?)
    }
}

/// A stack of blocks over the pixels of a map.
#[derive(Debug)]
pub(crate) struct Transformer {
    norm: GroupNorm,
    /// `(width, width)`; 1×1 convolutions in SD 1.x, linear layers in SD 2 and SDXL: the same product.
    proj_in: IntoTokens,
    blocks: Vec<Block>,
    proj_out: IntoMap,
}

impl Transformer {
    /// With `only_cross`, both attentions of a block are to the text.
    pub(crate) fn load(build: &mut Build, at: &Scope<'_>, width: usize, level: usize, only_cross: bool) -> Result<Self> {
        let depth = build.config.transformer_depth[level];
        let linear = build.config.use_linear_projection;
        let shape: &[usize] = if linear { &[width, width] } else { &[width, width, 1, 1] };
        Ok(Self {
            norm: GroupNorm::load(&at.pp("norm"), width, build.config.norm_num_groups, 1e-6)?,
            proj_in: IntoTokens::load(&at.pp("proj_in"), shape)?,
            blocks: (0..depth)
                .map(|i| Block::load(build, &at.pp("transformer_blocks").pp(i), width, level, only_cross))
                .collect::<Result<_>>()?,
            proj_out: IntoMap::load(&at.pp("proj_out"), shape)?,
        })
    }

    /// `x` `(batch, width, h, w)` → the same shape.
    pub(crate) fn forward(&self, x: &Tensor, cx: &Context<'_>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let h = self.norm.forward(x)?;
        let mut h = self.proj_in.forward(&h)?;
        for block in &self.blocks {
            h = block.forward(&h, (height, width), cx)?;
        }
        self.proj_out.forward(&h, x)
    }
}
