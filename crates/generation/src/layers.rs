//! The layers that the U-Net and the VAE share, loaded by module path.

use crate::error::Result;
use crate::weights::Scope;
use candle_core::Tensor;
use scalebench_kernels as kernels;
use scalebench_kernels::{Activation, ConvGeometry, ConvWeight, LinearWeight};

/// A convolution with bias.
#[derive(Debug)]
pub(crate) struct Conv {
    pub(crate) weight: ConvWeight,
    pub(crate) bias: Tensor,
    geometry: ConvGeometry,
}

impl Conv {
    /// `kernel × kernel`, padded to keep the size at stride 1.
    pub(crate) fn load(at: &Scope<'_>, c_in: usize, c_out: usize, kernel: usize, stride: usize) -> Result<Self> {
        let padding = kernel / 2;
        Ok(Self {
            weight: at.conv("weight", &[c_out, c_in, kernel, kernel])?,
            bias: at.get("bias", &[c_out])?,
            geometry: ConvGeometry { stride, padding: (padding, padding), dilation: 1 },
        })
    }

    /// Without the zeros around the input.
    pub(crate) fn unpadded(mut self) -> Self {
        self.geometry.padding = (0, 0);
        self
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::conv2d(x, &self.weight, Some(&self.bias), self.geometry, Activation::Identity)?)
    }

    /// On rows that already have their neighbours, or zeros, above and below.
    pub(crate) fn forward_rows(&self, x: &Tensor) -> Result<Tensor> {
        let geometry = ConvGeometry { padding: (0, self.geometry.padding.1), ..self.geometry };
        Ok(kernels::conv2d(x, &self.weight, Some(&self.bias), geometry, Activation::Identity)?)
    }

    pub(crate) fn out_channels(&self) -> usize {
        self.bias.dims()[0]
    }
}

/// A linear layer; the bias may be absent.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: LinearWeight,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(at: &Scope<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Ok(Self { weight: at.linear("weight", &[c_out, c_in])?, bias: Some(at.get("bias", &[c_out])?) })
    }

    pub(crate) fn load_no_bias(at: &Scope<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Ok(Self { weight: at.linear("weight", &[c_out, c_in])?, bias: None })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// The first half of the outputs times the GELU of the second.
    pub(crate) fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear_geglu(x, &self.weight, self.bias.as_ref())?)
    }
}

/// A projection of a map's pixels to tokens.
#[derive(Debug)]
pub(crate) struct IntoTokens {
    weight: LinearWeight,
    bias: Tensor,
}

impl IntoTokens {
    /// `shape` is `(c_out, c_in)`, or the same with 1×1 kernels.
    pub(crate) fn load(at: &Scope<'_>, shape: &[usize]) -> Result<Self> {
        Ok(Self { weight: at.linear("weight", shape)?, bias: at.get("bias", &shape[..1])? })
    }

    /// `(batch, c_in, h, w)` → `(batch, h · w, c_out)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::map_to_tokens(x, &self.weight, &self.bias)?)
    }
}

/// A projection of tokens to a map's pixels.
#[derive(Debug)]
pub(crate) struct IntoMap {
    weight: ConvWeight,
    bias: Tensor,
}

impl IntoMap {
    /// `shape` is `(c_out, c_in)`, or the same with 1×1 kernels.
    pub(crate) fn load(at: &Scope<'_>, shape: &[usize]) -> Result<Self> {
        Ok(Self { weight: at.conv("weight", shape)?, bias: at.get("bias", &shape[..1])? })
    }

    /// `(batch, h · w, c_in)` → `residual` `(batch, c_out, h, w)` plus the projection.
    pub(crate) fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(kernels::tokens_to_map(x, &self.weight, &self.bias, residual)?)
    }
}

/// Group normalisation, optionally followed by SiLU.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn load(at: &Scope<'_>, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: at.get("weight", &[channels])?, bias: at.get("bias", &[channels])?, groups, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::group_norm(x, self.groups, &self.weight, &self.bias, self.eps, false)?)
    }

    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::group_norm(x, self.groups, &self.weight, &self.bias, self.eps, true)?)
    }
}

impl GroupNorm {
    /// Factor and offset of every channel, for a map that is known in parts: per part the channels' sums
    /// and sums of squares, and its pixels. The variance is the mean of the parts' squared deviations from
    /// the common mean, weighted by size; each is divided by its elements less `correction`.
    pub(crate) fn factors(&self, parts: &[(Vec<(f64, f64)>, f64)], correction: f64) -> Result<Vec<(f32, f32)>> {
        let (weight, bias) = (self.weight.to_vec1::<f32>()?, self.bias.to_vec1::<f32>()?);
        let per_group = weight.len() / self.groups;
        let total = parts.iter().map(|(_, pixels)| pixels).sum::<f64>() * per_group as f64;
        let mut factors = Vec::with_capacity(weight.len());
        for g in 0..self.groups {
            let channels = g * per_group..(g + 1) * per_group;
            let groups: Vec<(f64, f64, f64)> = parts
                .iter()
                .map(|(sums, pixels)| {
                    let (sum, squares) = sums[channels.clone()].iter().fold((0.0, 0.0), |t, s| (t.0 + s.0, t.1 + s.1));
                    (sum, squares, pixels * per_group as f64)
                })
                .collect();
            let mean = groups.iter().map(|(sum, _, _)| sum).sum::<f64>() / total;
            let deviation = |&(sum, squares, n): &(f64, f64, f64)| {
                n / total * (squares - 2.0 * mean * sum + n * mean * mean).max(0.0) / (n - correction)
            };
            let variance = groups.iter().map(deviation).sum::<f64>();
            let inverse = 1.0 / (variance + self.eps).sqrt();
            for c in channels {
                let a = inverse * f64::from(weight[c]);
                factors.push((a as f32, (f64::from(bias[c]) - mean * a) as f32));
            }
        }
        Ok(factors)
    }
}

/// Layer normalisation over channels.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub(crate) fn load(at: &Scope<'_>, channels: usize) -> Result<Self> {
        Ok(Self { weight: at.get("weight", &[channels])?, bias: at.get("bias", &[channels])? })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::layer_norm(x, &self.weight, &self.bias, 1e-5)?)
    }
}
