//! The I3D of Kinetics-400, whose logits FVD and KVD compare (Carreira & Zisserman, arXiv:1705.07750; Unterthiner et al.,
//! arXiv:1812.01717): Inception-v1 with kernels that reach over frames, at any width.
//!
//! Names and shapes are those of `i3d_pretrained_400.pt`, the PyTorch port that VideoGPT, LVDM, TATS and cd-fvd use. Its batch
//! normalisations have an epsilon of 1e-5 and the TensorFlow graph's 1e-3, so the epsilon is part of the network's name. Sides of every
//! convolution and pool are padded as TensorFlow's `SAME`: what is missing to `⌈n / stride⌉` outputs, the smaller half in front.
//!
//! Of a TorchScript archive, such as StyleGAN-V's `i3d_torchscript.pt`, the modules' tensors are read, and the norms' epsilon from the
//! program's text. Where tensors have neither these names nor hassony2's, their order and shapes decide; see [`name_modules`].
//!
//! Every channel count `c` becomes `max(1, round(c · width))`. What a file does not say itself comes from metadata of the safetensors
//! file, or from `config.json` beside it: `{"model_type": "i3d", "width": 0.25, "num_classes": 30, "bn_epsilon": 1e-5, "side": 64}`;
//! without either it is the published network.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use scalebench_kernels::{Activation, ConvGeometry, ConvWeight, Pool, Precision, conv2d, join_channels, pool3x3};
use serde::{Deserialize, Serialize};

use crate::files::read;
use crate::torch_file::TorchFile;
use crate::weights::{Tensors, WeightsFile};
use crate::{Error, Result};

/// What tells its files from others.
const FIRST_TENSOR: &str = "Conv3d_1a_7x7.conv3d.weight";

/// The same by the names of hassony2's port, and the epsilon that this port's class gives its norms: the TensorFlow graph's.
const HASSONY2: (&str, f64) = ("conv3d_1a_7x7.conv3d.weight", 1e-3);

/// Shape of a network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct I3dConfig {
    /// Channel multiplier; 1 is the published network.
    pub(crate) width: f64,
    /// Outputs; 400 in the published network.
    pub(crate) num_classes: usize,
    /// Epsilon of every batch normalisation: 1e-5 in the PyTorch port, 1e-3 in the TensorFlow graph.
    pub(crate) bn_epsilon: f64,
    /// Side of its input in pixels.
    pub(crate) side: usize,
}

impl Default for I3dConfig {
    fn default() -> Self {
        Self { width: 1.0, num_classes: 400, bn_epsilon: 1e-5, side: 224 }
    }
}

impl I3dConfig {
    fn channels(&self, full: usize) -> usize {
        ((full as f64 * self.width).round() as usize).max(1)
    }

    /// A TorchScript program has an epsilon of its own, which a configuration may not contradict; where its text does not say it, the
    /// configuration has to.
    fn resolve(path: &Path, file: &WeightsFile<'_>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Beside {
            #[serde(default)]
            model_type: String,
            #[serde(flatten)]
            rest: serde_json::Map<String, serde_json::Value>,
        }
        let bad = |path: &Path, message: String| Error::Config { path: path.to_owned(), message };
        let beside = path.with_file_name("config.json");
        let usual = Self { bn_epsilon: file.epsilon().unwrap_or(Self::default().bn_epsilon), ..Self::default() };
        let mut says_epsilon = false;
        let config = if let Some(metadata) = file.metadata().filter(|m| m.contains_key("bn_epsilon")) {
            let entry = |key: &str, default: f64| -> Result<f64> {
                let value = metadata.get(key).map_or(Ok(default), |v| v.parse());
                value.map_err(|e| bad(path, format!("metadata entry {key}: {e}")))
            };
            Self {
                width: entry("width", usual.width)?,
                num_classes: entry("num_classes", usual.num_classes as f64)? as usize,
                bn_epsilon: entry("bn_epsilon", usual.bn_epsilon)?,
                side: entry("side", usual.side as f64)? as usize,
            }
        } else if beside.is_file() {
            let mut text: Beside = serde_json::from_slice(&read(&beside)?).map_err(|e| bad(&beside, e.to_string()))?;
            match text.model_type.as_str() {
                "i3d" => {
                    says_epsilon = text.rest.contains_key("bn_epsilon");
                    text.rest.entry("bn_epsilon").or_insert_with(|| usual.bn_epsilon.into());
                    serde_json::from_value(text.rest.into()).map_err(|e| bad(&beside, e.to_string()))?
                }
                _ => usual,
            }
        } else {
            usual
        };
        let is_good = config.width > 0.0 && config.width <= 16.0 && config.num_classes > 0 && config.bn_epsilon > 0.0;
        if !is_good || config.side < 32 {
            return Err(bad(path, format!("{config:?} needs a width in (0, 16], classes, an epsilon above 0 and a side of at least 32")));
        }
        match file.epsilon().filter(|_| file.is_script()) {
            Some(own) if own != config.bn_epsilon => {
                let message = format!("bn_epsilon is {:e}, but the program of {} has {own:e}", config.bn_epsilon, path.display());
                Err(bad(&beside, message))
            }
            None if file.is_script() && !says_epsilon => {
                let expected = r#"expected {"model_type": "i3d", "bn_epsilon": …} in a config.json beside it"#;
                Err(bad(path, format!("the program's text does not say the epsilon of its batch normalisations, {expected}")))
            }
            _ => Ok(config),
        }
    }
}

/// Zeros in front of and behind `n` positions for `⌈n / stride⌉` outputs.
fn same_padding(n: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let total = if n.is_multiple_of(stride) { kernel.saturating_sub(stride) } else { kernel.saturating_sub(n % stride) };
    (total / 2, total - total / 2)
}

