//! Power spectra of cells, kept for the report: `cells/<cell>/spectrum-<comparison>.json`.

use anyhow::{Context, Result};
use scalebench_metrics::FeatureSet;
use scalebench_metrics::pixels;
use serde::{Deserialize, Serialize};

use crate::run::results::Interval;
use crate::run::store::Store;

/// Decibels in rings of equal width from the lowest frequency to half a cycle a pixel: means over images with their 95 % intervals.
pub(crate) type Curve = Vec<Interval>;

/// Both sides of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spectra {
    pub(crate) generated: Curve,
    pub(crate) other: Curve,
}

impl Spectra {
    pub(crate) fn new(generated: &FeatureSet, other: &FeatureSet) -> Result<Spectra> {
        let curve = |set: &FeatureSet| -> Result<Curve> { Ok(pixels::curve(set)?.into_iter().map(Interval::from).collect()) };
        Ok(Spectra { generated: curve(generated)?, other: curve(other)? })
    }
}

fn path(cell: &str, comparison: &str) -> String {
    format!("cells/{cell}/spectrum-{comparison}.json")
}

pub(crate) fn write(store: &Store, cell: &str, comparison: &str, spectra: &Spectra) -> Result<()> {
    store.write(&path(cell, comparison), &serde_json::to_vec(spectra)?)
}

/// None where no spectrum was measured.
pub(crate) fn read(store: &Store, cell: &str, comparison: &str) -> Result<Option<Spectra>> {
    let relative = path(cell, comparison);
    let Some(bytes) = store.read(&relative)? else { return Ok(None) };
    let place = || format!("{}: not a pair of spectra", store.path(&relative).display());
    Ok(Some(serde_json::from_slice(&bytes).with_context(place)?))
}
