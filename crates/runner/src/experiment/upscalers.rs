//! The networks that methods enlarge with: found, and loaded once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use scalebench_generation::{Dtype, LoadOptions, Method, Upscaler, locate};

use crate::host::{data, device};

/// Every network that was loaded, by its name in method files and its precision.
#[derive(Default)]
pub(crate) struct Upscalers(BTreeMap<(String, String), Arc<Upscaler>>);

impl Upscalers {
    /// What a method enlarges with, if it does, and its name there; names of folders start at `folder` or here.
    pub(crate) fn find(&mut self, method: &Method, dtype: Dtype, folder: &Path) -> Result<Option<(String, Arc<Upscaler>)>> {
        let Some(upscaling) = method.upscaling() else { return Ok(None) };
        let name = &upscaling.checkpoint;
        let key = (name.clone(), dtype.to_string());
        if let Some(known) = self.0.get(&key) {
            return Ok(Some((name.clone(), known.clone())));
        }
        let context = || format!("method {}: upscale.upscaler.checkpoint", method.name());
        let found = Arc::new(load(name, dtype, folder).with_context(context)?);
        self.0.insert(key, found.clone());
        Ok(Some((name.clone(), found)))
    }

    /// Digests by name.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|((name, _), upscaler)| (name.clone(), upscaler.digest().to_owned())).collect()
    }
}

fn load(name: &str, dtype: Dtype, folder: &Path) -> Result<Upscaler> {
    let path = data::located(&PathBuf::from(name))?;
    let beside = folder.join(&path);
    let found = locate(if beside.is_dir() { &beside } else { &path })?;
    let options = LoadOptions { variant: None, dtype, device: device::current(), motion_adapter: None };
    Ok(Upscaler::load_with(&found, &options)?)
}
