//! Whether a run directory is whole: every file that results rest on against its digest, and all of them against one another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use scalebench_metrics::{FeatureSet, Image, Stored};
use serde::Serialize;

use crate::compare::finished::{Run, RunCell};
use crate::experiment::plan::{Outline, outline};
use crate::experiment::resolved::Resolved;
use crate::host::digest;
use crate::report::tables;
use crate::run::file::{RUN_FILE, RunFile};
use crate::run::png;
use crate::run::seal::{self, CHECKSUMS};
use crate::run::shard::Shard;
use crate::run::store::{ManifestLine, Store, manifest_file};

/// What was looked at, and what is wrong about it.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub(crate) files: usize,
    /// By file, one problem each.
    pub(crate) wrong: Vec<Wrong>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Wrong {
    /// Relative to the run directory.
    pub(crate) file: String,
    pub(crate) problem: String,
}

/// Looks at the run in a directory; an error if there is none.
pub(crate) fn verify(folder: &Path) -> Result<Verified> {
    ensure!(folder.is_dir(), "{}: expected a run directory, found none", folder.display());
    let store = Store::new(folder, Shard::WHOLE);
    ensure!(store.path(RUN_FILE).is_file(), "{}: expected the description of a run", store.path(RUN_FILE).display());
    let mut check = Check { store: &store, seen: BTreeSet::new(), wrong: BTreeMap::new() };
    check.against_checksums();
    // Whatever its digest: what can be said about the rest is said.
    let described = || -> Result<Resolved> { Ok(RunFile::parse(&store.read(RUN_FILE)?.context("missing")?)?.experiment) };
    match described() {
        Err(error) => check.say(RUN_FILE, format!("{error:#}")),
        Ok(resolved) => check.of_run(&resolved),
    }
    let wrong = check.wrong.into_iter().map(|(file, problem)| Wrong { file, problem }).collect();
    Ok(Verified { files: check.seen.len(), wrong })
}

struct Check<'a> {
    store: &'a Store,
    seen: BTreeSet<String>,
    /// The first problem of each file.
    wrong: BTreeMap<String, String>,
}