/// Zeros around a map as `SAME` has them, for one stride in both directions.
fn padded(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let ((top, bottom), (left, right)) = (same_padding(h, kernel, stride), same_padding(w, kernel, stride));
    Ok(x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?)
}

/// Convolution, batch normalisation (folded into it) and ReLU.
#[derive(Debug)]
struct Unit {
    /// `(outputs, taps over frames · inputs, k, k)`.
    weight: ConvWeight,
    bias: Tensor,
    /// Taps along each axis.
    kernel: usize,
    stride: usize,
}

impl Unit {
    /// `x` `(frames, channels, h, w)` of one video. The frames that a kernel reaches lie side by side as channels of one map.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (kernel, stride) = (self.kernel, self.stride);
        let x = if kernel == 1 {
            x.clone()
        } else {
            let frames = x.dim(0)?;
            let (front, back) = same_padding(frames, kernel, stride);
            let x = x.pad_with_zeros(0, front, back)?;
            let taps: Vec<Tensor> = (0..kernel)
                .map(|tap| {
                    let at: Vec<u32> = (0..frames.div_ceil(stride)).map(|t| (t * stride + tap) as u32).collect();
                    Ok(x.index_select(&Tensor::new(at, x.device())?, 0)?)
                })
                .collect::<Result<_>>()?;
            join_channels(&taps)?
        };
        // Odd kernels of stride 1 have as many zeros on every side.
        let (x, padding) = if stride == 1 { (x, kernel / 2) } else { (padded(&x, kernel, stride)?, 0) };
        let geometry = ConvGeometry { stride, padding: (padding, padding), dilation: 1 };
        Ok(conv2d(&x, &self.weight, Some(&self.bias), geometry, Activation::Relu)?)
    }
}

/// Largest values over `kernel` frames, every `stride`-th. Zeros around them change nothing: all values are at least 0.
fn max_over_frames(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let frames = x.dim(0)?;
    let (front, _) = same_padding(frames, kernel, stride);
    let of = |t: usize| -> Result<Tensor> {
        let (first, end) = ((t * stride).saturating_sub(front), (t * stride + kernel - front).min(frames));
        let mut largest = x.narrow(0, first, 1)?;
        for at in first + 1..end {
            largest = largest.maximum(&x.narrow(0, at, 1)?)?;
        }
        Ok(largest)
    };
    Ok(Tensor::cat(&(0..frames.div_ceil(stride)).map(of).collect::<Result<Vec<_>>>()?, 0)?)
}

/// The 3×3 pool of stride 2 inside every frame.
fn halved(x: &Tensor) -> Result<Tensor> {
    Ok(pool3x3(&padded(x, 3, 2)?, Pool::Max, 2, 0, Activation::Identity)?)
}

/// Four branches side by side: 1×1×1; twice 1×1×1 then 3×3×3; a pool then 1×1×1.
#[derive(Debug)]
struct Mixed {
    b0: Unit,
    b1: [Unit; 2],
    b2: [Unit; 2],
    b3b: Unit,
}

impl Mixed {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let two = |units: &[Unit; 2]| units[1].forward(&units[0].forward(x)?);
        let pooled = pool3x3(&max_over_frames(x, 3, 1)?, Pool::Max, 1, 1, Activation::Identity)?;
        Ok(join_channels(&[self.b0.forward(x)?, two(&self.b1)?, two(&self.b2)?, self.b3b.forward(&pooled)?])?)
    }
}

/// Outputs of the branches of each block: 1×1×1; 1×1×1 and 3×3×3, twice; behind the pool.
const MIXED: [(&str, [usize; 6]); 9] = [
    ("Mixed_3b", [64, 96, 128, 16, 32, 32]),
    ("Mixed_3c", [128, 128, 192, 32, 96, 64]),
    ("Mixed_4b", [192, 96, 208, 16, 48, 64]),
    ("Mixed_4c", [160, 112, 224, 24, 64, 64]),
    ("Mixed_4d", [128, 128, 256, 24, 64, 64]),
    ("Mixed_4e", [112, 144, 288, 32, 64, 64]),
    ("Mixed_4f", [256, 160, 320, 32, 128, 128]),
    ("Mixed_5b", [256, 160, 320, 32, 128, 128]),
    ("Mixed_5c", [384, 192, 384, 48, 128, 128]),
];

/// The network with its weights, in `f32`.
#[derive(Debug)]
pub(crate) struct I3d {
    config: I3dConfig,
    digest: String,
    /// `Conv3d_1a_7x7`; `Conv3d_2b_1x1` and `Conv3d_2c_3x3`.
    stem: [Unit; 3],
    mixed: Vec<Mixed>,
    /// `(classes, channels)`.
    logits: Tensor,
    bias: Tensor,
}

impl I3d {
    /// Fewest frames of a video: three times halved there must be two left.
    pub(crate) const FEWEST_FRAMES: usize = 9;

    /// Loads a safetensors file, a state dict by `torch.save` such as `i3d_pretrained_400.pt`, or a TorchScript archive. The content
    /// decides, and nothing in the file is run. Every tensor is checked for presence, shape, type (`f32`) and finite values, and the file for tensors that the
    /// network does not have; `num_batches_tracked` is ignored.
    pub(crate) fn load_on(path: &Path, device: &Device) -> Result<Self> {
        let bytes = read(path)?;
        Self::take(&mut Tensors::new(WeightsFile::open(&bytes, path)?, path), device)
    }

    /// Whether a file holds this network, by the name of its first tensor.
    pub(crate) fn is_meant(file: &WeightsFile<'_>) -> bool {
        file.info(FIRST_TENSOR).is_some()
    }

