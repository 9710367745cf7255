//! Feature files: what an extractor said about a set of images, with how it was made.

use std::io::Write;
use std::path::Path;

use faer::Mat;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::files::{read, write_through};
use crate::{Error, Preprocess, Result};

/// Version of the feature file format. Files of version 1 carry no digest.
const FORMAT_VERSION: u32 = 2;

/// The one metadata entry; a single JSON value keeps the file's bytes independent of hash order.
const METADATA_KEY: &str = "scalebench-features";

/// How a feature set was made.
///
/// Example: [`FeatureSet`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Network, width and tap, such as `inception-v3-fid/w1/2048`.
    pub extractor: String,
    /// BLAKE3 digest of the weights, hexadecimal.
    pub weights: String,
    /// From image to network input.
    pub preprocess: Preprocess,
}

/// Features of a set of images, one row per image or crop.
///
/// ```
/// use scalebench_metrics::{FeatureSet, Preprocess, Provenance};
/// let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// let names = vec!["a.png".to_owned(), "b.png".to_owned()];
/// let set = FeatureSet::new(names, vec![0, 1], vec![1.0, 2.0, 3.0, 4.0], 2, provenance)?;
/// assert_eq!((set.len(), set.is_empty()), (2, false));
/// // A file holds all of it, and says whether it still does.
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("set.safetensors");
/// set.save(&file)?;
/// assert_eq!(FeatureSet::load(&file)?, set);
/// assert_eq!(FeatureSet::load_digested(&file)?.digest(), set.digest());
/// // Another network's numbers do not compare.
/// let mut other = set.clone();
/// other.provenance.extractor = "another".to_owned();
/// assert!(set.check_comparable(&set).is_ok() && set.provenance.check_comparable(&other.provenance).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureSet {
    /// Image ids; crops carry `#k` behind the id of their image.
    pub names: Vec<String>,
    /// Which rows belong together: the number of the source image or prompt, shared by its crops and
    /// by other methods' images of it. Intervals resample these, never single rows.
    pub groups: Vec<u32>,
    /// `(len, dim)` row-major.
    pub data: Vec<f32>,
    /// Values per row.
    pub dim: usize,
    /// How the set was made.
    pub provenance: Provenance,
}

/// The metadata entry of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    n: usize,
    dim: usize,
    /// Redundant with `provenance.preprocess`, for readers that only look.
    preprocess_id: String,
    provenance: Provenance,
    /// [`FeatureSet::digest`] of what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

impl FeatureSet {
    /// Assembles a set, checking that the parts have one length.
    /// Example: [`FeatureSet`].
    pub fn new(names: Vec<String>, groups: Vec<u32>, data: Vec<f32>, dim: usize, provenance: Provenance) -> Result<Self> {
        let set = Self { names, groups, data, dim, provenance };
        set.check_shape().map(|()| set)
    }

