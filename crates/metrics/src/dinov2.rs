//! DINOv2: the features of FD-DINOv2, the Fréchet distance of Stein et al. (arXiv:2306.04675).
//!
//! [`Dinov2::load`] reads transformers' `Dinov2Model` folders without registers: `facebook/dinov2-small`,
//! `-base`, `-large` (the published metric) and `-giant`. The network computes what the *original* code
//! does with these weights, as dgm-eval runs it through `torch.hub`. transformers' class is not the same
//! at 224 pixels: it resamples the 37 × 37 position embeddings to `size=(16, 16)`, the original by
//! `scale_factor=16.1/37`, which moves every sampling point (the 0.1 kept the output size from falling
//! short by rounding). Both are bicubic with a = −0.75 and without antialiasing; the features differ
//! visibly, and so would the distances.

use std::path::Path;

use candle_core::{Device, Tensor};
use scalebench_kernels as kernels;
use scalebench_kernels::{LinearWeight, Precision};

use crate::model_folder::{Section, Weights};
use crate::resize::{Filter, Raster, pillow_f32, pillow_u8};
use crate::{Error, Image, Result};

/// Mean and standard deviation of ImageNet's pixels, red first, for values in [0, 1].
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Side of FD-DINOv2's images in pixels.
const SIDE: usize = 224;

/// What the original code adds to the number of patches before it divides by the table's.
const OFFSET: f64 = 0.1;

/// The network with its weights, on the CPU in `f32`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use scalebench_metrics::Dinov2;
/// // A tiny one on random weights, with features of 48 numbers.
/// let network = Dinov2::load("tests/data/networks/dinov2".as_ref())?;
/// let black = Tensor::zeros((1, 3, network.side(), network.side()), DType::F32, &Device::Cpu)?;
/// assert_eq!((network.side(), network.features(&black)?.dims()), (224, &[1, 48][..]));
/// assert!(network.name().starts_with("dinov2/224x"));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
#[derive(Debug)]
pub struct Dinov2 {
    patch: usize,
    heads: usize,
    dim: usize,
    epsilon: f64,
    /// The convolution as a matrix, `(dim, 3 · patch · patch)`.
    patches: Linear,
    /// `(1, dim)`, its position embedding added.
    class: Tensor,
    /// `(m · m, dim)` for `m` × `m` patches.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    digest: String,
}

#[derive(Debug)]
struct Linear {
    weight: LinearWeight,
    bias: Tensor,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(x, &self.weight, Some(&self.bias))?)
    }
}

/// A linear layer as the file has it.
struct Stored {
    weight: Tensor,
    bias: Tensor,
}

impl Stored {
    fn take(weights: &mut Weights, key: &str, from: usize, to: usize) -> Result<Self> {
        Ok(Self { weight: weights.take(&format!("{key}.weight"), &[to, from])?, bias: weights.take(&format!("{key}.bias"), &[to])? })
    }

    /// The layer with its outputs multiplied by `scale` `(to)`.
    fn scaled(self, scale: &Tensor) -> Result<Self> {
        Ok(Self { weight: self.weight.broadcast_mul(&scale.unsqueeze(1)?)?, bias: (self.bias * scale)? })
    }

    /// The layer with `n` of its outputs from `first` on.
    fn part(&self, first: usize, n: usize) -> Result<Self> {
        Ok(Self { weight: self.weight.narrow(0, first, n)?.contiguous()?, bias: self.bias.narrow(0, first, n)?.contiguous()? })
    }

    fn linear(self) -> Result<Linear> {
        Ok(Linear { weight: LinearWeight::new(&self.weight, Precision::F32)?, bias: self.bias })
    }
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn take(weights: &mut Weights, key: &str, dim: usize) -> Result<Self> {
        Ok(Self { weight: weights.take(&format!("{key}.weight"), &[dim])?, bias: weights.take(&format!("{key}.bias"), &[dim])? })
    }

    fn forward(&self, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        Ok(kernels::layer_norm(x, &self.weight, &self.bias, epsilon)?)
    }
}