    pub(crate) fn take(tensors: &mut Tensors<'_>, device: &Device) -> Result<Self> {
        let config = I3dConfig::resolve(&tensors.path, &tensors.file)?;
        let c = |full| config.channels(full);
        let mut unit = |name: &str, from, to, kernel, stride| unit(tensors, config.bn_epsilon, name, (from, to), (kernel, stride), device);
        let stem = [
            unit("Conv3d_1a_7x7", 3, c(64), 7, 2)?,
            unit("Conv3d_2b_1x1", c(64), c(64), 1, 1)?,
            unit("Conv3d_2c_3x3", c(64), c(192), 3, 1)?,
        ];
        let (mut from, mut mixed) = (c(192), Vec::new());
        for (name, outputs) in MIXED {
            let [b0, b1a, b1b, b2a, b2b, b3b] = outputs.map(c);
            let mut branch = |branch: &str, from, to, kernel| unit(&format!("{name}.{branch}"), from, to, kernel, 1);
            mixed.push(Mixed {
                b0: branch("b0", from, b0, 1)?,
                b1: [branch("b1a", from, b1a, 1)?, branch("b1b", b1a, b1b, 3)?],
                b2: [branch("b2a", from, b2a, 1)?, branch("b2b", b2a, b2b, 3)?],
                b3b: branch("b3b", from, b3b, 1)?,
            });
            from = b0 + b1b + b2b + b3b;
        }
        let classes = config.num_classes;
        let logits = tensors.take("logits.conv3d.weight", &[classes, from, 1, 1, 1])?;
        let bias = tensors.take("logits.conv3d.bias", &[classes])?;
        tensors.refuse_unknown(|_| false)?;
        Ok(Self {
            config,
            digest: tensors.digest(),
            stem,
            mixed,
            logits: Tensor::from_vec(logits, (classes, from), device)?,
            bias: Tensor::from_vec(bias, classes, device)?,
        })
    }

    /// The network's shape.
    pub(crate) fn config(&self) -> I3dConfig {
        self.config
    }

    /// BLAKE3 of the tensors' names and values, hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The name that feature files carry.
    pub(crate) fn name(&self) -> String {
        format!("i3d/w{}/eps{:e}", self.config.width, self.config.bn_epsilon)
    }

    /// Logits of one video `(frames, 3, side, side)`, `f32` in [−1, 1], averaged over the times that are left: `(classes)`, on the CPU.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let side = self.config.side;
        match *x.dims() {
            [frames, 3, h, w] if frames >= Self::FEWEST_FRAMES && (h, w) == (side, side) => {}
            _ => {
                let expected = format!("(frames >= {}, 3, {side}, {side})", Self::FEWEST_FRAMES);
                return Err(Error::NetworkInput { network: "I3D", expected, found: x.dims().to_vec() });
            }
        }
        let mut x = halved(&self.stem[0].forward(&x.to_device(self.bias.device())?)?)?;
        x = halved(&self.stem[2].forward(&self.stem[1].forward(&x)?)?)?;
        for (i, mixed) in self.mixed.iter().enumerate() {
            match i {
                2 => x = halved(&max_over_frames(&x, 3, 2)?)?,
                7 => x = padded(&max_over_frames(&x, 2, 2)?, 2, 2)?.contiguous()?.max_pool2d(2)?,
                _ => {}
            }
            x = mixed.forward(&x)?;
        }
        // Means of two frames each, of their logits: the mean with the first and the last frame counted half.
        let frames = x.mean((2, 3))?;
        let times = frames.dim(0)? - 1;
        let pairs = ((frames.narrow(0, 0, times)? + frames.narrow(0, 1, times)?)? * 0.5)?;
        let logits = pairs.mean_keepdim(0)?.matmul(&self.logits.t()?)?.squeeze(0)?;
        Ok((logits + &self.bias)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
    }
}