    /// Number of rows.
    /// Example: [`FeatureSet`].
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no rows.
    /// Example: [`FeatureSet`].
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Writes a safetensors file: to a temporary name in the same folder, then renamed, so that a
    /// reader never sees half a file. Equal sets give equal bytes.
    /// Example: [`FeatureSet`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check_shape()?;
        let header = Header {
            version: FORMAT_VERSION,
            n: self.len(),
            dim: self.dim,
            preprocess_id: self.provenance.preprocess.id(),
            provenance: self.provenance.clone(),
            blake3: Some(self.digest()),
        };
        let text = |e: serde_json::Error| Error::Container { path: path.to_owned(), message: e.to_string() };
        let header = serde_json::to_string(&serde_json::to_string(&header).map_err(text)?).map_err(text)?;
        let names = serde_json::to_vec(&self.names).map_err(text)?;
        // Written value by value: a second copy of the features would be most of what extraction holds.
        let [features, groups] = [4 * self.data.len(), 4 * (self.data.len() + self.groups.len())];
        let entries = [
            ("features", "F32", vec![self.len(), self.dim], [0, features]),
            ("groups", "U32", vec![self.len()], [features, groups]),
            ("names", "U8", vec![names.len()], [groups, groups + names.len()]),
        ];
        let entries = entries.map(|(key, dtype, shape, offsets)| {
            format!("\"{key}\":{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":{}}}", json!(shape), json!(offsets))
        });
        let mut start = format!("{{\"__metadata__\":{{\"{METADATA_KEY}\":{header}}},{}}}", entries.join(","));
        start += &" ".repeat(start.len().next_multiple_of(8) - start.len());
        write_through(path, |file| {
            file.write_all(&(start.len() as u64).to_le_bytes())?;
            file.write_all(start.as_bytes())?;
            self.data.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))?;
            self.groups.iter().try_for_each(|group| file.write_all(&group.to_le_bytes()))?;
            file.write_all(&names)
        })
    }

    /// BLAKE3, hexadecimal, of all that the set consists of: names, groups, values and how they were made.
    /// Example: [`FeatureSet`].
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let text = json!([FORMAT_VERSION, self.names, self.dim, self.provenance]).to_string();
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
        let mut bytes = Vec::with_capacity(4 * 4096);
        for groups in self.groups.chunks(4096) {
            bytes.clear();
            bytes.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
            hasher.update(&bytes);
        }
        for values in self.data.chunks(4096) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&bytes);
        }
        hasher.finalize().to_string()
    }

    /// Reads a file written by [`FeatureSet::save`], and compares it with its digest; files of version 1 have none.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] where something has changed since it was written.
    ///
    /// Example: [`FeatureSet`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, false)
    }

    /// [`load`](Self::load), for what nobody looks at before it is used: a file without a digest is an error.
    /// Example: [`FeatureSet`].
    pub fn load_digested(path: &Path) -> Result<Self> {
        Self::load_with(path, true)
    }

    fn load_with(path: &Path, must_have_digest: bool) -> Result<Self> {
        let bytes = read(path)?;
        let container = |e: safetensors::SafeTensorError| Error::Container { path: path.to_owned(), message: e.to_string() };
        let config = |message: String| Error::Config { path: path.to_owned(), message };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(container)?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let header = header.ok_or_else(|| config(format!("no {METADATA_KEY} metadata")))?;
        let header: Header = serde_json::from_str(header).map_err(|e| config(e.to_string()))?;
        let Header { version, n, dim, preprocess_id, provenance, blake3 } = header;
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(config(format!("format version {version}, expected 1 to {FORMAT_VERSION}")));
        }
        if blake3.is_none() && (must_have_digest || version > 1) {
            return Err(config("no digest of the content".to_owned()));
        }
        if preprocess_id != provenance.preprocess.id() {
            let id = provenance.preprocess.id();
            return Err(config(format!("preprocess id {preprocess_id}, description says {id}")));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(container)?;
        let tensor = |key: &str, dtype: Dtype, shape: Option<&[usize]>| {
            let view = tensors.tensor(key).map_err(|_| Error::MissingTensor {
                path: path.to_owned(),
                key: key.to_owned(),
                expected: shape.unwrap_or_default().to_vec(),
            })?;
            if view.dtype() != dtype || shape.is_some_and(|shape| view.shape() != shape) {
                return Err(Error::TensorMismatch {
                    path: path.to_owned(),
                    key: key.to_owned(),
                    expected: format!("{dtype:?}{:?}", shape.unwrap_or(view.shape())),
                    found: format!("{:?}{:?}", view.dtype(), view.shape()),
                });
            }
            Ok(view.data())
        };
        let (data, _) = tensor("features", Dtype::F32, Some(&[n, dim]))?.as_chunks::<4>();
        let (groups, _) = tensor("groups", Dtype::U32, Some(&[n]))?.as_chunks::<4>();
        let names = serde_json::from_slice(tensor("names", Dtype::U8, None)?).map_err(|e| config(format!("names: {e}")))?;
        let set = Self::new(
            names,
            groups.iter().copied().map(u32::from_le_bytes).collect(),
            data.iter().copied().map(f32::from_le_bytes).collect(),
            dim,
            provenance,
        )?;
        match blake3.is_none_or(|written| written == set.digest()) {
            true => Ok(set),
            false => Err(Error::Damaged { path: path.to_owned() }),
        }
    }

    fn check_shape(&self) -> Result<()> {
        let Self { names, groups, data, dim, .. } = self;
        let n = names.len();
        if groups.len() != n || Some(data.len()) != n.checked_mul(*dim) || *dim == 0 {
            return Err(Error::FeatureShape { names: n, groups: groups.len(), values: data.len(), dim: *dim });
        }
        Ok(())
    }

    /// The features as an `f64` matrix `(len, dim)`; an error if one is not finite.
    pub(crate) fn matrix(&self) -> Result<Mat<f64>> {
        self.check_shape()?;
        if let Some(at) = self.data.iter().position(|v| !v.is_finite()) {
            let (row, column) = (at / self.dim, at % self.dim);
            let (name, value) = (self.names[row].clone(), self.data[at]);
            return Err(Error::NonFinite { row, name, column, value });
        }
        Ok(Mat::from_fn(self.len(), self.dim, |i, j| f64::from(self.data[i * self.dim + j])))
    }

    /// Refuses sets whose numbers do not live in one space: see [`Provenance::check_comparable`].
    /// Example: [`FeatureSet`].
    pub fn check_comparable(&self, other: &Self) -> Result<()> {
        self.provenance.check_comparable(&other.provenance)?;
        same("dimension", &self.dim, &other.dim)
    }
}