/// What follows the attention: a hidden layer with GELU, or the giant's with SwiGLU.
#[derive(Debug)]
enum FeedForward {
    Gelu { into: Linear, out: Linear },
    SwiGlu { gate: Linear, value: Linear, out: Linear },
}

/// A layer of the transformer; the layer scales are folded into the two last linear maps.
#[derive(Debug)]
struct Block {
    norm1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: Norm,
    feed_forward: FeedForward,
}

impl Block {
    fn take(weights: &mut Weights, at: &str, dim: usize, inner: usize, swiglu: bool) -> Result<Self> {
        let scale1 = weights.take(&format!("{at}.layer_scale1.lambda1"), &[dim])?;
        let scale2 = weights.take(&format!("{at}.layer_scale2.lambda1"), &[dim])?;
        let mut stored = |name: &str, from, to| Stored::take(weights, &format!("{at}.{name}"), from, to);
        let feed_forward = if swiglu {
            let both = stored("mlp.weights_in", dim, 2 * inner)?;
            let out = stored("mlp.weights_out", inner, dim)?.scaled(&scale2)?.linear()?;
            FeedForward::SwiGlu { gate: both.part(0, inner)?.linear()?, value: both.part(inner, inner)?.linear()?, out }
        } else {
            let into = stored("mlp.fc1", dim, inner)?.linear()?;
            FeedForward::Gelu { into, out: stored("mlp.fc2", inner, dim)?.scaled(&scale2)?.linear()? }
        };
        Ok(Self {
            query: stored("attention.attention.query", dim, dim)?.linear()?,
            key: stored("attention.attention.key", dim, dim)?.linear()?,
            value: stored("attention.attention.value", dim, dim)?.linear()?,
            out: stored("attention.output.dense", dim, dim)?.scaled(&scale1)?.linear()?,
            feed_forward,
            norm1: Norm::take(weights, &format!("{at}.norm1"), dim)?,
            norm2: Norm::take(weights, &format!("{at}.norm2"), dim)?,
        })
    }

    /// `x` is `(1, tokens, dim)`, and so is the result.
    fn forward(&self, x: &Tensor, heads: usize, epsilon: f64) -> Result<Tensor> {
        let h = self.norm1.forward(x, epsilon)?;
        let (q, k, v) = (self.query.forward(&h)?, self.key.forward(&h)?, self.value.forward(&h)?);
        let scale = 1.0 / ((h.dim(2)? / heads) as f64).sqrt();
        let x = (x + self.out.forward(&kernels::attention(&q, &k, &v, heads, scale, Precision::F32)?)?)?;
        let h = self.norm2.forward(&x, epsilon)?;
        let h = match &self.feed_forward {
            FeedForward::Gelu { into, out } => out.forward(&kernels::gelu(&into.forward(&h)?)?)?,
            FeedForward::SwiGlu { gate, value, out } => out.forward(&(kernels::silu(&gate.forward(&h)?)? * value.forward(&h)?)?)?,
        };
        Ok((x + h)?)
    }
}

