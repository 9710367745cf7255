//! What a run found, shown: tables (polars), charts (plotters), grids, one HTML page.

pub(crate) mod blind;
pub(crate) mod figures;
pub(crate) mod folder;
pub(crate) mod frame;
pub(crate) mod grid;
pub(crate) mod heatmap;
pub(crate) mod latex;
pub(crate) mod page;
pub(crate) mod provenance;
pub(crate) mod readback;
pub(crate) mod scores;
pub(crate) mod spectrum;
pub(crate) mod tables;
pub(crate) mod tradeoff;
