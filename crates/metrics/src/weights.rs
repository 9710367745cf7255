//! Files with the weights of the FID Inception and of I3D, and their conversion.
//!
//! | form | told by |
//! | --- | --- |
//! | safetensors | none of the below |
//! | `torch.save` before PyTorch 1.6, such as the published `pt_inception-2015-12-05-6726825d.pth` | its magic number |
//! | `torch.save` since | zip magic and a `data.pkl` |
//! | `torch.jit.save`, such as StyleGAN-V's `i3d_torchscript.pt` | the same, with a `constants.pkl` or a folder `code` |
//!
//! Other networks under the same names (torchvision's) would give plausible numbers on another scale, so
//! they are recognised and refused with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::files::{RawTensor, read, safetensors};
use crate::i3d::I3d;
use crate::inception::{InceptionConfig, Loader};
use crate::torch_file::{TorchFile, TorchValues};
use crate::{Error, Result};

/// Metadata entry of a converted file: BLAKE3 digest of the file that it was made from, hexadecimal.
const SOURCE_KEY: &str = "source_blake3";

/// What to use instead of what was refused.
const ADVICE: &str = "use pt_inception-2015-12-05-6726825d.pth of pytorch-fid, which is also torch-fidelity's \
                      weights-inception-2015-12-05-6726825d.pth, or of videos i3d_pretrained_400.pt";

/// A weights file, with tensors read on demand.
pub(crate) enum WeightsFile<'a> {
    Safetensors(SafeTensors<'a>, HashMap<String, String>),
    /// With the epsilon of an I3D's batch normalisations, where the file or the names in it tell.
    Torch(TorchFile<'a>, Option<f64>),
}

impl<'a> WeightsFile<'a> {
    /// Decides by content what the file is; `path` is for messages.
    pub(crate) fn open(bytes: &'a [u8], path: &Path) -> Result<Self> {
        if TorchFile::is_meant(bytes) {
            let named = |mut file: TorchFile<'a>| {
                let epsilon = crate::i3d::name_modules(&mut file).map_err(|message| Error::TorchFile { path: path.to_owned(), message })?;
                Ok(Self::Torch(file, epsilon))
            };
            return match TorchFile::open(bytes, path).and_then(named) {
                Ok(file) => Ok(file),
                // A truncated download may well be of the right file.
                Err(Error::TorchFile { path, message }) if !message.starts_with("truncated") => {
                    Err(Error::TorchFile { path, message: format!("{message}; {ADVICE}") })
                }
                Err(other) => Err(other),
            };
        }
        let container = |e: safetensors::SafeTensorError| Error::Container { path: path.to_owned(), message: e.to_string() };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(container)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        Ok(Self::Safetensors(SafeTensors::deserialize(bytes).map_err(container)?, metadata))
    }

    /// Free-form entries of a safetensors file.
    pub(crate) fn metadata(&self) -> Option<&HashMap<String, String>> {
        match self {
            Self::Safetensors(_, metadata) => Some(metadata),
            Self::Torch(..) => None,
        }
    }

    /// What kind of file it is, in words.
    fn form(&self) -> &'static str {
        match self {
            Self::Safetensors(..) => "safetensors",
            Self::Torch(..) if self.is_script() => "TorchScript archive",
            Self::Torch(..) => "torch state dict",
        }
    }

    /// Whether the tensors are those of a TorchScript program.
    pub(crate) fn is_script(&self) -> bool {
        matches!(self, Self::Torch(file, _) if file.script().is_some())
    }

    /// Epsilon of an I3D's batch normalisations, where a torch file or the names in it tell.
    pub(crate) fn epsilon(&self) -> Option<f64> {
        match self {
            Self::Torch(_, epsilon) => *epsilon,
            Self::Safetensors(..) => None,
        }
    }

    /// Names of all tensors, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = match self {
            Self::Safetensors(tensors, _) => tensors.names(),
            Self::Torch(file, _) => file.names().collect(),
        };
        names.sort_unstable();
        names
    }

    /// Type, such as `F32`, and shape.
    pub(crate) fn info(&self, key: &str) -> Option<(String, Vec<usize>)> {
        match self {
            Self::Safetensors(tensors, _) => tensors.tensor(key).ok().map(|view| (format!("{:?}", view.dtype()), view.shape().to_vec())),
            Self::Torch(file, _) => file.info(key).map(|(dtype, shape)| (dtype.to_owned(), shape.to_vec())),
        }
    }

    /// The values of an `f32` tensor in row-major order; `None` if there is none.
    pub(crate) fn f32(&self, key: &str) -> Result<Option<Vec<f32>>> {
        Ok(match self {
            Self::Safetensors(tensors, _) => tensors.tensor(key).ok().filter(|view| view.dtype() == Dtype::F32).map(|view| {
                let (words, _) = view.data().as_chunks::<4>();
                words.iter().map(|w| f32::from_le_bytes(*w)).collect()
            }),
            Self::Torch(file, _) => match file.tensor(key)?.map(|tensor| tensor.values) {
                Some(TorchValues::Float(values)) => Some(values),
                Some(TorchValues::Integer(_)) | None => None,
            },
        })
    }

    /// Recognises networks that are taken for the FID Inception.
    pub(crate) fn refuse_other_networks(&self, config: InceptionConfig, path: &Path) -> Result<()> {
        let other = |message: String| Err(Error::OtherNetwork { path: path.to_owned(), message: format!("{message}; {ADVICE}") });
        let names = self.names();
        let torchvision = "torchvision's inception_v3, trained anew on 1000 classes with other pools: its distances are on another \
                           scale than any published FID";
        if let Some(key) = names.iter().find(|key| key.starts_with("AuxLogits.")) {
            return other(format!("{key} belongs to an auxiliary head, as in {torchvision}"));
        }
        if let Some((_, shape)) = self.info("fc.weight")
            && shape.first() == Some(&1000)
            && config.num_classes == InceptionConfig::FULL.num_classes
        {
            return other(format!("fc.weight has 1000 classes instead of 1008, as in {torchvision}"));
        }
        if let Some(key) = names.iter().find(|key| key.starts_with("blocks.") || key.starts_with("module.")) {
            return other(format!("{key} is named by a wrapper around the network, not by the network"));
        }
        if names.iter().any(|key| key.starts_with("layers.")) {
            return other("tensors are named layers.*, as in NVIDIA's TorchScript program".into());
        }
        Ok(())
    }
}

