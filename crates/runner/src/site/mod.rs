//! A static site that joins finished runs: leaderboards, a page a method, a protocol and a run, comparisons and costs.
//!
//! It is made from what is kept of a run: `run.yaml`, the results, and the report's page, be that in a run directory or committed.
//! Numbers of two protocols never share a table, and who is best is said within a run alone, where differences are paired.

mod boards;
mod compare;
mod costs;
mod folder;
mod frame;
mod index;
mod maps;
mod methods;
mod protocols;
mod runs;
mod samples;
mod source;
mod spec;

pub(crate) use folder::build;
