//! `checksums.b3`: the digests of what a finished run consists of, as `b3sum --check` reads them.
//!
//! Whoever reads one of these files through [`read`] does not take a damaged one for the run's own. Images are not among them, since
//! the manifests hold their digests, nor what may change afterwards: timings, which are measured again, and the report, which is made
//! from the rest. While a run is being made there is no such file.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::host::digest;
use crate::run::store::Store;

/// Name of the file in the run directory.
pub(crate) const CHECKSUMS: &str = "checksums.b3";

/// Digests by file, relative to the run directory; none of a run that is not finished, or that an earlier version made.
pub(crate) fn checksums(store: &Store) -> Result<BTreeMap<String, String>> {
    parse(store, &store.read(CHECKSUMS)?.unwrap_or_default())
}

/// The same of the file's content.
pub(crate) fn parse(store: &Store, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let text = String::from_utf8_lossy(bytes);
    let line = |(i, line): (usize, &str)| -> Result<(String, String)> {
        let parts = line.split_once("  ").filter(|(digest, file)| digest.len() == 64 && !file.is_empty());
        let place = || format!("{}: line {}: expected a digest, two spaces and a file", store.path(CHECKSUMS).display(), i + 1);
        let (digest, file) = parts.with_context(place)?;
        Ok((file.to_owned(), digest.to_owned()))
    };
    text.lines().enumerate().map(line).collect()
}

/// Writes down the digests of a finished run: its own files, those of `cells`, and all features.
pub(crate) fn write(store: &Store, cells: &[&str]) -> Result<()> {
    let mut files: Vec<String> = ["run.yaml", "results.csv", "results.parquet", "timings.csv"].map(str::to_owned).to_vec();
    files.extend(cells.iter().flat_map(|cell| ["manifest.jsonl", "schedule.json"].map(|name| format!("cells/{cell}/{name}"))));
    for entry in fs::read_dir(store.path("features")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            files.push(format!("features/{name}"));
        }
    }
    files.retain(|file| store.path(file).is_file());
    files.sort();
    let mut text = String::new();
    for file in files {
        text += &format!("{}  {file}\n", digest::of_file(&store.path(&file))?);
    }
    store.write(CHECKSUMS, text.as_bytes())
}

/// Says that the run's files may change from here on.
pub(crate) fn remove(store: &Store) -> Result<()> {
    let path = store.path(CHECKSUMS);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The content of a file, if there is one; an error if it is not what the run wrote.
pub(crate) fn read(store: &Store, relative: &str) -> Result<Option<Vec<u8>>> {
    let Some(bytes) = store.read(relative)? else { return Ok(None) };
    if let Some(expected) = checksums(store)?.get(relative) {
        ensure!(
            blake3::hash(&bytes).to_string() == *expected,
            "{}: damaged, it does not have the digest in {CHECKSUMS}; {}",
            store.path(relative).display(),
            remedy(relative)
        );
    }
    Ok(Some(bytes))
}

/// [`read`] of what [`Store::write_lines`] wrote; a missing file has no lines.
pub(crate) fn read_lines<T: for<'de> Deserialize<'de>>(store: &Store, relative: &str) -> Result<Vec<T>> {
    store.parse_lines(relative, &read(store, relative)?.unwrap_or_default())
}

/// What helps where a file is not what the run wrote.
fn remedy(relative: &str) -> &'static str {
    match relative {
        "run.yaml" => "expected it as the run wrote it: bring it back from a copy, or remove checksums.b3 if the change is meant",
        _ => "the same `scalebench sweep` makes it again",
    }
}
