//! A step's prediction: its views looked at one by one, and put together.

use super::guidance::{combine, deviation};
use super::texts::{Place, Told};
use crate::dice::Dice;
use crate::error::Result;
use crate::plan::LowPass;
use crate::step::{Conditioning, Pooled, Region, Step, Strided, View, Windows};
use crate::unet::{MapStore, Shown, UNet};
use candle_core::{Device, Tensor};
use scalebench_kernels as kernels;

/// Maps that the network is shown at once on a GPU; a CPU is as fast one by one.
const MAPS_AT_ONCE: usize = 8;

/// What all views of a step share.
pub(super) struct Look<'a> {
    pub(super) unet: &'a UNet,
    pub(super) timestep: f64,
    pub(super) rescale: f64,
    /// What the network is told.
    pub(super) told: &'a Told<'a>,
    /// Self-attention sites beside whose cross-attentions maps are kept.
    pub(super) keeps: &'a [usize],
    /// The maps, of the last look at the whole latents.
    pub(super) kept: Option<Tensor>,
    /// What the stage before was shown at this step.
    pub(super) before: Option<&'a Tensor>,
    /// Sees the predictions of a whole view's passes.
    pub(super) see: &'a mut dyn FnMut(usize, &Tensor),
    /// Maps that passes on the whole latents keep and reuse.
    pub(super) maps: &'a mut MapStore,
}