impl Dinov2 {
    /// Loads a folder with `config.json` and `model.safetensors`, or the latter in shards with
    /// `model.safetensors.index.json`; `f16` and `bf16` are cast to `f32`.
    ///
    /// Errors name the configuration's key or the tensor that is missing, of another shape or unknown.
    /// Example: [`Dinov2`].
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_on(folder, &Device::Cpu)
    }

    /// [`load`](Self::load), onto a device.
    pub(crate) fn load_on(folder: &Path, device: &Device) -> Result<Self> {
        let config = Section::open(folder)?;
        config.must_be("model_type", &"dinov2".into())?;
        config.only("hidden_act", &"gelu".into())?;
        config.only("qkv_bias", &true.into())?;
        config.only("num_channels", &3.into())?;
        let dim = config.count("hidden_size", 768)?;
        let heads = config.count("num_attention_heads", 12)?;
        let layers = config.count("num_hidden_layers", 12)?;
        let (side, patch) = (config.count("image_size", 224)?, config.count("patch_size", 14)?);
        let epsilon = config.number("layer_norm_eps", 1e-6)?;
        let ratio = config.number("mlp_ratio", 4.0)?;
        let swiglu = config.flag("use_swiglu_ffn", false)?;
        if !dim.is_multiple_of(heads) {
            return Err(config.wrong("num_attention_heads", &format!("a divisor of hidden_size {dim}")));
        }
        if patch > side {
            return Err(config.wrong("patch_size", &format!("at most image_size {side}")));
        }
        if !(ratio > 0.0 && ratio <= 64.0) {
            return Err(config.wrong("mlp_ratio", "in (0, 64]"));
        }
        let inner = (dim as f64 * ratio) as usize;
        // Two thirds, in eights: SwiGLU has three matrices where GELU has two.
        let inner = if swiglu { (inner * 2 / 3).next_multiple_of(8) } else { inner };
        if inner == 0 {
            return Err(config.wrong("mlp_ratio", "large enough for one hidden channel"));
        }

        let mut weights = Weights::open(folder)?.on(device);
        let at = "embeddings.patch_embeddings.projection";
        let convolution = weights.take(&format!("{at}.weight"), &[dim, 3, patch, patch])?;
        let weight = convolution.reshape((dim, 3 * patch * patch))?;
        let patches = Stored { weight, bias: weights.take(&format!("{at}.bias"), &[dim])? }.linear()?;
        let m = side / patch;
        let positions = weights.take("embeddings.position_embeddings", &[1, 1 + m * m, dim])?.squeeze(0)?;
        let class = weights.take("embeddings.cls_token", &[1, 1, dim])?.squeeze(0)?;
        let class = (class + positions.narrow(0, 0, 1)?)?;
        let positions = positions.narrow(0, 1, m * m)?.contiguous()?;
        let block = |i| Block::take(&mut weights, &format!("encoder.layer.{i}"), dim, inner, swiglu);
        let blocks = (0..layers).map(block).collect::<Result<_>>()?;
        let norm = Norm::take(&mut weights, "layernorm", dim)?;
        let digest = weights.digest().to_owned();
        // What masked patches are in training.
        weights.finish(|key| key == "embeddings.mask_token")?;
        Ok(Self { patch, heads, dim, epsilon, patches, class, positions, blocks, norm, digest })
    }

    /// Side of FD-DINOv2's images in pixels: 224.
    /// Example: [`Dinov2`].
    pub fn side(&self) -> usize {
        SIDE
    }

    /// Values per feature.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// BLAKE3 of the weight files one after the other, in the order of their names; hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The network in a word, for provenance: `dinov2/224x14/1024` has side 224, patches of 14, 1024 values.
    /// Example: [`Dinov2`].
    pub fn name(&self) -> String {
        format!("dinov2/{SIDE}x{}/{}", self.patch, self.dim)
    }

    /// Features of preprocessed images `(batch, 3, side, side)`, `f32`: the class token after the last
    /// norm, `(batch, dim)`.
    ///
    /// The metric is defined at [`side`](Self::side), but any multiple of the patch will do. Each
    /// image's features are the same in any batch.
    /// Example: [`Dinov2`].
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, side) = match *images.dims() {
            [batch, 3, height, width] if batch > 0 && height == width && height > 0 && height.is_multiple_of(self.patch) => (batch, height),
            _ => {
                let expected = format!("(batch, 3, side, side) with a side that is a multiple of {}", self.patch);
                return Err(Error::NetworkInput { network: "dinov2", expected, found: images.dims().to_vec() });
            }
        };
        let (n, patch) = (side / self.patch, self.patch);
        let (images, positions) = (images.to_device(self.class.device())?, resample(&self.positions, n)?);
        let one = |i| {
            // The convolution's stride is its size, so it is a product with the cut out patches.
            let patches = images.narrow(0, i, 1)?.reshape(&[3, n, patch, n, patch])?.permute([1, 3, 0, 2, 4])?.contiguous()?;
            let x = (self.patches.forward(&patches.reshape((n * n, 3 * patch * patch))?)? + &positions)?;
            let mut x = Tensor::cat(&[&self.class, &x], 0)?.unsqueeze(0)?;
            for block in &self.blocks {
                x = block.forward(&x, self.heads, self.epsilon)?;
            }
            self.norm.forward(&x.narrow(1, 0, 1)?.squeeze(1)?, self.epsilon)
        };
        let features = (0..batch).map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&features, 0)?.to_device(&Device::Cpu)?)
    }
}

