//! The Inception-v3 of FID: the TensorFlow graph of 2015-12-05, at any width.
//!
//! It differs from torchvision's `inception_v3` in three ways: average pools leave padding out of the
//! count, the pool of the last block is a *maximum*, and there are 1008 outputs and no auxiliary head.
//! Topology and key names: torch-fidelity 0.4.0, `feature_extractor_inceptionv3.py`.
//!
//! Every channel count `c` of that graph becomes `max(1, round(c · width))`, so that small networks
//! trained for a small domain share the code and the file format. The width comes from the file:
//!
//! 1. the safetensors metadata entries `width`, `num_classes`, `num_groups`, if `width` is there;
//! 2. else `config.json` beside the file, `{"width": 0.125, "num_classes": 1008}`;
//! 3. else 1, with 1008 classes.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use scalebench_kernels::{Activation, ConvGeometry, ConvWeight, Pool, Precision, conv2d, join_channels, pool3x3};
use serde::{Deserialize, Serialize};

use crate::files::read;
use crate::weights::{Tensors, WeightsFile};
use crate::{Error, Result};

/// Epsilon of every batch normalisation (torch-fidelity `BasicConv2d`).
const BN_EPSILON: f64 = 0.001;

/// Smallest input side for which every block has at least one output (torchvision's bound).
const SMALLEST_INPUT: usize = 75;

/// Shape of a network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InceptionConfig {
    /// Channel multiplier; 1 is the published network.
    pub(crate) width: f64,
    /// Outputs of the classifier; 1008 in the published network.
    pub(crate) num_classes: usize,
    /// Outputs of a second classifier used in training only; its `fc_*` tensors are not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_groups: Option<usize>,
}

impl InceptionConfig {
    /// The published network.
    pub(crate) const FULL: Self = Self { width: 1.0, num_classes: 1008, num_groups: None };

    fn channels(&self, full: usize) -> usize {
        ((full as f64 * self.width).round() as usize).max(1)
    }

    /// Dimension of the `2048` tap at this width.
    pub(crate) fn feature_dim(&self) -> usize {
        self.channels(320) + 4 * self.channels(384) + self.channels(192)
    }

    fn resolve(path: &Path, metadata: Option<&HashMap<String, String>>) -> Result<Self> {
        let bad = |path: &Path, message: String| Error::Config { path: path.to_owned(), message };
        let beside = path.with_file_name("config.json");
        let config = if let Some(metadata) = metadata.filter(|m| m.contains_key("width")) {
            let entry = |key: &str| -> Result<Option<f64>> {
                let value = metadata.get(key).map(|v| v.parse::<f64>());
                value.transpose().map_err(|e| bad(path, format!("metadata entry {key}: {e}")))
            };
            let count = |v: f64| v as usize;
            Self {
                width: entry("width")?.unwrap_or(1.0),
                num_classes: entry("num_classes")?.map_or(Self::FULL.num_classes, count),
                num_groups: entry("num_groups")?.map(count),
            }
        } else if beside.is_file() {
            let text = read(&beside)?;
            serde_json::from_slice(&text).map_err(|e| bad(&beside, e.to_string()))?
        } else {
            Self::FULL
        };
        if !(config.width > 0.0 && config.width <= 16.0) || config.num_classes == 0 {
            return Err(bad(path, format!("{config:?} needs a width in (0, 16] and classes")));
        }
        Ok(config)
    }
}

/// What the network says about a batch, each tensor `(batch, n)`, `f32`, on the CPU.
///
/// The sizes are those of the published network; they scale with the width.
///
/// Example: [`Inception`].
#[derive(Clone, Debug)]
pub struct Taps {
    /// After the first max pool, averaged over space: 64 values.
    pub pool_64: Tensor,
    /// After the second max pool, averaged over space: 192 values.
    pub pool_192: Tensor,
    /// After `Mixed_6e`, averaged over space: 768 values.
    pub pool_768: Tensor,
    /// After the last block, averaged over space: 2048 values. FID and KID use these.
    pub pool_2048: Tensor,
    /// Classifier without its bias; what the Inception Score uses.
    pub logits_unbiased: Tensor,
    /// Classifier.
    pub logits: Tensor,
}

