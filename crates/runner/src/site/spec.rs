//! What a site is made of: `site.yaml`, or run directories on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use crate::experiment::yaml;

/// A site file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// Above the leaderboard; default: a general question.
    #[serde(default)]
    pub(super) title: Option<String>,
    /// Directories of runs or committed reports, relative to the file.
    #[serde(default)]
    pub(super) runs: Vec<PathBuf>,
    /// A table of goldens and their errors, relative to the file: see [`Golden`].
    #[serde(default)]
    pub(super) goldens: Option<PathBuf>,
}

/// A golden of a method, and the largest difference to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Golden {
    pub(super) method: String,
    pub(super) golden: String,
    /// What made it.
    pub(super) reference: String,
    /// Tensors that are compared.
    pub(super) comparisons: usize,
    /// Over the root mean square of the golden's values.
    pub(super) largest: f64,
}

impl Spec {
    /// From run directories and at most one site file, in this order of runs.
    pub(super) fn of(paths: &[PathBuf]) -> Result<Spec> {
        let is_file =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") && !path.is_dir();
        let files: Vec<&PathBuf> = paths.iter().filter(|path| is_file(path)).collect();
        ensure!(files.len() < 2, "{} and {}: expected one site file", files[0].display(), files[1].display());
        let mut spec = files.first().map_or_else(|| Ok(Spec::default()), |file| Spec::read(file))?;
        spec.runs.extend(paths.iter().filter(|path| !is_file(path)).cloned());
        ensure!(!spec.runs.is_empty(), "no runs, expected run directories or a site file that names some");
        Ok(spec)
    }

    fn read(file: &Path) -> Result<Spec> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let value = yaml::read(text.as_bytes()).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let mut spec: Spec = yaml::from_value(value).map_err(|message| anyhow!("{}: {message}", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        spec.runs.iter_mut().chain(&mut spec.goldens).for_each(|path| *path = folder.join(&path));
        Ok(spec)
    }
}

/// Reads a table with the columns `method,golden,reference,comparisons,largest`.
pub(super) fn goldens(file: &Path) -> Result<Vec<Golden>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = text.lines();
    let header = "method,golden,reference,comparisons,largest";
    ensure!(lines.next() == Some(header), "{}: expected the header `{header}`", file.display());
    let golden = |(i, line): (usize, &str)| -> Result<Golden> {
        let fault = || format!("{}: line {}: expected `{header}`, found `{line}`", file.display(), i + 2);
        let cells: Vec<&str> = line.split(',').collect();
        let [method, golden, reference, comparisons, largest] = cells[..] else { return Err(anyhow!(fault())) };
        let text = |cell: &str| cell.to_owned();
        let (comparisons, largest) = (comparisons.parse().with_context(fault)?, largest.parse().with_context(fault)?);
        Ok(Golden { method: text(method), golden: text(golden), reference: text(reference), comparisons, largest })
    };
    lines.enumerate().map(golden).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_relative_to_the_site_file_and_faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("site.yaml"), "title: T\nruns: [quick, ../tau]\ngoldens: g.csv\n").unwrap();
        let spec = Spec::of(&[at("more"), at("site.yaml")]).unwrap();
        assert_eq!(spec.runs, [at("quick"), at("../tau"), at("more")]);
        assert_eq!((spec.title.as_deref(), spec.goldens), (Some("T"), Some(at("g.csv"))));
        std::fs::write(at("g.csv"), "method,golden,reference,comparisons,largest\nm,g,their code,4,1.5e-5\n").unwrap();
        assert_eq!(goldens(&at("g.csv")).unwrap()[0].largest, 1.5e-5);
        for (text, fragment) in [("runs: [a]\nrun: b\n", "did you mean `runs`?"), ("title: T\n", "no runs"), ("runs: a\n", "runs: ")] {
            std::fs::write(at("site.yaml"), text).unwrap();
            let message = format!("{:#}", Spec::of(&[at("site.yaml")]).unwrap_err());
            assert!(message.contains(fragment), "{text}: {message}");
        }
        std::fs::write(at("g.csv"), "method,golden,reference,comparisons,largest\nm,g,x,many,0\n").unwrap();
        let message = format!("{:#}", goldens(&at("g.csv")).unwrap_err());
        assert!(message.contains("g.csv: line 2") && message.contains("many"), "{message}");
    }
}
