//! Being told to stop: SIGTERM, as schedulers send it before a time limit.
//!
//! The signal sets one flag. Whoever is about to begin something long asks for it first, so that what was begun is
//! finished and written.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::SIGTERM;

/// Exit status of a run that was told to stop before it was finished: the same command goes on with it. `EX_TEMPFAIL` of
/// sysexits.h.
pub(crate) const STATUS: u8 = 75;

static TOLD: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The error of a run that was told to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("told to stop by SIGTERM; what was made is kept, and the same command goes on")
    }
}

impl std::error::Error for Interrupted {}

/// From here on SIGTERM no longer ends the process: [`check`] tells of it.
pub(crate) fn listen() -> Result<()> {
    let told = TOLD.get_or_init(Arc::default);
    signal_hook::flag::register(SIGTERM, Arc::clone(told)).context("cannot listen for SIGTERM")?;
    Ok(())
}

/// [`Interrupted`] if the signal came.
pub(crate) fn check() -> Result<()> {
    match TOLD.get().is_some_and(|told| told.load(Ordering::Relaxed)) {
        true => Err(Interrupted.into()),
        false => Ok(()),
    }
}