/// Convolution, batch normalisation (folded into it) and ReLU.
#[derive(Debug)]
struct ConvBlock {
    weight: ConvWeight,
    bias: Tensor,
    stride: usize,
    padding: (usize, usize),
}

impl ConvBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_to(x, Activation::Relu)
    }

    fn forward_to(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let geometry = ConvGeometry { stride: self.stride, padding: self.padding, dilation: 1 };
        Ok(conv2d(x, &self.weight, Some(&self.bias), geometry, activation)?)
    }
}

/// Blocks one after the other.
type Chain = Vec<ConvBlock>;

fn run(chain: &[ConvBlock], x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for block in chain {
        x = block.forward(&x)?;
    }
    Ok(x)
}

/// One path of a mixed block.
#[derive(Debug)]
enum Branch {
    Convs(Chain),
    /// A trunk whose output two blocks read; their outputs are concatenated.
    Fork(Chain, [ConvBlock; 2]),
    /// A stride-1 pool with padding, then a 1×1 block.
    Pooled(Pool, ConvBlock),
    /// The stride-2 maximum pool of a reduction.
    Reduce,
}

/// Branches concatenated along the channels, in the order of the reference.
#[derive(Debug)]
struct Mixed(Vec<Branch>);

impl Mixed {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut outputs = Vec::with_capacity(self.0.len() + 2);
        for branch in &self.0 {
            match branch {
                Branch::Convs(chain) => outputs.push(run(chain, x)?),
                Branch::Fork(chain, tips) => {
                    let trunk = run(chain, x)?;
                    for tip in tips {
                        outputs.push(tip.forward(&trunk)?);
                    }
                }
                // An average of pixels and a mixture of channels commute, and there are fewer channels after it.
                Branch::Pooled(Pool::Average, block) => {
                    let mixed = block.forward_to(x, Activation::Identity)?;
                    outputs.push(pool3x3(&mixed, Pool::Average, 1, 1, Activation::Relu)?);
                }
                Branch::Pooled(pool, block) => {
                    outputs.push(block.forward(&pool3x3(x, *pool, 1, 1, Activation::Identity)?)?);
                }
                Branch::Reduce => outputs.push(pool3x3(x, Pool::Max, 2, 0, Activation::Identity)?),
            }
        }
        Ok(join_channels(&outputs)?)
    }
}

/// The network with its weights, in `f32`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use scalebench_metrics::{Inception, Taps};
/// let file = "../../datasets/pocket-inception/model.safetensors".as_ref();
/// let network = Inception::load_on(file, &Device::Cpu)?;
/// // FID's images have sides of 299 pixels; 75 are enough for every layer.
/// assert_eq!(Inception::SIDE, 299);
/// let black = Tensor::zeros((1, 3, 75, 75), DType::F32, &Device::Cpu)?;
/// let Taps { pool_64, pool_2048, .. } = network.forward(&black)?;
/// assert_eq!((pool_64.dims(), pool_2048.dims()), (&[1, 64 / 8][..], &[1, 2048 / 8][..]));
/// assert_eq!(Inception::load(file)?.forward(&black)?.pool_2048.to_vec2::<f32>()?, pool_2048.to_vec2::<f32>()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Inception {
    config: InceptionConfig,
    digest: String,
    /// Up to each of the two max pools of the stem.
    stem: [Chain; 2],
    /// `Mixed_5b` to `Mixed_6e`.
    middle: Vec<Mixed>,
    /// `Mixed_7a` to `Mixed_7c`.
    last: Vec<Mixed>,
    fc_weight: Tensor,
    fc_bias: Tensor,
}

impl Inception {
    /// Side of FID's inputs in pixels.
    pub const SIDE: usize = 299;

