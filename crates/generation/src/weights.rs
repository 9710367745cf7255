//! Safetensors in: every expected tensor present with the expected shape, and none left over.

use crate::checkpoint::{Dtype, LoadOptions, weight_files};
use crate::error::{Error, Result};
use crate::noise::Generator;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use scalebench_kernels::{ConvWeight, LinearWeight, Precision, on_gpu};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The open weights of one component and what has not been asked for yet.
pub(crate) struct Weights {
    /// For messages: the file, or the folder of several.
    file: PathBuf,
    source: Source,
    /// That the weights are rounded to.
    dtype: DType,
    device: Device,
    /// Of the products with the weights, on the CPU.
    precision: Precision,
    /// Of the weights in products, on a GPU.
    multiplied: DType,
    unused: RefCell<BTreeSet<String>>,
}

/// Values of one random tensor: SDXL's largest has 10 million.
const MOST_DRAWN: usize = 1 << 28;

enum Source {
    Files(MmapedSafetensors),
    /// Whatever is asked for is drawn.
    Random(Box<RefCell<Generator>>),
    /// Operands of products have no outputs, so that nothing is held.
    None,
}

impl Weights {
    /// Maps the weight files `BASE*.safetensors` of a component folder and reads their headers.
    pub(crate) fn open(folder: &Path, base: &str, options: &LoadOptions) -> Result<Self> {
        let files = weight_files(folder, base, options.variant.as_deref())?;
        for file in &files {
            // A missing file is told apart from a broken one, and each shard is checked by itself.
            std::fs::metadata(file).map_err(|source| Error::Io { file: file.clone(), source })?;
            // SAFETY: the file must not be changed while it is mapped; checkpoints are read-only inputs.
            unsafe { MmapedSafetensors::new(file) }
                .map_err(|e| Error::malformed(file, format!("expected a complete safetensors file: {e}")))?;
        }
        // SAFETY: as above.
        let tensors = unsafe { MmapedSafetensors::multi(&files) }.map_err(|e| Error::malformed(folder, e))?;
        let unused = tensors.tensors().into_iter().map(|(name, _)| name).collect();
        let file = if let [file] = &files[..] { file.clone() } else { folder.to_owned() };
        let weights = Self::new(file, Source::Files(tensors), options.dtype.stored(), &options.device);
        Ok(Self { unused: RefCell::new(unused), ..weights })
    }

    fn new(file: PathBuf, source: Source, dtype: DType, device: &Device) -> Self {
        let (precision, multiplied) = (Precision::F32, DType::F32);
        Self { file, source, dtype, device: device.clone(), precision, multiplied, unused: RefCell::default() }
    }

    /// For a network that multiplies in `dtype`.
    pub(crate) fn multiplied_in(self, dtype: Dtype) -> Self {
        Self { precision: dtype.products(), multiplied: dtype.stored(), ..self }
    }

    /// Weights for any shape that is asked for, the same in every process: speed does not depend on values, but
    /// denormal numbers and infinities would.
    pub(crate) fn random(device: &Device) -> Self {
        let source = Source::Random(Box::new(RefCell::new(Generator::new(0))));
        Self::new(PathBuf::from("random weights"), source, DType::F32, device)
    }

    /// No weights: for what a network's configuration alone decides.
    pub(crate) fn hollow() -> Self {
        Self::new(PathBuf::from("no weights"), Source::None, DType::F32, &Device::Cpu)
    }

    pub(crate) fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Errors if a tensor was never asked for. `position_ids` is a buffer that old files carry.
    pub(crate) fn finish(self) -> Result<()> {
        let names: Vec<String> = self.unused.into_inner().into_iter().filter(|n| !n.ends_with("position_ids")).collect();
        if names.is_empty() { Ok(()) } else { Err(Error::LeftOverTensors { file: self.file, names }) }
    }
}

