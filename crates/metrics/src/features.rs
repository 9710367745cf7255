//! Feature files: what an extractor said about a set of images, with how it was made.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use faer::Mat;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::inception::Inception;
use crate::preprocess::INPUT_SIDE;
use crate::{Error, Image, Preprocess, Result, list_images};

/// Version of the feature file format.
const FORMAT_VERSION: u32 = 1;

/// The one metadata entry; a single JSON value keeps the file's bytes independent of hash order.
const METADATA_KEY: &str = "scalebench-features";

/// Images in flight between two calls of the progress callback.
const BATCH: usize = 64;

/// How a feature set was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Network, width and tap, such as `inception-v3-fid/w1/2048`.
    pub extractor: String,
    /// BLAKE3 digest of the weights file, hexadecimal.
    pub weights: String,
    /// From image to network input.
    pub preprocess: Preprocess,
}

/// Features of a set of images, one row per image or crop.
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
}

impl FeatureSet {
    /// Assembles a set, checking that the parts have one length.
    pub fn new(names: Vec<String>, groups: Vec<u32>, data: Vec<f32>, dim: usize, provenance: Provenance) -> Result<Self> {
        let set = Self { names, groups, data, dim, provenance };
        set.check_shape().map(|()| set)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Writes a safetensors file: to a temporary name in the same folder, then renamed, so that a
    /// reader never sees half a file. Equal sets give equal bytes.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check_shape()?;
        let header = Header {
            version: FORMAT_VERSION,
            n: self.len(),
            dim: self.dim,
            preprocess_id: self.provenance.preprocess.id(),
            provenance: self.provenance.clone(),
        };
        let invalid = |message: String| Error::Container { path: path.to_owned(), message };
        let json = |e: serde_json::Error| invalid(e.to_string());
        let header = serde_json::to_string(&header).map_err(json)?;
        let names = serde_json::to_vec(&self.names).map_err(json)?;
        let data: Vec<u8> = self.data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let groups: Vec<u8> = self.groups.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).map_err(|e| invalid(e.to_string()));
        let tensors = [
            ("features", view(Dtype::F32, vec![self.len(), self.dim], &data)?),
            ("groups", view(Dtype::U32, vec![self.len()], &groups)?),
            ("names", view(Dtype::U8, vec![names.len()], &names)?),
        ];
        let metadata = Some([(METADATA_KEY.to_owned(), header)].into());
        let bytes = safetensors::serialize(tensors, metadata).map_err(|e| invalid(e.to_string()))?;
        write_atomically(path, &bytes)
    }

    /// Reads a file written by [`FeatureSet::save`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        let container = |e: safetensors::SafeTensorError| Error::Container { path: path.to_owned(), message: e.to_string() };
        let config = |message: String| Error::Config { path: path.to_owned(), message };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(container)?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let header = header.ok_or_else(|| config(format!("no {METADATA_KEY} metadata")))?;
        let header: Header = serde_json::from_str(header).map_err(|e| config(e.to_string()))?;
        let Header { version, n, dim, preprocess_id, provenance } = header;
        if version != FORMAT_VERSION {
            return Err(config(format!("format version {version}, expected {FORMAT_VERSION}")));
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
        let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
        let data = words(tensor("features", Dtype::F32, Some(&[n, dim]))?);
        let groups = words(tensor("groups", Dtype::U32, Some(&[n]))?);
        let names = serde_json::from_slice(tensor("names", Dtype::U8, None)?).map_err(|e| config(format!("names: {e}")))?;
        Self::new(
            names,
            groups.into_iter().map(u32::from_le_bytes).collect(),
            data.into_iter().map(f32::from_le_bytes).collect(),
            dim,
            provenance,
        )
    }

    fn check_shape(&self) -> Result<()> {
        let Self { names, groups, data, dim, .. } = self;
        let n = names.len();
        if groups.len() != n || data.len() != n * dim || *dim == 0 {
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

    /// Refuses sets whose numbers do not live in one space: another network, other weights or
    /// another profile. Crops and a resize beforehand may differ, as protocols ask for that.
    pub fn check_comparable(&self, other: &Self) -> Result<()> {
        let (a, b) = (&self.provenance, &other.provenance);
        let differs = |what, left: &dyn ToString, right: &dyn ToString| {
            let (left, right) = (left.to_string(), right.to_string());
            if left == right { Ok(()) } else { Err(Error::Incomparable { what, left, right }) }
        };
        differs("extractor", &a.extractor, &b.extractor)?;
        differs("weights", &a.weights, &b.weights)?;
        differs("preprocess profile", &a.preprocess.profile, &b.preprocess.profile)?;
        differs("dimension", &self.dim, &other.dim)
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let result = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    result.map_err(|source| {
        // Best effort: the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
        Error::Io { action: "write", path: path.to_owned(), source }
    })
}

/// One image to look at.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Image id.
    pub name: String,
    /// See [`FeatureSet::groups`].
    pub group: u32,
    /// Where the pixels are.
    pub source: Source,
}

/// Where pixels are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a file, decoded when its turn comes.
    File(PathBuf),
    /// In memory.
    Memory(Image),
}

impl Sample {
    /// An image in memory.
    pub fn image(name: impl Into<String>, group: u32, image: Image) -> Self {
        Self { name: name.into(), group, source: Source::Memory(image) }
    }

    /// All images under a folder in sorted order: names are relative paths, groups 0, 1, 2, ….
    pub fn folder(folder: &Path) -> Result<Vec<Self>> {
        let paths = list_images(folder)?;
        let sample = |(group, path): (usize, PathBuf)| Self {
            name: path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned(),
            group: group as u32,
            source: Source::File(path),
        };
        Ok(paths.into_iter().enumerate().map(sample).collect())
    }
}