impl Look<'_> {
    /// The prediction from `shown` `(images, c, h, w)`, of the same shape.
    pub(super) fn predict(&mut self, step: &Step, shown: &Tensor) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for (v, view) in step.views.iter().enumerate() {
            total = Some(match (&view.region, total) {
                (Region::Pooled(pooled), Some(sum)) => self.corrected(view, pooled, shown, &sum)?,
                (_, sum) => {
                    let prediction = self.of(v, view, shown)?;
                    let prediction = if view.weight == 1.0 { prediction } else { (prediction * view.weight)? };
                    sum.map_or(Ok(prediction.clone()), |sum| sum + prediction)?
                }
            });
        }
        Ok(total.expect("a step has views"))
    }

    /// What view `v` predicts.
    fn of(&mut self, v: usize, view: &View, shown: &Tensor) -> Result<Tensor> {
        match &view.region {
            Region::Whole | Region::Pooled(_) => {
                let (now, told) = (Shown { now: shown, before: self.before, frames: self.told.frames }, self.told);
                let mut telling = |before: bool, c: &[Conditioning]| told.maps(before, c, &[Place::default()]);
                let (predictions, kept) =
                    self.unet.predict_keeping(&now, self.timestep, &view.passes, &mut telling, self.maps, self.keeps)?;
                self.kept = kept.map(|maps| mean_over_frames(&maps, told.frames)).transpose()?.or(self.kept.take());
                predictions.iter().enumerate().for_each(|(j, prediction)| (self.see)(j, prediction));
                combine(&view.passes, &predictions, view.bands.as_ref(), self.rescale, told.frames)
            }
            Region::Windows(windows) => self.windows(v, view, windows, shown),
            Region::Strided(strided) => self.strided(view, strided, shown),
        }
    }

    /// Guided predictions of several small maps, each `(images, c, h, w)`, told where they are.
    fn each(&self, view: &View, maps: &[Tensor], places: &[Place<'_>]) -> Result<Vec<Tensor>> {
        let at_once = if kernels::on_gpu(self.unet.device()) { MAPS_AT_ONCE } else { 1 };
        let mut found = Vec::with_capacity(maps.len());
        for (maps, places) in maps.chunks(at_once).zip(places.chunks(at_once)) {
            let batch = Tensor::cat(maps, 0)?;
            let shown = Shown { now: &batch, before: None, frames: self.told.frames };
            let predictions = self.unet.predict(&shown, self.timestep, &view.passes, &mut |before, c| self.told.maps(before, c, places))?;
            let guided = combine(&view.passes, &predictions, view.bands.as_ref(), self.rescale, self.told.frames)?;
            found.extend(guided.chunk(maps.len(), 0)?);
        }
        Ok(found)
    }

    fn windows(&self, v: usize, view: &View, windows: &Windows, shown: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = shown.dims4()?;
        let (rows, columns) = windows.size;
        let reach = |corner: i64, size: usize, side: usize| (-corner).max(corner + size as i64 - side as i64).max(0) as usize;
        let pad = windows.corners.iter().map(|c| reach(c.0, rows, h).max(reach(c.1, columns, w))).max().unwrap_or(0);
        let padded = shown.pad_with_zeros(2, pad, pad)?.pad_with_zeros(3, pad, pad)?;
        let place = |corner: &(i64, i64)| ((corner.0 + pad as i64) as usize, (corner.1 + pad as i64) as usize);
        let cut = |corner| {
            let (top, left) = place(corner);
            Ok(padded.narrow(2, top, rows)?.narrow(3, left, columns)?.contiguous()?)
        };
        let maps = windows.corners.iter().map(cut).collect::<Result<Vec<_>>>()?;
        let texts = self.told.of_windows.get(&v);
        let told = |(k, corner): (usize, &(i64, i64))| Place {
            corner: windows.told_corners.map_or((0, 0), |(y, x)| (corner.0 + y, corner.1 + x)),
            texts: texts.map(|texts| &texts[k][..]),
        };
        let predictions = self.each(view, &maps, &windows.corners.iter().enumerate().map(told).collect::<Vec<_>>())?;
        let mut mean = Canvas::new(&padded)?;
        for (corner, prediction) in windows.corners.iter().zip(&predictions) {
            mean.add(place(corner), prediction)?;
        }
        Ok(mean.divided()?.narrow(2, pad, h)?.narrow(3, pad, w)?.contiguous()?)
    }

    fn strided(&self, view: &View, strided: &Strided, shown: &Tensor) -> Result<Tensor> {
        let (images, channels, h, w) = shown.dims4()?;
        let s = strided.factor;
        let (top, left) = ((s - h % s) % s, (s - w % s) % s);
        let padded = shown.pad_with_zeros(2, top, 0)?.pad_with_zeros(3, left, 0)?;
        let blurred = match strided.blur {
            None => padded,
            Some(sigma) => restored(&kernels::blur_gaussian(&padded, 2 * s - 1, sigma)?, &padded)?,
        };
        let (rows, columns) = ((h + top) / s, (w + left) / s);
        // (subset, images, c, rows, columns); subset i · s + j holds the pixels [i::s, j::s].
        let subsets = blurred.reshape((images, channels, rows, s, columns * s))?.reshape(&[images, channels, rows, s, columns, s][..])?;
        let subsets = subsets.permute(vec![3, 5, 0, 1, 2, 4])?.contiguous()?.reshape((s * s, images * channels * rows * columns))?;
        let order = strided.shuffle.map(|seed| Permutations::new(seed, s * s, channels * rows * columns, images));
        let subsets = order.as_ref().map_or(Ok(subsets.clone()), |order| order.shuffled(&subsets))?;
        let maps: Vec<Tensor> =
            (0..s * s).map(|k| Ok(subsets.get(k)?.reshape((images, channels, rows, columns))?)).collect::<Result<_>>()?;
        let predictions = self.each(view, &maps, &vec![Place::default(); maps.len()])?;
        let flat = Tensor::stack(&predictions, 0)?.reshape((s * s, images * channels * rows * columns))?;
        let flat = order.as_ref().map_or(Ok(flat.clone()), |order| order.undone(&flat))?;
        let whole = flat.reshape(&[s, s, images, channels, rows, columns][..])?.permute(vec![2, 3, 4, 0, 5, 1])?.contiguous()?;
        let whole = whole.reshape((images, channels, rows * s, columns * s))?;
        Ok(whole.narrow(2, top, h)?.narrow(3, left, w)?.contiguous()?)
    }

    fn corrected(&mut self, view: &View, pooled: &Pooled, shown: &Tensor, sum: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = shown.dims4()?;
        let (small_h, small_w) = (h.div_ceil(pooled.factor), w.div_ceil(pooled.factor));
        let small = (kernels::area_mean(shown, small_h, small_w)? * pooled.scale)?;
        let shown = Shown { now: &small, before: None, frames: self.told.frames };
        let told = &mut |before, c: &[Conditioning]| self.told.maps(before, c, &[Place::default()]);
        let predictions = self.unet.predict(&shown, pooled.timestep, &view.passes, told)?;
        let low = (combine(&view.passes, &predictions, None, self.rescale, self.told.frames)? / pooled.factor as f64)?;
        let difference = (low - kernels::area_mean(sum, small_h, small_w)?)?;
        Ok((sum + (kernels::upsample_nearest(&difference, h, w)? * view.weight)?)?)
    }
}

