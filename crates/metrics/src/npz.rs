//! Numpy's `.npz`: a zip archive of `.npy` arrays, read and written.
//!
//! Source: `numpy/lib/format.py`. Read are versions 1 to 3 of the header, C and Fortran order, either byte
//! order, stored and deflated entries, and all real types. Arrays of objects are pickles, which may run
//! code, and are refused. Sizes are checked against the archive before memory is asked for.
//!
//! ```
//! use scalebench_metrics::npz::{Array, ArrayRef, Npz, Values, write};
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("features.npz");
//! write(&path, &[("feats", ArrayRef { shape: &[2, 2], values: Values::F32(&[1.0, 2.0, 3.0, 4.0]) })])?;
//! let mut file = Npz::open(&path)?;
//! assert_eq!(file.names(), ["feats"]);
//! assert_eq!(file.shape("feats")?, [2, 2]);
//! let Array { shape, data } = file.f64("feats")?;
//! assert_eq!((shape, data), (vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]));
//! assert_eq!(file.f32("feats")?.data, [1.0, 2.0, 3.0, 4.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::files::write_atomically;
use crate::raw::{count, gather, half_to_f32};
use crate::{Error, Result};

const MAGIC: [u8; 6] = *b"\x93NUMPY";

/// Bytes of a header; numpy itself refuses more than 10 000 by default.
const LONGEST_HEADER: usize = 1 << 16;

/// Deflate makes at most 258 bytes of 2 bits.
const LARGEST_RATIO: u64 = 1032;

/// Elements converted at once, to bound the extra memory.
const CHUNK: usize = 1 << 16;

type Archive = ZipArchive<BufReader<File>>;

/// An opened archive; arrays are read on demand.
///
/// Example: [this module](self).
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: Archive,
    /// Index of the entry by name, without `.npy`.
    entries: HashMap<String, usize>,
}

/// An array in row-major order.
///
/// Example: [this module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Array<T> {
    /// Sides, outermost first; none for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub data: Vec<T>,
}

impl Npz {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or [`Error::Archive`] if the file is no zip archive.
    ///
    /// Example: [`npz`](crate::npz).
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        let archive = |message: String| Error::Archive { path: path.to_owned(), message };
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| archive(e.to_string()))?;
        let mut entries = HashMap::new();
        for (index, name) in zip.file_names().enumerate() {
            let name = name.map_err(|e| archive(e.to_string()))?;
            if let Some(name) = name.strip_suffix(".npy") {
                entries.insert(name.to_owned(), index);
            }
        }
        Ok(Self { path: path.to_owned(), archive: zip, entries })
    }

    /// Names of the arrays, sorted.
    /// Example: [`npz`](crate::npz).
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The shape of an array, from its header alone.
    ///
    /// # Errors
    ///
    /// As [`Npz::f64`].
    ///
    /// Example: [`npz`](crate::npz).
    pub fn shape(&mut self, name: &str) -> Result<Vec<usize>> {
        self.entry(name, |archive, index| {
            let mut entry = archive.by_index(index).map_err(|e| e.to_string())?;
            Header::read(&mut entry).map(|(header, _)| header.shape)
        })
    }

    /// Reads an array as `f64`; 64-bit integers beyond 2^53 are rounded.
    ///
    /// # Errors
    ///
    /// [`Error::Array`] if there is none of that name, it holds no real numbers or is damaged.
    ///
    /// Example: [`npz`](crate::npz).
    pub fn f64(&mut self, name: &str) -> Result<Array<f64>> {
        self.array(name, |v| v)
    }

    /// Reads an array as `f32`; other types are rounded.
    ///
    /// # Errors
    ///
    /// As [`Npz::f64`].
    ///
    /// Example: [`npz`](crate::npz).
    pub fn f32(&mut self, name: &str) -> Result<Array<f32>> {
        self.array(name, |v| v as f32)
    }

    /// Reads an array of bytes (`uint8`).
    ///
    /// # Errors
    ///
    /// As [`Npz::f64`], and for any other type.
    pub(crate) fn u8(&mut self, name: &str) -> Result<Array<u8>> {
        self.entry(name, |archive, index| {
            let mut entry = archive.by_index(index).map_err(|e| e.to_string())?;
            Header::read(&mut entry)?.0.check_bytes()?;
            drop(entry);
            read_entry(archive, index, |v| v as u8)
        })
    }

    fn array<T: Copy>(&mut self, name: &str, cast: impl Fn(f64) -> T) -> Result<Array<T>> {
        self.entry(name, |archive, index| read_entry(archive, index, cast))
    }

    fn entry<T>(&mut self, name: &str, read: impl FnOnce(&mut Archive, usize) -> Result<T, String>) -> Result<T> {
        let result = match self.entries.get(name) {
            Some(index) => read(&mut self.archive, *index),
            None => Err(format!("not in the archive, which has: {}", self.names().join(", "))),
        };
        result.map_err(|message| Error::Array { path: self.path.clone(), key: name.to_owned(), message })
    }
}