/// Takes a network's tensors out of a file, checks them, and knows which it took.
pub(crate) struct Tensors<'a> {
    /// For messages.
    pub(crate) path: PathBuf,
    pub(crate) file: WeightsFile<'a>,
    /// Keys of the tensors that the network took.
    used: HashSet<String>,
    digest: blake3::Hasher,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(file: WeightsFile<'a>, path: &Path) -> Self {
        Self { path: path.to_owned(), file, used: HashSet::new(), digest: blake3::Hasher::new() }
    }

    /// The `f32` tensor `key` of shape `expected`, all of whose values are finite.
    pub(crate) fn take(&mut self, key: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let path = || self.path.clone();
        let missing = || Error::MissingTensor { path: path(), key: key.to_owned(), expected: expected.to_vec() };
        let (dtype, shape) = self.file.info(key).ok_or_else(missing)?;
        if shape != expected || dtype != "F32" {
            return Err(Error::TensorMismatch {
                path: path(),
                key: key.to_owned(),
                expected: format!("F32{expected:?}"),
                found: format!("{dtype}{shape:?}"),
            });
        }
        let values = self.file.f32(key)?.ok_or_else(missing)?;
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            let message = format!("tensor {key} has {} at position {bad}", values[bad]);
            return Err(Error::Config { path: path(), message });
        }
        self.used.insert(key.to_owned());
        // Keys end in a byte that no key has; the shape is that of the network.
        self.digest.update(key.as_bytes()).update(b"\n");
        self.digest.update(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        Ok(values)
    }

    /// BLAKE3 of names and values of what was taken, in order, hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.digest.finalize().to_hex().to_string()
    }

    /// Errors if there is a tensor that the network did not take; counters of batches, and what `other` names, may be left.
    pub(crate) fn refuse_unknown(&self, other: impl Fn(&str) -> bool) -> Result<()> {
        let known = |key: &str| self.used.contains(key) || key.ends_with(".num_batches_tracked") || other(key);
        match self.file.names().into_iter().find(|key| !known(key)) {
            Some(key) => Err(Error::UnknownTensor { path: self.path.clone(), key: key.to_owned() }),
            None => Ok(()),
        }
    }
}