impl Provenance {
    /// Refuses another network, other weights, another profile or aspect, clips of another length. Crops, a resize or JPEG
    /// beforehand may differ, as protocols ask for that.
    /// Example: [`FeatureSet`].
    pub fn check_comparable(&self, other: &Self) -> Result<()> {
        same("extractor", &self.extractor, &other.extractor)?;
        same("weights", &self.weights, &other.weights)?;
        same("preprocess profile", &self.preprocess.profile, &other.preprocess.profile)?;
        same("aspect", &self.preprocess.aspect, &other.preprocess.aspect)?;
        let frames = |provenance: &Self| provenance.preprocess.clip.map_or("all".to_owned(), |clip| clip.frames.to_string());
        same("number of frames", &frames(self), &frames(other))
    }
}

fn same<T: PartialEq + ToString>(what: &'static str, left: &T, right: &T) -> Result<()> {
    match left == right {
        true => Ok(()),
        false => Err(Error::Incomparable { what, left: left.to_string(), right: right.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::test_data::formula_features;

    #[test]
    fn files_round_trip_and_are_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let [set, _] = formula_features();
        set.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(FeatureSet::load(&path).unwrap(), set);
        set.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        // As the library writes it.
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(safetensors::serialize(tensors.tensors(), metadata.metadata().clone()).unwrap(), bytes);
    }

    /// Any byte, of the header as well.
    #[test]
    fn a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let [set, _] = formula_features();
        set.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            // A space of the padding, or of another kind, says the same.
            let found = FeatureSet::load(&path);
            assert!(found.is_err() || found.is_ok_and(|found| found == set), "byte {at} of {}", bytes.len());
        }
        let at = bytes.len() - 80 * 4 - serde_json::to_vec(&set.names).unwrap().len() - 30;
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(matches!(FeatureSet::load(&path), Err(Error::Damaged { .. })));
    }

    /// As earlier versions wrote them.
    #[test]
    fn files_without_a_digest_are_read_but_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let [set, _] = formula_features();
        set.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut header_of: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()[METADATA_KEY]).unwrap();
        header_of["version"] = 1.into();
        header_of.as_object_mut().unwrap().remove("blake3").unwrap();
        let mut old: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        old["__metadata__"][METADATA_KEY] = header_of.to_string().into();
        let mut text = old.to_string();
        text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
        let old = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + header..]].concat();
        std::fs::write(&path, old).unwrap();
        assert_eq!(FeatureSet::load(&path).unwrap(), set);
        assert!(FeatureSet::load_digested(&path).unwrap_err().to_string().contains("no digest"));
    }

    #[test]
    fn truncated_and_foreign_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.safetensors");
        let [set, _] = formula_features();
        set.save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 7, 60, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = FeatureSet::load(&path).unwrap_err().to_string();
            assert!(message.contains("half.safetensors is truncated"), "{length}: {message}");
        }
        let empty = Vec::<(String, TensorView<'_>)>::new();
        std::fs::write(&path, safetensors::serialize(empty, None).unwrap()).unwrap();
        let message = FeatureSet::load(&path).unwrap_err().to_string();
        assert!(message.contains("no scalebench-features metadata"), "{message}");
        assert!(set.save(&dir.path().join("missing/a.safetensors")).is_err());
    }

    #[test]
    fn only_the_profile_has_to_match() {
        let [a, mut b] = formula_features();
        b.provenance.preprocess.crops = Some(serde_json::from_str(r#"{"count": 2, "size": 64}"#).unwrap());
        b.provenance.preprocess.pre_resize = Some(128);
        a.check_comparable(&b).unwrap();
        b.provenance.preprocess.profile = crate::Profile::PytorchFid;
        let message = a.check_comparable(&b).unwrap_err().to_string();
        assert!(message.contains("preprocess profile is clean on one side and pytorch-fid"));
    }

    #[test]
    fn mismatched_parts_are_refused() {
        let [set, _] = formula_features();
        let groups = set.groups[1..].to_vec();
        let result = FeatureSet::new(set.names, groups, set.data, set.dim, set.provenance);
        assert!(matches!(result, Err(Error::FeatureShape { names: 80, groups: 79, .. })));
    }
}