fn read_entry<T: Copy>(archive: &mut Archive, index: usize, cast: impl Fn(f64) -> T) -> Result<Array<T>, String> {
    let mut entry = archive.by_index(index).map_err(|e| e.to_string())?;
    let (size, packed) = (entry.size(), entry.compressed_size());
    let possible = match entry.compression() {
        CompressionMethod::Stored => packed,
        CompressionMethod::Deflated => packed.saturating_mul(LARGEST_RATIO),
        other => return Err(format!("compressed with {other}, expected stored or deflated")),
    };
    if size > possible {
        return Err(format!("{packed} bytes of the archive cannot hold the {size} that its directory announces"));
    }
    let (header, used) = Header::read(&mut entry)?;
    let n = count(&header.shape).ok_or_else(|| format!("shape {:?} overflows", header.shape))?;
    let bytes = n.checked_mul(header.kind.size);
    if bytes.map(|bytes| bytes as u64) != size.checked_sub(used) {
        let bytes = size.saturating_sub(used);
        return Err(format!("{bytes} bytes for a shape of {:?} and {} bytes per element", header.shape, header.kind.size));
    }
    let mut data = Vec::with_capacity(n);
    let mut buffer = vec![0; header.kind.size * CHUNK.min(n)];
    while data.len() < n {
        let bytes = &mut buffer[..header.kind.size * CHUNK.min(n - data.len())];
        entry.read_exact(bytes).map_err(|e| e.to_string())?;
        data.extend(bytes.chunks_exact(header.kind.size).map(|word| cast(header.kind.number(word))));
    }
    // One more read lets the archive compare its checksum.
    if entry.read(&mut [0]).map_err(|e| e.to_string())? != 0 {
        return Err("longer than announced".into());
    }
    if header.fortran && header.shape.len() > 1 {
        let strides: Vec<usize> = header
            .shape
            .iter()
            .scan(1usize, |stride, side| Some(std::mem::replace(stride, usize::saturating_mul(*stride, *side))))
            .collect();
        data = gather(&header.shape, &strides, 0, |i| data[i]);
    }
    Ok(Array { shape: header.shape, data })
}

/// What a `.npy` file says about itself.
#[derive(Debug, PartialEq)]
struct Header {
    kind: Kind,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Refuses what is not row-major bytes.
    fn check_bytes(&self) -> Result<(), String> {
        match self.kind {
            Kind { class: b'u', size: 1, .. } if !self.fortran => Ok(()),
            _ => Err("expected an array of uint8 in row-major order".into()),
        }
    }
}

/// An array of bytes in a `.npy` file of its own, where it stays.
#[derive(Debug)]
pub(crate) struct ByteArray {
    pub(crate) shape: Vec<usize>,
    pub(crate) file: File,
    /// Where its bytes begin.
    pub(crate) start: u64,
}

impl ByteArray {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let checked = |file: &mut File| -> Result<(Vec<usize>, u64), String> {
            let (header, start) = Header::read(file)?;
            header.check_bytes()?;
            let n = count(&header.shape).ok_or_else(|| format!("shape {:?} overflows", header.shape))?;
            if length.checked_sub(start) != Some(n as u64) {
                return Err(format!("{} bytes for a shape of {:?}", length.saturating_sub(start), header.shape));
            }
            Ok((header.shape, start))
        };
        let found = checked(&mut file).map_err(|message| Error::Array { path: path.to_owned(), key: "npy".into(), message });
        found.map(|(shape, start)| Self { shape, file, start })
    }
}

