//! A Hugging Face checkpoint folder: `config.json` beside `model.safetensors`, whole or in shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::files::read;
use crate::{Error, Result};

/// Largest count a configuration may hold: far above any network, far below an overflow.
const LARGEST: u64 = 1 << 24;

/// One object of `config.json`, with the path of keys that leads to it.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: PathBuf,
    prefix: String,
    entries: Map<String, Value>,
}

impl Section {
    /// Reads the outermost object of `folder/config.json`.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let file = folder.join("config.json");
        let text = read(&file)?;
        let entries = serde_json::from_slice(&text).map_err(|e| Error::Config { path: file.clone(), message: e.to_string() })?;
        Ok(Self { file, prefix: String::new(), entries })
    }

    /// The error that `key` is not what it should be.
    pub(crate) fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        let message = format!("`{}{key}` should be {expected}, found {found}", self.prefix);
        Error::Config { path: self.file.clone(), message }
    }

    /// The entry, where `null` counts as absent, as it does in transformers' files.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|v| !v.is_null())
    }

    /// The object under `key`; empty if it is absent.
    pub(crate) fn section(&self, key: &str) -> Result<Self> {
        let entries = match self.get(key) {
            None => Map::new(),
            Some(Value::Object(entries)) => entries.clone(),
            Some(_) => return Err(self.wrong(key, "an object")),
        };
        Ok(Self { file: self.file.clone(), prefix: format!("{}{key}.", self.prefix), entries })
    }

    /// A count of at least 1.
    pub(crate) fn count(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(n @ 1..=LARGEST) => Ok(n as usize),
                _ => Err(self.wrong(key, "a positive whole number")),
            },
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |v| v.as_f64().filter(|v| v.is_finite()).ok_or_else(|| self.wrong(key, "a number")))
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    /// Refuses any value of `key` but `only`, which is also the default: the network has nothing else.
    pub(crate) fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != only => Err(self.wrong(key, &only.to_string())),
            _ => Ok(()),
        }
    }

    /// As [`only`](Self::only), for a key that must be there.
    pub(crate) fn must_be(&self, key: &str, only: &Value) -> Result<()> {
        if self.get(key) == Some(only) { Ok(()) } else { Err(self.wrong(key, &only.to_string())) }
    }
}

#[derive(Debug)]
struct Entry {
    file: PathBuf,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the file's type; `None` if that is not a type of weights.
    tensor: Option<Tensor>,
}

/// The tensors of a folder.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The file that says which tensors there are.
    list: PathBuf,
    entries: BTreeMap<String, Entry>,
    digest: String,
    device: Device,
}

impl Weights {
    /// Reads `model.safetensors`, or else the shards that `model.safetensors.index.json` names.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        let sharded = !single.is_file() && index.is_file();
        let files = if sharded { shards(&index)? } else { BTreeSet::from(["model.safetensors".to_owned()]) };
        let list = if sharded { index } else { single };
        let mut weights = Self { list, entries: BTreeMap::new(), digest: String::new(), device: Device::Cpu };
        let mut hasher = blake3::Hasher::new();
        for name in files {
            let file = folder.join(name);
            let bytes = read(&file)?;
            hasher.update(&bytes);
            let container = |message: String| Error::Container { path: file.clone(), message };
            let tensors = SafeTensors::deserialize(&bytes).map_err(|e| container(e.to_string()))?;
            for (key, view) in tensors.iter() {
                let floats = matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
                let tensor = if floats { Some(view.load(&Device::Cpu)?) } else { None };
                let entry = Entry { file: file.clone(), dtype: view.dtype(), shape: view.shape().to_vec(), tensor };
                if let Some(first) = weights.entries.insert(key.to_owned(), entry) {
                    return Err(container(format!("tensor {key} is in {}, too", first.file.display())));
                }
            }
        }
        weights.digest = hasher.finalize().to_hex().to_string();
        Ok(weights)
    }

    /// For a network on `device`.
    pub(crate) fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// BLAKE3 of the weight files one after the other, in the order of their names; hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Takes a tensor out, as `f32`; its file may hold `f32`, `f16` or `bf16`.
    pub(crate) fn take(&mut self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(entry) = self.entries.remove(key) else {
            return Err(Error::MissingTensor { path: self.list.clone(), key: key.to_owned(), expected: shape.to_vec() });
        };
        let tensor = match entry.tensor {
            Some(tensor) if entry.shape == shape => tensor.to_dtype(DType::F32)?,
            _ => {
                return Err(Error::TensorMismatch {
                    path: entry.file,
                    key: key.to_owned(),
                    expected: format!("F32, F16 or BF16 {shape:?}"),
                    found: format!("{:?} {:?}", entry.dtype, entry.shape),
                });
            }
        };
        // The sum is finite if all values are; weights are too small to overflow it.
        let sum = tensor.sum_all()?.to_scalar::<f32>()?;
        if !sum.is_finite() {
            return Err(Error::Config { path: entry.file, message: format!("tensor {key} holds values that are not finite") });
        }
        Ok(tensor.to_device(&self.device)?)
    }

    /// Refuses tensors that nobody took, but for those that `unused` names.
    pub(crate) fn finish(self, unused: impl Fn(&str) -> bool) -> Result<()> {
        match self.entries.into_iter().find(|(key, _)| !unused(key)) {
            Some((key, entry)) => Err(Error::UnknownTensor { path: entry.file, key }),
            None => Ok(()),
        }
    }
}

