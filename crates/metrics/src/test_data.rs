//! Stored reference data and made-up features for the tests.

use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::random::keyed;
use crate::{FeatureSet, Image, Preprocess, Provenance};

/// Shape and values.
pub(crate) type Array = (Vec<usize>, Vec<f32>);

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub(crate) fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

/// A stored file itself.
pub(crate) fn stored(name: &str) -> PathBuf {
    path(name)
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

pub(crate) fn golden() -> Value {
    json("golden.json")
}

/// All `f32` tensors of a file.
pub(crate) fn tensors(name: &str) -> HashMap<String, Array> {
    let bytes = std::fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect();
    file.iter()
        .filter(|(_, view)| view.dtype() == Dtype::F32)
        .map(|(key, view)| (key.to_owned(), (view.shape().to_vec(), values(view.data()))))
        .collect()
}

/// One `i64` tensor of a file, as indices.
pub(crate) fn indices(name: &str, key: &str) -> Vec<usize> {
    let bytes = std::fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (words, _) = file.tensor(key).unwrap().data().as_chunks();
    words.iter().map(|w| i64::from_le_bytes(*w) as usize).collect()
}

/// Fails unless the values agree relatively; prints the difference for `--nocapture`.
#[track_caller]
pub(crate) fn close(what: &str, value: f64, expected: f64, tolerance: f64) {
    let relative = (value - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
    eprintln!("{what}: {value} against {expected}, relative {relative:.1e}");
    assert!(relative <= tolerance, "{what}: {value} against {expected}, relative {relative:e}");
}

/// Largest absolute difference.
#[track_caller]
pub(crate) fn max_difference(values: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(values.len(), expected.len());
    values.iter().zip(expected).map(|(v, e)| (v - e).abs()).fold(0.0, f32::max)
}

/// The rows of `set` whose index `keep` takes.
pub(crate) fn part(set: &FeatureSet, keep: impl Fn(usize) -> bool) -> FeatureSet {
    let rows: Vec<f32> = set.data.chunks(set.dim).enumerate().filter(|(i, _)| keep(*i)).flat_map(|(_, r)| r).copied().collect();
    features(&(vec![rows.len() / set.dim, set.dim], rows), 1)
}

/// A feature set of the given rows; `crops` consecutive rows share a group.
pub(crate) fn features((shape, data): &Array, crops: usize) -> FeatureSet {
    let n = shape[0];
    let provenance = Provenance { extractor: "test".to_owned(), weights: "none".to_owned(), preprocess: Preprocess::default() };
    let names = (0..n).map(|i| i.to_string()).collect();
    let groups = (0..n).map(|i| (i / crops) as u32).collect();
    FeatureSet::new(names, groups, data.clone(), shape[1], provenance).unwrap()
}

/// The two feature sets of `golden.json`, key `features`.
pub(crate) fn formula_features() -> [FeatureSet; 2] {
    let set = |n: usize, f: fn(f64, f64) -> f64| {
        let value = |k: usize| f((k / 16) as f64, (k % 16) as f64) as f32;
        features(&(vec![n, 16], (0..16 * n).map(value).collect()), 1)
    };
    [
        set(80, |i, j| (0.37 * i + 0.11 * j * (i % 7.0 + 1.0)).sin() + 0.25 * (1.3 * i * j + 0.5).cos()),
        set(96, |i, j| {
            let wave = 1.1 * (0.41 * i + 0.13 * j * (i % 5.0 + 1.0) + 0.2).sin();
            wave + 0.2 * (0.9 * i * j).cos() + 0.05
        }),
    ]
}

/// Normal variates by Box–Muller from keyed uniforms.
pub(crate) struct Gaussian {
    seed: u64,
    drawn: u64,
}

impl Gaussian {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    fn next(&mut self) -> f64 {
        self.drawn += 1;
        let uniform = |part| ((keyed(&[self.seed, self.drawn, part]) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * uniform(0).ln()).sqrt() * (std::f64::consts::TAU * uniform(1)).cos()
    }

    /// Rows of independent normal values.
    pub(crate) fn features(&mut self, n: usize, dim: usize, mean: f64, sd: f64) -> FeatureSet {
        let data = (0..n * dim).map(|_| (mean + sd * self.next()) as f32).collect();
        features(&(vec![n, dim], data), 1)
    }
}

/// SplitMix64's output function.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// `index`-th hash of a name: FNV-1a of the salted name, then SplitMix64. See `tests/data/README.md`.
pub(crate) fn hashed(name: &str, index: u64) -> u64 {
    let fnv = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let h = format!("fid-a:{name}").bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    mixed(h.wrapping_add((index + 1).wrapping_mul(GOLDEN_RATIO)))
}

/// The formula image of the references.
pub(crate) fn formula_image(seed: u64, height: usize, width: usize) -> Image {
    let name = format!("image{seed}");
    let h = |i: u64| hashed(&name, i) >> 56;
    let value = |i: usize| {
        let (x, y, c) = ((i / 3 % width) as u64, (i / 3 / width) as u64, (i % 3) as u64);
        let t = (x * (3 + seed % 5) + y * (2 + seed % 7) + 29 * c + ((x * x + y * y) >> 5)) & 511;
        let triangle = if t < 256 { t } else { 511 - t };
        ((3 * triangle + h(i as u64)) >> 2) as u8
    };
    Image::new(width, height, (0..3 * width * height).map(value).collect()).unwrap()
}

/// The image as a PNG file.
pub(crate) fn png(image: &Image) -> Vec<u8> {
    let pixels = image::RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb.clone()).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The folder of a stored tiny network.
pub(crate) fn network_folder(name: &str) -> PathBuf {
    path("networks").join(name)
}

/// Fails unless the tensor agrees, relative to the reference's root mean square.
#[track_caller]
pub(crate) fn assert_near(what: &str, values: &candle_core::Tensor, (shape, expected): &Array, tolerance: f32) {
    assert_eq!(values.dims(), shape, "{what}");
    let rms = (expected.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / expected.len() as f64).sqrt() as f32;
    let difference = max_difference(&values.flatten_all().unwrap().to_vec1().unwrap(), expected) / rms;
    eprintln!("{what}: {difference:.1e} of the root mean square");
    assert!(difference <= tolerance, "{what}: {difference:e}");
}
