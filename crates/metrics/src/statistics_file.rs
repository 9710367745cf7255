//! Mean and covariance of features in files, ours and those of other tools; features of other tools.
//!
//! | file | arrays | written by |
//! | --- | --- | --- |
//! | safetensors | `mean` f64 `(D)`, `covariance` f64 `(D, D)`, n and provenance | [`StatisticsFile::save`] |
//! | npz | `mu` f32 or f64 `(D)`, `sigma` `(D, D)` | pytorch-fid, TTUR, clean-fid, edm, [`StatisticsFile::save_npz`] |
//! | npz | also `mu_s`, `sigma_s` (spatial features of sFID), `arr_0` (images, not read) | ADM's reference batches |
//! | npz | `feats` f32 `(n, D)` | clean-fid for KID, [`FeatureArray::save_npz`] |
//!
//! An npz does not say how many images there were, which network or which preprocessing: mixing those up is
//! the commonest mistake with FID, so what is not known is `None` here and stays visible.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::files::{RawTensor, read, safetensors, write_atomically};
use crate::npz::{self, ArrayRef, Npz, Values};
use crate::torch_file::ZIP_MAGIC;
use crate::{Error, FeatureSet, Provenance, Result, Statistics};

/// Version of the statistics file format. Files of version 1 carry no digest.
const FORMAT_VERSION: u32 = 2;

/// The one metadata entry.
const METADATA_KEY: &str = "scalebench-statistics";

/// Largest difference across the diagonal, relative to the largest entry, that still passes for rounding:
/// a few steps of `f32`, in which some tools sum.
const ASYMMETRY: f64 = 1e-6;

/// Statistics with what is known about them.
///
/// ```
/// use scalebench_metrics::{FeatureArray, FeatureSet, StatisticsFile, Stored};
/// # use scalebench_metrics::{Preprocess, Provenance};
/// # let set = |rows: &[Vec<f32>]| {
/// #     let provenance = Provenance { extractor: "example".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
/// #     let names = (0..rows.len()).map(|i| i.to_string()).collect();
/// #     FeatureSet::new(names, (0..rows.len() as u32).collect(), rows.concat(), rows[0].len(), provenance)
/// # };
/// let set = set(&[vec![0.0, 1.0], vec![2.0, 0.0], vec![0.0, 4.0], vec![2.0, 4.0]])?;
/// let folder = tempfile::tempdir()?;
/// let at = |name: &str| folder.path().join(name);
/// // Our file knows how many images there were, and how they were looked at.
/// let statistics = StatisticsFile::of(&set)?;
/// statistics.save(&at("ours"))?;
/// let found = StatisticsFile::load(&at("ours"))?;
/// assert_eq!(found.n, Some(4));
/// found.check_comparable(&set)?;
/// // Other tools' do not.
/// statistics.save_npz(&at("theirs"))?;
/// assert!(matches!(Stored::load(&at("theirs"))?, Stored::Statistics(StatisticsFile { n: None, provenance: None, .. })));
/// FeatureArray { data: set.data.clone(), n: 4, dim: 2 }.save_npz(&at("features"))?;
/// let Stored::Array(array) = Stored::load(&at("features"))? else { panic!("no features") };
/// assert_eq!(array.assume(set.provenance.clone())?.data, set.data);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct StatisticsFile {
    /// Mean and covariance of the features.
    pub statistics: Statistics,
    /// Those of the spatial features that sFID compares; ADM's files have them.
    pub spatial: Option<Statistics>,
    /// Number of images, if known.
    pub n: Option<usize>,
    /// How the features were made, if known.
    pub provenance: Option<Provenance>,
}

/// The metadata entry of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    n: Option<usize>,
    dim: usize,
    /// Redundant with `provenance.preprocess`, for readers that only look.
    preprocess_id: Option<String>,
    provenance: Option<Provenance>,
    /// [`StatisticsFile::digest`] of what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