    /// Loads a safetensors file, or a file by `torch.save` such as the published
    /// `pt_inception-2015-12-05-6726825d.pth`, with the keys of torch-fidelity's state dict. The content
    /// decides, not the name, and nothing in the file is run.
    ///
    /// Every tensor is checked for presence, shape, type (`f32`) and finite values, and the file for
    /// tensors that the network does not have; `num_batches_tracked` is ignored. Files of other networks
    /// under the same names, such as torchvision's, are refused with the reason.
    /// Example: [`Inception`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_on(path, &Device::Cpu)
    }

    /// [`load`](Self::load), onto a device.
    /// Example: [`Inception`].
    pub fn load_on(path: &Path, device: &Device) -> Result<Self> {
        Loader::new(WeightsFile::open(&read(path)?, path)?, path)?.network(device)
    }

    /// As [`Inception::load`], for a file already read; `path` is for errors and `config.json`.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        Loader::new(WeightsFile::open(bytes, path)?, path)?.network(&Device::Cpu)
    }

    /// BLAKE3 of the tensors' names and values, hexadecimal: the same for a file by `torch.save` and what
    /// [`convert_weights`](crate::convert_weights) makes of it.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The network's shape.
    pub(crate) fn config(&self) -> InceptionConfig {
        self.config
    }

    /// Runs a batch: `x` is `(batch, 3, height, width)`, `f32` in [−1, 1], sides of at least 75.
    ///
    /// No resize happens here; FID's inputs are 299 × 299.
    /// Example: [`Inception`].
    pub fn forward(&self, x: &Tensor) -> Result<Taps> {
        match *x.dims() {
            [batch, 3, height, width] if batch > 0 && height.min(width) >= SMALLEST_INPUT => {}
            _ => {
                return Err(Error::InputShape { found: x.dims().to_vec() });
            }
        }
        let average = |x: &Tensor| x.mean((2, 3));
        let x = x.to_device(self.fc_bias.device())?;
        let x = pool3x3(&run(&self.stem[0], &x)?, Pool::Max, 2, 0, Activation::Identity)?;
        let pool_64 = average(&x)?;
        let x = pool3x3(&run(&self.stem[1], &x)?, Pool::Max, 2, 0, Activation::Identity)?;
        let pool_192 = average(&x)?;
        let x = self.middle.iter().try_fold(x, |x, mixed| mixed.forward(&x))?;
        let pool_768 = average(&x)?;
        let x = self.last.iter().try_fold(x, |x, mixed| mixed.forward(&x))?;
        let pool_2048 = average(&x)?;
        let logits_unbiased = pool_2048.matmul(&self.fc_weight.transpose(0, D::Minus1)?)?;
        let logits = logits_unbiased.broadcast_add(&self.fc_bias)?;
        let host = |x: Tensor| x.to_device(&Device::Cpu);
        Ok(Taps {
            pool_64: host(pool_64)?,
            pool_192: host(pool_192)?,
            pool_768: host(pool_768)?,
            pool_2048: host(pool_2048)?,
            logits_unbiased: host(logits_unbiased)?,
            logits: host(logits)?,
        })
    }
}

/// Takes tensors out of the file and checks them.
pub(crate) struct Loader<'a> {
    pub(crate) tensors: Tensors<'a>,
    config: InceptionConfig,
    device: Device,
}

impl<'a> Loader<'a> {
    /// Finds out the network's shape, and refuses files of other networks.
    pub(crate) fn new(file: WeightsFile<'a>, path: &Path) -> Result<Self> {
        let config = InceptionConfig::resolve(path, file.metadata())?;
        file.refuse_other_networks(config, path)?;
        Ok(Self { tensors: Tensors::new(file, path), config, device: Device::Cpu })
    }