/// Maps `(videos · frames, …)` averaged over the frames of each video.
fn mean_over_frames(maps: &Tensor, frames: usize) -> Result<Tensor> {
    if frames == 1 {
        return Ok(maps.clone());
    }
    let (batch, pixels, tokens) = maps.dims3()?;
    Ok(maps.reshape((batch / frames, frames, pixels, tokens))?.mean(1)?)
}

/// `x` with mean and deviation of `like`, of each image.
pub(super) fn restored(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    let one = |i: usize| -> Result<Tensor> {
        let (x, like) = (x.narrow(0, i, 1)?, like.narrow(0, i, 1)?);
        let mean = |t: &Tensor| -> Result<f64> {
            let values = t.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64)
        };
        let factor = deviation(&like)? / deviation(&x)?;
        Ok(((&x * factor)? + (mean(&like)? - mean(&x)? * factor))?)
    };
    Ok(Tensor::cat(&(0..x.dim(0)?).map(one).collect::<Result<Vec<_>>>()?, 0)?)
}

/// Overlapping maps and how many cover each pixel.
pub(super) struct Canvas {
    shape: (usize, usize, usize, usize),
    sum: Vec<f32>,
    count: Vec<f32>,
}

impl Canvas {
    pub(super) fn new(like: &Tensor) -> Result<Self> {
        let shape = like.dims4()?;
        Ok(Self { shape, sum: vec![0.0; like.elem_count()], count: vec![0.0; shape.2 * shape.3] })
    }

    pub(super) fn add(&mut self, (top, left): (usize, usize), map: &Tensor) -> Result<()> {
        let (images, channels, h, w) = map.dims4()?;
        let (_, _, height, width) = self.shape;
        let values = map.flatten_all()?.to_vec1::<f32>()?;
        for (row, line) in values.chunks_exact(w).enumerate() {
            let at = (row / h * height + top + row % h) * width + left;
            self.sum[at..at + w].iter_mut().zip(line).for_each(|(sum, v)| *sum += v);
        }
        debug_assert_eq!((images, channels), (self.shape.0, self.shape.1));
        for row in top..top + h {
            self.count[row * width + left..][..w].iter_mut().for_each(|n| *n += 1.0);
        }
        Ok(())
    }

    /// The mean; 0 where nothing was added.
    pub(super) fn divided(mut self) -> Result<Tensor> {
        for plane in self.sum.chunks_exact_mut(self.count.len()) {
            plane.iter_mut().zip(&self.count).for_each(|(sum, n)| *sum /= n.max(1.0));
        }
        Ok(Tensor::from_vec(self.sum, self.shape, &Device::Cpu)?)
    }
}

/// At every place another order of the subsets.
struct Permutations {
    /// For each place the subset that goes to position 0, 1, …
    from: Vec<u32>,
    n: usize,
    images: usize,
}

impl Permutations {
    fn new(seed: u64, n: usize, places: usize, images: usize) -> Self {
        let mut dice = Dice::new(seed, 0, 0);
        let mut from = Vec::with_capacity(n * places);
        for _ in 0..places {
            let start = from.len();
            from.extend(0..n as u32);
            // Fisher–Yates.
            for i in (1..n).rev() {
                from.swap(start + i, start + dice.below(i as u64 + 1) as usize);
            }
        }
        Self { from, n, images }
    }

    /// `x` `(n, images · places)`.
    fn shuffled(&self, x: &Tensor) -> Result<Tensor> {
        self.moved(x, |out, values, to, from| out[to] = values[from])
    }

    fn undone(&self, x: &Tensor) -> Result<Tensor> {
        self.moved(x, |out, values, to, from| out[from] = values[to])
    }

    fn moved(&self, x: &Tensor, put: impl Fn(&mut [f32], &[f32], usize, usize)) -> Result<Tensor> {
        let (n, all) = x.dims2()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let mut out = vec![0f32; values.len()];
        let places = all / self.images;
        for i in 0..all {
            for (k, &from) in self.from[i % places * self.n..][..n].iter().enumerate() {
                put(&mut out, &values, k * all + i, from as usize * all + i);
            }
        }
        Ok(Tensor::from_vec(out, (n, all), &Device::Cpu)?)
    }
}

/// `x` through a mask on its spectrum.
pub(super) fn low_pass(x: &Tensor, mask: &LowPass) -> Result<Tensor> {
    Ok(kernels::low_pass(x, &mask.rows, &mask.columns)?)
}
