//! Tensors of files that `torch.save` wrote, read without running what is in them.
//!
//! Two containers, told apart by content:
//!
//! - *legacy* (PyTorch before 1.6; the published FID Inception is one): five pickles one after the other,
//!   that is a magic number, a version, a description of the machine, the object, the storages' keys, and
//!   then for each key an `i64` number of elements and the elements;
//! - *zip* (since 1.6): stored entries `<name>/data.pkl` and `<name>/data/<key>`. With `<name>/code/` or `<name>/constants.pkl` it is a
//!   TorchScript archive (`torch.jit.save`): its `data.pkl` holds modules in place of a dict. Their tensors are named by the path of
//!   attributes, as in the program's state dict. The program is not run; of its text the epsilons of batch normalisations are read.
//!
//! Sizes are little-endian. Tensors are strided views of storages; the FID Inception's convolutions lie in
//! TensorFlow's order, so strides matter. Source: PyTorch, `torch/serialization.py`.
//!
//! ```
//! use scalebench_metrics::torch_file::{TorchFile, TorchTensor, TorchValues};
//! let path = "tests/data/torch_zip.pth".as_ref();
//! let bytes = std::fs::read(path)?;
//! let file = TorchFile::open(&bytes, path)?;
//! // A view of the transpose of [[0, 1, 2], [3, 4, 5]].
//! assert!(file.names().any(|name| name == "transposed"));
//! assert_eq!(file.info("transposed"), Some(("F32", &[3, 2][..])));
//! let values = TorchValues::Float(vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
//! assert_eq!(file.tensor("transposed")?, Some(TorchTensor { shape: vec![3, 2], values }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use crate::pickle::{Bytes, Form, Kind, Parsed, Pickle, Slot, Value};
use crate::raw::{gather, half_to_f32};
use crate::{Error, Result};

/// `pickle.dumps(0x1950a86a20f9469cfc6c, protocol=2)`: what every legacy file starts with.
const LEGACY_MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";

/// Version of the legacy container.
const LEGACY_VERSION: i64 = 1001;

/// Tensors and modules of a TorchScript archive that wait or were found, and bytes of a path among them: far above any network, and
/// what keeps the paths in proportion to the file.
const MOST_MODULES: usize = 1 << 16;
const LONGEST_PATH: usize = 255;

/// Bytes of a TorchScript program's text that are looked at; that of a network is some hundred thousand.
const LONGEST_TEXT: u64 = 16 << 20;

/// How a zip file starts.
pub(crate) const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// The tensors in a torch file: names, shapes and where the elements are. Elements are read on demand.
///
/// Example: [this module](self).
#[derive(Debug)]
pub struct TorchFile<'a> {
    path: PathBuf,
    tensors: Tensors,
    script: Option<Script>,
    /// Lengths of vectors of ones that the file leaves out.
    ones: BTreeMap<String, [usize; 1]>,
    storages: Storages<'a>,
}

/// What a TorchScript archive says beyond its tensors.
#[derive(Debug)]
pub(crate) struct Script {
    /// Names of the tensors in the order of the modules' attributes.
    pub(crate) order: Vec<String>,
    /// Epsilons of batch normalisations that the program's text states, each once.
    pub(crate) epsilons: Vec<f64>,
}

/// What is read of a file before any element is.
struct Contents<'a> {
    tensors: Tensors,
    script: Option<Script>,
    storages: Storages<'a>,
    /// Where the elements end too early, if they do.
    cut: Option<String>,
}

#[derive(Debug)]
enum Storages<'a> {
    /// Elements by key; a file that was cut off lacks the last ones.
    Stream(HashMap<String, &'a [u8]>),
    Zip(ZipStorages<'a>),
}

#[derive(Debug)]
struct ZipStorages<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    /// Bytes of the whole file; no entry can be larger.
    len: usize,
    /// Index of the entry by key.
    entries: HashMap<String, usize>,
}

/// A tensor in row-major order.
///
/// Example: [this module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct TorchTensor {
    /// Sides, outermost first; none for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub values: TorchValues,
}

/// Values of a tensor.
///
/// Example: [this module](self).
#[derive(Clone, Debug, PartialEq)]
pub enum TorchValues {
    /// From `float32`, `float16` and `bfloat16` exactly, from `float64` rounded.
    Float(Vec<f32>),
    /// From the integer types and `bool`.
    Integer(Vec<i64>),
}

