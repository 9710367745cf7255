//! Decoding in strips of rows: the same result as on whole maps, in bounded memory.
//!
//! A convolution needs its neighbours' rows only, so maps can be computed strip by strip; a group norm
//! needs the whole map, but only its sums. So each residual block makes three sweeps over strips: sums
//! of its input; first convolution and the sums of that; second convolution. Maps of a block's input
//! and output are held, nothing between them; a map that an upsampling would quadruple is never held
//! when it is large, but made again, strip by strip, in each sweep.

use super::{Decoder, ResnetBlock};
use crate::error::Result;
use crate::layers::{Conv, GroupNorm};
use candle_core::{DType, Device, Tensor};
use scalebench_kernels as kernels;
use scalebench_kernels::on_gpu;

/// How much a decode may hold beside the maps, when upsampled maps are made strip by strip, and when nothing is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Elements of the largest intermediate map of a strip.
    pub(super) strip: usize,
    /// Elements from which an upsampled map is not held.
    pub(super) held: usize,
    /// Elements of the largest map up to which maps are computed whole.
    pub(super) whole: usize,
}

impl Budget {
    /// On the CPU 64 MiB a strip. On a GPU, which only large maps fill, 512 MiB, and maps of up to 2 GiB are computed whole: those of
    /// 1448² pixels. Maps of 4 GiB are the first that are not held. Fixed numbers: the memory at hand must not decide about bits.
    pub(super) fn of(device: &Device) -> Self {
        match on_gpu(device) {
            false => Self { strip: 1 << 24, held: 1 << 30, whole: 0 },
            true => Self { strip: 1 << 27, held: 1 << 30, whole: 1 << 29 },
        }
    }
}

/// A map `(channels, height, width)` that is written in strips.
struct Map {
    /// `(1, channels, height, width)`, or, as a GPU's kernels have maps, `(1, height, width, channels)`.
    data: Tensor,
    channels: usize,
    height: usize,
    width: usize,
}

impl Map {
    /// On the device of `like`.
    fn new((channels, height, width): (usize, usize, usize), like: &Tensor) -> Result<Self> {
        let device = like.device();
        let shape = if on_gpu(device) { (1, height, width, channels) } else { (1, channels, height, width) };
        Ok(Self { data: Tensor::zeros(shape, DType::F32, device)?, channels, height, width })
    }

    fn from_tensor(x: &Tensor) -> Result<Self> {
        let (_, channels, height, width) = x.dims4()?;
        let mut map = Self::new((channels, height, width), x)?;
        map.set_rows(0, x)?;
        Ok(map)
    }

    /// Rows `from..to` as `(1, channels, rows, width)`, as they are now: later writes do not show.
    fn rows(&self, from: usize, to: usize) -> Result<Tensor> {
        Ok(if on_gpu(self.data.device()) {
            self.data.narrow(1, from, to - from)?.force_contiguous()?.permute((0, 3, 1, 2))?
        } else {
            self.data.narrow(2, from, to - from)?.force_contiguous()?
        })
    }

    fn set_rows(&mut self, from: usize, rows: &Tensor) -> Result<()> {
        match on_gpu(self.data.device()) {
            true => self.data.slice_set(&rows.permute((0, 2, 3, 1))?.contiguous()?, 1, from)?,
            false => self.data.slice_set(&rows.contiguous()?, 2, from)?,
        }
        Ok(())
    }
}

/// What a block reads.
enum Source<'a> {
    Held(Map),
    /// The held map, upsampled to twice its size and convolved.
    Upsampled(Map, &'a Conv),
}

impl Source<'_> {
    /// What is held.
    fn map(&self) -> &Tensor {
        match self {
            Self::Held(map) | Self::Upsampled(map, _) => &map.data,
        }
    }

    fn shape(&self) -> (usize, usize, usize) {
        match self {
            Self::Held(m) => (m.channels, m.height, m.width),
            Self::Upsampled(m, conv) => (conv.out_channels(), 2 * m.height, 2 * m.width),
        }
    }

    fn rows(&self, from: usize, to: usize) -> Result<Tensor> {
        match self {
            Self::Held(map) => map.rows(from, to),
            Self::Upsampled(map, conv) => {
                // The convolution's rows, and one more on each side where there is one.
                let height = 2 * map.height;
                let (low, high) = (from.saturating_sub(1), (to + 1).min(height));
                let (first, last) = (low / 2, high.div_ceil(2));
                let small = map.rows(first, last)?;
                let large = kernels::upsample_nearest(&small, 2 * (last - first), 2 * map.width)?;
                let large = large.narrow(2, low - 2 * first, high - low)?;
                conv.forward_rows(&padded(&large, from == 0, to == height)?)
            }
        }
    }
}

