//! The history of a nightly experiment: a folder with one Parquet table and two runs.
//!
//! ```text
//! DIR/history.parquet    one row per night and cell
//! DIR/trend.svg
//! DIR/accepted/          what later nights are compared with: description, manifests, features, times, results
//! DIR/latest/            the last run, whole
//! DIR/*/night.json       when, by which program, on which machine
//! ```

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{Column, DataFrame, ParquetReader, ParquetWriter, SerReader};
use serde::{Deserialize, Serialize};

use crate::compare::finished::Run;
use crate::experiment::resolved::{Resolved, difference};
use crate::host::machine::{self, Machine};
use crate::run::file::{RUN_FILE, RunFile};
use crate::run::lock;
use crate::run::results::Interval;
use crate::run::shard::Shard;
use crate::run::store::Store;
use crate::words::time::date;

const TABLE: &str = "history.parquet";
const NIGHT: &str = "night.json";
const ACCEPTED: &str = "accepted";
const LATEST: &str = "latest";
/// A run on its way in, and one on its way out: with its final name a folder has what makes it a run of the history.
const INCOMING: &str = ".incoming";
const OUTGOING: &str = ".outgoing";

/// When, by which program and on which machine a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Night {
    /// When it began, UTC, as `2026-01-31T02:00:00Z`; names the night.
    pub(crate) date: String,
    pub(crate) version: String,
    /// That the program was built from, where `build.rs` could tell.
    pub(crate) commit: Option<String>,
    /// Digest of the program's file.
    pub(crate) build: String,
    /// Processor, threads and system.
    pub(crate) machine: String,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) night: Night,
    pub(crate) experiment: String,
    pub(crate) cell: String,
    pub(crate) model: String,
    pub(crate) scale: f64,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) method: String,
    pub(crate) protocol: String,
    pub(crate) n_images: u64,
    /// Digests of the image files and of their features.
    pub(crate) images: String,
    pub(crate) features: String,
    /// Column and value.
    pub(crate) scores: Vec<(String, Option<Interval>)>,
    pub(crate) seconds_per_image: Option<f64>,
    /// The largest of its images; None where the system does not tell, and of nights before this was kept.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// Date of the accepted run; None where this is the first.
    pub(crate) compared_with: Option<String>,
    /// What regressed in this cell.
    pub(crate) regressions: Option<String>,
}

/// An open history. One process at a time has it.
pub(crate) struct History {
    folder: PathBuf,
    store: Store,
    pub(crate) entries: Vec<Entry>,
    /// Held for as long as the history is open.
    _lock: File,
}

impl Night {
    /// This program on this machine, now.
    pub(crate) fn now() -> Result<Night> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
        Ok(Night {
            date: date(since.as_secs()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: Some(env!("SCALEBENCH_COMMIT").to_owned()).filter(|commit| !commit.is_empty()),
            build: machine::build()?,
            machine: machine(),
        })
    }

    /// Whether a run that one began may be finished by the other: a mixture of two programs proves nothing.
    fn can_resume(&self, other: &Night) -> bool {
        Night { date: other.date.clone(), ..self.clone() } == *other
    }
}

/// The GPU in use, if one is, processor, number of threads in use, operating system and architecture.
fn machine() -> String {
    let Machine { gpu, processor, threads, system, .. } = Machine::here();
    let gpu = gpu.map(|gpu| format!("{gpu}, ")).unwrap_or_default();
    format!("{gpu}{}, {threads} threads, {system}", processor.as_deref().unwrap_or("unknown processor"))
}

