//! Run against run.

pub(crate) mod finished;
pub(crate) mod history;
pub(crate) mod judge;
#[cfg(test)]
pub(crate) mod made_up;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
pub(crate) mod trend;
pub(crate) mod verdicts;
pub(crate) mod verify;
pub(crate) mod votes;
