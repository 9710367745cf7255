//! A convolution that carries out a [`ConvAction`].

use super::Build;
use crate::disperse::{Dispersion, disperse};
use crate::error::{Error, Result};
use crate::plan::{ConvAction, Geometry, Kernel};
use crate::weights::Scope;
use candle_core::{DType, Tensor};
#[cfg(test)]
use scalebench_kernels::Precision;
use scalebench_kernels::{self as kernels, Activation, ConvGeometry, ConvWeight, conv2d, resize_bilinear};
use std::sync::{Arc, Mutex};

/// A 3×3 convolution of the U-Net, at a site.
#[derive(Debug)]
pub(crate) struct SiteConv {
    pub(crate) site: usize,
    weight: ConvWeight,
    bias: Tensor,
    stride: usize,
    /// Dispersed kernels by transform, made when first asked for.
    dispersed: Mutex<Vec<(Dispersion, Arc<ConvWeight>)>>,
}

impl SiteConv {
    pub(crate) fn load(build: &mut Build, at: &Scope<'_>, c_in: usize, c_out: usize, stride: usize) -> Result<Self> {
        Ok(Self {
            site: build.sites.add_conv(at.path(), stride, build.halvings),
            weight: at.conv("weight", &[c_out, c_in, 3, 3])?,
            bias: at.get("bias", &[c_out])?,
            stride,
            dispersed: Mutex::new(Vec::new()),
        })
    }

    /// A convolution that belongs to no network.
    #[cfg(test)]
    pub(crate) fn bare(weight: &Tensor, bias: Tensor, stride: usize) -> Self {
        let weight = ConvWeight::new(weight, Precision::F32).unwrap();
        Self { site: 0, weight, bias, stride, dispersed: Mutex::new(Vec::new()) }
    }

    /// `x` `(batch, c_in, h, w)` under `action`; `shift`, `(c_out)` or `(batch, c_out)`, is added to the bias.
    ///
    /// Re-dilation by a factor `f`: dilate by `D = ⌈f⌉`, on a map enlarged by `D / f` (bilinear), and
    /// resize the result to `⌊h / stride⌋ × ⌊w / stride⌋` (ScaleCrafter equation 3).
    pub(crate) fn forward(&self, x: &Tensor, action: &ConvAction, shift: Option<&Tensor>) -> Result<Tensor> {
        let bias = match shift {
            Some(shift) => shift.to_dtype(DType::F32)?.broadcast_add(&self.bias)?,
            None => self.bias.clone(),
        };
        let dispersed = match action.kernel {
            Kernel::Trained => None,
            Kernel::Dispersed(transform) => Some(self.dispersed(transform)?),
        };
        let weight = dispersed.as_deref().unwrap_or(&self.weight);
        let filtered = action.low_pass.as_ref().map(|mask| kernels::low_pass(x, &mask.rows, &mask.columns)).transpose()?;
        let x = filtered.as_ref().unwrap_or(x);
        if let Some(Geometry { stride, padding, dilation }) = action.geometry {
            let geometry = ConvGeometry { stride, padding: (padding, padding), dilation };
            return Ok(conv2d(x, weight, Some(&bias), geometry, Activation::Identity)?);
        }
        let reach = weight.kernel().0 / 2;
        let geometry = |dilation: usize| {
            let padding = dilation * reach;
            ConvGeometry { stride: self.stride, padding: (padding, padding), dilation }
        };
        let Some(factor) = action.dilation.map(|d| d.get()) else {
            return Ok(conv2d(x, weight, Some(&bias), geometry(1), Activation::Identity)?);
        };
        let dilation = factor.ceil();
        let (_, _, h, w) = x.dims4()?;
        // Python's round: ties to even.
        let enlarged = |n: usize| (n as f64 * (dilation / factor)).round_ties_even() as usize;
        let x = resize_bilinear(x, enlarged(h), enlarged(w))?;
        let y = conv2d(&x, weight, Some(&bias), geometry(dilation as usize), Activation::Identity)?;
        Ok(resize_bilinear(&y, h / self.stride, w / self.stride)?)
    }

    fn dispersed(&self, transform: Dispersion) -> Result<Arc<ConvWeight>> {
        let mut cache = self.dispersed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, weight)) = cache.iter().find(|(t, _)| *t == transform) {
            return Ok(Arc::clone(weight));
        }
        let kernels = spread(&self.weight.tensor()?, transform)?.to_dtype(self.weight.dtype())?;
        let weight = Arc::new(ConvWeight::new(&kernels, self.weight.precision())?);
        cache.push((transform, Arc::clone(&weight)));
        Ok(weight)
    }
}

/// `w'[o, i, m] = Σ_n R[m, n] w[o, i, n]`, in f64.
fn spread(weight: &Tensor, transform: Dispersion) -> Result<Tensor> {
    let (c_out, c_in, kh, kw) = weight.dims4()?;
    if (kh, kw) != (transform.small, transform.small) {
        let found = format!("{0}×{0}", transform.small);
        return Err(Error::Request { key: "small", found, expected: format!("the trained kernel's {kh}×{kw}") });
    }
    let r = disperse(transform)?;
    let (m, n) = (transform.large * transform.large, kh * kw);
    let taps = weight.flatten_all()?.to_vec1::<f32>()?;
    let mut out = Vec::with_capacity(c_out * c_in * m);
    for kernel in taps.chunks_exact(n) {
        for row in r.chunks_exact(n) {
            out.push(row.iter().zip(kernel).map(|(r, &k)| r * f64::from(k)).sum::<f64>() as f32);
        }
    }
    Ok(Tensor::from_vec(out, (c_out, c_in, transform.large, transform.large), weight.device())?)
}