impl History {
    /// Opens or begins a history.
    pub(crate) fn open(folder: &Path) -> Result<History> {
        fs::create_dir_all(folder).with_context(|| format!("--history: cannot create {}", folder.display()))?;
        let lock_file = folder.join(".lock");
        let lock = File::create(&lock_file).with_context(|| format!("--history: cannot write {}", lock_file.display()))?;
        match lock.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => bail!("{}: another nightly run has it open", folder.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("cannot lock {}", lock_file.display())),
        }
        let store = Store::new(folder, Shard::WHOLE);
        // Killed while an accepted run was replaced: either the old one or the new one is whole.
        let [accepted, _, outgoing] = stages(folder, ACCEPTED);
        if !accepted.exists() && outgoing.exists() {
            rename(&outgoing, &accepted)?;
        }
        let entries = match store.read(TABLE)? {
            Some(bytes) => read(bytes).with_context(|| format!("cannot read {}", store.path(TABLE).display()))?,
            None => Vec::new(),
        };
        Ok(History { folder: folder.to_owned(), store, entries, _lock: lock })
    }

    /// Directory of the latest run.
    pub(crate) fn latest(&self) -> PathBuf {
        self.folder.join(LATEST)
    }

    /// The accepted run, if there is one yet.
    pub(crate) fn accepted(&self) -> Result<Option<(Night, Run)>> {
        let folder = self.folder.join(ACCEPTED);
        if folder.exists() {
            let night = night(&folder)?.with_context(|| format!("{}: expected {NIGHT}", folder.display()))?;
            return Ok(Some((night, Run::open(&folder)?)));
        }
        ensure!(
            self.entries.is_empty(),
            "{}: expected the accepted run that {} rows of {TABLE} come after; --accept makes the latest run the accepted one",
            folder.display(),
            self.entries.len()
        );
        Ok(None)
    }

    /// Makes room for a run. One that this program began under the same experiment and did not finish goes on.
    pub(crate) fn begin(&self, now: Night, resolved: &Resolved) -> Result<Night> {
        let [folder, incoming, outgoing] = stages(&self.folder, LATEST);
        // Of a night that was killed here.
        clear(&incoming)?;
        clear(&outgoing)?;
        if folder.exists() {
            let before = night(&folder)?;
            let before =
                before.with_context(|| format!("{}: expected the latest run, with {NIGHT}; it is not touched", folder.display()))?;
            let store = Store::new(&folder, Shard::WHOLE);
            let same_experiment = || -> Result<bool> {
                Ok(match store.read(RUN_FILE)? {
                    Some(_) => difference(&RunFile::read(&store)?.experiment, resolved)?.is_none(),
                    None => true,
                })
            };
            // Nobody is at work on what is about to be replaced.
            drop(lock::take(&folder, Shard::WHOLE)?);
            if !self.has(&before) && before.can_resume(&now) && same_experiment()? {
                return Ok(before);
            }
            rename(&folder, &outgoing)?;
            clear(&outgoing)?;
        }
        Store::new(&incoming, Shard::WHOLE).write(NIGHT, &serde_json::to_vec_pretty(&now)?)?;
        rename(&incoming, &folder)?;
        Ok(now)
    }

    fn has(&self, night: &Night) -> bool {
        self.entries.iter().any(|entry| entry.night == *night)
    }

    /// Adds a night's rows.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<()> {
        self.entries.extend(entries);
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut frame(&self.entries)?)?;
        self.store.write(TABLE, &bytes)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.store.write(name, bytes)
    }

    /// Makes the latest run, which must be among the nights, the accepted one.
    pub(crate) fn accept_latest(&self) -> Result<Night> {
        let latest = self.latest();
        let found = night(&latest)?.with_context(|| format!("{}: expected a run to accept, found none", latest.display()))?;
        ensure!(self.has(&found), "{}: the run of {} did not come to its end; run it again", latest.display(), found.date);
        self.accept(&Run::open(&latest)?)?;
        Ok(found)
    }

    /// Keeps of the latest run what later nights are compared with.
    pub(crate) fn accept(&self, run: &Run) -> Result<()> {
        let [accepted, incoming, outgoing] = stages(&self.folder, ACCEPTED);
        clear(&incoming)?;
        let mut files = run.files()?;
        files.extend([NIGHT, "results.csv", "results.parquet"].map(str::to_owned));
        let (from, to) = (Store::new(&self.latest(), Shard::WHOLE), Store::new(&incoming, Shard::WHOLE));
        for file in files {
            let bytes = from.read(&file)?.with_context(|| format!("{}: expected a finished run", from.path(&file).display()))?;
            to.write(&file, &bytes)?;
        }
        clear(&outgoing)?;
        if accepted.exists() {
            rename(&accepted, &outgoing)?;
        }
        rename(&incoming, &accepted)?;
        clear(&outgoing)
    }
}

