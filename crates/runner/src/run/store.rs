//! The run directory. Files appear by rename: whatever has its final name is whole.
//!
//! ```text
//! DIR/run.yaml                         the command, the machine, the resolved experiment
//! DIR/cells/<cell>/images/000000.png   the key of each image is in a text chunk; videos are animated PNG files
//! DIR/cells/<cell>/manifest.jsonl      one line per image, once all are there
//! DIR/cells/<cell>/timings*.jsonl      seconds and memory; one file per shard
//! DIR/cells/<cell>/schedule.json       what the method does by layer and step
//! DIR/features/<key>.safetensors
//! DIR/results.csv, results.parquet, timings.csv
//! DIR/checksums.b3                     digests of the files above, once the run is finished
//! DIR/report/
//! ```
//!
//! A temporary file's name is a function of its target and the shard, of which one process at a time is in charge
//! ([`crate::run::lock`]), so that writers never meet and what a killed process leaves behind is removed when the same command
//! starts again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use scalebench_metrics::Image;
use serde::{Deserialize, Serialize};

use crate::run::shard::Shard;
use crate::run::{lock, png};

/// A run directory, seen by one shard.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    shard: Shard,
}

/// One line of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ManifestLine {
    pub(crate) index: usize,
    pub(crate) prompt: String,
    pub(crate) seed: u64,
    pub(crate) key: String,
    /// Digest of the PNG file.
    pub(crate) blake3: String,
    /// Digest of the file that another program wrote, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) brought: Option<String>,
}

/// What making one image cost. Kept apart from everything that is compared byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) index: usize,
    pub(crate) seconds: f64,
    /// Seconds of processor time, of all threads together; runs of older versions have none.
    #[serde(default)]
    pub(crate) processor_seconds: Option<f64>,
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Store {
    /// Looks at `root` without touching it.
    pub(crate) fn new(root: &Path, shard: Shard) -> Store {
        Store { root: root.to_owned(), shard }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Writes a file so that its name only ever stands for the whole content.
    pub(crate) fn write(&self, relative: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(relative);
        let folder = path.parent().expect("a file in the run directory has a parent");
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        write_by(&path, &folder.join(format!(".{name}{}", self.suffix())), bytes)
    }

    fn suffix(&self) -> String {
        format!(".{}of{}.tmp", self.shard.index, self.shard.count)
    }

    /// The content of a file, if there is one.
    pub(crate) fn read(&self, relative: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(relative);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Removes what a killed process left behind. A run that is not sharded clears up after all that are not at work.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        let is_at_work = |shard: Shard| shard != self.shard && lock::is_taken(&self.root, shard);
        let others_are_at_work = self.shards().into_iter().any(is_at_work);
        let is_leftover = |name: &str| match name.strip_prefix('.') {
            None => false,
            Some(_) if name.ends_with(&self.suffix()) => true,
            Some(_) if self.shard != Shard::WHOLE => false,
            Some(rest) => match rest.strip_suffix(".tmp").and_then(|rest| rest.rsplit('.').next()) {
                Some(shard) => lock::named(shard).is_none_or(|shard| !is_at_work(shard)),
                // Feature files are written by the metrics crate, whose temporary names do not tell the shard.
                None => rest.contains(".tmp-") && !others_are_at_work,
            },
        };
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
                let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if is_leftover(&name) {
                    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        Ok(())
    }

    /// The shards that processes have been in charge of.
    fn shards(&self) -> Vec<Shard> {
        let names = fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| lock::named(name.to_string_lossy().strip_prefix('.')?.strip_suffix(".lock")?)).collect()
    }

    /// Where image `index` of a cell is, or will be.
    pub(crate) fn image(cell: &str, index: usize) -> String {
        format!("cells/{cell}/images/{index:06}.png")
    }

    /// When the images `0..n` of a cell that have their final name were written; they are not opened.
    pub(crate) fn image_times(&self, cell: &str, n: usize) -> Result<Vec<SystemTime>> {
        let mut times = Vec::new();
        for index in 0..n {
            let path = self.path(&Self::image(cell, index));
            match path.metadata().and_then(|data| data.modified()) {
                Ok(time) => times.push(time),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
                Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
            }
        }
        Ok(times)
    }

    /// The bytes of image `index` if it is whole and was made under `key`.
    pub(crate) fn read_image(&self, cell: &str, index: usize, key: &str) -> Result<Option<Vec<u8>>> {
        let bytes = self.read(&Self::image(cell, index))?;
        Ok(bytes.filter(|bytes| png::decode_frames(bytes).is_ok_and(|(_, found)| found.as_deref() == Some(key))))
    }

    /// Stores image `index` under `key`: one frame, or those of a video.
    pub(crate) fn write_image(&self, cell: &str, index: usize, key: &str, frames: &[Image], fps: f64) -> Result<()> {
        self.write(&Self::image(cell, index), &png::encode_frames(frames, fps, Some(key))?)
    }

    /// Writes one JSON document per line.
    pub(crate) fn write_lines<T: Serialize>(&self, relative: &str, lines: &[T]) -> Result<()> {
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(line)?;
            text.push('\n');
        }
        self.write(relative, text.as_bytes())
    }

    /// Reads what [`Store::write_lines`] wrote; a missing file has no lines.
    pub(crate) fn read_lines<T: for<'de> Deserialize<'de>>(&self, relative: &str) -> Result<Vec<T>> {
        self.parse_lines(relative, &self.read(relative)?.unwrap_or_default())
    }

    /// The same of a file's content.
    pub(crate) fn parse_lines<T: for<'de> Deserialize<'de>>(&self, relative: &str, bytes: &[u8]) -> Result<Vec<T>> {
        let text = String::from_utf8_lossy(bytes);
        text.lines()
            .enumerate()
            .map(|(i, line)| {
                let place = || format!("{}: line {}", self.path(relative).display(), i + 1);
                serde_json::from_str(line).with_context(place)
            })
            .collect()
    }

    /// This shard's timings file of a cell.
    pub(crate) fn timings(&self, cell: &str) -> String {
        match self.shard {
            Shard::WHOLE => format!("cells/{cell}/timings.jsonl"),
            Shard { index, count } => format!("cells/{cell}/timings.{index}of{count}.jsonl"),
        }
    }

    /// Timings of a cell from all shards.
    pub(crate) fn all_timings(&self, cell: &str) -> Result<Vec<Timing>> {
        let mut timings = Vec::new();
        for file in self.timing_files(cell) {
            timings.extend(self.read_lines::<Timing>(&file)?);
        }
        Ok(timings)
    }

    /// Names of a cell's timings files, one per shard that has made an image of it.
    pub(crate) fn timing_files(&self, cell: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(&format!("cells/{cell}"))) else { return Vec::new() };
        let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with("timings.") && name.ends_with(".jsonl"));
        names.sort();
        names.into_iter().map(|name| format!("cells/{cell}/{name}")).collect()
    }
}