/// The array names of one kind of file: mean and covariance, of the features and of the spatial ones.
type Keys = [[&'static str; 2]; 2];

const OURS: Keys = [["mean", "covariance"], ["spatial_mean", "spatial_covariance"]];
const NPZ: Keys = [["mu", "sigma"], ["mu_s", "sigma_s"]];

impl StatisticsFile {
    /// Statistics of a feature set of at least two rows.
    /// Example: [`StatisticsFile`].
    pub fn of(set: &FeatureSet) -> Result<Self> {
        let statistics = Statistics::of(set)?;
        Ok(Self { statistics, spatial: None, n: Some(set.len()), provenance: Some(set.provenance.clone()) })
    }

    /// Refuses features that live in another space, as far as that is known.
    /// Example: [`StatisticsFile`].
    pub fn check_comparable(&self, features: &FeatureSet) -> Result<()> {
        match &self.provenance {
            Some(provenance) => provenance.check_comparable(&features.provenance),
            None => Ok(()),
        }
    }

    /// Reads either form; the content decides, not the name.
    ///
    /// # Errors
    ///
    /// Names the file and the array: missing, of another shape, not finite, not symmetric.
    ///
    /// Example: [`StatisticsFile`].
    pub fn load(path: &Path) -> Result<Self> {
        if is_zip(path)? { Self::from_npz(path) } else { Self::from_safetensors(&read(path)?, path) }
    }

    fn from_npz(path: &Path) -> Result<Self> {
        let mut npz = Npz::open(path)?;
        let statistics = npz_statistics(&mut npz, path, NPZ[0])?;
        let has_spatial = npz.names().contains(&NPZ[1][0]);
        let spatial = has_spatial.then(|| npz_statistics(&mut npz, path, NPZ[1])).transpose()?;
        Ok(Self { statistics, spatial, n: None, provenance: None })
    }

    fn from_safetensors(bytes: &[u8], path: &Path) -> Result<Self> {
        let container = |e: safetensors::SafeTensorError| Error::Container { path: path.to_owned(), message: e.to_string() };
        let config = |message: String| Error::Config { path: path.to_owned(), message };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(container)?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let header = header.ok_or_else(|| config(format!("no {METADATA_KEY} metadata")))?;
        let Header { version, n, dim, preprocess_id, provenance, blake3 } =
            serde_json::from_str(header).map_err(|e| config(e.to_string()))?;
        if !(1..=FORMAT_VERSION).contains(&version) {
            return Err(config(format!("format version {version}, expected 1 to {FORMAT_VERSION}")));
        }
        if blake3.is_none() && version > 1 {
            return Err(config("no digest of the content".to_owned()));
        }
        let described = provenance.as_ref().map(|p| p.preprocess.id());
        if preprocess_id != described {
            return Err(config(format!("preprocess id {preprocess_id:?}, description says {described:?}")));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(container)?;
        let statistics = tensor_statistics(&tensors, path, OURS[0], Some(dim))?;
        let has_spatial = tensors.names().contains(&OURS[1][0]);
        let spatial = has_spatial.then(|| tensor_statistics(&tensors, path, OURS[1], None)).transpose()?;
        let found = Self { statistics, spatial, n, provenance };
        match blake3.is_none_or(|written| written == found.digest()) {
            true => Ok(found),
            false => Err(Error::Damaged { path: path.to_owned() }),
        }
    }

    /// BLAKE3, hexadecimal, of all that the file says.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let text = serde_json::json!([FORMAT_VERSION, self.n, self.provenance, self.spatial.is_some()]).to_string();
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
        for statistics in self.parts() {
            hasher.update(&(statistics.mean.len() as u64).to_le_bytes());
            for values in [&statistics.mean, &row_major(statistics)] {
                hasher.update(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        hasher.finalize().to_string()
    }

    /// Writes our form, with n and provenance as far as they are known. Equal statistics give equal bytes,
    /// and a reader never sees half a file.
    /// Example: [`StatisticsFile`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check(path, OURS)?;
        let header = Header {
            version: FORMAT_VERSION,
            n: self.n,
            dim: self.statistics.mean.len(),
            preprocess_id: self.provenance.as_ref().map(|p| p.preprocess.id()),
            provenance: self.provenance.clone(),
            blake3: Some(self.digest()),
        };
        let header = serde_json::to_string(&header).map_err(|e| Error::Config { path: path.to_owned(), message: e.to_string() })?;
        let mut tensors = BTreeMap::new();
        for (statistics, [mean, covariance]) in self.parts().zip(OURS) {
            let dim = statistics.mean.len();
            tensors.insert(mean.to_owned(), RawTensor::f64(vec![dim], statistics.mean.iter().copied()));
            tensors.insert(covariance.to_owned(), RawTensor::f64(vec![dim, dim], row_major(statistics)));
        }
        write_atomically(path, &safetensors(&BTreeMap::from([(METADATA_KEY, header)]), &tensors))
    }

    /// Writes `mu` and `sigma`, and `mu_s` and `sigma_s` if there are any, in `f64` as pytorch-fid does;
    /// n and provenance have no place in such a file and are lost.
    /// Example: [`StatisticsFile`].
    pub fn save_npz(&self, path: &Path) -> Result<()> {
        self.check(path, NPZ)?;
        let covariances: Vec<Vec<f64>> = self.parts().map(row_major).collect();
        let shapes: Vec<[usize; 2]> = self.parts().map(|s| [s.mean.len(); 2]).collect();
        let mut arrays = Vec::new();
        for (i, (statistics, [mean, covariance])) in self.parts().zip(NPZ).enumerate() {
            arrays.push((mean, ArrayRef { shape: &shapes[i][..1], values: Values::F64(&statistics.mean) }));
            arrays.push((covariance, ArrayRef { shape: &shapes[i], values: Values::F64(&covariances[i]) }));
        }
        npz::write(path, &arrays)
    }

    fn parts(&self) -> impl Iterator<Item = &Statistics> {
        std::iter::once(&self.statistics).chain(&self.spatial)
    }

    /// What would not be read again is not written.
    fn check(&self, path: &Path, keys: Keys) -> Result<()> {
        self.parts().zip(keys).try_for_each(|(statistics, keys)| checked(statistics.clone(), path, keys).map(drop))
    }
}

fn row_major(statistics: &Statistics) -> Vec<f64> {
    let sigma = &statistics.covariance;
    (0..sigma.nrows()).flat_map(|i| (0..sigma.ncols()).map(move |j| sigma[(i, j)])).collect()
}

fn npz_statistics(npz: &mut Npz, path: &Path, keys: [&str; 2]) -> Result<Statistics> {
    let [mean, covariance] = keys;
    let wrong = |key: &str, expected: String| {
        let message = format!("expected {expected}");
        Error::Array { path: path.to_owned(), key: key.to_owned(), message }
    };
    // Shapes come first: they bound what is read.
    let dim = match npz.shape(mean)?[..] {
        [dim] if dim > 0 => dim,
        ref shape => return Err(wrong(mean, format!("a vector, found shape {shape:?}"))),
    };
    let shape = npz.shape(covariance)?;
    if shape != [dim, dim] {
        return Err(wrong(covariance, format!("shape [{dim}, {dim}], as {mean} has {dim} values, found {shape:?}")));
    }
    let statistics = Statistics::new(npz.f64(mean)?.data, &npz.f64(covariance)?.data)?;
    checked(statistics, path, keys)
}

fn tensor_statistics(tensors: &SafeTensors<'_>, path: &Path, keys: [&str; 2], dim: Option<usize>) -> Result<Statistics> {
    let values = |key: &str, rank: i32, dim: Option<usize>| {
        let shape = dim.map(|dim| vec![dim; rank as usize]);
        let view = tensors.tensor(key).map_err(|_| Error::MissingTensor {
            path: path.to_owned(),
            key: key.to_owned(),
            expected: shape.clone().unwrap_or_default(),
        })?;
        if view.dtype() != Dtype::F64 || shape.as_ref().is_some_and(|shape| view.shape() != shape) {
            return Err(Error::TensorMismatch {
                path: path.to_owned(),
                key: key.to_owned(),
                expected: format!("F64{:?}", shape.as_deref().unwrap_or(view.shape())),
                found: format!("{:?}{:?}", view.dtype(), view.shape()),
            });
        }
        Ok(view.data().as_chunks::<8>().0.iter().map(|w| f64::from_le_bytes(*w)).collect::<Vec<f64>>())
    };
    let mean = values(keys[0], 1, dim)?;
    let covariance = values(keys[1], 2, Some(mean.len()))?;
    checked(Statistics::new(mean, &covariance)?, path, keys)
}

/// Refuses values that are not finite, and covariances that are not symmetric up to rounding.
fn checked(statistics: Statistics, path: &Path, [mean_key, covariance_key]: [&str; 2]) -> Result<Statistics> {
    let non_finite = |key: &str, at, value| Error::NonFiniteStatistic { path: path.to_owned(), key: key.to_owned(), at, value };
    if let Some(i) = statistics.mean.iter().position(|v| !v.is_finite()) {
        return Err(non_finite(mean_key, vec![i], statistics.mean[i]));
    }
    let sigma = &statistics.covariance;
    let dim = sigma.nrows();
    let mut largest = 0.0f64;
    for i in 0..dim {
        for j in 0..dim {
            if !sigma[(i, j)].is_finite() {
                return Err(non_finite(covariance_key, vec![i, j], sigma[(i, j)]));
            }
            largest = largest.max(sigma[(i, j)].abs());
        }
    }
    for row in 0..dim {
        for column in 0..row {
            let (value, mirrored) = (sigma[(row, column)], sigma[(column, row)]);
            if (value - mirrored).abs() > ASYMMETRY * largest {
                let (path, key) = (path.to_owned(), covariance_key.to_owned());
                return Err(Error::Asymmetric { path, key, row, column, value, mirrored });
            }
        }
    }
    Ok(statistics)
}

/// Features without names, groups or provenance: the `feats` of clean-fid's files for KID.
///
/// Example: [`StatisticsFile`].
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureArray {
    /// `(n, dim)` row-major.
    pub data: Vec<f32>,
    /// Rows.
    pub n: usize,
    /// Values per row.
    pub dim: usize,
}

/// clean-fid's name for the array.
const FEATURES_KEY: &str = "feats";

impl FeatureArray {
    /// Reads `feats`; other types than `f32` are rounded to it.
    ///
    /// # Errors
    ///
    /// Names the file and the array: missing, of another shape, not finite.
    pub(crate) fn load_npz(path: &Path) -> Result<Self> {
        let mut npz = Npz::open(path)?;
        let (n, dim) = match npz.shape(FEATURES_KEY)?[..] {
            [n, dim] if n > 0 && dim > 0 => (n, dim),
            ref shape => {
                let message = format!("expected a row per image, found shape {shape:?}");
                return Err(Error::Array { path: path.to_owned(), key: FEATURES_KEY.to_owned(), message });
            }
        };
        let array = Self { data: npz.f32(FEATURES_KEY)?.data, n, dim };
        array.check(path).map(|()| array)
    }

    /// Writes `feats`; equal features give equal bytes.
    /// Example: [`StatisticsFile`].
    pub fn save_npz(&self, path: &Path) -> Result<()> {
        self.check(path)?;
        npz::write(path, &[(FEATURES_KEY, ArrayRef { shape: &[self.n, self.dim], values: Values::F32(&self.data) })])
    }

    fn check(&self, path: &Path) -> Result<()> {
        if self.dim == 0 || self.n.checked_mul(self.dim) != Some(self.data.len()) {
            return Err(Error::FeatureShape { names: self.n, groups: self.n, values: self.data.len(), dim: self.dim });
        }
        match self.data.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => Err(Error::NonFiniteStatistic {
                path: path.to_owned(),
                key: FEATURES_KEY.to_owned(),
                at: vec![i / self.dim, i % self.dim],
                value: self.data[i].into(),
            }),
        }
    }
}

/// What a file that is no image holds.
///
/// Example: [`StatisticsFile`].
#[derive(Clone, Debug)]
pub enum Stored {
    /// Our feature file.
    Features(FeatureSet),
    /// Features of another tool, of which nothing is known.
    Array(FeatureArray),
    /// Statistics, ours or another tool's.
    Statistics(StatisticsFile),
}

/// Whether a file is an archive, by a look at its start only: ADM's files hold gigabytes of images.
fn is_zip(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let look = std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut start));
    look.map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
    Ok(start == ZIP_MAGIC)
}

impl Stored {
    /// Reads whatever of these a file is; the content decides, not the name.
    /// Example: [`StatisticsFile`].
    pub fn load(path: &Path) -> Result<Self> {
        if is_zip(path)? {
            let is_array = Npz::open(path)?.names().contains(&FEATURES_KEY);
            return match is_array {
                true => FeatureArray::load_npz(path).map(Self::Array),
                false => StatisticsFile::from_npz(path).map(Self::Statistics),
            };
        }
        let bytes = read(path)?;
        let is_statistics = SafeTensors::read_metadata(&bytes)
            .is_ok_and(|(_, metadata)| metadata.metadata().as_ref().is_some_and(|entries| entries.contains_key(METADATA_KEY)));
        match is_statistics {
            true => StatisticsFile::from_safetensors(&bytes, path).map(Self::Statistics),
            false => FeatureSet::load(path).map(Self::Features),
        }
    }
}

impl FeatureArray {
    /// The array as a feature set that is taken to be made as `provenance` says; rows are images of their own.
    /// Example: [`StatisticsFile`].
    pub fn assume(self, provenance: Provenance) -> Result<FeatureSet> {
        let names = (0..self.n).map(|i| i.to_string()).collect();
        FeatureSet::new(names, (0..self.n as u32).collect(), self.data, self.dim, provenance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{close, formula_features};
    use crate::{fid, fid_from_statistics};

    fn write(path: &Path, arrays: &[(&str, &[usize], &[f64])]) {
        let arrays: Vec<_> = arrays.iter().map(|(key, shape, values)| (*key, ArrayRef { shape, values: Values::F64(values) })).collect();
        npz::write(path, &arrays).unwrap();
    }

    fn same(a: &Statistics, b: &Statistics) -> bool {
        a.mean == b.mean && a.covariance == b.covariance
    }

    #[test]
    fn both_forms_keep_every_bit_and_ours_keeps_the_provenance() {
        let dir = tempfile::tempdir().unwrap();
        let [real, fake] = formula_features();
        let [ours, theirs, again] = ["a.safetensors", "a.npz", "b.bin"].map(|name| dir.path().join(name));
        let mut file = StatisticsFile::of(&real).unwrap();
        file.save(&ours).unwrap();
        let read = StatisticsFile::load(&ours).unwrap();
        assert!(same(&read.statistics, &file.statistics) && read.spatial.is_none());
        assert_eq!((read.n, read.provenance.as_ref()), (Some(80), Some(&real.provenance)));
        read.save(&again).unwrap();
        assert_eq!(std::fs::read(&ours).unwrap(), std::fs::read(&again).unwrap());
        // From statistics alone, the distance is that of the features.
        let other = Statistics::of(&fake).unwrap();
        close("fid", fid_from_statistics(&read.statistics, &other).unwrap(), fid(&real, &fake).unwrap(), 1e-9);

        file.spatial = Some(other.clone());
        file.save(&ours).unwrap();
        file.save_npz(&theirs).unwrap();
        let (ours, theirs) = (StatisticsFile::load(&ours).unwrap(), StatisticsFile::load(&theirs).unwrap());
        for read in [&ours, &theirs] {
            assert!(same(&read.statistics, &file.statistics) && same(read.spatial.as_ref().unwrap(), &other));
        }
        assert_eq!((ours.n, theirs.n, theirs.provenance), (Some(80), None, None));
    }

    /// The layouts of other tools, by hand: f32 means, Fortran-like lists of more arrays.
    #[test]
    fn layouts_of_other_tools_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adm.npz");
        let sigma = [2.0, 0.5, 0.5, 1.0];
        let images = vec![7.0; 4096];
        write(&path, &[("arr_0", &[4096], &images), ("mu", &[2], &[0.25, -1.0]), ("sigma", &[2, 2], &sigma), ("mu_s", &[1], &[3.0])]);
        let message = StatisticsFile::load(&path).unwrap_err().to_string();
        assert!(message.contains("adm.npz: array sigma_s: not in the archive"), "{message}");
        npz::write(
            &path,
            &[
                ("mu", ArrayRef { shape: &[2], values: Values::F32(&[0.1, -1.0]) }),
                ("sigma", ArrayRef { shape: &[2, 2], values: Values::F64(&sigma) }),
            ],
        )
        .unwrap();
        let read = StatisticsFile::load(&path).unwrap();
        assert_eq!((read.statistics.mean.as_slice(), row_major(&read.statistics)), ([f64::from(0.1f32), -1.0].as_slice(), sigma.to_vec()));
        assert!(read.spatial.is_none() && read.n.is_none() && read.provenance.is_none());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.npz");
        let load = |mu: &[f64], shape: &[usize], sigma: &[f64]| {
            write(&path, &[("mu", &[mu.len()], mu), ("sigma", shape, sigma)]);
            StatisticsFile::load(&path).map(drop).map_err(|e| e.to_string().rsplit('/').next().unwrap().to_owned())
        };
        let good = [2.0, 0.5, 0.5, 1.0];
        assert_eq!(load(&[0.0, 1.0], &[2, 2], &good), Ok(()));
        assert_eq!(load(&[0.0, 1.0], &[2, 2], &[2.0, 0.5, 0.5 + 1e-9, 1.0]), Ok(()), "rounding");
        let cases = [
            (load(&[0.0, 1.0], &[2, 2], &[2.0, 0.5, 0.6, 1.0]), "s.npz: sigma is not symmetric: [1, 0] is 0.6, [0, 1] is 0.5"),
            (load(&[0.0, f64::NAN], &[2, 2], &good), "s.npz: mu[1] is NaN"),
            (load(&[0.0, 1.0], &[2, 2], &[2.0, f64::INFINITY, 0.5, 1.0]), "s.npz: sigma[0, 1] is inf"),
            (load(&[0.0], &[2, 2], &good), "s.npz: array sigma: expected shape [1, 1], as mu has 1 values, found [2, 2]"),
            (load(&[0.0, 1.0], &[4], &good), "s.npz: array sigma: expected shape [2, 2], as mu has 2 values, found [4]"),
            (load(&[], &[0, 0], &[]), "s.npz: array mu: expected a vector, found shape [0]"),
        ];
        for (result, expected) in cases {
            assert_eq!(result, Err(expected.to_owned()));
        }
        // What could not be read is not written.
        let statistics = Statistics::new(vec![0.0, 1.0], &[2.0, 0.5, 0.6, 1.0]).unwrap();
        let file = StatisticsFile { statistics, spatial: None, n: None, provenance: None };
        let target = dir.path().join("never");
        assert!(matches!(file.save(&target), Err(Error::Asymmetric { row: 1, column: 0, .. })) && file.save_npz(&target).is_err());
        assert!(!target.exists());
    }

    #[test]
    fn damaged_files_of_ours_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.safetensors");
        let [set, _] = formula_features();
        StatisticsFile::of(&set).unwrap().save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [2, 60, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let message = StatisticsFile::load(&path).unwrap_err().to_string();
            assert!(message.contains("half.safetensors is truncated"), "{length}: {message}");
        }
        set.save(&path).unwrap();
        let message = StatisticsFile::load(&path).unwrap_err().to_string();
        assert!(message.contains("no scalebench-statistics metadata"), "{message}");
        let mut changed = bytes.clone();
        let id = changed.windows(5).position(|w| w == b"clean").unwrap();
        changed[id] = b'K';
        std::fs::write(&path, &changed).unwrap();
        assert!(matches!(StatisticsFile::load(&path), Err(Error::Config { .. })));
    }

    #[test]
    fn features_for_kid_keep_every_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kid.npz");
        let [set, _] = formula_features();
        let array = FeatureArray { data: set.data.clone(), n: 80, dim: 16 };
        array.save_npz(&path).unwrap();
        assert_eq!(FeatureArray::load_npz(&path).unwrap(), array);
        let mut bad = array.clone();
        bad.data[16 * 3 + 5] = f32::NAN;
        let message = bad.save_npz(&path).unwrap_err().to_string();
        assert!(message.ends_with("kid.npz: feats[3, 5] is NaN"), "{message}");
        let short = FeatureArray { n: 81, ..array };
        assert!(matches!(short.save_npz(&path), Err(Error::FeatureShape { .. })));
        write(&path, &[("feats", &[4], &[0.0; 4])]);
        let message = FeatureArray::load_npz(&path).unwrap_err().to_string();
        assert!(message.ends_with("kid.npz: array feats: expected a row per image, found shape [4]"), "{message}");
    }
}