/// File names in an index, in their order.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let wrong = |message: String| Error::Config { path: index.to_owned(), message };
    let value: Value = serde_json::from_slice(&read(index)?).map_err(|e| wrong(e.to_string()))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object).filter(|m| !m.is_empty()) else {
        return Err(wrong("`weight_map` should name the file of every tensor".to_owned()));
    };
    let name = |(key, file): (&String, &Value)| match file.as_str() {
        // Only siblings: an index from elsewhere must not reach other folders.
        Some(name) if Path::new(name).file_name().is_some_and(|n| n == name) => Ok(name.to_owned()),
        _ => Err(wrong(format!("`weight_map.{key}` should be a file name, found {file}"))),
    };
    map.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(path: &Path, tensors: &[(&str, Tensor)]) {
        let tensors: std::collections::HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, path).unwrap();
    }

    fn ones(n: usize, dtype: DType) -> Tensor {
        Tensor::ones(n, dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn shards_are_found_and_digested_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        save(&file("b.safetensors"), &[("x", ones(2, DType::BF16))]);
        save(&file("a.safetensors"), &[("y", ones(3, DType::F16)), ("id", ones(1, DType::I64))]);
        let index = file("model.safetensors.index.json");
        std::fs::write(&index, r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}"#).unwrap();
        let mut weights = Weights::open(dir.path()).unwrap();
        let both = [read(&file("a.safetensors")).unwrap(), read(&file("b.safetensors")).unwrap()].concat();
        assert_eq!(weights.digest(), blake3::hash(&both).to_hex().as_str());
        assert_eq!(weights.take("x", &[2]).unwrap().to_vec1::<f32>().unwrap(), [1.0, 1.0]);
        let unknown = Weights::open(dir.path()).unwrap().finish(|key| key != "y").unwrap_err();
        assert!(matches!(unknown, Error::UnknownTensor { key, .. } if key == "y"));
        let wrong = weights.take("y", &[3, 1]).unwrap_err().to_string();
        assert!(wrong.contains("a.safetensors: tensor y should be F32, F16 or BF16 [3, 1], found F16 [3]"), "{wrong}");
        let wrong = weights.take("id", &[1]).unwrap_err().to_string();
        assert!(wrong.contains("found I64"), "{wrong}");
        let missing = weights.take("z", &[4]).unwrap_err().to_string();
        assert!(missing.contains("index.json has no tensor z (expected shape [4])"), "{missing}");

        for (text, expected) in
            [(r#"{"weight_map": {"x": "../b.safetensors"}}"#, "weight_map.x"), (r#"{"weight_map": {}}"#, "weight_map"), ("{", "index.json")]
        {
            std::fs::write(&index, text).unwrap();
            let message = Weights::open(dir.path()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn bad_files_and_values_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        assert!(Weights::open(dir.path()).unwrap_err().to_string().contains("model.safetensors"));
        std::fs::write(&file, b"not one").unwrap();
        assert!(matches!(Weights::open(dir.path()), Err(Error::Container { .. })));
        save(&file, &[("w", Tensor::new(&[1.0, f32::NAN], &Device::Cpu).unwrap())]);
        let message = Weights::open(dir.path()).unwrap().take("w", &[2]).unwrap_err().to_string();
        assert!(message.contains("tensor w"), "{message}");
    }

    #[test]
    fn configuration_errors_name_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"a": {"n": 0, "x": "1", "none": null, "flag": 1}, "b": 3}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let config = Section::open(dir.path()).unwrap();
        let a = config.section("a").unwrap();
        assert_eq!(a.count("none", 7).unwrap(), 7);
        assert_eq!(config.section("c").unwrap().number("x", 0.5).unwrap(), 0.5);
        let message = |e: Error| e.to_string();
        for (error, expected) in [
            (message(a.count("n", 1).unwrap_err()), "`a.n` should be a positive whole number, found 0"),
            (message(a.number("x", 1.0).unwrap_err()), "`a.x` should be a number, found \"1\""),
            (message(a.flag("flag", true).unwrap_err()), "`a.flag` should be true or false, found 1"),
            (message(config.section("b").unwrap_err()), "`b` should be an object, found 3"),
            (message(config.must_be("model_type", &"clip".into()).unwrap_err()), "`model_type` should be \"clip\", found nothing"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }
}