/// A place in the file: names asked for here are prefixed with the module path.
#[derive(Clone)]
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The module below this one; its path is the diffusers module path.
    pub(crate) fn pp(&self, segment: impl std::fmt::Display) -> Self {
        let dot = if self.prefix.is_empty() { "" } else { "." };
        Self { weights: self.weights, prefix: format!("{}{dot}{segment}", self.prefix) }
    }

    /// Where the network runs.
    pub(crate) fn device(&self) -> &Device {
        &self.weights.device
    }

    /// Of its activations.
    pub(crate) fn activations(&self) -> DType {
        if on_gpu(self.device()) { self.weights.multiplied } else { DType::F32 }
    }

    pub(crate) fn path(&self) -> &str {
        &self.prefix
    }

    /// Of products with weights from here.
    pub(crate) fn precision(&self) -> Precision {
        self.weights.precision
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.weights.source {
            Source::Files(tensors) => tensors.get(&self.pp(name).prefix).is_ok(),
            Source::Random(_) | Source::None => false,
        }
    }

    /// The kernels `name`, checked against `shape`: (outputs, inputs, height, width), or (outputs, inputs) for 1×1.
    pub(crate) fn conv(&self, name: &str, shape: &[usize]) -> Result<ConvWeight> {
        Ok(ConvWeight::new(&self.operand(name, shape)?, self.precision())?)
    }

    /// The kernels `name` over `taps` frames of single pixels, `(outputs, inputs, taps, 1, 1)`, for maps of frames and pixels.
    pub(crate) fn conv_over_frames(&self, name: &str, c_out: usize, c_in: usize, taps: usize) -> Result<ConvWeight> {
        let kernels = self.operand(name, &[c_out, c_in, taps, 1, 1])?.squeeze(4)?;
        Ok(ConvWeight::new(&kernels, self.precision())?)
    }

    /// The matrix `name`, checked against `shape`: (outputs, inputs), or the same with 1×1 kernels.
    pub(crate) fn linear(&self, name: &str, shape: &[usize]) -> Result<LinearWeight> {
        let matrix = self.operand(name, shape)?.flatten_from(1)?;
        Ok(LinearWeight::new(&matrix, self.precision())?)
    }

    fn operand(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        // Rounded on the host, so that half of it travels.
        Ok(self.read(name, shape)?.to_dtype(self.activations())?.to_device(self.device())?)
    }

    /// The tensor `name` as f32, checked against `shape`.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.read(name, shape)?.to_device(self.device())?)
    }

    /// [`get`](Self::get), on the CPU.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.pp(name).prefix;
        let file = || self.weights.file.clone();
        let tensors = match &self.weights.source {
            Source::Files(tensors) => tensors,
            Source::Random(generator) => return random(&name, shape, &mut generator.borrow_mut()),
            Source::None => {
                let empty = [&[if shape.len() > 1 { 0 } else { shape[0] }], &shape[1..]].concat();
                return Ok(Tensor::zeros(empty, DType::F32, &Device::Cpu)?);
            }
        };
        let view = tensors.get(&name).map_err(|_| Error::MissingTensor { file: file(), name: name.clone(), expected: shape.to_vec() })?;
        if view.shape() != shape {
            return Err(Error::TensorShape { file: file(), name, expected: shape.to_vec(), found: view.shape().to_vec() });
        }
        let tensor = tensors.load(&name, &Device::Cpu)?.to_dtype(self.weights.dtype)?.to_dtype(DType::F32)?;
        if let Some((at, value)) = first_not_finite(&tensor)? {
            return Err(Error::WeightNotFinite { file: file(), name, at, value });
        }
        self.weights.unused.borrow_mut().remove(&name);
        Ok(tensor)
    }
}

/// Position and value of the first number of an `f32` tensor on the CPU that is none, or infinite. It reads what was just written and
/// is about to be laid out: a small part of loading.
pub(crate) fn first_not_finite(tensor: &Tensor) -> Result<Option<(usize, f32)>> {
    const INFINITE: u32 = 0x7f80_0000;
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { return Ok(None) };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..][..layout.shape().elem_count()];
    // Without a branch for each value, so that blocks are compared several at a time.
    let is_bad = |block: &[f32]| block.iter().fold(false, |bad, v| bad | (v.to_bits() & INFINITE == INFINITE));
    let block = values.chunks(4096).position(is_bad);
    let first = block.and_then(|block| values.iter().enumerate().skip(block * 4096).find(|(_, v)| !v.is_finite()));
    Ok(first.map(|(at, value)| (at, *value)))
}

/// Kernels and matrices of variance 1/fan-in, biases of zero, and ones for what scales a norm.
fn random(name: &str, shape: &[usize], generator: &mut Generator) -> Result<Tensor> {
    if let [n] = *shape {
        let value = if name.ends_with(".bias") { 0f32 } else { 1f32 };
        return Ok(Tensor::full(value, n, &Device::Cpu)?);
    }
    let n: Option<usize> = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
    let Some(n) = n.filter(|n| *n <= MOST_DRAWN) else {
        return Err(Error::malformed(
            "random weights",
            format!("tensor `{name}` has shape {shape:?}, expected at most {MOST_DRAWN} values"),
        ));
    };
    // Uniform numbers: a network of a billion weights is drawn in seconds.
    let fan_in: usize = shape[1..].iter().product();
    let width = (12.0 / fan_in as f32).sqrt();
    let values: Vec<f32> = (0..n).map(|_| (generator.uniform_f32() - 0.5) * width).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