impl<'a> TorchFile<'a> {
    /// Whether a file starts like a pickle or a zip archive, and so is meant for [`TorchFile::open`].
    pub(crate) fn is_meant(bytes: &[u8]) -> bool {
        // The length that a safetensors file starts with may have any bytes; its ninth byte tells it.
        let pickle = matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{');
        pickle || bytes.starts_with(&ZIP_MAGIC)
    }

    /// Reads the names and shapes of a state dict, or of a TorchScript archive's modules; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::TorchFile`] for anything but a whole file that holds a flat dict of names and tensors or modules with some: a
    /// pickle with other names or opcodes, a view outside its storage, a truncated file (then with the number of whole tensors).
    ///
    /// Example: [`torch_file`](crate::torch_file).
    pub fn open(bytes: &'a [u8], path: &Path) -> Result<Self> {
        let (file, cut) = Self::open_prefix(bytes, path)?;
        match cut {
            None => Ok(file),
            Some(message) => {
                let (whole, all) = (file.whole().count(), file.tensors.len());
                Err(file.error(format!("truncated, {whole} of {all} tensors are whole ({message})")))
            }
        }
    }

    /// As [`TorchFile::open`], but storages that a legacy file lacks at its end are only reported.
    fn open_prefix(bytes: &'a [u8], path: &Path) -> Result<(Self, Option<String>)> {
        let parsed = if bytes.starts_with(&LEGACY_MAGIC) {
            legacy(bytes)
        } else if bytes.starts_with(&ZIP_MAGIC) {
            zipped(bytes)
        } else {
            Err("a Python pickle, but not a state dict from torch.save: reading it would mean running the code it names \
                 (NVIDIA's inception-2015-12-05.pkl is one such)"
                .to_owned())
        };
        let fail = |message| Error::TorchFile { path: path.to_owned(), message };
        let Contents { tensors, script, storages, cut } = parsed.map_err(fail)?;
        Ok((Self { path: path.to_owned(), tensors, script, ones: BTreeMap::new(), storages }, cut))
    }

    /// Names of the tensors, sorted.
    /// Example: [`torch_file`](crate::torch_file).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.ones.keys()).map(String::as_str)
    }

    /// Type in the manner of safetensors, such as `F32`, and shape of a tensor.
    /// Example: [`torch_file`](crate::torch_file).
    pub fn info(&self, name: &str) -> Option<(&'static str, &[usize])> {
        let ones = || self.ones.get(name).map(|shape| (Kind::F32.name(), shape.as_slice()));
        self.tensors.get(name).map(|slot| (slot.kind.name(), slot.shape.as_slice())).or_else(ones)
    }

    /// What a TorchScript archive says beyond its tensors; `None` of other files.
    pub(crate) fn script(&self) -> Option<&Script> {
        self.script.as_ref()
    }

    /// Gives tensors other names, old before new.
    pub(crate) fn rename(&mut self, names: Vec<(String, String)>) -> Parsed<()> {
        let slots: Vec<_> = names.into_iter().filter_map(|(old, new)| Some((new, self.tensors.remove(&old)?))).collect();
        for (new, slot) in slots {
            if self.tensors.insert(new.clone(), slot).is_some() {
                return Err(format!("tensor {new} is there twice"));
            }
        }
        Ok(())
    }

    /// Adds a vector of ones that the file leaves out.
    pub(crate) fn add_ones(&mut self, name: String, len: usize) {
        self.ones.insert(name, [len]);
    }

    /// Reads one tensor; `None` if there is none of that name.
    ///
    /// # Errors
    ///
    /// [`Error::TorchFile`] for a damaged entry of a zip archive.
    ///
    /// Example: [`torch_file`](crate::torch_file).
    pub fn tensor(&self, name: &str) -> Result<Option<TorchTensor>> {
        let Some(slot) = self.tensors.get(name) else {
            let ones = |shape: &[usize; 1]| TorchTensor { shape: shape.to_vec(), values: TorchValues::Float(vec![1.0; shape[0]]) };
            return Ok(self.ones.get(name).map(ones));
        };
        let values = match &self.storages {
            Storages::Stream(storages) => {
                let bytes = storages.get(&slot.storage).ok_or_else(|| self.error(format!("truncated before tensor {name}")))?;
                values(slot, bytes)
            }
            Storages::Zip(storages) => {
                let bytes = storages.read(slot).map_err(|message| self.error(format!("tensor {name}: {message}")))?;
                values(slot, &bytes)
            }
        };
        Ok(Some(TorchTensor { shape: slot.shape.clone(), values }))
    }

    /// Names of the tensors whose storage is there.
    fn whole(&self) -> impl Iterator<Item = &str> {
        let is_there = |slot: &Slot| match &self.storages {
            Storages::Stream(storages) => storages.contains_key(&slot.storage),
            Storages::Zip(..) => true,
        };
        self.tensors.iter().filter(move |(_, slot)| is_there(slot)).map(|(name, _)| name.as_str())
    }

