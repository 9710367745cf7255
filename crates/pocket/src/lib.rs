//! What travels in the program: the experiments on the pocket model, its checkpoint, motion modules, upscaler, Inception and I3D.
//!
//! ```
//! use scalebench_pocket::{FILES, File, experiments, file};
//! let quick: &File = file("experiments/quick.yaml").unwrap();
//! assert!(String::from_utf8(quick.content()).unwrap().contains("datasets/pocket"));
//! assert!(FILES.iter().all(|file| file.packed().len() > 8));
//! assert!(file("experiments/quik.yaml").is_none());
//! assert!(experiments().any(|name| name == "quick"));
//! ```

use std::io::Read;

/// A file that travels.
///
/// Example: [this crate](crate).
#[derive(Debug)]
pub struct File {
    /// Where it lies in the repository, with `/` between the names.
    ///
    /// Example: [this crate](crate).
    pub path: &'static str,
    /// Place of the file that its bytes are packed as the difference from (exclusive or), if any; that one lies before it.
    like: Option<usize>,
    packed: &'static [u8],
}

impl File {
    /// Its bytes.
    ///
    /// Example: [this crate](crate).
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        flate2::read::ZlibDecoder::new(self.packed).read_to_end(&mut content).expect("the build script packed it");
        if !self.path.ends_with(".safetensors") {
            return content;
        }
        // As the build script has it: the bytes at even places, then those at odd ones.
        let (even, odd) = content.split_at(content.len().div_ceil(2));
        let mut content: Vec<u8> = (0..content.len()).map(|i| if i % 2 == 0 { even[i / 2] } else { odd[i / 2] }).collect();
        if let Some(like) = self.like {
            content.iter_mut().zip(FILES[like].content()).for_each(|(byte, of)| *byte ^= of);
        }
        content
    }

    /// What stands for its bytes: equal if and only if they are, where those of the files before it are.
    ///
    /// Example: [this crate](crate).
    #[must_use]
    pub fn packed(&self) -> &'static [u8] {
        self.packed
    }
}

/// All of them, by path.
///
/// Example: [this crate](crate).
pub static FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// The file of a path.
///
/// Example: [this crate](crate).
#[must_use]
pub fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// Names of the experiments.
///
/// Example: [this crate](crate).
pub fn experiments() -> impl Iterator<Item = &'static str> {
    FILES.iter().filter_map(|file| file.path.strip_prefix("experiments/")?.strip_suffix(".yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn files_come_out_as_they_went_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for file in FILES {
            assert!(file.content() == std::fs::read(root.join(file.path)).unwrap(), "{}", file.path);
        }
        for name in ["pocket", "pocket-motion", "pocket-upscaler", "pocket-inception", "pocket-i3d"] {
            assert!(FILES.iter().any(|file| file.path.starts_with(&format!("datasets/{name}/"))), "{name}");
        }
        let models: usize = FILES.iter().map(|file| file.packed.len()).sum();
        assert!(models < 30_000_000, "{models} bytes of models in the program");
        // The upscaler took the text encoder as it is and the autoencoder with another scale.
        assert!(FILES.iter().filter(|file| file.like.is_some()).all(|file| file.packed.len() < 10_000));
    }
}
