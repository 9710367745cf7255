//! `run.yaml`: what a run directory says about its making.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::experiment::resolved::{Resolved, difference};
use crate::host::machine::Machine;
use crate::run::progress::{self, Event};
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
        let path = store.path(RUN_FILE);
        let bytes = store.read(RUN_FILE)?;
        let bytes = bytes.with_context(|| format!("{}: expected the description of a run", path.display()))?;
        serde_yaml::from_slice(&bytes).with_context(|| format!("{}: not a run description", path.display()))
    }
}

/// Describes a run that is new; one that goes on is of the same experiment.
pub(crate) fn begin(store: &Store, resolved: &Resolved, command: String) -> Result<()> {
    let stored = store.read(RUN_FILE)?.is_some().then(|| RunFile::read(store)).transpose()?;
    if check_same_experiment(store, resolved)?
        && let Some(stored) = stored
    {
        // Images that others made may have been replaced; then the run is of the new ones.
        if stored.experiment != *resolved {
            progress::say(&Event::Note { text: "images of another program have changed since this run began: it takes the new ones" });
            let file = RunFile { experiment: resolved.clone(), ..stored };
            store.write(RUN_FILE, serde_yaml::to_string(&file)?.as_bytes())?;
        }
    } else {
        let file = RunFile { command, machine: Some(Machine::here()), experiment: resolved.clone() };
        store.write(RUN_FILE, serde_yaml::to_string(&file)?.as_bytes())?;
    }
    Ok(())
}

/// Checks that the directory is new or belongs to the same experiment.
pub(crate) fn check_same_experiment(store: &Store, resolved: &Resolved) -> Result<bool> {
    let Some(bytes) = store.read(RUN_FILE)? else { return Ok(false) };
    let path = store.path(RUN_FILE);
    let stored: RunFile = serde_yaml::from_slice(&bytes).with_context(|| format!("{}: not a run description", path.display()))?;
    if let Some(difference) = difference(&stored.experiment.with_images_of(resolved), resolved)? {
        bail!("{}: another experiment: {difference}; expected the same one or an unused --out", path.display());
    }
    Ok(true)
}
