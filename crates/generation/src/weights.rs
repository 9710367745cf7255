//! Safetensors in: every expected tensor present with the expected shape, and none left over.

use crate::error::{Error, Result};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One open weight file and what has not been asked for yet.
pub(crate) struct Weights {
    file: PathBuf,
    tensors: MmapedSafetensors,
    unused: RefCell<BTreeSet<String>>,
}

impl Weights {
    /// Maps `file` and reads its header.
    pub(crate) fn open(file: &Path) -> Result<Self> {
        // A missing file is told apart from a broken one.
        std::fs::metadata(file).map_err(|source| Error::Io { file: file.to_owned(), source })?;
        // SAFETY: the file must not be changed while it is mapped; checkpoints are read-only inputs.
        let tensors = unsafe { MmapedSafetensors::new(file) }
            .map_err(|e| Error::malformed(file, format!("expected a complete safetensors file: {e}")))?;
        let unused = tensors.tensors().into_iter().map(|(name, _)| name).collect();
        Ok(Self { file: file.to_owned(), tensors, unused: RefCell::new(unused) })
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
        let tensor = self.weights.tensors.load(&name, &Device::Cpu)?.to_dtype(DType::F32)?;
        self.weights.unused.borrow_mut().remove(&name);
        Ok(tensor)
    }
}

/// The weight file of a component folder: `BASE.safetensors`, or the error of its absence.
pub(crate) fn weight_file(folder: &Path, base: &str) -> Result<PathBuf> {
    let file = folder.join(format!("{base}.safetensors"));
    match std::fs::metadata(&file) {
        Ok(_) => Ok(file),
        Err(source) => Err(Error::Io { file, source }),
    }
}