/// Position embeddings `(m · m, dim)` for `n` × `n` patches, `(n · n, dim)`: PyTorch's bicubic
/// `interpolate` with `scale_factor = (n + 0.1) / m`, or the table itself where `n` is `m`.
fn resample(table: &Tensor, n: usize) -> Result<Tensor> {
    let (rows, dim) = table.dims2()?;
    let m = rows.isqrt();
    if n == m {
        return Ok(table.clone());
    }
    // PyTorch samples at the inverse of the factor, in f32; the output size plays no part.
    let step = (1.0 / ((n as f64 + OFFSET) / m as f64)) as f32;
    let taps: Vec<[(usize, f32); 4]> = (0..n)
        .map(|i| {
            let centre = step * (i as f32 + 0.5) - 0.5;
            let first = centre.floor();
            let t = centre - first;
            let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
            std::array::from_fn(|k| ((first as i64 + k as i64 - 1).clamp(0, m as i64 - 1) as usize, weights[k]))
        })
        .collect();
    let device = table.device();
    let table = table.flatten_all()?.to_vec1::<f32>()?;
    let mut output = vec![0f32; n * n * dim];
    for (to, ys) in output.chunks_exact_mut(n * dim).zip(&taps) {
        for (to, xs) in to.chunks_exact_mut(dim).zip(&taps) {
            for &(y, wy) in ys {
                for &(x, wx) in xs {
                    let from = &table[(y * m + x) * dim..][..dim];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += wy * wx * from);
                }
            }
        }
    }
    Ok(Tensor::from_vec(output, (n * n, dim), device)?)
}

/// PyTorch's a in Keys' cubic; Pillow's is −0.5.
const A: f32 = -0.75;

/// Keys' cubic at a distance of at most 1.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// Keys' cubic at a distance from 1 to 2.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}