/// A run of a history by its final name, on its way in, on its way out.
fn stages(folder: &Path, name: &str) -> [PathBuf; 3] {
    ["", INCOMING, OUTGOING].map(|stage| folder.join(format!("{name}{stage}")))
}

fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot write {}", to.display()))
}

/// What a run directory of a history says about its making.
fn night(folder: &Path) -> Result<Option<Night>> {
    let store = Store::new(folder, Shard::WHOLE);
    let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", store.path(NIGHT).display()));
    store.read(NIGHT)?.map(parse).transpose()
}

/// The table. Columns of scores that some nights lack are empty there.
fn frame(entries: &[Entry]) -> Result<DataFrame> {
    let text = |name: &str, value: &dyn Fn(&Entry) -> Option<String>| {
        Column::new(name.into(), entries.iter().map(value).collect::<Vec<Option<String>>>())
    };
    let mut columns = vec![
        text("date", &|e| Some(e.night.date.clone())),
        text("version", &|e| Some(e.night.version.clone())),
        text("commit", &|e| e.night.commit.clone()),
        text("build", &|e| Some(e.night.build.clone())),
        text("machine", &|e| Some(e.night.machine.clone())),
        text("experiment", &|e| Some(e.experiment.clone())),
        text("cell", &|e| Some(e.cell.clone())),
        text("model", &|e| Some(e.model.clone())),
        Column::new("scale".into(), entries.iter().map(|e| e.scale).collect::<Vec<f64>>()),
        Column::new("width".into(), entries.iter().map(|e| e.width).collect::<Vec<u32>>()),
        Column::new("height".into(), entries.iter().map(|e| e.height).collect::<Vec<u32>>()),
        text("method", &|e| Some(e.method.clone())),
        text("protocol", &|e| Some(e.protocol.clone())),
        Column::new("n_images".into(), entries.iter().map(|e| e.n_images).collect::<Vec<u64>>()),
        text("images_digest", &|e| Some(e.images.clone())),
        text("features_digest", &|e| Some(e.features.clone())),
    ];
    for name in score_names(entries) {
        let mut part = |suffix: &str, part: fn(Interval) -> f64| {
            let values: Vec<Option<f64>> = entries.iter().map(|entry| entry.score(name).map(part)).collect();
            columns.push(Column::new(format!("{name}{suffix}").into(), values));
        };
        part("", |x| x.value);
        part("_lo", |x| x.lo);
        part("_hi", |x| x.hi);
    }
    columns.push(Column::new("seconds_per_image".into(), entries.iter().map(|e| e.seconds_per_image).collect::<Vec<Option<f64>>>()));
    columns.push(Column::new("peak_memory_bytes".into(), entries.iter().map(|e| e.peak_memory_bytes).collect::<Vec<Option<u64>>>()));
    columns.push(text("compared_with", &|e| e.compared_with.clone()));
    columns.push(text("regressions", &|e| e.regressions.clone()));
    Ok(DataFrame::new(entries.len(), columns)?)
}