    pub(crate) fn network(&mut self, device: &Device) -> Result<Inception> {
        self.device = device.clone();
        let c = |full| self.config.channels(full);
        let first = vec![
            ("Conv2d_1a_3x3", 3, c(32), (3, 3), 2, (0, 0)),
            ("Conv2d_2a_3x3", c(32), c(32), (3, 3), 1, (0, 0)),
            ("Conv2d_2b_3x3", c(32), c(64), (3, 3), 1, (1, 1)),
        ];
        let second = vec![("Conv2d_3b_1x1", c(64), c(80), (1, 1), 1, (0, 0)), ("Conv2d_4a_3x3", c(80), c(192), (3, 3), 1, (0, 0))];
        let mut stem = [Chain::new(), Chain::new()];
        for (chain, rows) in stem.iter_mut().zip([first, second]) {
            for (name, from, to, kernel, stride, padding) in rows {
                chain.push(self.block(name, from, to, kernel, stride, padding)?);
            }
        }
        // The channel count is carried along, since a concatenation of scaled counts is not the
        // scaled concatenation when rounding happens.
        let mut n = self.config.channels(192);
        let middle = vec![
            self.a("Mixed_5b", &mut n, 32)?,
            self.a("Mixed_5c", &mut n, 64)?,
            self.a("Mixed_5d", &mut n, 64)?,
            self.b("Mixed_6a", &mut n)?,
            self.c("Mixed_6b", &mut n, 128)?,
            self.c("Mixed_6c", &mut n, 160)?,
            self.c("Mixed_6d", &mut n, 160)?,
            self.c("Mixed_6e", &mut n, 192)?,
        ];
        let last = vec![
            self.d("Mixed_7a", &mut n)?,
            self.e("Mixed_7b", &mut n, Pool::Average)?,
            // A quirk of the 2015 graph; torchvision averages here.
            self.e("Mixed_7c", &mut n, Pool::Max)?,
        ];
        let classes = self.config.num_classes;
        let fc_weight = self.tensors.take("fc.weight", &[classes, n])?;
        let fc_bias = self.tensors.take("fc.bias", &[classes])?;
        self.tensors.refuse_unknown(|key| self.config.num_groups.is_some() && key.starts_with("fc_"))?;
        Ok(Inception {
            config: self.config,
            digest: self.tensors.digest(),
            stem,
            middle,
            last,
            fc_weight: Tensor::from_vec(fc_weight, (classes, n), device)?,
            fc_bias: Tensor::from_vec(fc_bias, classes, device)?,
        })
    }

    /// 1×1 ‖ 5×5 ‖ double 3×3 ‖ average pool, at 35 × 35.
    fn a(&mut self, name: &str, n: &mut usize, pool: usize) -> Result<Mixed> {
        let c = |full| self.config.channels(full);
        let (c48, c64, c96, pool) = (c(48), c(64), c(96), c(pool));
        let from = std::mem::replace(n, c64 + c64 + c96 + pool);
        let mut block = |branch: &str, from, to, k| self.same(name, branch, from, to, (k, k));
        Ok(Mixed(vec![
            Branch::Convs(vec![block("branch1x1", from, c64, 1)?]),
            Branch::Convs(vec![block("branch5x5_1", from, c48, 1)?, block("branch5x5_2", c48, c64, 5)?]),
            Branch::Convs(vec![
                block("branch3x3dbl_1", from, c64, 1)?,
                block("branch3x3dbl_2", c64, c96, 3)?,
                block("branch3x3dbl_3", c96, c96, 3)?,
            ]),
            Branch::Pooled(Pool::Average, block("branch_pool", from, pool, 1)?),
        ]))
    }

    /// Reduction from 35 × 35 to 17 × 17.
    fn b(&mut self, name: &str, n: &mut usize) -> Result<Mixed> {
        let c = |full| self.config.channels(full);
        let (c64, c96, c384) = (c(64), c(96), c(384));
        let from = std::mem::replace(n, c384 + c96 + *n);
        Ok(Mixed(vec![
            Branch::Convs(vec![self.halve(name, "branch3x3", from, c384)?]),
            Branch::Convs(vec![
                self.same(name, "branch3x3dbl_1", from, c64, (1, 1))?,
                self.same(name, "branch3x3dbl_2", c64, c96, (3, 3))?,
                self.halve(name, "branch3x3dbl_3", c96, c96)?,
            ]),
            Branch::Reduce,
        ]))
    }