/// What [`convert_weights`] found and made.
///
/// Example: [`convert_weights`].
#[derive(Clone, Debug)]
pub struct ConvertedWeights {
    /// `safetensors`, `torch state dict` or `TorchScript archive`.
    pub form: &'static str,
    /// `Inception-v3` or `I3D`.
    pub network: &'static str,
    /// Channel multiplier.
    pub width: f64,
    /// Outputs of the classifier.
    pub num_classes: usize,
    /// Values of a feature.
    pub feature_dim: usize,
    /// Tensors that the network uses; others, such as counters of batches, are left out.
    pub tensors: usize,
    /// Their values together.
    pub values: usize,
    /// BLAKE3 digest of the source, hexadecimal; of the first source if this one was converted before.
    pub source_blake3: String,
    /// The safetensors file. Equal sources give equal bytes, and converting it gives the same again.
    pub bytes: Vec<u8>,
}

/// Reads weights in any form that [`Extractor::load`](crate::Extractor::load) takes for an Inception or an I3D, with the same checks, and
/// gives them as safetensors with the network's shape and the source's digest in its metadata.
///
/// ```
/// use scalebench_metrics::{ConvertedWeights, convert_weights};
/// let ConvertedWeights { network, form, width, feature_dim, .. } =
///     convert_weights("../../datasets/pocket-inception/model.safetensors".as_ref())?;
/// assert_eq!((network, form, width, feature_dim), ("Inception-v3", "safetensors", 0.125, 256));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`crate::Inception::load`].
pub fn convert_weights(path: &Path) -> Result<ConvertedWeights> {
    let source = read(path)?;
    let file = WeightsFile::open(&source, path)?;
    let earlier = file.metadata().and_then(|m| m.get(SOURCE_KEY)).cloned();
    let source_blake3 = earlier.unwrap_or_else(|| blake3::hash(&source).to_hex().to_string());
    let mut metadata = BTreeMap::from([(SOURCE_KEY, source_blake3.clone())]);
    let (taken, network, (width, num_classes, feature_dim)) = if I3d::is_meant(&file) {
        let mut taken = Tensors::new(file, path);
        let config = I3d::take(&mut taken, &candle_core::Device::Cpu)?.config();
        metadata.extend([("bn_epsilon", config.bn_epsilon.to_string()), ("side", config.side.to_string())]);
        (taken, "I3D", (config.width, config.num_classes, config.num_classes))
    } else {
        let mut loader = Loader::new(file, path)?;
        let config = loader.network(&candle_core::Device::Cpu)?.config();
        (loader.tensors, "Inception-v3", (config.width, config.num_classes, config.feature_dim()))
    };
    let mut tensors = BTreeMap::new();
    for key in &taken.used {
        // Both are there, or the network would not have loaded.
        if let (Some((_, shape)), Some(values)) = (taken.file.info(key), taken.file.f32(key)?) {
            tensors.insert(key.clone(), RawTensor::f32(shape, &values));
        }
    }
    // A second classifier of an Inception is left out, and with it the number of its outputs.
    metadata.extend([("num_classes", num_classes.to_string()), ("width", width.to_string())]);
    Ok(ConvertedWeights {
        form: taken.file.form(),
        network,
        width,
        num_classes,
        feature_dim,
        tensors: tensors.len(),
        values: tensors.values().map(|t| t.bytes.len() / 4).sum(),
        source_blake3,
        bytes: safetensors(&metadata, &tensors),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::LazyLock;

    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::Inception;
    use crate::inception::tests::narrow_file;
    use crate::torch_file::tests::legacy_file;

    type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

    /// The narrow network's tensors.
    fn narrow() -> Tensors {
        static TENSORS: LazyLock<Tensors> = LazyLock::new(|| {
            let bytes = narrow_file();
            let file = WeightsFile::open(&bytes, Path::new("narrow.safetensors")).unwrap();
            file.names().iter().map(|key| ((*key).to_owned(), (file.info(key).unwrap().1, file.f32(key).unwrap().unwrap()))).collect()
        });
        TENSORS.clone()
    }

    /// The narrow network as a torch file, with the configuration beside it.
    fn torch_file(folder: &Path, tensors: &Tensors) -> PathBuf {
        std::fs::write(folder.join("config.json"), r#"{"width": 0.125, "num_classes": 10}"#).unwrap();
        let path = folder.join("narrow.pth");
        std::fs::write(&path, legacy_file(tensors)).unwrap();
        path
    }

    fn features(network: &Inception) -> Vec<f32> {
        let x = Tensor::arange(0f32, 3.0 * 80.0 * 90.0, &Device::Cpu).unwrap().affine(1e-3, 0.0).unwrap().sin().unwrap();
        let taps = network.forward(&x.reshape((1, 3, 80, 90)).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
        Tensor::cat(&[taps.pool_2048, taps.logits], 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn all_forms_are_one_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = torch_file(dir.path(), &narrow());
        let safetensors = Inception::from_bytes(&narrow_file(), Path::new("narrow.safetensors")).unwrap();
        let expected = features(&safetensors);
        assert_eq!(features(&Inception::load(&path).unwrap()), expected);

        let found = convert_weights(&path).unwrap();
        let shape = safetensors.config();
        assert_eq!((found.form, found.network, found.tensors), ("torch state dict", "Inception-v3", 94 * 5 + 2));
        assert_eq!((found.width, found.num_classes, found.feature_dim), (shape.width, shape.num_classes, shape.feature_dim()));
        assert_eq!(found.values, narrow().values().map(|(_, values)| values.len()).sum::<usize>());
        assert_eq!(found.source_blake3, blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string());
        // The width is in the file now.
        let converted = dir.path().join("elsewhere").join("converted.bin");
        std::fs::create_dir(converted.parent().unwrap()).unwrap();
        std::fs::write(&converted, &found.bytes).unwrap();
        assert_eq!(features(&Inception::load(&converted).unwrap()), expected);
        let again = convert_weights(&converted).unwrap();
        assert_eq!((again.form, again.source_blake3, again.bytes == found.bytes), ("safetensors", found.source_blake3, true));
    }

    #[test]
    fn every_key_and_shape_of_a_torch_file_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let load = |change: &dyn Fn(&mut Tensors)| {
            let mut tensors = narrow();
            change(&mut tensors);
            Inception::load(&torch_file(dir.path(), &tensors)).unwrap_err().to_string()
        };
        let key = "Mixed_7b.branch1x1.bn.bias";
        let message = load(&|t| drop(t.remove(key)));
        assert!(message.ends_with("narrow.pth has no tensor Mixed_7b.branch1x1.bn.bias (expected shape [40])"), "{message}");
        let message = load(&|t| drop(t.insert(key.into(), (vec![39], vec![0.0; 39]))));
        assert!(message.ends_with("bn.bias should be F32[40], found F32[39]"), "{message}");
        let message = load(&|t| t.get_mut(key).unwrap().1[3] = f32::NAN);
        assert!(message.ends_with("tensor Mixed_7b.branch1x1.bn.bias has NaN at position 3"), "{message}");
        let message = load(&|t| drop(t.insert("extra.bias".into(), (vec![1], vec![0.0]))));
        assert!(message.ends_with("tensor extra.bias is not part of the network"), "{message}");
        std::fs::write(dir.path().join("config.json"), r#"{"width": 0.125, "num_classes": 11}"#).unwrap();
        let message = Inception::load(&dir.path().join("narrow.pth")).unwrap_err().to_string();
        assert!(message.contains("fc.weight should be F32[11, 256], found F32[10, 256]"), "{message}");
    }

    #[test]
    fn other_networks_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.pth");
        let refuse = |bytes: &[u8], expected: &str| {
            std::fs::write(&path, bytes).unwrap();
            let message = Inception::load(&path).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("use pt_inception-2015-12-05"), "{message}");
        };
        let with = |key: &str, shape: &[usize]| {
            let mut tensors = narrow();
            tensors.insert(key.into(), (shape.to_vec(), vec![0.0; shape.iter().product()]));
            tensors
        };
        let auxiliary = with("AuxLogits.conv0.conv.weight", &[2, 3, 1, 1]);
        refuse(&legacy_file(&auxiliary), "AuxLogits.conv0.conv.weight belongs to an auxiliary head, as in torchvision's");
        let raw = auxiliary.iter().map(|(key, (shape, values))| (key.clone(), RawTensor::f32(shape.clone(), values))).collect();
        refuse(&safetensors(&BTreeMap::new(), &raw), "as in torchvision's");
        refuse(&legacy_file(&with("fc.weight", &[1000, 4])), "1000 classes instead of 1008");
        refuse(&legacy_file(&with("blocks.0.0.conv.weight", &[2, 3, 1, 1])), "named by a wrapper");
        refuse(&legacy_file(&with("layers.conv.weight", &[2, 3, 1, 1])), "NVIDIA's TorchScript");
        refuse(b"\x80\x03cdnnlib\nx\n.", "NVIDIA's inception-2015-12-05.pkl");
        let whole = legacy_file(&narrow());
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let message = Inception::load(&path).unwrap_err().to_string();
        assert!(message.contains("truncated, 565 of 566 tensors are whole") && message.ends_with(" are left)"), "{message}");
    }
}