/// dgm-eval's preprocessing: Pillow's bicubic to `side` × `side` (224), whatever the aspect, then [0, 1], ImageNet's
/// mean and deviation. The resize works on 8 bits; on floats without rounding if `clean`, which is
/// dgm-eval's `--clean_resize`.
///
/// The horizontal pass comes first, as in every Pillow up to 12. Pillow 13 swaps the passes where the
/// height shrinks more than the width (pull request 9549), which moves 8-bit results by up to two levels.
///
/// Returns planes `(3, side, side)`, red first.
pub(crate) fn preprocess_to(image: &Image, side: usize, clean: bool) -> Result<Vec<f32>> {
    let raster = Raster::from(image);
    let scaled = if clean {
        pillow_f32(&raster.map(f32::from), side, side, Filter::Bicubic)?.map(|v| v.clamp(0.0, 255.0))
    } else {
        pillow_u8(&raster, side, side, Filter::Bicubic)?.map(f32::from)
    };
    let plane = |c: usize| scaled.pixels.iter().map(move |p| (p[c] / 255.0 - MEAN[c]) / DEVIATION[c]);
    Ok((0..3).flat_map(plane).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{assert_near, formula_image, max_difference, network_folder, tensors};
    use candle_core::{DType, IndexOp};

    fn inputs(side: usize) -> Tensor {
        let images = [formula_image(2, 96, 128), formula_image(5, 61, 37)];
        let planes = images.iter().flat_map(|image| preprocess_to(image, side, false).unwrap()).collect();
        Tensor::from_vec(planes, (2, 3, side, side), &Device::Cpu).unwrap()
    }

    /// GELU and SwiGLU; position embeddings reduced, kept and enlarged.
    #[test]
    fn features_equal_the_original_code() {
        let references = tensors("networks/goldens.safetensors");
        for name in ["dinov2", "dinov2-swiglu"] {
            let network = Dinov2::load(&network_folder(name)).unwrap();
            for side in [42, 70, SIDE] {
                let features = network.features(&inputs(side)).unwrap();
                assert_near(&format!("{name} {side}"), &features, &references[&format!("{name}.{side}")], 1e-5);
            }
        }
    }

    /// 37 × 37 to 16 × 16, as for the published networks; transformers' way is far from it.
    #[test]
    fn positions_equal_torch() {
        let references = tensors("networks/goldens.safetensors");
        let patches = |key: &str| {
            let (shape, data) = &references[key];
            Tensor::from_vec(data.clone(), shape.as_slice(), &Device::Cpu).unwrap().i((0, 1..)).unwrap()
        };
        let ours = resample(&patches("positions.37"), 16).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = |key: &str| patches(key).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = max_difference(&ours, &values("positions.16"));
        eprintln!("positions: {difference:e}");
        assert!(difference < 1e-5, "{difference}");
        assert!(max_difference(&ours, &values("positions.16.size")) > 0.1);
    }

    #[test]
    fn preprocessing_equals_the_tools() {
        let mut seen = 0;
        for (key, (shape, expected)) in tensors("networks/goldens.safetensors") {
            let (clean, rest) = match key.split_once('.') {
                Some(("dinov2", rest)) if rest.contains('x') => (false, rest),
                Some(("dinov2clean", rest)) => (true, rest),
                _ => continue,
            };
            let numbers: Vec<usize> = rest.split(['.', 'x']).map(|n| n.parse().unwrap()).collect();
            let whole = preprocess_to(&formula_image(numbers[0] as u64, numbers[1], numbers[2]), SIDE, clean).unwrap();
            // Every eleventh row and column is stored.
            let at = |i: usize| (i / (21 * 21) * SIDE + i / 21 % 21 * 11) * SIDE + i % 21 * 11;
            let ours: Vec<f32> = (0..3 * 21 * 21).map(|i| whole[at(i)]).collect();
            assert_eq!(shape, [3, 21, 21]);
            let difference = max_difference(&ours, &expected);
            assert!(difference <= 1e-6, "{key}: {difference}");
            seen += 1;
        }
        assert_eq!(seen, 12);
    }

    #[test]
    fn an_image_has_the_same_features_in_any_batch() {
        let network = Dinov2::load(&network_folder("dinov2")).unwrap();
        let both = inputs(70);
        let together = network.features(&both).unwrap().i(1).unwrap().to_vec1::<f32>().unwrap();
        let alone = network.features(&both.narrow(0, 1, 1).unwrap()).unwrap().i(0).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(together, alone);
    }

    #[test]
    fn names_are_for_provenance() {
        let network = Dinov2::load(&network_folder("dinov2")).unwrap();
        assert_eq!((network.name().as_str(), network.side(), network.dim()), ("dinov2/224x14/48", 224, 48));
        let file = std::fs::read(network_folder("dinov2").join("model.safetensors")).unwrap();
        assert_eq!(network.digest(), blake3::hash(&file).to_hex().as_str());
        let wrong = network.features(&Tensor::zeros((1, 3, 43, 43), DType::F32, &Device::Cpu).unwrap()).unwrap_err();
        assert!(wrong.to_string().contains("multiple of 14"), "{wrong}");
    }

    /// Every edit of a good folder is refused with a message that names what was edited.
    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let source = network_folder("dinov2");
        let config = std::fs::read_to_string(source.join("config.json")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
            config[key] = value;
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            Dinov2::load(dir.path())
        };
        with("hidden_dropout_prob", 0.1.into()).unwrap();
        for (key, value, expected) in [
            ("model_type", "dinov2_with_registers".into(), "`model_type` should be \"dinov2\""),
            ("hidden_act", "relu".into(), "`hidden_act`"),
            ("qkv_bias", false.into(), "`qkv_bias`"),
            ("num_attention_heads", 5.into(), "`num_attention_heads` should be a divisor of hidden_size 48"),
            ("mlp_ratio", (-1).into(), "`mlp_ratio`"),
            ("image_size", 84.into(), "tensor embeddings.position_embeddings should be"),
            ("use_swiglu_ffn", true.into(), "no tensor encoder.layer.0.mlp.weights_in.weight (expected shape [128, 48])"),
            ("num_hidden_layers", 2.into(), "tensor encoder.layer.2"),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} lacks {expected}");
        }
    }
}