/// A convolution of a TorchScript archive and what stands behind it.
#[derive(Default)]
struct Found {
    /// Name of its weight.
    conv: String,
    /// `[outputs, inputs, frames, height, width]`.
    shape: Vec<usize>,
    /// The vectors up to the next convolution, by what they are to the norm, and their names and lengths.
    vectors: Vec<(&'static str, String, usize)>,
}

impl Found {
    fn has(&self, part: &str) -> bool {
        self.vectors.iter().any(|(found, ..)| *found == part)
    }
}

/// What a vector is to a batch normalisation, by the last part of its name.
fn part(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let parts = [
        ("running_mean", &["mean"][..]),
        ("running_var", &["var"]),
        ("bias", &["bias", "beta"]),
        ("weight", &["weight", "gamma", "scale"]),
    ];
    parts.into_iter().find(|(_, words)| words.iter().any(|word| last.contains(word))).map(|(part, _)| part)
}

/// What this network calls a tensor of hassony2's port; `None` if the port has no such tensor.
fn from_hassony2(name: &str) -> Option<String> {
    let mut ends = name.rsplitn(3, '.');
    let (part, module, layer) = (ends.next()?, ends.next()?, ends.next()?);
    let module = match module {
        "conv3d" => module,
        "batch3d" => "bn",
        _ => return None,
    };
    let capital = |layer: &str| layer.replacen("conv3d", "Conv3d", 1).replacen("mixed", "Mixed", 1);
    let layer = match layer.split_once(".branch_") {
        // The fourth branch starts with its pool.
        Some((mixed, branch)) => {
            let branches = [("0", "b0"), ("1.0", "b1a"), ("1.1", "b1b"), ("2.0", "b2a"), ("2.1", "b2b"), ("3.1", "b3b")];
            let (_, branch) = branches.into_iter().find(|(theirs, _)| *theirs == branch)?;
            format!("{}.{branch}", capital(mixed))
        }
        None if layer == "conv3d_0c_1x1" => "logits".to_owned(),
        None => capital(layer),
    };
    Some(format!("{layer}.{module}.{part}"))
}

/// Gives the tensors of an I3D this network's names, and says the epsilon of its norms where the file tells it; other files stay as they
/// are.
///
/// Where the first convolution has its name here or in hassony2's port, in a TorchScript archive perhaps after a prefix, names decide.
/// Elsewhere the order of an archive's attributes does, with all shapes checked: 57 convolutions, each followed by its norm's mean, variance, offset and perhaps factor (without it, ones), in the
/// order of [`MIXED`] and its branches; and, anywhere, one convolution with a bias and no norm, which gives the logits.
pub(crate) fn name_modules(file: &mut TorchFile<'_>) -> std::result::Result<Option<f64>, String> {
    let shape = |name: &str| file.info(name).map_or_else(Vec::new, |(_, shape)| shape.to_vec());
    let Some(script) = file.script() else {
        if shape(HASSONY2.0).len() != 5 {
            return Ok(None);
        }
        let names = file.names().filter_map(|name| Some((name.to_owned(), from_hassony2(name)?))).collect();
        return file.rename(names).map(|()| Some(HASSONY2.1));
    };
    let order = &script.order;
    if !order.iter().any(|name| shape(name).len() == 5) {
        return Ok(None);
    }
    let epsilon = match script.epsilons[..] {
        [] => None,
        [one] => Some(one),
        [one, other, ..] => return Err(format!("batch normalisations have epsilons {one:e} and {other:e}, expected one for all of I3D")),
    };
    let prefix =
        |first: &str| order.iter().find_map(|name| name.strip_suffix(first)).filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
    let renamed = |prefix: &str, new: fn(&str) -> Option<String>| {
        order.iter().filter_map(|name| Some((name.clone(), new(name.strip_prefix(prefix)?)?))).collect()
    };
    let by_name = prefix(FIRST_TENSOR).map(|prefix| renamed(prefix, |name| Some(name.to_owned())));
    if let Some(names) = by_name.or_else(|| prefix(HASSONY2.0).map(|prefix| renamed(prefix, from_hassony2))) {
        return file.rename(names).map(|()| epsilon);
    }
    let mut found: Vec<Found> = Vec::new();
    for name in order {
        let shape = shape(name);
        match (shape.len(), found.last_mut()) {
            (5, _) => found.push(Found { conv: name.clone(), shape, vectors: Vec::new() }),
            (1, Some(conv)) => {
                let part = part(name).filter(|part| !conv.has(part));
                let part =
                    part.ok_or_else(|| format!("I3D has no place for {name}, expected one mean, variance and offset a convolution"))?;
                conv.vectors.push((part, name.clone(), shape[0]));
            }
            // Counters of batches.
            (0, _) => {}
            _ => {
                return Err(format!(
                    "I3D has no place for {name} of shape {shape:?}, expected convolutions over frames, each before its norm"
                ));
            }
        }
    }
    let (units, heads): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|conv| conv.has("running_mean"));
    let expected = 3 + 6 * MIXED.len();
    let (n, [head]) = (units.len(), &heads[..]) else {
        return Err(format!("{} convolutions over frames have no norm, expected I3D's one, of the logits", heads.len()));
    };
    if n != expected {
        return Err(format!("{n} convolutions over frames have a norm, expected I3D's {expected}"));
    }
    let (mut names, mut ones, mut units) = (Vec::new(), Vec::new(), units.into_iter());
    let mut place = |found: &Found, name: &str, from: usize, kernel: usize, parts: &[&str]| -> std::result::Result<usize, String> {
        let (conv, to) = (&found.conv, found.shape[0]);
        if found.shape[1..] != [from, kernel, kernel, kernel] {
            let expected = format!("[{to}, {from}, {kernel}, {kernel}, {kernel}] of {name}");
            return Err(format!("{conv} has shape {:?}, expected {expected}", found.shape));
        }
        names.push((conv.clone(), format!("{name}.conv3d.weight")));
        let module = if parts.len() == 1 { "conv3d" } else { "bn" };
        for part in parts {
            let new = format!("{name}.{module}.{part}");
            match found.vectors.iter().find(|(found, ..)| found == part) {
                Some((_, old, len)) if *len == to => names.push((old.clone(), new)),
                Some((_, old, len)) => return Err(format!("{old} has shape [{len}], expected [{to}] of {new}")),
                None if *part == "weight" => ones.push((new, to)),
                None => return Err(format!("nothing behind {conv} is {new}, expected shape [{to}]")),
            }
        }
        Ok(to)
    };
    let mut unit = |name: &str, from: usize, kernel: usize| {
        let found = units.next().unwrap_or_default();
        place(&found, name, from, kernel, &["weight", "bias", "running_mean", "running_var"])
    };
    let mut from = 3;
    for (name, kernel) in [("Conv3d_1a_7x7", 7), ("Conv3d_2b_1x1", 1), ("Conv3d_2c_3x3", 3)] {
        from = unit(name, from, kernel)?;
    }
    for (name, _) in MIXED {
        let mut branch = |branch: &str, from, kernel| unit(&format!("{name}.{branch}"), from, kernel);
        let b0 = branch("b0", from, 1)?;
        let b1a = branch("b1a", from, 1)?;
        let b1b = branch("b1b", b1a, 3)?;
        let b2a = branch("b2a", from, 1)?;
        let b2b = branch("b2b", b2a, 3)?;
        from = b0 + b1b + b2b + branch("b3b", from, 1)?;
    }
    place(head, "logits", from, 1, &["bias"])?;
    file.rename(names)?;
    for (name, len) in ones {
        file.add_ones(name, len);
    }
    Ok(epsilon)
}