/// Where a cell's manifest is.
pub(crate) fn manifest_file(cell: &str) -> String {
    format!("cells/{cell}/manifest.jsonl")
}

/// Writes a file under a path of the user's choice, whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // A bare file name has the empty path as its parent, which cannot be opened.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{}: expected a file name", path.display()))?;
    // Of this process alone: others may write there as well.
    write_by(&folder.join(name), &folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())), bytes)
}

/// Writes under a temporary name beside the final one, and renames. What could not be written whole is removed.
fn write_by(path: &Path, temporary: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        fs::create_dir_all(folder)?;
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        // On the disk before it has its name, or a loss of power could leave the name with half of the content.
        file.sync_all()?;
        fs::rename(temporary, path)?;
        // The rename itself is only durable once the folder is.
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(temporary))).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_only_if_whole_and_under_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Shard::WHOLE);
        let image = Image::new(4, 4, vec![7; 48]).unwrap();
        assert_eq!(store.read_image("m/4x-a", 0, "k").unwrap(), None);
        store.write_image("m/4x-a", 0, "k", &[image], 1.0).unwrap();
        let bytes = store.read_image("m/4x-a", 0, "k").unwrap().unwrap();
        assert_eq!(store.read_image("m/4x-a", 0, "other").unwrap(), None);
        fs::write(store.path(&Store::image("m/4x-a", 0)), &bytes[..bytes.len() - 9]).unwrap();
        assert_eq!(store.read_image("m/4x-a", 0, "k").unwrap(), None);
    }

    #[test]
    fn leftovers_of_this_shard_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shard = Shard { index: 1, count: 3 };
        let store = Store::new(dir.path(), shard);
        store.write("a/b.txt", b"x").unwrap();
        for name in [".b.txt.1of3.tmp", ".b.txt.0of3.tmp"] {
            fs::write(dir.path().join("a").join(name), b"half").unwrap();
        }
        let names = || {
            let entries = fs::read_dir(dir.path().join("a")).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        store.remove_leftovers().unwrap();
        assert_eq!(names(), [".b.txt.0of3.tmp", "b.txt"]);
        Store::new(dir.path(), Shard::WHOLE).remove_leftovers().unwrap();
        assert_eq!(names(), ["b.txt"]);
    }
}
