//! A run: its directory ([`store`], [`file`]), its images, its scores.

pub(crate) mod file;
pub(crate) mod flops;
pub(crate) mod images;
pub(crate) mod lock;
pub(crate) mod numbers;
pub(crate) mod png;
pub(crate) mod progress;
pub(crate) mod results;
pub(crate) mod schedule;
pub(crate) mod score;
pub(crate) mod seal;
pub(crate) mod shard;
pub(crate) mod slurm;
pub(crate) mod spectra;
pub(crate) mod store;
pub(crate) mod video;