/// A numpy type of real numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    /// `f`, `i`, `u` or `b`.
    class: u8,
    /// Bytes per element.
    size: usize,
    big_endian: bool,
}

impl Kind {
    fn parse(descr: &str) -> Result<Self, String> {
        let bad = || match descr.as_bytes() {
            [b'|', b'O', ..] | [b'O', ..] => "an array of objects, which is a pickle; refused".to_owned(),
            _ => format!("type {descr}, expected real numbers such as <f4 or |u1"),
        };
        let [order, class, size @ ..] = descr.as_bytes() else { return Err(bad()) };
        let big_endian = *order == b'>';
        let size = match (class, size) {
            (b'b' | b'i' | b'u', b"1") => 1,
            (b'f' | b'i' | b'u', b"2") => 2,
            (b'f' | b'i' | b'u', b"4") => 4,
            (b'f' | b'i' | b'u', b"8") => 8,
            _ => return Err(bad()),
        };
        // `|` says that there is no order, `=` would be this machine's, which a file cannot know.
        match order {
            b'<' | b'>' => {}
            b'|' if size == 1 => {}
            _ => return Err(bad()),
        }
        Ok(Self { class: *class, size, big_endian })
    }

    /// One element of `size` bytes.
    fn number(self, bytes: &[u8]) -> f64 {
        let mut word = [0; 8];
        word[..self.size].copy_from_slice(bytes);
        if self.big_endian {
            word[..self.size].reverse();
        }
        let bits = u64::from_le_bytes(word);
        match (self.class, self.size) {
            (b'f', 2) => half_to_f32(bits as u16).into(),
            (b'f', 4) => f32::from_bits(bits as u32).into(),
            (b'f', _) => f64::from_bits(bits),
            (b'i', size) => {
                let unused = 64 - 8 * size as u32;
                ((bits << unused) as i64 >> unused) as f64
            }
            (b'b', _) => f64::from(u8::from(bits != 0)),
            _ => bits as f64,
        }
    }
}

impl Header {
    /// Also gives the number of bytes read.
    fn read(source: &mut impl Read) -> Result<(Self, u64), String> {
        let mut start = [0; 8];
        source.read_exact(&mut start).map_err(|e| format!("no npy header: {e}"))?;
        if start[..6] != MAGIC {
            return Err("not an npy file".into());
        }
        let mut take = |n| {
            let mut bytes = vec![0; n];
            source.read_exact(&mut bytes).map(|()| bytes).map_err(|e| format!("npy header ends early: {e}"))
        };
        let width = match start[6] {
            1 => 2,
            2 | 3 => 4,
            version => return Err(format!("npy version {version}, expected 1 to 3")),
        };
        let length = take(width)?.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
        if length > LONGEST_HEADER {
            return Err(format!("npy header of {length} bytes"));
        }
        let text = take(length)?;
        let text = String::from_utf8(text).map_err(|_| "npy header is not text".to_owned())?;
        let header = Self::parse(&text).map_err(|message| format!("npy header {:?}: {message}", text.trim_end()))?;
        Ok((header, (8 + width + length) as u64))
    }

    /// A Python dict literal with the keys `descr`, `fortran_order` and `shape`.
    fn parse(text: &str) -> Result<Self, String> {
        let mut rest = Literal(text.trim());
        let (mut kind, mut fortran, mut shape) = (None, None, None);
        rest.expect("{")?;
        while !rest.skip("}") {
            let key = rest.string()?;
            rest.expect(":")?;
            match key {
                "descr" if rest.0.starts_with('[') => return Err("a structured type, expected real numbers".into()),
                "descr" => kind = Some(Kind::parse(rest.string()?)?),
                "fortran_order" if rest.skip("True") => fortran = Some(true),
                "fortran_order" if rest.skip("False") => fortran = Some(false),
                "shape" => shape = Some(rest.tuple()?),
                _ => return Err(format!("unexpected {key}")),
            }
            if !rest.skip(",") {
                rest.expect("}")?;
                break;
            }
        }
        match (kind, fortran, shape, rest.0) {
            (Some(kind), Some(fortran), Some(shape), "") => Ok(Self { kind, fortran, shape }),
            _ => Err("expected descr, fortran_order and shape".into()),
        }
    }
}

