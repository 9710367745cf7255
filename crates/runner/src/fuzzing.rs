//! Entry points for `crates/fuzz`: this program's readers of what may come from elsewhere, on bytes alone.
//!
//! ```
//! use scalebench::fuzzing::{captions, experiment, image, protocol, run_files, tables};
//! for reader in [experiment, protocol, captions, tables, image, run_files] {
//!     assert!(reader(b"nonsense").is_err());
//! }
//! assert!(captions(br#"{"caption": "a dog"}"#).is_ok());
//! // The first byte says which kind of table.
//! assert!(tables(b"\0caption\na dog\n").is_ok());
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::experiment::{captions, matrix, prompts, protocol, spec, yaml};
use crate::run::file::RunFile;
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, Timing};
use crate::run::{png, seal};

/// An experiment file, up to the matrix.
///
/// Example: [this module](self).
pub fn experiment(bytes: &[u8]) -> Result<()> {
    let value = yaml::read(bytes)?;
    let spec::Experiment { models, methods, matrix, .. } = yaml::from_value(value).map_err(anyhow::Error::msg)?;
    ensure!(!methods.is_empty(), "methods: expected at least one");
    matrix::models(models, &matrix)?;
    matrix::methods(&methods, &matrix)?;
    Ok(())
}

/// A protocol file, with everything that is checked of it alone.
///
/// Example: [this module](self).
pub fn protocol(bytes: &[u8]) -> Result<()> {
    let found = protocol::parse(std::str::from_utf8(bytes)?, "protocol.yaml")?;
    found.scores();
    found.images_at(1024, 1024);
    found.compare.iter().map(protocol::Comparison::describe).for_each(drop);
    Ok(())
}

/// COCO's captions and JSON lines.
///
/// Example: [this module](self).
pub fn captions(bytes: &[u8]) -> Result<()> {
    if bytes.first() == Some(&b'{') && bytes.contains(&b'[') {
        return captions::coco(bytes, 7).map(drop);
    }
    captions::json_lines(bytes, Some("caption")).map(drop)
}

/// Tables of captions: CSV, TSV, Parquet.
///
/// Example: [this module](self).
pub fn tables(bytes: &[u8]) -> Result<()> {
    let (kind, bytes) = bytes.split_first().context("empty")?;
    let name = ["a.csv", "a.tsv", "a.parquet"][usize::from(*kind % 3)];
    prompts::table(Path::new(name), bytes.to_vec(), "caption").map(drop)
}

/// An image or video of the run store, with its key.
///
/// Example: [this module](self).
pub fn image(bytes: &[u8]) -> Result<()> {
    png::decode_frames(bytes).map(drop)
}

/// Lines of manifests and timings, a run's description and its checksums.
///
/// Example: [this module](self).
pub fn run_files(bytes: &[u8]) -> Result<()> {
    let (kind, bytes) = bytes.split_first().context("empty")?;
    let store = Store::new(Path::new("run"), Shard::WHOLE);
    match kind % 4 {
        0 => store.parse_lines::<ManifestLine>("manifest.jsonl", bytes).map(drop),
        1 => store.parse_lines::<Timing>("timings.jsonl", bytes).map(drop),
        2 => seal::parse(&store, bytes).map(|found: BTreeMap<String, String>| drop(found)),
        _ => RunFile::parse(bytes).map(drop),
    }
}
