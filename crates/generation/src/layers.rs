//! The layers that the U-Net and the VAE share, loaded by module path.

use crate::error::Result;
use crate::weights::Scope;
use candle_core::Tensor;
use scalebench_kernels as kernels;
use scalebench_kernels::{Activation, ConvGeometry};

/// A convolution with bias.
#[derive(Debug)]
pub(crate) struct Conv {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    geometry: ConvGeometry,
}

impl Conv {
    /// `kernel × kernel`, padded to keep the size at stride 1.
    pub(crate) fn load(at: &Scope<'_>, c_in: usize, c_out: usize, kernel: usize, stride: usize) -> Result<Self> {
        let padding = kernel / 2;
        Ok(Self {
            weight: at.get("weight", &[c_out, c_in, kernel, kernel])?,
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
}

/// A linear layer; the bias may be absent.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(at: &Scope<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Ok(Self { weight: at.get("weight", &[c_out, c_in])?, bias: Some(at.get("bias", &[c_out])?) })
    }

    pub(crate) fn load_no_bias(at: &Scope<'_>, c_in: usize, c_out: usize) -> Result<Self> {
        Ok(Self { weight: at.get("weight", &[c_out, c_in])?, bias: None })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(x, &self.weight, self.bias.as_ref())?)
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