    fn error(&self, message: String) -> Error {
        Error::TorchFile { path: self.path.clone(), message }
    }
}

type Tensors = BTreeMap<String, Slot>;

fn legacy(bytes: &[u8]) -> Parsed<Contents<'_>> {
    let mut rest = Bytes { all: bytes, at: LEGACY_MAGIC.len() };
    let version = Pickle::read(&mut rest)?;
    if !matches!(version.root(), Value::Int(LEGACY_VERSION)) {
        return Err(format!("version {:?}, expected {LEGACY_VERSION}", version.root()));
    }
    let machine = Pickle::read(&mut rest)?;
    let little = entries(&machine).is_some_and(|mut all| all.any(|entry| matches!(entry, ("little_endian", Value::Bool(true)))));
    if !little {
        return Err("not from a little-endian machine".into());
    }
    let object = Pickle::read(&mut rest)?;
    let tensors = state_dict(&object)?;
    let keys = Pickle::read(&mut rest)?;
    let Value::List(keys_list) = keys.root() else { return Err("the storages' keys are not a list".into()) };
    let mut storages = HashMap::new();
    let mut cut = None;
    for id in keys_list {
        let Value::Text(key) = keys.value(*id) else { return Err("a storage's key is not text".into()) };
        let (kind, len) = *object.storages.get(key).ok_or_else(|| format!("storage {key} belongs to no tensor"))?;
        let start = rest.at;
        let elements = rest.array().and_then(|found| {
            let found = i64::from_le_bytes(found);
            if usize::try_from(found) != Ok(len) {
                return Ok(Err(format!("storage {key} at byte {start} has {found} elements, expected {len}")));
            }
            let size = len.checked_mul(kind.size()).ok_or("too large")?;
            rest.take(size).map(Ok)
        });
        match elements {
            Ok(elements) => {
                if storages.insert((*key).to_owned(), elements?).is_some() {
                    return Err(format!("storage {key} is listed twice"));
                }
            }
            Err(message) => {
                cut = Some(format!("storage {key} at byte {start}: {message}"));
                break;
            }
        }
    }
    if cut.is_none() {
        if let Some(key) = object.storages.keys().filter(|key| !storages.contains_key(**key)).min() {
            return Err(format!("storage {key} is not in the file"));
        }
        if rest.at != bytes.len() {
            return Err(format!("{} bytes follow the last storage", bytes.len() - rest.at));
        }
    }
    Ok(Contents { tensors, script: None, storages: Storages::Stream(storages), cut })
}

fn zipped(bytes: &[u8]) -> Parsed<Contents<'_>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let mut names = Vec::with_capacity(archive.len());
    for name in archive.file_names() {
        names.push(name.map_err(|e| e.to_string())?.into_owned());
    }
    let is_script = names.iter().any(|name| name.ends_with("/constants.pkl") || name.contains("/code/"));
    let pickle = names.iter().find_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let root = pickle.ok_or("a zip archive without a data.pkl, so not from torch.save")?.to_owned();
    let order = names.iter().position(|name| *name == format!("{root}/byteorder"));
    if let Some(index) = order
        && zip_entry(&mut archive, index, 16)? != b"little"
    {
        return Err("not from a little-endian machine".into());
    }
    let index = names.iter().position(|name| *name == format!("{root}/data.pkl")).ok_or("no data.pkl")?;
    let pickle = zip_entry(&mut archive, index, bytes.len())?;
    let mut rest = Bytes { all: &pickle, at: 0 };
    let (object, tensors, script) = if is_script {
        let object = Pickle::read_as(Form::Script, &mut rest)?;
        let (tensors, order) = modules(&object)?;
        let epsilons = epsilons(&program(&mut archive, &names)?);
        (object, tensors, Some(Script { order, epsilons }))
    } else {
        let object = Pickle::read(&mut rest)?;
        let tensors = state_dict(&object)?;
        (object, tensors, None)
    };
    let folder = format!("{root}/data/");
    let entries: HashMap<String, usize> =
        names.iter().enumerate().filter_map(|(index, name)| Some((name.strip_prefix(&folder)?.to_owned(), index))).collect();
    for (key, (kind, len)) in &object.storages {
        let index = *entries.get(*key).ok_or_else(|| format!("storage {key} is not in the archive"))?;
        let entry = archive.by_index_data(index).map_err(|e| e.to_string())?;
        let (expected, found) = (len.checked_mul(kind.size()), entry.size());
        if expected.map(|n| n as u64) != Some(found) {
            return Err(format!("storage {key} has {found} bytes, expected {len} elements of {} bytes", kind.size()));
        }
    }
    Ok(Contents { tensors, script, storages: Storages::Zip(ZipStorages { archive, len: bytes.len(), entries }), cut: None })
}