impl Check<'_> {
    fn say(&mut self, file: &str, problem: impl Into<String>) {
        self.seen.insert(file.to_owned());
        self.wrong.entry(file.to_owned()).or_insert_with(|| problem.into());
    }

    fn against_checksums(&mut self) {
        let known = match seal::checksums(self.store) {
            Ok(known) => known,
            Err(error) => return self.say(CHECKSUMS, format!("{error:#}")),
        };
        if known.is_empty() {
            self.say(CHECKSUMS, "missing: the run is not finished, or an earlier version made it; the same sweep writes it");
        }
        for (file, expected) in &known {
            self.seen.insert(file.clone());
            let path = self.store.path(file);
            match path.is_file().then(|| digest::of_file(&path)) {
                None => self.say(file, "missing"),
                Some(Err(error)) => self.say(file, format!("{error:#}")),
                Some(Ok(found)) if found != *expected => self.say(file, format!("damaged: it does not have the digest in {CHECKSUMS}")),
                Some(Ok(_)) => {}
            }
        }
    }

    fn of_run(&mut self, resolved: &Resolved) {
        self.seen.insert(RUN_FILE.to_owned());
        for outline in outline(resolved) {
            self.cell(resolved, &outline);
        }
        self.features();
        self.results(resolved);
        self.leftovers();
    }

    /// A cell's manifest and images.
    fn cell(&mut self, resolved: &Resolved, outline: &Outline) {
        let file = manifest_file(&outline.name);
        self.seen.insert(file.clone());
        let lines: Vec<ManifestLine> = match self.store.read_lines(&file) {
            Ok(lines) => lines,
            Err(error) => {
                self.say(&file, format!("{error:#}"));
                Vec::new()
            }
        };
        if lines.len() != outline.images {
            self.say(&file, format!("expected a line for each of {} images, found {}", outline.images, lines.len()));
        }
        let size = resolved.models[outline.model].size(&outline.scale).ok();
        for index in 0..outline.images {
            let image = Store::image(&outline.name, index);
            self.seen.insert(image.clone());
            let line = lines.get(index);
            if line.is_some_and(|line| line.index != index) {
                self.say(&file, format!("line {}: expected image {index}", index + 1));
            }
            if let Err(problem) = self.image(&image, line, size) {
                self.say(&image, format!("{problem:#}"));
            }
        }
    }

    fn image(&self, file: &str, line: Option<&ManifestLine>, size: Option<(u32, u32)>) -> Result<()> {
        let bytes = self.store.read(file)?.context("missing")?;
        let (frames, key) = png::decode_frames(&bytes).context("damaged")?;
        for Image { width, height, .. } in &frames {
            let Some((w, h)) = size else { break };
            ensure!((*width, *height) == (w as usize, h as usize), "{width}x{height} pixels, expected {w}x{h}");
        }
        let Some(line) = line else { return Ok(()) };
        ensure!(key.as_deref() == Some(line.key.as_str()), "its key is not the manifest's: another image");
        ensure!(blake3::hash(&bytes).to_string() == line.blake3, "it does not have the digest in the manifest");
        Ok(())
    }

    /// Feature files that comparisons read; those of a run whose manifests are wrong are not known by name.
    fn features(&mut self) {
        let Ok(run) = Run::open(self.store.root()) else { return };
        for cell in &run.cells {
            for columns in &run.resolved.metrics.protocol.compare {
                for metric in &columns.metrics {
                    let files = [run.generated_file(cell, columns, *metric), run.other_file(cell, columns, *metric)];
                    for (generated, file) in [true, false].into_iter().zip(files) {
                        match file {
                            Err(error) => self.say(RUN_FILE, format!("{error:#}")),
                            Ok(None) => {}
                            Ok(Some(file)) => {
                                self.seen.insert(file.clone());
                                if let Err(problem) = self.feature_file(&file, generated.then_some(cell)) {
                                    self.say(&file, format!("{problem:#}"));
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn feature_file(&self, file: &str, generated: Option<&RunCell>) -> Result<()> {
        let path = self.store.path(file);
        ensure!(path.is_file(), "missing; the same sweep makes it again");
        let Stored::Features(set) = Stored::load(&path)? else { return Ok(()) };
        FeatureSet::load_digested(&path)?;
        if let Some(cell) = generated {
            let groups: BTreeSet<u32> = set.groups.iter().copied().collect();
            let expected = cell.scored().len();
            ensure!(groups.len() == expected, "features of {} images, expected {expected}", groups.len());
        }
        Ok(())
    }

    fn results(&mut self, resolved: &Resolved) {
        let [csv, parquet] = ["results.csv", "results.parquet"];
        self.seen.extend([csv, parquet].map(str::to_owned));
        let rows = match tables::read(self.store) {
            Ok(rows) => rows,
            Err(error) => return self.say(parquet, format!("{error:#}")),
        };
        let expected = resolved.models.len() * resolved.scales.len() * resolved.methods.len();
        if rows.len() != expected {
            self.say(parquet, format!("expected a row for each of {expected} cells, found {}", rows.len()));
        }
        match (self.store.read(csv), tables::csv_of(&rows)) {
            (Ok(None), _) => self.say(csv, "missing"),
            (Ok(Some(found)), Ok(expected)) if found != expected => self.say(csv, format!("not the values of {parquet}")),
            (Err(error), _) | (_, Err(error)) => self.say(csv, format!("{error:#}")),
            _ => {}
        }
    }

    /// Temporary files of processes that were killed; the next sweep removes them.
    fn leftovers(&mut self) {
        let mut folders = vec![self.store.root().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if path.is_dir() {
                    folders.push(path);
                } else if name.starts_with('.') && name.contains(".tmp") {
                    let shown = path.strip_prefix(self.store.root()).unwrap_or(&path).display().to_string();
                    self.say(&shown, "left over by a process that was killed, or being written; the next sweep removes it");
                }
            }
        }
    }
}