/// y = γ (w∗x − μ) / √(σ² + ε) + β, folded in `f64` to w' = s·w and b' = β − s·μ.
fn unit(
    tensors: &mut Tensors<'_>,
    epsilon: f64,
    name: &str,
    (from, to): (usize, usize),
    (kernel, stride): (usize, usize),
    device: &Device,
) -> Result<Unit> {
    let shape = [to, from, kernel, kernel, kernel];
    let mut weight = tensors.take(&format!("{name}.conv3d.weight"), &shape)?;
    let mut bn = |part: &str| tensors.take(&format!("{name}.bn.{part}"), &[to]);
    let (gamma, beta) = (bn("weight")?, bn("bias")?);
    let (mean, variance) = (bn("running_mean")?, bn("running_var")?);
    let mut bias = Vec::with_capacity(to);
    for (o, filter) in weight.chunks_exact_mut(from * kernel.pow(3)).enumerate() {
        let scale = f64::from(gamma[o]) / (f64::from(variance[o]) + epsilon).sqrt();
        filter.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
        bias.push((f64::from(beta[o]) - scale * f64::from(mean[o])) as f32);
    }
    let weight = Tensor::from_vec(weight, &shape, &Device::Cpu)?.transpose(1, 2)?.contiguous()?;
    let weight = weight.reshape((to, kernel * from, kernel, kernel))?.to_device(device)?;
    Ok(Unit { weight: ConvWeight::new(&weight, Precision::F32)?, bias: Tensor::from_vec(bias, to, device)?, kernel, stride })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::files::{RawTensor, safetensors};
    use crate::test_data::{Array, assert_near, formula_image, hashed, max_difference, stored, tensors};
    use crate::torch_file::tests::{legacy_file, script_file};
    use crate::{Extractor, Preprocess, Profile, Sample, convert_weights};

    /// The hash-made tensor of the golden's script.
    fn made(name: &str, shape: &[usize]) -> Vec<f32> {
        let n = shape.iter().product::<usize>() as u64;
        let fan_in = shape[1..].iter().product::<usize>() as f64;
        let value = |i| {
            let s = 2.0 * (hashed(name, i) >> 40) as f64 * 2f64.powi(-24) - 1.0;
            if name.ends_with("conv3d.weight") {
                s * (6.0 / fan_in).sqrt()
            } else if name.ends_with("bn.weight") {
                1.0 + s / 4.0
            } else if name.ends_with("running_var") {
                1.0 + 0.4 * s
            } else {
                0.1 * s
            }
        };
        (0..n).map(|i| value(i) as f32).collect()
    }

    /// Every tensor of a network of this shape, by the layout that the module's head describes.
    fn made_tensors(config: I3dConfig) -> BTreeMap<String, Array> {
        let mut all = BTreeMap::new();
        let mut unit = |name: &str, from: usize, to: usize, k: usize| {
            let parts = [("bn.weight", vec![to]), ("bn.bias", vec![to]), ("bn.running_mean", vec![to]), ("bn.running_var", vec![to])];
            for (part, shape) in parts.into_iter().chain([("conv3d.weight", vec![to, from, k, k, k])]) {
                let key = format!("{name}.{part}");
                let values = made(&key, &shape);
                all.insert(key, (shape, values));
            }
        };
        let c = |full| config.channels(full);
        unit("Conv3d_1a_7x7", 3, c(64), 7);
        unit("Conv3d_2b_1x1", c(64), c(64), 1);
        unit("Conv3d_2c_3x3", c(64), c(192), 3);
        let mut n = c(192);
        for (name, outputs) in MIXED {
            let [b0, b1a, b1b, b2a, b2b, b3b] = outputs.map(c);
            for (branch, from, to, k) in
                [("b0", n, b0, 1), ("b1a", n, b1a, 1), ("b1b", b1a, b1b, 3), ("b2a", n, b2a, 1), ("b2b", b2a, b2b, 3), ("b3b", n, b3b, 1)]
            {
                unit(&format!("{name}.{branch}"), from, to, k);
            }
            n = b0 + b1b + b2b + b3b;
        }
        for (part, shape) in [("weight", vec![config.num_classes, n, 1, 1, 1]), ("bias", vec![config.num_classes])] {
            let key = format!("logits.conv3d.{part}");
            let values = made(&key, &shape);
            all.insert(key, (shape, values));
        }
        all
    }

    /// As a safetensors file that says its shape.
    fn file(config: I3dConfig) -> Vec<u8> {
        let raw = made_tensors(config).into_iter().map(|(key, (shape, values))| (key, RawTensor::f32(shape, &values))).collect();
        let metadata = BTreeMap::from([
            ("bn_epsilon", config.bn_epsilon.to_string()),
            ("num_classes", config.num_classes.to_string()),
            ("side", config.side.to_string()),
            ("width", config.width.to_string()),
        ]);
        safetensors(&metadata, &raw)
    }

    fn loaded(config: I3dConfig) -> I3d {
        let bytes = file(config);
        let path = Path::new("i3d.safetensors");
        I3d::take(&mut Tensors::new(WeightsFile::open(&bytes, path).unwrap(), path), &Device::Cpu).unwrap()
    }

    const SMALL: I3dConfig = I3dConfig { width: 0.125, num_classes: 10, bn_epsilon: 1e-5, side: 64 };

    fn frames(seed: u64, n: usize, side: usize) -> Vec<crate::Image> {
        (0..n as u64).map(|i| formula_image(seed + i, side, side)).collect()
    }

    fn video(seed: u64, n: usize, side: usize) -> Tensor {
        let planes: Vec<f32> = frames(seed, n, side).iter().flat_map(|frame| Profile::Lvdm.apply(frame, side).unwrap()).collect();
        Tensor::from_vec(planes, (n, 3, side, side), &Device::Cpu).unwrap()
    }

    #[test]
    fn logits_are_pytorchs() {
        let want = tensors("i3d.safetensors");
        let odd = I3dConfig { bn_epsilon: 1e-3, side: 71, ..SMALL };
        for (name, config, videos) in
            [("small", SMALL, &[(1, 16), (40, 9), (70, 21)][..]), ("odd", odd, &[(5, 11)]), ("full", I3dConfig::default(), &[(9, 10)])]
        {
            let network = loaded(config);
            for &(seed, n) in videos {
                let key = format!("{name}.{seed}.{n}");
                assert_near(&key, &network.forward(&video(seed, n, config.side)).unwrap(), &want[&key], 2e-5);
            }
        }
        let message = loaded(SMALL).forward(&video(1, 8, 64)).unwrap_err().to_string();
        assert!(message.contains("I3D takes (frames >= 9, 3, 64, 64), found [8, 3, 64, 64]"), "{message}");
    }

    #[test]
    fn frames_are_resized_as_the_tools_do() {
        let want = tensors("i3d.safetensors");
        let mut n = 0;
        for profile in [Profile::Lvdm, Profile::Videogpt] {
            for (h, w) in [(48, 90), (64, 33), (40, 40), (30, 60)] {
                let got = profile.apply(&formula_image(3, h, w), 32).unwrap();
                let difference = max_difference(&got, &want[&format!("{profile}.{h}x{w}")].1);
                assert!(difference < 1e-5, "{profile} {h}x{w}: {difference}");
                n += 1;
            }
        }
        assert_eq!(n, 8);
    }

    #[test]
    fn padding_is_tensorflows() {
        assert_eq!((same_padding(224, 7, 2), same_padding(223, 7, 2), same_padding(16, 7, 2)), ((2, 3), (3, 3), (2, 3)));
        assert_eq!(
            (same_padding(112, 3, 2), same_padding(9, 3, 1), same_padding(5, 2, 2), same_padding(4, 2, 2)),
            ((0, 1), (1, 1), (0, 1), (0, 0))
        );
    }

    /// From files to features: both containers, the conversion, clips, and what is refused.
    #[test]
    fn features_of_videos() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i3d.safetensors");
        std::fs::write(&path, file(SMALL)).unwrap();
        let extractor = Extractor::load(&path).unwrap();
        assert!(extractor.takes_videos() && extractor.dim() == 10);
        let samples = || Sample::video_set(std::sync::Arc::new(Made));
        let preprocess = |clip| Preprocess { clip: Some(clip), ..Preprocess::whole(Profile::Lvdm) };
        let first = preprocess(crate::VideoClip::first(16));
        let set = extractor.features(samples(), &first, |_| {}).unwrap();
        assert_eq!((set.len(), set.dim, set.provenance.extractor.as_str()), (2, 10, "i3d/w0.125/eps1e-5"));
        assert_eq!(set.provenance.preprocess.id(), "lvdm/clip16");
        assert!(max_difference(&set.data[..10], &tensors("i3d.safetensors")["small.1.16"].1) < 1e-4);
        // Every second frame from a start that the seed draws.
        let strided = preprocess(crate::VideoClip { frames: 9, stride: 2, random: Some(4) });
        let other = extractor.features(samples(), &strided, |_| {}).unwrap();
        assert_eq!(other.provenance.preprocess.id(), "lvdm/clip9x2@4");
        assert!(set.check_comparable(&other).unwrap_err().to_string().contains("number of frames"));
        let long = preprocess(crate::VideoClip::first(20));
        let message = extractor.features(samples(), &long, |_| {}).unwrap_err().to_string();
        assert!(message.contains("made 0 has 18 frames, too few for clip20"), "{message}");
        let image = extractor.features([Sample::image("x", 0, formula_image(1, 64, 64))], &first, |_| {}).unwrap_err().to_string();
        assert!(image.contains("x is an image, expected a video"), "{image}");

        // A state dict and its configuration beside it are the same network, and so is what is converted.
        let torch = dir.path().join("torch");
        std::fs::create_dir(&torch).unwrap();
        std::fs::write(torch.join("i3d.pt"), legacy_file(&made_tensors(SMALL))).unwrap();
        std::fs::write(torch.join("config.json"), r#"{"model_type": "i3d", "width": 0.125, "num_classes": 10, "side": 64}"#).unwrap();
        let found = convert_weights(&torch.join("i3d.pt")).unwrap();
        assert_eq!((found.form, found.network, found.num_classes, found.tensors), ("torch state dict", "I3D", 10, 57 * 5 + 2));
        std::fs::write(dir.path().join("converted.safetensors"), &found.bytes).unwrap();
        for path in [torch.join("i3d.pt"), dir.path().join("converted.safetensors")] {
            let extractor = Extractor::load(&path).unwrap();
            assert_eq!(extractor.features(samples(), &first, |_| {}).unwrap(), set, "{}", path.display());
        }
        assert!(Extractor::load(&stored("networks/goldens.safetensors")).is_err());
    }

    /// The names of convolutions with a norm, in the order of the network.
    fn unit_names() -> Vec<String> {
        let branches =
            MIXED.iter().flat_map(|(name, _)| ["b0", "b1a", "b1b", "b2a", "b2b", "b3b"].map(|branch| format!("{name}.{branch}")));
        ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"].map(str::to_owned).into_iter().chain(branches).collect()
    }

    type Listed = Vec<(String, Vec<usize>, Vec<f32>)>;

    /// The tensors of [`SMALL`] as a program might list them: the classifier first, by names of its own unless `name` keeps them.
    fn listed(name: impl Fn(usize, &str) -> String) -> Listed {
        let mut all = made_tensors(SMALL);
        let mut list = Vec::new();
        let mut add = |old: String, new: String| {
            let (shape, values) = all.remove(&old).unwrap();
            list.push((new, shape, values));
        };
        for part in ["weight", "bias"] {
            add(format!("logits.conv3d.{part}"), name(57, &format!("logits.conv3d.{part}")));
        }
        for (i, unit) in unit_names().iter().enumerate() {
            for part in ["conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"] {
                add(format!("{unit}.{part}"), name(i, &format!("{unit}.{part}")));
            }
        }
        assert!(all.is_empty());
        list
    }

    /// `layers.7.conv.weight`, `layers.7.norm.beta`.
    fn foreign(i: usize, name: &str) -> String {
        let module = if name.contains("conv3d.") { "conv" } else { "norm" };
        let part = name.rsplit('.').next().unwrap();
        let part = if module == "conv" {
            part
        } else {
            ["gamma", "beta", "mean", "var"][["weight", "bias", "running_mean", "running_var"].iter().position(|p| *p == part).unwrap()]
        };
        format!("layers.{i}.{module}.{part}")
    }

    /// `mixed_3b.branch_1.0.batch3d.weight`; written out, as hassony2's classes have it.
    fn hassony2(_: usize, name: &str) -> String {
        let branches = [
            ("b0", "branch_0"),
            ("b1a", "branch_1.0"),
            ("b1b", "branch_1.1"),
            ("b2a", "branch_2.0"),
            ("b2b", "branch_2.1"),
            ("b3b", "branch_3.1"),
        ];
        let name =
            name.replace(".bn.", ".batch3d.").replace("logits", "conv3d_0c_1x1").replace("Conv3d_", "conv3d_").replace("Mixed_", "mixed_");
        branches.iter().fold(name, |name, (ours, theirs)| name.replace(&format!(".{ours}."), &format!(".{theirs}.")))
    }

    /// The text of a scripted norm.
    const NORM: &str = "class BatchNorm3d(Module):\n  __buffers__ = [\"running_mean\", \"running_var\", ]\n  eps : Final[float] = 0.001\n";

    /// An archive and a configuration beside it.
    fn archive_of(dir: &Path, list: &Listed, program: &str, epsilon: &str) -> std::path::PathBuf {
        let config = format!(r#"{{"model_type": "i3d", "width": 0.125, "num_classes": 10, "side": 64{epsilon}}}"#);
        std::fs::write(dir.join("config.json"), config).unwrap();
        let path = dir.join("i3d_torchscript.pt");
        std::fs::write(&path, script_file(list, program)).unwrap();
        path
    }

    fn archive(dir: &Path, list: &Listed) -> std::path::PathBuf {
        archive_of(dir, list, NORM, "")
    }

    fn logits(network: &I3d) -> Vec<f32> {
        network.forward(&video(1, 9, 64)).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn torchscript_archives_are_the_same_network() {
        let dir = tempfile::tempdir().unwrap();
        let as_graph = loaded(I3dConfig { bn_epsilon: 1e-3, ..SMALL });
        let own = |_: usize, name: &str| name.to_owned();
        let after = |prefix: &'static str, name: fn(usize, &str) -> String| move |i: usize, of: &str| format!("{prefix}{}", name(i, of));
        for list in [listed(own), listed(after("net.i3d.", own)), listed(hassony2), listed(after("model.", hassony2)), listed(foreign)] {
            let path = archive(dir.path(), &list);
            let network = I3d::load_on(&path, &Device::Cpu).unwrap();
            assert_eq!((network.name().as_str(), network.digest()), ("i3d/w0.125/eps1e-3", as_graph.digest()), "{}", list[0].0);
            assert_eq!(logits(&network), logits(&as_graph), "{}", list[0].0);
        }
        let path = archive_of(dir.path(), &listed(foreign), "", r#", "bn_epsilon": 1e-5"#);
        assert_eq!(logits(&I3d::load_on(&path, &Device::Cpu).unwrap()), logits(&loaded(SMALL)));
        let found = convert_weights(&path).unwrap();
        assert_eq!((found.form, found.network, found.tensors), ("TorchScript archive", "I3D", 57 * 5 + 2));

        // TensorFlow's norms have no factor, so that a port may leave out what is 1 everywhere.
        let mut list = listed(foreign);
        list.iter_mut().filter(|(name, ..)| name.ends_with("gamma")).for_each(|(_, _, values)| values.fill(1.0));
        let with = I3d::load_on(&archive(dir.path(), &list), &Device::Cpu).unwrap();
        list.retain(|(name, ..)| !name.ends_with("gamma"));
        let path = archive(dir.path(), &list);
        assert_eq!(logits(&I3d::load_on(&path, &Device::Cpu).unwrap()), logits(&with));
        let converted = dir.path().join("converted.safetensors");
        std::fs::write(&converted, convert_weights(&path).unwrap().bytes).unwrap();
        assert_eq!(logits(&I3d::load_on(&converted, &Device::Cpu).unwrap()), logits(&with));
    }

    /// Of a program, from its text; of a state dict, from whose names it has.
    #[test]
    fn epsilons_are_the_files_own() {
        let dir = tempfile::tempdir().unwrap();
        let name = |path: &Path| I3d::load_on(path, &Device::Cpu).map(|network| network.name()).map_err(|e| e.to_string());
        let traced = "class BatchNorm3d(Module):\n    _0 = torch.batch_norm(argument_1, weight, bias, running_mean, running_var, False, \
                      0.10000000000000001, 1.0000000000000001e-05, True)\n";
        let pytorch = NORM.replace("0.001", "1.0000000000000001e-05");
        let layer_norm = "class LayerNorm(Module):\n  __buffers__ = []\n  eps : Final[float] = 9.9999999999999995e-07\n";
        let of = |program: &str, epsilon: &str| name(&archive_of(dir.path(), &listed(hassony2), program, epsilon));
        for (program, expected) in [
            (NORM, "i3d/w0.125/eps1e-3"),
            (&pytorch, "i3d/w0.125/eps1e-5"),
            (traced, "i3d/w0.125/eps1e-5"),
            (&[layer_norm, NORM, layer_norm, NORM].concat(), "i3d/w0.125/eps1e-3"),
        ] {
            assert_eq!(of(program, "").unwrap(), expected, "{program}");
        }
        assert_eq!(of("", r#", "bn_epsilon": 1e-3"#).unwrap(), "i3d/w0.125/eps1e-3");
        assert_eq!(of(NORM, r#", "bn_epsilon": 1e-3"#).unwrap(), "i3d/w0.125/eps1e-3");
        for (program, epsilon, expected) in [
            (layer_norm, "", "i3d_torchscript.pt: the program's text does not say the epsilon of its batch normalisations, expected"),
            (NORM, r#", "bn_epsilon": 1e-5"#, "config.json: bn_epsilon is 1e-5, but the program of"),
            (&[NORM, traced].concat(), "", "batch normalisations have epsilons 1e-3 and 1e-5, expected one for all"),
        ] {
            let message = of(program, epsilon).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }

        let dict = |name: fn(usize, &str) -> String, epsilon: &str| {
            archive_of(dir.path(), &listed(foreign), NORM, epsilon);
            let path = dir.path().join("state.pt");
            let tensors = listed(name).into_iter().map(|(name, shape, values)| (name, (shape, values))).collect();
            std::fs::write(&path, legacy_file(&tensors)).unwrap();
            path
        };
        assert_eq!(name(&dict(|_, name| name.to_owned(), "")).unwrap(), "i3d/w0.125/eps1e-5");
        assert_eq!(name(&dict(hassony2, r#", "bn_epsilon": 1e-5"#)).unwrap(), "i3d/w0.125/eps1e-5");
        let path = dict(hassony2, "");
        assert_eq!(name(&path).unwrap(), "i3d/w0.125/eps1e-3");
        let found = convert_weights(&path).unwrap();
        assert_eq!((found.form, found.network, found.tensors), ("torch state dict", "I3D", 57 * 5 + 2));
        let as_graph = loaded(I3dConfig { bn_epsilon: 1e-3, ..SMALL });
        assert_eq!(logits(&I3d::load_on(&path, &Device::Cpu).unwrap()), logits(&as_graph));
    }

    #[test]
    fn archives_of_other_networks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refuse = |change: &dyn Fn(&mut Listed), expected: &str| {
            let mut list = listed(foreign);
            change(&mut list);
            let message = I3d::load_on(&archive(dir.path(), &list), &Device::Cpu).unwrap_err().to_string();
            assert!(message.contains("i3d_torchscript.pt: ") && message.contains(expected), "{message}");
        };
        let remove = |list: &mut Listed, start: &str| list.retain(|(name, ..)| !name.starts_with(start));
        refuse(&|list| remove(list, "layers.20."), "56 convolutions over frames have a norm, expected I3D's 57");
        refuse(&|list| remove(list, "layers.57."), "0 convolutions over frames have no norm, expected I3D's one");
        refuse(&|list| remove(list, "layers.20.norm.mean"), "2 convolutions over frames have no norm");
        refuse(&|list| remove(list, "layers.20.norm.var"), "nothing behind layers.20.conv.weight is Mixed_4b.b3b.bn.running_var");
        let swap = |list: &mut Listed| {
            let at = |list: &Listed, name: &str| list.iter().position(|(found, ..)| found == name).unwrap();
            let (a, b) = (at(list, "layers.4.conv.weight"), at(list, "layers.5.conv.weight"));
            let shape = std::mem::take(&mut list[a].1);
            list[a].1 = std::mem::replace(&mut list[b].1, shape);
            let values = std::mem::take(&mut list[a].2);
            list[a].2 = std::mem::replace(&mut list[b].2, values);
        };
        refuse(&swap, "layers.4.conv.weight has shape [16, 12, 3, 3, 3], expected [16, 24, 1, 1, 1] of Mixed_3b.b1a");
        let shorter = |list: &mut Listed| {
            let entry = list.iter_mut().find(|(name, ..)| name == "layers.4.norm.beta").unwrap();
            (entry.1, entry.2) = (vec![3], vec![0.0; 3]);
        };
        refuse(&shorter, "layers.4.norm.beta has shape [3], expected [12] of Mixed_3b.b1a.bn.bias");
        refuse(
            &|list| list.push(("layers.56.scale".into(), vec![1], vec![1.0])),
            "I3D has no place for layers.56.scale, expected one mean",
        );
        refuse(&|list| list.push(("fc.weight".into(), vec![1, 1], vec![1.0])), "I3D has no place for fc.weight of shape [1, 1]");
        // The rest is checked as of any file.
        let path = archive(dir.path(), &listed(foreign));
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "i3d", "width": 0.125, "num_classes": 11, "side": 64}"#).unwrap();
        let message = I3d::load_on(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("logits.conv3d.weight should be F32[11, 128, 1, 1, 1]"), "{message}");
    }

    /// Two videos of formula frames.
    #[derive(Debug)]
    struct Made;

    impl crate::VideoSet for Made {
        fn len(&self) -> usize {
            2
        }

        fn name(&self, place: usize) -> String {
            format!("made {place}")
        }

        fn frames(&self, place: usize) -> Result<Vec<crate::Image>> {
            Ok(frames(1 + 39 * place as u64, 18, 64))
        }
    }
}