/// A row of zeros above and below where the map ends.
fn padded(x: &Tensor, above: bool, below: bool) -> Result<Tensor> {
    Ok(x.pad_with_zeros(2, usize::from(above), usize::from(below))?)
}

/// Sweeps `height` rows in strips of `n`.
fn strips(height: usize, n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..height).step_by(n).map(move |from| (from, (from + n).min(height)))
}

fn sums(source: &Source<'_>, n: usize) -> Result<Vec<(f64, f64)>> {
    let (channels, height, _) = source.shape();
    let mut total = vec![(0.0, 0.0); channels];
    for (from, to) in strips(height, n) {
        for (t, s) in total.iter_mut().zip(kernels::channel_sums(&source.rows(from, to)?)?) {
            *t = (t.0 + s.0, t.1 + s.1);
        }
    }
    Ok(total)
}

/// Rows `from..to` of `source`, normalised, through SiLU and a 3×3 convolution.
fn convolved(source: &Source<'_>, from: usize, to: usize, factors: &[(f32, f32)], conv: &Conv) -> Result<Tensor> {
    let (_, height, _) = source.shape();
    let x = source.rows(from.saturating_sub(1), (to + 1).min(height))?;
    conv.forward_rows(&padded(&kernels::channel_affine(&x, factors, true)?, from == 0, to == height)?)
}

fn rows_of(budget: Budget, channels: usize, width: usize) -> usize {
    (budget.strip / (channels * width)).max(8)
}

fn factors(norm: &GroupNorm, source: &Source<'_>, n: usize) -> Result<Vec<(f32, f32)>> {
    let (_, height, width) = source.shape();
    norm.factors(&[(sums(source, n)?, (height * width) as f64)], 0.0)
}

fn resnet(block: &ResnetBlock, x: Source<'_>, budget: Budget) -> Result<Map> {
    let (c_in, height, width) = x.shape();
    let c_out = block.conv1.out_channels();
    let n = rows_of(budget, c_in.max(c_out), width);
    let first = factors(&block.norm1, &x, n)?;
    let mut h = Map::new((c_out, height, width), x.map())?;
    for (from, to) in strips(height, n) {
        h.set_rows(from, &convolved(&x, from, to, &first, &block.conv1)?)?;
    }
    let mut h = Source::Held(h);
    let second = factors(&block.norm2, &h, n)?;
    // The result replaces the map that it is made from; the row above each strip is kept as it was.
    let mut above: Option<Tensor> = None;
    for (from, to) in strips(height, n) {
        let own = h.rows(from, (to + 1).min(height))?;
        let own = match &above {
            Some(row) => Tensor::cat(&[row, &own], 2)?,
            None => own,
        };
        above = Some(h.rows(to - 1, to)?);
        let y = padded(&kernels::channel_affine(&own, &second, true)?, from == 0, to == height)?;
        let y = block.conv2.forward_rows(&y)?;
        let x = block.shortcut(&x.rows(from, to)?)?;
        let Source::Held(map) = &mut h else { unreachable!("made above") };
        map.set_rows(from, &kernels::add(&x, &y)?)?;
    }
    let Source::Held(map) = h else { unreachable!("made above") };
    Ok(map)
}

/// From the middle block's output `(1, channels, h, w)` to the image.
pub(super) fn decode(decoder: &Decoder, x: &Tensor, budget: Budget) -> Result<Tensor> {
    let mut x = Source::Held(Map::from_tensor(x)?);
    for block in &decoder.up_blocks {
        for one in &block.resnets {
            x = Source::Held(resnet(one, x, budget)?);
        }
        if let Some(conv) = &block.resampler {
            let Source::Held(map) = x else { unreachable!("blocks are not empty") };
            x = Source::Upsampled(map, conv);
            let (channels, height, width) = x.shape();
            if channels * height * width < budget.held {
                let mut large = Map::new((channels, height, width), x.map())?;
                for (from, to) in strips(height, rows_of(budget, channels, width)) {
                    large.set_rows(from, &x.rows(from, to)?)?;
                }
                x = Source::Held(large);
            }
        }
    }
    let (channels, height, width) = x.shape();
    let n = rows_of(budget, channels, width);
    let last = factors(&decoder.norm_out, &x, n)?;
    let mut image = Map::new((decoder.conv_out.out_channels(), height, width), x.map())?;
    for (from, to) in strips(height, n) {
        image.set_rows(from, &convolved(&x, from, to, &last, &decoder.conv_out)?)?;
    }
    image.rows(0, height)
}