    /// 1×1 ‖ factorised 7×7 ‖ double factorised 7×7 ‖ average pool, at 17 × 17.
    fn c(&mut self, name: &str, n: &mut usize, inner: usize) -> Result<Mixed> {
        let (inner, out) = (self.config.channels(inner), self.config.channels(192));
        let from = std::mem::replace(n, 4 * out);
        let mut block = |branch: &str, from, to, kernel| self.same(name, branch, from, to, kernel);
        Ok(Mixed(vec![
            Branch::Convs(vec![block("branch1x1", from, out, (1, 1))?]),
            Branch::Convs(vec![
                block("branch7x7_1", from, inner, (1, 1))?,
                block("branch7x7_2", inner, inner, (1, 7))?,
                block("branch7x7_3", inner, out, (7, 1))?,
            ]),
            Branch::Convs(vec![
                block("branch7x7dbl_1", from, inner, (1, 1))?,
                block("branch7x7dbl_2", inner, inner, (7, 1))?,
                block("branch7x7dbl_3", inner, inner, (1, 7))?,
                block("branch7x7dbl_4", inner, inner, (7, 1))?,
                block("branch7x7dbl_5", inner, out, (1, 7))?,
            ]),
            Branch::Pooled(Pool::Average, block("branch_pool", from, out, (1, 1))?),
        ]))
    }

    /// Reduction from 17 × 17 to 8 × 8.
    fn d(&mut self, name: &str, n: &mut usize) -> Result<Mixed> {
        let (c192, c320) = (self.config.channels(192), self.config.channels(320));
        let from = std::mem::replace(n, c320 + c192 + *n);
        Ok(Mixed(vec![
            Branch::Convs(vec![self.same(name, "branch3x3_1", from, c192, (1, 1))?, self.halve(name, "branch3x3_2", c192, c320)?]),
            Branch::Convs(vec![
                self.same(name, "branch7x7x3_1", from, c192, (1, 1))?,
                self.same(name, "branch7x7x3_2", c192, c192, (1, 7))?,
                self.same(name, "branch7x7x3_3", c192, c192, (7, 1))?,
                self.halve(name, "branch7x7x3_4", c192, c192)?,
            ]),
            Branch::Reduce,
        ]))
    }

    /// 1×1 ‖ forked 3×3 ‖ forked double 3×3 ‖ pool, at 8 × 8.
    fn e(&mut self, name: &str, n: &mut usize, pool: Pool) -> Result<Mixed> {
        let c = |full| self.config.channels(full);
        let (c192, c320, c384, c448) = (c(192), c(320), c(384), c(448));
        let from = std::mem::replace(n, c320 + 4 * c384 + c192);
        let mut block = |branch: &str, from, to, kernel| self.same(name, branch, from, to, kernel);
        Ok(Mixed(vec![
            Branch::Convs(vec![block("branch1x1", from, c320, (1, 1))?]),
            Branch::Fork(
                vec![block("branch3x3_1", from, c384, (1, 1))?],
                [block("branch3x3_2a", c384, c384, (1, 3))?, block("branch3x3_2b", c384, c384, (3, 1))?],
            ),
            Branch::Fork(
                vec![block("branch3x3dbl_1", from, c448, (1, 1))?, block("branch3x3dbl_2", c448, c384, (3, 3))?],
                [block("branch3x3dbl_3a", c384, c384, (1, 3))?, block("branch3x3dbl_3b", c384, c384, (3, 1))?],
            ),
            Branch::Pooled(pool, block("branch_pool", from, c192, (1, 1))?),
        ]))
    }

    /// A block that keeps the image's size.
    fn same(&mut self, mixed: &str, branch: &str, from: usize, to: usize, kernel: (usize, usize)) -> Result<ConvBlock> {
        let padding = (kernel.0 / 2, kernel.1 / 2);
        self.block(&format!("{mixed}.{branch}"), from, to, kernel, 1, padding)
    }