/// A feature network with its weights: FID Inception, tap 2048.
#[derive(Debug)]
pub struct Extractor {
    network: Inception,
    name: String,
    weights: String,
}

impl Extractor {
    /// Loads the network; see [`Inception::load`] for the file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
        let network = Inception::from_bytes(&bytes, path)?;
        let name = format!("inception-v3-fid/w{}/2048", network.config().width);
        Ok(Self { network, name, weights: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// The provenance that sets made with `preprocess` carry; good as a cache key.
    pub fn provenance(&self, preprocess: &Preprocess) -> Provenance {
        Provenance { extractor: self.name.clone(), weights: self.weights.clone(), preprocess: preprocess.clone() }
    }

    /// The network itself.
    pub fn network(&self) -> &Inception {
        &self.network
    }

    /// Features of all images, in the order given.
    ///
    /// Images run in parallel, each on one thread, so the result does not depend on the number of
    /// threads. `progress` is told, from the calling thread, how many images are done.
    pub fn features(
        &self,
        samples: impl IntoIterator<Item = Sample>,
        preprocess: &Preprocess,
        mut progress: impl FnMut(usize),
    ) -> Result<FeatureSet> {
        preprocess.validate()?;
        let dim = self.network.config().feature_dim();
        let (mut names, mut groups, mut data) = (Vec::new(), Vec::new(), Vec::new());
        let mut samples = samples.into_iter();
        let mut done = 0;
        loop {
            let batch: Vec<Sample> = samples.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                break;
            }
            let rows: Vec<Vec<Vec<f32>>> = batch
                .par_iter()
                .enumerate()
                .map(|(i, sample)| self.sample_features(sample, (done + i) as u64, preprocess))
                .collect::<Result<_>>()?;
            done += batch.len();
            for (sample, rows) in batch.into_iter().zip(rows) {
                for (k, row) in rows.into_iter().enumerate() {
                    names.push(match preprocess.crops {
                        Some(_) => format!("{}#{k}", sample.name),
                        None => sample.name.clone(),
                    });
                    groups.push(sample.group);
                    data.extend(row);
                }
            }
            progress(done);
        }
        FeatureSet::new(names, groups, data, dim, self.provenance(preprocess))
    }

    fn sample_features(&self, sample: &Sample, index: u64, preprocess: &Preprocess) -> Result<Vec<Vec<f32>>> {
        let decoded;
        let image = match &sample.source {
            Source::Memory(image) => image,
            Source::File(path) => {
                decoded = Image::open(path)?;
                &decoded
            }
        };
        let inputs = preprocess.inputs(image, index, &sample.name)?;
        let rows = inputs.into_iter().map(|input| {
            let x = Tensor::from_vec(input, (1, 3, INPUT_SIDE, INPUT_SIDE), &Device::Cpu)?;
            Ok(self.network.forward(&x)?.pool_2048.flatten_all()?.to_vec1()?)
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
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

    /// Rows belong to images, not to batches, threads or positions; crops share their group.
    #[test]
    fn rows_do_not_depend_on_order_or_source() {
        let dir = tempfile::tempdir().unwrap();
        let weights = dir.path().join("weights.safetensors");
        std::fs::write(&weights, crate::inception::tests::narrow_file()).unwrap();
        let extractor = Extractor::load(&weights).unwrap();
        let images: Vec<Image> = (0..3).map(|seed| crate::test_data::formula_image(seed, 70, 80)).collect();
        for (i, image) in images.iter().enumerate() {
            let pixels = image::RgbImage::from_raw(80, 70, image.rgb.clone()).unwrap();
            pixels.save(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let whole = Preprocess::default();
        let mut seen = Vec::new();
        let files = Sample::folder(dir.path()).unwrap();
        let from_files = extractor.features(files, &whole, |done| seen.push(done)).unwrap();
        assert_eq!(seen, [3]);
        assert_eq!(from_files.names, ["0.png", "1.png", "2.png"]);
        assert_eq!((from_files.groups.as_slice(), from_files.dim), ([0, 1, 2].as_slice(), 256));
        let memory = images.iter().enumerate().rev();
        let memory = memory.map(|(i, image)| Sample::image("x", i as u32, image.clone()));
        let reversed = extractor.features(memory, &whole, |_| {}).unwrap();
        let backwards: Vec<f32> = reversed.data.rchunks(256).flatten().copied().collect();
        assert_eq!(backwards, from_files.data);
        assert_ne!(from_files.data[..256], from_files.data[256..512]);

        let crops = Some(crate::Crops { count: 2, size: 64, seed: 1 });
        let crops = Preprocess { crops, ..Preprocess::default() };
        let sample = Sample::image("a", 9, images[0].clone());
        let cropped = extractor.features([sample], &crops, |_| {}).unwrap();
        assert_eq!((cropped.names, cropped.groups), (vec!["a#0".into(), "a#1".into()], vec![9, 9]));
        std::fs::write(dir.path().join("3.png"), b"nothing").unwrap();
        let files = Sample::folder(dir.path()).unwrap();
        let message = extractor.features(files, &whole, |_| {}).unwrap_err().to_string();
        assert!(message.contains("3.png"), "{message}");
    }

    #[test]
    fn only_the_profile_has_to_match() {
        let [a, mut b] = formula_features();
        b.provenance.preprocess.crops = Some(crate::Crops { count: 2, size: 64, seed: 0 });
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