impl ZipStorages<'_> {
    /// The elements behind a slot; also checks their CRC-32.
    fn read(&self, slot: &Slot) -> Parsed<Vec<u8>> {
        let index = *self.entries.get(&slot.storage).ok_or("no storage")?;
        // The clone shares the central directory.
        zip_entry(&mut self.archive.clone(), index, self.len)
    }
}

/// A stored entry of at most `limit` bytes.
fn zip_entry(archive: &mut ZipArchive<Cursor<&[u8]>>, index: usize, limit: usize) -> Parsed<Vec<u8>> {
    let mut entry = archive.by_index(index).map_err(|e| e.to_string())?;
    // `torch.save` never compresses; insisting on it bounds every size by the file's.
    if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
        return Err("a compressed entry, which torch.save does not write".into());
    }
    if entry.size() > limit as u64 {
        return Err(format!("an entry of {} bytes", entry.size()));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The text of a TorchScript archive's program.
fn program(archive: &mut ZipArchive<Cursor<&[u8]>>, names: &[String]) -> Parsed<String> {
    let mut text = Vec::new();
    for (index, _) in names.iter().enumerate().filter(|(_, name)| name.contains("/code/") && name.ends_with(".py")) {
        let left = LONGEST_TEXT - text.len() as u64;
        // The only entries that torch.jit.save compresses.
        let entry = archive.by_index(index).map_err(|e| e.to_string())?;
        entry.take(left + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
        if text.len() as u64 > LONGEST_TEXT {
            return Err(format!("a program of more than {LONGEST_TEXT} bytes of text"));
        }
        text.push(b'\n');
    }
    String::from_utf8(text).map_err(|_| "a program that is not UTF-8".into())
}

/// Epsilons of the batch normalisations in a program's text, each once, in the order in which they come.
///
/// `torch.jit.script` writes a constant into the class that has running means, `eps : Final[float] = 0.001`; `torch.jit.trace` writes
/// the number into the call, as the eighth argument of `torch.batch_norm`.
fn epsilons(program: &str) -> Vec<f64> {
    let mut found: Vec<f64> = Vec::new();
    let mut is_norm = false;
    for line in program.lines().map(str::trim_start) {
        if line.starts_with("class ") {
            is_norm = false;
        }
        is_norm |= line.starts_with("__buffers__") && line.contains("\"running_var\"");
        let constant = line.strip_prefix("eps : Final[float] = ").filter(|_| is_norm);
        let call = line.split_once("torch.batch_norm(").and_then(|(_, arguments)| arguments.split(',').nth(7));
        for epsilon in [constant, call].into_iter().flatten().filter_map(|number| number.trim().parse().ok()) {
            if !found.contains(&epsilon) {
                found.push(epsilon);
            }
        }
    }
    found
}

/// Entries with text keys of the dict at a pickle's root.
fn entries<'a, 'p>(pickle: &'p Pickle<'a>) -> Option<impl Iterator<Item = (&'a str, &'p Value<'a>)>> {
    let Value::Dict(pairs) = pickle.root() else { return None };
    Some(pairs.iter().filter_map(|(key, value)| match pickle.value(*key) {
        Value::Text(key) => Some((*key, pickle.value(*value))),
        _ => None,
    }))
}

fn state_dict(pickle: &Pickle<'_>) -> Parsed<Tensors> {
    let Value::Dict(pairs) = pickle.root() else { return Err("holds something other than a dict of tensors".into()) };
    let mut tensors = BTreeMap::new();
    for (key, value) in pairs {
        let Value::Text(key) = pickle.value(*key) else { return Err("a key of the dict is not text".into()) };
        match pickle.value(*value) {
            Value::Tensor(slot) => {
                if tensors.insert((*key).to_owned(), (**slot).clone()).is_some() {
                    return Err(format!("tensor {key} is there twice"));
                }
            }
            Value::Dict(_) => {
                return Err(format!("entry {key} is a dict: a training checkpoint; save its state dict alone"));
            }
            _ => return Err(format!("entry {key} is not a tensor")),
        }
    }
    Ok(tensors)
}

/// The tensors of a TorchScript archive's modules, and their names in the order of the attributes: depth first, each module once.
fn modules(pickle: &Pickle<'_>) -> Parsed<(Tensors, Vec<String>)> {
    let Value::Object(_) = pickle.root() else { return Err("a TorchScript archive that holds something other than a module".into()) };
    let (mut tensors, mut order, mut seen) = (BTreeMap::new(), Vec::new(), HashSet::new());
    // What is still to be visited, the next one last.
    let mut rest = vec![(pickle.root_id(), String::new())];
    while let Some((id, path)) = rest.pop() {
        match pickle.value(id) {
            Value::Tensor(slot) => {
                if tensors.insert(path.clone(), (**slot).clone()).is_some() {
                    return Err(format!("tensor {path} is there twice"));
                }
                order.push(path);
            }
            Value::Object(attributes) if seen.insert(id) => {
                for (key, value) in attributes.iter().flatten().rev() {
                    let Value::Text(key) = pickle.value(*key) else { return Err("an attribute's name is not text".into()) };
                    // Only these go on, so that no path is made for what is not looked at.
                    if let Value::Tensor(_) | Value::Object(_) = pickle.value(*value) {
                        let dot = if path.is_empty() { "" } else { "." };
                        if path.len() + key.len() >= LONGEST_PATH || rest.len() + order.len() >= MOST_MODULES {
                            return Err(format!(
                                "more than {MOST_MODULES} tensors and modules, or a path of more than {LONGEST_PATH} bytes"
                            ));
                        }
                        rest.push((*value, format!("{path}{dot}{key}")));
                    }
                }
            }
            _ => {}
        }
    }
    Ok((tensors, order))
}

/// `bytes` holds the slot's whole storage.
fn values(slot: &Slot, bytes: &[u8]) -> TorchValues {
    fn each<const N: usize, T>(slot: &Slot, bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (words, _) = bytes.as_chunks::<N>();
        gather(&slot.shape, &slot.strides, slot.offset, |i| from(words[i]))
    }
    match slot.kind {
        Kind::F64 => TorchValues::Float(each(slot, bytes, |w| f64::from_le_bytes(w) as f32)),
        Kind::F32 => TorchValues::Float(each(slot, bytes, f32::from_le_bytes)),
        Kind::F16 => TorchValues::Float(each(slot, bytes, |w| half_to_f32(u16::from_le_bytes(w)))),
        Kind::Bf16 => TorchValues::Float(each(slot, bytes, |w| f32::from_bits(u32::from(u16::from_le_bytes(w)) << 16))),
        Kind::I64 => TorchValues::Integer(each(slot, bytes, i64::from_le_bytes)),
        Kind::I32 => TorchValues::Integer(each(slot, bytes, |w| i32::from_le_bytes(w).into())),
        Kind::I16 => TorchValues::Integer(each(slot, bytes, |w| i16::from_le_bytes(w).into())),
        Kind::I8 => TorchValues::Integer(each(slot, bytes, |w| i8::from_le_bytes(w).into())),
        Kind::U8 => TorchValues::Integer(each(slot, bytes, |[b]: [u8; 1]| b.into())),
        Kind::Bool => TorchValues::Integer(each(slot, bytes, |[b]: [u8; 1]| (b != 0).into())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::test_data::{bytes, json};

    fn int(v: usize) -> Vec<u8> {
        match v {
            0..=0xff => vec![b'K', v as u8],
            0x100..=0xffff => [b"M".as_slice(), &(v as u16).to_le_bytes()].concat(),
            _ => [b"J".as_slice(), &(v as u32).to_le_bytes()].concat(),
        }
    }

    fn text(t: &str) -> Vec<u8> {
        [b"X".as_slice(), &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat()
    }

    fn tuple(items: &[usize]) -> Vec<u8> {
        let body: Vec<u8> = items.iter().copied().flat_map(int).collect();
        match items.len() {
            0 => b")".to_vec(),
            n @ 1..=3 => [body, vec![0x84 + n as u8]].concat(),
            _ => [b"(".to_vec(), body, b"t".to_vec()].concat(),
        }
    }

    fn zip(entries: &[(&str, &[u8], CompressionMethod)]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content, method) in entries {
            writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(*method)).unwrap();
            std::io::Write::write_all(&mut writer, content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    /// A module with these tensors, by the rest of their paths and their places among the storages, in their order.
    fn module(tensors: &[(&str, usize, &[usize])]) -> Vec<u8> {
        let mut object = b"c__torch__.made\nModule\n)\x81}(".to_vec();
        object.extend(
            [text("training"), b"\x89".to_vec(), text("hook"), b"N".to_vec(), text("rate"), b"G\x3f\xe0\0\0\0\0\0\0".to_vec()].concat(),
        );
        object.extend([text("stride"), b"ctorch.jit._pickle\nbuild_intlist\n(](K\x01K\x02etR".to_vec()].concat());
        let first = |path: &'_ str| path.split_once('.').map_or(path.to_owned(), |(first, _)| first.to_owned());
        for group in tensors.chunk_by(|(a, ..), (b, ..)| first(a) == first(b)) {
            object.extend(text(&first(group[0].0)));
            if let [(path, key, shape)] = group
                && !path.contains('.')
            {
                let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
                object.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                object.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key.to_string()), text("cuda:0")].concat());
                object.extend([int(shape.iter().product()), b"tQ".to_vec(), int(0), tuple(shape), tuple(&strides)].concat());
                object.extend(b"\x88ccollections\nOrderedDict\n)RtR");
            } else {
                let inner: Vec<_> = group.iter().map(|(path, key, shape)| (path.split_once('.').unwrap().1, *key, *shape)).collect();
                object.extend(module(&inner));
            }
        }
        object.extend(b"ub");
        object
    }

    /// A TorchScript archive with these tensors, in the order of its modules' attributes, and a program's text.
    pub(crate) fn script_file(tensors: &[(String, Vec<usize>, Vec<f32>)], program: &str) -> Vec<u8> {
        let places: Vec<_> = tensors.iter().enumerate().map(|(i, (name, shape, _))| (name.as_str(), i, shape.as_slice())).collect();
        let object = [b"\x80\x02".to_vec(), module(&places), b".".to_vec()].concat();
        let elements = |(i, (_, _, values)): (usize, &(_, _, Vec<f32>))| {
            (format!("made/data/{i}"), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
        };
        let storages: Vec<_> = tensors.iter().enumerate().map(elements).collect();
        let mut entries: Vec<(&str, &[u8], _)> =
            storages.iter().map(|(name, bytes)| (name.as_str(), &bytes[..], CompressionMethod::Stored)).collect();
        entries.push(("made/data.pkl", &object, CompressionMethod::Stored));
        entries.push(("made/code/__torch__/made.py", program.as_bytes(), CompressionMethod::Deflated));
        entries.push(("made/constants.pkl", b"\x80\x02).", CompressionMethod::Stored));
        zip(&entries)
    }

    /// A legacy file in the layout of the published Inception: convolutions in the memory order height,
    /// width, input, output; the classifier transposed; a counter beside each batch normalisation.
    pub(crate) fn legacy_file(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<u8> {
        let mut memo = 0u32;
        let mut put = |pickle: &mut Vec<u8>| {
            if memo < 256 {
                pickle.extend([b'q', memo as u8])
            } else {
                pickle.extend([b"r".as_slice(), &memo.to_le_bytes()].concat())
            }
            memo += 1;
        };
        let mut object = b"\x80\x02}".to_vec();
        put(&mut object);
        object.push(b'(');
        // Keys in an order of their own, as addresses are.
        let mut storages: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut add = |name: &str, class: &str, shape: &[usize], strides: &[usize], elements: Vec<u8>, len: usize| {
            let key = (93_945_540_982_624 - 7919 * (storages.len() as u64 * 31 % 577)).to_string();
            object.extend(text(name));
            put(&mut object);
            object.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            object.extend(text("storage"));
            object.extend(format!("ctorch\n{class}\n").bytes());
            object.extend(text(&key));
            put(&mut object);
            object.extend([text("cpu"), int(len), b"NtQ".to_vec(), int(0), tuple(shape), tuple(strides), b"\x89NtR".to_vec()].concat());
            assert!(storages.insert(key, [&(len as u64).to_le_bytes(), &elements[..]].concat()).is_none());
        };
        for (name, (shape, values)) in tensors {
            let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
            let (strides, memory) = match shape[..] {
                [o, i, h, w] => {
                    let at = |k: usize| (k % o, k / o % i, k / (o * i) % w, k / (o * i * w));
                    let element = |(o_, i_, w_, h_): (usize, usize, usize, usize)| values[((o_ * i + i_) * h + h_) * w + w_];
                    (vec![1, o, o * i * w, o * i], (0..values.len()).map(|k| element(at(k))).collect())
                }
                [rows, columns] => (vec![1, rows], (0..values.len()).map(|k| values[k % rows * columns + k / rows]).collect()),
                // Row-major.
                _ => ((0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect(), values.clone()),
            };
            add(name, "FloatStorage", shape, &strides, bytes(memory), values.len());
            if let Some(bn) = name.strip_suffix("bn.bias") {
                add(&format!("{bn}bn.num_batches_tracked"), "LongStorage", &[], &[], 5u64.to_le_bytes().to_vec(), 1);
            }
        }
        object.extend(b"u.");
        let mut file = LEGACY_MAGIC.to_vec();
        file.extend(
            b"\x80\x02M\xe9\x03.\x80\x02}q\0(X\x10\0\0\0protocol_versionq\x01M\xe9\x03X\x0d\0\0\0little_endianq\x02\x88X\x0a\0\0\0",
        );
        file.extend(b"type_sizesq\x03}q\x04(X\x05\0\0\0shortq\x05K\x02X\x03\0\0\0intq\x06K\x04X\x04\0\0\0longq\x07K\x04uu.");
        file.extend(object);
        file.extend(b"\x80\x02]q\0(");
        file.extend(storages.keys().flat_map(|key| text(key)));
        file.extend(b"e.");
        file.extend(storages.into_values().flatten());
        file
    }

    fn open(bytes: &[u8]) -> Result<TorchFile<'_>> {
        TorchFile::open(bytes, Path::new("a.pth"))
    }

    /// Every tensor of the file, or the first error.
    fn all(file: &TorchFile<'_>) -> Result<BTreeMap<String, TorchTensor>> {
        file.names().map(|name| Ok((name.to_owned(), file.tensor(name)?.unwrap()))).collect()
    }

    /// Files by `torch.save` against what `torch.load` says of them.
    #[test]
    fn both_containers_hold_what_torch_put_there() {
        let expected = json("torch_files.json");
        let expected = expected.as_object().unwrap();
        for name in ["torch_legacy.pth", "torch_zip.pth"] {
            let bytes = bytes(name);
            assert!(TorchFile::is_meant(&bytes) && !TorchFile::is_meant(b"\x80\x02\0\0\0\0\0\0{\"a\":"));
            let file = open(&bytes).unwrap();
            let tensors = all(&file).unwrap();
            assert_eq!(tensors.len(), expected.len());
            for (key, tensor) in tensors {
                let expected = &expected[&key];
                let list = |key: &str| -> Option<Vec<&str>> { expected.get(key)?.as_array()?.iter().map(|v| v.as_str()).collect() };
                let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
                assert_eq!(tensor.shape, shape, "{name}: {key}");
                match tensor.values {
                    TorchValues::Float(values) => {
                        let expected: Vec<f32> = list("values").unwrap().iter().map(|v| v.parse::<f64>().unwrap() as f32).collect();
                        assert_eq!(values, expected, "{name}: {key}");
                    }
                    TorchValues::Integer(values) => {
                        let expected: Vec<i64> = list("integers").unwrap().iter().map(|v| v.parse().unwrap()).collect();
                        assert_eq!(values, expected, "{name}: {key}");
                    }
                }
            }
            assert_eq!(file.info("conv.weight"), Some(("F32", [2, 3, 1, 7].as_slice())));
            assert_eq!(file.info("half"), Some(("F16", [4].as_slice())));
            assert!(file.info("missing").is_none() && file.tensor("missing").unwrap().is_none());
        }
    }

    /// What `torch.jit.save` wrote; names and their order are those of the program's state dict.
    #[test]
    fn modules_of_a_program_are_read_as_names_and_tensors() {
        let traced = bytes("torch_traced.pt");
        assert_eq!(open(&traced).unwrap().script().unwrap().epsilons, [1e-5]);
        let bytes = bytes("torch_script.pt");
        let file = open(&bytes).unwrap();
        let unit = ["conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"];
        let names: Vec<String> = ["a", "seq.0"].iter().flat_map(|at| unit.map(|part| format!("{at}.{part}"))).collect();
        let script = file.script().unwrap();
        assert_eq!((&script.order, &script.epsilons[..]), (&names, &[1e-3][..]));
        let tensors = all(&file).unwrap();
        assert_eq!(tensors.len(), names.len());
        // The first was made as 0, 1, 2, …, the second as its opposite.
        for (at, sign, inputs) in [("a", 1.0, 3), ("seq.0", -1.0, 2)] {
            let values = (0..2 * inputs).map(|i| sign * i as f32).collect();
            let expected = TorchTensor { shape: vec![2, inputs, 1, 1, 1], values: TorchValues::Float(values) };
            assert_eq!(tensors[&format!("{at}.conv3d.weight")], expected);
        }
        assert_eq!(tensors["a.bn.num_batches_tracked"].values, TorchValues::Integer(vec![0]));
    }

    fn small() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let tensor = |shape: &[usize]| {
            let n: usize = shape.iter().product();
            (shape.to_vec(), (0..n).map(|i| i as f32 + n as f32 / 1024.0).collect())
        };
        BTreeMap::from([
            ("a.conv.weight".into(), tensor(&[5, 4, 3, 2])),
            ("a.bn.bias".into(), tensor(&[5])),
            ("b.conv.weight".into(), tensor(&[3, 1, 1, 300])),
            ("fc.weight".into(), tensor(&[7, 9])),
        ])
    }

    #[test]
    fn tensorflow_order_becomes_row_major() {
        let bytes = legacy_file(&small());
        let file = open(&bytes).unwrap();
        assert_eq!(file.tensors["a.conv.weight"].strides, [1, 5, 40, 20]);
        assert_eq!(file.tensors["fc.weight"].strides, [1, 7]);
        let tensors = all(&file).unwrap();
        assert_eq!(tensors.len(), 5);
        for (key, (shape, values)) in small() {
            assert_eq!(tensors[&key], TorchTensor { shape, values: TorchValues::Float(values) }, "{key}");
        }
        let counter = TorchTensor { shape: vec![], values: TorchValues::Integer(vec![5]) };
        assert_eq!(tensors["a.bn.num_batches_tracked"], counter);
    }

    #[test]
    fn truncated_files_are_errors_that_count_what_is_whole() {
        let synthetic = legacy_file(&small());
        let mut last = 0;
        for length in 0..synthetic.len() {
            let message = open(&synthetic[..length]).unwrap_err().to_string();
            if let Ok((file, cut)) = TorchFile::open_prefix(&synthetic[..length], Path::new("a.pth")) {
                assert!(cut.is_some());
                let whole: Vec<&str> = file.whole().collect();
                assert!(message.contains(&format!("truncated, {} of 5 tensors are whole", whole.len())), "{message}");
                assert!(whole.len() >= last);
                last = whole.len();
                for name in file.names() {
                    assert_eq!(file.tensor(name).is_ok(), whole.contains(&name), "{name} of {length} bytes");
                }
            }
        }
        assert_eq!(last, 4);
        for name in ["torch_legacy.pth", "torch_zip.pth", "torch_script.pt", "torch_traced.pt"] {
            let bytes = bytes(name);
            for length in 0..bytes.len() {
                assert!(open(&bytes[..length]).is_err(), "{name}: {length} of {} bytes", bytes.len());
            }
        }
    }

    /// Any single damaged byte gives an error or other numbers, never a panic or a huge allocation.
    #[test]
    fn damaged_files_do_not_panic() {
        for name in ["torch_legacy.pth", "torch_zip.pth", "torch_script.pt", "torch_traced.pt"] {
            let bytes = bytes(name);
            let mut refused = 0;
            for at in 0..bytes.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= flip;
                    refused += usize::from(open(&damaged).and_then(|file| all(&file)).is_err());
                }
            }
            assert!(refused > bytes.len() / 4, "{name}: {refused}");
        }
    }

    #[test]
    fn what_is_no_state_dict_is_refused_with_the_reason() {
        let refuse = |bytes: &[u8], expected: &str| {
            let message = open(bytes).unwrap_err().to_string();
            assert!(message.starts_with("cannot read torch file a.pth") && message.contains(expected), "{message}");
        };
        refuse(b"\x80\x04\x95\0", "running the code");
        let good = legacy_file(&small());
        refuse(&[&good[..], b"x"].concat(), "1 bytes follow the last storage");
        // What the object would be if it were something else.
        let start = good.windows(4).rposition(|w| w == b"\x80\x02}q").unwrap();
        let with = |object: &[u8]| [&good[..start], object, b"\x80\x02]."].concat();
        refuse(&with(b"\x80\x02]."), "something other than a dict of tensors");
        refuse(&with(b"\x80\x02}X\x05\0\0\0epochK\x03s."), "entry epoch is not a tensor");
        refuse(&with(b"\x80\x02}X\x0a\0\0\0state_dict}s."), "save its state dict alone");
        refuse(&with(b"\x80\x02}K\x01K\x03s."), "a key of the dict is not text");
        refuse(&with(b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."), "refused the name posix.system");
        let big = good.iter().position(|b| *b == 0x88).unwrap();
        let mut bytes = good.clone();
        bytes[big] = 0x89;
        refuse(&bytes, "not from a little-endian machine");

        let stored = CompressionMethod::Stored;
        let script: [(&str, &[u8], _); 2] = [("m/data.pkl", b"\x80\x02}.", stored), ("m/code/__torch__.py", b"", stored)];
        refuse(&zip(&script), "a TorchScript archive that holds something other than a module");
        let deep = vec![("a.".repeat(200) + "weight", vec![1], vec![1.0])];
        refuse(&script_file(&deep, ""), "a path of more than 255 bytes");
        let short = vec![("weight".to_owned(), vec![1], vec![1.0])];
        refuse(&script_file(&short, &"#".repeat(LONGEST_TEXT as usize + 1)), "a program of more than 16777216 bytes of text");
        refuse(&zip(&[("mu.npy", b"x", stored)]), "without a data.pkl");
        let zeros = [b"\x80\x02}.".as_slice(), &[0; 4096]].concat();
        refuse(&zip(&[("m/data.pkl", &zeros, CompressionMethod::Deflated)]), "a compressed entry");
        refuse(&zip(&[("m/data.pkl", b"\x80\x02}.", stored), ("m/byteorder", b"big", stored)]), "not from a little-endian machine");
    }
}
