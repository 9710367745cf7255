//! What calibrations found, kept between runs of the program.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::host::machine::{self, Machine};

/// What a calibration found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Speed {
    pub(crate) seconds_per_pass: f64,
    pub(crate) seconds_to_decode: f64,
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// Calibrations of this program on this machine.
pub(crate) struct Cache {
    file: Option<PathBuf>,
    pub(crate) known: BTreeMap<String, Speed>,
}

impl Cache {
    /// What is known of earlier ones.
    pub(crate) fn open(machine: &Machine) -> Result<Cache> {
        let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
        let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
        let id = blake3::hash(json!([machine::build()?, machine]).to_string().as_bytes()).to_hex();
        let file = folder.map(|folder| folder.join("scalebench").join(format!("calibration-{}.json", &id[..16])));
        // A damaged cache is as good as none.
        let known = file.as_ref().and_then(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok()).unwrap_or_default();
        Ok(Cache { file, known })
    }

    /// Without a place to write to, the next dry run calibrates again: no reason to fail.
    pub(crate) fn save(&self) {
        let write = || -> Option<()> {
            let file = self.file.as_ref()?;
            std::fs::create_dir_all(file.parent()?).ok()?;
            let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
            std::fs::write(&temporary, serde_json::to_vec_pretty(&self.known).ok()?).ok()?;
            std::fs::rename(&temporary, file).ok()
        };
        let _ = write();
    }
}