/// Names of all scores, in the order in which they came.
pub(crate) fn score_names(entries: &[Entry]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in entries.iter().flat_map(|entry| &entry.scores) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

impl Entry {
    pub(crate) fn score(&self, name: &str) -> Option<Interval> {
        self.scores.iter().find(|(known, _)| known == name)?.1
    }
}

/// Reads the table back.
fn read(bytes: Vec<u8>) -> Result<Vec<Entry>> {
    let all = ParquetReader::new(std::io::Cursor::new(bytes)).finish()?;
    let text = |name: &str, i| -> Result<Option<String>> { Ok(all.column(name)?.str()?.get(i).map(str::to_owned)) };
    let word = |name: &str, i| -> Result<String> { text(name, i)?.with_context(|| format!("{name}: row {i} is empty")) };
    let float = |name: &str, i| -> Result<Option<f64>> { Ok(all.column(name)?.f64()?.get(i)) };
    let side = |name: &str, i| -> Result<u32> { all.column(name)?.u32()?.get(i).with_context(|| format!("{name}: row {i} is empty")) };
    // A score is what has a column for its lower bound.
    let names: Vec<String> = all.get_column_names().iter().filter_map(|name| Some(name.strip_suffix("_lo")?.to_owned())).collect();
    let score = |name: &String, i: usize| -> Result<(String, Option<Interval>)> {
        let parts = (float(name, i)?, float(&format!("{name}_lo"), i)?, float(&format!("{name}_hi"), i)?);
        let interval = match parts {
            (Some(value), Some(lo), Some(hi)) => Some(Interval { value, lo, hi }),
            _ => None,
        };
        Ok((name.clone(), interval))
    };
    let memory = all.column("peak_memory_bytes").ok().map(Column::u64).transpose()?;
    let entry = |i: usize| -> Result<Entry> {
        Ok(Entry {
            night: Night {
                date: word("date", i)?,
                version: word("version", i)?,
                commit: text("commit", i)?,
                build: word("build", i)?,
                machine: word("machine", i)?,
            },
            experiment: word("experiment", i)?,
            cell: word("cell", i)?,
            model: word("model", i)?,
            scale: float("scale", i)?.context("scale: empty")?,
            width: side("width", i)?,
            height: side("height", i)?,
            method: word("method", i)?,
            protocol: word("protocol", i)?,
            n_images: all.column("n_images")?.u64()?.get(i).context("n_images: empty")?,
            images: word("images_digest", i)?,
            features: word("features_digest", i)?,
            scores: names.iter().map(|name| score(name, i)).collect::<Result<_>>()?,
            seconds_per_image: float("seconds_per_image", i)?,
            peak_memory_bytes: memory.and_then(|memory| memory.get(i)),
            compared_with: text("compared_with", i)?,
            regressions: text("regressions", i)?,
        })
    };
    (0..all.height()).map(entry).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row of a made-up night.
    pub(crate) fn entry(date: &str, cell: &str, value: f64) -> Entry {
        let night = Night { date: date.into(), version: "1".into(), commit: None, build: "b".into(), machine: "abacus".into() };
        Entry {
            night,
            experiment: "e".into(),
            cell: cell.into(),
            model: "m".into(),
            scale: 4.0,
            width: 128,
            height: 128,
            method: "direct-inf".into(),
            protocol: "pocket".into(),
            n_images: 12,
            images: "i".into(),
            features: "f".into(),
            scores: vec![("fid_r".into(), Some(Interval { value, lo: value - 1.0, hi: value + 1.0 })), ("fid_b".into(), None)],
            seconds_per_image: Some(0.5),
            peak_memory_bytes: Some(1 << 28),
            compared_with: None,
            regressions: None,
        }
    }

    #[test]
    fn rows_survive_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        assert!(history.entries.is_empty() && history.accepted().unwrap().is_none());
        assert!(format!("{:#}", History::open(dir.path()).err().unwrap()).contains("another nightly run has it open"));
        let first = vec![entry("2026-01-01T00:00:00Z", "m/4x-a", 3.0), entry("2026-01-01T00:00:00Z", "m/4x-b", 5.0)];
        history.append(first.clone()).unwrap();
        let mut second = entry("2026-01-02T00:00:00Z", "m/4x-a", 4.0);
        second.night.commit = Some("abc".into());
        second.compared_with = Some("2026-01-01T00:00:00Z".into());
        second.regressions = Some("slower".into());
        // A night with a column more.
        second.scores.push(("kid_r".into(), Some(Interval { value: 0.1, lo: 0.0, hi: 0.2 })));
        history.append(vec![second.clone()]).unwrap();
        drop(history);
        let history = History::open(dir.path()).unwrap();
        assert_eq!(history.entries.len(), 3);
        assert_eq!(history.entries[2], second);
        assert_eq!((history.entries[1].score("fid_r"), history.entries[1].score("kid_r")), (first[1].score("fid_r"), None));
        let error = format!("{:#}", history.accepted().err().unwrap());
        assert!(error.contains("accepted") && error.contains("3 rows"), "{error}");
        drop(history);

        let table = dir.path().join(TABLE);
        let bytes = fs::read(&table).unwrap();
        for corrupt in [&bytes[..bytes.len() / 2], b"no table", b""] {
            fs::write(&table, corrupt).unwrap();
            let error = format!("{:#}", History::open(dir.path()).err().unwrap());
            assert!(error.contains("cannot read") && error.contains(TABLE), "{error}");
        }
    }
}
