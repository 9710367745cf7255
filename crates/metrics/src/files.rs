//! Whole files in and out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::{Error, Result};

/// A file's content; the error names the file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })
}

/// Writes to a temporary name in the same folder, then renames, so that a reader never sees half a file.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_through(path, |file| file.write_all(bytes))
}

/// As [`write_atomically`], for what is never in memory as a whole.
pub(crate) fn write_through(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    // No two writers have the same, in this process or another.
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".tmp-{}-{}", std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(name);
    // A bare file name has the empty path as its parent, which cannot be opened.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let all = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        write(&mut file)?;
        // On the disk before it has its name, or a loss of power could leave the name with half of the content.
        file.into_inner()?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    all().map_err(|source| {
        // Best effort: the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
        Error::Io { action: "write", path: path.to_owned(), source }
    })
}

/// One tensor of a safetensors file to write: type name such as `F32`, shape, little-endian elements.
pub(crate) struct RawTensor {
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl RawTensor {
    pub(crate) fn f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self { dtype: "F32", shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    pub(crate) fn f64(shape: Vec<usize>, values: impl IntoIterator<Item = f64>) -> Self {
        Self { dtype: "F64", shape, bytes: values.into_iter().flat_map(f64::to_le_bytes).collect() }
    }
}

/// A safetensors file with sorted keys. The library's own writer takes the metadata as a hash map, whose
/// order differs from run to run; equal arguments give equal bytes here.
pub(crate) fn safetensors(metadata: &BTreeMap<&str, String>, tensors: &BTreeMap<String, RawTensor>) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let entries: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
    let mut header = format!("{{\"__metadata__\":{{{}}}", entries.join(","));
    let mut end = 0;
    for (key, tensor) in tensors {
        let start = end;
        end += tensor.bytes.len();
        let (dtype, shape, offsets) = (json!(tensor.dtype), json!(tensor.shape), json!([start, end]));
        header += &format!(",{}:{{\"dtype\":{dtype},\"shape\":{shape},\"data_offsets\":{offsets}}}", quoted(key));
    }
    header.push('}');
    // The format asks for elements aligned to 8 bytes, by spaces behind the header.
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    tensors.values().for_each(|tensor| bytes.extend_from_slice(&tensor.bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, SafeTensors};

    use super::*;

    /// The library reads what is written here.
    #[test]
    fn safetensors_are_valid_and_reproducible() {
        let metadata = BTreeMap::from([("width", "0.125".to_owned()), ("quote\"", "a\\b\nö".to_owned())]);
        let make = || {
            safetensors(
                &metadata,
                &BTreeMap::from([
                    ("b".to_owned(), RawTensor::f32(vec![3], &[1.0, -2.5, 3.0])),
                    ("a \"x\"".to_owned(), RawTensor::f64(vec![1, 2], [0.1, 7.0])),
                    ("empty".to_owned(), RawTensor::f64(vec![0, 2], [])),
                ]),
            )
        };
        let bytes = make();
        assert_eq!(bytes, make());
        let (header, found) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header % 8, 0);
        let found = found.metadata().clone().unwrap();
        assert_eq!((found.len(), &found["width"], &found["quote\""]), (2, &metadata["width"], &metadata["quote\""]));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let b = tensors.tensor("b").unwrap();
        assert_eq!((b.dtype(), b.shape(), b.data()[4..8].to_vec()), (Dtype::F32, [3].as_slice(), (-2.5f32).to_le_bytes().to_vec()));
        let a = tensors.tensor("a \"x\"").unwrap();
        assert_eq!((a.dtype(), a.shape(), a.data()[8..].to_vec()), (Dtype::F64, [1, 2].as_slice(), 7f64.to_le_bytes().to_vec()));
        assert_eq!(tensors.tensor("empty").unwrap().shape(), [0, 2]);
    }
}
