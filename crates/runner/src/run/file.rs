//! `run.yaml`: what a run directory says about its making.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::experiment::resolved::{Resolved, difference};
use crate::experiment::yaml;
use crate::host::machine::Machine;
use crate::run::progress::{self, Event};
use crate::run::seal;
use crate::run::store::Store;

/// Name of the run's description in its directory.
pub(crate) const RUN_FILE: &str = "run.yaml";

/// The description of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// The command that began the run.
    pub(crate) command: String,
    /// The machine that began it.
    #[serde(default)]
    pub(crate) machine: Option<Machine>,
    pub(crate) experiment: Resolved,
}

impl RunFile {
    /// The description of a run, which must be there.
    pub(crate) fn read(store: &Store) -> Result<RunFile> {
        RunFile::find(store)?.with_context(|| format!("{}: expected the description of a run", store.path(RUN_FILE).display()))
    }

    /// The description of a run; None in a new directory.
    fn find(store: &Store) -> Result<Option<RunFile>> {
        let Some(bytes) = seal::read(store, RUN_FILE)? else { return Ok(None) };
        RunFile::parse(&bytes).with_context(|| store.path(RUN_FILE).display().to_string()).map(Some)
    }

    /// The description in a file's content.
    pub(crate) fn parse(bytes: &[u8]) -> Result<RunFile> {
        let described = || -> Result<RunFile, serde_yaml::Error> { serde_yaml::from_value(yaml::read(bytes)?) };
        described().context("not a run description")
    }
}

/// Describes a run that is new; one that goes on is of the same experiment.
pub(crate) fn begin(store: &Store, resolved: &Resolved, command: String) -> Result<()> {
    let file = match check_same_experiment(store, resolved)? {
        None => RunFile { command, machine: Some(Machine::here()), experiment: resolved.clone() },
        Some(stored) if stored.experiment == *resolved => return Ok(()),
        // Images that others made may have been replaced; then the run is of the new ones.
        Some(stored) => {
            progress::say(&Event::Note { text: "images of another program have changed since this run began: it takes the new ones" });
            RunFile { experiment: resolved.clone(), ..stored }
        }
    };
    seal::remove(store)?;
    store.write(RUN_FILE, serde_yaml::to_string(&file)?.as_bytes())
}

/// The description of the run in a directory, which is of the same experiment; None if the directory is new.
pub(crate) fn check_same_experiment(store: &Store, resolved: &Resolved) -> Result<Option<RunFile>> {
    let Some(stored) = RunFile::find(store)? else { return Ok(None) };
    if let Some(difference) = difference(&stored.experiment.with_images_of(resolved), resolved)? {
        let path = store.path(RUN_FILE);
        bail!("{}: another experiment: {difference}; expected the same one or an unused --out", path.display());
    }
    Ok(Some(stored))
}
