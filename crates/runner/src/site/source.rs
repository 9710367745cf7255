//! A run as a site sees it: from its directory, or from the folder with its committed report.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::experiment::methods::BASELINE;
use crate::experiment::resolved::{Method, Resolved};
use crate::report::folder::NOT_COMPARABLE;
use crate::report::page::Samples;
use crate::report::readback::{self, Shown};
use crate::report::tables;
use crate::run::file::RunFile;
use crate::run::results::Row;
use crate::run::shard::Shard;
use crate::run::store::Store;

pub(super) struct Source {
    /// Of its folder: names the run's page.
    pub(super) name: String,
    pub(super) run: RunFile,
    pub(super) rows: Vec<Row>,
    /// Empty where no page was kept.
    pub(super) shown: Shown,
}

/// What is known of a method.
pub(super) struct Known<'a> {
    /// The method that it is a variant of, or itself.
    pub(super) base: &'a str,
    pub(super) title: &'a str,
}

impl Source {
    pub(super) fn read(folder: &Path) -> Result<Source> {
        ensure!(folder.is_dir(), "{}: expected the directory of a run or of its report", folder.display());
        let full = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
        let name = full.components().next_back().map(|last| last.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        let store = Store::new(folder, Shard::WHOLE);
        let (run, rows) = (RunFile::read(&store)?, tables::read_kept(&store)?);
        ensure!(!rows.is_empty(), "{}: results without rows", folder.display());
        let columns = |row: &Row| row.scores.iter().map(|score| score.column.clone()).collect::<Vec<_>>();
        ensure!(rows.iter().all(|row| columns(row) == columns(&rows[0])), "{}: rows with different columns", folder.display());
        for row in &rows {
            let known = run.experiment.methods.iter().any(|method| method.name == row.method);
            ensure!(known, "{}: results of `{}`, which run.yaml does not know", folder.display(), row.method);
            let known = run.experiment.models.iter().any(|model| model.name == row.model);
            ensure!(known, "{}: results of model `{}`, which run.yaml does not know", folder.display(), row.model);
        }
        let mut shown = Shown::default();
        // The page of a run directory, or one that lies beside the results.
        for page in ["report/index.html", "index.html"] {
            let Some(bytes) = store.read(page)? else { continue };
            let at = || store.path(page).display().to_string();
            shown = readback::read(std::str::from_utf8(&bytes).with_context(at)?).with_context(at)?;
            break;
        }
        Ok(Source { name, run, rows, shown })
    }

    pub(super) fn resolved(&self) -> &Resolved {
        &self.run.experiment
    }

    /// Said beside numbers that could be mistaken for others.
    pub(super) fn note(&self) -> &'static str {
        if self.resolved().metrics.comparable() { "" } else { NOT_COMPARABLE }
    }

    pub(super) fn method(&self, name: &str) -> Option<&Method> {
        self.resolved().methods.iter().find(|method| method.name == name)
    }

    pub(super) fn known<'a>(&'a self, name: &'a str) -> Known<'a> {
        match self.method(name) {
            Some(method) => Known { base: method.variant_of.as_deref().unwrap_or(&method.name), title: &method.title },
            None => Known { base: name, title: name },
        }
    }

    /// Titles of the methods of a page: of one by its base name, or of all variants.
    pub(super) fn titles<'a>(&'a self, base: &'a str) -> impl Iterator<Item = &'a str> {
        self.resolved().methods.iter().filter(move |method| self.known(&method.name).base == base).map(|method| method.title.as_str())
    }

    /// The samples of some methods, those of plain sampling and real ones, where the first are.
    pub(super) fn samples_of(&self, base: &str) -> Vec<Samples> {
        let of = |base: &str| self.titles(base).map(str::to_owned).collect::<Vec<_>>();
        let (wanted, plain) = (of(base), of(BASELINE));
        let mut found = Vec::new();
        for samples in &self.shown.samples {
            let has = |titles: &[String], label: &String| titles.contains(label);
            if !samples.rows.iter().any(|row| row.seeded && has(&wanted, &row.label)) {
                continue;
            }
            let rows = samples.rows.iter().filter(|row| !row.seeded || has(&wanted, &row.label) || has(&plain, &row.label));
            found.push(Samples { title: samples.title.clone(), columns: samples.columns.clone(), rows: rows.cloned().collect() });
        }
        found
    }
}