/// What is left of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn skip(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        if let Some(rest) = rest {
            self.0 = rest.trim_start();
        }
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.skip(token) { Ok(()) } else { Err(format!("expected {token} before {:?}", self.0)) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.0.starts_with('"') { '"' } else { '\'' };
        let (text, rest) = self
            .0
            .strip_prefix(quote)
            .and_then(|rest| rest.split_once(quote))
            .ok_or_else(|| format!("expected text before {:?}", self.0))?;
        self.0 = rest.trim_start();
        Ok(text)
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        self.expect("(")?;
        let mut items = Vec::new();
        while !self.skip(")") {
            let end = self.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.0.len());
            let item = self.0[..end].parse().map_err(|_| format!("expected a side before {:?}", self.0))?;
            items.push(item);
            self.0 = &self.0[end..];
            // Python 2 wrote long integers so.
            self.skip("L");
            if !self.skip(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(items)
    }
}

/// An array to write: shape and row-major values.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug)]
pub struct ArrayRef<'a> {
    /// Sides, outermost first.
    pub shape: &'a [usize],
    /// As many values as the shape says.
    pub values: Values<'a>,
}

/// Values of an array to write.
///
/// Example: [this module](self).
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Written as `<f4`.
    F32(&'a [f32]),
    /// Written as `<f8`.
    F64(&'a [f64]),
}

/// Writes arrays as `numpy.savez_compressed` does: deflated npy version 1 in C order. Equal arrays give
/// equal bytes, and a reader never sees half a file.
///
/// # Errors
///
/// [`Error::Array`] if a shape and its values do not fit, [`Error::Io`] if the file cannot be written.
///
/// Example: [this module](self).
pub fn write(path: &Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<()> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (key, array) in arrays {
        let fail = |message: String| Error::Array { path: path.to_owned(), key: (*key).to_owned(), message };
        let len = match array.values {
            Values::F32(values) => values.len(),
            Values::F64(values) => values.len(),
        };
        if count(array.shape) != Some(len) {
            return Err(fail(format!("{len} values for a shape of {:?}", array.shape)));
        }
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(6))
            // Not the clock's: equal arrays give equal bytes.
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(len >= 1 << 28);
        writer.start_file(format!("{key}.npy"), options).map_err(|e| fail(e.to_string()))?;
        let written = match array.values {
            Values::F32(values) => write_array(&mut writer, "<f4", array.shape, values, |v| v.to_le_bytes()),
            Values::F64(values) => write_array(&mut writer, "<f8", array.shape, values, |v| v.to_le_bytes()),
        };
        written.map_err(|e| fail(e.to_string()))?;
    }
    let archive = |e: zip::result::ZipError| Error::Archive { path: path.to_owned(), message: e.to_string() };
    write_atomically(path, writer.finish().map_err(archive)?.get_ref())
}

fn write_array<T: Copy, const N: usize>(
    writer: &mut impl Write,
    descr: &str,
    shape: &[usize],
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> std::io::Result<()> {
    writer.write_all(&header(descr, shape))?;
    for chunk in values.chunks(CHUNK) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|v| bytes(*v)).collect();
        writer.write_all(&bytes)?;
    }
    Ok(())
}

