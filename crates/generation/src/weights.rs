//! Safetensors in: every expected tensor present with the expected shape, and none left over.

use crate::checkpoint::{Dtype, LoadOptions, weight_files};
use crate::error::{Error, Result};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The open weights of one component and what has not been asked for yet.
pub(crate) struct Weights {
    /// For messages: the file, or the folder of several.
    file: PathBuf,
    tensors: MmapedSafetensors,
    dtype: DType,
    unused: RefCell<BTreeSet<String>>,
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
        let dtype = match options.dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
        };
        let file = if let [file] = &files[..] { file.clone() } else { folder.to_owned() };
        Ok(Self { file, tensors, dtype, unused: RefCell::new(unused) })
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

    pub(crate) fn path(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights.tensors.get(&self.pp(name).prefix).is_ok()
    }

    /// The tensor `name` as f32, checked against `shape`.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let name = self.pp(name).prefix;
        let file = || self.weights.file.clone();
        let view = self.weights.tensors.get(&name).map_err(|_| Error::MissingTensor {
            file: file(),
            name: name.clone(),
            expected: shape.to_vec(),
        })?;
        if view.shape() != shape {
            return Err(Error::TensorShape { file: file(), name, expected: shape.to_vec(), found: view.shape().to_vec() });
        }
        let tensor = self.weights.tensors.load(&name, &Device::Cpu)?.to_dtype(self.weights.dtype)?.to_dtype(DType::F32)?;
        self.weights.unused.borrow_mut().remove(&name);
        Ok(tensor)
    }
}