    /// A 3×3 block of stride 2 without padding.
    fn halve(&mut self, mixed: &str, branch: &str, from: usize, to: usize) -> Result<ConvBlock> {
        self.block(&format!("{mixed}.{branch}"), from, to, (3, 3), 2, (0, 0))
    }

    /// y = γ (w∗x − μ) / √(σ² + ε) + β, folded in `f64` to w' = s·w and b' = β − s·μ.
    fn block(
        &mut self,
        name: &str,
        from: usize,
        to: usize,
        kernel: (usize, usize),
        stride: usize,
        padding: (usize, usize),
    ) -> Result<ConvBlock> {
        let shape = [to, from, kernel.0, kernel.1];
        let mut weight = self.tensors.take(&format!("{name}.conv.weight"), &shape)?;
        let mut bn = |part: &str| self.tensors.take(&format!("{name}.bn.{part}"), &[to]);
        let (gamma, beta) = (bn("weight")?, bn("bias")?);
        let (mean, variance) = (bn("running_mean")?, bn("running_var")?);
        let mut bias = Vec::with_capacity(to);
        for (o, filter) in weight.chunks_exact_mut(from * kernel.0 * kernel.1).enumerate() {
            let scale = f64::from(gamma[o]) / (f64::from(variance[o]) + BN_EPSILON).sqrt();
            filter.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
            bias.push((f64::from(beta[o]) - scale * f64::from(mean[o])) as f32);
        }
        Ok(ConvBlock {
            weight: ConvWeight::new(&Tensor::from_vec(weight, &shape, &self.device)?, Precision::F32)?,
            bias: Tensor::from_vec(bias, to, &self.device)?,
            stride,
            padding,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::Profile;
    use crate::test_data::{formula_image, golden, hashed, json, max_difference, tensors};

    /// Every tensor of a network, as `(key, shape)`, found by letting the loader ask for them.
    fn keys(config: InceptionConfig) -> Vec<(String, Vec<usize>)> {
        let mut known: Vec<(String, Vec<usize>)> = Vec::new();
        // `width` in the metadata wins over files on disk, so the path is only a name.
        loop {
            let bytes = file(config, &known, |_, shape| vec![1.0; shape.iter().product()]);
            match Inception::from_bytes(&bytes, Path::new("test.safetensors")) {
                Err(Error::MissingTensor { key, expected, .. }) => known.push((key, expected)),
                result => {
                    result.unwrap();
                    return known;
                }
            }
        }
    }

    fn file(config: InceptionConfig, keys: &[(String, Vec<usize>)], values: impl Fn(&str, &[usize]) -> Vec<f32>) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            keys.iter().map(|(key, shape)| values(key, shape).iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = keys.iter().zip(&bytes).map(|((key, shape), bytes)| {
            let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes);
            (key, view.unwrap())
        });
        let entry = |k: &str, v: String| (k.to_owned(), v);
        let metadata = [entry("width", config.width.to_string()), entry("num_classes", config.num_classes.to_string())];
        safetensors::serialize(views, Some(metadata.into())).unwrap()
    }

    /// The published key names and shapes, from the list that the weight rule was made with.
    fn published_keys() -> Vec<(String, Vec<usize>)> {
        let sample = json("inception_shapes.json");
        let shape = |v: &serde_json::Value| serde_json::from_value(v.clone()).unwrap();
        sample.as_object().unwrap().iter().map(|(k, v)| (k.clone(), shape(v))).collect()
    }

    fn fan_in(shape: &[usize]) -> f64 {
        shape[1..].iter().product::<usize>() as f64
    }

    /// The rule of `tests/data/README.md`.
    fn rule(key: &str, shape: &[usize]) -> Vec<f32> {
        let (offset, scale) = if key.ends_with("conv.weight") {
            (0.0, (6.0 / fan_in(shape)).sqrt())
        } else if key.ends_with("bn.weight") {
            (1.0, 0.25)
        } else if key.ends_with("running_var") {
            (1.0, 0.4)
        } else if key == "fc.weight" {
            (0.0, (3.0f64 / 2048.0).sqrt())
        } else {
            (0.0, 0.1)
        };
        (0..shape.iter().product::<usize>() as u64)
            .map(|i| {
                let s = 2.0 * ((hashed(key, i) >> 40) as f64 / f64::from(1 << 24)) - 1.0;
                (offset + scale * s) as f32
            })
            .collect()
    }

    /// The second rule, of `golden.json`: 32-bit hashes of (tensor index, element index).
    fn second_rule(t: usize, key: &str, shape: &[usize]) -> Vec<f32> {
        let uniform = |i: usize| {
            let mut h = (i as u32).wrapping_mul(2_654_435_761);
            h = h.wrapping_add((t as u32 + 1).wrapping_mul(2_246_822_519));
            h = (h ^ (h >> 15)).wrapping_mul(2_246_822_519);
            h = (h ^ (h >> 13)).wrapping_mul(3_266_489_917);
            f64::from(h ^ (h >> 16)) / 4_294_967_296.0
        };
        let value = |u: f64| {
            if key.ends_with("conv.weight") {
                (u - 0.5) * 2.0 * (6.0 / fan_in(shape)).sqrt()
            } else if key.ends_with("bn.weight") {
                1.0
            } else if key.ends_with("running_var") {
                0.5 + u
            } else {
                (u - 0.5) * if key == "fc.weight" { 0.1 } else { 0.2 }
            }
        };
        (0..shape.iter().product()).map(|i| value(uniform(i)) as f32).collect()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn forward(network: &Inception, profile: Profile, image: &crate::Image) -> Taps {
        let x = profile.apply(image, Inception::SIDE).unwrap();
        network.forward(&Tensor::from_vec(x, (1, 3, 299, 299), &Device::Cpu).unwrap()).unwrap()
    }

    fn named(taps: &Taps) -> [(&'static str, Vec<f32>); 6] {
        [
            ("64", values(&taps.pool_64)),
            ("192", values(&taps.pool_192)),
            ("768", values(&taps.pool_768)),
            ("2048", values(&taps.pool_2048)),
            ("logits_unbiased", values(&taps.logits_unbiased)),
            ("logits", values(&taps.logits)),
        ]
    }

    #[test]
    fn taps_of_the_reference_implementations() {
        let bytes = file(InceptionConfig::FULL, &published_keys(), rule);
        let network = Inception::from_bytes(&bytes, Path::new("rule.safetensors")).unwrap();
        let references = tensors("inception_features.safetensors");
        let sizes = [(64, 64), (96, 128), (299, 299), (360, 330)];
        let mut compared = 0;
        for (i, (height, width)) in sizes.into_iter().enumerate() {
            let image = formula_image(i as u64 + 1, height, width);
            let profiles = [("tf", Profile::TorchFidelity), ("pf", Profile::PytorchFid), ("cf", Profile::Clean)];
            for (tool, profile) in profiles {
                for (tap, values) in named(&forward(&network, profile, &image)) {
                    let key = format!("{tool}.{i}.{tap}");
                    let Some((_, expected)) = references.get(&key) else {
                        continue;
                    };
                    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
                    let relative = max_difference(&values, expected) / largest;
                    eprintln!("{key}: relative {relative:.1e}");
                    assert!(relative < 1e-5, "{key}: {relative:e}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 4 * (6 + 4 + 1));
    }

    #[test]
    fn taps_under_the_second_weight_rule() {
        let golden = golden();
        let mut keys = published_keys();
        keys.sort();
        assert_eq!(golden["inception_key_index"]["100"], keys[100].0);
        let index: HashMap<_, _> = keys.iter().enumerate().map(|(t, (k, _))| (&**k, t)).collect();
        let bytes = file(InceptionConfig::FULL, &keys, |k, shape| second_rule(index[k], k, shape));
        let network = Inception::from_bytes(&bytes, Path::new("rule.safetensors")).unwrap();
        let pixel = |i: usize| {
            let (x, y, c) = (i / 3 % 48, i / 3 / 48, i % 3);
            ((5 * x + 3 * y + 40 * c + x * y / (c + 2)) % 256) as u8
        };
        let image = crate::Image::new(48, 64, (0..3 * 48 * 64).map(pixel).collect()).unwrap();
        for (tap, values) in named(&forward(&network, Profile::TorchFidelity, &image)) {
            let expected = &golden[format!("inception_{tap}")];
            let largest = expected["abs_max"].as_f64().unwrap();
            for (i, expected) in expected["first8"].as_array().unwrap().iter().enumerate() {
                let difference = (f64::from(values[i]) - expected.as_f64().unwrap()).abs();
                assert!(difference < 1e-5 * largest, "{tap}[{i}]: {difference:e}");
            }
            let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
            assert!((sum - expected["sum"].as_f64().unwrap()).abs() < 1e-3, "{tap}: {sum}");
        }
    }

    const NARROW: InceptionConfig = InceptionConfig { width: 0.125, num_classes: 10, num_groups: None };

    /// A weights file of an eighth of the width.
    pub(crate) fn narrow_file() -> Vec<u8> {
        file(NARROW, &keys(NARROW), rule)
    }

    /// A network of an eighth of the width has the published keys and scaled shapes.
    #[test]
    fn narrow_networks_load_and_run_in_batches() {
        let config = InceptionConfig { width: 0.125, num_classes: 10, num_groups: None };
        assert_eq!(config.feature_dim(), 256);
        let mut keys = keys(config);
        let published = published_keys();
        assert_eq!(keys.len(), published.len());
        let bytes = file(config, &keys, rule);
        let network = Inception::from_bytes(&bytes, Path::new("narrow.safetensors")).unwrap();
        let images = [1, 2].map(|seed| Profile::Clean.apply(&formula_image(seed, 40, 50), Inception::SIDE).unwrap());
        let both = Tensor::from_vec(images.concat(), (2, 3, 299, 299), &Device::Cpu).unwrap();
        let both = values(&network.forward(&both).unwrap().pool_2048);
        for (image, expected) in images.iter().zip(both.chunks(256)) {
            let x = Tensor::from_slice(image, (1, 3, 299, 299), &Device::Cpu).unwrap();
            assert_eq!(values(&network.forward(&x).unwrap().pool_2048), expected);
        }
        let small = Tensor::zeros((1, 3, 74, 299), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(network.forward(&small), Err(Error::InputShape { .. })));

        let load = |keys: &[(String, Vec<usize>)]| {
            Inception::from_bytes(&file(config, keys, rule), Path::new("a.safetensors")).unwrap_err().to_string()
        };
        keys.push(("extra.weight".to_owned(), vec![1]));
        assert_eq!(load(&keys), "a.safetensors: tensor extra.weight is not part of the network");
        keys.pop();
        let place = keys.iter().position(|(k, _)| k == "Mixed_7b.branch1x1.bn.bias").unwrap();
        keys[place].1 = vec![39];
        let expected = "a.safetensors: tensor Mixed_7b.branch1x1.bn.bias should be F32[40], \
                        found F32[39]";
        assert_eq!(load(&keys), expected);
        keys.remove(place);
        let expected = "a.safetensors has no tensor Mixed_7b.branch1x1.bn.bias \
                        (expected shape [40])";
        assert_eq!(load(&keys), expected);
    }

    #[test]
    fn broken_files_are_named() {
        let error = Inception::from_bytes(b"not safetensors", Path::new("x.bin")).unwrap_err();
        assert!(error.to_string().starts_with("x.bin is truncated"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"width":1,"wide":2}"#).unwrap();
        let weights = safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView<'_>)>::new(), None);
        std::fs::write(dir.path().join("w.safetensors"), weights.unwrap()).unwrap();
        let error = Inception::load(&dir.path().join("w.safetensors")).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("wide"), "{error}");
    }
}