/// The start of a npy file of version 1, in numpy's own spelling.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    // A tuple of one has a comma.
    let comma = if shape.len() == 1 { "," } else { "" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", sides.join(", "));
    // Numpy leaves room for the first side to grow to 21 digits, ends with a line feed, and lets elements
    // start at a multiple of 64 bytes, of which at least one is padding.
    let growth = sides.first().map_or(0, |side| 21 - side.len());
    let length = (10 + text.len() + growth + 2).next_multiple_of(64) - 10;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<0$}\n", length - 1).bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{bytes, stored};

    /// Element i of the arrays in `numpy_deflated.npz`.
    fn x(i: usize) -> f64 {
        i as f64 * 5.0 - 50.0
    }

    fn of(n: usize, f: impl Fn(f64) -> f64) -> Vec<f64> {
        (0..n).map(|i| f(x(i))).collect()
    }

    #[test]
    fn arrays_of_numpy_are_read_whatever_their_type_and_order() {
        let mut npz = Npz::open(&stored("numpy_deflated.npz")).unwrap();
        assert_eq!(npz.names().len(), 25);
        let mut check = |name: &str, shape: &[usize], data: Vec<f64>| {
            assert_eq!(npz.shape(name).unwrap(), shape, "{name}");
            let single = npz.f32(name).unwrap();
            assert_eq!((single.shape.as_slice(), single.data), (shape, data.iter().map(|v| *v as f32).collect()), "{name}");
            assert_eq!(npz.f64(name).unwrap(), Array { shape: shape.to_vec(), data }, "{name}");
        };
        for class in ["f2", "f4", "f8"] {
            check(class, &[2, 3, 4], of(24, |v| v / 4.0));
            check(&format!("{class}big"), &[2, 3, 4], of(24, |v| v / 4.0));
        }
        for class in ["i1", "i2", "i4", "i8"] {
            check(class, &[2, 3, 4], of(24, |v| v));
            check(&format!("{class}big"), &[2, 3, 4], of(24, |v| v));
        }
        for class in ["u1", "u2", "u4", "u8"] {
            check(class, &[2, 3, 4], of(24, |v| v + 50.0));
        }
        check("fortran", &[2, 3, 4], of(24, |v| v / 4.0));
        check("fortran2", &[3, 4], of(12, |v| v / 4.0));
        check("bool", &[2, 3, 4], of(24, |v| f64::from(v > 0.0)));
        check("scalar", &[], vec![2.5]);
        check("empty", &[0, 5], vec![]);
        check("vector", &[3], vec![0.1, -7.25, 1e300]);
        check("f32", &[1, 3], vec![f64::from(0.1f32), 2.0, -3.5]);
    }

    #[test]
    fn stored_entries_and_all_header_versions_are_read() {
        let mut npz = Npz::open(&stored("numpy_stored.npz")).unwrap();
        for name in ["vector", "version2", "version3"] {
            assert_eq!(npz.f64(name).unwrap(), Array { shape: vec![3], data: vec![0.1, -7.25, 1e300] }, "{name}");
        }
        assert_eq!(npz.f64("fortran").unwrap().data, of(24, |v| v / 4.0));
        for (name, expected) in [
            ("objects", "array objects: npy header"),
            ("objects", "an array of objects, which is a pickle; refused"),
            ("complex", "type <c16, expected real numbers"),
            ("structured", "a structured type"),
            ("mu", "array mu: not in the archive, which has: complex, fortran, objects"),
        ] {
            let message = npz.f64(name).unwrap_err().to_string();
            assert!(message.contains("numpy_stored.npz: array ") && message.contains(expected), "{message}");
        }
    }

    /// Numpy's bytes of the arrays are reproduced, not only its values.
    #[test]
    fn written_arrays_are_those_of_numpy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let (vector, f32s) = ([0.1, -7.25, 1e300], [0.1f32, 2.0, -3.5]);
        let arrays = [
            ("vector", ArrayRef { shape: &[3], values: Values::F64(&vector) }),
            ("f32", ArrayRef { shape: &[1, 3], values: Values::F32(&f32s) }),
            ("empty", ArrayRef { shape: &[0, 5], values: Values::F32(&[]) }),
            ("scalar", ArrayRef { shape: &[], values: Values::F64(&[2.5]) }),
        ];
        write(&path, &arrays).unwrap();
        let entry = |path: &Path, name: &str| {
            let mut archive = ZipArchive::new(File::open(path).unwrap()).unwrap();
            let mut bytes = Vec::new();
            archive.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        for (name, _) in arrays {
            assert_eq!(entry(&path, name), entry(&stored("numpy_deflated.npz"), name), "{name}");
        }
        let first = std::fs::read(&path).unwrap();
        write(&path, &arrays).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        // More than one chunk.
        let long: Vec<f64> = (0..3 * CHUNK + 17).map(|i| (i as f64).sqrt()).collect();
        write(&path, &[("long", ArrayRef { shape: &[long.len()], values: Values::F64(&long) })]).unwrap();
        assert_eq!(Npz::open(&path).unwrap().f64("long").unwrap().data, long);
        let message = write(&path, &[("mu", ArrayRef { shape: &[2, 2], values: Values::F64(&vector) })]).unwrap_err().to_string();
        assert!(message.ends_with("a.npz: array mu: 3 values for a shape of [2, 2]"), "{message}");
    }

    #[test]
    fn bad_headers_are_refused() {
        let parse = |text: &str| Header::parse(text);
        let good = Header { kind: Kind { class: b'f', size: 4, big_endian: true }, fortran: true, shape: vec![3, 10] };
        // Python 2's long integers, other spacing, double quotes.
        assert_eq!(parse("{\"shape\":(3L ,10L),'fortran_order' : True,'descr':'>f4'}\n"), Ok(good));
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False, }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)} x",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}",
            "{'descr': '=f4', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '|f4', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f3', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<ü', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4",
            "{'more': '<f4'}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// Any single damaged byte and any truncation give an error or other numbers, never a panic.
    #[test]
    fn damaged_archives_do_not_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.npz");
        let bytes = bytes("numpy_stored.npz");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Npz::open(&path).and_then(|mut npz| Ok((npz.f64("vector")?, npz.f64("fortran")?, npz.f64("version3")?)))
        };
        let whole = read(&bytes).unwrap();
        for length in (0..bytes.len()).step_by(31) {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        for at in (0..bytes.len()).step_by(3) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            if let Ok(found) = read(&damaged) {
                assert_eq!(found, whole, "byte {at}: a checksum guards every number");
            }
        }
    }

    #[test]
    fn sizes_are_checked_before_memory_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let read = |method, content: &[u8], announced: Option<u32>| {
            let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
            writer.start_file("mu.npy", SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(content).unwrap();
            let mut bytes = writer.finish().unwrap().into_inner();
            if let Some(size) = announced {
                let start = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
                bytes[start + 24..start + 28].copy_from_slice(&size.to_le_bytes());
            }
            std::fs::write(&path, bytes).unwrap();
            Npz::open(&path).unwrap().f64("mu").unwrap_err().to_string()
        };
        let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
        let array = |shape: &[usize], n: usize| [header("<f8", shape), vec![0; 8 * n]].concat();
        let huge = 1usize << 40;
        assert!(read(stored, &array(&[huge], 3), None).contains("24 bytes for a shape of [1099511627776]"));
        assert!(read(stored, &array(&[huge, huge], 3), None).contains("overflows"));
        assert!(read(deflated, &array(&[4], 3), None).contains("24 bytes for a shape of [4]"));
        assert!(read(deflated, &array(&[2], 3), None).contains("24 bytes for a shape of [2]"));
        let message = read(deflated, &array(&[1 << 28], 3), Some((8 << 28) + 128 - 1));
        assert!(message.contains("cannot hold"), "{message}");
        // Announced as long as its shape, but shorter.
        assert!(!read(deflated, &array(&[6], 3), Some(128 + 48)).is_empty());
        assert!(read(stored, b"\x93NUMPY\x01\0\xff\xff{", None).contains("ends early"));
        assert!(read(stored, b"\x93NUMPY\x02\0\xff\xff\xff\x7f{", None).contains("npy header of 2147483647 bytes"));
        assert!(read(stored, b"\x93NUMPY\x09\0\0\0", None).contains("npy version 9"));
        assert!(read(stored, b"GIF89a..", None).contains("not an npy file"));
        std::fs::write(&path, b"no zip").unwrap();
        assert!(matches!(Npz::open(&path), Err(Error::Archive { .. })));
        assert!(matches!(Npz::open(&dir.path().join("missing.npz")), Err(Error::Io { .. })));
    }
}
